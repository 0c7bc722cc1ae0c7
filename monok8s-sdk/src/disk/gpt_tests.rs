use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// A disk of `sectors` sectors with two slots, made by hand so that it can be broken at will.
fn disk(sector: usize, sectors: usize) -> Vec<u8> {
    let mut disk = vec![0; sector * sectors];
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk[446 + 4] = 0xEE;
    let mut entries = vec![0; 128 * 128];
    // A gap in the numbers, as an operator's deleted partition leaves it.
    entry(&mut entries[0..128], 0xA0, 40, 59, "rootfs-a");
    entry(&mut entries[256..384], 0xB0, 60, 99, "rootfs-b");
    let table = entries.len().div_ceil(sector);
    put_copy(&mut disk, sector, 1, 2, &entries);
    put_copy(&mut disk, sector, sectors - 1, sectors - 1 - table, &entries);
    disk
}

fn entry(bytes: &mut [u8], seed: u8, first: u64, last: u64, name: &str) {
    bytes[0..16].fill(0x11);
    bytes[16..32].fill(seed);
    bytes[32..40].copy_from_slice(&first.to_le_bytes());
    bytes[40..48].copy_from_slice(&last.to_le_bytes());
    for (place, unit) in bytes[56..].chunks_exact_mut(2).zip(name.encode_utf16()) {
        place.copy_from_slice(&unit.to_le_bytes());
    }
}

fn put_copy(disk: &mut [u8], sector: usize, lba: usize, entries_lba: usize, entries: &[u8]) {
    let sectors = disk.len() / sector;
    disk[entries_lba * sector..][..entries.len()].copy_from_slice(entries);
    let header = &mut disk[lba * sector..][..92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[24..32].copy_from_slice(&(lba as u64).to_le_bytes());
    header[40..48].copy_from_slice(&40_u64.to_le_bytes());
    header[48..56].copy_from_slice(&(sectors as u64 - 40).to_le_bytes());
    header[72..80].copy_from_slice(&(entries_lba as u64).to_le_bytes());
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32fast::hash(entries).to_le_bytes());
    reseal(header);
}

fn reseal(header: &mut [u8]) {
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

fn flaws(disk: &[u8]) -> (Flaw, Flaw) {
    match parse(disk).unwrap_err() {
        GptError::Damaged { primary, backup } => (primary, backup),
        other => panic!("{other}"),
    }
}

#[test]
fn both_sector_sizes_are_read() {
    for sector in [512, 4096] {
        let table = parse(&disk(sector, 400)).unwrap();
        assert_eq!((table.sector_size as usize, table.copy), (sector, TableCopy::Primary));
        let [a, b] = table.partitions.as_slice() else { panic!("{table:?}") };
        assert_eq!((a.index, a.name.as_str(), b.index, b.name.as_str()), (1, "rootfs-a", 3, "rootfs-b"));
        assert_eq!((b.offset, b.length), (60 * sector as u64, 40 * sector as u64));
        assert_eq!(b.guid.to_string(), "b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0");
    }
}

#[test]
fn the_backup_stands_in_for_a_damaged_primary() {
    let good = disk(512, 400);
    for damage in [512, 512 + 60, 1024 + 40] {
        let mut broken = good.clone();
        broken[damage] ^= 1;
        assert_eq!(parse(&broken).unwrap().copy, TableCopy::Backup, "byte {damage}");
        assert_eq!(parse(&broken).unwrap().partitions, parse(&good).unwrap().partitions);
    }
}

#[test]
fn an_old_backup_without_protective_mbr_is_not_a_table() {
    let mut disk = disk(512, 400);
    disk[446 + 4] = 0x83;
    assert!(matches!(parse(&disk), Err(GptError::NotGpt)));
    assert!(matches!(parse(&[]), Err(GptError::NotGpt)));
}

#[test]
fn sizes_that_pass_a_limit_or_the_disk_are_refused() {
    for (at, bytes) in [
        (80, 1_000_000_u32.to_le_bytes().to_vec()),
        (84, 0x8000_0000_u32.to_le_bytes().to_vec()),
        (84, 129_u32.to_le_bytes().to_vec()),
        (72, u64::MAX.to_le_bytes().to_vec()),
        (48, u64::MAX.to_le_bytes().to_vec()),
    ] {
        let mut disk = disk(512, 400);
        for lba in [1, 399] {
            let header = &mut disk[lba * 512..][..92];
            header[at..at + bytes.len()].copy_from_slice(&bytes);
            reseal(header);
        }
        assert_eq!(flaws(&disk), (Flaw::BadHeader, Flaw::BadHeader), "field {at}");
    }
}

#[test]
fn overlapping_and_outlying_partitions_are_refused() {
    for (first, last) in [(59, 80), (10, 20), (90, 4000), (90, 80)] {
        let mut bytes = disk(512, 400);
        let mut entries = bytes[1024..][..128 * 128].to_vec();
        entry(&mut entries[256..384], 0xB0, first, last, "rootfs-b");
        put_copy(&mut bytes, 512, 1, 2, &entries);
        put_copy(&mut bytes, 512, 399, 399 - 32, &entries);
        assert_eq!(flaws(&bytes).0, Flaw::BadPartition { index: 3 }, "{first}..{last}");
    }
}

#[test]
fn guids_are_written_as_the_kernel_does() {
    let text = "0fc63daf-8483-4772-8e79-3d69d8477de4";
    let guid: Guid = text.to_uppercase().parse().unwrap();
    assert_eq!(guid.to_string(), text);
    assert_eq!(guid.0[..4], [0xaf, 0x3d, 0xc6, 0x0f]);
    for wrong in
        ["", "0fc63daf", "0fc63daf-8483-4772-8e79-3d69d8477de", "0fc63dag-8483-4772-8e79-3d69d8477de4"]
    {
        assert!(wrong.parse::<Guid>().is_err(), "{wrong}");
    }
}

#[test]
fn agrees_with_sfdisk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let script = "label: gpt\n1: start=2048, size=8192, name=rootfs-a, uuid=11111111-2222-3333-4444-555555555555\n\
                  4: start=20480, size=40960, name=\"röotfs b\"\n";
    let sfdisk = Command::new("sfdisk")
        .args(["--quiet"])
        .arg(file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut sfdisk) = sfdisk else {
        println!("SKIP: sfdisk (package fdisk) is not installed");
        return;
    };
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let table = parse(&std::fs::read(file.path()).unwrap()).unwrap();
    let [a, b] = table.partitions.as_slice() else { panic!("{table:?}") };
    assert_eq!((a.index, a.offset, a.length), (1, 1 << 20, 4 << 20));
    assert_eq!(a.guid.to_string(), "11111111-2222-3333-4444-555555555555");
    assert_eq!((b.index, b.name.as_str(), b.offset, b.length), (4, "röotfs b", 10 << 20, 20 << 20));
    assert_eq!(b.kind.to_string(), "0fc63daf-8483-4772-8e79-3d69d8477de4");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse(&bytes);
    }

    /// Headers whose checksums are right but whose fields are not: the attacker's table.
    #[test]
    fn no_sealed_header_panics(edits in proptest::collection::vec((12_usize..92, any::<u8>()), 1..12), big in any::<bool>()) {
        let sector = if big { 4096 } else { 512 };
        let mut disk = disk(sector, 200);
        for (at, byte) in edits {
            for lba in [1, 199] {
                let header = &mut disk[lba * sector..][..92];
                header[at] = byte;
                reseal(header);
            }
        }
        let _ = parse(&disk);
    }
}
