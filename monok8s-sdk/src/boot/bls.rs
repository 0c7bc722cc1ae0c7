//! systemd-boot: the state in the names of boot entries (UAPI Boot Loader Specification, type 1).
//!
//! A slot that may boot has an entry in `loader/entries/` on the EFI system partition, a slot that
//! may not has none. The loader counts in the entry's name (systemd, "Automatic Boot Assessment"),
//! takes entries by their `sort-key`, and leaves those whose tries are used up to the last. So:
//!
//! - a slot on trial is `monok8s-b+1.conf`, with a sort-key before the other slot's, and with the
//!   attempt in a comment. It becomes `monok8s-b+0-1.conf` when it is booted;
//! - a confirmed slot is `monok8s-b.conf`, and is no longer counted: nothing passes it over;
//! - a trial that ended is `monok8s-b.ended-WORD`, which is no entry for the loader;
//! - `monok8s-counts` says that the loader was seen to count. An image's first entry is
//!   `monok8s-a+3.conf`, which the first boot turns into the proof.
//!
//! Every change is one rename, removal or new file at a time, each flushed, and each leaves a state
//! that is safe to stop in. FAT has no journal: a file that the power failed upon while it was
//! renamed may be there under both names. Two names of one entry, one of them without a counter, are
//! a confirmed slot; nothing is changed until a person has repaired the file system, as both names may
//! share one file. Any other two entries of one slot are an error: the loader would count in one and
//! boot the other.
//!
//! Kernel and initrd lie beside the entries, as the loader reads no other file system: [`kernel`].

#[cfg(test)]
mod crash_tests;
pub mod entry;
#[cfg(all(feature = "test-util", feature = "image"))]
pub(crate) mod fuzzing;
pub mod kernel;
#[cfg(any(test, feature = "test-util"))]
pub mod sd_boot;
#[cfg(test)]
mod stage_tests;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entry::{EntryName, EntryText, MAX_ENTRY_LEN};
#[cfg(test)]
use state::COUNTS;
pub use state::TRIES_FULL;
use state::{Change as FileChange, Entries};

use super::{BootBackend, BootError, Capabilities, Change, LoaderStatus, TrialEvidence, Tries};
use crate::disk::{Directory, HostDirectory, RegionLock};
use crate::slot::Slot;

const NAME: &str = "systemd-boot";
/// Where the entries are on the EFI system partition.
pub const ENTRIES: &str = "loader/entries";
/// Where our kernels are: in a directory for each slot.
pub const KERNELS: &str = "monok8s";
/// The file beside a slot's kernel that says how to boot it.
const STAGED: &str = "entry";

/// Why boot entries could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlsError {
    /// The directory or a file cannot be read.
    #[error("cannot read {}: mount the EFI system partition", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file cannot be written, renamed or removed.
    #[error("cannot change {}: see that the EFI system partition is writable and has space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A name that the loader reads as another entry than it looks.
    #[error(
        "{name:?} is no name for an entry of a slot: these are monok8s-a.conf, monok8s-a+LEFT.conf and monok8s-a+LEFT-DONE.conf; rename or remove it"
    )]
    Name {
        /// The name, or the beginning of it.
        name: String,
    },
    /// An entry that does not say what it should.
    #[error("the entry {name} cannot be used: {what}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Two files for one slot.
    #[error(
        "{first} and {second} are of one slot: the loader counts in one and may boot the other; run fsck.fat on the EFI system partition, and remove the one that is wrong"
    )]
    Twins {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// Two entries at one place, or no place before one.
    #[error("two entries cannot both have the sort-key {key}: give the one that boots first a lower one")]
    SameKey {
        /// The sort-key.
        key: String,
    },
    /// No slot may boot.
    #[error("there is no entry of a slot: install one as monok8s-a+3.conf")]
    NoEntry,
    /// A slot without a kernel on the EFI system partition.
    #[error("slot {slot} has no kernel on the EFI system partition: it is staged after the slot was written")]
    NothingStaged {
        /// The slot.
        slot: Slot,
    },
}

/// The state of a systemd-boot, or of another loader that counts in the names of entries.
#[derive(Clone, Debug)]
pub struct BlsEntries {
    entries: Arc<dyn Directory>,
    kernels: [Arc<dyn Directory>; 2],
}

impl BlsEntries {
    /// The entries on the EFI system partition (or extended boot partition) that is mounted at
    /// `esp`. Nothing is read yet.
    #[must_use]
    pub fn on_partition(esp: impl AsRef<Path>) -> Self {
        let directory = |path: PathBuf| -> Arc<dyn Directory> { Arc::new(HostDirectory::new(path)) };
        let kernels = Slot::BOTH.map(|slot| directory(esp.as_ref().join(kernel::directory(slot))));
        Self::in_directories(directory(esp.as_ref().join(ENTRIES)), kernels)
    }

