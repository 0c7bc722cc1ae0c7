//! Which slot a machine runs from. Pure: command line, mounts and devices in, slot out.

use super::host::{BlockDevice, Mount};
use super::layout::PartitionId;
use super::slots::{SlotPartition, SlotsError};
use super::target::DeviceNumber;
use crate::slot::Slot;

/// The `root=` of a kernel command line, as far as it identifies a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Root {
    Partition(PartitionId),
    /// A device by the kernel's name.
    Device(String),
    /// A form that does not identify a partition, such as a file system UUID.
    Other(String),
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Partition(id) => id.fmt(f),
            Self::Device(name) => write!(f, "/dev/{name}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// The last `root=` counts, as for the kernel.
pub(super) fn root_parameter(command_line: &str) -> Option<Root> {
    let root = command_line.split_whitespace().filter_map(|word| word.strip_prefix("root=")).next_back()?;
    let root = root.trim_matches('"');
    let partition = if let Some(guid) = root.strip_prefix("PARTUUID=") {
        guid.parse().ok().map(|guid| Root::Partition(PartitionId::Guid(guid)))
    } else if let Some(label) = root.strip_prefix("PARTLABEL=") {
        Some(Root::Partition(PartitionId::Label(label.to_owned())))
    } else {
        let name = root.strip_prefix("/dev/").filter(|name| !name.contains('/'));
        name.map(|name| Root::Device(name.to_owned()))
    };
    Some(partition.unwrap_or_else(|| Root::Other(root.to_owned())))
}

/// Which slot is booted: what the command line names, checked against the device of `/`.
pub(super) fn booted(
    root: Option<&Root>,
    mounts: Option<&[Mount]>,
    devices: &[BlockDevice],
    a: &SlotPartition,
    b: &SlotPartition,
    disk: &std::path::Path,
) -> Result<Slot, SlotsError> {
    let slots = [a, b];
    let unexpected = |root: String| SlotsError::UnexpectedDisk { root, disk: disk.to_owned() };
    let named = match root {
        None | Some(Root::Other(_)) => None,
        Some(root) => {
            let slot = slots.iter().find(|slot| slot.is_root(root, devices));
            Some(slot.ok_or_else(|| unexpected(root.to_string()))?.slot)
        }
    };
    let mounted = match mounts.and_then(device_of_root) {
        // No device: an overlay or the like; or the slots are in a disk image and have none.
        None => None,
        Some(_) if slots.iter().all(|slot| slot.device.number().is_none()) => None,
        Some(number) => {
            let slot = slots.iter().find(|slot| slot.carries(number, devices));
            Some(slot.ok_or_else(|| unexpected(format!("device {number}")))?.slot)
        }
    };
    match (named, mounted) {
        (Some(command_line), Some(mounted)) if command_line != mounted => {
            Err(SlotsError::Contradiction { command_line, mounted })
        }
        (Some(slot), _) | (None, Some(slot)) => Ok(slot),
        (None, None) => Err(match root {
            Some(root) => SlotsError::UnsupportedRoot { root: root.to_string() },
            None => SlotsError::BootedUnknown,
        }),
    }
}

/// The device mounted as `/`: of several mounts there, the last one is on top.
pub(super) fn device_of_root(mounts: &[Mount]) -> Option<DeviceNumber> {
    let top = mounts.iter().rev().find(|mount| mount.mount_point == "/")?;
    (top.number.major != 0).then_some(top.number)
}

impl SlotPartition {
    fn is_root(&self, root: &Root, devices: &[BlockDevice]) -> bool {
        match root {
            Root::Partition(id) => id.names(&self.partition),
            Root::Device(name) => devices
                .iter()
                .any(|device| device.name == *name && Some(device.number) == self.device.number()),
            Root::Other(_) => false,
        }
    }

    /// Whether the device `number` is this slot or is built directly on it (dm-verity).
    fn carries(&self, number: DeviceNumber, devices: &[BlockDevice]) -> bool {
        let own = self.device.number();
        let number_of =
            |name: &String| devices.iter().find(|device| device.name == *name).map(|device| device.number);
        own == Some(number)
            || devices
                .iter()
                .filter(|device| Some(device.number) == own)
                .flat_map(|device| &device.holders)
                .any(|holder| number_of(holder) == Some(number))
    }
}
