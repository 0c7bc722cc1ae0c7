//! How many nodes may be away, at work, or staging at once.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Turn, in_work, is_of, is_sent_back, may_boot, owns};
use crate::api::{ConditionType, IntOrPercent, OSUpgradeProgress, ProgressPhase, find_condition};
use crate::rollout::{Action, Fleet, NodeView, Plan, Readiness, Role, Scheduling};

pub(super) fn within_budget(fleet: &Fleet, begun: &[Turn<'_>], granted: &[Turn<'_>]) {
    let away = away(fleet);
    // Cordons add up; nodes that were away already cost nothing.
    let new = begun.iter().filter(|turn| !away.contains(turn.node.name.as_str())).count();
    if new > 0 {
        let after = away.len() + new;
        if let Some(IntOrPercent::Int(limit)) = &fleet.max_unavailable {
            assert!(after <= usize::try_from(*limit).unwrap(), "over the operator's limit");
        }
        // Every upgrade of these fleets selects all nodes and has the same budget.
        let budget = fleet.upgrades[0].upgrade.spec.rollout().max_unavailable(fleet.nodes.len());
        assert!(after <= budget, "over budget: {new} more than {away:?}");
    }
    let control_plane = |turn: &&Turn<'_>| turn.node.role == Role::ControlPlane;
    for turn in begun.iter().chain(granted).filter(control_plane) {
        let others =
            fleet.nodes.iter().filter(|node| node.role == Role::ControlPlane && node.uid != turn.node.uid);
        let others = others.filter(|node| {
            away.contains(node.name.as_str()) || begun.iter().any(|begun| begun.node.uid == node.uid)
        });
        assert_eq!(others.count(), 0, "two control-plane nodes at once: {}", turn.node.name);
    }
}

/// Nodes that were away already cost no budget, and yet do not go all at once.
pub(super) fn not_too_many_in_work(fleet: &Fleet, begun: &[Turn<'_>], now: Timestamp) {
    let is_begun = |node: &NodeView| begun.iter().any(|begun| begun.node.uid == node.uid);
    let has_turn = |node: &NodeView| {
        // One that committed may be given up by now.
        let committed =
            fleet.progresses.iter().any(|order| is_of(order, node) && order.phase().is_committed());
        let is_cordoned = node.cordoned_for.is_some() && node.scheduling == Scheduling::Cordoned;
        is_cordoned && node.readiness == Readiness::Ready && !committed
    };
    let at_work = |node: &NodeView| is_begun(node) || has_turn(node) || in_work(fleet, node, now);
    if begun.is_empty() {
        return;
    }
    let at_work: Vec<&str> =
        fleet.nodes.iter().filter(|node| at_work(node)).map(|node| node.name.as_str()).collect();
    let limit = fleet.upgrades[0].upgrade.spec.rollout().max_unavailable(fleet.nodes.len());
    assert!(at_work.len() <= limit, "more than {limit} at work: {at_work:?}");
    if let Some(IntOrPercent::Int(limit)) = &fleet.max_unavailable {
        assert!(at_work.len() <= usize::try_from(*limit).unwrap(), "over the operator's limit: {at_work:?}");
    }
}

/// Of several upgrades it is the planner's to say for which one a node stages.
pub(super) fn not_too_many_stage(fleet: &Fleet, plan: &Plan, now: Timestamp) {
    let [view] = fleet.upgrades.as_slice() else { return };
    let new = plan.actions.iter().filter(|action| matches!(action, Action::GrantStage { .. })).count();
    let stages = |order: &OSUpgradeProgress| {
        let Some(spec) = order.spec.order.as_ref().filter(|_| owns(view, order)) else { return false };
        let node = fleet.nodes.iter().find(|node| is_of(order, node));
        let on_its_way = node.and_then(|node| node.version.as_ref()).is_some_and(|runs| {
            spec.hops.last().is_some_and(|target| target.version != *runs)
                && spec.stage.as_ref() != Some(runs)
        });
        let granted = spec.stage_granted_at.as_ref().is_some_and(|granted| {
            now.duration_since(granted.0) < SignedDuration::from_secs(3600) && spec.stage.is_some()
        });
        let gave_up = find_condition(order.conditions(), &ConditionType::TimedOut).is_some();
        matches!(order.phase(), ProgressPhase::Downloading) && on_its_way && granted && !gave_up
    };
    let already = fleet.progresses.iter().filter(|order| stages(order) && !is_sent_back(order)).count();
    let limit = view.upgrade.spec.rollout().max_parallel_staging(fleet.nodes.len());
    assert!(new == 0 || new + already <= limit, "{new} more than {already} stage at once");
}

fn away(fleet: &Fleet) -> BTreeSet<&str> {
    let away = fleet.nodes.iter().filter(|node| {
        let committed = fleet.progresses.iter().any(|progress| {
            let order = progress.spec.order.as_ref();
            progress.spec.node_name == node.name
                && order.is_none_or(|order| order.node_uid == node.uid)
                && (progress.phase().is_committed() || may_boot(progress))
        });
        committed || node.readiness == Readiness::NotReady || node.scheduling == Scheduling::Cordoned
    });
    away.map(|node| node.name.as_str()).collect()
}
