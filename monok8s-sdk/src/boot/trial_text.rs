//! A trial as text, for loaders that keep variables.

use std::fmt;
use std::str::FromStr;

use super::{AttemptId, TrialEvidence, TrialState, Tries};

/// The word for it, as loaders keep it.
impl fmt::Display for TrialEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::FellBack => "fell-back",
            Self::WatchdogReset => "watchdog",
            Self::Reverted => "agent",
            Self::RevertedByGuard => "guard",
            Self::RevertedWithoutApi => "no-api",
            Self::RevertedByPerson => "person",
            Self::RevertedSomehow => "sent-back",
        })
    }
}

impl TrialEvidence {
    /// What a word stands for. One that a newer release noted says at least that the trial is over.
    fn of(word: &str) -> Option<Self> {
        let is_word = !word.is_empty()
            && word.len() <= 32
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let known = Self::ALL.into_iter().find(|evidence| evidence.to_string() == word);
        known.or(is_word.then_some(Self::RevertedSomehow))
    }
}

/// A text that is no trial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no trial: it is written SLOT:ATTEMPT:TRIES:EVIDENCE, such as B:7:1:none")]
pub struct TrialStateError {
    text: String,
}

/// `SLOT:ATTEMPT:TRIES:EVIDENCE`, such as `B:7:1:none`: how loaders that keep text keep a trial.
impl fmt::Display for TrialState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, attempt, tries_armed, evidence } = self;
        write!(f, "{slot}:{attempt}:{}:{evidence}", tries_armed.0)
    }
}

impl FromStr for TrialState {
    type Err = TrialStateError;

    fn from_str(text: &str) -> Result<Self, TrialStateError> {
        let parse = || {
            let mut parts = text.split(':');
            let trial = Self {
                slot: parts.next()?.parse().ok()?,
                attempt: AttemptId(parts.next()?.parse().ok()?),
                tries_armed: Tries(parts.next()?.parse().ok()?),
                evidence: parts.next().and_then(TrialEvidence::of)?,
            };
            parts.next().is_none().then_some(trial)
        };
        parse().ok_or_else(|| TrialStateError { text: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::Slot;

    #[test]
    fn a_trial_is_kept_as_text() {
        for evidence in TrialEvidence::ALL {
            let trial = TrialState { slot: Slot::B, attempt: AttemptId(70), tries_armed: Tries(1), evidence };
            assert_eq!(trial.to_string().parse(), Ok(trial));
        }
        let armed = TrialState {
            slot: Slot::B,
            attempt: AttemptId(7),
            tries_armed: Tries::TRIAL,
            evidence: TrialEvidence::None,
        };
        assert_eq!(armed.to_string(), "B:7:1:none");
        let of_a_newer_release = TrialState { evidence: TrialEvidence::RevertedSomehow, ..armed };
        assert_eq!("B:7:1:by-tea-leaves".parse(), Ok(of_a_newer_release));
        for wrong in
            ["", "B:7:1", "B:7:1:none:", "C:7:1:none", "B:-7:1:none", "B:7:999:none", "B:7:1:", "B:7:1:X"]
        {
            assert!(wrong.parse::<TrialState>().is_err(), "{wrong}");
        }
    }
}
