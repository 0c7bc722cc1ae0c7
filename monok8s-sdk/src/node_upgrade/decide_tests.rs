//! One line a case: what an operator would say, what is known, what is done.

use super::super::ArmedBy;
use super::super::fixture::*;
use super::super::record::SlotContentState;
use super::*;
use crate::boot::Tries;
use crate::slot::Slot;

/// What is expected, in as few words as tell the cases apart.
fn summary(action: &Action) -> String {
    match action {
        Action::Wait(reason) => format!("wait: {}", word(reason)),
        Action::Record(step) => format!("record: {}", record_words(step)),
        Action::Reread => "reread".to_owned(),
        Action::MarkGood { slot } => format!("mark {slot} good"),
        Action::Invalidate { slot } => format!("invalidate {slot}"),
        Action::Write { hop, slot, attempt } => format!("write {} to {slot}, attempt {attempt}", hop.version),
        Action::Verify { slot, digest, len, version, phase } => {
            assert_eq!((*digest, *len), (expanded(&version.to_string()), 4096));
            format!("verify {version} in {slot}, {phase}")
        }
        Action::Commit { version, slot, resource_version } => {
            format!("commit to {version} in {slot} at {resource_version}")
        }
        Action::Arm { slot, attempt, tries, by } => {
            assert_eq!(*tries, Tries::TRIAL);
            let by = if *by == ArmedBy::Verified { "verified" } else { "known good" };
            format!("arm {slot} for attempt {attempt}, {by}")
        }
        Action::Disarm => "disarm".to_owned(),
        Action::Reboot { into } => format!("reboot into {into}"),
        Action::AwaitHealth { remaining, .. } => format!("await health for {} s", remaining.as_secs()),
        Action::Confirm { slot } => format!("confirm {slot}"),
        Action::RevertTrial { reason } => format!("revert: {reason}"),
        Action::Report(report) => match report {
            Report::Completed { version } => format!("Completed on {version}"),
            Report::Held { version } => format!("held on {version}"),
            Report::Staged { version, slot } => format!("Staged {version} in {slot}"),
            Report::Failed { reason, .. } => format!("Failed: {reason}"),
            Report::RolledBack { reason, .. } => format!("RolledBack: {reason}"),
            Report::Superseded => "Superseded".to_owned(),
        },
    }
}

fn word(debug: &impl std::fmt::Debug) -> String {
    format!("{debug:?}").split([' ', '{', '(']).next().unwrap().to_owned()
}

fn record_words(step: &Step) -> String {
    match step {
        Step::Failed { reason, .. } | Step::RolledBack { reason, .. } | Step::Reverting { reason, .. } => {
            format!("{} {reason}", word(step))
        }
        Step::Begun { version, slot, .. } | Step::RollbackBegun { version, slot, .. } => {
            format!("{} {version} in {slot}", word(step))
        }
        Step::Committed { boot_id } => format!("Committed {boot_id}"),
        step => word(step),
    }
}

/// Decides each case and names all that come out differently.
macro_rules! check {
    ($($name:literal: $facts:expr, $order:expr => $expected:literal;)+) => {
        let mut wrong = Vec::new();
        $(
            let order: Option<Order> = $order;
            let found = summary(&decide(&$facts, order.as_ref(), now()));
            if found != $expected {
                wrong.push(format!("{}:\n  expected {}\n  found    {found}", $name, $expected));
            }
        )+
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    };
}

