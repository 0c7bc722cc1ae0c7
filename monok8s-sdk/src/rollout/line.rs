//! The order in which nodes take their turns.

use super::fleet::{NodeView, Readiness, Role};
use super::survey::{Campaign, Survey};

/// A node's place in the line: the smallest goes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    role: u8,
    later: bool,
    operator: bool,
    group: String,
    dead: bool,
    name: String,
}

impl Place {
    /// The control plane goes first on the way up and last on the way down, the operator's own
    /// node last within its role, and nodes that may never answer after those that will. Canaries come
    /// before the other workers, and groups by their names.
    pub(super) fn of(node: &NodeView, campaign: &Campaign<'_>, survey: &Survey<'_>) -> Self {
        let target = campaign.view.target().map(|target| &target.resolved.version);
        let up = node.version.as_ref() <= target;
        let role = match (node.role, up) {
            (Role::ControlPlane, true) | (Role::Worker, false) => 0,
            (Role::Worker, true) | (Role::ControlPlane, false) => 1,
        };
        let canaries = &campaign.canaries;
        let group = campaign.rollout.group_by.as_ref().and_then(|key| node.labels.get(key));
        Self {
            role,
            later: !canaries.contains(node.name.as_str()),
            operator: survey.fleet.operator_node.as_deref() == Some(&node.name),
            group: group.cloned().unwrap_or_default(),
            dead: node.readiness == Readiness::NotReady,
            name: node.name.clone(),
        }
    }
}
