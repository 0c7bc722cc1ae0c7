use std::fs::{self, File};
use std::sync::Arc;

use super::*;
use crate::disk::HostRegion;
use crate::disk::fault::{Crashes, Fault, FaultDisk, Medium, Power};
use crate::disk::fixture::{TestPartition, write_gpt};

const SECTORS: usize = 160;
const PRIORITY: u64 = 0xF << 48;
const CHANGES: [AttributeChange; 2] = [
    AttributeChange { index: 1, mask: PRIORITY, value: 5 << 48 },
    AttributeChange { index: 3, mask: 1 << 56 | PRIORITY, value: u64::MAX },
];

/// A disk whose entries 1 and 3 lie in one sector, entry 40 in another, each with bits of its own.
fn disk() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS as u64 * 512).unwrap();
    let partition =
        |label, seed, nth: u64| TestPartition { label, seed, offset: (40 + nth * 8) * 512, length: 2048 };
    let names: Vec<String> = (0..10).map(|nth| format!("p{nth}")).collect();
    let partitions: Vec<_> = names
        .iter()
        .zip(0..)
        .map(|(name, nth)| partition(name.as_str(), 0xA0 + u8::try_from(nth).unwrap(), nth))
        .collect();
    write_gpt(file.as_file(), &partitions).unwrap();
    let region = HostRegion::new(file.path());
    let own: Vec<_> =
        (1..=10).map(|index| AttributeChange { index, mask: u64::MAX, value: 1 << index }).collect();
    set_attributes(&region, &own).unwrap();
    fs::read(file.path()).unwrap()
}

fn fault_disk(bytes: &[u8]) -> (Power, Arc<FaultDisk>) {
    let power = Power::new();
    let disk = Arc::new(FaultDisk::new(&power, "disk", Medium::of(bytes)));
    (power, disk)
}

fn attributes(bytes: &[u8]) -> Vec<u64> {
    gpt::parse(bytes).unwrap().partitions.iter().map(|partition| partition.attributes).collect()
}

fn edited(bytes: &[u8]) -> Vec<u8> {
    let (_, disk) = fault_disk(bytes);
    set_attributes(&*disk, &CHANGES).unwrap();
    disk.content().to_vec()
}

#[test]
fn bits_under_the_mask_change_in_both_copies_and_nothing_else() {
    let before = disk();
    let after = edited(&before);
    let mut expected: Vec<u64> = (1..=10).map(|index| 1 << index).collect();
    expected[0] |= 5 << 48;
    expected[2] |= 1 << 56 | PRIORITY;
    assert_eq!(attributes(&after), expected);
    let mut only_backup = after.clone();
    only_backup[512..1024].fill(0);
    assert_eq!(attributes(&only_backup), expected);
    let different: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    let entries = [2 * 512, (SECTORS - 33) * 512];
    let headers = [512, (SECTORS - 1) * 512];
    assert!(
        different.iter().all(|at| {
            let in_entry = |base: &usize| {
                [0, 256].iter().any(|entry| (base + entry + 48..base + entry + 56).contains(at))
            };
            let in_checksum =
                |base: &usize| (base + 16..base + 20).contains(at) || (base + 88..base + 92).contains(at);
            entries.iter().any(in_entry) || headers.iter().any(in_checksum)
        }),
        "{different:?}"
    );
}

#[test]
fn every_power_cut_leaves_the_old_or_the_new_bits() {
    let whole = disk();
    let damaged = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    // Whole; a damaged primary header, primary entries, backup header, backup entries.
    let befores = [
        whole.clone(),
        damaged(512 + 40),
        damaged(1024 + 60),
        damaged((SECTORS - 1) * 512 + 72),
        damaged((SECTORS - 33) * 512 + 60),
    ];
    let new = attributes(&edited(&whole));
    for (nth, before) in befores.iter().enumerate() {
        let old = attributes(before);
        let (power, disk) = fault_disk(before);
        set_attributes(&*disk, &CHANGES).unwrap();
        let mut seen = (0, 0);
        for state in power.crash_states(&Crashes::default()) {
            let bytes = state.disk(&disk).to_vec();
            let found = attributes(&bytes);
            assert!(found == old || found == new, "{nth}: {state:?}");
            seen = if found == old { (seen.0 + 1, seen.1) } else { (seen.0, seen.1 + 1) };
            // The change is made again after a power cut, from whatever was left.
            assert_eq!(attributes(&edited(&bytes)), new, "{nth}: {state:?}");
        }
        assert!(seen.0 > 10 && seen.1 > 10, "{nth}: {seen:?}");
        assert_eq!(disk.content().to_vec(), edited(&whole), "{nth}: the damaged copy is as it was");
    }
}

#[test]
fn with_both_copies_damaged_nothing_is_written() {
    let mut bytes = disk();
    bytes[512 + 40] ^= 1;
    bytes[(SECTORS - 1) * 512 + 40] ^= 1;
    let (_, disk) = fault_disk(&bytes);
    let error = set_attributes(&*disk, &CHANGES).unwrap_err();
    assert!(matches!(error, GptEditError::Table(GptError::Damaged { .. })), "{error}");
    assert!(disk.log().is_empty());
}

#[test]
fn what_is_not_there_is_refused_before_anything_is_written() {
    let bytes = disk();
    for index in [0, 11, 128, 129, u32::MAX] {
        let (_, disk) = fault_disk(&bytes);
        let change = AttributeChange { index, mask: PRIORITY, value: 0 };
        let error = set_attributes(&*disk, &[CHANGES[0], change]).unwrap_err();
        assert!(matches!(error, GptEditError::NoPartition { .. }), "{index}: {error}");
        assert!(disk.log().is_empty());
    }
    // A disk that grew: its backup is not where a reader without a primary looks.
    let (_, grown) = fault_disk(&[bytes, vec![0; 64 * 512]].concat());
    assert!(matches!(set_attributes(&*grown, &CHANGES), Err(GptEditError::BackupElsewhere { .. })));
    assert!(grown.log().is_empty());
}

#[test]
fn a_copy_that_takes_no_write_keeps_the_other_one_from_being_written() {
    let before = disk();
    // Each copy is two writes, each with a flush.
    for (at, fault) in [(0, Fault::Error), (0, Fault::Short(512)), (2, Fault::Error)] {
        let (_, disk) = fault_disk(&before);
        disk.inject(at, fault);
        assert!(matches!(set_attributes(&*disk, &CHANGES), Err(GptEditError::Write { .. })), "{fault:?}");
        assert!(disk.content().holds(0, &before[..64 * 512]), "the primary copy was touched");
        assert_eq!(attributes(&disk.content().to_vec()), attributes(&before));
    }
    for at in [0, 2, 4, 6] {
        let (_, disk) = fault_disk(&before);
        disk.inject(at, Fault::Dropped);
        assert!(matches!(set_attributes(&*disk, &CHANGES), Err(GptEditError::ReadBack { .. })), "write {at}");
        assert!(at > 2 || disk.content().holds(0, &before[..64 * 512]), "the primary copy was touched");
        let found = attributes(&disk.content().to_vec());
        assert!(found == attributes(&before) || found == attributes(&edited(&before)), "write {at}");
    }
}

#[test]
fn a_file_is_edited_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, disk()).unwrap();
    let region = HostRegion::new(&path);
    set_attributes(&region, &CHANGES).unwrap();
    assert_eq!(read(&region).unwrap(), gpt::parse(&fs::read(&path).unwrap()).unwrap());
    assert_eq!(File::open(&path).unwrap().metadata().unwrap().len(), SECTORS as u64 * 512);
}
