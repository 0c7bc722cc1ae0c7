//! From the artifact's bytes to the slot's, in bounded memory.
//!
//! The stack, outermost last: the source, counted, capped and hashed as the checksum covers it
//! ([`Wire`]); the zstd decoder; the 1 MiB buffer that the slot is written from ([`Body`]).
//! Nothing else holds image bytes, so memory is the decoder's window plus constants.

use std::io::{self, BufRead as _, BufReader, Read};
use std::sync::Arc;

use sha2::Digest as _;

use super::error::CANCELLED;
use super::progress::{Cancel, Progress};
use crate::digest::Sha256Digest;
use crate::disk::{AlignedBuf, BlockTarget, Bytes, DiskError, GuardError, InactiveSlot, WrittenSlot};

/// What is kept back until the end, in bytes: it holds the superblock, without which nothing
/// mounts or boots the slot.
const HEAD: usize = 64 * 1024;
/// How much is decoded and written at a time, in bytes.
const STEP: usize = 1 << 20;
/// The shortest run of zeroes that is zeroed rather than written, in bytes.
const ZERO_RUN: usize = 64 * 1024;
static ZEROES: [u8; ZERO_RUN] = [0; ZERO_RUN];
/// The largest window of a zstd frame, as a power of two: 32 MiB. Enough for `zstd -20`; memory
/// stays under 64 MiB. What `--ultra -21` and `--long` above it make is refused.
const WINDOW_LOG_MAX: u32 = 25;

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

/// Why an artifact was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The declared size does not fit into the slot. Nothing was written.
    #[error(transparent)]
    TooLarge(GuardError),
    /// The artifact is another one than was ordered.
    #[error("the artifact's checksum is {found}, but {expected} was ordered ({} received): another file is served there, or the catalog's checksum is wrong", Bytes(*received))]
    ChecksumMismatch {
        /// The checksum ordered.
        expected: Sha256Digest,
        /// The checksum of what arrived.
        found: Sha256Digest,
        /// How many bytes arrived.
        received: u64,
    },
    /// The expanded image is another one than was ordered.
    #[error(
        "the expanded image's checksum is {found}, but {expected} was ordered: correct imageChecksum in the catalog, or the artifact"
    )]
    ImageChecksumMismatch {
        /// The checksum ordered.
        expected: Sha256Digest,
        /// The checksum of what was expanded.
        found: Sha256Digest,
    },
    /// The artifact expands to more than its declared size. Stopped there.
    #[error(
        "the artifact expands to more than its declared size of {declared} bytes: stopped there; correct `size` in the catalog if the image is meant to be larger"
    )]
    ExpandsBeyondSize {
        /// The declared size in bytes.
        declared: u64,
    },
    /// The artifact expands to more than the slot holds. Stopped there.
    #[error(
        "the artifact expands to more than slot {} holds ({slot_size} bytes): stopped there; choose an image that fits",
        slot
    )]
    ExpandsBeyondSlot {
        /// The slot.
        slot: crate::slot::Slot,
        /// The slot's size in bytes.
        slot_size: u64,
    },
    /// The artifact expands to less than its declared size.
    #[error(
        "the artifact expands to {found} bytes, but its declared size is {declared}: correct `size` in the catalog (zstd -lv shows it), or the artifact"
    )]
    SizeMismatch {
        /// The declared size in bytes.
        declared: u64,
        /// The size in bytes it has.
        found: u64,
    },
    /// The artifact ends within a frame.
    #[error(
        "the artifact ends after {received} bytes, in the middle of its compressed data: it was cut off, upload it again"
    )]
    Truncated {
        /// How many bytes arrived.
        received: u64,
    },
    /// The artifact is longer than the slot it should be expanded into.
    #[error(
        "the artifact is longer than {limit} bytes, more than an image for this slot can have: another file is served there"
    )]
    ArtifactTooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// The artifact is not zstd.
    #[error("the artifact is not zstd-compressed, it begins with {}: a file like rootfs.ext4.zst was expected", start.escape_ascii())]
    NotZstd {
        /// Its first bytes, four at most.
        start: Vec<u8>,
    },
    /// The artifact needs more memory to decode than is granted.
    #[error("the artifact's zstd window is larger than {} MiB: compress it without --ultra -21 or above and without --long", 1 << (WINDOW_LOG_MAX - 20))]
    WindowTooLarge,
    /// The artifact's compressed data is damaged, or followed by something else.
    #[error("the artifact's compressed data is damaged near byte {received}: upload it again")]
    Corrupt {
        /// How many bytes had arrived.
        received: u64,
        /// What the decoder says.
        source: io::Error,
    },
    /// The source broke off.
    #[error("cannot read the artifact after {received} bytes")]
    Source {
        /// How many bytes had arrived.
        received: u64,
        /// Why.
        source: io::Error,
    },
    /// The slot cannot be written.
    #[error("cannot write the slot after {} of the image", Bytes(*written))]
    Disk {
        /// How many bytes of the image were written before.
        written: u64,
        /// Why.
        source: DiskError,
    },
    /// The caller asked to stop.
    #[error("writing the slot was cancelled: write it again before it is booted")]
    Cancelled,
}

