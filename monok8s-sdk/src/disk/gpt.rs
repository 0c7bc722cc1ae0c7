//! GUID partition tables, read. [`gpt_edit`](super::gpt_edit) changes their attribute bits.
//!
//! Format: UEFI 2.10, chapter 5. The primary copy is used if its header and its entries carry
//! right checksums, else the backup at the end of the disk. A disk without a protective MBR has no
//! GPT, whatever an old backup copy at its end says. Sectors of 512 and 4096 bytes are tried.
//! Everything is checked before it is believed and every size is capped, so hostile bytes give
//! errors.

use std::fmt;
use std::str::FromStr;

use super::target::{BlockTarget, DiskError};

/// The most partitions that are read; the usual table has room for 128.
const MAX_ENTRIES: u32 = 1024;
/// The largest size of one entry in bytes; the standard's is 128.
const MAX_ENTRY_SIZE: u32 = 4096;
/// The largest table in bytes.
const MAX_TABLE: u32 = 1 << 20;

/// A GUID, printed as the kernel prints a PARTUUID: lower-case, in five groups.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid([u8; 16]);

/// A text that is not a GUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a GUID: write it like 0fc63daf-8483-4772-8e79-3d69d8477de4")]
pub struct GuidError {
    text: String,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1. Numbers may have gaps.
    pub index: u32,
    /// Its name: the PARTLABEL. Unpaired surrogates are replaced.
    pub name: String,
    /// Its own GUID: the PARTUUID.
    pub guid: Guid,
    /// What it is for.
    pub kind: Guid,
    /// Where it starts, in bytes from the start of the disk.
    pub offset: u64,
    /// Its size in bytes.
    pub length: u64,
    /// Its attribute bits: 0 to 47 are the standard's, 48 to 63 those of its kind of partition.
    pub attributes: u64,
}

/// Which of the two copies was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableCopy {
    /// The one at the start of the disk.
    Primary,
    /// The one at the end, because the primary is damaged.
    Backup,
}

impl TableCopy {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }

    /// The block of its header, on a disk whose last block is `last`.
    pub(super) fn lba(self, last: u64) -> u64 {
        match self {
            Self::Primary => 1,
            Self::Backup => last,
        }
    }
}

impl fmt::Display for TableCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// A partition table that was found valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The disk's GUID.
    pub disk: Guid,
    /// The sector size the table was written for, in bytes.
    pub sector_size: u32,
    /// The copy that was read.
    pub copy: TableCopy,
    /// The partitions, in the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// Why a disk has no usable partition table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GptError {
    /// There is no protective MBR.
    #[error("no GUID partition table: the disk has no protective MBR, partition it with GPT")]
    NotGpt,
    /// Neither copy is valid.
    #[error(
        "both copies of the GUID partition table are damaged (primary: {primary}; backup: {backup}): repair it, for instance with sgdisk"
    )]
    Damaged {
        /// What is wrong with the primary copy.
        primary: Flaw,
        /// What is wrong with the backup copy.
        backup: Flaw,
    },
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Read(#[source] DiskError),
}

/// What is wrong with one copy of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// The sectors cannot be read.
    #[error("unreadable")]
    Unreadable,
    /// The header does not begin with `EFI PART`.
    #[error("no signature")]
    NoSignature,
    /// The header's sizes or positions make no sense or pass a limit.
    #[error("impossible sizes or positions in the header")]
    BadHeader,
    /// The header's checksum is wrong.
    #[error("wrong header checksum")]
    HeaderChecksum,
    /// The entries' checksum is wrong.
    #[error("wrong checksum over the entries")]
    EntriesChecksum,
    /// A partition lies outside the usable area, ends before it starts, or overlaps another.
    #[error("partition {index} lies outside the disk or on another one")]
    BadPartition {
        /// The partition's number.
        index: u32,
    },
}

