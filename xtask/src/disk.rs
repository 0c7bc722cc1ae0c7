//! Disks of simulated nodes: a file with a real GPT, and loop devices on it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;

use crate::digest;
use crate::host::{LOSETUP, SFDISK, is_root};

const MIB: u64 = 1 << 20;
/// "Linux filesystem data"; UEFI leaves type GUIDs to operating systems.
const LINUX_DATA: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// Size of a logical sector, the unit in which a GPT counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectorSize {
    /// What nearly every disk presents.
    B512,
    /// Native 4Kn disks. Making one takes root: only a loop device can present it.
    B4096,
}

impl SectorSize {
    const fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// What a disk looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Every identifier on the disk follows from this, usually the node's name.
    pub identity: String,
    /// Size of each root partition; whole MiB.
    pub slot_bytes: u64,
    /// Size of the data partition; whole MiB.
    pub data_bytes: u64,
    /// Logical sectors.
    pub sector_size: SectorSize,
}

/// A partition of a [`Disk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// PARTLABEL: `rootfs-a`, `rootfs-b` or `data`.
    pub name: &'static str,
    /// PARTUUID, lower case as under `/dev/disk/by-partuuid`.
    pub partuuid: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
}

/// A disk image with partitions `rootfs-a`, `rootfs-b` and `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The backing file.
    pub path: PathBuf,
    /// Logical sectors of the partition table.
    pub sector_size: SectorSize,
    slots: [Partition; 2],
    /// The partition that survives upgrades.
    pub data: Partition,
}

impl Disk {
    /// Creates a sparse file at `path` and partitions it.
    ///
    /// # Errors
    /// `sfdisk` is missing or refuses, the file exists already, or 4096-byte sectors were asked for
    /// without root.
    pub fn create(path: &Path, spec: &DiskSpec) -> Result<Self> {
        let partition = |name: &'static str, offset: u64, bytes: u64| Partition {
            name,
            partuuid: uuid(&format!("{}/{name}", spec.identity)),
            offset,
            bytes,
        };
        let slot_a = partition("rootfs-a", MIB, spec.slot_bytes);
        let slot_b = partition("rootfs-b", slot_a.offset + slot_a.bytes, spec.slot_bytes);
        let data = partition("data", slot_b.offset + slot_b.bytes, spec.data_bytes);
        // The last MiB is for the backup table.
        let bytes = data.offset + data.bytes + MIB;
        File::create_new(path)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("cannot create {}", path.display()))?;
        let disk =
            Self { path: path.to_owned(), sector_size: spec.sector_size, slots: [slot_a, slot_b], data };
        disk.write_table(&spec.identity)?;
        Ok(disk)
    }

    /// The partition of a slot.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> &Partition {
        let [a, b] = &self.slots;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// Every partition, in order.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.slots.iter().chain([&self.data])
    }

    /// Zeroes the first MiB of a slot and flushes it.
    pub fn erase(&self, slot: Slot) -> Result<()> {
        let mut disk = OpenOptions::new().write(true).open(&self.path)?;
        disk.seek(SeekFrom::Start(self.slot(slot).offset))?;
        disk.write_all(&vec![0; usize::try_from(MIB)?])?;
        Ok(disk.sync_all()?)
    }

    /// Writes the file `image` to the start of a slot and flushes it.
    pub fn install(&self, slot: Slot, image: &Path) -> Result<()> {
        let partition = self.slot(slot);
        let mut source = File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
        let length = source.metadata()?.len();
        if length > partition.bytes {
            bail!(
                "{} ({length} bytes) does not fit {} ({} bytes)",
                image.display(),
                partition.name,
                partition.bytes
            );
        }
        let mut disk = OpenOptions::new().write(true).open(&self.path)?;
        disk.seek(SeekFrom::Start(partition.offset))?;
        io::copy(&mut source, &mut disk)?;
        Ok(disk.sync_all()?)
    }

    /// Reads the first `bytes` of a slot.
    pub fn read(&self, slot: Slot, bytes: u64) -> Result<impl Read + use<>> {
        let mut disk =
            File::open(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        let partition = self.slot(slot);
        disk.seek(SeekFrom::Start(partition.offset))?;
        Ok(disk.take(bytes.min(partition.bytes)))
    }

    /// SHA-256 of the first `bytes` of a slot.
    pub fn digest(&self, slot: Slot, bytes: u64) -> Result<Sha256Digest> {
        Ok(digest::of_reader(self.read(slot, bytes)?)?)
    }

    fn write_table(&self, identity: &str) -> Result<()> {
        let sector = self.sector_size.bytes();
        let mut script = format!("label: gpt\nlabel-id: {}\nunit: sectors\n", uuid(identity));
        for Partition { name, partuuid, offset, bytes } in self.partitions() {
            let line = format!(
                "start={}, size={}, type={LINUX_DATA}, uuid={partuuid}, name={name}\n",
                offset / sector,
                bytes / sector
            );
            script.push_str(&line);
        }
        match self.sector_size {
            SectorSize::B512 => sfdisk(&self.path, &script),
            SectorSize::B4096 => sfdisk(LoopDevice::attach(self, None)?.path(), &script),
        }
    }
}

/// The loop devices of one disk. Partition nodes (`/dev/loop0p1`) need a udev that containers lack, so
/// each partition has a device of its own on the same file.
#[derive(Debug)]
pub struct LoopDisk {
    /// The whole disk, partition table included.
    pub whole: LoopDevice,
    slots: [LoopDevice; 2],
    /// The data partition.
    pub data: LoopDevice,
}