impl WriteError {
    /// A stable word for the failure, in the style of a Kubernetes reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::ExpandsBeyondSlot { .. } => "ImageTooLarge",
            Self::ChecksumMismatch { .. } => "ChecksumMismatch",
            Self::ImageChecksumMismatch { .. } => "ImageChecksumMismatch",
            Self::ExpandsBeyondSize { .. } => "ExpandsBeyondSize",
            Self::SizeMismatch { .. } => "SizeMismatch",
            Self::Truncated { .. } => "TruncatedArtifact",
            Self::ArtifactTooLong { .. } => "ArtifactTooLong",
            Self::NotZstd { .. } => "NotZstd",
            Self::WindowTooLarge => "WindowTooLarge",
            Self::Corrupt { .. } => "CorruptArtifact",
            Self::Source { .. } => "ArtifactUnreadable",
            Self::Disk { source, .. } => source.reason(),
            Self::Cancelled => CANCELLED,
        }
    }
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

/// The artifact as served: counted, capped and hashed.
struct Wire<R> {
    source: R,
    progress: Progress,
    hasher: sha2::Sha256,
    received: u64,
    limit: u64,
    /// The reason why reading failed; the decoder passes on only that it did.
    fault: Option<WriteError>,
}

impl<R: Read> Read for Wire<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match self.source.read(buf) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(source) => {
                self.fault = Some(WriteError::Source { received: self.received, source });
                return Err(io::ErrorKind::Other.into());
            }
        };
        self.received += read as u64;
        if self.received > self.limit {
            self.fault = Some(WriteError::ArtifactTooLong { limit: self.limit });
            return Err(io::ErrorKind::Other.into());
        }
        self.hasher.update(buf.get(..read).unwrap_or_default());
        self.progress.add_done(read as u64);
        Ok(read)
    }
}

type Wired<R> = io::Chain<io::Cursor<Vec<u8>>, BufReader<Wire<R>>>;

struct Decoder<R> {
    start: Vec<u8>,
    wire: BufReader<Wire<R>>,
}

impl<R: Read> Decoder<R> {
    fn new(source: R, slot_size: u64, progress: Progress) -> Self {
        // zstd stores what it cannot compress with a few bytes more; 1/64 is far above that.
        let limit = slot_size.saturating_add(slot_size / 64).saturating_add(1 << 20);
        let hasher = sha2::Sha256::new();
        let wire = Wire { source, progress, hasher, received: 0, limit, fault: None };
        Self { start: Vec::new(), wire: BufReader::with_capacity(128 * 1024, wire) }
    }

    /// Reads the first four bytes: what is not zstd deserves a better answer than the decoder's.
    fn check_magic(&mut self) -> Result<(), WriteError> {
        while self.start.len() < 4 {
            let taken = match self.wire.fill_buf() {
                Ok(buf) => buf.first().copied(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(explain(self.wire.get_mut(), error)),
            };
            let Some(byte) = taken else {
                return Err(WriteError::Truncated { received: self.start.len() as u64 });
            };
            self.wire.consume(1);
            self.start.push(byte);
        }
        match self.start.as_slice() {
            // RFC 8878: a frame, or a skippable frame.
            [0x28, 0xB5, 0x2F, 0xFD] | [0x50..=0x5F, 0x2A, 0x4D, 0x18] => Ok(()),
            _ => Err(WriteError::NotZstd { start: self.start.clone() }),
        }
    }

    fn start(self) -> Result<Decoding<R>, WriteError> {
        let input = io::Cursor::new(self.start).chain(self.wire);
        let setup = |source| WriteError::Corrupt { received: 0, source };
        let mut zstd = zstd::stream::read::Decoder::with_buffer(input).map_err(setup)?;
        zstd.window_log_max(WINDOW_LOG_MAX).map_err(setup)?;
        Ok(Decoding { zstd })
    }
}

struct Decoding<R: Read> {
    zstd: zstd::stream::read::Decoder<'static, Wired<R>>,
}

impl<R: Read> Decoding<R> {
    /// Fills `buf` with expanded bytes; less only at the end of the artifact.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize, WriteError> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.zstd.read(rest) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(self.zstd.get_mut().get_mut().1.get_mut(), error)),
            }
        }
        Ok(filled)
    }

    /// The artifact's length and digest.
    fn finish(self) -> (u64, Sha256Digest) {
        let wire = self.zstd.finish().into_inner().1.into_inner();
        (wire.received, <[u8; 32]>::from(wire.hasher.finalize()).into())
    }
}

/// What the decoder's error means.
fn explain<R>(wire: &mut Wire<R>, error: io::Error) -> WriteError {
    let received = wire.received;
    if let Some(fault) = wire.fault.take() {
        return fault;
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return WriteError::Truncated { received };
    }
    // The decoder's error codes reach us only as their fixed texts.
    if error.to_string().contains("too much memory") {
        return WriteError::WindowTooLarge;
    }
    WriteError::Corrupt { received, source: error }
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