#[test]
fn each_fact_has_one_authority() {
    use ProgressPhase::{Completed, Failed, Rebooting};
    let foreign = |mut facts: NodeFacts, slot, text| {
        facts.booted.slot = slot;
        facts.booted.version = version(text);
        facts
    };
    check! {
        // What is booted: the kernel and os-release.
        "the node already runs the target": foreign(node(), Slot::A, NEW), Some(order()) => "Completed on v1.35.3";
        "the record says staged, but the node runs the target by now": foreign(node().verified(), Slot::A, NEW), Some(order()) => "record: Dropped";
        "the status says Completed, but the node runs the old version": node(), Some(order().says(Completed, BOOT).may_stage()) => "record: Begun v1.35.3 in B";
        "the attempt was meant for the slot that runs by now": foreign(node().begun(), Slot::B, OLD).confirmed_in_b(), Some(order().may_stage()) => "record: Dropped";
        // What boots next: the loader.
        "the record says armed, the loader does not": node().committed(), Some(order()) => "arm B for attempt 1, verified";
        "the loader has armed another attempt": node().begun().armed_by_attempt(9), Some(order().may_stage()) => "disarm";
        "nothing is begun, and the loader has a trial": node().armed_by_attempt(9), Some(order().may_stage()) => "disarm";
        "the loader was never seen to count": node().begun().not_counting(), Some(order().may_stage()) => "record: Failed TrialUnsupported";
        "the booted slot is not confirmed, so the other one is not written": node().begun().booted_slot_bad(), Some(order().may_stage()) => "wait: BootedSlotUnconfirmed";
        "the booted slot is not confirmed, so nothing is begun": node().booted_slot_bad(), Some(order().may_stage()) => "wait: BootedSlotUnconfirmed";
        "a boot has burnt a try": node().burnt(), Some(order()) => "mark A good";
        // What the other slot holds: the record's digest.
        "the slot holds the image, verified": node().verified(), Some(order().may_stage()) => "Staged v1.35.3 in B";
        "the slot holds another image": node().holding_other(), Some(order().may_stage()) => "record: SlotForgotten";
        "the token in hand is for other bytes": node().verified().holds(OLD), Some(order().may_boot(SOON)) => "verify v1.35.3 in B, Staged";
        // What is wanted: the object.
        "nothing is ordered": node(), None => "wait: NothingOrdered";
        "the objects were not read yet": node().begun().unread(), None => "wait: OrderNotRead";
        "an order is there, but from before this process started": node().begun().unread(), Some(order().may_stage()) => "wait: OrderNotRead";
        "an older generation than was acted on": node(), Some(order().seen_as(Freshness::Quorum, 2).may_stage()) => "wait: OrderReplayed";
        "a new generation": node(), Some(order().seen_as(Freshness::Cached, 4)) => "record: Accepted";
        "an unknown object from a cache": node().forgotten(), Some(order().may_stage()) => "reread";
        "an unknown object from the store": node().forgotten(), Some(order().seen_as(Freshness::Quorum, 3)) => "record: Accepted";
        "the record was lost after the commit": node(), Some(order().says(Rebooting, "boot-0").may_stage()) => "Failed: RecordError";
        "the record was lost after a failure": node(), Some(order().says(Failed, "boot-0").may_stage()) => "wait: EndedBefore";
        "the record was lost after a failure, and a new nonce came": node(), Some(order().says(Failed, "boot-0").may_stage().retry("1")) => "record: RetryBegun";
        // Which artifacts failed here: the record.
        "the artifact failed here before": node().quarantined().begun(), Some(order().may_stage()) => "record: Failed QuarantinedHere";
        "it failed here, and a retry lifted that": node().quarantined().after(&retry_begun("1")).begun(), Some(order().may_stage().retry("1")) => "write v1.35.3 to B, attempt 1";
    }
}

