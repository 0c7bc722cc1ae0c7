//! A boot loader in a file, for tests, the demo, and machines that are only pretended.
//!
//! [`SimulatedLoader`] is both sides of it: the backend that an agent uses, and the loader itself,
//! which at power-on burns tries and chooses as RAUC's scripts do. Nothing here is used on a node
//! with a real loader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record_store::{StoreError, TwoCopies};
use super::{BootBackend, BootError, Capabilities, Change, LoaderStatus, Tries};
use crate::disk::{Directory, HostDirectory, RegionLock};
use crate::slot::Slot;

const NAME: &str = "simulated";
/// More power-ons in a row than any order of two slots can make use of.
const MAX_POWER_ONS: usize = 64;

/// A loader whose state is kept in two copies beside `path`, `PATH.0` and `PATH.1`.
///
/// ```
/// use monok8s_sdk::boot::simulated::SimulatedLoader;
/// use monok8s_sdk::boot::{BootBackend as _, Tries};
/// use monok8s_sdk::slot::Slot;
///
/// let dir = tempfile::tempdir()?;
/// let loader = SimulatedLoader::install(&dir.path().join("loader"), Slot::A, Tries::DEFAULT_FULL)?;
/// assert_eq!(loader.boot(|_slot| true)?, Slot::A);
/// loader.mark_good(Slot::A)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimulatedLoader {
    copies: TwoCopies,
}

impl SimulatedLoader {
    /// The loader whose state is at `path`. Nothing is read yet.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .map_or_else(|| PathBuf::from("."), PathBuf::from);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self::in_directory(Arc::new(HostDirectory::new(dir)), &name)
    }

    /// The loader whose state is in `NAME.0` and `NAME.1` of a directory of the caller's making.
    #[must_use]
    pub fn in_directory(dir: Arc<dyn Directory>, name: &str) -> Self {
        Self { copies: TwoCopies::in_directory(dir, name) }
    }

    /// Writes the state of a freshly installed machine, replacing what was there: `slot` is the
    /// only one that boots, and a good slot gets `tries_full` tries.
    pub fn install(path: &Path, slot: Slot, tries_full: Tries) -> Result<Self, BootError> {
        Self::open(path).reset(slot, tries_full)
    }

    /// Writes the state of a freshly installed machine, as [`install`](Self::install) does.
    pub fn reset(self, slot: Slot, tries_full: Tries) -> Result<Self, BootError> {
        self.copies.remove().map_err(|source| BootError::Write { backend: NAME, source: source.into() })?;
        self.save(&LoaderStatus::installed(slot, tries_full))?;
        Ok(self)
    }

    /// A power-on: burns a try, and goes to the slot that it was burnt for. If `comes_up` says that
    /// its kernel does not come up, the machine resets, and it all begins again. Every burnt try is
    /// on the medium before its slot is entered.
    pub fn boot(&self, mut comes_up: impl FnMut(Slot) -> bool) -> Result<Slot, BootError> {
        for _ in 0..MAX_POWER_ONS {
            let mut status = self.status()?;
            let slot = status.boot_once().ok_or(BootError::NothingBoots)?;
            self.save(&status)?;
            if comes_up(slot) {
                return Ok(slot);
            }
        }
        Err(BootError::NothingBoots)
    }

    fn save(&self, status: &LoaderStatus) -> Result<(), BootError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| BootError::Write { backend: NAME, source };
        let bytes = serde_json::to_vec(status).map_err(|source| failed(source.into()))?;
        self.copies.save(&bytes).map_err(|source| failed(source.into()))
    }
}

