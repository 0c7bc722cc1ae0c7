//! The loader's state as a value, and everything that can be done to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api;
use crate::slot::Slot;

/// A number of boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tries(pub u8);

impl Tries {
    /// No boot.
    pub const NONE: Self = Self(0);
    /// What a trial is armed with: a second boot into a slot that did not hold the first time
    /// would only double the outage.
    pub const TRIAL: Self = Self(1);
    /// What RAUC's U-Boot script gives a good slot.
    pub const DEFAULT_FULL: Self = Self(3);

    /// One boot less, never below none.
    #[must_use]
    pub fn burn(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// The number of an attempt, unique on a node: counted up by the record, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptId(pub u64);

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether the loader may boot a slot at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotHealth {
    /// It may.
    Good,
    /// It must not: its bytes are unknown, or its trial failed.
    Bad,
}

/// What the loader holds about one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Whether it may be booted.
    pub health: SlotHealth,
    /// How many boots it has left before the loader passes it over.
    pub tries_left: Tries,
}

/// What is known of the armed slot having been booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrialEvidence {
    /// Nothing was noted; only a burnt try can tell.
    None,
    /// The node came back in the other slot after a try was burnt.
    FellBack,
    /// The same, and the hardware watchdog says that it was what reset the machine.
    WatchdogReset,
    /// The agent sent the running trial back.
    Reverted,
    /// The guard sent the running trial back at its deadline.
    RevertedByGuard,
    /// The same, and what was missing was the API server, without which no agent started.
    RevertedWithoutApi,
    /// A person sent the running trial back.
    RevertedByPerson,
    /// It was sent back, which another release noted in words of its own.
    RevertedSomehow,
}

impl TrialEvidence {
    /// Every one, for those who read what was written of it.
    pub(crate) const ALL: [Self; 8] = [
        Self::None,
        Self::FellBack,
        Self::WatchdogReset,
        Self::Reverted,
        Self::RevertedByGuard,
        Self::RevertedWithoutApi,
        Self::RevertedByPerson,
        Self::RevertedSomehow,
    ];
}

/// Who sends a running trial back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverter {
    /// The agent, which judged it.
    Agent,
    /// The host's guard, at the deadline.
    Guard,
    /// The host's guard, because the API server stayed away until then.
    GuardWithoutApi,
    /// A person at the node.
    Person,
}

/// What ended a trial without anyone in it saying so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Nobody knows: a panic, a power cut, a hand on the button.
    Unknown,
    /// The hardware watchdog.
    Watchdog,
}

impl TrialEvidence {
    /// Whether the running trial was sent back on purpose.
    #[must_use]
    pub fn is_reverted(self) -> bool {
        matches!(
            self,
            Self::Reverted
                | Self::RevertedByGuard
                | Self::RevertedWithoutApi
                | Self::RevertedByPerson
                | Self::RevertedSomehow
        )
    }
}

impl From<Reverter> for TrialEvidence {
    fn from(by: Reverter) -> Self {
        match by {
            Reverter::Agent => Self::Reverted,
            Reverter::Guard => Self::RevertedByGuard,
            Reverter::GuardWithoutApi => Self::RevertedWithoutApi,
            Reverter::Person => Self::RevertedByPerson,
        }
    }
}

/// A slot that boots on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialState {
    /// The slot on trial.
    pub slot: Slot,
    /// The attempt that armed it.
    pub attempt: AttemptId,
    /// How many boots it was armed with.
    pub tries_armed: Tries,
    /// What was noted about it since.
    pub evidence: TrialEvidence,
}

/// Whether the loader was seen to count tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TryCounting {
    /// A burnt try was seen.
    Proven,
    /// None was seen: a trial might never fall back, so none is begun.
    Unsupported,
}

impl From<TryCounting> for api::TryCounting {
    fn from(counting: TryCounting) -> Self {
        match counting {
            TryCounting::Proven => Self::Proven,
            TryCounting::Unsupported => Self::Unsupported,
        }
    }
}

/// How far the loader got with the trial of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialProgress {
    /// The loader holds no trial of this attempt: never armed, disarmed, or confirmed.
    NotArmed,
    /// Armed; no boot was tried yet.
    Armed,
    /// The loader booted it, or tried to.
    Tried(TrialEvidence),
}

