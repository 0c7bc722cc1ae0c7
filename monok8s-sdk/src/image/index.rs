//! The block index of an artifact: what every frame and every block of the image must be.
//!
//! With it a node takes what it has in either slot, fetches only the frames that it has not, checks
//! each of them before it is written, and goes on after a crash without any other state: what is on
//! the medium tells how far it came. An index is trusted because its sha256 stands in the catalog.
//!
//! # Format
//!
//! Version 1; numbers are little-endian and unsigned.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `MK8SIDX` and a newline |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | log2 of the block size, 12 |
//! | 12 | 4 | how many frames there are |
//! | 16 | 8 | length of the image in bytes |
//! | 24 | 8 | length of the artifact in bytes |
//! | 32 | 32 | sha256 of the image |
//! | 64 | 32 | sha256 of the artifact |
//! | 96 | 40 each | the frames: length in the image (4) and in the artifact (4), sha256 of what it expands to (32) |
//! | then | 1 per 8 | one bit a block, lowest first, set if the block is all zero |
//! | then | 8 each | the other blocks: the first 8 bytes of their sha256 |
//!
//! Frames follow each other, in the image and in the artifact, from the first byte. A frame holds
//! at most 1 MiB of whole blocks, but for the end of the image. 8 bytes are enough: blocks are only
//! candidates until the whole frame that they were put together to has its sha256.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use sha2::Digest as _;

use super::expand::PIECE;
use super::write::Expected;
use crate::digest::Sha256Digest;

/// The largest index that is read, in bytes: about 6 GiB of blocks that are not zero. It stays in
/// memory, with a little more than its own size again to look blocks up, and all of a write has 64 MiB.
pub const MAX_INDEX_BYTES: u64 = 14 << 20;
/// The unit of reuse, in bytes; file systems allocate in it.
pub(super) const BLOCK: usize = 4096;

pub(super) const MAGIC: &[u8; 8] = b"MK8SIDX\n";
pub(super) const VERSION: u16 = 1;
pub(super) const BLOCK_LOG: u16 = 12;
pub(super) const HEADER: usize = 96;
pub(super) const FRAME_ENTRY: usize = 4 + 4 + 32;
pub(super) const HASH: usize = 8;

/// The first 8 bytes of a block's sha256.
pub(super) type BlockHash = [u8; HASH];

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It is something else.
    #[error("this is not a block index: `ctl image build` makes one beside the artifact")]
    NotAnIndex,
    /// It is of a later format.
    #[error(
        "the block index has format {found}, but only {VERSION} is known here: use the release that made it"
    )]
    UnknownVersion {
        /// The format's version.
        found: u16,
    },
    /// It contradicts itself.
    #[error("the block index is damaged: {what}; build it again")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// It is larger than what is kept in memory.
    #[error(
        "the block index has {length} bytes, more than {MAX_INDEX_BYTES}: publish an image with so much in it without an index, as `zstd -19` makes it"
    )]
    TooLarge {
        /// Its length in bytes.
        length: u64,
    },
    /// It belongs to another artifact or image.
    #[error(
        "the block index is of another {what} than was ordered ({found} instead of {expected}): build it again, with the artifact"
    )]
    OfAnother {
        /// Artifact, image or size.
        what: &'static str,
        /// What was ordered.
        expected: String,
        /// What the index says.
        found: String,
    },
}

/// What an artifact holds, block by block.
#[derive(Clone, PartialEq, Eq)]
pub struct Index {
    image: Whole,
    artifact: Whole,
    starts: Vec<FrameStart>,
    /// How many bytes the largest frame expands to.
    largest: u32,
    /// The file itself; what it lists is used where it is.
    raw: Vec<u8>,
    frames: Range<usize>,
    zeroes: Range<usize>,
    hashes: Range<usize>,
}

/// A whole file: its length in bytes and its sha256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) length: u64,
    pub(super) digest: Sha256Digest,
}

/// What the file does not say of a frame, because it follows from the frames before. There can be more
/// than 300,000 of them, so that every byte counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameStart {
    /// Its first block in the image.
    block: u32,
    /// The first of its hashes.
    hash: u32,
    /// Where it begins in the artifact.
    packed: u64,
}

/// A frame as the file lists it.
struct Listed {
    length: u32,
    packed_length: u32,
    digest: Sha256Digest,
}

