//! What a node may be told to do.

use std::time::Duration;

use super::step::Step;
use crate::api::{FailureReason, ImageRef, ProgressPhase};
use crate::boot::{AttemptId, Tries};
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// The next step. Doing it twice does no harm.
///
/// [`Wait`](Self::Wait), [`AwaitHealth`](Self::AwaitHealth) and [`Report`](Self::Report) are states
/// of rest: the caller makes the object's status say so, if it does not yet, and waits for an event
/// or for the time given. After every other action it observes again at once. A physical action
/// that fails for good is recorded with [`Step::Failed`]; one that may pass is left unrecorded and
/// comes back.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing can be done now.
    Wait(WaitReason),
    /// Save the record as it is after this step.
    Record(Step),
    /// Read the object again from the API server's store, not from a cache.
    Reread,
    /// Refill the tries of the booted, confirmed slot, and keep what a trial left behind.
    MarkGood {
        /// The booted slot.
        slot: Slot,
    },
    /// Take a slot out of the loader's order: before it is written, and before a commit to it.
    Invalidate {
        /// The slot.
        slot: Slot,
    },
    /// Stream the artifact into a slot. Ends in [`Step::Written`] or [`Step::Failed`].
    Write {
        /// The image.
        hop: ImageRef,
        /// The slot.
        slot: Slot,
        /// The number of the attempt at this hop.
        attempt: u32,
    },
    /// Read a slot back from the medium, and look for the ordered version and for the guard in it.
    /// Ends in [`Step::Verified`] with the token held, or in [`Step::Failed`]; if other bytes are
    /// found than were written, in [`Step::ReadBackDiffers`] where this process wrote them, in
    /// [`Step::SlotForgotten`] where an earlier one did.
    Verify {
        /// The slot.
        slot: Slot,
        /// The sha256 it must have.
        digest: Sha256Digest,
        /// The length of the image in bytes.
        len: u64,
        /// The version that must be in it.
        version: OsVersion,
        /// What the status says meanwhile.
        phase: ProgressPhase,
    },
    /// Write `phase: Rebooting` with the boot ID of the record's intent, bound to this version of
    /// the object. Taken: [`Step::Committed`]. Refused: observe again.
    Commit {
        /// The version the node commits to.
        version: OsVersion,
        /// The slot.
        slot: Slot,
        /// The object's resourceVersion; any other one is a conflict.
        resource_version: String,
    },
    /// Arm a trial, with the token named.
    Arm {
        /// The slot.
        slot: Slot,
        /// The attempt.
        attempt: AttemptId,
        /// How many boots.
        tries: Tries,
        /// What allows it.
        by: ArmedBy,
    },
    /// Take an armed or ended trial out of the loader.
    Disarm,
    /// Reboot.
    Reboot {
        /// The slot that is to come up.
        into: Slot,
    },
    /// Look again when the health changes, or when the time is over.
    AwaitHealth {
        /// How much of the trial is left.
        remaining: Duration,
        /// What is missing.
        missing: String,
    },
    /// Tell the loader to keep the booted slot.
    Confirm {
        /// The booted slot.
        slot: Slot,
    },
    /// Send the trial back in the loader; the reboot follows.
    RevertTrial {
        /// Why.
        reason: FailureReason,
    },
    /// Say how it stands.
    Report(Report),
}

/// Which token a slot is armed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmedBy {
    /// This process read the slot back.
    Verified,
    /// The slot ran before, confirmed.
    KnownGood,
}

/// How it stands, once nothing more happens by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// The node runs the target.
    Completed {
        /// The target.
        version: OsVersion,
    },
    /// A rollback on purpose is done: `Completed`, on this version instead of the target.
    Held {
        /// The version.
        version: OsVersion,
    },
    /// The slot is verified; leave to reboot is missing.
    Staged {
        /// The version in it.
        version: OsVersion,
        /// The slot.
        slot: Slot,
    },
    /// The attempt failed before the target was tried.
    Failed {
        /// Why.
        reason: FailureReason,
        /// That in a sentence.
        message: String,
    },
    /// The target was tried, and the node is back.
    RolledBack {
        /// Why.
        reason: FailureReason,
        /// That in a sentence.
        message: String,
    },
    /// Somebody else governs the node.
    Superseded,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Nothing is ordered.
    NothingOrdered,
    /// The objects were not read since this process started.
    OrderNotRead,
    /// The object that was read is older than one that was acted on.
    OrderReplayed {
        /// The generation that was read.
        read: i64,
        /// The generation that was acted on.
        acted_on: i64,
    },
    /// Leave to stage this version.
    StageGrant {
        /// The version.
        version: OsVersion,
    },
    /// Nothing may be written: the booted slot is not confirmed in the loader.
    BootedSlotUnconfirmed {
        /// The booted slot.
        slot: Slot,
    },
    /// An end that was reported before the record was lost; a nonce goes on.
    EndedBefore {
        /// The phase that the status says.
        phase: ProgressPhase,
    },
}

impl Action {
    /// The phase that the status shows while this is done, if it tells one.
    #[must_use]
    pub fn phase(&self) -> Option<ProgressPhase> {
        match self {
            Self::Wait(WaitReason::StageGrant { .. }) => Some(ProgressPhase::Pending),
            Self::Write { .. } => Some(ProgressPhase::Downloading),
            Self::Verify { phase, .. } => Some(phase.clone()),
            Self::Arm { .. } | Self::Reboot { .. } => Some(ProgressPhase::Rebooting),
            Self::AwaitHealth { .. } | Self::Confirm { .. } => Some(ProgressPhase::Confirming),
            Self::Report(report) => Some(report.phase()),
            Self::Wait(_)
            | Self::Record(_)
            | Self::Reread
            | Self::MarkGood { .. }
            | Self::Invalidate { .. }
            | Self::Disarm
            // The commit is a write of its own: reported without its precondition, it would commit.
            | Self::Commit { .. }
            | Self::RevertTrial { .. } => None,
        }
    }

    /// Whether the caller rests here until something changes.
    #[must_use]
    pub fn is_rest(&self) -> bool {
        matches!(self, Self::Wait(_) | Self::AwaitHealth { .. } | Self::Report(_))
    }
}

impl Report {
    /// The phase to report.
    #[must_use]
    pub fn phase(&self) -> ProgressPhase {
        match self {
            Self::Completed { .. } | Self::Held { .. } => ProgressPhase::Completed,
            Self::Staged { .. } => ProgressPhase::Staged,
            Self::Failed { .. } => ProgressPhase::Failed,
            Self::RolledBack { .. } => ProgressPhase::RolledBack,
            Self::Superseded => ProgressPhase::Superseded,
        }
    }
}
