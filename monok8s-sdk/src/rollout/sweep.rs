//! What has to be taken back or cleaned up: grants, cordons, old objects. And `OSNode`s.

use super::action::Action;
use super::draft::Draft;
use super::fleet::Management;
use super::govern::{Member, Stand, Stands};
use super::index::OrderEntry;
use super::order::State;
use super::run;
use super::survey::{Campaign, Survey};
use crate::api::KEPT_RUNS;

/// What an upgrade still wants of the orders of its run under way, by the order's number.
pub(super) struct Wanted<'a, 'f> {
    by_order: Vec<Option<(&'a Campaign<'f>, &'a Member<'f>)>>,
}

impl<'a, 'f> Wanted<'a, 'f> {
    pub(super) fn new(survey: &'a Survey<'f>, stands: &'a Stands<'f>) -> Self {
        let governed = survey
            .campaigns
            .iter()
            .flat_map(|campaign| stands.governed(campaign).map(move |member| (campaign, member)));
        let mut by_order = vec![None; survey.index.orders().len()];
        for (campaign, member) in governed {
            let order = match member.stand {
                Stand::Ordered(_, State::LetGo) => None,
                Stand::Ordered(..) | Stand::UpToDate => member.order,
                _ => None,
            };
            if let Some(wanted) = order.and_then(|order| by_order.get_mut(order.number)) {
                *wanted = Some((campaign, member));
            }
        }
        Self { by_order }
    }

    /// The upgrade that wants it, and the node of which it does.
    pub(super) fn get(&self, order: &OrderEntry) -> Option<(&'a Campaign<'f>, &'a Member<'f>)> {
        self.by_order.get(order.number).copied().flatten()
    }
}

/// Takes back the grants that nobody stands behind any more.
pub(super) fn withdraw(survey: &Survey<'_>, wanted: &Wanted<'_, '_>, draft: &mut Draft<'_>) {
    for order in survey.index.orders().filter(|order| order.run.is_some() && !order.is_committed()) {
        if wanted.get(order).is_none() && order.has_grants_in_use() {
            draft.push(Action::Supersede { progress: order.object() });
        } else if order.has_leave_in_use() && !draft.admitted.contains(&order.number) {
            draft.push(Action::WithdrawBoot { progress: order.object() });
        }
    }
}

/// Takes off the cordons of ours that nothing needs any more, wherever they are.
pub(super) fn uncordon(survey: &Survey<'_>, wanted: &Wanted<'_, '_>, draft: &mut Draft<'_>) {
    for node in survey.index.nodes() {
        let Some(uid) = node.cordoned_for.as_deref() else { continue };
        let needed = survey.index.orders_of(node).find(|order| order.uid() == uid).is_some_and(|order| {
            order.has_leave_in_use()
                || order.is_committed()
                || draft.admitted.contains(&order.number)
                || wanted.get(order).is_some_and(|(_, member)| is_settling(member))
        });
        if !needed {
            draft.push(Action::Uncordon { node: node.object() });
        }
    }
}

/// A node that says it is done keeps its cordon until the cluster sees it back.
fn is_settling(member: &Member<'_>) -> bool {
    matches!(member.ordered(), Some((_, State::Settling)))
}

/// Deletes what belongs to runs that are no longer remembered. What a node may still act on stays,
/// as long as its Node is there: one that was deleted and made again has another UID, and obeys no
/// order of the one before.
pub(super) fn collect_garbage(survey: &Survey<'_>, draft: &mut Draft<'_>) {
    let kept_runs = i64::try_from(KEPT_RUNS).unwrap_or(i64::MAX);
    for campaign in &survey.campaigns {
        let Some(current) = run::current_run(campaign.view) else { continue };
        let is_over = |order: &OrderEntry| {
            let may_act = order.is_committed() || order.has_grants_in_use();
            !order.is_going && (!may_act || survey.index.node_of(order).is_none())
        };
        let forgotten = survey.index.orders().filter(|order| {
            campaign.owns(order) && order.run.is_some_and(|run| run <= current - kept_runs) && is_over(order)
        });
        for order in forgotten {
            draft.push(Action::DeleteProgress { progress: order.object() });
        }
    }
}

/// Every managed node has an `OSNode`.
pub(super) fn create_os_nodes(survey: &Survey<'_>, draft: &mut Draft<'_>) {
    let managed = survey.index.nodes().filter(|node| node.management == Management::Managed);
    for node in managed.filter(|node| !node.has_os_node) {
        draft.push(Action::CreateOsNode { node: node.object() });
    }
}
