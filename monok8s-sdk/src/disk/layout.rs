//! Where the slots of a machine are looked for.

use std::path::PathBuf;

use super::gpt::{Guid, Partition};

/// How the slots are recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// The disk that holds both slots.
    pub disk: DiskSource,
    /// The partition of slot A.
    pub a: PartitionId,
    /// The partition of slot B.
    pub b: PartitionId,
}

/// Where the disk with the slots is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// The one disk that holds the partition named by `root=` of the kernel command line; if that
    /// names none, the disk of the device mounted as `/`.
    BootedRoot,
    /// This device or disk image, a path as this process sees it.
    Path(PathBuf),
}

/// How a partition is named. Never by file system label or UUID: both slots may hold the same
/// image, and then share those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionId {
    /// By its GUID, the PARTUUID.
    Guid(Guid),
    /// By its name, the PARTLABEL, which must be unique on the disk.
    Label(String),
}

impl Default for SlotLayout {
    /// The partitions labelled `rootfs-a` and `rootfs-b` on the disk of the booted root.
    fn default() -> Self {
        Self {
            disk: DiskSource::BootedRoot,
            a: PartitionId::Label("rootfs-a".to_owned()),
            b: PartitionId::Label("rootfs-b".to_owned()),
        }
    }
}

impl std::fmt::Display for PartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guid(guid) => write!(f, "PARTUUID={guid}"),
            Self::Label(label) => write!(f, "PARTLABEL={label}"),
        }
    }
}

impl PartitionId {
    pub(super) fn names(&self, partition: &Partition) -> bool {
        match self {
            Self::Guid(guid) => partition.guid == *guid,
            Self::Label(label) => partition.name == *label,
        }
    }
}
