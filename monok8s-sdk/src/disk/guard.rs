//! The gate to a writable slot.

use std::path::PathBuf;
use std::sync::Arc;

use super::direct::DirectTarget;
use super::host::{BlockDevice, HostError, HostView, Mount};
use super::pace::{PacedTarget, Throttle};
use super::slots::{SlotDevice, SlotMap, SlotPartition};
use super::target::{BlockTarget, Bytes, DeviceNumber, DiskError};
use crate::api::FailureReason;
use crate::slot::Slot;

/// A slot that may be written: it is not the booted one, nothing uses it, and this value holds it
/// exclusively (as far as it is a device) until it is dropped.
///
/// [`SlotMap::open_for_writing`] is the only way to get one.
pub struct InactiveSlot {
    slot: Slot,
    target: Arc<dyn BlockTarget>,
}

impl std::fmt::Debug for InactiveSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InactiveSlot({} {})", self.slot, self.target.description())
    }
}

/// Why a slot must not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// It is the slot that the machine runs from.
    #[error("slot {slot} ({device}) is booted: the machine runs from it, write slot {} instead", slot.other())]
    Booted {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
    },
    /// It is mounted.
    #[error("slot {slot} ({device}) is mounted at {mount_point}: unmount it first")]
    Mounted {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// Where.
        mount_point: String,
    },
    /// It is in use as swap.
    #[error(
        "slot {slot} ({device}) is in use as swap: swapoff it first, and check that the slots are the right partitions"
    )]
    Swap {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
    },
    /// Another device is built on it.
    #[error("slot {slot} ({device}) is held by {}: remove that device first", holders.join(", "))]
    Held {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// The kernel's names of the devices built on it.
        holders: Vec<String>,
    },
    /// The kernel holds it for a user that cannot be named.
    #[error("slot {slot} ({device}) is in use: another writer, mount or volume holds it exclusively")]
    InUse {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// The refusal.
        source: DiskError,
    },
    /// There is no device node to write through.
    #[error("slot {slot} has no device: the kernel shows no partition of {} at byte {offset}; make one with `partprobe`, or `losetup --find --offset {offset} --sizelimit {length}` for a disk image", disk.display())]
    NoDevice {
        /// The slot.
        slot: Slot,
        /// The disk.
        disk: PathBuf,
        /// Where the partition starts on it, in bytes.
        offset: u64,
        /// The partition's size in bytes.
        length: u64,
    },
    /// The device has another size than the partition table says.
    #[error(
        "slot {slot} ({device}) has {found} bytes, but the partition table says {expected}: reread the table with `partprobe`"
    )]
    SizeChanged {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// The partition's size in bytes.
        expected: u64,
        /// The device's size in bytes.
        found: u64,
    },
    /// The image does not fit.
    #[error("slot {slot} ({device}, {}) is too small for an image of {} expanded: repartition, or choose an image whose `size` fits", Bytes(*slot_size), Bytes(*image_size))]
    TooSmall {
        /// The slot.
        slot: Slot,
        /// Its device.
        device: String,
        /// The slot's size in bytes.
        slot_size: u64,
        /// The expanded image's size in bytes, as far as it is known.
        image_size: u64,
    },
    /// The host's files cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The slot cannot be opened.
    #[error("cannot open slot {slot}")]
    Open {
        /// The slot.
        slot: Slot,
        /// Why.
        source: DiskError,
    },
}

impl GuardError {
    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Booted { .. } => FailureReason::SlotIsBooted,
            Self::Mounted { .. } | Self::Swap { .. } | Self::Held { .. } | Self::InUse { .. } => {
                FailureReason::SlotInUse
            }
            Self::NoDevice { .. } | Self::SizeChanged { .. } => FailureReason::UnexpectedDevice,
            Self::TooSmall { .. } => FailureReason::ImageTooLarge,
            Self::Host(_) => FailureReason::HostUnreadable,
            Self::Open { source, .. } => source.reason(),
        }
    }
}

impl SlotMap {
    /// Opens a slot for writing, if nothing speaks against it. Looks at the host again first.
    pub fn open_for_writing(&self, host: &HostView, slot: Slot) -> Result<InactiveSlot, GuardError> {
        let chosen = self.get(slot);
        if self.booted().slot == slot {
            return Err(GuardError::Booted { slot, device: chosen.name() });
        }
        let mounts = host.mounts()?.unwrap_or_default();
        refuse_used(chosen, &mounts, &swap_devices(host)?, &host.block_devices()?)?;
        let target = chosen.open()?;
        if target.size() != chosen.partition.length {
            return Err(GuardError::SizeChanged {
                slot,
                device: chosen.name(),
                expected: chosen.partition.length,
                found: target.size(),
            });
        }
        Ok(InactiveSlot { slot, target: Arc::new(target) })
    }

    /// [`open_for_writing`](Self::open_for_writing) with the slot that is not booted.
    pub fn open_inactive(&self, host: &HostView) -> Result<InactiveSlot, GuardError> {
        self.open_for_writing(host, self.inactive().slot)
    }
}

