//! What has to leave a node before it reboots, and whether it has. Evictions are asked for here and answered by
//! the API server; what was answered is observed, as everything is. The clock of a drain is the condition
//! `Drained` of the order, which outlives operators.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::action::{Action, PodRef};
use super::draft::Draft;
use super::fleet::{NodeView, Readiness, Scheduling};
use super::gates::{DRAIN, stands};
use super::halt::names;
use super::health;
use super::index::{NodeEntry, OrderEntry};
use super::order::{State, later};
use super::outlook::Wait;
use super::pods::{Fate, PodView};
use super::report::Finding;
use super::survey::{Campaign, Survey};
use crate::api::{
    ConditionType, DrainOnTimeout, DrainPolicy, DrainSpec, RolloutSpec, Truth, UpgradeReason, find_condition,
};

/// A pod is asked to leave again after so long, as `kubectl drain` does.
const AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// A pod that is there so long after its time to end is stuck. On a node that is not ready, which will never report
/// it, and after a drain by force it is not waited for.
const STUCK_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Reason of the condition `Drained` of a node's object while something holds up the drain.
pub const DRAIN_BLOCKED: &str = "Blocked";
/// Reason of `Drained` once a drain was forced; it stays for ever.
pub const DRAIN_FORCED: &str = "Forced";

/// What the API server answered to an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// When.
    pub at: Timestamp,
    /// What.
    pub answer: EvictionAnswer,
}

/// What the API server answered to an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvictionAnswer {
    /// The pod is being deleted, or was gone.
    Accepted,
    /// Not now.
    Refused {
        /// The disruption budgets that refuse, as `namespace/name`.
        budgets: Vec<String>,
        /// The same with their numbers: `default/web needs 2 has 2`.
        why: String,
    },
    /// It was not even judged.
    Failed(String),
}

/// Where a drain stands.
pub(super) enum Drain<'f> {
    /// Nothing has to leave.
    Unneeded(&'static str),
    /// What is there is not known yet, or cannot be, and why.
    Unseen(Option<&'f str>),
    /// These have to leave.
    Left(Left<'f>),
    /// All that had to have left, but for what was passed over by force.
    Empty(Force),
}

/// Whether a drain passed something over for its time being over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    Used,
    Unused,
}

/// What has to leave and is still there.
#[derive(Default)]
pub(super) struct Left<'f> {
    pods: Vec<&'f PodView>,
    /// Names of volumes that are to be detached, which is done when their pods are gone.
    volumes: Vec<&'f str>,
}

impl<'f> Drain<'f> {
    pub(super) fn of(
        survey: &Survey<'f>,
        campaign: &Campaign<'_>,
        node: &NodeView,
        order: &OrderEntry,
    ) -> Self {
        let spec = spec(&campaign.rollout);
        match spec.policy.unwrap_or_default() {
            DrainPolicy::Never => return Self::Unneeded("drain.policy is Never"),
            // A drain that has begun goes on: who cordons the last other node meanwhile does not have pods killed.
            DrainPolicy::Auto if !has_begun(order) && !has_elsewhere(survey, node) => {
                return Self::Unneeded("no other node could take its pods");
            }
            DrainPolicy::Auto | DrainPolicy::Always => {}
        }
        let fleet = survey.fleet;
        let (Some(pods), Some(volumes)) = (fleet.pods.get(&node.uid), &fleet.volumes) else {
            return Self::Unseen(fleet.unseen.get(&node.uid).map(String::as_str));
        };
        let own = fleet.operator_pod.as_deref();
        let (stay, mut leave): (Vec<&PodView>, Vec<_>) = pods
            .iter()
            .partition(|pod| own == Some(pod.full_name().as_str()) || pod.fate(&spec) == Fate::Stays);
        let kept: BTreeSet<&String> = stay
            .iter()
            .flat_map(|pod| pod.full_claims())
            .filter_map(|claim| fleet.claims.get(&claim))
            .collect();
        let attached = volumes.get(&node.name).into_iter().flatten();
        let mut volumes: Vec<_> =
            attached.filter(|volume| !kept.contains(volume)).map(String::as_str).collect();
        let was_forced = was_forced(order) && is_drained(order);
        let by_force = is_over(order, &campaign.rollout, survey.now) || was_forced;
        let all = leave.len() + volumes.len();
        if by_force || node.readiness == Readiness::NotReady {
            leave.retain(|pod| !is_stuck(pod, survey.now));
            volumes.clear();
        }
        if leave.is_empty() && volumes.is_empty() {
            return Self::Empty(if by_force && all > 0 { Force::Used } else { Force::Unused });
        }
        Self::Left(Left { pods: leave, volumes })
    }
}