/// The loader's state: what boots next, and what is on trial.
///
/// The transitions return the changed state; whoever calls them writes it back in one update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoaderStatus {
    /// The slots that the loader may boot, the preferred one first. Stock scripts refill the
    /// counters of slots in this list, so a slot that must not boot is not in it.
    pub order: Vec<Slot>,
    /// Slot A.
    pub a: SlotState,
    /// Slot B.
    pub b: SlotState,
    /// How many tries a good slot gets.
    pub tries_full: Tries,
    /// Whether a burnt try was noted at an earlier boot.
    pub counting_seen: TryCounting,
    /// The trial, from arming until it is confirmed or its end was recorded.
    pub trial: Option<TrialState>,
}

impl LoaderStatus {
    /// A freshly installed node: `slot` is good and the only one that boots.
    #[must_use]
    pub fn installed(slot: Slot, tries_full: Tries) -> Self {
        let good = SlotState { health: SlotHealth::Good, tries_left: tries_full };
        let bad = SlotState { health: SlotHealth::Bad, tries_left: Tries::NONE };
        let (a, b) = if slot == Slot::A { (good, bad) } else { (bad, good) };
        Self { order: vec![slot], a, b, tries_full, counting_seen: TryCounting::Unsupported, trial: None }
    }

    /// What the loader holds about `slot`.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> SlotState {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut SlotState {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }

    /// Whether the loader could boot `slot`, now or after it refilled the counters.
    #[must_use]
    pub fn may_boot(&self, slot: Slot) -> bool {
        self.order.contains(&slot) && self.slot(slot).health == SlotHealth::Good
    }

    /// The slot that the loader takes at the next boot, if any has a try left.
    #[must_use]
    pub fn next_boot(&self) -> Option<Slot> {
        self.order
            .iter()
            .copied()
            .find(|slot| self.may_boot(*slot) && self.slot(*slot).tries_left > Tries::NONE)
    }

    /// Whether `slot` is good for ever: not on trial, and not taken out of the order.
    #[must_use]
    pub fn is_confirmed(&self, slot: Slot) -> bool {
        self.may_boot(slot) && self.trial.is_none_or(|trial| trial.slot != slot)
    }

    /// How far the loader got with the trial of `attempt`.
    #[must_use]
    pub fn trial_progress(&self, attempt: AttemptId) -> TrialProgress {
        match self.trial.filter(|trial| trial.attempt == attempt) {
            None => TrialProgress::NotArmed,
            Some(trial) if self.was_tried(&trial) => TrialProgress::Tried(trial.evidence),
            Some(_) => TrialProgress::Armed,
        }
    }

    fn was_tried(&self, trial: &TrialState) -> bool {
        // Not `<`: stock scripts refill counters, and a refilled one was burnt before.
        trial.evidence != TrialEvidence::None || self.slot(trial.slot).tries_left != trial.tries_armed
    }

    /// Whether the loader was seen to count: a try is missing that only the loader can have burnt.
    #[must_use]
    pub fn try_counting(&self) -> TryCounting {
        let burnt = Slot::BOTH.into_iter().filter(|slot| self.may_boot(*slot)).any(|slot| {
            let full = self
                .trial
                .filter(|trial| trial.slot == slot)
                .map_or(self.tries_full, |trial| trial.tries_armed);
            self.slot(slot).tries_left < full
        });
        if burnt { TryCounting::Proven } else { self.counting_seen }
    }

    /// Whether the booted, confirmed slot should be marked good: a try of it is burnt, or a trial
    /// of the other slot came back and nothing was noted yet.
    #[must_use]
    pub fn needs_marking(&self, booted: Slot) -> bool {
        self.is_confirmed(booted) && *self != self.marked_good(booted)
    }

    /// Whether nothing but the numbers of tries differs, of slots that may boot anyway.
    #[cfg(feature = "boot")]
    pub(crate) fn differs_in_tries_only(&self, other: &Self) -> bool {
        let without_tries = |status: &Self| {
            let mut status = status.clone();
            for slot in Slot::BOTH {
                status.slot_mut(slot).tries_left = Tries::NONE;
            }
            status.counting_seen = TryCounting::Unsupported;
            status
        };
        without_tries(self) == without_tries(other)
    }

