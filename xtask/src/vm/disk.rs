//! The disk of a machine: GRUB, two slots, and the partition that outlives upgrades.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;

use crate::digest;
use crate::disk::{sfdisk, uuid};
use crate::grub::{BiosBoot, install_bios};
use crate::host::{MKE2FS, run};
use crate::rootfs::Image;
use crate::scratch::Scratch;
use crate::vm::boot_partition;

const MIB: u64 = 1 << 20;
const CORE: (u64, u64) = (MIB, MIB);
const BOOT: (u64, u64) = (2 * MIB, 16 * MIB);
const SLOT_A: u64 = 18 * MIB;
const DATA_BYTES: u64 = 128 * MIB;
/// "BIOS boot" of the GUIDs that GRUB defines; its core lies there.
const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
/// "Linux filesystem data".
const LINUX_DATA: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// Who a machine is. This is on its data partition, as the images are the same for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of its Node, and of the host.
    pub name: String,
    /// Credentials of its kubelet.
    pub kubeconfig: PathBuf,
    /// Port of the API server on the machine that QEMU runs on.
    pub api_port: u16,
    /// Whether it has an API server of its own: a way to the only one there is, at the usual address.
    pub control_plane: bool,
}

/// A disk in a sparse file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisk {
    path: PathBuf,
    slot_bytes: u64,
}

impl VmDisk {
    /// Makes the disk at `path` with `image` in slot A; slot B, of the same size, is empty.
    pub fn create(path: &Path, identity: &Identity, image: &Image) -> Result<Self> {
        let scratch = Scratch::new("disk")?;
        let slot_bytes = image.bytes;
        ensure!(slot_bytes.is_multiple_of(MIB), "{} is not of whole MiB", image.path.display());
        let disk = Self { path: path.to_owned(), slot_bytes };
        File::create_new(path)
            .and_then(|file| file.set_len(disk.data() + DATA_BYTES + MIB))
            .with_context(|| format!("cannot create {}", path.display()))?;
        disk.partition(&identity.name)?;
        install_bios(path, BiosBoot { offset: CORE.0, bytes: CORE.1 }, "(hd0,gpt2)")?;
        let boot = scratch.path().join("boot.fat");
        boot_partition::make(&boot, BOOT.1, scratch.path())?;
        disk.fill(BOOT.0, &boot)?;
        disk.fill(SLOT_A, &image.path)?;
        let data = scratch.path().join("data.ext4");
        data_partition(&data, identity, &scratch.path().join("data"))?;
        disk.fill(disk.data(), &data)?;
        Ok(disk)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of all that a slot holds now.
    pub fn slot_digest(&self, slot: Slot) -> Result<Sha256Digest> {
        let (offset, bytes) = self.slot(slot);
        let mut disk = File::open(&self.path)?;
        disk.seek(SeekFrom::Start(offset))?;
        Ok(digest::of_reader(io::Read::take(disk, bytes))?)
    }

    /// Where a slot begins and how long it is, in bytes.
    fn slot(&self, slot: Slot) -> (u64, u64) {
        match slot {
            Slot::A => (SLOT_A, self.slot_bytes),
            Slot::B => (SLOT_A + self.slot_bytes, self.slot_bytes),
        }
    }

    fn data(&self) -> u64 {
        SLOT_A + 2 * self.slot_bytes
    }

    fn partition(&self, identity: &str) -> Result<()> {
        let (a, b) = (self.slot(Slot::A), self.slot(Slot::B));
        let partitions = [
            ("bios-boot", BIOS_BOOT, CORE),
            ("monok8s-boot", LINUX_DATA, BOOT),
            ("rootfs-a", LINUX_DATA, a),
            ("rootfs-b", LINUX_DATA, b),
            ("data", LINUX_DATA, (self.data(), DATA_BYTES)),
        ];
        let mut script = format!("label: gpt\nlabel-id: {}\nunit: sectors\n", uuid(identity));
        for (name, kind, (offset, bytes)) in partitions {
            let (start, size) = (offset / 512, bytes / 512);
            let id = uuid(&format!("{identity}/{name}"));
            // Writing to a String cannot fail.
            let _ = writeln!(script, "start={start}, size={size}, type={kind}, uuid={id}, name={name}");
        }
        sfdisk(&self.path, &script)
    }

    /// Copies the file `from` to `offset`; holes stay holes.
    fn fill(&self, offset: u64, from: &Path) -> Result<()> {
        let mut source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mut disk = File::options().write(true).open(&self.path)?;
        let mut at = 0;
        while let Some((start, end)) = next_extent(&source, at)? {
            source.seek(SeekFrom::Start(start))?;
            disk.seek(SeekFrom::Start(offset + start))?;
            let length = end - start;
            let copied = io::copy(&mut io::Read::take(&mut source, length), &mut disk)?;
            ensure!(copied == length, "{} became shorter", from.display());
            at = end;
        }
        Ok(())
    }
}

/// The next part of a file that is no hole.
fn next_extent(file: &File, from: u64) -> Result<Option<(u64, u64)>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(start) => Ok(Some((start, rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file system for what outlives upgrades, with the machine's identity in it.
fn data_partition(path: &Path, identity: &Identity, tree: &Path) -> Result<()> {
    let node = tree.join("node");
    fs::create_dir_all(&node)?;
    let environment = format!("NODE_NAME={}\nAPI_PORT={}\n", identity.name, identity.api_port);
    fs::write(node.join("env"), environment)?;
    fs::copy(&identity.kubeconfig, node.join("kubeconfig"))
        .with_context(|| format!("cannot read {}", identity.kubeconfig.display()))?;
    if identity.control_plane {
        fs::write(node.join("control-plane"), "")?;
    }
    File::create(path)?.set_len(DATA_BYTES)?;
    let mut make = Command::new(MKE2FS.locate()?);
    make.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d"]).arg(tree).arg(path);
    run(&mut make).map(drop)
}