impl LoopDisk {
    /// Attaches the disk and each of its partitions. See [`loop_obstacle`].
    pub fn attach(disk: &Disk) -> Result<Self> {
        Ok(Self {
            whole: LoopDevice::attach(disk, None)?,
            slots: [
                LoopDevice::attach(disk, Some(disk.slot(Slot::A)))?,
                LoopDevice::attach(disk, Some(disk.slot(Slot::B)))?,
            ],
            data: LoopDevice::attach(disk, Some(&disk.data))?,
        })
    }

    /// The device of a slot.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> &LoopDevice {
        let [a, b] = &self.slots;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }
}

/// What a disk that went away held from the start of a slot to its end. The device of that slot has
/// no size meanwhile, as the kernel leaves a device that is open and was pulled out.
#[derive(Debug)]
#[must_use = "the disk stays away until it is given back"]
pub struct LostTail {
    backing: PathBuf,
    device: PathBuf,
    slot_offset: u64,
    held: Vec<u8>,
}

impl LostTail {
    /// Takes away a slot and all that lies behind it, from under whoever has it open.
    pub fn take(disk: &Disk, loops: &LoopDisk, slot: Slot) -> Result<Self> {
        let partition = disk.slot(slot);
        let mut held = Vec::new();
        let mut file = File::open(&disk.path)?;
        file.seek(SeekFrom::Start(partition.offset))?;
        file.read_to_end(&mut held)?;
        let device = loops.slot(slot).path().to_owned();
        let lost = Self { backing: disk.path.clone(), device, slot_offset: partition.offset, held };
        // A write that the loop device has in hands makes the file longer again.
        for _ in 0..100 {
            OpenOptions::new().write(true).open(&lost.backing)?.set_len(lost.slot_offset)?;
            if lost.tell_the_kernel()? == 0 {
                return Ok(lost);
            }
        }
        bail!("{} does not lose its size", lost.device.display())
    }

    /// Puts everything back as it was when it was taken.
    pub fn give_back(self) -> Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.backing)?;
        file.seek(SeekFrom::Start(self.slot_offset))?;
        file.write_all(&self.held)?;
        file.sync_all()?;
        let size = self.tell_the_kernel()?;
        if size == 0 {
            bail!("{} does not get its size back", self.device.display());
        }
        Ok(())
    }

    /// Has the kernel look at the file's length; the size that the device then has.
    fn tell_the_kernel(&self) -> Result<u64> {
        losetup(|command| command.arg("--set-capacity").arg(&self.device))?;
        Ok(File::open(&self.device)?.seek(SeekFrom::End(0))?)
    }
}

/// An attached loop device. It is marked to detach when its last user closes it, and this value is a
/// user: it goes with the value, and also if this process is killed.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// The node under `/dev`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn attach(disk: &Disk, partition: Option<&Partition>) -> Result<Self> {
        let mut args = vec!["--find".to_owned(), "--show".to_owned()];
        args.push(format!("--sector-size={}", disk.sector_size.bytes()));
        if let Some(Partition { offset, bytes, .. }) = partition {
            args.extend([format!("--offset={offset}"), format!("--sizelimit={bytes}")]);
        }
        let file = disk.path.as_os_str();
        // Past the page cache of the backing file where its file system can do that.
        let direct = losetup(|command| command.args(&args).arg("--direct-io=on").arg(file));
        let node = match direct {
            Ok(node) => node,
            Err(_) => losetup(|command| command.args(&args).arg(file))?,
        };
        let path = PathBuf::from(node.trim());
        let open = File::open(&path).with_context(|| format!("cannot open {}", path.display()));
        // With the device held open this only asks the kernel to detach it after the last close.
        losetup(|command| command.arg("--detach").arg(&path))?;
        Ok(Self { path, _open: open? })
    }
}

/// Why loop devices cannot be used here, if they cannot.
#[must_use]
pub fn loop_obstacle() -> Option<String> {
    if !is_root() {
        return Some("loop devices need root".to_owned());
    }
    if let Err(error) = LOSETUP.locate() {
        return Some(error.to_string());
    }
    match OpenOptions::new().read(true).write(true).open("/dev/loop-control") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/loop-control cannot be opened: {error}")),
    }
}

fn losetup(arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<String> {
    let mut command = Command::new(LOSETUP.locate()?);
    let output = arguments(&mut command).output()?;
    if !output.status.success() {
        bail!("`losetup` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Partitions a disk as a script of `sfdisk` says.
pub(crate) fn sfdisk(target: &Path, script: &str) -> Result<()> {
    let mut child = Command::new(SFDISK.locate()?)
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(target)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`sfdisk` could not partition {}: {}", target.display(), said.trim());
    }
    Ok(())
}

/// A UUID that follows from `name`: version 8 of RFC 9562, custom content.
pub(crate) fn uuid(name: &str) -> String {
    let mut bytes = [0; 16];
    for (byte, from) in bytes.iter_mut().zip(Sha256Digest::of(name.as_bytes()).as_bytes()) {
        *byte = *from;
    }
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | (8 << 76) | (0b10 << 62);
    let hex = format!("{number:032x}");
    let group = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_well_formed_and_differ_by_name() {
        let one = uuid("node-1/rootfs-a");
        assert_eq!(one.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(&one[14..15], "8", "version: {one}");
        assert!(matches!(&one[19..20], "8" | "9" | "a" | "b"), "variant: {one}");
        assert_eq!(one, uuid("node-1/rootfs-a"));
        assert_ne!(one, uuid("node-1/rootfs-b"));
    }
}
