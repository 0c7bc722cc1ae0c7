//! A whole artifact into a slot, in bounded memory, on several threads:
//!
//! ```text
//! source → hash, frames → expand (several) → order, hash → write (several) → read back
//! ```
//!
//! Image bytes are in the buffers of one [`Pool`] from the decoder to the device, so memory is the
//! pool, the decoders' windows and constants.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use sha2::Digest as _;

use super::expand::{Numbered, Outlets, PIECE, expand_frames, feed};
use super::head::Head;
use super::indexed::Delivery;
use super::pool::{Buffer, Pool};
use super::progress::{Cancel, Progress};
use super::slot_writer::{Halt, SlotWriter, write_slot};
use super::wire::Wire;
use super::write_error::WriteError;
use crate::digest::Sha256Digest;
use crate::disk::{InactiveSlot, Written, WrittenSlot, is_zero};

/// Buffers of one piece each: enough for every thread to hold one and for some to wait.
const BUFFERS: usize = 6;
/// More threads than this do not expand faster than a device writes.
const MOST_EXPANDERS: usize = 4;
/// A run of zeroes is handed on when it has this length in bytes, so that progress shows.
const ZERO_RUN: u64 = 64 << 20;

/// What is known of an artifact before it is read. Whatever is given is enforced: on what is read, or,
/// by an index, on what the index states; every frame is then proven by the digest that it lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The digest of the artifact as served.
    pub checksum: Option<Sha256Digest>,
    /// The expanded image's size in bytes. Without it the slot's size is the bound.
    pub size: Option<u64>,
    /// The digest of the expanded image.
    pub image_checksum: Option<Sha256Digest>,
}

/// A slot that holds its image, checksums proven and read back, but for the first 64 KiB: those are
/// zero on the medium, so that the slot cannot be booted.
///
/// A caller that keeps a record notes [`image`](Self::image) and [`length`](Self::length) durably
/// now, and calls [`finish`](Self::finish) after that. Whatever a power cut leaves can then be
/// judged by reading the slot back against the record, without a download.
#[must_use = "the slot is not bootable before finish()"]
pub struct BodyWritten {
    slot: InactiveSlot,
    head: Head,
    image: Sha256Digest,
    length: u64,
    delivery: Delivery,
}

impl std::fmt::Debug for BodyWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyWritten({:?}, {}, {} bytes)", self.slot, self.image, self.length)
    }
}

impl BodyWritten {
    pub(super) fn new(
        slot: InactiveSlot,
        head: Head,
        image: Sha256Digest,
        length: u64,
        delivery: Delivery,
    ) -> Self {
        Self { slot, head, image, length, delivery }
    }

    /// How the image came here.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(super) fn delivered(self, delivery: Delivery) -> Self {
        Self { delivery, ..self }
    }

    /// The digest of the expanded image.
    #[must_use]
    pub fn image(&self) -> Sha256Digest {
        self.image
    }

    /// The expanded image's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Writes the first 64 KiB and flushes. Blocks on the disk.
    pub fn finish(self) -> Result<WrittenSlot, WriteError> {
        let failed = |source| WriteError::Disk { written: self.length, source };
        let head = self.head.of(self.length)?;
        self.slot.target().write_at(0, head).map_err(failed)?;
        self.slot.target().flush().map_err(failed)?;
        let unread = vec![Written::data(0, head)];
        Ok(WrittenSlot::new(self.slot, self.image, self.length, unread))
    }
}

