//! What must hold of every plan, whatever the fleet looks like: told again, in other words than the planner's.

mod limits;

use std::cmp::Ordering;
use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::api::{ConditionType, IntOrPercent, OSUpgradeProgress, ProgressPhase, find_condition};
use crate::rollout::{
    Action, Fleet, Health, Management, NodeReport, NodeView, Plan, PodController, PodView, Readiness, Role,
    Scheduling, UpgradeView,
};
use crate::version::OsVersion;

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const SOAK_SECONDS: i32 = 300;

/// A node that a plan cordons, or gives leave to reboot.
struct Turn<'f> {
    node: &'f NodeView,
    order: &'f OSUpgradeProgress,
    upgrade: &'f UpgradeView,
    running: &'f OsVersion,
    hop: OsVersion,
    /// Whether a person asked for the other slot: that waits for no pace that the spec sets.
    is_sent_back: bool,
}

impl Turn<'_> {
    fn direction(&self) -> Ordering {
        self.hop.cmp(self.running)
    }
}

/// Judges a plan for a fleet.
pub(super) fn judge(fleet: &Fleet, plan: &Plan, now: Timestamp) {
    let (begun, granted) = (begun(fleet, plan), granted(fleet, plan));
    for turn in &granted {
        assert_eq!(
            turn.node.scheduling,
            Scheduling::Cordoned,
            "granted without a cordon: {}",
            turn.node.name
        );
        assert!(is_drained(fleet, turn.node, now), "granted and not drained: {:?}", turn.node);
    }
    for turn in begun.iter().chain(&granted) {
        nobody_stopped_it(turn);
        no_other_reboot(fleet, turn);
    }
    in_a_window(fleet, plan, now);
    for turn in &begun {
        no_skew(fleet, turn);
    }
    for turn in begun.iter().filter(|turn| !turn.is_sent_back) {
        not_after_a_failure(fleet, turn);
        not_quarantined(fleet, turn);
        in_step(fleet, turn, now);
        in_order(fleet, turn, now);
        the_operator_last(fleet, turn, now);
        canaries_first(fleet, turn, now);
        one_zone_at_a_time(fleet, turn, now);
        after_the_soak(fleet, turn, now);
    }
    limits::within_budget(fleet, &begun, &granted);
    limits::not_too_many_in_work(fleet, &begun, now);
    limits::not_too_many_stage(fleet, plan, now);
    uncordons_follow_withdrawals(fleet, plan);
    one_write_an_object(plan);
}

fn turn<'f>(fleet: &'f Fleet, progress_uid: &str) -> Turn<'f> {
    let mut orders = fleet.progresses.iter();
    let order = orders.find(|known| known.metadata.uid.as_deref() == Some(progress_uid)).unwrap();
    let node = fleet.nodes.iter().find(|node| node.name == order.spec.node_name).unwrap();
    let upgrade = fleet.upgrades.iter().find(|view| owns(view, order)).unwrap();
    let running = node.version.as_ref().unwrap();
    let is_sent_back = is_sent_back(order);
    let hop = if is_sent_back {
        let NodeReport::Present(report) = &node.report else { panic!("{} goes to nowhere", node.name) };
        report.other_slot.as_ref().and_then(|other| other.version.as_ref()).unwrap().parse().unwrap()
    } else {
        let hops = &order.spec.order.as_ref().unwrap().hops;
        let direction = hops.last().unwrap().version.cmp(running);
        hops.iter().find(|hop| hop.version.cmp(running) == direction).unwrap().version.clone()
    };
    Turn { node, order, upgrade, running, hop, is_sent_back }
}

/// Whether a person asks for the other slot, or did.
fn is_sent_back(order: &OSUpgradeProgress) -> bool {
    order.rollback_is_wanted() || order.spec.rollback_nonce.is_some() && !has_unanswered_retry(order)
}

fn has_unanswered_retry(order: &OSUpgradeProgress) -> bool {
    let answered = order.status.as_ref().and_then(|status| status.observed_retry_nonce.as_deref());
    order.retry_nonce() != answered.unwrap_or_default()
}

/// Whether a person had this very node try again: a halt and a quarantine do not hold it.
fn is_retried(turn: &Turn<'_>) -> bool {
    let asked = turn.order.retry_nonce();
    !asked.is_empty() && asked != turn.upgrade.upgrade.spec.retry_nonce()
}

