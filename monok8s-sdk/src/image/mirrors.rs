//! Which of several mirrors is asked next, given what was seen of each. Pure: no clock, no network.
//!
//! One [`Mirrors`] serves all requests for a file, so that whatever one request finds out costs no
//! other request anything.

use std::time::Duration;

use super::resume::Identity;

/// Failures in a row after which nobody waits any longer for a mirror that might send parts of the
/// file, if another one is there that sends the whole.
pub(super) const PATIENCE: u32 = 3;
/// Slower than this, in bytes a second and for each request, a mirror comes after those that may be
/// faster.
const SLOW: u64 = 32 * 1024;
/// How long requests must have waited for a mirror's bytes before it counts as slow.
const MEASURED: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A part of the file that is checked by itself.
    Part,
    /// Everything from here on, which is checked when all of it is there.
    Rest {
        /// The first byte.
        from: u64,
    },
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This mirror.
    Ask(usize),
    /// Nobody: no mirror sends parts of the file, but this one has it.
    OnlyWhole {
        /// The mirror.
        mirror: usize,
        /// Why it is of no use for parts.
        why: String,
    },
    /// Nobody is left.
    Nobody,
}

/// What one request showed of its mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It answered, with a file of this identity.
    Answered(Identity),
    /// So many bytes came, and they were waited for so long.
    Came {
        /// How many.
        bytes: u64,
        /// How long.
        waited: Duration,
    },
    /// An error that may pass. `before` is how many [`failures`](Mirrors::failures) it had when the
    /// request began, or none if something came: requests that fail at the same time count as one.
    Failed {
        /// How many failures it had.
        before: u32,
    },
    /// It sends no parts of the file, or wrong ones.
    NoRanges(String),
    /// Bytes that are not those that were ordered.
    WrongBytes,
    /// It is of no use, and will not be.
    Useless(Fault),
}

/// Why a mirror is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// 404 or 410.
    NotFound(u16),
    /// 401 or 403.
    Forbidden(u16),
    /// It has another file than was begun.
    Other,
    /// Anything else.
    Unusable(String),
}

/// What is known of the mirrors of a file.
#[derive(Clone, Debug)]
pub(super) struct Mirrors {
    known: Vec<Known>,
    /// The mirror that was of no use last.
    last_useless: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    identity: Option<Identity>,
    fault: Option<Fault>,
    only_whole: Option<String>,
    /// How often it sent wrong bytes, or had another file than before.
    doubts: u32,
    /// In a row.
    failures: u32,
    bytes: u64,
    waited: Duration,
}

impl Mirrors {
    /// That many mirrors, of which nothing is known; the first is liked best.
    pub(super) fn new(count: usize) -> Self {
        Self { known: vec![Known::default(); count], last_useless: None }
    }

    /// Who is asked next. Those in `except` are not.
    pub(super) fn next(&self, need: Need, except: &[usize]) -> Next {
        let serves = |(number, known): &(usize, &Known)| {
            let can = need != Need::Part || known.only_whole.is_none();
            can && known.fault.is_none() && !except.contains(number)
        };
        let best = self
            .known
            .iter()
            .enumerate()
            .filter(serves)
            .min_by_key(|(number, known)| self.rank(*number, known, need));
        match (best, self.only_whole(except)) {
            (Some((_, best)), Some((mirror, why))) if need == Need::Part && best.failures >= PATIENCE => {
                Next::OnlyWhole { mirror, why }
            }
            (Some((best, _)), _) => Next::Ask(best),
            (None, Some((mirror, why))) => Next::OnlyWhole { mirror, why },
            (None, None) => Next::Nobody,
        }
    }

    /// A mirror that has the file and sends no parts of it, and why not.
    pub(super) fn only_whole(&self, except: &[usize]) -> Option<(usize, String)> {
        let usable = self.known.iter().enumerate();
        usable
            .filter(|(number, known)| known.fault.is_none() && !except.contains(number))
            .find_map(|(mirror, known)| Some((mirror, known.only_whole.clone()?)))
    }

    /// The lowest comes first.
    fn rank(&self, number: usize, known: &Known, need: Need) -> (u32, u32, bool, bool, usize) {
        let slow = self.is_slow(number, known);
        match need {
            // Each part is checked, so that a doubt costs a part at most.
            Need::Part => (known.failures, known.doubts, false, slow, number),
            // What is in doubt is mixed with nothing while anybody else is left.
            Need::Rest { from } => {
                (known.doubts, known.failures, from > 0 && known.only_whole.is_some(), slow, number)
            }
        }
    }

    /// Whether it is slow and another one may be faster.
    fn is_slow(&self, number: usize, known: &Known) -> bool {
        let may_be_faster = |other: &Known| other.waited < MEASURED || other.speed() > known.speed() * 2;
        known.waited >= MEASURED
            && known.speed() < SLOW
            && self
                .known
                .iter()
                .enumerate()
                .any(|(other, its)| other != number && its.fault.is_none() && may_be_faster(its))
    }

    /// Takes note of what a request showed.
    pub(super) fn saw(&mut self, mirror: usize, seen: Seen) {
        let Some(known) = self.known.get_mut(mirror) else { return };
        match seen {
            Seen::Answered(identity) => {
                if known.identity.as_ref().is_some_and(|before| before.contradicts(&identity)) {
                    known.doubts = known.doubts.saturating_add(1);
                }
                known.identity = Some(identity);
            }
            Seen::Came { bytes, waited } => {
                // Headers alone are no sign of life: some servers send nothing behind them.
                if bytes > 0 {
                    known.failures = 0;
                }
                known.bytes = known.bytes.saturating_add(bytes);
                known.waited = known.waited.saturating_add(waited);
            }
            Seen::Failed { before } => known.failures = known.failures.max(before.saturating_add(1)),
            Seen::NoRanges(why) => {
                // It answered, so it is there.
                known.failures = 0;
                known.only_whole.get_or_insert(why);
            }
            Seen::WrongBytes => known.doubts = known.doubts.saturating_add(1),
            Seen::Useless(fault) => {
                known.fault = Some(fault);
                self.last_useless = Some(mirror);
            }
        }
    }

    /// How often a mirror failed in a row.
    pub(super) fn failures(&self, mirror: usize) -> u32 {
        self.known.get(mirror).map_or(0, |known| known.failures)
    }

    /// A mirror that is of no use, and why: one whose file was replaced, which may be mended by itself,
    /// else the last one.
    pub(super) fn useless(&self) -> Option<(usize, &Fault)> {
        let faults = || {
            self.known.iter().enumerate().filter_map(|(mirror, known)| Some((mirror, known.fault.as_ref()?)))
        };
        faults()
            .find(|(_, fault)| **fault == Fault::Other)
            .or_else(|| faults().find(|(mirror, _)| Some(*mirror) == self.last_useless))
    }
}

impl Known {
    /// Bytes a second.
    fn speed(&self) -> u64 {
        let milliseconds = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1000) / milliseconds
    }
}

#[cfg(test)]
#[path = "mirrors_tests.rs"]
mod tests;
