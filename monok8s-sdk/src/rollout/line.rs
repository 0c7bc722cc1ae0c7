//! The order in which nodes take their turns.

use super::fleet::{Readiness, Role};
use super::index::NodeEntry;
use super::survey::{Campaign, Survey};

/// A node's place in the line: the smallest goes first, and of several with the same the first by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) turn: TurnInLine,
    dead: bool,
}

/// The part of a place by which nodes take turns: those with the same go beside each other, as far as budgets allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TurnInLine {
    role: u8,
    later: bool,
    operator: bool,
    group: usize,
}

impl Place {
    /// The control plane goes first on the way up and last on the way down, the operator's own
    /// node last within its role, and nodes that may never answer after those that will. Canaries come
    /// before the other workers, and groups by their names.
    pub(super) fn of(node: &NodeEntry, campaign: &Campaign<'_>, survey: &Survey<'_>) -> Self {
        let target = campaign.view.target().map(|target| &target.resolved.version);
        let up = node.version() <= target;
        let role = match (node.role, up) {
            (Role::ControlPlane, true) | (Role::Worker, false) => 0,
            (Role::Worker, true) | (Role::ControlPlane, false) => 1,
        };
        let turn = TurnInLine {
            role,
            later: !campaign.is_canary(node),
            operator: survey.hosts_operator(node),
            group: survey.group_number(campaign, node),
        };
        Self { turn, dead: node.readiness == Readiness::NotReady }
    }
}
