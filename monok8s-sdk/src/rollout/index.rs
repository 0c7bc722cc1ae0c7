//! What a plan needs of nodes and progress objects, numbered and side by side. Each of thousands of objects lies
//! somewhere else in memory, where every look at one costs more than what is decided by it. So an index is kept from
//! plan to plan, in which few have changed.

use std::ops::Range;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;

use super::action::ObjectRef;
use super::fleet::{Fleet, Management, NodeReport, NodeView, Readiness, Role, Scheduling, VersionSource};
use super::route::problem;
use crate::api::{ImageRef, OSUpgradeProgress, ProgressPhase};
use crate::version::OsVersion;

/// The nodes and progress objects of a fleet.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// By name.
    nodes: Vec<NodeEntry>,
    /// By the number of their nodes, and by name; those for nodes that are not there come first.
    orders: Vec<OrderEntry>,
    /// Which orders are for each node, by its number.
    by_node: Vec<Range<usize>>,
    /// Where each node stands in the fleet, by its number.
    node_places: Vec<usize>,
    /// Where each progress object stands in the fleet, by its number.
    order_places: Vec<usize>,
    shared: Shared,
}

/// What an index has of a node. Its number is its place among all nodes, by name.
#[derive(Clone, Debug)]
pub(super) struct NodeEntry {
    view: Arc<NodeView>,
    pub(super) number: usize,
    version: Option<Arc<OsVersion>>,
    arch: Option<Arc<str>>,
    /// The version in its other slot, if it can be sent back to that.
    goes_back_to: Option<Arc<OsVersion>>,
    pub(super) cordoned_for: Option<String>,
    pub(super) role: Role,
    pub(super) management: Management,
    pub(super) readiness: Readiness,
    pub(super) scheduling: Scheduling,
    version_source: VersionSource,
    /// Whether it cannot be upgraded at all.
    pub(super) has_problem: bool,
    /// Whether there is an `OSNode` of its name.
    pub(super) has_os_node: bool,
    /// Whether images failed on it.
    pub(super) has_failed_images: bool,
}

/// What an index has of a progress object. Its number is its place among all of them.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct OrderEntry {
    progress: Arc<OSUpgradeProgress>,
    pub(super) number: usize,
    /// The number of the Node that it is for, if that is there: not an earlier one of its name.
    node: Option<usize>,
    /// The UID of the upgrade that owns it.
    owner: Option<Arc<str>>,
    /// The run that it is for; `None` for a hand-made object.
    pub(super) run: Option<i64>,
    hops: Arc<[ImageRef]>,
    stage: Option<Arc<OsVersion>>,
    /// The hop that the node says it is about.
    pub(super) hop: Option<Arc<str>>,
    /// What the node says it has installed.
    installed: Option<Arc<OsVersion>>,
    pub(super) phase: ProgressPhase,
    /// Whether it is deleted already, and something keeps it.
    pub(super) is_going: bool,
    /// Whether it has leave to reboot, whether or not that was used.
    pub(super) has_boot: bool,
    pub(super) has_conditions: bool,
    /// Whether there is a nonce to try again.
    pub(super) has_retry_nonce: bool,
    /// Whether there is one that the node has not answered.
    pub(super) retry_is_pending: bool,
    /// Whether there is a nonce to send the node back.
    pub(super) has_rollback_nonce: bool,
    /// Whether a person asks for the other slot, and the node has not answered for good.
    pub(super) rollback_is_wanted: bool,
    /// How long the node took from its commit until it was done, if it is.
    pub(super) reboot_took: Option<SignedDuration>,
    /// How long it was emptied before that, if it is done: no time where nothing had to leave.
    pub(super) drain_took: Option<SignedDuration>,
    /// How long it took from the start of its download until its slot was read back, if it did.
    pub(super) stage_took: Option<SignedDuration>,
}

impl Index {
    /// The index of a fleet.
    pub(super) fn new(fleet: &Fleet) -> Self {
        let mut index = Self::default();
        index.add_nodes(fleet);
        index.add_orders(fleet);
        index
    }

