//! The decision: one table of contents, the chapters in `trial`, `commit` and `stage`.

use k8s_openapi::jiff::Timestamp;

use super::action::{Action, Report, WaitReason};
use super::facts::{ApiView, NodeFacts};
use super::order::{Freshness, Order, Pace, Standing, TimeLimit};
use super::record::{Attempt, AttemptKind, AttemptState, SeenObject};
use super::step::Step;
use super::{commit, stage, trial};
use crate::api::{FailureReason, ProgressPhase};
use crate::version::OsVersion;

/// What a node does next. The same facts, order and time always give the same action.
///
/// `order` is the one object that the node works on: the one of the record's attempt if it is
/// still there, else the one with an operator's order, else the oldest. `None` means that there is
/// none, provided that [`NodeFacts::api`] says the objects were read. `now` is the wall clock; it
/// is only compared with the end of a boot grant.
#[must_use]
pub fn decide(facts: &NodeFacts, order: Option<&Order>, now: Timestamp) -> Action {
    if let Some(action) = trial::running(facts) {
        return action;
    }
    if facts.loader.needs_marking(facts.booted.slot) {
        return Action::MarkGood { slot: facts.booted.slot };
    }
    let wanted = Wanted::of(facts, order);
    match &facts.record.attempt {
        Some(attempt) if attempt.may_be_committed() => commit::next(facts, attempt, &wanted, now),
        Some(attempt) if failed_and_arrived(facts, attempt) => Action::Record(Step::Confirmed),
        attempt => uncommitted(facts, attempt.as_ref(), &wanted, now),
    }
}

/// An attempt that had failed, but whose trial ran after all, and was confirmed.
fn failed_and_arrived(facts: &NodeFacts, attempt: &Attempt) -> bool {
    let booted = &facts.booted;
    attempt.state == AttemptState::Failed
        && (booted.slot, &booted.version) == (attempt.slot, &attempt.version)
        && facts.loader.is_confirmed(booted.slot)
}

/// What is known of what is wanted.
pub(super) enum Wanted<'a> {
    /// Nothing can be said.
    Unknown(WaitReason),
    /// Nothing is ordered.
    Nothing,
    /// This.
    Order(&'a Order),
}

impl<'a> Wanted<'a> {
    fn of(facts: &NodeFacts, order: Option<&'a Order>) -> Self {
        let Some(order) = order.filter(|_| facts.api == ApiView::Read) else {
            return match facts.api {
                ApiView::Read => Self::Nothing,
                ApiView::NotRead => Self::Unknown(WaitReason::OrderNotRead),
            };
        };
        match facts.record.seen(&order.object.uid) {
            Some(seen) if order.generation < seen.generation => {
                Self::Unknown(WaitReason::OrderReplayed { read: order.generation, acted_on: seen.generation })
            }
            _ => Self::Order(order),
        }
    }

    /// The order, if it is the one that `attempt` is made for.
    pub(super) fn order_of(&self, attempt: &Attempt) -> Option<&'a Order> {
        match self {
            Self::Order(order) if order.object.uid == attempt.object.uid => Some(order),
            _ => None,
        }
    }
}

/// Nothing is committed: what is wanted rules.
fn uncommitted(facts: &NodeFacts, attempt: Option<&Attempt>, wanted: &Wanted<'_>, now: Timestamp) -> Action {
    // What an ended attempt left armed goes before anything else is begun. A trial of the booted
    // slot is left to the guard: taking it out would strand the node on an unconfirmed slot.
    if facts.loader.trial.is_some_and(|trial| trial.slot != facts.booted.slot) {
        return Action::Disarm;
    }
    let order = match wanted {
        Wanted::Unknown(reason) => return Action::Wait(reason.clone()),
        // An attempt that ended does no harm, and its object may be asked about again.
        Wanted::Nothing if attempt.is_some_and(|attempt| !attempt.has_ended()) => {
            return Action::Record(Step::Dropped);
        }
        Wanted::Nothing => return Action::Wait(WaitReason::NothingOrdered),
        Wanted::Order(order) => *order,
    };
    let Some(seen) = facts.record.seen(&order.object.uid) else { return first_sight(order) };
    if order.generation > seen.generation {
        return accept(order, None, None);
    }
    match attempt {
        Some(attempt) => with_attempt(facts, attempt, order, seen, now),
        None => without_attempt(facts, order, seen),
    }
}

/// An object that was never acted on. A cached one could be a replay.
fn first_sight(order: &Order) -> Action {
    if order.freshness == Freshness::Cached {
        return Action::Reread;
    }
    let reported = &order.reported;
    // A nonce on an object that has not failed has nothing to retry. On one that has, only what
    // the status says was acted on is old: the record was lost.
    let retry = if has_failed(&reported.phase) { &reported.retry_nonce } else { &order.retry_nonce };
    accept(order, retry.clone(), reported.rollback_nonce.clone())
}

fn accept(order: &Order, retry_nonce: Option<String>, rollback_nonce: Option<String>) -> Action {
    Action::Record(Step::Accepted {
        object: order.object.clone(),
        generation: order.generation,
        retry_nonce,
        rollback_nonce,
    })
}

