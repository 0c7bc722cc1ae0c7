//! From the intent on: arm, reboot, and what came of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::action::{Action, ArmedBy, WaitReason};
use super::decide::{Wanted, fail, may_boot};
use super::facts::NodeFacts;
use super::order::{Order, Standing};
use super::record::{Attempt, AttemptKind, AttemptState, SlotContentState};
use super::stage::{Content, content, holds_token, verify};
use super::step::Step;
use crate::api::{FailureReason, ProgressPhase, RollbackEvidence, RolledBackBy};
use crate::boot::{TrialEvidence, TrialProgress, Tries};

/// The next step of an attempt that may be past its commit, in a slot that is not on its trial.
pub(super) fn next(facts: &NodeFacts, attempt: &Attempt, wanted: &Wanted<'_>, now: Timestamp) -> Action {
    if facts.booted.slot == attempt.slot {
        return in_target(facts, attempt);
    }
    match facts.loader.trial_progress(attempt.id) {
        TrialProgress::Tried(evidence) => rolled_back(facts, attempt, evidence, now),
        TrialProgress::Armed if is_this_boot(facts, attempt) => Action::Reboot { into: attempt.slot },
        TrialProgress::Armed => fail(
            FailureReason::Interrupted,
            format!(
                "slot {} was armed, but the loader booted slot {} without trying it",
                attempt.slot, facts.booted.slot
            ),
        ),
        TrialProgress::NotArmed => unarmed(facts, attempt, wanted, now),
    }
}

fn is_this_boot(facts: &NodeFacts, attempt: &Attempt) -> bool {
    attempt.boot_id.as_ref() == Some(&facts.booted.boot_id)
}

/// The node runs the target slot, and no trial of it is left: it was confirmed, and not recorded.
fn in_target(facts: &NodeFacts, attempt: &Attempt) -> Action {
    let booted = &facts.booted;
    if !facts.loader.is_confirmed(booted.slot) {
        return Action::Wait(WaitReason::BootedSlotUnconfirmed { slot: booted.slot });
    }
    if booted.version == attempt.version {
        return Action::Record(Step::Confirmed);
    }
    fail(
        FailureReason::WrongVersionBooted,
        format!(
            "slot {} was to boot {}, but runs {}, confirmed by somebody else",
            booted.slot, attempt.version, booted.version
        ),
    )
}

fn rolled_back(facts: &NodeFacts, attempt: &Attempt, evidence: TrialEvidence, at: Timestamp) -> Action {
    let reason = attempt.reason.clone().unwrap_or_else(|| reason(evidence));
    let message = attempt.message.clone().unwrap_or_else(|| in_words(evidence, attempt));
    let evidence = Box::new(gather(facts, attempt, evidence, at));
    Action::Record(Step::RolledBack { reason, message, evidence })
}

/// What ended a trial, for people.
pub(super) fn in_words(evidence: TrialEvidence, attempt: &Attempt) -> String {
    let (version, slot) = (&attempt.version, attempt.slot);
    match evidence {
        TrialEvidence::None | TrialEvidence::FellBack => format!(
            "the loader tried {version} in slot {slot} and came back without a confirm; see what its console and journal say"
        ),
        TrialEvidence::WatchdogReset => format!(
            "{version} in slot {slot} was reset by the hardware watchdog; see what its console and journal say"
        ),
        TrialEvidence::Reverted => format!("the agent sent {version} in slot {slot} back"),
        TrialEvidence::RevertedByGuard => format!(
            "{version} in slot {slot} was not confirmed in time, and the host's guard sent it back; see what its console and journal say"
        ),
        TrialEvidence::RevertedWithoutApi => format!(
            "{version} in slot {slot} was not confirmed in time, because the API server did not answer, and the host's guard sent it back"
        ),
        TrialEvidence::RevertedByPerson => {
            format!("a person sent {version} in slot {slot} back before it was confirmed")
        }
        TrialEvidence::RevertedSomehow => format!(
            "{version} in slot {slot} was sent back before it was confirmed, by whom only another release can tell"
        ),
    }
}

/// Why a trial ended, as far as the loader's evidence tells.
pub(super) fn reason(evidence: TrialEvidence) -> FailureReason {
    match evidence {
        TrialEvidence::None | TrialEvidence::FellBack | TrialEvidence::WatchdogReset => {
            FailureReason::FellBack
        }
        TrialEvidence::RevertedWithoutApi => FailureReason::ApiUnavailable,
        TrialEvidence::RevertedByPerson => FailureReason::SentBackByPerson,
        TrialEvidence::Reverted | TrialEvidence::RevertedByGuard | TrialEvidence::RevertedSomehow => {
            FailureReason::TrialTimedOut
        }
    }
}