#[test]
fn a_power_cut_at_any_point_leaves_a_way_on() {
    use ProgressPhase::{Pending, Rebooting, Staged};
    check! {
        "record cleared, slot still in the loader's order": node().begun().other_slot_in_order().power_cut(), Some(order().may_stage()) => "invalidate B";
        "record cleared, slot invalidated": node().begun().power_cut(), Some(order().may_stage()) => "write v1.35.3 to B, attempt 1";
        "written, not verified": node().written().power_cut(), Some(order().may_stage()) => "verify v1.35.3 in B, Verifying";
        "verified": node().verified().power_cut(), Some(order().may_stage()) => "Staged v1.35.3 in B";
        "verified, and the grant came": node().verified().power_cut(), Some(order().may_boot(SOON)) => "verify v1.35.3 in B, Staged";
        "read back differently once": node().written().after(&Step::ReadBackDiffers), Some(order().may_stage()) => "write v1.35.3 to B, attempt 1";
        "read back differently twice": node().written().after(&Step::ReadBackDiffers).after(&Step::ReadBackDiffers), Some(order().may_stage()) => "record: Failed ReadBackMismatch";
        "intent recorded, not committed": node().intended().power_cut(), Some(order().may_boot(SOON).says(Staged, BOOT)) => "record: IntentDropped";
        "intent recorded, not committed, old boot ID in the status": node().intended().power_cut(), Some(order().may_boot(SOON).says(Rebooting, "boot-0")) => "record: IntentDropped";
        "intent recorded and committed, not armed": node().intended().power_cut(), Some(order().says(Rebooting, BOOT)) => "record: Committed boot-2";
        "intent recorded, API away": node().intended().power_cut().unread(), None => "wait: OrderNotRead";
        "intent recorded, object gone": node().intended().power_cut(), None => "record: IntentDropped";
        "commit recorded, not armed, order stands": node().committed().power_cut(), Some(order().says(Rebooting, BOOT)) => "record: Committed boot-2";
        "commit recorded, not armed, order superseded": node().committed().power_cut(), Some(order().says(Rebooting, BOOT).is(Standing::Superseded)) => "record: IntentDropped";
        "commit recorded, not armed, order gone": node().committed().power_cut(), None => "record: IntentDropped";
        "commit recorded, not armed, status no longer says so": node().committed().power_cut(), Some(order().says(Pending, BOOT)) => "record: IntentDropped";
        "commit renewed after the cut, no token": node().committed().power_cut().after(&Step::Committed { boot_id: boot(LATER_BOOT) }), Some(order()) => "verify v1.35.3 in B, Rebooting";
        "armed, no reboot asked yet, and the loader booted it": node().in_trial().healthy(), None => "confirm B";
        "armed, but the loader booted the old slot without trying": node().armed().power_cut(), Some(order()) => "record: Failed Interrupted";
        "and what is left armed after that": node().armed().power_cut().after(&failed(FailureReason::Interrupted)), Some(order()) => "disarm";
        "and the power failed before that was disarmed, and the loader tried it after all": node().armed_and_failed().tried_late().healthy(), Some(order()) => "confirm B";
        "and that was confirmed": node().armed_and_failed().tried_late().confirmed(), Some(order()) => "record: Confirmed";
        "confirmed in the loader, not recorded, and the old slot came back": node().in_trial().confirmed().back_in_a(), Some(order().says(Rebooting, BOOT)) => "record: Failed Interrupted";
        "tried, and the loader fell back": node().in_trial().fell_back(), Some(order()) => "mark A good";
        "tried, fell back, evidence kept": node().in_trial().fell_back().marked(), Some(order()) => "record: RolledBack FellBack";
        "tried, fell back, API away": node().in_trial().fell_back().marked().unread(), None => "record: RolledBack FellBack";
        "rollback recorded, evidence still in the loader": node().rolled_back(), Some(order()) => "disarm";
        "rollback recorded and cleared": node().rolled_back().disarmed(), Some(order()) => "RolledBack: FellBack";
        "sent back by the guard": node().in_trial().sent_back().fell_back().marked(), Some(order()) => "record: RolledBack TrialTimedOut";
        "sent back by the agent for a reason": node().in_trial().after(&reverting(FailureReason::ApiUnavailable)).sent_back().fell_back().marked(), Some(order()) => "record: RolledBack ApiUnavailable";
        "confirmed in the loader, not recorded": node().in_trial().confirmed(), Some(order()) => "record: Confirmed";
        "confirmed in the loader, not recorded, object gone": node().in_trial().confirmed(), None => "record: Confirmed";
        "confirmed and recorded": node().completed(), Some(order()) => "Completed on v1.35.3";
    }
}