/// The drain that a rollout asks for.
fn spec(rollout: &RolloutSpec) -> DrainSpec {
    rollout.drain.clone().unwrap_or_default()
}

/// Whether the pods of a node could go anywhere else, in time: what is away for a moment, or for an upgrade of ours,
/// counts, or pods would be killed by a reboot because another node blinked. What runs on a node tolerates its taints.
fn has_elsewhere(survey: &Survey<'_>, node: &NodeView) -> bool {
    survey.fleet.nodes.iter().any(|other| {
        let takes_pods = other.scheduling == Scheduling::Schedulable || other.cordoned_for.is_some();
        other.uid != node.uid && takes_pods && other.taints.admit_pods_of(&node.taints)
    })
}

fn is_stuck(pod: &PodView, now: Timestamp) -> bool {
    pod.ends.is_some_and(|ends| later(ends, STUCK_AFTER) <= now)
}

/// When a drain has lasted for as long as it may. Only what was written counts: it is the same for the next
/// operator.
pub(super) fn deadline(order: &OrderEntry, rollout: &RolloutSpec) -> Option<Timestamp> {
    let began = said(order)?;
    let lasts = SignedDuration::from_secs(spec(rollout).timeout_seconds.unwrap_or(1800).into());
    (began.status == Truth::False.as_str()).then(|| later(began.last_transition_time.0, lasts))
}

fn is_over(order: &OrderEntry, rollout: &RolloutSpec, now: Timestamp) -> bool {
    deadline(order, rollout).is_some_and(|deadline| deadline <= now)
}

/// The same where the node has failed then.
pub(super) fn deadline_to_abort(order: &OrderEntry, rollout: &RolloutSpec) -> Option<Timestamp> {
    let aborts = spec(rollout).on_timeout.unwrap_or_default() == DrainOnTimeout::Abort;
    deadline(order, rollout).filter(|_| aborts)
}

/// Whether the time was over once, and what was left was deleted.
fn was_forced(order: &OrderEntry) -> bool {
    said(order).is_some_and(|drained| drained.reason == DRAIN_FORCED)
}

/// The condition `Drained` of the order.
fn said(order: &OrderEntry) -> Option<&Condition> {
    find_condition(order.conditions(), &ConditionType::Drained)
}

/// Whether the order says that the node was drained.
fn is_drained(order: &OrderEntry) -> bool {
    order.says(&ConditionType::Drained)
}

/// Whether the order says when the drain began.
fn has_begun(order: &OrderEntry) -> bool {
    said(order).is_some_and(|began| began.status == Truth::False.as_str())
}

/// Has the pods leave that have to. `true` once they have, and that is written.
pub(super) fn go_on<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    node: &'f NodeEntry,
    order: &'f OrderEntry,
    draft: &mut Draft<'f>,
) -> bool {
    if !stands(DRAIN) {
        return true;
    }
    let left = match Drain::of(survey, campaign, node.view(), order) {
        // Nothing is written of a node that nothing had to leave.
        Drain::Empty(Force::Unused) if said(order).is_none() => return true,
        Drain::Unneeded(_) | Drain::Empty(_) => return is_drained(order),
        Drain::Unseen(why) => {
            draft.waits(campaign, node, unseen(why));
            wake_at_deadline(survey, campaign, order, draft);
            return false;
        }
        Drain::Left(left) => left,
    };
    let spec = spec(&campaign.rollout);
    let over = is_over(order, &campaign.rollout, survey.now);
    draft.waits(campaign, node, wait(&left, &spec, survey));
    // The clock first.
    if has_begun(order) {
        for pod in left.pods {
            let stuck = pod.ends.map(|ends| later(ends, STUCK_AFTER));
            if let Some(at) = stuck.filter(|at| *at > survey.now) {
                draft.wake_at(at);
            }
            if let Some(action) = if over { delete(pod, &spec) } else { evict(pod, &spec, survey, draft) } {
                draft.push(action);
            }
        }
        wake_at_deadline(survey, campaign, order, draft);
    }
    false
}