    /// The entries on this partition, if there are any of slots.
    #[must_use]
    pub fn detect(esp: impl AsRef<Path>) -> Option<Self> {
        let found = Self::on_partition(esp);
        let names = found.entries.names().ok()?;
        let is_ours = |name: &String| !matches!(EntryName::parse(name), Ok(None));
        names.iter().any(is_ours).then_some(found)
    }

    /// The same in directories of the caller's making: that of the entries, and those of the kernels
    /// of slot A and B.
    #[must_use]
    pub fn in_directories(entries: Arc<dyn Directory>, kernels: [Arc<dyn Directory>; 2]) -> Self {
        Self { entries, kernels }
    }

    fn kernels(&self, slot: Slot) -> &dyn Directory {
        let [a, b] = &self.kernels;
        match slot {
            Slot::A => a.as_ref(),
            Slot::B => b.as_ref(),
        }
    }

    fn load(&self) -> Result<Entries, BlsError> {
        let failed = |path: PathBuf| |source| BlsError::Read { path, source };
        let mut names = self.entries.names().map_err(failed(self.entries.path().to_owned()))?;
        names.sort_unstable();
        let mut found = Entries::default();
        for name in names {
            // One byte more than fits: a longer file then fails its length check.
            let content = match EntryName::parse(&name)? {
                Some(_) => self.entries.read(&name, MAX_ENTRY_LEN as u64 + 1),
                None => Ok(None),
            };
            let content = content.map_err(failed(self.entries.path().join(&name)))?;
            found.take(&name, content.as_deref().unwrap_or_default())?;
        }
        found.check()?;
        Ok(found)
    }

    /// What a slot without an entry is to boot.
    fn staged(&self, slot: Slot) -> Option<EntryText> {
        let bytes = self.kernels(slot).read(STAGED, MAX_ENTRY_LEN as u64 + 1).ok()??;
        EntryText::parse(&bytes).ok()
    }

    /// An entry that is taken out, or gives way to an armed one. What it boots is kept first, so that it
    /// can be armed later: an installer's entry was never staged.
    fn keep_lines(&self, entries: &Entries, target: &LoaderStatus) -> Result<(), BlsError> {
        let armed = target.trial.filter(|trial| trial.evidence == TrialEvidence::None);
        for slot in Slot::BOTH {
            let stays = target.order.contains(&slot) && armed.is_none_or(|trial| trial.slot != slot);
            let Some(text) = entries.text(slot).filter(|_| !stays && self.staged(slot).is_none()) else {
                continue;
            };
            let directory = self.kernels(slot);
            place(directory, STAGED, text.plain().to_string().as_bytes())
                .and_then(|()| directory.sync())
                .map_err(|source| BlsError::Write { path: directory.path().join(STAGED), source })?;
        }
        Ok(())
    }

    fn save(&self, target: &LoaderStatus) -> Result<(), BlsError> {
        let entries = self.load()?;
        entries.require_no_twins()?;
        let changes = entries.changes(target, |slot| self.staged(slot))?;
        self.keep_lines(&entries, target)?;
        for change in changes {
            let (name, done) = match &change {
                FileChange::Place { name, content } => {
                    (name, place(self.entries.as_ref(), name, content.as_bytes()))
                }
                FileChange::Rename { from, to } => (from, self.entries.rename(from, to)),
                FileChange::Remove { name } => (name, self.entries.remove(name)),
            };
            done.and_then(|()| self.entries.sync())
                .map_err(|source| BlsError::Write { path: self.entries.path().join(name), source })?;
        }
        Ok(())
    }
}

/// Makes a file appear with all of its content, or not at all.
fn place(directory: &dyn Directory, name: &str, content: &[u8]) -> io::Result<()> {
    const BESIDE: &str = "monok8s.new";
    directory.write(BESIDE, content)?;
    directory.rename(BESIDE, name)
}

impl BootBackend for BlsEntries {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { max_tries: Tries(u8::MAX) }
    }

    fn status(&self) -> Result<LoaderStatus, BootError> {
        let entries =
            self.load().map_err(|source| BootError::Read { backend: NAME, source: source.into() })?;
        Ok(entries.status())
    }

    fn store(&self, change: &Change) -> Result<(), BootError> {
        self.save(change.status()).map_err(|source| BootError::Write { backend: NAME, source: source.into() })
    }

    /// A confirmed slot whose kernel is still told of its trial is not.
    fn is_settled(&self) -> bool {
        self.load().map_or(true, |entries| !entries.tells_of_what_is_over())
    }

    fn exclusive(&self) -> Result<RegionLock, BootError> {
        self.entries.lock().map_err(|source| BootError::Locked { backend: NAME, source })
    }
}
