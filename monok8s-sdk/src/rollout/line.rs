//! The order in which nodes take their turns.

use super::fleet::{NodeView, Readiness, Role};
use super::survey::{Campaign, Survey};

/// A node's place in the line: the smallest goes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'n> {
    pub(super) turn: TurnInLine<'n>,
    dead: bool,
    name: &'n str,
}

/// The part of a place by which nodes take turns: those with the same go beside each other, as far as budgets allow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TurnInLine<'n> {
    role: u8,
    later: bool,
    operator: bool,
    group: &'n str,
}

impl<'n> Place<'n> {
    /// The control plane goes first on the way up and last on the way down, the operator's own
    /// node last within its role, and nodes that may never answer after those that will. Canaries come
    /// before the other workers, and groups by their names.
    pub(super) fn of(node: &'n NodeView, campaign: &Campaign<'_>, survey: &Survey<'_>) -> Self {
        let target = campaign.view.target().map(|target| &target.resolved.version);
        let up = node.version.as_ref() <= target;
        let role = match (node.role, up) {
            (Role::ControlPlane, true) | (Role::Worker, false) => 0,
            (Role::Worker, true) | (Role::ControlPlane, false) => 1,
        };
        let turn = TurnInLine {
            role,
            later: !campaign.is_canary(node),
            operator: survey.fleet.operator_node.as_deref() == Some(&node.name),
            group: campaign.group_of(node),
        };
        Self { turn, dead: node.readiness == Readiness::NotReady, name: &node.name }
    }
}
