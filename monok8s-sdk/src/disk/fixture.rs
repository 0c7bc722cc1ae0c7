//! Machines made of files, for tests: a disk image with a GPT and a host root that boots from it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{DiskSource, HostView, SlotLayout};
use crate::slot::Slot;

/// A partition to put into a test's table, on sectors of 512 bytes.
#[derive(Clone, Debug)]
pub struct TestPartition<'a> {
    /// Its PARTLABEL.
    pub label: &'a str,
    /// Its PARTUUID is this byte sixteen times.
    pub seed: u8,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub length: u64,
}

/// Where slot A of [`FileMachine`] starts, in bytes.
const SLOT_A: u64 = 1 << 20;
/// Slot B starts at a multiple of this, and the disk ends at one, in bytes.
const STEP: u64 = 1 << 30;

/// A machine with two slots in a sparse disk image, running from one of them.
#[derive(Clone, Debug)]
pub struct FileMachine {
    root: PathBuf,
    slot_size: u64,
}

impl FileMachine {
    /// Makes the machine's files in `directory`: `disk.img` and a host root under `host`.
    /// Slots are empty and have `slot_size` bytes.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn create(directory: &Path, slot_size: u64) -> io::Result<Self> {
        let machine = Self { root: directory.to_owned(), slot_size };
        let (a, b) = (machine.offset(Slot::A), machine.offset(Slot::B));
        let disk = File::create(machine.disk())?;
        disk.set_len(2 * b)?;
        write_gpt(
            &disk,
            &[
                TestPartition { label: "rootfs-a", seed: 0xA0, offset: a, length: slot_size },
                TestPartition { label: "rootfs-b", seed: 0xB0, offset: b, length: slot_size },
            ],
        )?;
        machine.boot(Slot::A)?;
        Ok(machine)
    }

    /// Makes the host root say that `slot` was booted.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn boot(&self, slot: Slot) -> io::Result<()> {
        let seed = match slot {
            Slot::A => "a0",
            Slot::B => "b0",
        };
        let group = |bytes| seed.repeat(bytes);
        let guid = [4, 2, 2, 2, 6].map(group).join("-");
        fs::create_dir_all(self.root.join("host/proc"))?;
        fs::write(self.root.join("host/proc/cmdline"), format!("quiet root=PARTUUID={guid} ro\n"))
    }

    /// The disk image.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.root.join("disk.img")
    }

    /// The machine's `/proc` and so on.
    #[must_use]
    pub fn host(&self) -> HostView {
        HostView::new(self.root.join("host"))
    }

    /// The machine's slots: the usual labels in its disk image.
    #[must_use]
    pub fn layout(&self) -> SlotLayout {
        SlotLayout { disk: DiskSource::Path(self.disk()), ..SlotLayout::default() }
    }

    /// Where a slot starts in the disk image, in bytes.
    #[must_use]
    pub fn offset(&self, slot: Slot) -> u64 {
        match slot {
            Slot::A => SLOT_A,
            Slot::B => (SLOT_A + self.slot_size).next_multiple_of(STEP),
        }
    }

    /// The first `length` bytes of a slot.
    ///
    /// # Errors
    /// The disk image cannot be read.
    pub fn read(&self, slot: Slot, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(self.disk())?.read_exact_at(&mut bytes, self.offset(slot))?;
        Ok(bytes)
    }

    /// Overwrites the start of a slot, past all guards.
    ///
    /// # Errors
    /// The disk image cannot be written.
    pub fn write(&self, slot: Slot, bytes: &[u8]) -> io::Result<()> {
        File::options().write(true).open(self.disk())?.write_all_at(bytes, self.offset(slot))
    }

    /// All bytes of a slot.
    ///
    /// # Errors
    /// The disk image cannot be read.
    pub fn read_all(&self, slot: Slot) -> io::Result<Vec<u8>> {
        self.read(slot, usize::try_from(self.slot_size).map_err(io::Error::other)?)
    }
}

/// Writes a protective MBR and both copies of a GPT, for sectors of 512 bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write_gpt(disk: &File, partitions: &[TestPartition<'_>]) -> io::Result<()> {
    const SECTOR: u64 = 512;
    let sectors = disk.metadata()?.len() / SECTOR;
    let mut entries = vec![0; 128 * 128];
    for (entry, partition) in entries.chunks_exact_mut(128).zip(partitions) {
        let (first, last) = (partition.offset / SECTOR, (partition.offset + partition.length) / SECTOR - 1);
        let name = partition.label.encode_utf16().flat_map(u16::to_le_bytes);
        let bytes = [0x11; 16].into_iter().chain([partition.seed; 16]).chain(first.to_le_bytes());
        let bytes = bytes.chain(last.to_le_bytes()).chain([0; 8]).chain(name);
        entry.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    }
    let mut mbr = vec![0; 446 + 4];
    mbr.push(0xEE);
    mbr.resize(510, 0);
    mbr.extend([0x55, 0xAA]);
    disk.write_all_at(&mbr, 0)?;
    for (header, table) in [(1, 2), (sectors - 1, sectors - 33)] {
        disk.write_all_at(&entries, table * SECTOR)?;
        let other = sectors - header;
        let with_checksum = |checksum: u32| {
            let mut bytes = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
            bytes.extend(checksum.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend([header, other, 34, sectors - 34].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend([0xD0; 16]);
            bytes.extend(table.to_le_bytes());
            bytes.extend([128, 128, crc32fast::hash(&entries)].into_iter().flat_map(u32::to_le_bytes));
            bytes
        };
        let checksum = crc32fast::hash(&with_checksum(0));
        disk.write_all_at(&with_checksum(checksum), header * SECTOR)?;
    }
    disk.sync_all()
}
