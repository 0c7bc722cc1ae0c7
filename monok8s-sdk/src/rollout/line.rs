//! The order in which nodes take their turns.

use super::fleet::{NodeView, Readiness, Role};
use super::survey::{Campaign, Survey};

/// A node's place in the line: the smallest goes first. Canaries and groups will be further fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    role: u8,
    operator: bool,
    dead: bool,
    name: String,
}

impl Place {
    /// The control plane goes first on the way up and last on the way down, the operator's own
    /// node last within its role, and nodes that may never answer after those that will.
    pub(super) fn of(node: &NodeView, campaign: &Campaign<'_>, survey: &Survey<'_>) -> Self {
        let target = campaign.view.target().map(|target| &target.resolved.version);
        let up = node.version.as_ref() <= target;
        let role = match (node.role, up) {
            (Role::ControlPlane, true) | (Role::Worker, false) => 0,
            (Role::Worker, true) | (Role::ControlPlane, false) => 1,
        };
        Self {
            role,
            operator: survey.fleet.operator_node.as_deref() == Some(&node.name),
            dead: node.readiness == Readiness::NotReady,
            name: node.name.clone(),
        }
    }
}
