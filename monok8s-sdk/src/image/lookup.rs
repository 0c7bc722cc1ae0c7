//! Where wanted blocks can be had, by content.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU32, Ordering};

use super::index::{BlockHash, Index};

/// No place is known.
const NOWHERE: u32 = u32::MAX;
/// The lower bits of a place are the block, 4 TiB of them; the two others say whose.
const WHOSE: u32 = 30;
/// The value of those two for the target.
const TARGETS: u32 = 3;

/// Where a block was seen. Whoever reads it there checks what it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the source of this number, 0 to 2, at this block.
    Source(usize, u32),
    /// In the slot that is written, at this block.
    Target(u32),
}

/// The hashes that are wanted, and the places where they were seen. 9 bytes a hash.
pub(super) struct Lookup<'a> {
    index: &'a Index,
    /// Where a hash belongs in the table depends on it: nobody can make up an index whose hashes all
    /// belong to one place, which would take for ever.
    key: u64,
    /// Hash numbers plus one, by content; 0 is free. Open addressing.
    table: Vec<u32>,
    /// By hash number; only the number under which a content is in the table counts.
    places: Vec<AtomicU32>,
}

impl<'a> Lookup<'a> {
    /// Of the blocks of these frames.
    pub(super) fn of_frames(index: &'a Index, frames: impl Iterator<Item = usize>) -> Self {
        let hashes = index.hash_count();
        let table = vec![0; hashes + hashes / 4 + 1];
        let places = std::iter::repeat_with(|| AtomicU32::new(NOWHERE)).take(hashes).collect();
        let key = RandomState::new().hash_one(hashes) | 1;
        let mut lookup = Self { index, key, table, places };
        for number in frames.flat_map(|frame| index.hash_numbers(frame).flatten()) {
            lookup.insert(number);
        }
        lookup
    }

    fn insert(&mut self, number: usize) {
        let Some(hash) = self.index.hash(number) else { return };
        if let (slot, None) = self.probe(hash)
            && let (Some(entry), Ok(number)) = (self.table.get_mut(slot), u32::try_from(number + 1))
        {
            *entry = number;
        }
    }

    /// The slot of the table that holds this content, or would; and the hash number in it.
    fn probe(&self, hash: BlockHash) -> (usize, Option<usize>) {
        let start = u64::from_le_bytes(hash.first_chunk().copied().unwrap_or_default());
        let length = self.table.len();
        // The product is uniform, so its share of the range is a uniform slot.
        let scaled = (u128::from(start.wrapping_mul(self.key)) * length as u128) >> 64;
        let mut slot = usize::try_from(scaled).unwrap_or(0);
        loop {
            match self.table.get(slot).copied() {
                // There are more slots than hashes, so that a free one comes.
                None => slot = 0,
                Some(0) => return (slot, None),
                Some(entry) => {
                    let number = entry as usize - 1;
                    if self.index.hash(number) == Some(hash) {
                        return (slot, Some(number));
                    }
                    slot += 1;
                }
            }
        }
    }

    /// Takes note of where a content was seen, if it is wanted. The first place stays.
    pub(super) fn saw(&self, hash: BlockHash, place: Place) {
        let (_, Some(number)) = self.probe(hash) else { return };
        if let (Some(known), Some(packed)) = (self.places.get(number), place.packed()) {
            // Another thread may have been first; any place will do.
            let _ = known.compare_exchange(NOWHERE, packed, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether a content is wanted that was not seen anywhere yet.
    pub(super) fn lacks(&self, hash: BlockHash) -> bool {
        let (_, number) = self.probe(hash);
        let known = number.and_then(|number| self.places.get(number));
        known.is_some_and(|place| place.load(Ordering::Relaxed) == NOWHERE)
    }

    /// Where the block with this hash number can be had.
    pub(super) fn place(&self, number: usize) -> Option<Place> {
        let (_, number) = self.probe(self.index.hash(number)?);
        Place::unpacked(self.places.get(number?)?.load(Ordering::Relaxed))
    }
}

impl Place {
    /// `None` for places too far away to note.
    fn packed(self) -> Option<u32> {
        let (whose, block) = match self {
            Self::Source(source, block) => {
                (u32::try_from(source).ok().filter(|source| *source < TARGETS)?, block)
            }
            Self::Target(block) => (TARGETS, block),
        };
        let packed = whose << WHOSE | block;
        (block < 1 << WHOSE && packed != NOWHERE).then_some(packed)
    }

    fn unpacked(packed: u32) -> Option<Self> {
        let block = packed & !(TARGETS << WHOSE);
        match packed >> WHOSE {
            _ if packed == NOWHERE => None,
            TARGETS => Some(Self::Target(block)),
            source => Some(Self::Source(usize::try_from(source).ok()?, block)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::{BuildOptions, build};
    use super::super::index::{BLOCK, block_hash};
    use super::*;

    #[test]
    fn contents_are_found_under_every_number_they_have() {
        let blocks = 5000_usize;
        let image: Vec<u8> = (0..blocks)
            .flat_map(|block| {
                let content = (block % 4000) as u64 + 1;
                content.to_le_bytes().into_iter().cycle().take(BLOCK)
            })
            .collect();
        let index = build(&mut image.as_slice(), &mut Vec::new(), BuildOptions::default()).unwrap();
        let lookup = Lookup::of_frames(&index, 0..index.frame_count());
        assert_eq!(lookup.place(17), None);
        let hash = |block: usize| block_hash(&image[block * BLOCK..][..BLOCK]);
        for block in 0..4000 {
            assert!(lookup.lacks(hash(block)));
            lookup.saw(hash(block), Place::Source(1, u32::try_from(block).unwrap() + 9));
            assert!(!lookup.lacks(hash(block)));
        }
        lookup.saw(hash(3), Place::Target(1));
        lookup.saw(block_hash(b"other"), Place::Source(0, 1));
        assert!(!lookup.lacks(block_hash(b"other")));
        for block in 0..blocks {
            let first = u32::try_from(block % 4000).unwrap();
            assert_eq!(lookup.place(block), Some(Place::Source(1, first + 9)), "the first place stays");
        }
        // Blocks of frames that are not missing are not wanted.
        let some = Lookup::of_frames(&index, 0..1);
        assert_eq!((some.lacks(hash(0)), some.lacks(hash(3999))), (true, false));
        some.saw(hash(1), Place::Target(7));
        assert_eq!(some.place(1), Some(Place::Target(7)));
        some.saw(hash(2), Place::Source(3, 7));
        some.saw(hash(2), Place::Target(1 << 30));
        assert_eq!(some.place(2), None, "places that cannot be noted");
    }
}
