//! A boot loader that nobody named: nothing is armed through it, and the node says so.

use monok8s_sdk::boot::{BootBackend, BootError, Capabilities, Change, LoaderStatus, Tries};
use monok8s_sdk::disk::{HostView, RegionLock, SlotLayout, SlotMap};

const NAME: &str = "unknown";

/// Stands where no known loader is. The booted slot is taken for the only good one, tries are taken
/// for not counted, and every change is refused: a trial that might never fall back is never begun.
#[derive(Debug)]
pub struct UnknownLoader {
    pub(crate) host: HostView,
    pub(crate) layout: SlotLayout,
}

impl BootBackend for UnknownLoader {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { max_tries: Tries::NONE }
    }

    fn status(&self) -> Result<LoaderStatus, BootError> {
        let slots = SlotMap::discover(&self.host, &self.layout)
            .map_err(|source| BootError::Read { backend: NAME, source: source.into() })?;
        Ok(LoaderStatus::installed(slots.booted().slot, Tries::NONE))
    }

    fn exclusive(&self) -> Result<RegionLock, BootError> {
        Ok(RegionLock::of_nothing())
    }

    fn store(&self, _: &Change) -> Result<(), BootError> {
        Err(BootError::Write { backend: NAME, source: "this loader is not known: set --boot-backend".into() })
    }
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::boot::TryCounting;
    use monok8s_sdk::disk::fixture::FileMachine;
    use monok8s_sdk::slot::Slot;

    use super::*;

    #[test]
    fn an_unknown_loader_keeps_the_booted_slot_and_refuses_everything_else() {
        let directory = tempfile::tempdir().unwrap();
        let machine = FileMachine::create(directory.path(), 8 << 20).unwrap();
        let loader = UnknownLoader { host: machine.host(), layout: machine.layout() };
        let status = loader.status().unwrap();
        assert!(status.is_confirmed(Slot::A) && !status.needs_marking(Slot::A));
        assert_eq!(status.try_counting(), TryCounting::Unsupported);
        assert!(matches!(loader.invalidate(Slot::A), Err(BootError::LastBootableSlot { .. })));
        assert_eq!(loader.capabilities().max_tries, Tries::NONE, "no trial can be armed");
    }
}