    /// Takes in what has changed since: an object that is the same is in the same place.
    pub(super) fn follow(&mut self, fleet: &Fleet) {
        if self.follow_nodes(fleet).is_none() || self.follow_orders(fleet).is_none() {
            // The old one goes first: a large fleet is not in memory twice.
            *self = Self::default();
            *self = Self::new(fleet);
        }
    }

    /// `None` if there are other nodes than before, or in another order.
    fn follow_nodes(&mut self, fleet: &Fleet) -> Option<()> {
        if fleet.nodes.len() != self.nodes.len() {
            return None;
        }
        for (entry, place) in self.nodes.iter_mut().zip(&self.node_places) {
            let view = fleet.nodes.get(*place)?;
            if Arc::ptr_eq(&entry.view, view) {
                continue;
            }
            if (&entry.view.name, &entry.view.uid) != (&view.name, &view.uid) {
                return None;
            }
            *entry = NodeEntry::new(entry.number, view, &mut self.shared);
        }
        Some(())
    }

    /// `None` if there are other progress objects than before, or in another order.
    fn follow_orders(&mut self, fleet: &Fleet) -> Option<()> {
        if fleet.progresses.len() != self.orders.len() {
            return None;
        }
        for (entry, place) in self.orders.iter_mut().zip(&self.order_places) {
            let progress = fleet.progresses.get(*place)?;
            if Arc::ptr_eq(&entry.progress, progress) {
                continue;
            }
            if identity(&entry.progress) != identity(progress) {
                return None;
            }
            *entry = OrderEntry::new(entry.number, progress, entry.node, &mut self.shared);
        }
        Some(())
    }

    fn add_nodes(&mut self, fleet: &Fleet) {
        let mut views: Vec<_> = fleet.nodes.iter().enumerate().collect();
        views.sort_by_key(|(_, view)| view.name.as_str());
        self.node_places = views.iter().map(|(place, _)| *place).collect();
        let views = views.into_iter().enumerate();
        self.nodes =
            views.map(|(number, (_, view))| NodeEntry::new(number, view, &mut self.shared)).collect();
    }

    fn add_orders(&mut self, fleet: &Fleet) {
        let node = |progress: &OSUpgradeProgress| {
            let node = self.node_named(&progress.spec.node_name)?;
            let order = progress.spec.order.as_ref();
            order.is_none_or(|order| order.node_uid == node.view.uid).then_some(node.number)
        };
        let progresses = fleet.progresses.iter().enumerate();
        let mut progresses: Vec<_> =
            progresses.map(|(place, progress)| (node(progress), place, progress)).collect();
        progresses.sort_by_key(|(node, _, progress)| (*node, progress.metadata.name.as_deref()));
        self.order_places = progresses.iter().map(|(_, place, _)| *place).collect();
        self.by_node = vec![0..0; self.nodes.len()];
        self.orders.reserve_exact(progresses.len());
        for (number, (node, _, progress)) in progresses.into_iter().enumerate() {
            if let Some(range) = node.and_then(|node| self.by_node.get_mut(node)) {
                let start = if range.start < range.end { range.start } else { number };
                *range = start..number + 1;
            }
            self.orders.push(OrderEntry::new(number, progress, node, &mut self.shared));
        }
    }

    /// All nodes, by name.
    pub(super) fn nodes(&self) -> std::slice::Iter<'_, NodeEntry> {
        self.nodes.iter()
    }

    /// The node of that name.
    pub(super) fn node_named(&self, name: &str) -> Option<&NodeEntry> {
        let at = self.nodes.binary_search_by_key(&name, |node| node.view.name.as_str()).ok()?;
        self.nodes.get(at)
    }

    /// All progress objects, by node.
    pub(super) fn orders(&self) -> std::slice::Iter<'_, OrderEntry> {
        self.orders.iter()
    }

    /// Every progress object for this very node, hand-made ones included.
    pub(super) fn orders_of(&self, node: &NodeEntry) -> std::slice::Iter<'_, OrderEntry> {
        let orders = self.by_node.get(node.number).and_then(|range| self.orders.get(range.clone()));
        orders.unwrap_or_default().iter()
    }

    /// The Node that a progress object is for, if that is there: not an earlier one of its name.
    pub(super) fn node_of(&self, order: &OrderEntry) -> Option<&NodeEntry> {
        self.nodes.get(order.node?)
    }
}