/// Reads the partition table of a disk.
pub fn read(disk: &dyn BlockTarget) -> Result<Table, GptError> {
    read_with(disk.size(), |offset, buf| disk.read_at(offset, buf))
}

/// Reads the partition table of a disk given as bytes.
pub fn parse(disk: &[u8]) -> Result<Table, GptError> {
    read_with(disk.len() as u64, |offset, buf| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buf.len());
        let bytes = disk.get(start..end).ok_or_else(|| DiskError::OutOfBounds {
            target: "the given bytes".to_owned(),
            offset,
            length: buf.len() as u64,
            size: disk.len() as u64,
        })?;
        buf.copy_from_slice(bytes);
        Ok(())
    })
}

pub(super) fn read_with(
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), DiskError>,
) -> Result<Table, GptError> {
    let mut mbr = [0; 512];
    match read(0, &mut mbr) {
        Ok(()) if is_protective(&mbr) => {}
        Ok(()) | Err(DiskError::OutOfBounds { .. }) => return Err(GptError::NotGpt),
        Err(error) => return Err(GptError::Read(error)),
    }
    let mut flaws = (Flaw::NoSignature, Flaw::NoSignature);
    // All primaries before any backup: a backup of the other sector size may be an old one.
    for sector_size in [512, 4096] {
        match read_copy(TableCopy::Primary, sector_size, size, &mut read) {
            Ok(table) => return Ok(table),
            Err(flaw) => flaws.0 = worse(flaws.0, flaw),
        }
    }
    for sector_size in [512, 4096] {
        match read_copy(TableCopy::Backup, sector_size, size, &mut read) {
            Ok(table) => return Ok(table),
            Err(flaw) => flaws.1 = worse(flaws.1, flaw),
        }
    }
    Err(GptError::Damaged { primary: flaws.0, backup: flaws.1 })
}

/// Of the flaws found with two sector sizes, the one that says more.
fn worse(known: Flaw, new: Flaw) -> Flaw {
    if new == Flaw::NoSignature { known } else { new }
}

fn is_protective(mbr: &[u8; 512]) -> bool {
    const SLOTS: [usize; 4] = [446, 462, 478, 494];
    let signed = mbr.get(510..512) == Some(&[0x55, 0xAA]);
    signed && SLOTS.iter().any(|slot| mbr.get(slot + 4) == Some(&0xEE))
}

struct Header {
    disk: Guid,
    first_usable: u64,
    last_usable: u64,
    entries_lba: u64,
    entry_count: u32,
    entry_size: u32,
    entries_crc: u32,
}

