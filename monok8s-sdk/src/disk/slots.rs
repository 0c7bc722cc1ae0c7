//! Finding the two root partitions and the one that is booted.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use super::booted::{Root, booted, device_of_root, root_parameter};
use super::direct::DirectTarget;
use super::gpt::{self, GptError, Partition};
use super::host::{BlockDevice, HostError, HostView};
use super::layout::{DiskSource, PartitionId, SlotLayout};
use super::target::{DeviceNumber, DiskError};
use crate::slot::Slot;

/// Why the slots cannot be told apart. Nothing is written in any of these cases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotsError {
    /// The host's files cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The disk cannot be opened or read.
    #[error("cannot use the disk with the slots")]
    Disk(#[from] DiskError),
    /// The disk has no usable partition table.
    #[error("cannot find the slots on {disk}")]
    Table {
        /// The disk.
        disk: PathBuf,
        /// What is wrong with it.
        source: GptError,
    },
    /// No disk, or several, hold the booted root.
    #[error("{found} disks hold the booted root {root}, expected exactly one: name the disk with the slots")]
    NoSingleDisk {
        /// The `root=` of the kernel command line.
        root: String,
        /// How many disks hold it.
        found: usize,
    },
    /// The disk is not among the host's block devices.
    #[error("{} is not among the block devices in the host's sysfs: check the host's root and the path", disk.display())]
    UnknownDisk {
        /// The disk.
        disk: PathBuf,
    },
    /// A slot's partition does not exist.
    #[error("slot {slot} is missing: no partition {id} on {}; the disk has {present}", disk.display())]
    Missing {
        /// The slot.
        slot: Slot,
        /// What was looked for.
        id: PartitionId,
        /// The disk.
        disk: PathBuf,
        /// The labels that the disk's partitions do carry.
        present: String,
    },
    /// Several partitions answer to a slot's name.
    #[error("slot {slot} is ambiguous: partitions {indexes:?} on {} are all {id}; rename all but one, or name the slots by PARTUUID", disk.display())]
    Ambiguous {
        /// The slot.
        slot: Slot,
        /// What was looked for.
        id: PartitionId,
        /// The disk.
        disk: PathBuf,
        /// The numbers of the partitions found.
        indexes: Vec<u32>,
    },
    /// Both slots are one partition.
    #[error("slots A and B are both partition {index} of {}: give each its own", disk.display())]
    SamePartition {
        /// The disk.
        disk: PathBuf,
        /// The partition's number.
        index: u32,
    },
    /// Nothing says what was booted.
    #[error(
        "cannot tell which slot is booted: the kernel command line names no root partition and the device of / is no slot; boot with root=PARTUUID=..."
    )]
    BootedUnknown,
    /// `root=` is in a form that does not identify a partition.
    #[error("cannot tell which slot is booted from root={root}: boot with root=PARTUUID=... of the slot")]
    UnsupportedRoot {
        /// The `root=` of the kernel command line.
        root: String,
    },
    /// The machine runs from something that is no slot of this disk.
    #[error("the machine runs from {root}, which is neither slot of {}: slots are only written on the disk that the machine runs from", disk.display())]
    UnexpectedDisk {
        /// What the machine runs from.
        root: String,
        /// The disk with the slots.
        disk: PathBuf,
    },
    /// Command line and mounts disagree.
    #[error(
        "the kernel command line says slot {command_line} is booted, but / is mounted from slot {mounted}: nothing is written while they disagree, reboot"
    )]
    Contradiction {
        /// The slot that `root=` names.
        command_line: Slot,
        /// The slot whose device is mounted as `/`.
        mounted: Slot,
    },
}

/// The two slots of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    disk: PathBuf,
    booted: Slot,
    a: SlotPartition,
    b: SlotPartition,
}

/// One slot's partition and the way to its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPartition {
    /// The slot.
    pub slot: Slot,
    /// Its entry in the partition table.
    pub partition: Partition,
    /// Where it is read and written.
    pub device: SlotDevice,
}

/// The way to a slot's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotDevice {
    /// A partition's device, or a loop device that shows exactly the partition.
    Device {
        /// The device node, as this process sees it.
        path: PathBuf,
        /// Its identity.
        number: DeviceNumber,
    },
    /// Part of a disk image.
    FileWindow {
        /// The disk image.
        path: PathBuf,
    },
    /// The disk is a device, and the kernel shows no device for the partition.
    NoNode {
        /// The disk.
        disk: PathBuf,
    },
}

impl SlotMap {
    /// Finds the slots. Reads, and changes nothing.
    pub fn discover(host: &HostView, layout: &SlotLayout) -> Result<Self, SlotsError> {
        let devices = host.block_devices()?;
        let root = host.kernel_command_line()?.as_deref().and_then(root_parameter);
        let mounts = host.mounts()?;
        let disk = match &layout.disk {
            DiskSource::Path(path) => Disk::open(&devices, path.clone())?,
            DiskSource::BootedRoot => {
                let number = mounts.as_deref().and_then(device_of_root);
                Disk::of_root(host, &devices, &identified(root.clone(), number, &devices)?)?
            }
        };
        let slot = |slot, id| disk.slot(host, &devices, slot, id);
        let (a, b) = (slot(Slot::A, &layout.a)?, slot(Slot::B, &layout.b)?);
        if a.partition.index == b.partition.index {
            return Err(SlotsError::SamePartition { disk: disk.path, index: a.partition.index });
        }
        let booted = booted(root.as_ref(), mounts.as_deref(), &devices, &a, &b, &disk.path)?;
        Ok(Self { disk: disk.path, booted, a, b })
    }

    /// The disk that holds both slots.
    #[must_use]
    pub fn disk(&self) -> &std::path::Path {
        &self.disk
    }