fn begun<'f>(fleet: &'f Fleet, plan: &Plan) -> Vec<Turn<'f>> {
    let uids = plan.actions.iter().filter_map(|action| match action {
        Action::Cordon { progress_uid, .. } => Some(progress_uid),
        _ => None,
    });
    uids.map(|uid| turn(fleet, uid)).collect()
}

fn granted<'f>(fleet: &'f Fleet, plan: &Plan) -> Vec<Turn<'f>> {
    let uids = plan.actions.iter().filter_map(|action| match action {
        Action::GrantBoot { progress, .. } => Some(&progress.uid),
        _ => None,
    });
    uids.map(|uid| turn(fleet, uid)).collect()
}

/// Whether an order is of the run of an upgrade that is under way.
fn owns(view: &UpgradeView, order: &OSUpgradeProgress) -> bool {
    let run = view.upgrade.status.as_ref().and_then(|status| status.run);
    order.metadata.owner_references.iter().flatten().any(|owner| owner.uid == view.uid())
        && order.spec.order.as_ref().map(|order| order.run) == run
}

fn is_of(order: &OSUpgradeProgress, node: &NodeView) -> bool {
    order.spec.order.as_ref().is_some_and(|order| order.node_uid == node.uid)
}

/// The other nodes with work in the same run that they will do by themselves, and what they run. Of several upgrades
/// it is the planner's to say which governs a node, so then there are none here.
fn movers<'f>(fleet: &'f Fleet, turn: &Turn<'f>, now: Timestamp) -> Vec<(&'f NodeView, &'f OsVersion)> {
    if fleet.upgrades.len() > 1 {
        return Vec::new();
    }
    let orders = fleet.progresses.iter().filter(|order| owns(turn.upgrade, order) && !is_sent_back(order));
    let moving = orders.filter(|order| {
        let let_go = find_condition(order.conditions(), &ConditionType::Superseded)
            .is_some_and(|superseded| superseded.status == "True");
        // Deadlines are for the planner to count: whoever may have missed one is left out.
        let late = order.conditions().iter().any(|condition| {
            let since = now.duration_since(condition.last_transition_time.0);
            condition.status == "False" && since >= SignedDuration::from_secs(1800)
        });
        let gave_up = find_condition(order.conditions(), &ConditionType::TimedOut)
            .is_some_and(|timed_out| timed_out.status == "True");
        let granted = order.spec.order.as_ref().and_then(|order| order.stage_granted_at.as_ref());
        let late = late
            || granted
                .is_some_and(|granted| now.duration_since(granted.0) >= SignedDuration::from_secs(1800));
        !order.phase().is_final() && !order.phase().is_committed() && !let_go && !gave_up && !late
    });
    let nodes = moving.filter_map(|order| {
        let node = fleet.nodes.iter().find(|node| is_of(order, node))?;
        let at = node.version.as_ref()?;
        let hops = &order.spec.order.as_ref()?.hops;
        let on_time = order.spec.order.as_ref()?.boot.is_none() && node.cordoned_for.is_none();
        let moves = node.readiness == Readiness::Ready && hops.last()?.version != *at && on_time;
        (moves && node.uid != turn.node.uid).then_some((node.as_ref(), at))
    });
    nodes.collect()
}

fn nobody_stopped_it(turn: &Turn<'_>) {
    let Turn { node, upgrade, hop, .. } = turn;
    assert!(upgrade.upgrade.spec.paused != Some(true), "{} is begun in a paused upgrade", node.name);
    if turn.is_sent_back {
        return;
    }
    // Where somebody took the cordon off, it is put back all the same.
    let has_leave = turn.order.spec.order.as_ref().is_some_and(|order| order.boot.is_some());
    let unread = upgrade.catalog_error.is_some() && !has_leave;
    assert!(!unread, "{} is begun without a look at the catalog", node.name);
    let blocked = &upgrade.target().unwrap().blocked;
    assert!(!blocked.contains(hop), "{} goes to {hop}, which is blocked", node.name);
    let checks = upgrade.upgrade.spec.rollout().health_checks.len();
    let sick = upgrade.health.iter().take(checks).any(|health| *health != Health::Holds);
    assert!(!sick, "{} is begun while a health check does not hold", node.name);
}