#[test]
fn a_trial_is_kept_awaited_or_sent_back() {
    let reverting = |reason| node().in_trial().after(&reverting(reason));
    check! {
        "all is well": node().in_trial().healthy(), None => "confirm B";
        "nothing is known yet": node().in_trial(), None => "await health for 540 s";
        "all is well just after the deadline": node().in_trial().healthy().at(601), None => "confirm B";
        "the kubelet is not well in time": node().in_trial().at(600), None => "record: Reverting TrialTimedOut";
        "the API server is away": node().in_trial().without_api(), None => "await health for 540 s";
        "the API server stays away": node().in_trial().without_api().at(600), None => "record: Reverting ApiUnavailable";
        "the API server stays away, and the node may decide": node().in_trial().confirm_locally().without_api().at(600), None => "confirm B";
        "the node may decide, but it is not well": node().in_trial().confirm_locally().at(600), None => "record: Reverting TrialTimedOut";
        "nobody tells the version yet": node().in_trial().healthy().of_unknown_version(), None => "await health for 540 s";
        "nobody tells the version in time": node().in_trial().healthy().of_unknown_version().at(600), None => "record: Reverting TrialTimedOut";
        "nobody tells the version, and the API server is away": node().in_trial().without_api().of_unknown_version(), None => "await health for 540 s";
        "the node may decide, but nobody tells the version": node().in_trial().confirm_locally().without_api().of_unknown_version().at(600), None => "record: Reverting ApiUnavailable";
        "another version came up": node().in_trial_running("v1.35.9").healthy(), None => "record: Reverting WrongVersionBooted";
        "the revert is recorded": reverting(FailureReason::TrialTimedOut), None => "revert: TrialTimedOut";
        "the revert is in the loader": reverting(FailureReason::TrialTimedOut).sent_back(), None => "reboot into A";
        "the revert is in the loader, and B came up again": reverting(FailureReason::TrialTimedOut).sent_back().rebooted("boot-9"), None => "record: Failed LoaderError";
        "the guard has sent it back": node().in_trial().sent_back(), None => "record: Reverting TrialTimedOut";
        "a trial that the record knows nothing of": node().in_trial().record_lost(), Some(order().may_stage()) => "wait: BootedSlotUnconfirmed";
        "superseded during the trial: it finishes first": node().in_trial().healthy(), Some(order().is(Standing::Superseded)) => "confirm B";
    }
}

#[test]
fn a_node_goes_as_far_as_it_may() {
    use ProgressPhase::{Rebooting, Staged};
    check! {
        "no leave to stage": node(), Some(order()) => "wait: StageGrant";
        "leave to stage": node(), Some(order().may_stage()) => "record: Begun v1.35.3 in B";
        "leave to stage is withdrawn before the write": node().begun(), Some(order()) => "wait: StageGrant";
        "leave to reboot, read back in this process": node().verified().holds(NEW), Some(order().may_boot(SOON)) => "record: Intended";
        "leave to reboot has passed": node().verified().holds(NEW), Some(order().may_boot(PAST)) => "Staged v1.35.3 in B";
        "intent recorded": node().intended(), Some(order().may_boot(SOON).says(Staged, BOOT)) => "commit to v1.35.3 in B at 100";
        "intent recorded, leave has passed": node().intended(), Some(order().may_boot(PAST)) => "record: IntentDropped";
        "intent recorded, leave withdrawn": node().intended(), Some(order().may_stage()) => "record: IntentDropped";
        "intent recorded, agent restarted": node().intended().agent_restarted(), Some(order().may_boot(SOON)) => "record: IntentDropped";
        "intent recorded, the commit was taken, agent restarted": node().intended().agent_restarted(), Some(order().says(Rebooting, BOOT)) => "record: Committed boot-1";
        "intent recorded, superseded": node().intended(), Some(order().may_boot(SOON).is(Standing::Superseded)) => "record: IntentDropped";
        "committed, agent restarted, API away": node().committed().agent_restarted().unread(), None => "verify v1.35.3 in B, Rebooting";
        "committed, superseded: it finishes first": node().committed(), Some(order().is(Standing::Superseded)) => "arm B for attempt 1, verified";
        "committed, object gone": node().committed(), None => "arm B for attempt 1, verified";
        "armed": node().armed(), Some(order()) => "reboot into B";
        "armed, object gone": node().armed(), None => "reboot into B";
        "made by hand": node().verified().holds(NEW), Some(order().by_hand()) => "record: Intended";
        "made by hand, nothing begun": node(), Some(order().by_hand()) => "record: Begun v1.35.3 in B";
        "superseded while staging": node().begun(), Some(order().may_stage().is(Standing::Superseded)) => "record: Dropped";
        "superseded, nothing left": node(), Some(order().is(Standing::Superseded)) => "Superseded";
        "superseded on the target: reality wins": node().completed(), Some(order().is(Standing::Superseded)) => "Completed on v1.35.3";
        "object deleted while staging": node().begun(), None => "record: Dropped";
        "object being deleted while staging": node().verified(), Some(order().may_boot(SOON).is(Standing::Deleted)) => "record: Dropped";
        "object being deleted, nothing left": node(), Some(order().is(Standing::Deleted)) => "wait: NothingOrdered";
        "the attempt was for another object": node().begun_for("uid-0"), Some(order().may_stage()) => "record: Dropped";
        "a second hop is needed": node().completed(), Some(order().hops(&[NEW, THEN])) => "wait: StageGrant";
        "a second hop, made by hand": node().completed(), Some(order().hops(&[NEW, THEN]).by_hand()) => "record: Begun v1.36.1 in A";
        "the second hop overwrites the slot that was left": node().completed().begun_next(), Some(order().hops(&[NEW, THEN]).by_hand()) => "record: SlotForgotten";
        "a downgrade, one hop down": node().completed(), Some(order().hops(&[OLD]).by_hand()) => "record: Begun v1.34.6 in A";
        "going round in circles ends": node().begun().after_many_steps(), Some(order().may_stage()) => "record: Failed Interrupted";
    }
}

