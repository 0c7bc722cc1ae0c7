//! What the files say about the slots, and which files change for another state. No I/O.

use super::BlsError;
use super::entry::{Counter, EntryName, EntryText, SortKey};
use crate::boot::{
    AttemptId, LoaderStatus, SlotHealth, SlotState, TrialEvidence, TrialState, Tries, TryCounting,
};
use crate::slot::Slot;

/// How many tries a slot has while it is not known whether the loader counts: what an image's first
/// entry is called with, `monok8s-a+3.conf`.
pub const TRIES_FULL: Tries = Tries::DEFAULT_FULL;
/// Its presence says that the loader was seen to count.
pub(super) const COUNTS: &str = "monok8s-counts";

/// One boot entry.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    counter: Option<Counter>,
    key: SortKey,
    text: EntryText,
}

impl Entry {
    /// The trial it is armed for. Without a counter it was confirmed.
    fn trial(&self) -> Option<(AttemptId, Tries)> {
        self.text.trial.filter(|_| self.counter.is_some())
    }

    fn tries_left(&self) -> Tries {
        let full = TRIES_FULL.0;
        let small = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
        match self.counter {
            Some(Counter { left, .. }) if self.trial().is_some() => Tries(small(left)),
            Some(Counter { left: 0, .. }) => Tries::NONE,
            None | Some(Counter { done: 0, .. }) => TRIES_FULL,
            // Whatever it began with, one try is missing, and the loader still takes it.
            Some(Counter { done, .. }) => Tries(full.saturating_sub(small(done)).max(1)),
        }
    }
}

impl Entry {
    /// Of two that boot the same, at the same place, for the same trial, the confirmed one: the other was
    /// renamed to it.
    fn or_confirmed(self, other: Self) -> Option<Self> {
        let place = |entry: &Self| (entry.key, entry.text.trial, entry.text.plain());
        let is_same = place(&self) == place(&other);
        match (self.counter, other.counter) {
            (None, Some(_)) if is_same => Some(self),
            (Some(_), None) if is_same => Some(other),
            _ => None,
        }
    }

    /// The same under a name, without a trial on the kernel's command line.
    fn told_of_nothing(&self, name: String) -> Change {
        let mut text = self.text.clone();
        text.tell(None);
        Change::Place { name, content: text.to_string() }
    }
}

/// What is left of a trial.
#[derive(Clone, Debug)]
struct Ended {
    name: String,
    trial: TrialState,
}

/// Our files in the directory of entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    a: Option<Entry>,
    b: Option<Entry>,
    ended: Option<Ended>,
    counts: bool,
    /// Two names of one entry.
    twins: Option<(String, String)>,
}

/// One change of the directory, to be flushed before the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A file with this content appears under a name, instead of what that named.
    Place {
        name: String,
        content: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
}

impl Entries {
    /// Takes in a file. Files that are not ours change nothing.
    pub(super) fn take(&mut self, name: &str, content: &[u8]) -> Result<(), BlsError> {
        if name == COUNTS {
            self.counts = true;
        }
        let Some(parsed) = EntryName::parse(name)? else { return Ok(()) };
        let wrong = |what| BlsError::Entry { name: name.to_owned(), what };
        let text = EntryText::parse(content).map_err(wrong)?;
        match parsed {
            EntryName::Entry { slot, counter } => {
                let key = text.key.ok_or(wrong("it has no sort-key, such as monok8s-500000000"))?;
                let entry = Entry { name: name.to_owned(), counter, key, text };
                let Some(twin) = self.slot_mut(slot).take() else {
                    *self.slot_mut(slot) = Some(entry);
                    return Ok(());
                };
                let twins = (twin.name.clone(), name.to_owned());
                let Some(confirmed) = twin.or_confirmed(entry) else {
                    return Err(BlsError::Twins { first: twins.0, second: twins.1 });
                };
                self.twins = Some(twins);
                *self.slot_mut(slot) = Some(confirmed);
            }
            EntryName::Ended { slot, evidence } => {
                let (attempt, tries_armed) = text.trial.ok_or(wrong("it has no line \"# monok8s-trial\""))?;
                let trial = TrialState { slot, attempt, tries_armed, evidence };
                let ended = Ended { name: name.to_owned(), trial };
                if let Some(twin) = self.ended.replace(ended) {
                    return Err(BlsError::Twins { first: twin.name, second: name.to_owned() });
                }
            }
        }
        Ok(())
    }

