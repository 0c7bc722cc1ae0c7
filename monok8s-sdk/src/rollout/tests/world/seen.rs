//! What the operator has seen: an object that is the same is the same `Arc`, as its caches keep them.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::api::OSUpgradeProgress;
use crate::rollout::{Fleet, NodeView, Plan, PlanMemory, plan, plan_with};

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    nodes: Vec<Arc<NodeView>>,
    progresses: Vec<Arc<OSUpgradeProgress>>,
    memory: PlanMemory,
    looks: usize,
}

impl Seen {
    /// The plan for what it sees now. Every fourth time it is checked that what is remembered makes no difference.
    pub(super) fn plan(&mut self, fleet: Fleet, now: Timestamp) -> Plan {
        let nodes = keep_known(&self.nodes, fleet.nodes);
        let progresses = keep_known(&self.progresses, fleet.progresses);
        let fleet = Fleet { nodes, progresses, ..fleet };
        let made = plan_with(&mut self.memory, &fleet, now);
        self.looks += 1;
        if self.looks.is_multiple_of(4) {
            assert_eq!(made, plan(&fleet, now), "what is remembered makes a difference");
        }
        (self.nodes, self.progresses) = (fleet.nodes, fleet.progresses);
        made
    }
}

/// What was there before, as the `Arc` that it was.
fn keep_known<T: PartialEq>(before: &[Arc<T>], now: Vec<Arc<T>>) -> Vec<Arc<T>> {
    let known = |one: Arc<T>| before.iter().find(|known| ***known == *one).cloned().unwrap_or(one);
    now.into_iter().map(known).collect()
}
