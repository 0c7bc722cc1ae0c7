//! Loaders that keep priority, tries and success of a slot in its partition's attributes.
//!
//! The bits are the authority. What they cannot carry, which attempt a trial is of and whether the
//! loader was seen to count, is in notes in a directory of the node, in two copies. Notes are written
//! before the bits, and belong to those that were written with them; where they do not, or cannot be
//! read, the bits alone still tell the order, a slot on trial and what ended a trial. So a guard that
//! has no data partition can send a bad trial back.
//!
//! A slot that was booted well needs no tries, and so shows nothing of the loader's counting. Until it
//! was seen to count, the slots are left countable, with 15 tries, which the first boot then proves.

mod bits;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use self::bits::{FULL, Known, MASK, Record};
use super::record_store::{StoreError, TwoCopies};
use super::{BootBackend, BootError, Capabilities, Change, LoaderStatus, TrialEvidence, TryCounting};
use crate::disk::gpt::{GptError, Guid};
use crate::disk::gpt_edit::{self, AttributeChange, GptEditError};
use crate::disk::{Directory, HostDirectory, HostRegion, Region, RegionLock, SlotMap};
use crate::slot::Slot;

pub use bits::{Bits, SlotBits};

const NAME: &str = "gpt";
/// The files of the notes, without the number of the copy.
const NOTES: &str = "gpt-bits";

/// Why bits or notes could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GptBitsError {
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] GptError),
    /// The table cannot be changed.
    #[error(transparent)]
    Edit(#[from] GptEditError),
    /// A slot's partition is not there.
    #[error("slot {slot} is missing: there is no single partition {guid} on {}", disk.display())]
    NoSlot {
        /// The slot.
        slot: Slot,
        /// Its PARTUUID.
        guid: Guid,
        /// The disk.
        disk: PathBuf,
    },
    /// No slot would be left.
    #[error("no slot would be left that may boot")]
    NoSlotLeft,
    /// The notes cannot be kept, without which a trial would have no attempt.
    #[error("cannot keep notes of the trial")]
    Notes(#[source] StoreError),
}

/// What the bits cannot carry. Unknown fields of later releases are ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Notes {
    /// The newest first, then the one before it: the bits may not have been written yet.
    records: Vec<Record>,
}

/// The state in a disk's partition table.
///
/// ```no_run
/// use monok8s_sdk::boot::BootBackend as _;
/// use monok8s_sdk::boot::gpt_bits::GptBits;
/// use monok8s_sdk::disk::{HostView, SlotLayout, SlotMap};
///
/// let slots = SlotMap::discover(&HostView::new("/"), &SlotLayout::default())?;
/// if GptBits::detect(&slots)? {
///     let loader = GptBits::open(&slots, "/var/lib/monok8s");
///     println!("next boot: {:?}", loader.status()?.next_boot());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GptBits {
    disk: Arc<dyn Region>,
    a: Guid,
    b: Guid,
    notes: TwoCopies,
    /// What this process wrote and could not note.
    unsaved: Mutex<Option<Record>>,
}

impl GptBits {
    /// The bits of a machine's slots, with notes in this directory. Nothing is read yet.
    #[must_use]
    pub fn open(slots: &SlotMap, notes: impl Into<PathBuf>) -> Self {
        let guid = |slot| slots.get(slot).partition.guid;
        let disk = Arc::new(HostRegion::new(slots.disk()));
        Self::in_region(disk, [guid(Slot::A), guid(Slot::B)], Arc::new(HostDirectory::new(notes)))
    }

    /// The bits of these partitions, slot A's and slot B's, with storage of the caller's making.
    #[must_use]
    pub fn in_region(disk: Arc<dyn Region>, [a, b]: [Guid; 2], notes: Arc<dyn Directory>) -> Self {
        let notes = TwoCopies::in_directory(notes, NOTES);
        Self { disk, a, b, notes, unsaved: Mutex::default() }
    }

    /// Whether some slot has a priority, so that a loader of this kind may be there.
    pub fn detect(slots: &SlotMap) -> Result<bool, GptBitsError> {
        let bits = Self::open(slots, Path::new("")).bits()?;
        Ok(bits.a.priority > 0 || bits.b.priority > 0)
    }