fn gather(facts: &NodeFacts, attempt: &Attempt, evidence: TrialEvidence, at: Timestamp) -> RollbackEvidence {
    let armed = facts.loader.trial.map_or(Tries::TRIAL, |trial| trial.tries_armed);
    let by = match evidence {
        TrialEvidence::None | TrialEvidence::FellBack => RolledBackBy::Loader,
        TrialEvidence::WatchdogReset => RolledBackBy::Watchdog,
        TrialEvidence::Reverted => RolledBackBy::Agent,
        TrialEvidence::RevertedByGuard | TrialEvidence::RevertedWithoutApi => RolledBackBy::Guard,
        TrialEvidence::RevertedByPerson => RolledBackBy::Person,
        TrialEvidence::RevertedSomehow => RolledBackBy::Unknown("Unknown".to_owned()),
    };
    // The agent in the trial recorded its boot beside the one in which it was armed.
    let (armed_boot, trial_boot) = match &attempt.armed_boot_id {
        Some(armed) => (Some(armed), attempt.boot_id.as_ref()),
        None => (attempt.boot_id.as_ref(), None),
    };
    RollbackEvidence {
        by,
        version: attempt.version.clone(),
        checksum: attempt.checksum,
        slot: attempt.slot,
        tries_armed: armed.0.into(),
        tries_left: facts.loader.slot(attempt.slot).tries_left.0.into(),
        armed_boot_id: armed_boot.map(|boot| boot.0.clone()),
        trial_boot_id: trial_boot.map(|boot| boot.0.clone()),
        returned_boot_id: facts.booted.boot_id.0.clone(),
        at: Time(at),
    }
}

fn unarmed(facts: &NodeFacts, attempt: &Attempt, wanted: &Wanted<'_>, now: Timestamp) -> Action {
    match attempt.state {
        AttemptState::Intended => intended(facts, attempt, wanted, now),
        // Nothing commits to a slot in the loader's order, so this one was confirmed meanwhile.
        AttemptState::Committed if facts.loader.may_boot(attempt.slot) => fail(
            FailureReason::Interrupted,
            format!(
                "slot {} was confirmed, and the node came back to slot {} since",
                attempt.slot, facts.booted.slot
            ),
        ),
        // Past the commit the node goes on whatever the API says, until power fails before arming.
        AttemptState::Committed if is_this_boot(facts, attempt) => arm(facts, attempt),
        AttemptState::Committed => after_power_cut(facts, attempt, wanted),
        AttemptState::Reverting => fail(
            FailureReason::Interrupted,
            format!(
                "the trial of slot {} was to be sent back, but the loader has no trace of it",
                attempt.slot
            ),
        ),
        // A word of a newer release, and nothing is armed: begin again.
        _ => Action::Record(Step::Dropped),
    }
}

/// The intent is recorded. Whether the commit was taken, the object says.
fn intended(facts: &NodeFacts, attempt: &Attempt, wanted: &Wanted<'_>, now: Timestamp) -> Action {
    if let Wanted::Unknown(reason) = wanted {
        return Action::Wait(reason.clone());
    }
    let Some(order) = wanted.order_of(attempt) else { return Action::Record(Step::IntentDropped) };
    let this_boot = is_this_boot(facts, attempt);
    let stands = order.standing == Standing::Current;
    if was_taken(order, attempt) && (this_boot || stands) {
        return Action::Record(Step::Committed { boot_id: facts.booted.boot_id.clone() });
    }
    if this_boot && stands && may_boot(facts, order, &attempt.version, now) && may_be_armed(facts, attempt) {
        return Action::Commit {
            version: attempt.version.clone(),
            slot: attempt.slot,
            resource_version: order.resource_version.clone(),
        };
    }
    Action::Record(Step::IntentDropped)
}

/// Whether the object's status carries the commit of this attempt.
fn was_taken(order: &Order, attempt: &Attempt) -> bool {
    order.reported.phase == ProgressPhase::Rebooting && order.reported.boot_id == attempt.boot_id
}

fn after_power_cut(facts: &NodeFacts, attempt: &Attempt, wanted: &Wanted<'_>) -> Action {
    if let Wanted::Unknown(reason) = wanted {
        return Action::Wait(reason.clone());
    }
    let stands = wanted
        .order_of(attempt)
        .is_some_and(|order| order.standing == Standing::Current && order.reported.phase.is_committed());
    Action::Record(if stands {
        Step::Committed { boot_id: facts.booted.boot_id.clone() }
    } else {
        Step::IntentDropped
    })
}

/// Whether what arming needs is at hand: the token, or a slot that is known to be good.
fn may_be_armed(facts: &NodeFacts, attempt: &Attempt) -> bool {
    match attempt.kind {
        AttemptKind::Rollback => is_known_good(facts, attempt),
        _ => holds_token(facts, attempt),
    }
}

pub(super) fn is_known_good(facts: &NodeFacts, attempt: &Attempt) -> bool {
    facts.record.slots.get(attempt.slot).is_some_and(|content| {
        content.state == SlotContentState::KnownGood && content.version == attempt.version
    })
}

fn arm(facts: &NodeFacts, attempt: &Attempt) -> Action {
    let by = |by| Action::Arm { slot: attempt.slot, attempt: attempt.id, tries: Tries::TRIAL, by };
    if attempt.kind == AttemptKind::Rollback {
        return if is_known_good(facts, attempt) {
            by(ArmedBy::KnownGood)
        } else {
            Action::Record(Step::IntentDropped)
        };
    }
    match content(facts, attempt) {
        Content::Verified(_) if holds_token(facts, attempt) => by(ArmedBy::Verified),
        Content::Verified(image) => verify(attempt, &image, ProgressPhase::Rebooting),
        Content::Unread(_) | Content::Unknown => Action::Record(Step::IntentDropped),
    }
}
