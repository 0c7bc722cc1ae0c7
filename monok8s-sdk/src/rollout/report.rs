//! The operator's own conditions on progress objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::action::Action;
use super::draft::Draft;
use super::drain;
use super::govern::{Stand, Stands};
use super::index::{NodeEntry, OrderEntry};
use super::order::{GRANT_LIFETIME, Soak, State, later};
use super::survey::{Campaign, Survey};
use super::sweep::Wanted;
use crate::api::{ConditionType, ProgressPhase, Truth, find_condition};

/// The conditions of progress objects that only the operator writes. Each is there only while it
/// says something; that a node was drained, and has soaked, stays with an order that is done.
pub(super) const OURS: [ConditionType; 6] = [
    ConditionType::BootGranted,
    ConditionType::Degraded,
    ConditionType::Drained,
    ConditionType::Soaking,
    ConditionType::Superseded,
    ConditionType::TimedOut,
];

pub(super) type Finding = (ConditionType, Truth, &'static str, String);

/// Brings the conditions of all orders up to date, and notes when the next deadline passes.
pub(super) fn report<'f>(
    survey: &Survey<'f>,
    stands: &Stands<'f>,
    wanted: &Wanted<'_, 'f>,
    draft: &mut Draft<'f>,
) {
    for order in survey.index.orders().filter(|order| order.run.is_some()) {
        let mut findings: Vec<_> = granted(order, survey.now, draft).into_iter().collect();
        let wants = wanted.get(order);
        let wants = wants.and_then(|(campaign, member)| Some((campaign, member.node, member.ordered()?.1)));
        if let Some((campaign, node, state)) = wants {
            findings.extend(timed_out(order, state, survey.now));
            findings.extend(degraded(state, node, order));
            findings.extend(drain::finding(survey, campaign, node, (order, state), draft));
            findings.extend(soaking(state, order, campaign, node, survey.now));
            let deadline = order.deadline(state, &campaign.rollout, survey.now);
            if let Some(deadline) = deadline.filter(|deadline| *deadline > survey.now) {
                draft.wake_at(deadline);
            }
        } else {
            findings.extend(superseded(survey, stands, order));
            findings.extend(drain::on_record(order));
            findings.extend(failed_before(order));
            if order.is_committed() && survey.index.node_of(order).is_none() {
                wake_when_late(survey, order, draft);
            }
        }
        if findings.is_empty() && ours(order).next().is_none() {
            continue;
        }
        let conditions = conditions(order, findings, survey.now);
        if !same(order, &conditions, survey.now) && !draft.deletes(order.uid()) {
            draft.push(Action::Report { progress: order.object(), conditions });
        }
    }
}

/// A node that committed and is gone has failed once its time to come back is over.
fn wake_when_late(survey: &Survey<'_>, order: &OrderEntry, draft: &mut Draft<'_>) {
    let Some(campaign) = survey.campaign_of(order) else { return };
    let late = order.deadline(&State::Committed, &campaign.rollout, survey.now);
    if let Some(late) = late.filter(|late| *late > survey.now) {
        draft.wake_at(late);
    }
}

/// Most nodes use their leave in a moment. Of one that does not it is told, and its time to commit is counted from
/// then on.
fn granted(order: &OrderEntry, now: Timestamp, draft: &mut Draft<'_>) -> Option<Finding> {
    const A_MOMENT: SignedDuration = SignedDuration::from_secs(30);
    // One that is taken back in this plan can be used no more.
    let may_commit = order.may_yet_commit() && draft.admitted.contains(&order.number);
    let grant = order.boot().filter(|_| may_commit)?;
    // Or earlier, where a window closes before: then it is told of a little too soon.
    let granted = later(grant.not_after.0, -GRANT_LIFETIME);
    let from = later(granted, A_MOMENT);
    // One that was renewed is not new, and one that is of the future is of another clock.
    if granted <= now && now < from && !order.says(&ConditionType::BootGranted) {
        draft.wake_at(from);
        return None;
    }
    let message = format!("the node may commit to a reboot into {}", grant.version);
    Some((ConditionType::BootGranted, Truth::True, "Granted", message))
}