    /// `slot` out of the order and bad, before the first byte of it is overwritten.
    #[must_use]
    pub fn invalidated(&self, slot: Slot) -> Self {
        let mut next = self.clone();
        next.counting_seen = self.try_counting();
        next.order.retain(|entry| *entry != slot);
        *next.slot_mut(slot) = SlotState { health: SlotHealth::Bad, tries_left: Tries::NONE };
        if next.trial.is_some_and(|trial| trial.slot == slot) {
            next.trial = None;
        }
        next
    }

    /// `slot` first in the order, with `tries` boots on behalf of `attempt`. Every field of the
    /// trial is written, so nothing of an earlier attempt is left.
    #[must_use]
    pub fn armed(&self, slot: Slot, attempt: AttemptId, tries: Tries) -> Self {
        let mut next = self.clone();
        next.counting_seen = self.try_counting();
        next.order.retain(|entry| *entry != slot);
        next.order.insert(0, slot);
        *next.slot_mut(slot) = SlotState { health: SlotHealth::Good, tries_left: tries };
        next.trial = Some(TrialState { slot, attempt, tries_armed: tries, evidence: TrialEvidence::None });
        next
    }

    /// The trial ended well: its slot is good, and stays first. Unchanged without a trial, and for one that
    /// was sent back meanwhile: whoever comes with a confirm is late.
    #[must_use]
    pub fn confirmed(&self) -> Self {
        let running = self.trial.filter(|trial| trial.evidence == TrialEvidence::None);
        let Some(trial) = running else { return self.clone() };
        let mut next = self.clone();
        next.trial = None;
        next.counting_seen = self.try_counting();
        *next.slot_mut(trial.slot) = SlotState { health: SlotHealth::Good, tries_left: self.tries_full };
        next
    }

    /// The trial was called off before its boot, or its end was recorded: its slot is out of the
    /// order and bad, and nothing of it is left. Unchanged without a trial.
    #[must_use]
    pub fn disarmed(&self) -> Self {
        self.trial.map_or_else(|| self.clone(), |trial| self.invalidated(trial.slot))
    }

    /// The running trial is sent back: its slot is out of the order and bad, and the evidence that
    /// it ran is kept. Unchanged without a trial, and for one that has ended: the first word counts.
    #[must_use]
    pub fn reverted(&self, by: Reverter) -> Self {
        let runs = self.trial.is_some_and(|trial| trial.evidence == TrialEvidence::None);
        if runs { self.ended(by.into()) } else { self.clone() }
    }

    fn ended(&self, evidence: TrialEvidence) -> Self {
        let Some(trial) = self.trial else { return self.clone() };
        let mut next = self.invalidated(trial.slot);
        next.trial = Some(TrialState { evidence, ..trial });
        next
    }

    /// `booted` is up and confirmed: its counter is full again, that the loader counts is noted, and
    /// a trial of the other slot that was tried leaves its evidence and the order. Unchanged for a
    /// slot that is not confirmed.
    #[must_use]
    pub fn marked_good(&self, booted: Slot) -> Self {
        self.marked_good_after(booted, Reset::Unknown)
    }

    /// [`marked_good`](Self::marked_good) by one who knows what reset the machine.
    #[must_use]
    pub fn marked_good_after(&self, booted: Slot, reset: Reset) -> Self {
        if !self.is_confirmed(booted) {
            return self.clone();
        }
        let came_back =
            self.trial.is_some_and(|trial| trial.evidence == TrialEvidence::None && self.was_tried(&trial));
        let evidence = match reset {
            Reset::Unknown => TrialEvidence::FellBack,
            Reset::Watchdog => TrialEvidence::WatchdogReset,
        };
        let mut next = if came_back { self.ended(evidence) } else { self.clone() };
        next.counting_seen = self.try_counting();
        *next.slot_mut(booted) = SlotState { health: SlotHealth::Good, tries_left: self.tries_full };
        next
    }