impl BootBackend for SimulatedLoader {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { max_tries: Tries(u8::MAX) }
    }

    fn status(&self) -> Result<LoaderStatus, BootError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| BootError::Read { backend: NAME, source };
        let bytes = self.copies.load().map_err(|source: StoreError| failed(source.into()))?;
        let bytes = bytes.ok_or_else(|| failed("no state was ever installed there".into()))?;
        serde_json::from_slice(&bytes).map_err(|source| failed(source.into()))
    }

    fn store(&self, change: &Change) -> Result<(), BootError> {
        self.save(change.status())
    }

    /// Whoever changes a pretended machine has the lock of its record.
    fn exclusive(&self) -> Result<RegionLock, BootError> {
        Ok(RegionLock::of_nothing())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::boot::{ArmableSlot, AttemptId, Reverter, TrialEvidence, TrialProgress, TryCounting};
    use crate::disk::KnownGoodSlot;

    const ATTEMPT: AttemptId = AttemptId(3);

    fn machine() -> (tempfile::TempDir, SimulatedLoader) {
        let dir = tempfile::tempdir().unwrap();
        let loader =
            SimulatedLoader::install(&dir.path().join("loader"), Slot::A, Tries::DEFAULT_FULL).unwrap();
        assert_eq!(loader.canary().unwrap(), TryCounting::Unsupported);
        assert_eq!(loader.boot(|_| true).unwrap(), Slot::A);
        assert_eq!(loader.canary().unwrap(), TryCounting::Proven);
        loader.mark_good(Slot::A).unwrap();
        (dir, loader)
    }

    fn token(slot: Slot) -> ArmableSlot {
        KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
    }

    #[test]
    fn a_kernel_that_never_comes_up_falls_back_with_evidence() {
        let (_dir, loader) = machine();
        loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL).unwrap();
        let mut entered = Vec::new();
        let booted = loader.boot(|slot| {
            entered.push(slot);
            slot == Slot::A
        });
        assert_eq!(booted.unwrap(), Slot::A);
        assert_eq!(entered, [Slot::B, Slot::A]);
        loader.mark_good(Slot::A).unwrap();
        let status = loader.status().unwrap();
        assert_eq!(status.trial_progress(ATTEMPT), TrialProgress::Tried(TrialEvidence::FellBack));
        assert_eq!(status.next_boot(), Some(Slot::A));
    }

    #[test]
    fn a_confirmed_trial_stays() {
        let (_dir, loader) = machine();
        loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL).unwrap();
        assert_eq!(loader.boot(|_| true).unwrap(), Slot::B);
        loader.confirm().unwrap();
        for _ in 0..10 {
            assert_eq!(loader.boot(|_| true).unwrap(), Slot::B);
            loader.mark_good(Slot::B).unwrap();
        }
    }

    #[test]
    fn nothing_is_armed_or_invalidated_that_would_strand_the_node() {
        let (_dir, loader) = machine();
        assert!(matches!(loader.invalidate(Slot::A), Err(BootError::LastBootableSlot { slot: Slot::A })));
        assert!(matches!(
            loader.arm_trial(token(Slot::A), ATTEMPT, Tries::TRIAL),
            Err(BootError::NoFallback { slot: Slot::A })
        ));
        assert!(matches!(
            loader.arm_trial(token(Slot::B), ATTEMPT, Tries::NONE),
            Err(BootError::Tries { .. })
        ));
        loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL).unwrap();
        // While B is on trial, A is what it falls back to.
        assert!(matches!(loader.invalidate(Slot::A), Err(BootError::LastBootableSlot { slot: Slot::A })));
    }

    #[test]
    fn every_change_may_be_repeated() {
        let (_dir, loader) = machine();
        for _ in 0..2 {
            loader.arm_trial(token(Slot::B), ATTEMPT, Tries::TRIAL).unwrap();
        }
        assert_eq!(loader.boot(|_| true).unwrap(), Slot::B);
        for _ in 0..2 {
            loader.revert(Reverter::Agent).unwrap();
        }
        assert_eq!(loader.boot(|_| true).unwrap(), Slot::A);
        for _ in 0..2 {
            loader.mark_good(Slot::A).unwrap();
            loader.disarm().unwrap();
            loader.invalidate(Slot::B).unwrap();
            loader.confirm().unwrap();
        }
        assert_eq!(loader.status().unwrap().order, [Slot::A]);
    }

    #[test]
    fn a_state_that_is_lost_or_corrupt_is_an_error_and_is_never_replaced() {
        let (dir, loader) = machine();
        for copy in ["loader.0", "loader.1"] {
            fs::write(dir.path().join(copy), b"garbage").unwrap();
        }
        let errors = [
            loader.status().unwrap_err(),
            loader.mark_good(Slot::A).unwrap_err(),
            loader.boot(|_| true).unwrap_err(),
            SimulatedLoader::open(&dir.path().join("never installed")).status().unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, BootError::Read { .. }), "{error}");
            assert_eq!(error.reason(), crate::api::FailureReason::LoaderError);
        }
        assert_eq!(fs::read(dir.path().join("loader.0")).unwrap(), b"garbage");
        let again =
            SimulatedLoader::install(&dir.path().join("loader"), Slot::B, Tries::DEFAULT_FULL).unwrap();
        assert_eq!(again.boot(|_| true).unwrap(), Slot::B);
    }

    #[test]
    fn a_machine_on_which_nothing_comes_up_is_dead() {
        let (_dir, loader) = machine();
        assert!(matches!(loader.boot(|_| false), Err(BootError::NothingBoots)));
    }
}
