//! How many nodes may be away at once.

use std::collections::BTreeSet;

use super::fleet::{Management, Readiness, Scheduling};
use super::gates::Turn;
use super::index::{NodeEntry, OrderEntry};
use super::outlook::Wait;
use super::survey::Survey;
use crate::api::{Rounding, UpgradeReason};

/// The nodes that are away, or will be by what was decided so far, counted for each limit that they count against.
pub(super) struct Away<'a, 'f> {
    survey: &'a Survey<'f>,
    /// Their numbers.
    numbers: BTreeSet<usize>,
    /// How many of them are managed.
    managed: usize,
    /// How many each campaign selects.
    selected: Vec<usize>,
}

impl<'a, 'f> Away<'a, 'f> {
    /// The nodes that are away as the fleet was found.
    pub(super) fn of(survey: &'a Survey<'f>) -> Self {
        let selected = vec![0; survey.campaigns.len()];
        let mut away = Self { survey, numbers: BTreeSet::new(), managed: 0, selected };
        let nodes = survey.index.nodes().filter(|node| survey.is_unavailable(node));
        nodes.for_each(|node| away.insert(node));
        away
    }

    pub(super) fn insert(&mut self, node: &'f NodeEntry) {
        if self.numbers.insert(node.number) {
            self.count(node, |counted| counted + 1);
        }
    }

    pub(super) fn remove(&mut self, node: &'f NodeEntry) {
        if self.numbers.remove(&node.number) {
            self.count(node, |counted| counted - 1);
        }
    }

    fn count(&mut self, node: &'f NodeEntry, change: fn(usize) -> usize) {
        if node.management == Management::Managed {
            self.managed = change(self.managed);
        }
        for (campaign, counted) in self.survey.campaigns.iter().zip(&mut self.selected) {
            if campaign.selects(node) {
                *counted = change(*counted);
            }
        }
    }

    pub(super) fn contains(&self, node: &NodeEntry) -> bool {
        self.numbers.contains(&node.number)
    }
}

/// A gate: neither the upgrade's limit nor the operator's is reached.
pub(super) fn budget(turn: &Turn<'_, '_>) -> Option<Wait> {
    // Whoever is away already costs nothing more, and may be just what the upgrade repairs. But such nodes do not go
    // all at once: what somebody cordoned still has its pods, and kubelets may fall silent for a moment, all of them.
    let is_away = turn.away.contains(turn.node);
    if turn.spent.is_some() && !is_away {
        return turn.spent.cloned();
    }
    let in_work = |is_counted: &dyn Fn(&NodeEntry) -> bool| {
        turn.in_work.values().filter(|node| is_counted(node)).count()
    };
    let selected = turn.campaign.selected();
    let limit = turn.campaign.rollout.max_unavailable(selected.len());
    let taken = if is_away {
        in_work(&|node| turn.campaign.selects(node))
    } else {
        turn.away.selected.get(turn.campaign.index).copied().unwrap_or(usize::MAX)
    };
    if taken >= limit {
        return Some(spent(turn, selected.iter().copied(), limit, "maxUnavailable"));
    }
    let managed = || {
        let nodes = turn.survey.index.nodes();
        nodes.filter(|node| node.management == Management::Managed)
    };
    let limit = turn.survey.fleet.max_unavailable.as_ref()?;
    let limit = limit.of(turn.survey.managed, Rounding::DownAtLeastOne);
    let taken =
        if is_away { in_work(&|node| node.management == Management::Managed) } else { turn.away.managed };
    (taken >= limit).then(|| spent(turn, managed(), limit, "the operator's limit over all upgrades"))
}

fn spent<'n>(
    turn: &Turn<'_, '_>,
    counted: impl Iterator<Item = &'n NodeEntry>,
    limit: usize,
    name: &str,
) -> Wait {
    let away = counted.filter(|node| turn.away.contains(node)).take(10);
    let away: Vec<String> = away.map(|node| format!("{} ({})", node.name(), why(turn, node))).collect();
    let message = format!("{name} is {limit}, and unavailable are {}", away.join(", "));
    Wait { reason: UpgradeReason::WaitingForBudget, message }
}

/// Why a node counts as unavailable.
fn why(turn: &Turn<'_, '_>, node: &NodeEntry) -> &'static str {
    let committed = turn.survey.index.orders_of(node).any(OrderEntry::is_committed);
    match (committed, node.readiness, node.scheduling) {
        (true, _, _) => "rebooting",
        (false, Readiness::NotReady, _) => "not ready",
        (false, Readiness::Ready, Scheduling::Cordoned) if node.cordoned_for.is_none() => {
            "cordoned by someone"
        }
        (false, Readiness::Ready, _) => "its turn",
    }
}