    /// What a loader that counts does at power-on: takes the first slot of the order with a try
    /// left and burns that try. With no try left anywhere it refills the counters of the order, as
    /// stock scripts do, and takes the first; a trial does not get its tries back. `None`: nothing
    /// may boot.
    pub fn boot_once(&mut self) -> Option<Slot> {
        if self.next_boot().is_none() {
            let (full, on_trial) = (self.tries_full, self.trial.map(|trial| trial.slot));
            for slot in self.order.clone().into_iter().filter(|slot| Some(*slot) != on_trial) {
                self.slot_mut(slot).tries_left = full;
            }
        }
        let slot = self.next_boot()?;
        let state = self.slot_mut(slot);
        state.tries_left = state.tries_left.burn();
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed() -> LoaderStatus {
        let mut status = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
        assert_eq!(status.try_counting(), TryCounting::Unsupported);
        assert_eq!(status.boot_once(), Some(Slot::A));
        assert_eq!(status.try_counting(), TryCounting::Proven);
        status.marked_good(Slot::A)
    }

    #[test]
    fn a_trial_that_does_not_hold_falls_back_and_leaves_evidence() {
        let attempt = AttemptId(7);
        let mut status = installed().armed(Slot::B, attempt, Tries::TRIAL);
        assert_eq!(status.trial_progress(attempt), TrialProgress::Armed);
        assert_eq!(status.trial_progress(AttemptId(6)), TrialProgress::NotArmed);
        assert_eq!(status.boot_once(), Some(Slot::B));
        assert_eq!(status.boot_once(), Some(Slot::A));
        assert_eq!(status.trial_progress(attempt), TrialProgress::Tried(TrialEvidence::None));
        assert!(status.needs_marking(Slot::A));
        let mut status = status.marked_good(Slot::A);
        assert!(!status.needs_marking(Slot::A));
        assert_eq!(status.trial_progress(attempt), TrialProgress::Tried(TrialEvidence::FellBack));
        // However often it boots without anyone marking it good, the loader never comes back to B.
        for _ in 0..20 {
            assert_eq!(status.boot_once(), Some(Slot::A));
        }
    }

    #[test]
    fn a_confirmed_trial_is_good_and_first() {
        let mut status = installed().armed(Slot::B, AttemptId(1), Tries::TRIAL);
        assert_eq!(status.boot_once(), Some(Slot::B));
        assert!(!status.is_confirmed(Slot::B));
        // Marking a slot on trial good would confirm it by the back door.
        assert_eq!(status.marked_good(Slot::B), status);
        let mut status = status.confirmed();
        assert!(status.is_confirmed(Slot::B) && status.is_confirmed(Slot::A));
        assert_eq!(status.boot_once(), Some(Slot::B));
    }

    #[test]
    fn a_reverted_trial_boots_the_old_slot_and_says_why() {
        let mut status = installed().armed(Slot::B, AttemptId(1), Tries::TRIAL);
        status.boot_once();
        let mut status = status.reverted(Reverter::Agent);
        assert_eq!(status.boot_once(), Some(Slot::A));
        assert_eq!(status.trial_progress(AttemptId(1)), TrialProgress::Tried(TrialEvidence::Reverted));
        assert_eq!(status.marked_good(Slot::A).trial, status.trial);
        assert_eq!(status.confirmed(), status, "a confirm that comes late changes nothing");
        assert_eq!(status.disarmed().trial, None);
    }

    #[test]
    fn a_trial_never_gets_its_tries_back() {
        let mut status = installed().armed(Slot::B, AttemptId(1), Tries::TRIAL);
        assert_eq!(status.boot_once(), Some(Slot::B));
        // However often the old slot's boots are cut short before anyone marks it good.
        for _ in 0..20 {
            assert_eq!(status.boot_once(), Some(Slot::A));
        }
    }

    #[test]
    fn an_invalidated_slot_never_boots() {
        let mut status = installed().armed(Slot::B, AttemptId(1), Tries::TRIAL).invalidated(Slot::B);
        assert_eq!(status.trial, None);
        for _ in 0..20 {
            assert_eq!(status.boot_once(), Some(Slot::A));
        }
        let mut nothing = status.invalidated(Slot::A);
        assert_eq!(nothing.boot_once(), None);
    }
}