impl Listed {
    fn read(entry: &[u8]) -> Self {
        let mut fields = Fields(entry);
        let (length, packed_length) = (u32::from_le_bytes(fields.take()), u32::from_le_bytes(fields.take()));
        Self { length, packed_length, digest: fields.take::<32>().into() }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IndexedFrame {
    /// Its bytes in the image.
    pub(super) image: Range<u64>,
    /// Its bytes in the artifact.
    pub(super) artifact: Range<u64>,
    /// The sha256 of what it expands to.
    pub(super) digest: Sha256Digest,
}

impl IndexedFrame {
    /// How many bytes it expands to.
    pub(super) fn len(&self) -> usize {
        // A frame has at most PIECE bytes.
        usize::try_from(self.image.end - self.image.start).unwrap_or(PIECE)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("image", &self.image)
            .field("artifact", &self.artifact)
            .field("frames", &self.frame_count())
            .finish_non_exhaustive()
    }
}

impl Index {
    /// Reads an index.
    pub fn parse(raw: Vec<u8>) -> Result<Self, IndexError> {
        let damaged = |what| IndexError::Damaged { what };
        if raw.len() as u64 > MAX_INDEX_BYTES {
            return Err(IndexError::TooLarge { length: raw.len() as u64 });
        }
        let Header { frames, image, artifact } =
            Header::read(raw.first_chunk().ok_or(IndexError::NotAnIndex)?)?;
        let layout = Layout::of(&raw, image.length, frames).ok_or(damaged("its length is wrong"))?;
        let Layout { frames, zeroes, hashes } = layout;
        let mut index = Self { image, artifact, starts: Vec::new(), largest: 0, frames, zeroes, hashes, raw };
        (index.starts, index.largest) = index.check_frames()?;
        Ok(index)
    }

    /// Goes through the frames. Returns where they start, and the length of the largest.
    fn check_frames(&self) -> Result<(Vec<FrameStart>, u32), IndexError> {
        let damaged = |what| IndexError::Damaged { what };
        let bytes = self.raw.get(self.frames.clone()).unwrap_or_default();
        let mut starts = Vec::with_capacity(bytes.len() / FRAME_ENTRY);
        let (mut start, mut packed_start, mut first_hash, mut largest) = (0_u64, 0_u64, 0_usize, 0);
        let mut of_zeroes = BTreeMap::new();
        for entry in bytes.chunks_exact(FRAME_ENTRY) {
            let Listed { length, packed_length, digest } = Listed::read(entry);
            let end = start + u64::from(length);
            if length == 0 || length as usize > PIECE || packed_length == 0 || packed_length > longest(length)
            {
                return Err(damaged("a frame's length is impossible"));
            }
            if end > self.image.length || !end.is_multiple_of(BLOCK as u64) && end != self.image.length {
                return Err(damaged("its frames do not make up the image"));
            }
            let (Ok(block), Ok(hash)) = (u32::try_from(start / BLOCK as u64), u32::try_from(first_hash))
            else {
                return Err(damaged("it has too many blocks"));
            };
            starts.push(FrameStart { block, hash, packed: packed_start });
            largest = largest.max(length);
            let hashes = blocks(start..end).filter(|block| !self.is_zero(*block)).count();
            // Zeroes are put without being looked at, so this is where their digest is.
            if hashes == 0 && digest != *of_zeroes.entry(length).or_insert_with(|| zeroes_digest(length)) {
                return Err(damaged("a frame of zeroes has the digest of something else"));
            }
            first_hash += hashes;
            start = end;
            packed_start += u64::from(packed_length);
        }
        if start != self.image.length || packed_start > self.artifact.length {
            return Err(damaged("its frames do not make up the image or the artifact"));
        }
        if first_hash != self.hash_count() {
            return Err(damaged("it does not have as many hashes as blocks"));
        }
        Ok((starts, largest))
    }

    /// Refuses an index of something else than what was ordered.
    pub(super) fn require(&self, expected: &Expected) -> Result<(), IndexError> {
        let other = |what, expected: &dyn fmt::Display, found: &dyn fmt::Display| IndexError::OfAnother {
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        };
        if let Some(checksum) = expected.checksum.filter(|checksum| *checksum != self.artifact.digest) {
            return Err(other("artifact", &checksum, &self.artifact.digest));
        }
        if let Some(size) = expected.size.filter(|size| *size != self.image.length) {
            return Err(other("size", &size, &self.image.length));
        }
        match expected.image_checksum.filter(|checksum| *checksum != self.image.digest) {
            Some(checksum) => Err(other("image", &checksum, &self.image.digest)),
            None => Ok(()),
        }
    }

    /// The file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The sha256 of the image.
    #[must_use]
    pub fn image(&self) -> Sha256Digest {
        self.image.digest
    }

    /// The image's length in bytes.
    #[must_use]
    pub fn image_length(&self) -> u64 {
        self.image.length
    }

    /// The sha256 of the artifact.
    #[must_use]
    pub fn artifact(&self) -> Sha256Digest {
        self.artifact.digest
    }

    /// The artifact's length in bytes.
    #[must_use]
    pub fn artifact_length(&self) -> u64 {
        self.artifact.length
    }

    /// How many frames the artifact has.
    #[must_use]
    pub fn frame_count(&self) -> usize {
        self.starts.len()
    }

    /// How many bytes of the image the largest frame holds.
    #[must_use]
    pub fn frame_size(&self) -> usize {
        self.largest as usize
    }

    /// How many bytes of the image are in blocks of 4 KiB that are all zero.
    #[must_use]
    pub fn zero_bytes(&self) -> u64 {
        let bitmap = self.raw.get(self.zeroes.clone()).unwrap_or_default();
        let blocks: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
        (blocks * BLOCK as u64).min(self.image.length)
    }

    /// A frame by its number.
    pub(super) fn frame(&self, number: usize) -> Option<IndexedFrame> {
        let FrameStart { block, packed, .. } = *self.starts.get(number)?;
        let listed = self.raw.get(self.frames.clone())?.get(number * FRAME_ENTRY..)?;
        let Listed { length, packed_length, digest } = Listed::read(listed);
        let start = u64::from(block) * BLOCK as u64;
        let image = start..start + u64::from(length);
        Some(IndexedFrame { image, artifact: packed..packed + u64::from(packed_length), digest })
    }

    /// Whether a frame is all zero.
    pub(super) fn is_zero_frame(&self, number: usize) -> bool {
        self.blocks_of(number).all(|block| self.is_zero(block))
    }

    /// The numbers of a frame's hashes, in order; `None` for blocks that are zero.
    pub(super) fn hash_numbers(&self, number: usize) -> impl Iterator<Item = Option<usize>> + '_ {
        let mut next = self.starts.get(number).map_or(0, |start| start.hash as usize);
        self.blocks_of(number).map(move |block| {
            if self.is_zero(block) {
                return None;
            }
            next += 1;
            Some(next - 1)
        })
    }

    pub(super) fn hash_count(&self) -> usize {
        self.hashes.len() / HASH
    }

    /// A block's hash by its number.
    pub(super) fn hash(&self, number: usize) -> Option<BlockHash> {
        self.raw.get(self.hashes.clone())?.get(number * HASH..)?.first_chunk().copied()
    }

    /// The numbers of a frame's blocks.
    fn blocks_of(&self, number: usize) -> Range<u64> {
        self.frame(number).map_or(0..0, |frame| blocks(frame.image))
    }

    fn is_zero(&self, block: u64) -> bool {
        let byte = usize::try_from(block / 8).ok().and_then(|at| self.raw.get(self.zeroes.clone())?.get(at));
        byte.is_some_and(|byte| byte >> (block % 8) & 1 == 1)
    }
}

/// The numbers of the blocks that begin in these bytes of the image.
fn blocks(bytes: Range<u64>) -> Range<u64> {
    bytes.start.div_ceil(BLOCK as u64)..bytes.end.div_ceil(BLOCK as u64)
}

fn zeroes_digest(length: u32) -> Sha256Digest {
    let mut hasher = sha2::Sha256::new();
    let mut left = length as usize;
    while left > 0 {
        let step = left.min(BLOCK);
        hasher.update([0; BLOCK].get(..step).unwrap_or_default());
        left -= step;
    }
    <[u8; 32]>::from(hasher.finalize()).into()
}

/// How long a frame with this much content can be in the artifact: what cannot be compressed is
/// stored, with a little around it.
fn longest(content: u32) -> u32 {
    content + content / 64 + 1024
}

/// How the file begins.
pub(super) struct Header {
    /// How many frames there are.
    pub(super) frames: u32,
    pub(super) image: Whole,
    artifact: Whole,
}

impl Header {
    pub(super) fn read(raw: &[u8; HEADER]) -> Result<Self, IndexError> {
        let mut fields = Fields(raw);
        if fields.take::<8>() != *MAGIC {
            return Err(IndexError::NotAnIndex);
        }
        let version = u16::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(IndexError::UnknownVersion { found: version });
        }
        if u16::from_le_bytes(fields.take()) != BLOCK_LOG {
            return Err(IndexError::Damaged { what: "its block size is none that exists" });
        }
        let frames = u32::from_le_bytes(fields.take());
        let (image, artifact) = (u64::from_le_bytes(fields.take()), u64::from_le_bytes(fields.take()));
        let image = Whole { length: image, digest: fields.take::<32>().into() };
        let artifact = Whole { length: artifact, digest: fields.take::<32>().into() };
        Ok(Self { frames, image, artifact })
    }
}

