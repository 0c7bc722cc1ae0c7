//! The checks that an upgrade configures for a trial, each of which must hold for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::TrialCheck;

/// What one look at a check saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckSight {
    /// It is well.
    Well,
    /// It is not; the text says what was seen.
    Unwell(String),
    /// It takes the API server to tell, and that does not answer.
    ApiUnreachable,
}

/// How one check stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckState {
    /// It has been well for as long as it has to.
    Held,
    /// It is well, and has to stay so.
    Holding {
        /// For how much longer.
        remaining: Duration,
    },
    /// It is not well; the text says what was seen.
    Failing(String),
    /// It takes the API server to tell, and that does not answer.
    ApiUnreachable,
}

/// A check by its name, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedCheck {
    /// The name that the upgrade gives it.
    pub name: String,
    /// How it stands.
    pub state: CheckState,
}

impl NamedCheck {
    /// What is missing, if anything.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let name = &self.name;
        match &self.state {
            CheckState::Held => None,
            // Without the seconds: they change at every look, and a status is not written for that.
            CheckState::Holding { .. } => {
                Some(format!("the check {name:?} is well, and has to stay so for a while"))
            }
            CheckState::Failing(seen) => Some(format!("the check {name:?} fails: {seen}")),
            CheckState::ApiUnreachable => {
                Some(format!("the check {name:?} needs the API server, which does not answer"))
            }
        }
    }
}

/// Since when each check has been well without a break, in this boot.
///
/// A process that starts anew begins to count anew: what nobody saw did not hold.
#[derive(Clone, Debug, Default)]
pub struct Holds(BTreeMap<String, Duration>);

impl Holds {
    /// Takes in what was seen of `check` at an uptime, and says how it stands.
    pub fn see(&mut self, check: &TrialCheck, sight: CheckSight, uptime: Duration) -> NamedCheck {
        let state = match sight {
            CheckSight::Well => {
                let since = *self.0.entry(check.name.clone()).or_insert(uptime);
                let remaining = check.hold().saturating_sub(uptime.saturating_sub(since));
                if remaining.is_zero() { CheckState::Held } else { CheckState::Holding { remaining } }
            }
            CheckSight::Unwell(seen) => {
                self.0.remove(&check.name);
                CheckState::Failing(seen)
            }
            CheckSight::ApiUnreachable => {
                self.0.remove(&check.name);
                CheckState::ApiUnreachable
            }
        };
        NamedCheck { name: check.name.clone(), state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_holds_once_it_was_well_for_long_enough_without_a_break() {
        let check =
            TrialCheck { name: "web".to_owned(), hold_seconds: Some(10), http: None, exec: None, pods: None };
        let mut holds = Holds::default();
        let mut see = |sight: CheckSight, at: u64| holds.see(&check, sight, Duration::from_secs(at)).state;
        let holding = |seconds| CheckState::Holding { remaining: Duration::from_secs(seconds) };
        assert_eq!(see(CheckSight::Well, 100), holding(10));
        assert_eq!(see(CheckSight::Well, 109), holding(1));
        assert!(matches!(see(CheckSight::Unwell("503".to_owned()), 109), CheckState::Failing(_)));
        assert_eq!(see(CheckSight::Well, 110), holding(10), "it begins again");
        assert_eq!(see(CheckSight::ApiUnreachable, 115), CheckState::ApiUnreachable);
        assert_eq!(see(CheckSight::Well, 116), holding(10));
        assert_eq!(see(CheckSight::Well, 126), CheckState::Held);
        assert_eq!(see(CheckSight::Well, 127), CheckState::Held);
    }

    #[test]
    fn what_is_missing_is_said_with_the_name() {
        let said = |state| NamedCheck { name: "web".to_owned(), state }.missing();
        assert_eq!(said(CheckState::Held), None);
        let rest = CheckState::Holding { remaining: Duration::from_millis(1500) };
        assert_eq!(said(rest).unwrap(), "the check \"web\" is well, and has to stay so for a while");
        let failing = said(CheckState::Failing("503".to_owned())).unwrap();
        assert_eq!(failing, "the check \"web\" fails: 503");
    }
}