/// Which object it is, and which Node it is for: with the same it keeps its number.
fn identity(progress: &OSUpgradeProgress) -> [Option<&str>; 4] {
    let metadata = &progress.metadata;
    let node_uid = progress.spec.order.as_ref().map(|order| order.node_uid.as_str());
    [metadata.uid.as_deref(), metadata.name.as_deref(), Some(&progress.spec.node_name), node_uid]
}

impl NodeEntry {
    fn new(number: usize, view: &Arc<NodeView>, shared: &mut Shared) -> Self {
        Self {
            number,
            version: view.version.as_ref().map(|version| shared.version(version)),
            arch: view.arch.as_deref().map(|arch| shared.text(arch)),
            goes_back_to: view.goes_back_to().map(|version| shared.version(&version)),
            cordoned_for: view.cordoned_for.clone(),
            role: view.role,
            management: view.management,
            readiness: view.readiness,
            scheduling: view.scheduling,
            version_source: view.version_source,
            has_problem: problem(view).is_some(),
            has_os_node: view.report != NodeReport::Missing,
            has_failed_images: match &view.report {
                NodeReport::Present(report) => !report.failed_images.is_empty(),
                NodeReport::Missing | NodeReport::Foreign => false,
            },
            view: Arc::clone(view),
        }
    }

    /// All that is known of it.
    pub(super) fn view(&self) -> &NodeView {
        &self.view
    }

    pub(super) fn name(&self) -> &str {
        &self.view.name
    }

    /// It as the object of a write.
    pub(super) fn object(&self) -> ObjectRef {
        self.view.object()
    }

    /// What it runs.
    pub(super) fn version(&self) -> Option<&OsVersion> {
        self.version.as_deref()
    }

    /// The version in its other slot, if it can be sent back to that.
    pub(super) fn goes_back_to(&self) -> Option<&OsVersion> {
        self.goes_back_to.as_deref()
    }

    pub(super) fn arch(&self) -> Option<&str> {
        self.arch.as_deref()
    }

    /// Whether it runs `version`. A kubelet's word is not enough for an image revision.
    pub(super) fn runs(&self, version: &OsVersion) -> bool {
        self.version() == Some(version)
    }

    /// Whether it is known to run something else than `version`.
    pub(super) fn contradicts(&self, version: &OsVersion) -> bool {
        self.version().is_some_and(|running| match self.version_source {
            VersionSource::Agent => running != version,
            VersionSource::Kubelet => *running != version.kubernetes(),
        })
    }
}

