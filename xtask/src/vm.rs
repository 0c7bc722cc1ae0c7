//! Nodes that really start: disks with GRUB and two slots, images with a kernel, systemd, containerd and
//! a kubelet, in QEMU, against the control plane on this machine.
//!
//! - [`BaseTree`] is the Debian that every image is made of, built once and kept in `target/`;
//! - [`NodeImage`] says what an image of a version is like, or what is wrong with it; an [`ImageLibrary`]
//!   builds it;
//! - [`VmDisk`] is a machine's disk, [`Vm`] the machine;
//! - [`VmCluster`] puts machines and control plane together.
//!
//! Everything runs under QEMU's own translator (TCG), so that no `/dev/kvm` is needed.

mod archive;
mod base;
mod boot_partition;
mod cluster;
mod disk;
mod guest;
mod image;
mod qemu;
mod recipe;
mod tree;

pub use base::BaseTree;
pub use cluster::VmCluster;
pub use disk::{Identity, VmDisk};
pub use guest::{GuestAgent, GuestOutput};
pub use image::{Defect, ImageLibrary, NodeImage};
pub use qemu::Vm;

use std::path::Path;

use anyhow::{Result, bail};

use crate::grub::{GRUB_EDITENV, GRUB_MKIMAGE, PARTS as GRUB_PARTS};
use crate::host::{self, DEBUGFS, LOSETUP, MKE2FS, Program, SETPRIV, SFDISK, STRIP, UNSHARE};

/// What machines and their images are made with.
pub const PROGRAMS: [Program; 15] = [
    MKE2FS,
    DEBUGFS,
    SFDISK,
    LOSETUP,
    SETPRIV,
    UNSHARE,
    STRIP,
    QEMU,
    PASST,
    Program { name: "mmdebstrap", package: "mmdebstrap" },
    GRUB_MKIMAGE,
    GRUB_EDITENV,
    MKFS_FAT,
    MCOPY,
    TAR,
];

pub(crate) use crate::host::{MCOPY, MKFS_VFAT as MKFS_FAT, QEMU_X86_64 as QEMU};
/// Connects a machine in QEMU with the loopback interface of this one.
pub(crate) const PASST: Program = Program { name: "passt", package: "passt" };
/// Writes the layers of container images.
pub(crate) const TAR: Program = Program { name: "tar", package: "tar" };

/// Why no machine can be started here, if none can. Installs, as root, what can be installed.
#[must_use]
pub fn obstacle() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!(
            "the images of virtual machines are for x86_64, this is {}",
            std::env::consts::ARCH
        ));
    }
    if !host::is_root() {
        return Some("the root file system of a virtual machine can only be made by root".to_owned());
    }
    if let Err(error) = host::provide(&PROGRAMS) {
        return Some(format!("{error:#}"));
    }
    let parts = Program { name: GRUB_PARTS, package: "grub-pc-bin" };
    host::provide_directory(parts).err().map(|error| format!("{error:#}"))
}

/// Builds an image of each version into `directory`, and prints what it built.
pub async fn build_images(versions: &[String], directory: &Path) -> Result<()> {
    if let Some(reason) = obstacle() {
        bail!("no image can be built here: {reason}");
    }
    std::fs::create_dir_all(directory)?;
    let library = ImageLibrary::open().await?;
    for version in versions {
        let path = directory.join(format!("monok8s-{version}.ext4"));
        let image = library.build(&NodeImage::of(version), &path).await?;
        let artifact = image.compress_with_index(&directory.join(format!("monok8s-{version}.ext4.zst")))?;
        println!("{}  {} bytes  {}", image.path.display(), image.bytes, image.digest);
        println!("{}  {} bytes  {}", artifact.path.display(), artifact.bytes, artifact.digest);
    }
    Ok(())
}