fn no_other_reboot(fleet: &Fleet, turn: &Turn<'_>) {
    let other = fleet.progresses.iter().find(|order| {
        let by_hand = order.spec.order.is_none() && order.spec.node_name == turn.node.name;
        (by_hand || is_of(order, turn.node))
            && order.metadata.uid != turn.order.metadata.uid
            && order.phase().is_committed()
    });
    assert!(other.is_none(), "{} is in a reboot already: {other:?}", turn.node.name);
}

/// With one upgrade only: another one may govern the node that failed.
fn not_after_a_failure(fleet: &Fleet, turn: &Turn<'_>) {
    let rollout = turn.upgrade.upgrade.spec.rollout();
    let halts = |phase: ProgressPhase| match phase {
        ProgressPhase::RolledBack => rollout.failure_threshold == Some(IntOrPercent::Int(1)),
        ProgressPhase::Failed => rollout.max_failed_nodes == Some(IntOrPercent::Int(0)),
        _ => false,
    };
    if fleet.upgrades.len() > 1 || is_retried(turn) {
        return;
    }
    let failed = fleet.progresses.iter().find(|order| {
        let node = fleet.nodes.iter().find(|node| is_of(order, node));
        let is_gone = node.is_none();
        owns(turn.upgrade, order)
            && !is_sent_back(order)
            && halts(order.phase())
            && (is_gone
                || node.is_some_and(|node| node.readiness == Readiness::Ready && node.version.is_some()))
            && !has_unanswered_retry(order)
            && node.and_then(|node| node.version.as_ref())
                != order.spec.order.as_ref().and_then(|order| order.hops.last()).map(|hop| &hop.version)
    });
    assert!(failed.is_none(), "{} is begun after {failed:?}", turn.node.name);
}

/// Where one failure is too many, an image that failed on a node after its reboot is not booted anywhere.
fn not_quarantined(fleet: &Fleet, turn: &Turn<'_>) {
    if turn.upgrade.upgrade.spec.rollout().failure_threshold != Some(IntOrPercent::Int(1)) || is_retried(turn)
    {
        return;
    }
    let hops = &turn.order.spec.order.as_ref().unwrap().hops;
    let image = hops.iter().find(|image| image.version == turn.hop).unwrap();
    let failed = fleet.nodes.iter().find(|node| match &node.report {
        NodeReport::Present(report) => report.failed_images.iter().any(|it| it.checksum == image.checksum),
        NodeReport::Missing | NodeReport::Foreign => false,
    });
    assert!(failed.is_none(), "{} goes to what failed on {failed:?}", turn.node.name);
}

/// The control plane finishes a hop before it begins the next, and stays within one minor release.
fn in_step(fleet: &Fleet, turn: &Turn<'_>, now: Timestamp) {
    if turn.node.role != Role::ControlPlane {
        return;
    }
    let direction = turn.direction();
    let behind = movers(fleet, turn, now).into_iter().find(|(other, at)| {
        other.role == Role::ControlPlane && turn.running.cmp(at) == direction && turn.hop.cmp(at) == direction
    });
    assert!(behind.is_none(), "{} begins its next hop before {behind:?}", turn.node.name);
    let there = turn.hop.minor();
    let apart = fleet.nodes.iter().find(|other| {
        let minor = other.version.as_ref().map(OsVersion::minor);
        other.role == Role::ControlPlane
            && other.uid != turn.node.uid
            && other.management != Management::Excluded
            && minor.is_some_and(|minor| minor.minor.abs_diff(there.minor) > 1)
    });
    assert!(apart.is_none(), "{} goes to {there}, and there is {apart:?}", turn.node.name);
}

/// The control plane first on the way up, the workers first on the way down.
fn in_order(fleet: &Fleet, turn: &Turn<'_>, now: Timestamp) {
    let direction = turn.direction();
    let first = match (turn.node.role, direction) {
        (Role::Worker, Ordering::Greater) => Role::ControlPlane,
        (Role::ControlPlane, Ordering::Less) => Role::Worker,
        _ => return,
    };
    let canary = turn.upgrade.upgrade.spec.rollout().canary.is_some() && is_canary(fleet, turn.node);
    if canary && turn.running.minor() == turn.hop.minor() {
        return;
    }
    let behind = movers(fleet, turn, now)
        .into_iter()
        .find(|(other, at)| other.role == first && turn.hop.cmp(at) == direction);
    assert!(behind.is_none(), "{} is begun before {behind:?}", turn.node.name);
}

