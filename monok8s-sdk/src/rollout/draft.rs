//! A plan in the making.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::action::Action;
use super::fleet::NodeView;
use super::outlook::Wait;
use super::survey::Campaign;

/// A plan in the making.
#[derive(Default)]
pub(super) struct Draft {
    actions: Vec<Action>,
    /// The UIDs of progress objects that are about to be deleted.
    deleted: BTreeSet<String>,
    /// The UIDs of orders that hold a cordon, and may hold a boot grant.
    pub(super) admitted: BTreeSet<String>,
    waits: BTreeMap<String, BTreeMap<String, Wait>>,
    next_event: Option<Timestamp>,
}

impl Draft {
    pub(super) fn push(&mut self, action: Action) {
        if let Action::DeleteProgress { progress } = &action {
            self.deleted.insert(progress.uid.clone());
        }
        self.actions.push(action);
    }

    /// Whether the progress object of this UID is about to be deleted.
    pub(super) fn deletes(&self, uid: &str) -> bool {
        self.deleted.contains(uid)
    }

    pub(super) fn waits(&mut self, campaign: &Campaign<'_>, node: &NodeView, wait: Wait) {
        let waits = self.waits.entry(campaign.view.uid().to_owned()).or_default();
        waits.insert(node.name.clone(), wait);
    }

    /// What the nodes of a campaign wait for. It is not in the draft any more.
    pub(super) fn take_waits(&mut self, campaign: &Campaign<'_>) -> BTreeMap<String, Wait> {
        self.waits.remove(campaign.view.uid()).unwrap_or_default()
    }

    /// Something may change at this time without anyone telling.
    pub(super) fn wake_at(&mut self, at: Timestamp) {
        self.next_event = Some(self.next_event.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        self.next_event
    }

    /// The actions in the order of execution, and the next event.
    pub(super) fn finish(mut self) -> (Vec<Action>, Option<Timestamp>) {
        self.actions.sort_by_key(rank);
        (self.actions, self.next_event)
    }
}

/// What takes back comes before what gives. Reports come last: they change the resourceVersion
/// that other writes are bound to.
fn rank(action: &Action) -> u8 {
    match action {
        Action::WithdrawBoot { .. } | Action::Supersede { .. } => 0,
        Action::Uncordon { .. } => 1,
        Action::DeleteProgress { .. } => 2,
        Action::CreateOsNode { .. } | Action::CreateProgress(_) => 3,
        Action::GrantStage { .. } => 4,
        Action::GrantBoot { .. } => 5,
        Action::Cordon { .. } => 6,
        Action::Evict { .. } | Action::DeletePod { .. } => 7,
        Action::Report { .. } => 8,
    }
}
