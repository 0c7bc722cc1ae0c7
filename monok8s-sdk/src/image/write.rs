//! From the artifact's bytes to the slot's, in bounded memory.
//!
//! The stack, outermost last: the source, counted, capped and hashed as the checksum covers it,
//! and the zstd decoder ([`Decoder`]); the 1 MiB buffer that the slot is written from ([`Body`]).
//! Nothing else holds image bytes, so memory is the decoder's window plus constants.

use std::io::Read;
use std::sync::Arc;

use sha2::Digest as _;

use super::decode::Decoder;
use super::progress::{Cancel, Progress};
use super::write_error::WriteError;
use crate::digest::Sha256Digest;
use crate::disk::{AlignedBuf, BlockTarget, DiskError, InactiveSlot, WrittenSlot};

/// What is kept back until the end, in bytes: it holds the superblock, without which nothing
/// mounts or boots the slot.
const HEAD: usize = 64 * 1024;
/// How much is decoded and written at a time, in bytes.
const STEP: usize = 1 << 20;
/// The shortest run of zeroes that is zeroed rather than written, in bytes.
const ZERO_RUN: usize = 64 * 1024;
static ZEROES: [u8; ZERO_RUN] = [0; ZERO_RUN];

/// What is known of an artifact before it is read. Whatever is given is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The digest of the artifact as served.
    pub checksum: Option<Sha256Digest>,
    /// The expanded image's size in bytes. Without it the slot's size is the bound.
    pub size: Option<u64>,
    /// The digest of the expanded image.
    pub image_checksum: Option<Sha256Digest>,
}

/// A slot that holds its image, checksums proven, but for the first 64 KiB: those are zero on the
/// medium, so that the slot cannot be booted.
///
/// A caller that keeps a record notes [`image`](Self::image) and [`length`](Self::length) durably
/// now, and calls [`finish`](Self::finish) after that. Whatever a power cut leaves can then be
/// judged by reading the slot back against the record, without a download.
#[must_use = "the slot is not bootable before finish()"]
pub struct BodyWritten {
    slot: InactiveSlot,
    head: AlignedBuf,
    head_length: usize,
    image: Sha256Digest,
    length: u64,
}

impl std::fmt::Debug for BodyWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyWritten({:?}, {}, {} bytes)", self.slot, self.image, self.length)
    }
}

impl BodyWritten {
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
        let head = self.head.get(..self.head_length).unwrap_or_default();
        self.slot.target().write_at(0, head).map_err(failed)?;
        self.slot.target().flush().map_err(failed)?;
        Ok(WrittenSlot::new(self.slot, self.image, self.length))
    }
}

/// Expands `artifact` into the slot, all but its first 64 KiB, and flushes. Blocks until done;
/// async callers use [`write`](super::write()).
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
    if let Some(size) = expected.size {
        slot.require_room(size).map_err(WriteError::TooLarge)?;
    }
    let mut decoder = Decoder::new(artifact, slot.size(), progress.clone());
    decoder.check_magic()?;
    let mut decoder = decoder.start()?;
    let mut step = AlignedBuf::zeroed(STEP);
    let mut body = Body::new(Arc::clone(slot.target()), progress.clone());
    loop {
        let filled = decoder.fill(&mut step)?;
        if cancel.is_cancelled() {
            return Err(WriteError::Cancelled);
        }
        if filled == 0 {
            break;
        }
        refuse_excess(&slot, expected, body.offset + filled as u64)?;
        body.append(step.get(..filled).unwrap_or_default())?;
    }
    let (received, checksum) = decoder.finish();
    if let Some(expected) = expected.checksum.filter(|expected| *expected != checksum) {
        return Err(WriteError::ChecksumMismatch { expected, found: checksum, received });
    }
    if body.offset == 0 {
        return Err(WriteError::Truncated { received });
    }
    let (head, length, image) = body.end()?;
    if let Some(declared) = expected.size.filter(|declared| *declared != length) {
        return Err(WriteError::SizeMismatch { declared, found: length });
    }
    if let Some(expected) = expected.image_checksum.filter(|expected| *expected != image) {
        return Err(WriteError::ImageChecksumMismatch { expected, found: image });
    }
    let head_length = usize::try_from(length).unwrap_or(HEAD).min(HEAD);
    Ok(BodyWritten { slot, head, head_length, image, length })
}

