//! Changes of attribute bits in any partition table.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::seal;
use crate::disk::gpt::{self, Partition, TableCopy};
use crate::disk::gpt_edit::{AttributeChange, set_attributes};
use crate::disk::{Region, RegionLock};

/// A disk in memory.
#[derive(Debug)]
struct MemoryRegion(Mutex<Vec<u8>>);

impl MemoryRegion {
    fn within<T>(&self, offset: u64, length: usize, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = bytes.get_mut(start..start.saturating_add(length));
        part.map(act).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Region for MemoryRegion {
    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.within(offset, length, |part| part.to_vec())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.within(offset, bytes.len(), |part| part.copy_from_slice(bytes))
    }

    fn lock(&self) -> io::Result<RegionLock> {
        Ok(RegionLock::of_nothing())
    }
}

/// A change of a table. The first byte tells which copies' checksums are made right (bits 0 and 1);
/// then come the partition's number and the bits, shifted to those of its kind (2 bytes); the rest is
/// the disk.
pub fn gpt_edit(bytes: &[u8]) {
    let [mode, index, mask, value, disk @ ..] = bytes else { return };
    let mut disk = disk.to_vec();
    let last = (disk.len() / 512).saturating_sub(1);
    for (bit, lba) in [(1, 1), (2, last)] {
        if mode & bit != 0 {
            // A disk that is too short for a header keeps what it has.
            let _ = seal(&mut disk, lba);
        }
    }
    let before = gpt::parse(&disk).ok();
    let shifted = |byte: &u8| u64::from(*byte) << 48;
    let change = AttributeChange { index: u32::from(*index), mask: shifted(mask), value: shifted(value) };
    let region = MemoryRegion(Mutex::new(disk.clone()));
    let changed = set_attributes(&region, &[change]);
    let mut after = region.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    if changed.is_err() {
        assert!(after == disk, "what is refused is refused before anything is written");
        return;
    }
    let before = before.map_or(Vec::new(), |table| table.partitions);
    check(&before, &after, change);
    for partition in &before {
        let inside = |bytes: &[u8]| slice(bytes, partition).map(crc32fast::hash);
        assert_eq!(inside(&disk), inside(&after), "a partition's bytes are as they were");
    }
    // Without its primary copy it is the same table.
    if let Some(signature) = after.get_mut(512..520) {
        signature.fill(0);
    }
    if gpt::parse(&after).is_ok_and(|table| table.sector_size == 512) {
        check(&before, &after, change);
    }
}

fn slice<'a>(bytes: &'a [u8], partition: &Partition) -> Option<&'a [u8]> {
    let start = usize::try_from(partition.offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(partition.length).ok()?)?)
}

fn check(before: &[Partition], after: &[u8], change: AttributeChange) {
    let table = gpt::parse(after).ok();
    assert!(table.is_some(), "the table is valid");
    let Some(table) = table else { return };
    assert!(table.copy == TableCopy::Primary || after.get(512) == Some(&0), "both copies are whole");
    let expected: Vec<Partition> = before
        .iter()
        .cloned()
        .map(|mut partition| {
            if partition.index == change.index {
                partition.attributes = partition.attributes & !change.mask | change.value & change.mask;
            }
            partition
        })
        .collect();
    assert_eq!(table.partitions, expected, "nothing but the bits changes");
}
