//! Changing attribute bits in a GUID partition table, and nothing else of it.
//!
//! Both copies are read and checked first. The copy that readers do not take is replaced first, its
//! entries and then its header, each flushed; then the other one. While a copy is being written its
//! checksums are wrong and the other copy is whole, so that whoever takes the primary if it is whole,
//! else the backup, finds the old or the new bits at every instant (UEFI 2.10, 5.3.2). A damaged copy
//! is made anew from the other one, but only as part of a change.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::gpt::{self, GptError, Table, TableCopy};
use super::region::Region;
use super::target::{Action, DiskError};

/// A change of one partition's attribute bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeChange {
    /// The partition's number, from 1.
    pub index: u32,
    /// The bits that are set anew.
    pub mask: u64,
    /// What they are set to; bits outside of the mask are ignored.
    pub value: u64,
}

/// Why attribute bits could not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GptEditError {
    /// There is no usable table.
    #[error(transparent)]
    Table(#[from] GptError),
    /// A partition does not exist.
    #[error("{} has no partition {index}", disk.display())]
    NoPartition {
        /// The disk.
        disk: PathBuf,
        /// The partition's number.
        index: u32,
    },
    /// The copies do not lie where a reader that has only one of them looks.
    #[error("the backup of the partition table on {} does not lie at the disk's end, so an interrupted change could lose the table: move it there with `sgdisk --move-second-header`", disk.display())]
    BackupElsewhere {
        /// The disk.
        disk: PathBuf,
    },
    /// There is no room for a copy that is to be made anew.
    #[error("the {copy} copy of the partition table on {} is damaged, and there is no room to make it anew: repair it, for instance with sgdisk", disk.display())]
    NoRoom {
        /// The disk.
        disk: PathBuf,
        /// Which copy.
        copy: TableCopy,
    },
    /// The disk does not take a write.
    #[error("cannot write the partition table of {}: one of its copies is whole", disk.display())]
    Write {
        /// The disk.
        disk: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What was written is not what is read afterwards.
    #[error("the partition table of {} reads back differently from what was written: its medium may be failing", disk.display())]
    ReadBack {
        /// The disk.
        disk: PathBuf,
    },
}

/// Reads the partition table of a disk that is a region.
pub fn read(disk: &dyn Region) -> Result<Table, GptError> {
    gpt::read_with(size(disk)?, reader(disk))
}

/// Changes attribute bits of partitions, in one change of the table. When this returns, both copies
/// are whole, on the medium, and have it.
pub fn set_attributes(disk: &dyn Region, changes: &[AttributeChange]) -> Result<(), GptEditError> {
    let edit = Edit::plan(disk, changes)?;
    for copy in [&edit.first, &edit.second] {
        edit.write(copy.entries_at, &edit.entries)?;
        edit.write(copy.header_at, &copy.header)?;
        // Before the other copy is touched: this one may be all that there is in a moment.
        edit.check(copy)?;
    }
    match read(disk) {
        Ok(table) if table.copy == TableCopy::Primary => Ok(()),
        _ => Err(edit.read_back()),
    }
}

/// What is to be written.
struct Edit<'a> {
    disk: &'a dyn Region,
    sector: u32,
    entries: Vec<u8>,
    /// The copy that readers do not take now.
    first: NewCopy,
    /// The one that they take.
    second: NewCopy,
}

struct NewCopy {
    /// In bytes from the start of the disk.
    header_at: u64,
    entries_at: u64,
    /// A whole sector.
    header: Vec<u8>,
}

impl<'a> Edit<'a> {
    fn plan(disk: &'a dyn Region, changes: &[AttributeChange]) -> Result<Self, GptEditError> {
        let path = || disk.path().to_owned();
        let found = read(disk)?;
        let (sector, which) = (u64::from(found.sector_size), found.copy);
        // It was found valid, so that there is a last one.
        let last = (size(disk)? / sector).saturating_sub(1);
        let source = Header::read(disk, which.lba(last), sector)?;
        if source.number(32) != which.other().lba(last) {
            return Err(GptEditError::BackupElsewhere { disk: path() });
        }
        let mut entries = bytes_at(disk, source.entries_lba() * sector, source.table_length())?;
        for change in changes {
            let missing = || GptEditError::NoPartition { disk: path(), index: change.index };
            let entry = source.entry(change.index).and_then(|range| entries.get_mut(range));
            change.apply(entry.ok_or_else(missing)?).ok_or_else(missing)?;
        }

        let other = Header::read(disk, which.other().lba(last), sector)?;
        let is_valid =
            gpt::read_copy(which.other(), found.sector_size, size(disk)?, &mut reader(disk)).is_ok();
        let other = if is_valid && other.agrees_with(&source) {
            other
        } else {
            let room = || GptEditError::NoRoom { disk: path(), copy: which.other() };
            source.mirrored(which.other(), last, sector).ok_or_else(room)?
        };
        let copy = |header: Header, which: TableCopy| NewCopy {
            header_at: which.lba(last) * sector,
            entries_at: header.entries_lba() * sector,
            header: header.sealed(&entries),
        };
        let (first, second) = (copy(other, which.other()), copy(source, which));
        Ok(Self { disk, sector: found.sector_size, entries, first, second })
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), GptEditError> {
        let failed = |source| GptEditError::Write { disk: self.disk.path().to_owned(), source };
        // Whole sectors: of a part of one the system would write the whole, too.
        let whole = bytes.len().next_multiple_of(self.sector as usize);
        let mut sectors = bytes.to_vec();
        if whole > bytes.len() {
            sectors = self.disk.read(offset, whole).map_err(failed)?;
            sectors.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        }
        self.disk.write(offset, &sectors).map_err(failed)
    }

