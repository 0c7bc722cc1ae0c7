//! A trial as text, for loaders that keep variables.

use std::fmt;
use std::str::FromStr;

use super::{AttemptId, TrialEvidence, TrialState, Tries};

/// The words for the evidence, as loaders keep it.
const EVIDENCE: [(TrialEvidence, &str); 7] = [
    (TrialEvidence::None, "none"),
    (TrialEvidence::FellBack, "fell-back"),
    (TrialEvidence::WatchdogReset, "watchdog"),
    (TrialEvidence::Reverted, "agent"),
    (TrialEvidence::RevertedByGuard, "guard"),
    (TrialEvidence::RevertedWithoutApi, "no-api"),
    (TrialEvidence::RevertedByPerson, "person"),
];

impl fmt::Display for TrialEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EVIDENCE.iter().find(|(known, _)| known == self).map_or("none", |(_, word)| word))
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
                evidence: parts.next().and_then(|word| {
                    EVIDENCE.iter().find(|(_, known)| *known == word).map(|(evidence, _)| *evidence)
                })?,
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
        for (evidence, _) in EVIDENCE {
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
        for wrong in ["", "B:7:1", "B:7:1:none:", "C:7:1:none", "B:-7:1:none", "B:7:999:none", "B:7:1:x"] {
            assert!(wrong.parse::<TrialState>().is_err(), "{wrong}");
        }
    }
}
