//! Attribute bits of ours seen by `sgdisk` and `sfdisk`, and theirs by us, on tables that they made.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::boot::gpt_bits::{GptBits, SlotBits};
use monok8s_sdk::boot::{ArmableSlot, AttemptId, BootBackend as _, Reverter, Tries, TryCounting};
use monok8s_sdk::disk::gpt_edit::{self, AttributeChange};
use monok8s_sdk::disk::{HostDirectory, HostRegion, KnownGoodSlot, gpt};
use monok8s_sdk::slot::Slot;
use xtask::disk::{Disk, DiskSpec, LoopDisk, SectorSize, loop_obstacle};
use xtask::host::{Program, SFDISK, SGDISK};
use xtask::scratch::Scratch;

const MIB: u64 = 1 << 20;
/// Numbers of the slots' partitions, of `Disk`'s three.
const SLOTS: [u32; 2] = [1, 2];

fn obstacle() -> Option<String> {
    [SFDISK, SGDISK].into_iter().find_map(|program| program.locate().err()).map(|error| error.to_string())
}

fn said(program: Program, arguments: &[&str], disk: &Path) -> Result<String> {
    let done = Command::new(program.locate()?).args(arguments).arg(disk).output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        done.status.success(),
        "{} {arguments:?}: {said}{}",
        program.name,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(said)
}

/// The attributes of a partition, in the words of `sgdisk`.
fn attributes(disk: &Path, index: u32) -> Result<u64> {
    let said = said(SGDISK, &["-i", &index.to_string()], disk)?;
    let flags = said.lines().find_map(|line| line.strip_prefix("Attribute flags: "));
    Ok(u64::from_str_radix(flags.with_context(|| format!("no flags: {said}"))?.trim(), 16)?)
}

/// `sfdisk` dumps the table, less what belongs to attributes.
fn dumped(disk: &Path) -> Result<String> {
    let dump = said(SFDISK, &["--dump"], disk)?;
    Ok(dump.lines().map(|line| line.split(", attrs=").next().unwrap_or_default().to_owned() + "\n").collect())
}

/// `sgdisk` finds both copies in order, also when it is left with either of them.
fn verified(disk: &Path) -> Result<()> {
    let said = said(SGDISK, &["-v"], disk)?;
    ensure!(said.contains("No problems found"), "sgdisk -v: {said}");
    Ok(())
}

/// What both tools and we read is one, and nothing but attributes changed since `dump`.
fn agrees(disk: &Path, loader: &GptBits, dump: &str) -> Result<()> {
    verified(disk)?;
    ensure!(dumped(disk)? == dump, "the table changed:\n{dump}{}", dumped(disk)?);
    let bits = loader.bits()?;
    for (slot, index) in Slot::BOTH.into_iter().zip(SLOTS) {
        let (theirs, ours) = (attributes(disk, index)?, bits.of(slot));
        ensure!(SlotBits::of(theirs) == ours, "slot {slot}: sgdisk has {theirs:#x}, we {ours:?}");
        let own = if slot == Slot::A { 0b001 } else { 0b100 };
        ensure!(theirs & 0xFFFF_FFFF_FFFF == own, "slot {slot} lost an attribute: {theirs:#x}");
    }
    Ok(())
}

/// A trial, its end, and a confirmed one, with other programs' changes in between.
fn changes(disk: &Path, notes: &Path) -> Result<()> {
    let guid = |index: u32| {
        let table = gpt_edit::read(&HostRegion::new(disk))?;
        let found = table.partitions.iter().find(|partition| partition.index == index);
        found.map(|partition| partition.guid).context("no such partition")
    };
    let guids = [guid(SLOTS[0])?, guid(SLOTS[1])?];
    let loader =
        GptBits::in_region(Arc::new(HostRegion::new(disk)), guids, Arc::new(HostDirectory::new(notes)));
    // Bits of the standard and priority 1, by sgdisk; more priority, by sfdisk.
    said(SGDISK, &["-A", "1:set:0", "-A", "1:set:48", "-A", "2:set:2"], disk)?;
    let attrs = ["--quiet", "--no-reread", "--no-tell-kernel", "--part-attrs"];
    let set = Command::new(SFDISK.locate()?)
        .args(attrs)
        .arg(disk)
        .args(["1", "RequiredPartition,48,49,56"])
        .output()?;
    ensure!(set.status.success(), "sfdisk: {}", String::from_utf8_lossy(&set.stderr));
    ensure!(loader.bits()?.a == SlotBits { priority: 3, tries: 0, successful: true });
    let dump = dumped(disk)?;
    agrees(disk, &loader, &dump)?;

    loader.mark_good(Slot::A)?;
    agrees(disk, &loader, &dump)?;
    ensure!(loader.canary()? == TryCounting::Unsupported);
    // What a loader does: one try less.
    said(SGDISK, &["-A", "1:clear:52"], disk)?;
    ensure!(loader.canary()? == TryCounting::Proven);
    loader.mark_good(Slot::A)?;
    agrees(disk, &loader, &dump)?;
    let arm = || {
        let slot = KnownGoodSlot::from_confirm_record(Slot::B, "v1.35.4".parse()?, None);
        anyhow::Ok(loader.arm_trial(ArmableSlot::KnownGood(slot), AttemptId(7), Tries::TRIAL)?)
    };
    arm()?;
    agrees(disk, &loader, &dump)?;
    said(SGDISK, &["-A", "2:clear:52"], disk)?;
    loader.revert(Reverter::Guard)?;
    agrees(disk, &loader, &dump)?;
    loader.disarm()?;
    arm()?;
    loader.confirm()?;
    agrees(disk, &loader, &dump)?;
    ensure!(loader.status()?.order == [Slot::B, Slot::A]);
    Ok(())
}