/// Stops an image that grows past its bounds, before the bytes in excess are written.
fn refuse_excess(slot: &InactiveSlot, expected: &Expected, length: u64) -> Result<(), WriteError> {
    if let Some(declared) = expected.size.filter(|declared| length > *declared) {
        return Err(WriteError::ExpandsBeyondSize { declared });
    }
    if length > slot.size() {
        return Err(WriteError::ExpandsBeyondSlot { slot: slot.slot(), slot_size: slot.size() });
    }
    Ok(())
}

/// The slot while it is written: everything but the first 64 KiB, which are collected.
struct Body {
    target: Arc<dyn BlockTarget>,
    progress: Progress,
    hasher: sha2::Sha256,
    head: AlignedBuf,
    /// How much of the image was appended, in bytes.
    offset: u64,
    /// A run of zeroes that ends at `offset` and is not on the target yet.
    zeroes: u64,
}

impl Body {
    fn new(target: Arc<dyn BlockTarget>, progress: Progress) -> Self {
        let (head, hasher) = (AlignedBuf::zeroed(HEAD), sha2::Sha256::new());
        Self { target, progress, hasher, head, offset: 0, zeroes: 0 }
    }

    /// Makes the slot unbootable, durably, before anything else of it changes.
    fn invalidate(&self) -> Result<(), WriteError> {
        let head = self.target.size().min(HEAD as u64);
        self.target.zero(0, head).map_err(|source| self.failed(source))?;
        self.target.flush().map_err(|source| self.failed(source))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.offset == 0 {
            self.invalidate()?;
        }
        self.hasher.update(bytes);
        let kept = usize::try_from(self.offset).unwrap_or(HEAD);
        let room = self.head.get_mut(kept..).unwrap_or_default();
        let (head, body) = bytes.split_at(room.len().min(bytes.len()));
        room.iter_mut().zip(head).for_each(|(place, byte)| *place = *byte);
        self.offset += head.len() as u64;
        for run in runs(body) {
            match run {
                Run::Zero(length) => self.zeroes += length as u64,
                Run::Data(data) => {
                    self.put_zeroes()?;
                    self.target.write_at(self.offset, data).map_err(|source| self.failed(source))?;
                }
            }
            self.offset += run.len() as u64;
        }
        self.progress.add_written(bytes.len() as u64);
        Ok(())
    }

    fn put_zeroes(&mut self) -> Result<(), WriteError> {
        let length = std::mem::take(&mut self.zeroes);
        self.target.zero(self.offset - length, length).map_err(|source| self.failed(source))
    }

    /// Flushes; returns the first 64 KiB, and the length and the digest of the whole image.
    fn end(mut self) -> Result<(AlignedBuf, u64, Sha256Digest), WriteError> {
        self.put_zeroes()?;
        self.target.flush().map_err(|source| self.failed(source))?;
        Ok((self.head, self.offset, <[u8; 32]>::from(self.hasher.finalize()).into()))
    }

    fn failed(&self, source: DiskError) -> WriteError {
        WriteError::Disk { written: self.offset, source }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run<'a> {
    Zero(usize),
    Data(&'a [u8]),
}

impl Run<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Zero(length) => *length,
            Self::Data(data) => data.len(),
        }
    }
}

/// Cuts bytes into runs of zeroes and of data, in units of [`ZERO_RUN`].
fn runs(bytes: &[u8]) -> Vec<Run<'_>> {
    let is_zero = |unit: &[u8]| ZEROES.get(..unit.len()) == Some(unit);
    let units: Vec<&[u8]> = bytes.chunks(ZERO_RUN).collect();
    let mut rest = bytes;
    units
        .chunk_by(|left, right| is_zero(left) == is_zero(right))
        .map(|group| {
            let length = group.iter().map(|unit| unit.len()).sum();
            let (run, behind) = rest.split_at(length);
            rest = behind;
            if group.first().is_some_and(|unit| is_zero(unit)) { Run::Zero(length) } else { Run::Data(run) }
        })
        .collect()
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
