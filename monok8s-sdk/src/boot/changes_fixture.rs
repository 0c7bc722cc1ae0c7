//! Every change of a loader's state, for tests that let the power fail in the middle of each.

use super::{ArmableSlot, AttemptId, BootBackend, BootError, LoaderStatus, Reverter, Tries};
use crate::disk::KnownGoodSlot;
use crate::slot::Slot;

/// The attempt that arms slot B.
pub(crate) const ATTEMPT: AttemptId = AttemptId(7);

/// A change, and what it is made to.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) before: fn() -> LoaderStatus,
    pub(crate) change: fn(&dyn BootBackend) -> Result<(), BootError>,
}

/// A confirmed slot A on a loader that counts, and a confirmed slot B behind it.
pub(crate) fn both_good() -> LoaderStatus {
    let mut status = LoaderStatus::installed(Slot::B, Tries::DEFAULT_FULL);
    status.boot_once();
    let mut status = status.marked_good(Slot::B).armed(Slot::A, AttemptId(6), Tries::TRIAL);
    status.boot_once();
    status.confirmed()
}

pub(crate) fn invalidated() -> LoaderStatus {
    both_good().invalidated(Slot::B)
}

pub(crate) fn armed() -> LoaderStatus {
    invalidated().armed(Slot::B, ATTEMPT, Tries::TRIAL)
}

pub(crate) fn tried() -> LoaderStatus {
    let mut status = armed();
    assert_eq!(status.boot_once(), Some(Slot::B));
    status
}

pub(crate) fn fell_back() -> LoaderStatus {
    let mut status = tried();
    assert_eq!(status.boot_once(), Some(Slot::A));
    status
}

fn booted() -> LoaderStatus {
    let mut status = both_good();
    assert_eq!(status.boot_once(), Some(Slot::A));
    status
}

/// Slot B, which ran at some time.
pub(crate) fn token() -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(Slot::B, "v1.35.3".parse().unwrap(), None).into()
}

/// All of them.
pub(crate) const STEPS: [Step; 9] = [
    Step { name: "invalidate", before: both_good, change: |loader| loader.invalidate(Slot::B) },
    Step {
        name: "arm",
        before: invalidated,
        change: |loader| loader.arm_trial(token(), ATTEMPT, Tries::TRIAL),
    },
    Step {
        name: "go back to a slot that is good",
        before: both_good,
        change: |loader| loader.arm_trial(token(), ATTEMPT, Tries::TRIAL),
    },
    Step { name: "disarm", before: armed, change: |loader| loader.disarm() },
    Step { name: "confirm", before: tried, change: |loader| loader.confirm() },
    Step { name: "revert", before: tried, change: |loader| loader.revert(Reverter::Guard) },
    Step { name: "mark good", before: booted, change: |loader| loader.mark_good(Slot::A) },
    Step {
        name: "note that a trial fell back",
        before: fell_back,
        change: |loader| loader.mark_good(Slot::A),
    },
    Step {
        name: "forget a trial that was sent back",
        before: || tried().reverted(Reverter::Agent),
        change: |loader| loader.disarm(),
    },
];
