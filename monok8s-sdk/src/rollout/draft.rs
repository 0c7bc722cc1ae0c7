//! A plan in the making.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::action::Action;
use super::index::NodeEntry;
use super::outlook::{Wait, Waits};
use super::survey::Campaign;

/// A plan in the making.
#[derive(Default)]
pub(super) struct Draft<'f> {
    actions: Vec<Action>,
    /// The UIDs of progress objects that are about to be deleted.
    deleted: BTreeSet<String>,
    /// The numbers of orders that hold a cordon, and may hold a boot grant.
    pub(super) admitted: BTreeSet<usize>,
    /// Why nodes wait, by the index of the campaign and in any order; of several about one node the last one counts.
    waits: BTreeMap<usize, Vec<(&'f NodeEntry, Arc<Wait>)>>,
    next_event: Option<Timestamp>,
}

impl<'f> Draft<'f> {
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

    pub(super) fn waits(&mut self, campaign: &Campaign<'_>, node: &'f NodeEntry, wait: Wait) {
        let waits = self.waits.entry(campaign.index).or_default();
        // Most wait for the same as the one before.
        let wait = match waits.last() {
            Some((_, same)) if **same == wait => Arc::clone(same),
            _ => Arc::new(wait),
        };
        waits.push((node, wait));
    }

    /// What the nodes of a campaign wait for. It is not in the draft any more.
    pub(super) fn take_waits(&mut self, campaign: &Campaign<'_>) -> Waits {
        let waits = self.waits.remove(&campaign.index).unwrap_or_default();
        waits.into_iter().map(|(node, wait)| (node.name().to_owned(), wait)).collect()
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
