//! Indexes of what the slots hold, kept for the next upgrade: with the one of the booted slot, that
//! slot need not be read to know what it has to offer.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::path::PathBuf;

use super::index::{BLOCK, BlockHash, FRAME_ENTRY, HASH, HEADER, Header, Index, MAX_INDEX_BYTES, block_hash};
use super::lookup::{Lookup, Place};
use crate::disk::ReadOnlySlot;
use crate::slot::Slot;

/// How many blocks of a slot are looked at to see whether an index is of what it holds.
const SAMPLES: u64 = 32;

/// A directory with an index for each slot that was written by one, `slot-a.index` and
/// `slot-b.index`.
///
/// They are hints. Whether one is of what its slot holds is seen from a sample of the slot, and
/// whatever comes of it is checked frame by frame; a hint that is wrong, damaged or gone costs time,
/// as does one that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptIndexes {
    directory: PathBuf,
}

impl KeptIndexes {
    /// Those in this directory, which must outlive upgrades. It is not created.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.directory.join(format!("slot-{}.index", slot.to_string().to_lowercase()))
    }

    /// Keeps the index of what a slot holds from now on.
    pub(super) fn keep(&self, slot: Slot, index: &Index) -> io::Result<()> {
        let path = self.path(slot);
        let next = path.with_extension("next");
        let kept = fs::write(&next, index.as_bytes()).and_then(|()| fs::rename(&next, path));
        if kept.is_err() {
            // On a partition that is full, what came of it would leave no room for the record.
            let _ = fs::remove_file(next);
        }
        kept
    }

    /// Takes note of the blocks of source `number`, as its index has them. Returns whether there is
    /// an index of what the source holds.
    pub(super) fn note(&self, number: usize, source: &ReadOnlySlot, lookup: &Lookup<'_>) -> bool {
        let path = self.path(source.slot());
        let open = || Blocks::open(&path, source.size()).ok();
        let is_true = open().is_some_and(|blocks| blocks.are_in(source));
        let Some(blocks) = is_true.then(open).flatten() else { return false };
        for (block, hash) in blocks {
            lookup.saw(hash, Place::Source(number, block));
        }
        true
    }
}

/// The blocks that an index lists and that are not zero, one by one: an index of a large image is too
/// much to be in memory beside that of another.
struct Blocks {
    hashes: BufReader<File>,
    /// How many are listed.
    count: u64,
    zeroes: Vec<u8>,
    next: u32,
}

impl Blocks {
    /// Those of an image that fits into `slot_size` bytes.
    fn open(path: &std::path::Path, slot_size: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > MAX_INDEX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut file = BufReader::new(file);
        let mut raw = [0; HEADER];
        file.read_exact(&mut raw)?;
        let header = Header::read(&raw).map_err(io::Error::other)?;
        if header.image.length > slot_size {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let frames = u64::from(header.frames) * FRAME_ENTRY as u64;
        let blocks = header.image.length.div_ceil(BLOCK as u64);
        let bitmap = blocks.div_ceil(8);
        file.seek_relative(i64::try_from(frames).map_err(io::Error::other)?)?;
        let mut zeroes = Vec::new();
        // No longer than the file.
        file.by_ref().take(bitmap).read_to_end(&mut zeroes)?;
        let zero: u64 = zeroes.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let count = blocks.saturating_sub(zero);
        if length != HEADER as u64 + frames + bitmap + count * HASH as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { hashes: file, count, zeroes, next: 0 })
    }

    /// Whether blocks from all over are in the slot, all but a few: whoever mounts a file system may
    /// change some of its first.
    fn are_in(self, slot: &ReadOnlySlot) -> bool {
        let step = usize::try_from(self.count / SAMPLES).unwrap_or(usize::MAX).max(1);
        let mut block = vec![0; BLOCK];
        let (mut right, mut seen) = (0, 0);
        for (at, hash) in self.skip(step / 2).step_by(step) {
            let is_read = slot.read_at(u64::from(at) * BLOCK as u64, &mut block).is_ok();
            right += u32::from(is_read && block_hash(&block) == hash);
            seen += 1;
        }
        seen > 0 && right * 10 >= seen * 9
    }
}

impl Iterator for Blocks {
    type Item = (u32, BlockHash);

    /// The next block's number and hash.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let block = self.next;
            let byte = self.zeroes.get(usize::try_from(block / 8).ok()?)?;
            self.next += 1;
            if byte >> (block % 8) & 1 == 0 {
                let mut hash = BlockHash::default();
                self.hashes.read_exact(&mut hash).ok()?;
                return Some((block, hash));
            }
        }
    }
}
