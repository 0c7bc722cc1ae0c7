//! The booted slot is on trial: keep it, wait, or send it back.

use std::time::Duration;

use super::action::{Action, WaitReason};
use super::facts::{NodeFacts, NodeView, TrialHealth};
use super::record::{Attempt, AttemptState};
use super::step::Step;
use crate::api::{ApiUnavailable, FailureReason, TrialSpec};
use crate::boot::TrialEvidence;

/// What becomes of a running trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Confirm,
    /// It is not decided yet.
    Await {
        /// How much of the trial is left.
        remaining: Duration,
        /// What is missing.
        missing: String,
    },
    /// It does not hold.
    Revert {
        /// Why.
        reason: FailureReason,
        /// That in a sentence.
        message: String,
    },
}

/// Judges a trial that has been running for `elapsed`, by the monotonic clock.
///
/// What holds is confirmed even at the last moment. With the API server away, and everything on
/// the node well, the deadline decides by `apiUnavailable`; a version that only the API server could
/// have told is not confirmed even then, and neither is a configured check that needs it.
#[must_use]
pub fn judge(spec: &TrialSpec, health: &TrialHealth, elapsed: Duration) -> Verdict {
    let limit = spec.timeout();
    let remaining = limit.saturating_sub(elapsed);
    let locally = health.missing_locally();
    let version = health.version.missing();
    let remotely = health.missing_with_the_api();
    let away = remotely.is_some() || health.node == NodeView::ApiUnreachable;
    let missing = locally.clone().or_else(|| version.map(str::to_owned)).or_else(|| remotely.clone());
    let missing = match (missing, &health.node) {
        (None, NodeView::ReadyInThisBoot) => return Verdict::Confirm,
        (Some(missing), _) => missing,
        (None, NodeView::NotReady(seen)) => seen.clone(),
        (None, NodeView::ApiUnreachable) => "the API server does not answer".to_owned(),
    };
    if !remaining.is_zero() {
        return Verdict::Await { remaining, missing };
    }
    let only_api_missing = locally.is_none() && away && !matches!(health.node, NodeView::NotReady(_));
    let local_is_enough = version.is_none() && remotely.is_none();
    let reason = match (only_api_missing, spec.api_unavailable.unwrap_or_default()) {
        (true, ApiUnavailable::ConfirmLocally) if local_is_enough => return Verdict::Confirm,
        (true, _) => FailureReason::ApiUnavailable,
        (false, _) => FailureReason::TrialTimedOut,
    };
    let message = format!("not confirmed within {} s: {missing}", limit.as_secs());
    Verdict::Revert { reason, message }
}

/// The action of a trial that runs now, or `None` when the booted slot is not on trial.
pub(super) fn running(facts: &NodeFacts) -> Option<Action> {
    let trial = facts.loader.trial.filter(|trial| trial.slot == facts.booted.slot)?;
    let attempt = facts.record.attempt.as_ref().filter(|attempt| attempt.id == trial.attempt);
    let Some(attempt) = attempt else {
        // Nobody knows what this trial is for. The guard sends it back at its deadline.
        return Some(Action::Wait(WaitReason::BootedSlotUnconfirmed { slot: trial.slot }));
    };
    if attempt.state == AttemptState::RolledBack {
        // Its end is recorded; somebody chose the slot by hand.
        return None;
    }
    Some(match (trial.evidence, &attempt.state) {
        (_, AttemptState::Reverting) => revert(facts, attempt, trial.evidence),
        // It came up although the loader was told otherwise, and that is recorded.
        (evidence, AttemptState::Failed) if evidence.is_reverted() => return None,
        // The guard, or a person, was faster.
        (evidence, _) if evidence.is_reverted() => {
            reverting(facts, super::commit::reason(evidence), super::commit::in_words(evidence, attempt))
        }
        // Also of an attempt that failed and was not disarmed before the power did: what runs is
        // what was verified and committed to, so it is judged like any other.
        _ => on_trial(facts, attempt),
    })
}

fn on_trial(facts: &NodeFacts, attempt: &Attempt) -> Action {
    let booted = &facts.booted;
    if booted.version != attempt.version {
        let message = format!(
            "slot {} was to boot {}, but runs {}: the image is not what its catalog says",
            booted.slot, attempt.version, booted.version
        );
        return reverting(facts, FailureReason::WrongVersionBooted, message);
    }
    match judge(&attempt.trial, &facts.health, facts.time_in_trial) {
        Verdict::Confirm => Action::Confirm { slot: booted.slot },
        Verdict::Await { remaining, missing } => Action::AwaitHealth { remaining, missing },
        Verdict::Revert { reason, message } => reverting(facts, reason, message),
    }
}

