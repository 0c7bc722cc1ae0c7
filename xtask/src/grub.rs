//! GRUB for BIOS machines, written into a disk image without root or loop devices.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::host::{Program, run};

/// Makes GRUB's core image.
pub const GRUB_MKIMAGE: Program = Program { name: "grub-mkimage", package: "grub-common" };
/// Changes environment blocks.
pub const GRUB_EDITENV: Program = Program { name: "grub-editenv", package: "grub-common" };
/// Checks scripts.
pub const GRUB_SCRIPT_CHECK: Program = Program { name: "grub-script-check", package: "grub-common" };

/// Where Debian's package `grub-pc-bin` keeps GRUB's parts for BIOS machines.
pub const PARTS: &str = "/usr/lib/grub/i386-pc";
/// What `deploy/host/grub/grub.cfg` needs, beside the disk driver of the platform.
pub const MODULES: [&str; 18] = [
    "boot",
    "configfile",
    "echo",
    "ext2",
    "fat",
    "linux",
    "loadenv",
    "minicmd",
    "normal",
    "part_gpt",
    "probe",
    "reboot",
    "regexp",
    "serial",
    "sleep",
    "terminal",
    "test",
    "true",
];

/// The first state of a node, as `deploy/host/README.md` has it: a system in slot A, nothing in slot B.
pub const INSTALLED: [&str; 7] =
    ["ORDER=A", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0", "MONOK8S_TRIES=3", "MONOK8S_REV=1"];

const SECTOR: u64 = 512;

/// The BIOS boot partition that GRUB goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BiosBoot {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Writes GRUB into the master boot record and the BIOS boot partition of a partitioned disk image,
/// as `grub-install` would. `prefix` is where it finds `grub.cfg`: `(hd0,gpt2)`.
///
/// # Errors
/// GRUB is not installed on this machine, or does not fit the partition.
pub fn install_bios(disk: &Path, partition: BiosBoot, prefix: &str) -> Result<()> {
    let part = |name: &str| {
        let path = Path::new(PARTS).join(name);
        fs::read(&path)
            .with_context(|| format!("no {}: run `apt-get install grub-pc-bin` as root", path.display()))
    };
    let mut boot = part("boot.img")?;
    let scratch = tempfile::tempdir()?;
    let core_path = scratch.path().join("core.img");
    let mut make = Command::new(GRUB_MKIMAGE.locate()?);
    make.args(["--format=i386-pc", "--prefix", prefix, "--output"])
        .arg(&core_path)
        .arg("biosdisk")
        .args(MODULES);
    run(&mut make)?;
    let mut core = fs::read(&core_path)?;
    core.resize(core.len().next_multiple_of(512), 0);
    ensure!(
        core.len() as u64 <= partition.bytes,
        "GRUB has {} bytes, and its partition {}",
        core.len(),
        partition.bytes
    );

    // The first sector of the core loads the rest: from which sector, how many, to which segment.
    let first = partition.offset / SECTOR;
    put(&mut core, 0x1F4, &(first + 1).to_le_bytes())?;
    let others = u16::try_from(core.len() / 512 - 1)?;
    put(&mut core, 0x1FC, &others.to_le_bytes())?;
    put(&mut core, 0x1FE, &0x820_u16.to_le_bytes())?;
    // The boot record loads that first sector. The jump at 0x66 distrusts the BIOS about the drive's
    // number, which only floppies need.
    put(&mut boot, 0x5C, &first.to_le_bytes())?;
    put(&mut boot, 0x66, &[0x90, 0x90])?;

    let mut file = File::options().read(true).write(true).open(disk)?;
    // The protective partition table and what is before it stay.
    let mut record = vec![0; 512];
    file.read_exact(&mut record)?;
    let table = record.get(440..).unwrap_or_default();
    put(&mut boot, 440, table)?;
    file.rewind()?;
    file.write_all(&boot)?;
    file.seek(SeekFrom::Start(partition.offset))?;
    file.write_all(&core)?;
    Ok(file.sync_all()?)
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) -> Result<()> {
    let place = bytes.get_mut(at..at + new.len()).context("a part of GRUB is shorter than it should be")?;
    place.copy_from_slice(new);
    Ok(())
}