    /// What the table says, read now.
    pub fn bits(&self) -> Result<Bits, GptBitsError> {
        let [(_, a), (_, b)] = self.partitions()?;
        Ok(Bits { a, b })
    }

    fn partitions(&self) -> Result<[(u32, SlotBits); 2], GptBitsError> {
        let table = gpt_edit::read(&*self.disk)?;
        let find = |slot, guid| {
            let mut found = table.partitions.iter().filter(|partition| partition.guid == guid);
            match (found.next(), found.next()) {
                (Some(only), None) => Ok((only.index, SlotBits::of(only.attributes))),
                _ => Err(GptBitsError::NoSlot { slot, guid, disk: self.disk.path().to_owned() }),
            }
        };
        Ok([find(Slot::A, self.a)?, find(Slot::B, self.b)?])
    }

    /// The notes; `None` if they cannot be read. They are not needed to tell what boots.
    fn noted(&self) -> Option<Vec<Record>> {
        match self.notes.load() {
            Ok(None) => Some(Vec::new()),
            Ok(Some(bytes)) => serde_json::from_slice::<Notes>(&bytes).ok().map(|notes| notes.records),
            Err(_) => None,
        }
    }

    fn unsaved(&self) -> MutexGuard<'_, Option<Record>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, bits: Bits) -> LoaderStatus {
        let noted = self.noted();
        let is_readable = noted.is_some();
        let noted = noted.unwrap_or_default();
        let unsaved = self.unsaved().clone();
        if let Some(record) = unsaved.iter().chain(&noted).find(|record| record.belongs_to(bits)) {
            return record.at(bits);
        }
        let was_proven = noted.iter().any(|record| record.status.counting_seen == TryCounting::Proven);
        bits.infer(Known {
            counting: if was_proven { TryCounting::Proven } else { TryCounting::Unsupported },
            trial: noted.first().and_then(|record| record.status.trial),
            may_be_left_as_it_is: was_proven || !is_readable,
        })
    }

    fn write(&self, status: &LoaderStatus) -> Result<(), GptBitsError> {
        let [(a, now_a), (b, now_b)] = self.partitions()?;
        let now = Bits { a: now_a, b: now_b };
        let next = now.next(status);
        if next.a.priority.max(next.b.priority) == 0 {
            return Err(GptBitsError::NoSlotLeft);
        }
        let record = Record { status: status.clone(), bits: next };
        // Until the bits are written, those of now must tell what they tell now.
        let before = Record { status: self.read(now), bits: now };
        let saved = self.note(vec![record.clone(), before]);
        let is_trial = status.trial.is_some_and(|trial| trial.evidence == TrialEvidence::None);
        *self.unsaved() = match saved {
            Ok(()) => None,
            Err(error) if is_trial => return Err(GptBitsError::Notes(error)),
            Err(_) => Some(record),
        };
        let change = |index, bits: SlotBits| AttributeChange { index, mask: MASK, value: bits.attributes() };
        Ok(gpt_edit::set_attributes(&*self.disk, &[change(a, next.a), change(b, next.b)])?)
    }

    fn note(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(&Notes { records });
        let malformed = |source| StoreError::Malformed { path: PathBuf::from(NOTES), source };
        self.notes.save(&bytes.map_err(malformed)?)
    }
}

impl BootBackend for GptBits {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { max_tries: FULL }
    }

    fn status(&self) -> Result<LoaderStatus, BootError> {
        let bits = self.bits();
        let bits = bits.map_err(|source| BootError::Read { backend: NAME, source: source.into() })?;
        Ok(self.read(bits))
    }

    fn store(&self, change: &Change) -> Result<(), BootError> {
        self.write(change.status()).map_err(|source| match source {
            GptBitsError::Table(_) | GptBitsError::NoSlot { .. } => {
                BootError::Read { backend: NAME, source: source.into() }
            }
            _ => BootError::Write { backend: NAME, source: source.into() },
        })
    }

    fn exclusive(&self) -> Result<RegionLock, BootError> {
        self.disk.lock().map_err(|source| BootError::Locked { backend: NAME, source })
    }
}