#[test]
fn nonces_retry_and_roll_back() {
    use FailureReason::ChecksumMismatch;
    check! {
        "failed, no nonce": node().failed(ChecksumMismatch), Some(order().may_stage()) => "Failed: ChecksumMismatch";
        "failed, object not there for now": node().failed(ChecksumMismatch), None => "wait: NothingOrdered";
        "failed, new nonce": node().failed(ChecksumMismatch), Some(order().may_stage().retry("1")) => "record: RetryBegun";
        "failed again, same nonce": node().after(&retry_begun("1")).failed(ChecksumMismatch), Some(order().may_stage().retry("1")) => "Failed: ChecksumMismatch";
        "failed again, nonce removed": node().after(&retry_begun("1")).failed(ChecksumMismatch), Some(order().may_stage()) => "Failed: ChecksumMismatch";
        "failed again, next nonce": node().after(&retry_begun("1")).failed(ChecksumMismatch), Some(order().may_stage().retry("2")) => "record: RetryBegun";
        "rolled back, new nonce, evidence still in the loader": node().rolled_back(), Some(order().may_stage().retry("1")) => "disarm";
        "rolled back, new nonce": node().rolled_back().disarmed(), Some(order().may_stage().retry("1")) => "record: RetryBegun";
        "retry begun: nothing of the first attempt is left": node().rolled_back().disarmed().after(&retry_begun("1")), Some(order().may_stage().retry("1")) => "record: Begun v1.35.3 in B";
        "the retry reads the slot back, and has leave": node().rolled_back().disarmed().after(&retry_begun("1")).begun(), Some(order().may_boot(SOON).retry("1")) => "verify v1.35.3 in B, Staged";
        "the retry is committed and armed: evidence of the first attempt is not its own": node().rolled_back().disarmed().after(&retry_begun("1")).armed_again(), Some(order().retry("1")) => "reboot into B";
        "given up, no nonce: it may still get there": node().begun(), Some(order().may_stage().given_up()) => "write v1.35.3 to B, attempt 1";
        "given up, new nonce: the operator takes that back first": node().begun(), Some(order().may_stage().given_up().retry("1")) => "write v1.35.3 to B, attempt 1";
        "given up and rolled back, new nonce: the end is told first": node().rolled_back().disarmed(), Some(order().given_up().retry("1")) => "RolledBack: FellBack";
        "staging, new nonce": node().begun(), Some(order().may_stage().retry("1")) => "record: RetryBegun";
        "committed, new nonce: after the end": node().committed(), Some(order().retry("1")) => "arm B for attempt 1, verified";
        "completed, new nonce: only noted": node().completed(), Some(order().retry("1")) => "record: Accepted";
        "completed, rollback asked": node().completed(), Some(order().rollback("back")) => "record: RollbackBegun v1.34.6 in A";
        "rollback begun, no leave": node().rolling_back(), Some(order().rollback("back")) => "Staged v1.34.6 in A";
        "rollback begun, made by hand": node().rolling_back(), Some(order().rollback("back").by_hand()) => "invalidate A";
        "rollback begun, the slot is out of the order": node().rolling_back().out_of_order(), Some(order().rollback("back").by_hand()) => "record: Intended";
        "rollback committed": node().rolling_back().out_of_order().commit_here(), Some(order().rollback("back")) => "arm A for attempt 2, known good";
        "rollback confirmed: the node is held": node().rolling_back().arrived_in_a(), Some(order().rollback("back").by_hand()) => "held on v1.34.6";
        "held, and a retry is asked": node().rolling_back().arrived_in_a(), Some(order().rollback("back").retry("1").by_hand()) => "record: RetryBegun";
        "rollback asked, nothing to go back to": node(), Some(order().rollback("back")) => "record: RollbackBegun v1.34.6 in B";
        "rollback begun, nothing to go back to": node().after(&rollback_into_nothing()), Some(order().rollback("back").by_hand()) => "record: Failed NothingToGoBackTo";
        "rollback while failed": node().failed(ChecksumMismatch), Some(order().rollback("back")) => "record: RollbackBegun v1.34.6 in B";
    }
}