/// The devices in use as swap. A name without a device, a swap file's, is not one of them.
fn swap_devices(host: &HostView) -> Result<Vec<String>, HostError> {
    let names = host.swaps()?;
    Ok(names.iter().filter_map(|path| path.strip_prefix("/dev/")).map(str::to_owned).collect())
}

/// The kernel refuses the exclusive open in these cases too; this says who the user is.
fn refuse_used(
    chosen: &SlotPartition,
    mounts: &[Mount],
    swaps: &[String],
    devices: &[BlockDevice],
) -> Result<(), GuardError> {
    let (slot, device) = (chosen.slot, chosen.name());
    let number: Option<DeviceNumber> = chosen.device.number();
    let Some(number) = number else { return Ok(()) };
    if let Some(mount) = mounts.iter().find(|mount| mount.number == number) {
        return Err(GuardError::Mounted { slot, device, mount_point: mount.mount_point.clone() });
    }
    let Some(own) = devices.iter().find(|candidate| candidate.number == number) else { return Ok(()) };
    if swaps.contains(&own.name) {
        return Err(GuardError::Swap { slot, device });
    }
    if !own.holders.is_empty() {
        return Err(GuardError::Held { slot, device, holders: own.holders.clone() });
    }
    Ok(())
}

impl SlotPartition {
    /// What an operator would call it.
    fn name(&self) -> String {
        match &self.device {
            SlotDevice::Device { path, .. } => path.display().to_string(),
            SlotDevice::FileWindow { path } => {
                format!("{}, partition {}", path.display(), self.partition.index)
            }
            SlotDevice::NoNode { disk } => {
                format!("partition {} of {}", self.partition.index, disk.display())
            }
        }
    }

    fn open(&self) -> Result<DirectTarget, GuardError> {
        let (slot, partition) = (self.slot, &self.partition);
        match &self.device {
            SlotDevice::Device { path, number } => DirectTarget::open_device(path, Some(*number)),
            SlotDevice::FileWindow { path } => {
                DirectTarget::open_file_window(path, partition.offset, partition.length)
            }
            SlotDevice::NoNode { disk } => {
                let (offset, length) = (partition.offset, partition.length);
                return Err(GuardError::NoDevice { slot, disk: disk.clone(), offset, length });
            }
        }
        .map_err(|source| match source {
            DiskError::Busy { .. } => GuardError::InUse { slot, device: self.name(), source },
            source => GuardError::Open { slot, source },
        })
    }
}

impl InactiveSlot {
    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.target.size()
    }

    /// What an operator would call it, such as `/dev/sda3`.
    #[must_use]
    pub fn description(&self) -> &str {
        self.target.description()
    }

    /// The storage to write to.
    #[must_use]
    pub fn target(&self) -> &Arc<dyn BlockTarget> {
        &self.target
    }

    /// The same slot, written and read back no faster than `throttle` grants.
    #[must_use]
    pub fn paced(self, throttle: &Throttle) -> Self {
        Self { slot: self.slot, target: Arc::new(PacedTarget::new(self.target, throttle.clone())) }
    }

    /// Refuses an image of `image_size` expanded bytes that does not fit.
    pub fn require_room(&self, image_size: u64) -> Result<(), GuardError> {
        if image_size <= self.size() {
            return Ok(());
        }
        Err(GuardError::TooSmall {
            slot: self.slot,
            device: self.description().to_owned(),
            slot_size: self.size(),
            image_size,
        })
    }

    /// A slot on storage of the caller's making, for tests that replace the disk.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn on_test_storage(slot: Slot, target: Arc<dyn BlockTarget>) -> Self {
        Self { slot, target }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gpt::Partition;
    use super::*;

    #[test]
    fn a_used_device_is_refused_with_its_user_named() {
        let guid = "a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0".parse().unwrap();
        let number = DeviceNumber { major: 8, minor: 3 };
        let chosen = SlotPartition {
            slot: Slot::B,
            partition: Partition {
                index: 3,
                name: "b".into(),
                guid,
                kind: guid,
                offset: 0,
                length: 512,
                attributes: 0,
            },
            device: SlotDevice::Device { path: "/dev/sda3".into(), number },
        };
        let device = |holders: &[&str]| BlockDevice {
            name: "sda3".into(),
            number,
            size: 512,
            partition_of: None,
            holders: holders.iter().map(ToString::to_string).collect(),
            backing: None,
        };
        let mount = Mount { number, mount_point: "/mnt".into() };
        let elsewhere = Mount { number: DeviceNumber { major: 8, minor: 2 }, mount_point: "/".into() };
        let text = |mounts: &[Mount], swaps: &[String], holders: &[&str]| {
            refuse_used(&chosen, mounts, swaps, &[device(holders)]).map_err(|refused| refused.to_string())
        };
        assert_eq!(text(std::slice::from_ref(&elsewhere), &["sdb3".into()], &[]), Ok(()));
        assert_eq!(
            text(&[elsewhere, mount], &[], &[]),
            Err("slot B (/dev/sda3) is mounted at /mnt: unmount it first".into())
        );
        assert!(text(&[], &["sda3".into()], &[]).unwrap_err().contains("swap"));
        assert!(text(&[], &[], &["dm-0", "md1"]).unwrap_err().contains("held by dm-0, md1"));
    }
}