/// Expands `artifact` into the slot, all but its first 64 KiB, flushes it and reads it back. Blocks
/// until done; async callers use [`write`](super::write()).
///
/// On any error the slot is left without its first 64 KiB, so that nothing can boot it; or as it
/// was, if the first bytes of the image never came.
pub fn write_body(
    slot: InactiveSlot,
    artifact: impl Read,
    expected: &Expected,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<BodyWritten, WriteError> {
    write_until(slot, artifact, expected, progress, &cancel.below())
}

/// The same; `stop` is cancelled as soon as anything fails, so that whoever brings the artifact may
/// stop waiting for more of it.
pub(super) fn write_until(
    slot: InactiveSlot,
    artifact: impl Read,
    expected: &Expected,
    progress: &Progress,
    stop: &Cancel,
) -> Result<BodyWritten, WriteError> {
    if let Some(size) = expected.size {
        slot.require_room(size).map_err(WriteError::TooLarge)?;
    }
    let mut wire = Wire::new(artifact, slot.size(), progress.clone());
    let (image, head) = write_slot(&**slot.target(), progress, stop, |writer| {
        let image = expand(&mut wire, &slot, expected, writer)?;
        let (received, checksum) = wire.finish();
        judge(expected, &image, received, checksum)?;
        Ok(image)
    })?;
    Ok(BodyWritten::new(slot, head, image.digest, image.length, Delivery::Whole))
}

/// What came out of an artifact.
struct Image {
    digest: Sha256Digest,
    length: u64,
}

/// Whether it is what was ordered.
fn judge(
    expected: &Expected,
    image: &Image,
    received: u64,
    checksum: Sha256Digest,
) -> Result<(), WriteError> {
    if let Some(expected) = expected.checksum.filter(|expected| *expected != checksum) {
        return Err(WriteError::ChecksumMismatch { expected, found: checksum, received });
    }
    if image.length == 0 {
        return Err(WriteError::Truncated { received });
    }
    if let Some(declared) = expected.size.filter(|declared| *declared != image.length) {
        return Err(WriteError::SizeMismatch { declared, found: image.length });
    }
    if let Some(expected) = expected.image_checksum.filter(|expected| *expected != image.digest) {
        return Err(WriteError::ImageChecksumMismatch { expected, found: image.digest });
    }
    Ok(())
}

/// Expands the artifact's frames, in parallel where they allow it, and puts them into the slot.
fn expand<R: Read>(
    wire: &mut Wire<R>,
    slot: &InactiveSlot,
    expected: &Expected,
    writer: &SlotWriter<'_>,
) -> Result<Image, Halt> {
    let pool = Pool::new(BUFFERS, PIECE);
    let expanders = thread::available_parallelism().map_or(1, usize::from).min(MOST_EXPANDERS);
    let stopped = AtomicBool::new(false);
    let (collected, fed) = thread::scope(|scope| {
        let (pieces, numbered) = bounded(BUFFERS);
        let (frames, waiting) = bounded(expanders);
        let (emptied, spare) = bounded(BUFFERS);
        for _ in 0..expanders {
            let (waiting, pieces, emptied) = (waiting.clone(), pieces.clone(), emptied.clone());
            scope.spawn(move || expand_frames(&waiting, &pieces, &emptied));
        }
        drop((waiting, emptied));
        let stopped = &stopped;
        let collector = scope.spawn(move || {
            let collected = Collector::new(slot, expected, writer).run(&numbered);
            if collected.is_err() {
                stopped.store(true, Ordering::Relaxed);
                writer.stop();
                // Pieces in a channel hold buffers: they are let go of until nobody sends any more,
                // or the feeder would wait for one for ever.
                numbered.iter().for_each(drop);
            }
            collected
        });
        let fed = feed(wire, &Outlets { pool: &pool, frames, pieces, spare, stopped });
        (collector.join(), fed)
    });
    match (collected, fed) {
        (Err(panic), _) => std::panic::resume_unwind(panic),
        // What the pieces are is known better than why no more of them were taken.
        (Ok(Err(collected)), Err(fed)) => Err(collected.or_better(fed)),
        (Ok(Err(halt)), Ok(())) | (Ok(Ok(_)), Err(halt)) => Err(halt),
        (Ok(Ok(image)), Ok(())) => Ok(image),
    }
}

/// Puts pieces into order, hashes them and hands them to the writers.
struct Collector<'a> {
    slot: &'a InactiveSlot,
    expected: &'a Expected,
    writer: &'a SlotWriter<'a>,
    hasher: sha2::Sha256,
    /// How much of the image was taken, in bytes.
    offset: u64,
    /// A run of zeroes that ends at `offset` and was not handed on yet.
    zeroes: u64,
}

impl<'a> Collector<'a> {
    fn new(slot: &'a InactiveSlot, expected: &'a Expected, writer: &'a SlotWriter<'a>) -> Self {
        Self { slot, expected, writer, hasher: sha2::Sha256::new(), offset: 0, zeroes: 0 }
    }

    fn run(mut self, numbered: &Receiver<Numbered>) -> Result<Image, Halt> {
        // Bounded by the pool: every piece in it holds a buffer.
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (number, piece) in numbered {
            early.insert(number, piece);
            while let Some(piece) = early.remove(&next) {
                self.take(piece?)?;
                next += 1;
            }
        }
        self.put_zeroes()?;
        let digest = <[u8; 32]>::from(self.hasher.finalize()).into();
        Ok(Image { digest, length: self.offset })
    }

    fn take(&mut self, piece: Buffer) -> Result<(), Halt> {
        let length = piece.len() as u64;
        self.refuse_excess(self.offset + length)?;
        self.hasher.update(&piece[..]);
        let at = self.offset;
        self.offset += length;
        if is_zero(&piece) {
            self.zeroes += length;
            return if self.zeroes >= ZERO_RUN { self.put_zeroes() } else { Ok(()) };
        }
        // The run ends where this piece begins.
        let run = std::mem::take(&mut self.zeroes);
        if run > 0 {
            self.writer.put_zeroes(at - run, run)?;
        }
        self.writer.put(at, piece)
    }

    fn put_zeroes(&mut self) -> Result<(), Halt> {
        let run = std::mem::take(&mut self.zeroes);
        if run == 0 { Ok(()) } else { self.writer.put_zeroes(self.offset - run, run) }
    }

    /// Stops an image that grows past its bounds, before the bytes in excess are written.
    fn refuse_excess(&self, length: u64) -> Result<(), WriteError> {
        if let Some(declared) = self.expected.size.filter(|declared| length > *declared) {
            return Err(WriteError::ExpandsBeyondSize { declared });
        }
        if length > self.slot.size() {
            let (slot, slot_size) = (self.slot.slot(), self.slot.size());
            return Err(WriteError::ExpandsBeyondSlot { slot, slot_size });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