impl OrderEntry {
    fn new(
        number: usize,
        progress: &Arc<OSUpgradeProgress>,
        node: Option<usize>,
        shared: &mut Shared,
    ) -> Self {
        let (spec, status) = (&progress.spec, progress.status.as_ref());
        let order = spec.order.as_ref();
        let phase = progress.phase();
        let mut owners = progress.metadata.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.kind == "OSUpgrade");
        let retry_nonce = spec.retry_nonce.as_deref().filter(|nonce| !nonce.is_empty());
        let retried = status.and_then(|status| status.observed_retry_nonce.as_deref());
        let rollback_nonce = spec.rollback_nonce.as_deref().filter(|nonce| !nonce.is_empty());
        let installed = status.and_then(|status| status.installed.as_ref());
        let stage = order.and_then(|order| order.stage.as_ref());
        let reboot = took(progress, &ProgressPhase::Rebooting, &ProgressPhase::Completed, REBOOTS_WITHIN);
        let drain = took(progress, &ProgressPhase::Draining, &ProgressPhase::Rebooting, DRAINS_WITHIN);
        Self {
            number,
            node,
            owner: owner.map(|owner| shared.text(&owner.uid)),
            run: order.map(|order| order.run),
            hops: shared.hops(order.map_or(&[], |order| &order.hops)),
            stage: stage.map(|stage| shared.version(stage)),
            hop: status.and_then(|status| status.hop.as_deref()).map(|hop| shared.text(hop)),
            installed: installed.map(|installed| shared.version(&installed.version)),
            is_going: progress.metadata.deletion_timestamp.is_some(),
            has_boot: order.is_some_and(|order| order.boot.is_some()),
            has_conditions: !progress.conditions().is_empty(),
            has_retry_nonce: retry_nonce.is_some(),
            retry_is_pending: retry_nonce.is_some_and(|nonce| Some(nonce) != retried),
            has_rollback_nonce: rollback_nonce.is_some(),
            rollback_is_wanted: progress.rollback_is_wanted(),
            drain_took: (phase == ProgressPhase::Completed).then(|| drain.unwrap_or_default()),
            reboot_took: reboot.filter(|_| phase == ProgressPhase::Completed),
            stage_took: took(progress, &ProgressPhase::Downloading, &ProgressPhase::Staged, STAGES_WITHIN),
            phase,
            progress: Arc::clone(progress),
        }
    }

    /// All that is known of it.
    pub(super) fn progress(&self) -> &OSUpgradeProgress {
        &self.progress
    }

    /// The UID of the upgrade that owns it.
    pub(super) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The images to go through; none of a hand-made object.
    pub(super) fn hops(&self) -> &[ImageRef] {
        &self.hops
    }

    pub(super) fn stage(&self) -> Option<&OsVersion> {
        self.stage.as_deref()
    }

    /// What the node says it has installed.
    pub(super) fn installed(&self) -> Option<&OsVersion> {
        self.installed.as_deref()
    }
}

/// No reboot takes longer than that.
const REBOOTS_WITHIN: SignedDuration = SignedDuration::from_mins(30);
/// Nor a drain that nobody has to look at.
const DRAINS_WITHIN: SignedDuration = SignedDuration::from_hours(2);
/// Nor does staging.
const STAGES_WITHIN: SignedDuration = SignedDuration::from_hours(6);

/// How long a node took from one phase to another, by its own clock: of that only what is possible is believed.
fn took(
    progress: &OSUpgradeProgress,
    from: &ProgressPhase,
    to: &ProgressPhase,
    within: SignedDuration,
) -> Option<SignedDuration> {
    let took = progress.phase_began(to)?.duration_since(progress.phase_began(from)?);
    (took.is_positive() && took < within).then_some(took)
}

/// What many objects say in the same words is there once.
#[derive(Clone, Debug, Default)]
struct Shared {
    versions: Vec<Arc<OsVersion>>,
    texts: Vec<Arc<str>>,
    hops: Vec<Arc<[ImageRef]>>,
}

/// Past so many different ones, those known are forgotten: some come from outside, without bound, and what differs so
/// much is not worth sharing.
const MOST: usize = 64;

impl Shared {
    fn version(&mut self, version: &OsVersion) -> Arc<OsVersion> {
        share(&mut self.versions, version)
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        // Nobody but a liar says more than that.
        if text.len() > 128 { Arc::from(text) } else { share(&mut self.texts, text) }
    }

    fn hops(&mut self, hops: &[ImageRef]) -> Arc<[ImageRef]> {
        share(&mut self.hops, hops)
    }
}

fn share<T>(known: &mut Vec<Arc<T>>, one: &T) -> Arc<T>
where
    T: PartialEq + ToOwned + ?Sized,
    Arc<T>: From<T::Owned>,
{
    if let Some(known) = known.iter().find(|known| ***known == *one) {
        return Arc::clone(known);
    }
    if known.len() >= MOST {
        known.clear();
    }
    let one = Arc::from(one.to_owned());
    known.push(Arc::clone(&one));
    one
}

#[cfg(test)]
mod tests;