fn with_attempt(
    facts: &NodeFacts,
    attempt: &Attempt,
    order: &Order,
    seen: &SeenObject,
    now: Timestamp,
) -> Action {
    let unwanted = attempt.object.uid != order.object.uid || order.standing != Standing::Current;
    let pointless = attempt.kind == AttemptKind::Upgrade && runs_target(facts, order);
    if unwanted || pointless {
        return Action::Record(Step::Dropped);
    }
    if let Some(action) = new_nonce(facts, order, seen) {
        return action;
    }
    let reason = || attempt.reason.clone().unwrap_or(FailureReason::Interrupted);
    let message = || attempt.message.clone().unwrap_or_default();
    match attempt.state {
        AttemptState::Failed => Action::Report(Report::Failed { reason: reason(), message: message() }),
        AttemptState::RolledBack => {
            Action::Report(Report::RolledBack { reason: reason(), message: message() })
        }
        _ => stage::next(facts, attempt, order, seen, now),
    }
}

fn without_attempt(facts: &NodeFacts, order: &Order, seen: &SeenObject) -> Action {
    if order.standing == Standing::Deleted {
        return Action::Wait(WaitReason::NothingOrdered);
    }
    let on_target = runs_target(facts, order);
    if order.standing == Standing::Superseded && !on_target {
        return Action::Report(Report::Superseded);
    }
    if on_target {
        return completed(facts, order, seen);
    }
    if let Some(action) = new_nonce(facts, order, seen) {
        return action;
    }
    if seen.held_on.as_ref() == Some(&facts.booted.version) {
        return Action::Report(Report::Held { version: facts.booted.version.clone() });
    }
    ended_before(order, seen).unwrap_or_else(|| stage::begin(facts, order))
}

fn completed(facts: &NodeFacts, order: &Order, seen: &SeenObject) -> Action {
    if order.standing == Standing::Current
        && is_new(order.rollback_nonce.as_ref(), seen.rollback_nonce.as_ref())
    {
        return begin_rollback(facts, order);
    }
    if is_new(order.retry_nonce.as_ref(), seen.retry_nonce.as_ref()) {
        // Nothing to retry: it is only taken note of.
        return accept(order, order.retry_nonce.clone(), None);
    }
    Action::Report(Report::Completed { version: facts.booted.version.clone() })
}

/// The booted version is the target, for good. Then reality wins over everything that was planned.
fn runs_target(facts: &NodeFacts, order: &Order) -> bool {
    order.target() == Some(&facts.booted.version) && facts.loader.is_confirmed(facts.booted.slot)
}

fn new_nonce(facts: &NodeFacts, order: &Order, seen: &SeenObject) -> Option<Action> {
    if is_new(order.rollback_nonce.as_ref(), seen.rollback_nonce.as_ref()) {
        return Some(begin_rollback(facts, order));
    }
    let nonce = order.retry_nonce.clone().filter(|nonce| seen.retry_nonce.as_ref() != Some(nonce))?;
    // The operator has to see it unanswered, and takes back then that it gave the attempt up.
    let is_open = order.time_limit == TimeLimit::Open;
    is_open.then(|| Action::Record(Step::RetryBegun { uid: order.object.uid.clone(), nonce }))
}

fn is_new(nonce: Option<&String>, acted_on: Option<&String>) -> bool {
    nonce.is_some() && nonce != acted_on
}

fn begin_rollback(facts: &NodeFacts, order: &Order) -> Action {
    let slot = facts.booted.slot.other();
    let content = facts.record.slots.get(slot);
    Action::Record(Step::RollbackBegun {
        object: order.object.clone(),
        nonce: order.rollback_nonce.clone().unwrap_or_default(),
        version: content.map_or_else(|| facts.booted.version.clone(), |content| content.version.clone()),
        checksum: content.and_then(|content| content.checksum),
        slot,
        trial: order.trial.clone(),
    })
}

/// The status tells of an end that no nonce has lifted since, or of a past that the record does not
/// know because it was lost. Neither is lived through again.
fn ended_before(order: &Order, seen: &SeenObject) -> Option<Action> {
    let reported = &order.reported;
    let asked_since =
        seen.retry_nonce != reported.retry_nonce || seen.rollback_nonce != reported.rollback_nonce;
    let has_past = seen.attempts > 0 || seen.confirmed > 0 || seen.retry_count > 0;
    let held = reported.rollback_nonce.is_some() && !has_past;
    if (has_failed(&reported.phase) && !asked_since) || held {
        return Some(Action::Wait(WaitReason::EndedBefore { phase: reported.phase.clone() }));
    }
    (reported.phase.is_committed() && !has_past).then(|| {
        Action::Report(Report::Failed {
            reason: FailureReason::RecordError,
            message: "the record was lost after the commit to a reboot; set a new retryNonce to begin again"
                .to_owned(),
        })
    })
}

fn has_failed(phase: &ProgressPhase) -> bool {
    matches!(phase, ProgressPhase::Failed | ProgressPhase::RolledBack)
}

/// Whether the node may commit to booting `version`. Leave that has led to a reboot already is no leave: a node that
/// fell back afterwards was uncordoned meanwhile, and has to be drained again.
pub(super) fn may_boot(facts: &NodeFacts, order: &Order, version: &OsVersion, now: Timestamp) -> bool {
    let spent = facts.record.seen(&order.object.uid).and_then(|seen| seen.spent.as_ref());
    match &order.pace {
        Pace::Own => true,
        Pace::Granted { boot, .. } => boot.as_ref().is_some_and(|grant| {
            grant.version == *version && now <= grant.not_after.0 && Some(grant) != spent
        }),
    }
}

/// Whether the node may download and write `version`.
pub(super) fn may_stage(order: &Order, version: &OsVersion) -> bool {
    match &order.pace {
        Pace::Own => true,
        Pace::Granted { stage, .. } => stage.as_ref() == Some(version),
    }
}

pub(super) fn fail(reason: FailureReason, message: String) -> Action {
    Action::Record(Step::Failed { reason, message })
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