/// A deadline that has passed already is for what is done about it to end.
fn wake_at_deadline(survey: &Survey<'_>, campaign: &Campaign<'_>, order: &OrderEntry, draft: &mut Draft<'_>) {
    if let Some(deadline) = deadline(order, &campaign.rollout).filter(|at| *at > survey.now) {
        draft.wake_at(deadline);
    }
}

/// Asks a pod to leave, unless it was asked a moment ago.
fn evict(pod: &PodView, spec: &DrainSpec, survey: &Survey<'_>, draft: &mut Draft<'_>) -> Option<Action> {
    if pod.ends.is_some() || pod.fate(spec) != Fate::Leaves {
        return None;
    }
    // A clock that was set back must not have a pod wait for hours.
    let asked = survey.fleet.evictions.get(&pod.uid).filter(|asked| asked.at <= survey.now);
    let again = asked.map(|asked| later(asked.at, AGAIN));
    if let Some(again) = again.filter(|again| *again > survey.now) {
        draft.wake_at(again);
        return None;
    }
    let grace_period_seconds = spec.grace_period_seconds;
    Some(Action::Evict { pod: PodRef::of(pod), grace_period_seconds })
}

/// Deletes a pod, whatever its budget says.
fn delete(pod: &PodView, spec: &DrainSpec) -> Option<Action> {
    let grace_period_seconds = spec.grace_period_seconds;
    pod.ends.is_none().then(|| Action::DeletePod { pod: PodRef::of(pod), grace_period_seconds })
}

fn unseen(why: Option<&str>) -> Wait {
    match why {
        Some(why) => Wait {
            reason: UpgradeReason::DrainBlocked,
            message: format!("cannot be drained: what runs on it is not known: {why}"),
        },
        None => Wait {
            reason: UpgradeReason::Draining,
            message: "waits until what runs on it is known".to_owned(),
        },
    }
}

/// What a drain waits for.
fn wait(left: &Left<'_>, spec: &DrainSpec, survey: &Survey<'_>) -> Wait {
    match obstacles(&left.pods, spec, survey) {
        Some(message) => Wait { reason: UpgradeReason::DrainBlocked, message },
        None => Wait { reason: UpgradeReason::Draining, message: format!("waits for {}", awaited(left)) },
    }
}

/// What has to happen yet, where nothing is in its way.
fn awaited(left: &Left<'_>) -> String {
    if left.pods.is_empty() {
        return format!("volumes to be detached: {}", names(&left.volumes));
    }
    "its pods to leave".to_owned()
}