/// Where the parts of the file are.
struct Layout {
    frames: Range<usize>,
    zeroes: Range<usize>,
    hashes: Range<usize>,
}

impl Layout {
    /// `None` if the file's length contradicts its header.
    fn of(raw: &[u8], image_length: u64, frames: u32) -> Option<Self> {
        let frames = usize::try_from(frames).ok()?;
        let blocks = usize::try_from(image_length.div_ceil(BLOCK as u64)).ok()?;
        let frames = HEADER..HEADER.checked_add(frames.checked_mul(FRAME_ENTRY)?)?;
        let zeroes = frames.end..frames.end.checked_add(blocks.div_ceil(8))?;
        let bitmap = raw.get(zeroes.clone())?;
        let zero: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
        let unused = blocks.div_ceil(8) * 8 - blocks;
        let spare = bitmap.last().map_or(0, |last| last.leading_zeros() as usize);
        let hashes = zeroes.end..zeroes.end.checked_add(blocks.checked_sub(zero)?.checked_mul(HASH)?)?;
        (image_length > 0 && spare >= unused && hashes.end == raw.len()).then_some(Self {
            frames,
            zeroes,
            hashes,
        })
    }
}

/// Fields of a fixed size, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes; zeroes behind the end, which callers have checked for.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

/// The hash by which blocks are looked up.
pub(super) fn block_hash(block: &[u8]) -> BlockHash {
    let digest = sha2::Sha256::digest(block);
    digest.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