fn spec(sector_size: SectorSize) -> DiskSpec {
    DiskSpec { identity: "gpt-bits".to_owned(), slot_bytes: MIB, data_bytes: MIB, sector_size }
}

#[test]
fn disk_images_are_edited_as_the_tools_do() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let scratch = Scratch::new("gpt-bits")?;
    let path = scratch.path().join("disk");
    Disk::create(&path, &spec(SectorSize::B512))?;
    changes(&path, scratch.path())
}

#[test]
fn block_devices_of_both_sector_sizes_are_edited_as_the_tools_do() -> Result<()> {
    if let Some(obstacle) = obstacle().or_else(loop_obstacle) {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    for sector_size in [SectorSize::B512, SectorSize::B4096] {
        let scratch = Scratch::new("gpt-bits")?;
        let disk = Disk::create(&scratch.path().join("disk"), &spec(sector_size))?;
        let loops = LoopDisk::attach(&disk)?;
        changes(loops.whole.path(), scratch.path()).with_context(|| format!("{sector_size:?}"))?;
    }
    Ok(())
}

/// A table as an operator has it: `sgdisk` made it, with gaps in the numbers, more entries than usual
/// and one that was moved.
#[test]
fn tables_of_other_shapes_are_edited_and_stay_in_shape() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let scratch = Scratch::new("gpt-bits")?;
    for (name, shape) in [("large", &["-S", "256"][..]), ("small", &["-S", "4"]), ("moved", &["-j", "100"])] {
        let path = scratch.path().join(name);
        File::create_new(&path)?.set_len(16 * MIB)?;
        let partitions =
            ["-n", "1:4096:8191", "-c", "1:one", "-n", "4:8192:0", "-c", "4:four", "-A", "4:set:60"];
        said(SGDISK, &[&["--clear"], shape, &partitions].concat(), &path)?;
        let dump = dumped(&path)?;
        let region = HostRegion::new(&path);
        let change = AttributeChange { index: 4, mask: 0x01FF << 48, value: 0x0123 << 48 };
        gpt_edit::set_attributes(&region, &[change]).with_context(|| name.to_owned())?;
        verified(&path)?;
        assert_eq!((dumped(&path)?, attributes(&path, 4)?), (dump, 0x1123 << 48), "{name}");
        let attrs = Command::new(SFDISK.locate()?).arg("--part-attrs").arg(&path).arg("4").output()?;
        assert_eq!(String::from_utf8_lossy(&attrs.stdout).trim(), "GUID:48,49,53,56,60", "{name}");
    }
    Ok(())
}

/// A damaged copy is repaired with a change, to what `sgdisk` has no complaint about.
#[test]
fn a_damaged_copy_is_repaired_as_sgdisk_would() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        println!("SKIP: {obstacle}");
        return Ok(());
    }
    let scratch = Scratch::new("gpt-bits")?;
    let path = scratch.path().join("disk");
    Disk::create(&path, &spec(SectorSize::B512))?;
    let whole = fs::read(&path)?;
    let dump = dumped(&path)?;
    // Header and entries of the primary copy, and of the backup.
    for (from, to) in [
        (512, 1024),
        (1024, 1536),
        (whole.len() - 512, whole.len()),
        (whole.len() - 33 * 512, whole.len() - 512),
    ] {
        let mut broken = whole.clone();
        broken[from..to].fill(0xA5);
        File::create(&path)?.write_all(&broken)?;
        gpt_edit::set_attributes(
            &HostRegion::new(&path),
            &[AttributeChange { index: 2, mask: 1 << 50, value: 1 << 50 }],
        )?;
        verified(&path)?;
        assert_eq!((dumped(&path)?, attributes(&path, 2)?), (dump.clone(), 1 << 50));
        let table = gpt::parse(&fs::read(&path)?)?;
        assert_eq!((table.copy, table.partitions.len()), (gpt::TableCopy::Primary, 3));
    }
    Ok(())
}
