//! What every boot loader can be asked for.

use super::{AttemptId, LoaderStatus, Reset, Reverter, Tries, TryCounting};
use crate::api::FailureReason;
use crate::disk::{KnownGoodSlot, RegionLock, VerifiedSlot};
use crate::slot::Slot;

/// A slot that may be booted. There is no other way to one than reading it back, or having run it.
#[derive(Debug)]
pub enum ArmableSlot {
    /// It was read back from the medium by this process.
    Verified(VerifiedSlot),
    /// It ran, confirmed, at some time in the past.
    KnownGood(KnownGoodSlot),
}

impl ArmableSlot {
    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        match self {
            Self::Verified(slot) => slot.slot(),
            Self::KnownGood(slot) => slot.slot(),
        }
    }
}

impl From<VerifiedSlot> for ArmableSlot {
    fn from(slot: VerifiedSlot) -> Self {
        Self::Verified(slot)
    }
}

impl From<KnownGoodSlot> for ArmableSlot {
    fn from(slot: KnownGoodSlot) -> Self {
        Self::KnownGood(slot)
    }
}

/// What a loader can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The most tries a trial can be armed with.
    pub max_tries: Tries,
}

/// A state to be written. Only [`BootBackend`]'s own methods make one, so that whoever implements
/// a backend can store a trial and nobody else can arm one without a token.
#[derive(Debug)]
pub struct Change(LoaderStatus);

impl Change {
    /// The whole state to be stored.
    #[must_use]
    pub fn status(&self) -> &LoaderStatus {
        &self.0
    }
}

/// Why the loader's state could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The state cannot be read, or is corrupt. It is never replaced by a default: that would
    /// decide which slot boots.
    #[error("cannot read the state of the {backend} boot loader: restore it, or install the loader again")]
    Read {
        /// The backend's name.
        backend: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state cannot be written.
    #[error("cannot write the state of the {backend} boot loader; it boots as before, or as it was to")]
    Write {
        /// The backend's name.
        backend: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another program holds the state for itself.
    #[error("cannot get the state of the {backend} boot loader for itself")]
    Locked {
        /// The backend's name.
        backend: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// What was written is not what is read afterwards.
    #[error(
        "the {backend} boot loader's state reads back differently from what was written: something else writes it, or its medium fails"
    )]
    NotTaken {
        /// The backend's name.
        backend: &'static str,
    },
    /// A slot must not be invalidated.
    #[error("slot {slot} is the only one that the loader may boot: it stays in its order")]
    LastBootableSlot {
        /// The slot.
        slot: Slot,
    },
    /// A trial that could not fall back must not be armed.
    #[error("no trial of slot {slot} is armed: slot {} is not confirmed, so there would be nothing to fall back to", slot.other())]
    NoFallback {
        /// The slot that was to be armed.
        slot: Slot,
    },
    /// The loader cannot count that far.
    #[error("a trial of slot {slot} cannot have {} tries: this loader counts from 1 to {}", tries.0, max.0)]
    Tries {
        /// The slot that was to be armed.
        slot: Slot,
        /// The tries asked for.
        tries: Tries,
        /// The most it can count.
        max: Tries,
    },
    /// Nothing came up, in the simulated loader.
    #[error("no slot comes up: the machine is dead until a person installs it again")]
    NothingBoots,
}

impl BootError {
    /// The reason that a status shows for it.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Tries { .. } => FailureReason::TrialUnsupported,
            Self::NoFallback { .. } => FailureReason::NothingToGoBackTo,
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Locked { .. }
            | Self::NotTaken { .. }
            | Self::LastBootableSlot { .. }
            | Self::NothingBoots => FailureReason::LoaderError,
        }
    }
}