    /// Both entries cannot stand at one place: which boots would then depend on their names.
    pub(super) fn check(&self) -> Result<(), BlsError> {
        match (&self.a, &self.b) {
            (None, None) => Err(BlsError::NoEntry),
            (Some(a), Some(b)) if a.key == b.key => Err(BlsError::SameKey { key: a.key.to_string() }),
            _ => Ok(()),
        }
    }

    /// What is there under two names is not changed: the two may share one file.
    pub(super) fn require_no_twins(&self) -> Result<(), BlsError> {
        match self.twins.clone() {
            Some((first, second)) => Err(BlsError::Twins { first, second }),
            None => Ok(()),
        }
    }

    /// Whether the kernel of a slot that is not on trial is told of one.
    pub(super) fn tells_of_what_is_over(&self) -> bool {
        [&self.a, &self.b].into_iter().flatten().any(|entry| entry.trial().is_none() && entry.text.tells())
    }

    pub(super) fn has(&self, slot: Slot) -> bool {
        self.slot(slot).is_some()
    }

    /// The lines of a slot's entry.
    pub(super) fn text(&self, slot: Slot) -> Option<&EntryText> {
        self.slot(slot).map(|entry| &entry.text)
    }

    fn slot(&self, slot: Slot) -> Option<&Entry> {
        match slot {
            Slot::A => self.a.as_ref(),
            Slot::B => self.b.as_ref(),
        }
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut Option<Entry> {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }

    pub(super) fn status(&self) -> LoaderStatus {
        let state = |slot| match self.slot(slot) {
            Some(entry) => SlotState { health: SlotHealth::Good, tries_left: entry.tries_left() },
            None => SlotState { health: SlotHealth::Bad, tries_left: Tries::NONE },
        };
        let mut order: Vec<_> = Slot::BOTH.into_iter().filter(|slot| self.has(*slot)).collect();
        order.sort_by_key(|slot| self.slot(*slot).map(|entry| entry.key));
        LoaderStatus {
            order,
            a: state(Slot::A),
            b: state(Slot::B),
            tries_full: TRIES_FULL,
            counting_seen: if self.counts { TryCounting::Proven } else { TryCounting::Unsupported },
            trial: self.trial(),
        }
    }

    /// The armed trial, else the one that ended.
    fn trial(&self) -> Option<TrialState> {
        let armed = |slot| {
            let (attempt, tries_armed) = self.slot(slot)?.trial()?;
            Some(TrialState { slot, attempt, tries_armed, evidence: TrialEvidence::None })
        };
        armed(Slot::A).or_else(|| armed(Slot::B)).or_else(|| self.ended.as_ref().map(|ended| ended.trial))
    }

    /// The changes that lead to `target`, in an order in which every one of them may be the last: what
    /// was seen is noted before its proof goes, the old trial is gone before a new one is there, and a
    /// slot is without an entry rather than with two. `staged` is what a slot without an entry boots.
    pub(super) fn changes(
        &self,
        target: &LoaderStatus,
        staged: impl Fn(Slot) -> Option<EntryText>,
    ) -> Result<Vec<Change>, BlsError> {
        let mut changes = Vec::new();
        if target.counting_seen == TryCounting::Proven && !self.counts {
            changes.push(Change::Place { name: COUNTS.into(), content: String::new() });
        }
        self.change_ended(target, &mut changes);
        for slot in Slot::BOTH {
            if !target.order.contains(&slot) {
                self.take_out(slot, target, &mut changes);
            }
        }
        for slot in Slot::BOTH {
            if target.order.contains(&slot) {
                self.bring_in(slot, target, &staged, &mut changes)?;
            }
        }
        Ok(changes)
    }

    fn change_ended(&self, target: &LoaderStatus, changes: &mut Vec<Change>) {
        let Some(Ended { name, trial }) = &self.ended else { return };
        let same = |wanted: &TrialState| TrialState { evidence: trial.evidence, ..*wanted } == *trial;
        match target.trial.filter(|wanted| wanted.evidence != TrialEvidence::None && same(wanted)) {
            Some(wanted) if wanted == *trial => {}
            Some(TrialState { slot, evidence, .. }) => {
                let to = EntryName::Ended { slot, evidence }.to_string();
                changes.push(Change::Rename { from: name.clone(), to });
            }
            None => changes.push(Change::Remove { name: name.clone() }),
        }
    }

    /// An entry goes in one step, also where it leaves evidence.
    fn take_out(&self, slot: Slot, target: &LoaderStatus, changes: &mut Vec<Change>) {
        let Some(entry) = self.slot(slot) else { return };
        let name = entry.name.clone();
        changes.push(match target.trial.filter(|trial| trial.slot == slot) {
            Some(TrialState { evidence, .. }) => {
                Change::Rename { from: name, to: EntryName::Ended { slot, evidence }.to_string() }
            }
            None => Change::Remove { name },
        });
    }

    fn bring_in(
        &self,
        slot: Slot,
        target: &LoaderStatus,
        staged: impl Fn(Slot) -> Option<EntryText>,
        changes: &mut Vec<Change>,
    ) -> Result<(), BlsError> {
        let entry = self.slot(slot);
        let wanted = target.trial.filter(|trial| trial.slot == slot && trial.evidence == TrialEvidence::None);
        let left = target.slot(slot).tries_left;
        let armed = entry.and_then(|entry| entry.trial().map(|trial| (trial, entry.tries_left())));
        match (wanted, entry) {
            (Some(trial), _) if armed == Some(((trial.attempt, trial.tries_armed), left)) => {}
            (Some(trial), entry) => {
                let mut text = entry
                    .map(|entry| entry.text.clone())
                    .or_else(|| staged(slot))
                    .ok_or(BlsError::NothingStaged { slot })?;
                text.key = Some(self.key_before(slot)?);
                text.trial = Some((trial.attempt, trial.tries_armed));
                text.tell(Some(trial));
                if let Some(entry) = entry {
                    changes.push(Change::Remove { name: entry.name.clone() });
                }
                let counter = Some(Counter { left: u32::from(left.0), done: 0 });
                let name = EntryName::Entry { slot, counter }.to_string();
                changes.push(Change::Place { name, content: text.to_string() });
            }
            (None, None) => return Err(BlsError::NothingStaged { slot }),
            (None, Some(entry)) if armed.is_none() && left == entry.tries_left() => {
                if entry.text.tells() {
                    changes.push(entry.told_of_nothing(entry.name.clone()));
                }
            }
            (None, Some(entry)) => {
                // A trial with a counter would go on.
                let is_over = target.counting_seen == TryCounting::Proven || entry.text.trial.is_some();
                let full = Counter { left: u32::from(TRIES_FULL.0), done: 0 };
                let counter = if is_over { None } else { Some(full) };
                let to = EntryName::Entry { slot, counter }.to_string();
                changes.push(Change::Rename { from: entry.name.clone(), to: to.clone() });
                // The name counts. Until this, too, is done, the kernel is told of a trial that is over.
                if entry.text.tells() {
                    changes.push(entry.told_of_nothing(to));
                }
            }
        }
        Ok(())
    }

    /// The key of an entry that goes before the other slot's.
    fn key_before(&self, slot: Slot) -> Result<SortKey, BlsError> {
        match self.slot(slot.other()) {
            None => Ok(SortKey::FIRST),
            Some(other) => other.key.before().ok_or(BlsError::SameKey { key: other.key.to_string() }),
        }
    }
}
