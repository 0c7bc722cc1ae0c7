//! One function for every parser of outside bytes, to be called with any bytes at all.
//!
//! Each returns for good bytes and for bad ones; a panic, a hang or memory without bounds is a
//! mistake. Beyond that they check what must hold of everything that was accepted. The libFuzzer
//! targets in `fuzz/` and the tests that replay and mutate `fuzz/corpus/` call the same functions.
#![allow(clippy::missing_panics_doc, reason = "a panic is how a target reports")]

mod drive;
mod gpt_edit;
mod memory;
mod objects;
mod record;
mod uboot;

pub use drive::{Found, Runs, drive};
pub use gpt_edit::gpt_edit;
pub use objects::{catalog, objects, os_release};
pub use record::record;
pub use uboot::{uboot_config, uboot_env};

pub use crate::boot::bls::fuzzing::bls;
pub use crate::boot::grub::fuzzing::grub_env;
pub use crate::image::fuzzing::{answer, index, inspect, seek_table, write};
pub(crate) use memory::MemoryTarget;

use crate::disk::gpt::{self, Table};

/// What a target runs.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz/fuzz_targets/`.
pub const TARGETS: [(&str, Target); 15] = [
    ("answer", answer),
    ("bls", bls),
    ("catalog", catalog),
    ("gpt", gpt),
    ("gpt_edit", gpt_edit),
    ("grub_env", grub_env),
    ("index", index),
    ("inspect", inspect),
    ("objects", objects),
    ("os_release", os_release),
    ("record", record),
    ("seek_table", seek_table),
    ("uboot_config", uboot_config),
    ("uboot_env", uboot_env),
    ("write", write),
];

/// Partition tables. The first byte tells whether the primary copy's checksums are made right
/// (bit 0), as a fuzzer would hardly find them; the rest is the disk.
pub fn gpt(bytes: &[u8]) {
    let Some((mode, disk)) = bytes.split_first() else { return };
    let mut disk = disk.to_vec();
    if mode & 1 == 1 {
        // A disk that is too short for a header keeps what it has.
        let _ = seal(&mut disk, 1);
    }
    let parsed = gpt::parse(&disk);
    if let Ok(table) = &parsed {
        check_table(table, disk.len() as u64);
    }
    let read = gpt::read(&MemoryTarget::holding(disk));
    assert_eq!(parsed.ok(), read.ok(), "a target and its bytes are read alike");
}

fn check_table(table: &Table, size: u64) {
    let mut sorted: Vec<_> = table.partitions.iter().map(|part| (part.offset, part.length)).collect();
    sorted.sort_unstable();
    let mut free_from = 0;
    for (offset, length) in sorted {
        assert!(offset >= free_from && length > 0, "partitions overlap");
        free_from = offset + length;
    }
    assert!(free_from <= size, "a partition ends behind the disk");
}

/// Makes the checksums of the copy with its header in this block right, with sectors of 512 bytes.
fn seal(disk: &mut [u8], header_lba: usize) -> Option<()> {
    let number = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes).and_then(|n| usize::try_from(n).ok())
    };
    let at = header_lba.checked_mul(512)?;
    let header = disk.get(at..at + 512)?;
    let (length, lba) = (number(header, 12)?, number(header, 72)?);
    let table = number(header, 80)?.checked_mul(number(header, 84)?)?;
    let start = lba.checked_mul(512)?;
    let entries = crc32fast::hash(disk.get(start..start.checked_add(table)?)?);
    let header = disk.get_mut(at..at + 512)?;
    header.get_mut(88..92)?.copy_from_slice(&entries.to_le_bytes());
    header.get_mut(16..20)?.fill(0);
    let sum = crc32fast::hash(header.get(..length)?);
    header.get_mut(16..20)?.copy_from_slice(&sum.to_le_bytes());
    Some(())
}