/// What holds up pods that have to leave; it says the same as long as nothing changes.
fn obstacles(left: &[&PodView], spec: &DrainSpec, survey: &Survey<'_>) -> Option<String> {
    let of = |fate: Fate| -> Vec<String> {
        let pods = left.iter().filter(|pod| pod.ends.is_none() && pod.fate(spec) == fate);
        pods.map(|pod| pod.full_name()).collect()
    };
    let mut refusals: Vec<&str> = left
        .iter()
        .filter(|pod| pod.ends.is_none())
        .filter_map(|pod| match &survey.fleet.evictions.get(&pod.uid)?.answer {
            EvictionAnswer::Refused { why, .. } | EvictionAnswer::Failed(why) => Some(why.as_str()),
            EvictionAnswer::Accepted => None,
        })
        .collect();
    refusals.sort_unstable();
    refusals.dedup();
    let overdue = left.iter().filter(|pod| is_stuck(pod, survey.now)).map(|pod| pod.full_name());
    let said = |all: Vec<String>, words: &str| {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        (!all.is_empty()).then(|| format!("{} {words}", names(&all)))
    };
    let parts = [
        (!refusals.is_empty()).then(|| names(&refusals)),
        said(of(Fate::IsUnmanaged), "would be made again by nobody (drain.unmanagedPods is Block)"),
        said(of(Fate::WouldLoseData), "would lose an emptyDir (drain.deleteEmptyDirData is false)"),
        said(overdue.collect(), "did not end in time"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("cannot be drained: {}", parts.join("; ")))
}

/// What would hold up the drain of a node with these pods, as far as the pods themselves tell: budgets are the API
/// server's to know, which answers a dry run.
#[must_use]
pub fn drain_obstacles(pods: &[PodView], spec: &DrainSpec) -> Vec<String> {
    if spec.policy.unwrap_or_default() == DrainPolicy::Never {
        return Vec::new();
    }
    let obstacle = |pod: &PodView| match pod.fate(spec) {
        Fate::Stays | Fate::Leaves => None,
        Fate::IsUnmanaged => Some(format!("{} would be made again by nobody", pod.full_name())),
        Fate::WouldLoseData => Some(format!("{} would lose an emptyDir", pod.full_name())),
    };
    pods.iter().filter_map(obstacle).collect()
}

/// The condition `Drained` of an order: False since the drain began, True since it is over. Absent where nothing had to
/// leave and the node goes on at once.
pub(super) fn finding<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    node: &'f NodeEntry,
    (order, state): (&'f OrderEntry, &State<'f>),
    draft: &Draft<'_>,
) -> Option<Finding> {
    let was_forced = was_forced(order);
    let in_turn = node.scheduling == Scheduling::Cordoned && draft.admitted.contains(&order.number);
    let says = |truth, reason, message: &str| {
        let reason = if was_forced { DRAIN_FORCED } else { reason };
        Some((ConditionType::Drained, truth, reason, message.to_owned()))
    };
    match state {
        State::Committed | State::Settling => kept(order),
        State::Staged(_) if order.has_boot => kept(order),
        State::Staged(_) if in_turn => match Drain::of(survey, campaign, node.view(), order) {
            Drain::Unneeded(why) => says(Truth::True, "Unneeded", &format!("it was not drained: {why}")),
            Drain::Unseen(None) => kept(order),
            Drain::Unseen(why) => says(Truth::False, DRAIN_BLOCKED, &unseen(why).message),
            Drain::Left(left) => {
                let spec = spec(&campaign.rollout);
                let over = is_over(order, &campaign.rollout, survey.now);
                match obstacles(&left.pods, &spec, survey) {
                    _ if over => {
                        says(Truth::False, DRAIN_FORCED, "the time is over, and what is left is deleted")
                    }
                    Some(message) => says(Truth::False, DRAIN_BLOCKED, &message),
                    None => says(Truth::False, "Draining", &format!("waits for {}", awaited(&left))),
                }
            }
            Drain::Empty(force) if was_forced || force == Force::Used => {
                says(Truth::True, DRAIN_FORCED, "what had to leave was deleted, or passed over")
            }
            // While a health check holds it, whoever sees no pods has to know that the drain is over.
            Drain::Empty(_) if said(order).is_none() && health::wait(campaign, order).is_none() => None,
            Drain::Empty(_) => says(Truth::True, DRAINED, "what had to leave has left"),
        },
        // The next drain of the order begins anew; what was done stays on record.
        State::Unstaged(_) | State::Staging(_) | State::Staged(_) if was_forced => {
            says(Truth::Unknown, DRAIN_FORCED, "a drain before this one was forced")
        }
        _ => on_record(order),
    }
}

/// What stays of a drain when its order is over: it tells what was done, and to take it off would cost a write.
pub(super) fn on_record(order: &OrderEntry) -> Option<Finding> {
    let is_over = order.is_done() && is_drained(order);
    kept(order).filter(|_| is_over || was_forced(order))
}

fn kept(order: &OrderEntry) -> Option<Finding> {
    let before = said(order)?;
    let truth = match before.status.as_str() {
        "True" => Truth::True,
        "False" => Truth::False,
        _ => Truth::Unknown,
    };
    let reason = REASONS.into_iter().find(|reason| *reason == before.reason).unwrap_or(DRAINED);
    Some((ConditionType::Drained, truth, reason, before.message.clone()))
}

const DRAINED: &str = "Drained";
const REASONS: [&str; 5] = [DRAINED, "Unneeded", DRAIN_BLOCKED, "Draining", DRAIN_FORCED];