/// True once the node was given up for its time. False while the time to stage runs and its beginning is told nowhere
/// else: that is its transition time.
fn timed_out(order: &OrderEntry, state: &State<'_>, now: Timestamp) -> Option<Finding> {
    let timed_out =
        |truth, reason, message: &str| Some((ConditionType::TimedOut, truth, reason, message.to_owned()));
    match state {
        State::Staging(_) if order.needs_stamp(now) => {
            timed_out(Truth::False, "Staging", "the node has leave to stage")
        }
        State::Lost => {
            let message = "the node committed to a reboot and did not finish it within rebootTimeoutSeconds";
            timed_out(Truth::True, REBOOT_TIMED_OUT, message)
        }
        State::Failed => match order.phase {
            ProgressPhase::Failed => None,
            ProgressPhase::Staged | ProgressPhase::Draining if drain_timed_out(order).is_some() => {
                timed_out(Truth::True, DRAIN_TIMED_OUT, &drain_timed_out(order)?)
            }
            ProgressPhase::Staged | ProgressPhase::Draining => {
                let message =
                    "the node had leave to reboot and did not commit to it within rebootTimeoutSeconds";
                timed_out(Truth::True, COMMIT_TIMED_OUT, message)
            }
            _ => {
                let message = "the node had leave to stage and was not done within stagingTimeoutSeconds";
                timed_out(Truth::True, STAGING_TIMED_OUT, message)
            }
        },
        _ => None,
    }
}

/// What was said of a failure stays with an order that nobody wants any more: the run remembers it.
fn failed_before(order: &OrderEntry) -> impl Iterator<Item = Finding> {
    let said = |kind, reasons: &[&'static str]| {
        let said = find_condition(order.conditions(), &kind).filter(|said| said.status == "True")?;
        let reason = reasons.iter().copied().find(|reason| *reason == said.reason)?;
        Some((kind, Truth::True, reason, said.message.clone()))
    };
    let timed_out = said(ConditionType::TimedOut, &TIMED_OUT);
    timed_out.into_iter().chain(said(ConditionType::Degraded, &[UNEXPLAINED]))
}

const UNEXPLAINED: &str = "UnexplainedRollback";
const REBOOT_TIMED_OUT: &str = "RebootTimedOut";
const COMMIT_TIMED_OUT: &str = "CommitTimedOut";
const STAGING_TIMED_OUT: &str = "StagingTimedOut";
const TIMED_OUT: [&str; 4] = [REBOOT_TIMED_OUT, COMMIT_TIMED_OUT, STAGING_TIMED_OUT, DRAIN_TIMED_OUT];
const DRAIN_TIMED_OUT: &str = "DrainTimedOut";

/// What a drain waited for until its time was over.
fn drain_timed_out(order: &OrderEntry) -> Option<String> {
    let find = |kind| find_condition(order.conditions(), &kind);
    let before = find(ConditionType::TimedOut).filter(|before| before.reason == DRAIN_TIMED_OUT);
    let ends = || {
        let drained = find(ConditionType::Drained).filter(|drained| drained.status == "False")?;
        Some(format!("the drain was not over within drain.timeoutSeconds: {}", drained.message))
    };
    before.map(|before| before.message.clone()).or_else(ends)
}

/// False while the Node object may merely be late: its transition time is when that began.
fn degraded(state: &State<'_>, node: &NodeEntry, order: &OrderEntry) -> Option<Finding> {
    let target = order.target()?;
    let running = || node.version().map_or_else(|| "something unknown".to_owned(), ToString::to_string);
    match state {
        State::Settling if order.is_contradicted(node) => {
            let message =
                format!("the node says that {target} is done; its Node object still says {}", running());
            Some((ConditionType::Degraded, Truth::False, "Settling", message))
        }
        State::Unexplained => {
            let message = format!("the node said that {target} is done, but runs {}", running());
            Some((ConditionType::Degraded, Truth::True, UNEXPLAINED, message))
        }
        _ => None,
    }
}

/// True from when the node was seen to be back until it has soaked, and False from then on; there only for
/// upgrades that have their nodes soak. A node that is not ready for a moment does not begin anew.
fn soaking(
    state: &State<'_>,
    order: &OrderEntry,
    campaign: &Campaign<'_>,
    node: &NodeEntry,
    now: Timestamp,
) -> Option<Finding> {
    match (order.soak(campaign, node, now), state) {
        (Soak::Since(_), State::Settling) if !order.soaks_already() => None,
        (Soak::Since(_), State::Done | State::Settling) => {
            let message = "the node is back; the next one waits until it has been for long enough".to_owned();
            Some((ConditionType::Soaking, Truth::True, "Soaking", message))
        }
        (Soak::Over, State::Done | State::Settling) => {
            let message = "the node was back for long enough".to_owned();
            Some((ConditionType::Soaking, Truth::False, "Soaked", message))
        }
        _ => None,
    }
}