    fn check(&self, copy: &NewCopy) -> Result<(), GptEditError> {
        let holds =
            |offset, bytes: &[u8]| self.disk.read(offset, bytes.len()).is_ok_and(|read| read == bytes);
        if holds(copy.header_at, &copy.header) && holds(copy.entries_at, &self.entries) {
            Ok(())
        } else {
            Err(self.read_back())
        }
    }

    fn read_back(&self) -> GptEditError {
        GptEditError::ReadBack { disk: self.disk.path().to_owned() }
    }
}

impl AttributeChange {
    /// Changes the bits of a used entry.
    fn apply(&self, entry: &mut [u8]) -> Option<()> {
        entry.get(..16).filter(|kind| **kind != [0; 16])?;
        let bits = entry.get_mut(48..56)?.first_chunk_mut::<8>()?;
        *bits = (u64::from_le_bytes(*bits) & !self.mask | self.value & self.mask).to_le_bytes();
        Some(())
    }
}

/// The sector of a header, which `gpt` has found valid or which is not to be trusted.
#[derive(Clone)]
struct Header(Vec<u8>);

impl Header {
    fn read(disk: &dyn Region, lba: u64, sector: u64) -> Result<Self, GptError> {
        bytes_at(disk, lba * sector, usize::try_from(sector).unwrap_or(0)).map(Self)
    }

    /// Eight bytes of it; 0 behind its end.
    fn number(&self, at: usize) -> u64 {
        self.0.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn entries_lba(&self) -> u64 {
        self.number(72)
    }

    /// The number of entries, and the size of one in bytes.
    fn shape(&self) -> (usize, usize) {
        let both = self.number(80);
        let part = |bits: u64| usize::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        (part(both), part(both >> 32))
    }

    fn table_length(&self) -> usize {
        let (count, size) = self.shape();
        count.saturating_mul(size)
    }

    /// Where a partition's entry is in the table.
    fn entry(&self, index: u32) -> Option<Range<usize>> {
        let (count, size) = self.shape();
        let nth = usize::try_from(index).ok()?.checked_sub(1).filter(|nth| *nth < count)?;
        Some(nth * size..(nth + 1) * size)
    }

    /// Whether it describes the same table: usable blocks, disk, number and size of entries.
    fn agrees_with(&self, other: &Self) -> bool {
        let same = |range: Range<usize>| self.0.get(range.clone()) == other.0.get(range);
        same(40..72) && same(80..88) && self.number(32) == other.number(24)
    }

    /// The header of the other copy, if there is room for its entries outside of the usable blocks.
    fn mirrored(&self, which: TableCopy, last: u64, sector: u64) -> Option<Self> {
        let blocks = (self.table_length() as u64).div_ceil(sector);
        let (first_usable, last_usable) = (self.number(40), self.number(48));
        let entries_lba = match which {
            TableCopy::Primary => Some(2).filter(|start| start + blocks <= first_usable),
            TableCopy::Backup => last.checked_sub(blocks).filter(|start| *start > last_usable),
        };
        let mut mirrored = self.clone();
        mirrored.put(24, &which.lba(last).to_le_bytes());
        mirrored.put(32, &which.other().lba(last).to_le_bytes());
        mirrored.put(72, &entries_lba?.to_le_bytes());
        Some(mirrored)
    }

    /// With the checksums that belong to these entries.
    fn sealed(mut self, entries: &[u8]) -> Vec<u8> {
        self.put(88, &crc32fast::hash(entries).to_le_bytes());
        self.put(16, &[0; 4]);
        let length = usize::try_from(self.number(12) & u64::from(u32::MAX)).unwrap_or(0);
        let checksum = crc32fast::hash(self.0.get(..length).unwrap_or(&self.0));
        self.put(16, &checksum.to_le_bytes());
        self.0
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

fn bytes_at(disk: &dyn Region, offset: u64, length: usize) -> Result<Vec<u8>, GptError> {
    disk.read(offset, length).map_err(|source| unreadable(disk, offset, source))
}

fn size(disk: &dyn Region) -> Result<u64, GptError> {
    disk.size().map_err(|source| unreadable(disk, 0, source))
}

fn unreadable(disk: &dyn Region, offset: u64, source: io::Error) -> GptError {
    GptError::Read(DiskError::from_io(Action::Read, &disk.path().display().to_string(), offset, source))
}

fn reader(disk: &dyn Region) -> impl FnMut(u64, &mut [u8]) -> Result<(), DiskError> {
    move |offset, buf| {
        let name = disk.path().display().to_string();
        let bytes = disk.read(offset, buf.len());
        let bytes = bytes.map_err(|source| DiskError::from_io(Action::Read, &name, offset, source))?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }
}

#[cfg(test)]
#[path = "gpt_edit_tests.rs"]
mod tests;