fn reverting(facts: &NodeFacts, reason: FailureReason, message: String) -> Action {
    Action::Record(Step::Reverting { reason, message, boot_id: facts.booted.boot_id.clone() })
}

/// The revert is recorded: tell the loader, then reboot, once.
fn revert(facts: &NodeFacts, attempt: &Attempt, evidence: TrialEvidence) -> Action {
    let reason = attempt.reason.clone().unwrap_or(FailureReason::TrialTimedOut);
    let this_boot = attempt.boot_id.as_ref() == Some(&facts.booted.boot_id);
    match (evidence.is_reverted(), this_boot) {
        (false, true) => Action::RevertTrial { reason },
        (false, false) => reverting(facts, reason, attempt.message.clone().unwrap_or_default()),
        (true, true) => Action::Reboot { into: attempt.slot.other() },
        // It came up again although the loader was told otherwise: rebooting would go on for ever.
        (true, false) => super::decide::fail(
            FailureReason::LoaderError,
            format!(
                "the loader booted slot {} again after its trial was sent back; its configuration does not obey its own order",
                attempt.slot
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_upgrade::{Check, CheckState, NamedCheck};

    fn healthy() -> TrialHealth {
        TrialHealth {
            version: Check::Holds,
            kubelet: Check::Holds,
            control_plane: Check::NotNeeded,
            configured: Vec::new(),
            node: NodeView::ReadyInThisBoot,
        }
    }

    fn with_check(state: CheckState, node: NodeView) -> TrialHealth {
        let configured = vec![NamedCheck { name: "web".to_owned(), state }];
        TrialHealth { configured, node, ..healthy() }
    }

    fn at_the_end(policy: ApiUnavailable, health: &TrialHealth) -> Verdict {
        let spec = TrialSpec { api_unavailable: Some(policy), ..TrialSpec::default() };
        judge(&spec, health, Duration::from_secs(601))
    }

    fn reverts_for(verdict: &Verdict) -> Option<FailureReason> {
        match verdict {
            Verdict::Revert { reason, .. } => Some(reason.clone()),
            Verdict::Confirm | Verdict::Await { .. } => None,
        }
    }

    #[test]
    fn configured_checks_always_count() {
        use ApiUnavailable::{ConfirmLocally, Revert};
        let holding = CheckState::Holding { remaining: Duration::from_secs(3) };
        for (state, node, reason) in [
            (CheckState::Held, NodeView::ReadyInThisBoot, None),
            (holding.clone(), NodeView::ReadyInThisBoot, Some(FailureReason::TrialTimedOut)),
            (
                CheckState::Failing("503".into()),
                NodeView::ReadyInThisBoot,
                Some(FailureReason::TrialTimedOut),
            ),
            // Also where the API server is away, and what is well locally would do.
            (holding, NodeView::ApiUnreachable, Some(FailureReason::TrialTimedOut)),
            (CheckState::ApiUnreachable, NodeView::ApiUnreachable, Some(FailureReason::ApiUnavailable)),
            (CheckState::ApiUnreachable, NodeView::ReadyInThisBoot, Some(FailureReason::ApiUnavailable)),
        ] {
            let health = with_check(state, node);
            for policy in [Revert, ConfirmLocally] {
                assert_eq!(reverts_for(&at_the_end(policy, &health)), reason, "{policy:?} {health:?}");
            }
        }
        let held = with_check(CheckState::Held, NodeView::ApiUnreachable);
        assert_eq!(at_the_end(ConfirmLocally, &held), Verdict::Confirm);
        assert_eq!(reverts_for(&at_the_end(Revert, &held)), Some(FailureReason::ApiUnavailable));
    }

    #[test]
    fn what_is_missing_is_said_before_the_end() {
        let verdict = judge(
            &TrialSpec::default(),
            &with_check(CheckState::Failing("503".to_owned()), NodeView::ReadyInThisBoot),
            Duration::from_secs(1),
        );
        let Verdict::Await { remaining, missing } = verdict else { panic!("{verdict:?}") };
        assert_eq!((remaining.as_secs(), missing.as_str()), (599, "the check \"web\" fails: 503"));
    }
}
