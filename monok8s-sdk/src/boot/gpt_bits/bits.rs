//! What a loader keeps of a slot in the attributes of its partition, and what that says of a state.
//!
//! Layout: that of `ChromeOS` kernel partitions (its "disk format" document), which Container Linux and
//! Bottlerocket took for their root partitions. Bits 48 to 51 are the priority, 0 for never; 52 to 55
//! the tries left; bit 56 says that the slot was booted well. A loader takes the highest priority among
//! the slots that have a try left or were booted well, and burns a try unless it was booted well.
//!
//! Beyond that, of ours: the first slot of the order has an odd priority, the second one the even one
//! below. Each change takes other numbers than the one before, which ties the notes of a state to the
//! bits that were written with it. A slot that never boots keeps in its tries what ended its trial.

use serde::{Deserialize, Serialize};

use crate::boot::{LoaderStatus, SlotHealth, SlotState, TrialEvidence, TrialState, Tries, TryCounting};
use crate::slot::Slot;

/// What four bits can count: a slot is left countable with all of them.
pub(super) const FULL: Tries = Tries(15);
/// In place of a number of tries of which nobody knows what it began with: no try can be said to be
/// missing, and marking the slot good changes it.
pub(super) const UNCOUNTED: Tries = Tries(u8::MAX);
/// Which bits these are.
pub(super) const MASK: u64 = 0x01FF << 48;

/// Priorities of the first slot of the order.
const FIRST_PRIORITY: u8 = 3;
const LAST_PRIORITY: u8 = 15;

/// One slot's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotBits {
    /// 1 to 15, the highest first; 0 for a slot that never boots.
    pub priority: u8,
    /// 0 to 15.
    pub tries: u8,
    /// Whether it was booted well, and needs no tries any more.
    pub successful: bool,
}

impl SlotBits {
    /// Of a partition's attributes.
    #[must_use]
    pub fn of(attributes: u64) -> Self {
        let nibble = |at: u32| u8::try_from(attributes >> at & 0xF).unwrap_or(0);
        Self { priority: nibble(48), tries: nibble(52), successful: attributes >> 56 & 1 == 1 }
    }

    /// As attributes of a partition.
    #[must_use]
    pub fn attributes(self) -> u64 {
        let nibble = |value: u8| u64::from(value.min(15));
        nibble(self.priority) << 48 | nibble(self.tries) << 52 | u64::from(self.successful) << 56
    }

    /// What a loader leaves of these: at most it burnt tries, or gave up a slot that had none left.
    fn may_have_become(self, now: Self) -> bool {
        let burnt =
            self.priority == now.priority && self.successful == now.successful && now.tries <= self.tries;
        let given_up = now == Self::default() && self.priority > 0 && !self.successful;
        burnt || given_up
    }
}

/// The bits of both slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bits {
    /// Slot A's.
    pub a: SlotBits,
    /// Slot B's.
    pub b: SlotBits,
}

impl Bits {
    /// Those of a slot.
    #[must_use]
    pub fn of(self, slot: Slot) -> SlotBits {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }

    /// The slots that may boot, the preferred one first.
    fn order(self) -> Vec<Slot> {
        let mut order: Vec<Slot> =
            Slot::BOTH.into_iter().filter(|slot| self.of(*slot).priority > 0).collect();
        order.sort_by_key(|slot| std::cmp::Reverse(self.of(*slot).priority));
        order
    }

    /// For a state that comes after this one.
    pub(super) fn next(self, status: &LoaderStatus) -> Self {
        let highest = self.a.priority.max(self.b.priority) | 1;
        let first = if highest + 2 > LAST_PRIORITY { FIRST_PRIORITY } else { highest + 2 };
        let on_trial = status.trial.filter(|trial| trial.evidence == TrialEvidence::None);
        let proven = status.try_counting() == TryCounting::Proven || on_trial.is_some();
        let bits = |slot: Slot| {
            let order = status.order.iter().filter(|slot| status.may_boot(**slot));
            let Some(place) = order.zip(0..).find_map(|(entry, place)| (*entry == slot).then_some(place))
            else {
                let trial = status.trial.filter(|trial| trial.slot == slot);
                let tries = trial.map_or(0, |trial| end(trial.evidence));
                return SlotBits { tries, ..SlotBits::default() };
            };
            let successful = proven && on_trial.is_none_or(|trial| trial.slot != slot);
            let tries = if successful { 0 } else { status.slot(slot).tries_left.min(FULL).0 };
            SlotBits { priority: first - place, tries, successful }
        };
        Self { a: bits(Slot::A), b: bits(Slot::B) }
    }