#[test]
fn a_revert_for_want_of_the_api_quarantines_nothing() {
    for (reason, quarantined) in
        [(FailureReason::ApiUnavailable, false), (FailureReason::TrialTimedOut, true)]
    {
        let step = Step::RolledBack { reason, message: String::new(), evidence: evidence() };
        let record = node().in_trial().after(&step).record;
        assert_eq!(record.quarantine(&image(NEW).checksum, "uid-1").is_some(), quarantined);
    }
}

#[test]
fn who_brought_a_node_back_is_told_with_the_boots_and_the_tries() {
    use crate::api::RolledBackBy;
    use crate::boot::{Reset, Reverter};
    let evidence = |facts: &NodeFacts| match decide(facts, Some(&order()), now()) {
        Action::Record(Step::RolledBack { evidence, .. }) => *evidence,
        other => panic!("{other:?}"),
    };
    let fell_back = evidence(&node().in_trial().fell_back().marked());
    assert_eq!((fell_back.by, fell_back.tries_armed, fell_back.tries_left), (RolledBackBy::Loader, 1, 0));
    assert_eq!((fell_back.slot, &fell_back.version), (Slot::B, &version(NEW)));
    assert!(fell_back.armed_boot_id.is_some() && fell_back.trial_boot_id.is_none());
    assert_ne!(fell_back.armed_boot_id.as_ref(), Some(&fell_back.returned_boot_id));

    let mut by_watchdog = node().in_trial().fell_back();
    by_watchdog.loader = by_watchdog.loader.marked_good_after(Slot::A, Reset::Watchdog);
    assert_eq!(evidence(&by_watchdog).by, RolledBackBy::Watchdog);

    for (by, told) in [
        (Reverter::Agent, RolledBackBy::Agent),
        (Reverter::Guard, RolledBackBy::Guard),
        (Reverter::Person, RolledBackBy::Person),
    ] {
        let mut sent_back = node().in_trial();
        sent_back.loader = sent_back.loader.reverted(by);
        assert_eq!(evidence(&sent_back.fell_back().marked()).by, told);
    }

    // The agent of the trial recorded which boot that was.
    let trial = node().in_trial();
    let (armed, tried) = (trial.record.attempt.clone().unwrap().boot_id, trial.booted.boot_id.clone());
    let reverting = Step::Reverting {
        reason: FailureReason::TrialTimedOut,
        message: "why".to_owned(),
        boot_id: tried.clone(),
    };
    let mut sent_back = trial.after(&reverting).after(&reverting);
    sent_back.loader = sent_back.loader.reverted(Reverter::Agent);
    let told = evidence(&sent_back.fell_back().marked());
    assert_eq!(told.armed_boot_id, armed.map(|boot| boot.0));
    assert_eq!(told.trial_boot_id, Some(tried.0));
}

#[test]
fn a_success_forgets_the_failure() {
    let record = node().quarantined().completed().record;
    assert!(record.failed.is_empty());
    assert_eq!(record.slots.get(Slot::A).map(|content| &content.state), Some(&SlotContentState::KnownGood));
    assert_eq!(record.slots.get(Slot::B).map(|content| &content.state), Some(&SlotContentState::KnownGood));
}