/// No kubelet is newer than the oldest API server.
fn no_skew(fleet: &Fleet, turn: &Turn<'_>) {
    let there = turn.hop.minor();
    let minor = |node: &NodeView| node.version.as_ref().map(OsVersion::minor);
    if turn.node.role == Role::Worker {
        let servers = fleet.nodes.iter().filter(|node| {
            node.role == Role::ControlPlane && node.readiness == Readiness::Ready && node.version.is_some()
        });
        let oldest = servers.filter_map(|node| minor(node)).min();
        let rises = there > turn.running.minor();
        assert!(!rises || oldest.is_none_or(|oldest| there <= oldest), "{} is too new", turn.node.name);
    } else if turn.direction() == Ordering::Less {
        let newer = fleet.nodes.iter().find(|node| {
            node.role == Role::Worker && node.management != Management::Excluded && minor(node) > Some(there)
        });
        assert!(newer.is_none(), "{} goes down below {newer:?}", turn.node.name);
    }
}

fn the_operator_last(fleet: &Fleet, turn: &Turn<'_>, now: Timestamp) {
    if fleet.operator_node.as_deref() != Some(turn.node.name.as_str()) {
        return;
    }
    let direction = turn.direction();
    let behind = movers(fleet, turn, now).into_iter().find(|(other, at)| {
        let ahead = other.role == Role::ControlPlane && at.cmp(&turn.running) == direction;
        other.role == turn.node.role && turn.hop.cmp(at) == direction && !ahead
    });
    assert!(behind.is_none(), "the operator's {} is begun before {behind:?}", turn.node.name);
}

fn is_canary(fleet: &Fleet, node: &NodeView) -> bool {
    let operators = fleet.operator_node.as_deref() == Some(node.name.as_str());
    node.role == Role::Worker && node.labels.contains_key("canary") && !operators
}

fn canaries_first(fleet: &Fleet, turn: &Turn<'_>, now: Timestamp) {
    let has_canaries = turn.upgrade.upgrade.spec.rollout().canary.is_some();
    if !has_canaries || is_canary(fleet, turn.node) || turn.node.role == Role::ControlPlane {
        return;
    }
    let first = movers(fleet, turn, now)
        .into_iter()
        .find(|(other, at)| is_canary(fleet, other) && turn.hop.cmp(at) == turn.direction());
    assert!(first.is_none(), "{} is begun before the canary {first:?}", turn.node.name);
}

/// Reboots are for the first half of each hour, if there are windows.
fn in_a_window(fleet: &Fleet, plan: &Plan, now: Timestamp) {
    let Some(rollout) = fleet.upgrades.first().map(|view| view.upgrade.spec.rollout()) else { return };
    let closes = 1800 - now.as_second().rem_euclid(3600);
    let bound = |uid: &str| !rollout.windows.is_empty() && !turn(fleet, uid).is_sent_back;
    for action in &plan.actions {
        match action {
            Action::Cordon { node, progress_uid } if bound(progress_uid) => {
                assert!(closes > 0, "{node:?} is begun when it is closed");
            }
            Action::GrantBoot { progress, grant } if bound(&progress.uid) => {
                assert!(closes > 0, "granted when it is closed");
                assert!(grant.not_after.0.duration_since(now).as_secs() <= closes, "{grant:?}");
            }
            _ => {}
        }
    }
}

fn one_zone_at_a_time(fleet: &Fleet, turn: &Turn<'_>, now: Timestamp) {
    if turn.upgrade.upgrade.spec.rollout().group_by.is_none() {
        return;
    }
    let zone = |node: &NodeView| node.labels.get(ZONE).cloned();
    let elsewhere =
        fleet.nodes.iter().find(|other| zone(other) != zone(turn.node) && in_work(fleet, other, now));
    assert!(elsewhere.is_none(), "{} is begun while {elsewhere:?} is in work", turn.node.name);
}

/// Whether a node has a reboot that it may yet begin, or that is not overdue.
fn in_work(fleet: &Fleet, node: &NodeView, now: Timestamp) -> bool {
    fleet.progresses.iter().any(|progress| {
        let Some(order) = progress.spec.order.as_ref().filter(|order| order.node_uid == node.uid) else {
            return false;
        };
        let Some(grant) = &order.boot else { return false };
        let overdue = now.duration_since(grant.not_after.0) >= SignedDuration::from_secs(1200);
        progress.phase().is_committed() && !overdue && fleet.upgrades.iter().any(|view| owns(view, progress))
    })
}

