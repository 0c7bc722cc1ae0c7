//! Slots as a source of blocks: read beside their other users, never written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};

use super::pace::Throttle;
use super::slots::{SlotDevice, SlotMap};
use super::target::{Action, DiskError};
use crate::slot::Slot;

/// A slot that is only read, through the page cache: what is taken from it is checked by content.
#[derive(Debug)]
pub struct ReadOnlySlot {
    slot: Slot,
    file: File,
    base: u64,
    size: u64,
    name: String,
    throttle: Option<Throttle>,
}

impl SlotMap {
    /// Opens a slot for reading, booted or not, mounted or not.
    pub fn open_to_read(&self, slot: Slot) -> Result<ReadOnlySlot, DiskError> {
        let chosen = self.get(slot);
        let (path, base) = match &chosen.device {
            SlotDevice::Device { path, .. } => (path, 0),
            SlotDevice::FileWindow { path } | SlotDevice::NoNode { disk: path } => {
                (path, chosen.partition.offset)
            }
        };
        let failed = |source| DiskError::Open { path: path.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let end = seek(&file, SeekFrom::End(0)).map_err(|errno| failed(errno.into()))?;
        let size = chosen.partition.length.min(end.saturating_sub(base));
        Ok(ReadOnlySlot { slot, file, base, size, name: path.display().to_string(), throttle: None })
    }

    /// Opens the slots whose blocks may be used again in `slot`: the other one, then what is left of
    /// itself. One that cannot be opened has nothing to offer, costs a download, and is told to `refused`.
    pub fn open_to_reuse(&self, slot: Slot, mut refused: impl FnMut(Slot, &DiskError)) -> Vec<ReadOnlySlot> {
        let mut open = |slot| self.open_to_read(slot).inspect_err(|error| refused(slot, error)).ok();
        [slot.other(), slot].into_iter().filter_map(&mut open).collect()
    }
}

impl ReadOnlySlot {
    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The same slot, read no faster than `throttle` grants. What the page cache has counts too.
    #[must_use]
    pub fn paced(mut self, throttle: &Throttle) -> Self {
        self.throttle = Some(throttle.clone());
        self
    }

    /// Fills `buf` from `offset`.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            let (target, length) = (self.name.clone(), buf.len() as u64);
            return Err(DiskError::OutOfBounds { target, offset, length, size: self.size });
        }
        if let Some(throttle) = &self.throttle {
            throttle.wait(buf.len() as u64);
        }
        self.file
            .read_exact_at(buf, self.base + offset)
            .map_err(|source| DiskError::from_io(Action::Read, &self.name, offset, source))
    }
}

impl Drop for ReadOnlySlot {
    fn drop(&mut self) {
        // What was read once is of no use to anybody; memory that is needed elsewhere is.
        let length = std::num::NonZeroU64::new(self.size);
        let _ = fadvise(&self.file, self.base, length, Advice::DontNeed);
    }
}