    /// The slot that the machine runs from.
    #[must_use]
    pub fn booted(&self) -> &SlotPartition {
        self.get(self.booted)
    }

    /// The other slot.
    #[must_use]
    pub fn inactive(&self) -> &SlotPartition {
        self.get(self.booted.other())
    }

    /// One of the slots.
    #[must_use]
    pub fn get(&self, slot: Slot) -> &SlotPartition {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

/// The root as far as it leads to a disk: what the command line names, else the device of `/`.
fn identified(
    root: Option<Root>,
    mounted: Option<DeviceNumber>,
    devices: &[BlockDevice],
) -> Result<Root, SlotsError> {
    let unidentified = match root {
        Some(Root::Other(text)) => SlotsError::UnsupportedRoot { root: text },
        Some(root) => return Ok(root),
        None => SlotsError::BootedUnknown,
    };
    let device = devices.iter().find(|device| Some(device.number) == mounted);
    device.map(|device| Root::Device(device.name.clone())).ok_or(unidentified)
}

/// A disk under examination.
struct Disk {
    path: PathBuf,
    /// `None` for a disk image.
    device: Option<BlockDevice>,
    table: gpt::Table,
}

impl Disk {
    fn of_root(host: &HostView, devices: &[BlockDevice], root: &Root) -> Result<Self, SlotsError> {
        let mut holders: Vec<Self> = devices
            .iter()
            .filter(|device| device.partition_of.is_none() && device.size > 0)
            // Disks without a table or a medium are no candidates; neither is what cannot be read.
            .filter_map(|device| Self::open(devices, host.path("dev").join(&device.name)).ok())
            .filter(|disk| disk.holds(devices, root))
            .collect();
        match (holders.pop(), holders.len()) {
            (Some(disk), 0) => Ok(disk),
            (found, others) => Err(SlotsError::NoSingleDisk {
                root: root.to_string(),
                found: others + usize::from(found.is_some()),
            }),
        }
    }

    fn open(devices: &[BlockDevice], path: PathBuf) -> Result<Self, SlotsError> {
        let metadata =
            fs::metadata(&path).map_err(|source| DiskError::Open { path: path.clone(), source })?;
        let is_device = metadata.file_type().is_block_device();
        let (target, device) = if is_device {
            let number = DeviceNumber::from_raw(metadata.rdev());
            let device = devices.iter().find(|device| device.number == number).cloned();
            let device = device.ok_or_else(|| SlotsError::UnknownDisk { disk: path.clone() })?;
            (DirectTarget::open_device_to_read(&path)?, Some(device))
        } else {
            (DirectTarget::open_file(&path)?, None)
        };
        let table = gpt::read(&target).map_err(|source| SlotsError::Table { disk: path.clone(), source })?;
        Ok(Self { path, device, table })
    }

    fn holds(&self, devices: &[BlockDevice], root: &Root) -> bool {
        match root {
            Root::Partition(id) => self.table.partitions.iter().any(|partition| id.names(partition)),
            Root::Device(name) => devices.iter().any(|device| {
                let disk = device.partition_of.as_ref().map(|(disk, _)| disk);
                device.name == *name && disk == self.device.as_ref().map(|device| &device.name)
            }),
            Root::Other(_) => false,
        }
    }

    fn slot(
        &self,
        host: &HostView,
        devices: &[BlockDevice],
        slot: Slot,
        id: &PartitionId,
    ) -> Result<SlotPartition, SlotsError> {
        let found: Vec<&Partition> =
            self.table.partitions.iter().filter(|partition| id.names(partition)).collect();
        match found.as_slice() {
            [partition] => Ok(SlotPartition {
                slot,
                device: self.device_of(host, devices, partition),
                partition: (*partition).clone(),
            }),
            [] => {
                let present: Vec<&str> =
                    self.table.partitions.iter().map(|partition| partition.name.as_str()).collect();
                let (id, disk, present) = (id.clone(), self.path.clone(), format!("{present:?}"));
                Err(SlotsError::Missing { slot, id, disk, present })
            }
            several => Err(SlotsError::Ambiguous {
                slot,
                id: id.clone(),
                disk: self.path.clone(),
                indexes: several.iter().map(|partition| partition.index).collect(),
            }),
        }
    }

    fn device_of(&self, host: &HostView, devices: &[BlockDevice], partition: &Partition) -> SlotDevice {
        let Some(disk) = &self.device else {
            return SlotDevice::FileWindow { path: self.path.clone() };
        };
        match devices.iter().find(|device| shows(device, disk, partition)) {
            Some(device) => {
                SlotDevice::Device { path: host.path("dev").join(&device.name), number: device.number }
            }
            None => SlotDevice::NoNode { disk: self.path.clone() },
        }
    }
}

/// Whether `device` is the partition: a partition of the disk at that place, or a loop device on
/// the same file that begins and ends where the partition does.
fn shows(device: &BlockDevice, disk: &BlockDevice, partition: &Partition) -> bool {
    let same_place = match (&device.partition_of, &device.backing, &disk.backing) {
        (Some((parent, start)), _, _) => *parent == disk.name && *start == partition.offset,
        (None, Some(own), Some(disk)) => {
            own.file == disk.file && own.offset.checked_sub(disk.offset) == Some(partition.offset)
        }
        _ => false,
    };
    same_place && device.size == partition.length
}

impl SlotDevice {
    /// The device's number, if it is a device.
    #[must_use]
    pub fn number(&self) -> Option<DeviceNumber> {
        match self {
            Self::Device { number, .. } => Some(*number),
            Self::FileWindow { .. } | Self::NoNode { .. } => None,
        }
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