/// A boot loader's state, and what may be done to it.
///
/// A backend implements the first five methods, and [`is_settled`](Self::is_settled) if it keeps two copies.
/// The others take the lock, read the state, change it
/// by a pure transition, write it in one update and read it again. Each may be repeated: a state that
/// is already so is not written. All of them may block on a disk.
pub trait BootBackend: Send + Sync {
    /// What flags and reports call it.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The state, read now.
    fn status(&self) -> Result<LoaderStatus, BootError>;

    /// Writes the whole state, so that after a power cut either the old or the new one is read.
    fn store(&self, change: &Change) -> Result<(), BootError>;

    /// Keeps the other programs of this host that change the state (the agent, the guard, a person's
    /// `ctl`) from doing so between a read and the write that follows from it.
    fn exclusive(&self) -> Result<RegionLock, BootError>;

    /// Whether every copy of the state that the loader may read says the same. A write that failed halfway
    /// leaves an old one, which it would read if the newer one rotted.
    fn is_settled(&self) -> bool {
        true
    }

    /// Whether the loader was seen to count tries.
    fn canary(&self) -> Result<TryCounting, BootError> {
        Ok(self.status()?.try_counting())
    }

    /// Takes a slot out of the order, before its first byte is overwritten.
    fn invalidate(&self, slot: Slot) -> Result<(), BootError> {
        let _lock = self.exclusive()?;
        let status = self.status()?;
        let next = status.invalidated(slot);
        if !next.is_confirmed(slot.other()) {
            return Err(BootError::LastBootableSlot { slot });
        }
        put(self, &status, next)
    }

    /// Puts a slot first, for `tries` boots on behalf of `attempt`. Consumes the token: another
    /// trial needs another look at the slot.
    fn arm_trial(&self, slot: ArmableSlot, attempt: AttemptId, tries: Tries) -> Result<(), BootError> {
        let (slot, max) = (slot.slot(), self.capabilities().max_tries);
        if tries == Tries::NONE || tries > max {
            return Err(BootError::Tries { slot, tries, max });
        }
        let _lock = self.exclusive()?;
        let status = self.status()?;
        if !status.is_confirmed(slot.other()) {
            return Err(BootError::NoFallback { slot });
        }
        let next = status.armed(slot, attempt, tries);
        put(self, &status, next)
    }

    /// Keeps the slot on trial for good. Does nothing without a trial.
    fn confirm(&self) -> Result<(), BootError> {
        let _lock = self.exclusive()?;
        let status = self.status()?;
        put(self, &status, status.confirmed())
    }

    /// Takes a trial out that has not run, or whose end was recorded. Does nothing without a trial.
    fn disarm(&self) -> Result<(), BootError> {
        let _lock = self.exclusive()?;
        let status = self.status()?;
        put(self, &status, status.disarmed())
    }

    /// Sends the running trial back at the next boot, and keeps the evidence. Does nothing without
    /// a trial.
    fn revert(&self, by: Reverter) -> Result<(), BootError> {
        let _lock = self.exclusive()?;
        let status = self.status()?;
        put(self, &status, status.reverted(by))
    }

    /// Refills the tries of the booted slot and keeps what a trial left behind. Does nothing while
    /// the booted slot is on trial.
    fn mark_good(&self, booted: Slot) -> Result<(), BootError> {
        self.mark_good_after(booted, Reset::Unknown)
    }

    /// [`mark_good`](Self::mark_good) by one who knows what reset the machine.
    fn mark_good_after(&self, booted: Slot, reset: Reset) -> Result<(), BootError> {
        let _lock = self.exclusive()?;
        let status = self.status()?;
        put(self, &status, status.marked_good_after(booted, reset))
    }
}

fn put<B: BootBackend + ?Sized>(
    backend: &B,
    status: &LoaderStatus,
    next: LoaderStatus,
) -> Result<(), BootError> {
    if *status == next && backend.is_settled() {
        return Ok(());
    }
    let change = Change(next);
    backend.store(&change)?;
    if backend.status()? == change.0 { Ok(()) } else { Err(BootError::NotTaken { backend: backend.name() }) }
}