    /// The state as far as bits alone tell it.
    pub(super) fn infer(self, known: Known) -> LoaderStatus {
        let order = self.order();
        let trial = self.trial(&order, known.trial);
        let slot = |slot: Slot| {
            let SlotBits { priority, tries, successful } = self.of(slot);
            if priority == 0 {
                return SlotState { health: SlotHealth::Bad, tries_left: Tries::NONE };
            }
            let is_on_trial = trial.is_some_and(|trial| trial.slot == slot);
            let tries_left = match (is_on_trial, successful) {
                (true, _) => Tries(tries),
                (false, true) if known.may_be_left_as_it_is => FULL,
                (false, false) if tries == FULL.0 => FULL,
                (false, _) => UNCOUNTED,
            };
            SlotState { health: SlotHealth::Good, tries_left }
        };
        let (a, b) = (slot(Slot::A), slot(Slot::B));
        LoaderStatus { order, a, b, tries_full: FULL, counting_seen: known.counting, trial }
    }

    /// A slot that was not booted well, beside one that was, is on trial: nothing else is ever left so.
    /// A slot that never boots tells what ended its trial.
    fn trial(self, order: &[Slot], noted: Option<TrialState>) -> Option<TrialState> {
        let of = |slot: Slot, evidence| {
            let ended = noted.filter(|trial| trial.slot == slot && evidence != TrialEvidence::None);
            let unknown =
                TrialState { slot, attempt: crate::boot::AttemptId(0), tries_armed: Tries::TRIAL, evidence };
            TrialState { evidence, ..ended.unwrap_or(unknown) }
        };
        let unproven: Vec<Slot> = order.iter().copied().filter(|slot| !self.of(*slot).successful).collect();
        if let ([slot], [_, _]) = (unproven.as_slice(), order) {
            return Some(of(*slot, TrialEvidence::None));
        }
        let mut out = Slot::BOTH.into_iter().filter(|slot| self.of(*slot).priority == 0);
        let ended = |slot: Slot| {
            let tries = self.of(slot).tries;
            TrialEvidence::ALL.into_iter().find(|evidence| tries != 0 && end(*evidence) == tries)
        };
        out.find_map(|slot| Some(of(slot, ended(slot)?)))
    }
}

/// The tries of a slot that never boots, for what ended its trial.
fn end(evidence: TrialEvidence) -> u8 {
    match evidence {
        TrialEvidence::None => 0,
        TrialEvidence::RevertedSomehow => 8,
        TrialEvidence::FellBack => 9,
        TrialEvidence::WatchdogReset => 10,
        TrialEvidence::Reverted => 11,
        TrialEvidence::RevertedByGuard => 12,
        TrialEvidence::RevertedByPerson => 13,
        TrialEvidence::RevertedWithoutApi => 14,
    }
}

/// What is known beside the bits, from notes that do not belong to them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Whether the loader was ever seen to count.
    pub(super) counting: TryCounting,
    /// The trial that was noted last.
    pub(super) trial: Option<TrialState>,
    /// Whether a slot that was booted well is to stay so: not while it has to be shown that tries are
    /// counted, as they are not for such a slot.
    pub(super) may_be_left_as_it_is: bool,
}

/// A state, and the bits that were written with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) status: LoaderStatus,
    pub(super) bits: Bits,
}

impl Record {
    /// Whether the bits are what a loader may have made of this record's.
    pub(super) fn belongs_to(&self, now: Bits) -> bool {
        self.bits.a.may_have_become(now.a) && self.bits.b.may_have_become(now.b)
    }

    /// The state, without the tries that the loader has burnt since.
    pub(super) fn at(&self, now: Bits) -> LoaderStatus {
        let mut status = self.status.clone();
        for (slot, state) in [(Slot::A, &mut status.a), (Slot::B, &mut status.b)] {
            if now.of(slot).tries < self.bits.of(slot).tries {
                state.tries_left = Tries(now.of(slot).tries);
            }
        }
        status
    }
}
