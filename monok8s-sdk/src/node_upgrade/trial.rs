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
/// have told is not confirmed even then.
#[must_use]
pub fn judge(spec: &TrialSpec, health: &TrialHealth, elapsed: Duration) -> Verdict {
    let limit = Duration::from_secs(u64::try_from(spec.timeout_seconds()).unwrap_or_default());
    let remaining = limit.saturating_sub(elapsed);
    let locally = health.missing_locally();
    let version = health.version.missing();
    let missing = match (locally.or(version), &health.node) {
        (None, NodeView::ReadyInThisBoot) => return Verdict::Confirm,
        (Some(missing), _) => missing.to_owned(),
        (None, NodeView::NotReady(seen)) => seen.clone(),
        (None, NodeView::ApiUnreachable) => "the API server does not answer".to_owned(),
    };
    if !remaining.is_zero() {
        return Verdict::Await { remaining, missing };
    }
    let only_api_missing = locally.is_none() && health.node == NodeView::ApiUnreachable;
    let reason = match (only_api_missing, spec.api_unavailable.unwrap_or_default()) {
        (true, ApiUnavailable::ConfirmLocally) if version.is_none() => return Verdict::Confirm,
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
        // The guard was faster; it reboots too.
        (evidence, _) if evidence.is_reverted() => {
            reverting(facts, FailureReason::TrialTimedOut, "not confirmed in time".to_owned())
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