/// Said when nothing of the order can be acted on any more; and never taken back, because it
/// tells the upgrade later that the node was moved on.
fn superseded(survey: &Survey<'_>, stands: &Stands<'_>, order: &OrderEntry) -> Option<Finding> {
    let node = survey.index.node_of(order);
    let before = find_condition(order.conditions(), &ConditionType::Superseded);
    if let Some(before) = before.filter(|before| before.status == "True") {
        let reason = REASONS.into_iter().find(|reason| *reason == before.reason).unwrap_or(LET_GO);
        return Some((ConditionType::Superseded, Truth::True, reason, before.message.clone()));
    }
    let campaign = survey.campaign_of(order);
    let moved_on = || {
        let target = order.target()?;
        let (node, campaign) = node.zip(campaign)?;
        (node.contradicts(target) && stands.another_governs(campaign, node)).then_some(())
    };
    let governor = campaign.and_then(|campaign| governor(campaign, stands, node?));
    match order.phase {
        // Nothing is ever heard again of a Node that is gone, whatever its order says.
        _ if node.is_some() && (order.is_committed() || order.has_grants_in_use()) => return None,
        ProgressPhase::Failed | ProgressPhase::RolledBack => return None,
        // Nor is one begun anew that was given up, for having been out of the upgrade for a while.
        _ if campaign.and(node).is_some() && governor.is_none() && order.gave_up().is_some() => return None,
        ProgressPhase::Completed => moved_on()?,
        _ => {}
    }
    let (reason, message) = match (node, governor) {
        (None, _) => (NODE_GONE, "the Node that this was ordered of is gone".to_owned()),
        (Some(_), Some(name)) => (GOVERNED, format!("the upgrade {name} governs the node")),
        (Some(_), None) => (LET_GO, "the upgrade no longer wants this of the node".to_owned()),
    };
    Some((ConditionType::Superseded, Truth::True, reason, message))
}

const GOVERNED: &str = "GovernedByAnother";
const LET_GO: &str = "LetGo";
const NODE_GONE: &str = "NodeGone";
const REASONS: [&str; 3] = [GOVERNED, LET_GO, NODE_GONE];

fn governor<'f>(campaign: &Campaign<'f>, stands: &Stands<'f>, node: &NodeEntry) -> Option<&'f str> {
    match stands.stand_of(campaign, node)? {
        Stand::MovedOn(by) => *by,
        _ => None,
    }
}

fn conditions(order: &OrderEntry, mut findings: Vec<Finding>, now: Timestamp) -> Vec<Condition> {
    findings.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    let condition = |(kind, truth, reason, message): Finding| {
        let before = find_condition(order.conditions(), &kind);
        let since = before.filter(|before| before.status == truth.as_str() && !is_of_the_future(before, now));
        Condition {
            type_: kind.into(),
            status: truth.as_str().to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since.map_or(Time(now), |before| before.last_transition_time.clone()),
            observed_generation: order.progress().metadata.generation,
        }
    };
    findings.into_iter().map(condition).collect()
}

/// Deadlines are counted from these times. Only an operator with another clock, or a person, writes
/// one that lies ahead; it is written anew, so that no clock makes a deadline last for hours.
fn is_of_the_future(condition: &Condition, now: Timestamp) -> bool {
    condition.last_transition_time.0 > now
}

fn ours(order: &OrderEntry) -> impl Iterator<Item = &Condition> + Clone {
    let all = order.conditions().iter();
    all.filter(|condition| OURS.iter().any(|kind| kind.as_str() == condition.type_))
}

/// Generations are left out: a grant alone is no reason to write every condition again.
fn same(order: &OrderEntry, conditions: &[Condition], now: Timestamp) -> bool {
    let words = |condition: &Condition| {
        let Condition { type_, status, reason, message, .. } = condition;
        (type_.clone(), status.clone(), reason.clone(), message.clone())
    };
    let ours = ours(order);
    let mut before: Vec<_> =
        ours.clone().filter(|condition| !is_of_the_future(condition, now)).map(words).collect();
    before.sort();
    ours.count() == before.len() && before == conditions.iter().map(words).collect::<Vec<_>>()
}