pub(super) fn read_copy(
    copy: TableCopy,
    sector_size: u32,
    size: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), DiskError>,
) -> Result<Table, Flaw> {
    let sector = u64::from(sector_size);
    let sectors = size / sector;
    let lba = copy.lba(sectors.checked_sub(1).ok_or(Flaw::NoSignature)?);
    if lba == 0 || lba >= sectors {
        return Err(Flaw::NoSignature);
    }
    let mut bytes = vec![0; sector_size as usize];
    read(lba * sector, &mut bytes).map_err(|_| Flaw::Unreadable)?;
    let header = parse_header(&bytes, lba, sectors, sector)?;

    let mut entries = vec![0; (header.entry_count * header.entry_size) as usize];
    read(header.entries_lba * sector, &mut entries).map_err(|_| Flaw::Unreadable)?;
    if crc32fast::hash(&entries) != header.entries_crc {
        return Err(Flaw::EntriesChecksum);
    }
    let partitions = (1..)
        .zip(entries.chunks_exact(header.entry_size as usize))
        .filter_map(|(index, entry)| parse_entry(index, entry, &header, sector).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    refuse_overlap(&partitions)?;
    Ok(Table { disk: header.disk, sector_size, copy, partitions })
}

fn parse_header(bytes: &[u8], lba: u64, sectors: u64, sector: u64) -> Result<Header, Flaw> {
    if bytes.get(..8) != Some(b"EFI PART") {
        return Err(Flaw::NoSignature);
    }
    let length = u32_at(bytes, 12)? as usize;
    if length < 92 {
        return Err(Flaw::BadHeader);
    }
    let mut summed = bytes.get(..length).ok_or(Flaw::BadHeader)?.to_vec();
    let stored = u32_at(&summed, 16)?;
    // The checksum is taken with its own field as zero.
    summed.get_mut(16..20).ok_or(Flaw::BadHeader)?.fill(0);
    if crc32fast::hash(&summed) != stored {
        return Err(Flaw::HeaderChecksum);
    }
    let header = Header {
        disk: guid_at(bytes, 56)?,
        first_usable: u64_at(bytes, 40)?,
        last_usable: u64_at(bytes, 48)?,
        entries_lba: u64_at(bytes, 72)?,
        entry_count: u32_at(bytes, 80)?,
        entry_size: u32_at(bytes, 84)?,
        entries_crc: u32_at(bytes, 88)?,
    };
    let entry_size_ok = header.entry_size >= 128
        && header.entry_size <= MAX_ENTRY_SIZE
        && header.entry_size.is_power_of_two();
    let table = header.entry_count.checked_mul(header.entry_size);
    let sane = u64_at(bytes, 24)? == lba
        && entry_size_ok
        && header.entry_count <= MAX_ENTRIES
        && table.is_some_and(|table| table <= MAX_TABLE)
        && header.first_usable <= header.last_usable
        && header.last_usable < sectors
        && header.entries_lba < sectors
        && header.entries_lba * sector + u64::from(table.unwrap_or(0)) <= sectors * sector;
    if sane { Ok(header) } else { Err(Flaw::BadHeader) }
}

/// One entry; `None` if it is unused.
fn parse_entry(index: u32, entry: &[u8], header: &Header, sector: u64) -> Result<Option<Partition>, Flaw> {
    let kind = guid_at(entry, 0)?;
    if kind == Guid([0; 16]) {
        return Ok(None);
    }
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    if first > last || first < header.first_usable || last > header.last_usable {
        return Err(Flaw::BadPartition { index });
    }
    let units: Vec<u16> = entry
        .get(56..128)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|unit| unit.iter().rev().fold(0, |value, byte| value << 8 | u16::from(*byte)))
        .take_while(|unit| *unit != 0)
        .collect();
    Ok(Some(Partition {
        index,
        name: String::from_utf16_lossy(&units),
        guid: guid_at(entry, 16)?,
        kind,
        offset: first * sector,
        length: (last - first + 1) * sector,
        attributes: u64_at(entry, 48)?,
    }))
}

fn refuse_overlap(partitions: &[Partition]) -> Result<(), Flaw> {
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.offset);
    let mut free_from = 0;
    for partition in sorted {
        if partition.offset < free_from {
            return Err(Flaw::BadPartition { index: partition.index });
        }
        free_from = partition.offset + partition.length;
    }
    Ok(())
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Flaw> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(Flaw::BadHeader)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Flaw> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Flaw> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn guid_at(bytes: &[u8], at: usize) -> Result<Guid, Flaw> {
    array_at(bytes, at).map(Guid)
}

/// The order in which the bytes on disk are printed: the first three groups are little-endian.
const PRINTED: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, source) in PRINTED.into_iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(source).unwrap_or(&0))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = GuidError;

    fn from_str(text: &str) -> Result<Self, GuidError> {
        let error = || GuidError { text: text.chars().take(64).collect() };
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return Err(error());
        }
        let hex = groups.concat();
        if !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut guid = [0; 16];
        for (source, pair) in PRINTED.into_iter().zip(hex.as_bytes().chunks_exact(2)) {
            let byte = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            if let (Some(place), Some(byte)) = (guid.get_mut(source), byte) {
                *place = byte;
            }
        }
        Ok(Self(guid))
    }
}

#[cfg(test)]
#[path = "gpt_tests.rs"]
mod tests;