fn after_the_soak(fleet: &Fleet, turn: &Turn<'_>, now: Timestamp) {
    if turn.upgrade.upgrade.spec.rollout().soak_seconds != Some(SOAK_SECONDS) {
        return;
    }
    let soaks = fleet.progresses.iter().find(|order| {
        let soaking = find_condition(order.conditions(), &ConditionType::Soaking);
        let lasts = SignedDuration::from_secs(SOAK_SECONDS.into());
        let node = fleet.nodes.iter().find(|node| is_of(order, node));
        owns(turn.upgrade, order)
            && !is_sent_back(order)
            && order.phase() == ProgressPhase::Completed
            && node.is_some_and(|node| node.uid != turn.node.uid && node.readiness == Readiness::Ready)
            && soaking.is_some_and(|soaking| {
                let since = soaking.last_transition_time.0;
                soaking.status == "True" && since <= now && now.duration_since(since) < lasts
            })
    });
    assert!(soaks.is_none(), "{} is begun while {soaks:?} soaks", turn.node.name);
}

/// Whether nothing is left that has to leave, or there is no other place for it.
fn is_drained(fleet: &Fleet, node: &NodeView, now: Timestamp) -> bool {
    let elsewhere = fleet.nodes.iter().any(|other| {
        let takes_pods = other.scheduling == Scheduling::Schedulable || other.cordoned_for.is_some();
        other.uid != node.uid && takes_pods
    });
    // A kubelet that does not answer never says that a pod has ended.
    let is_stuck = |pod: &PodView| {
        let dead = node.readiness == Readiness::NotReady;
        dead && pod.ends.is_some_and(|ends| now.duration_since(ends) >= SignedDuration::from_secs(60))
    };
    let has_left = |pod: &PodView| pod.controller == PodController::DaemonSet || is_stuck(pod);
    !elsewhere || fleet.pods[&node.uid].iter().all(has_left)
}

/// An uncordon may only be planned once the withdrawal was seen: one of the same plan may yet fail.
fn uncordons_follow_withdrawals(fleet: &Fleet, plan: &Plan) {
    for action in &plan.actions {
        let Action::Uncordon { node } = action else { continue };
        let may_reboot = fleet.progresses.iter().find(|progress| {
            let order = progress.spec.order.as_ref().filter(|order| order.node_uid == node.uid);
            order.is_some_and(|_| may_boot(progress) || progress.phase().is_committed())
        });
        assert!(may_reboot.is_none(), "uncordon of a node that may reboot: {may_reboot:?}");
    }
}

/// Whether there is leave to reboot, and it is more than a memory of a reboot that is done.
pub(super) fn may_boot(progress: &OSUpgradeProgress) -> bool {
    let status = progress.status.clone().unwrap_or_default();
    let asks = |nonce: &Option<String>, answered: &Option<String>| nonce.is_some() && nonce != answered;
    let is_asked = asks(&progress.spec.retry_nonce, &status.observed_retry_nonce)
        || asks(&progress.spec.rollback_nonce, &status.observed_rollback_nonce);
    let has_leave = progress.spec.order.as_ref().is_some_and(|order| order.boot.is_some());
    has_leave && (is_asked || progress.phase() != ProgressPhase::Completed)
}

/// A second write that is bound to the same resourceVersion could only fail.
fn one_write_an_object(plan: &Plan) {
    let mut written = BTreeSet::new();
    for action in &plan.actions {
        let uid = match action {
            Action::Report { .. } | Action::CreateProgress(_) | Action::CreateOsNode { .. } => continue,
            Action::WithdrawBoot { progress }
            | Action::Supersede { progress }
            | Action::DeleteProgress { progress }
            | Action::GrantStage { progress, .. }
            | Action::GrantBoot { progress, .. } => &progress.uid,
            Action::Evict { pod, .. } | Action::DeletePod { pod, .. } => &pod.uid,
            Action::Cordon { node, .. } | Action::Uncordon { node } => &node.uid,
        };
        assert!(written.insert(uid), "written twice: {action:?}");
    }
}
