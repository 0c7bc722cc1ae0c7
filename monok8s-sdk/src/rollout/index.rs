//! What a plan needs of nodes and progress objects, numbered and side by side. Each of thousands of objects lies
//! somewhere else in memory, where every look at one costs more than what is decided by it. So an index is kept from
//! plan to plan, in which few have changed.

use std::collections::{BTreeSet, HashMap};
use std::ops::{Deref, Range};
use std::sync::Arc;

use foldhash::fast::RandomState;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::action::ObjectRef;
use super::fleet::{Fleet, Management, NodeReport, NodeView, Readiness, Role, Scheduling, VersionSource};
use super::order::OrderView;
use super::route::Problem;
use crate::api::{ImageRef, OSUpgradeProgress, ProgressPhase};
use crate::version::OsVersion;

/// The nodes and progress objects of a fleet.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// By name.
    nodes: Vec<NodeEntry>,
    /// By the number of their nodes; those for nodes that are not there come first.
    orders: Vec<OrderEntry>,
    /// Which orders are for each node, by its number.
    by_node: Vec<Range<usize>>,
    /// The number of each node, as they stand in the fleet.
    node_numbers: Vec<usize>,
    /// The number of each progress object, as they stand in the fleet.
    order_numbers: Vec<usize>,
    shared: Shared,
}

/// A node in an index. Its number is its place among all nodes, by name.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeRef<'f>(&'f NodeEntry);

/// What an index has of a node.
#[derive(Clone, Debug)]
pub(super) struct NodeEntry {
    view: Arc<NodeView>,
    pub(super) number: usize,
    version: Option<Arc<OsVersion>>,
    arch: Option<Arc<str>>,
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
    has_boot: bool,
    has_conditions: bool,
    /// Whether there is a nonce to try again.
    pub(super) has_retry_nonce: bool,
    /// Whether the node has not answered it.
    pub(super) retry_is_pending: bool,
    /// Whether there is a nonce to send the node back.
    pub(super) has_rollback_nonce: bool,
    /// Whether a person asks for the other slot, and the node has not answered for good.
    pub(super) rollback_is_wanted: bool,
    /// How long the node took from its commit until it was done, if it is.
    pub(super) reboot_took: Option<SignedDuration>,
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
            // One after the other: a large fleet has one index at a time.
            *self = Self::default();
            *self = Self::new(fleet);
        }
    }

    /// `None` if other nodes are there than before.
    fn follow_nodes(&mut self, fleet: &Fleet) -> Option<()> {
        let same = fleet.nodes.len() == self.node_numbers.len();
        for (view, number) in fleet.nodes.iter().zip(&self.node_numbers).filter(|_| same) {
            let entry = self.nodes.get_mut(*number)?;
            if !Arc::ptr_eq(&entry.view, view) {
                if (&entry.view.name, &entry.view.uid) != (&view.name, &view.uid) {
                    return None;
                }
                *entry = NodeEntry::new(*number, view, &mut self.shared);
            }
        }
        same.then_some(())
    }

    /// `None` if other progress objects are there than before.
    fn follow_orders(&mut self, fleet: &Fleet) -> Option<()> {
        let same = fleet.progresses.len() == self.order_numbers.len();
        for (progress, number) in fleet.progresses.iter().zip(&self.order_numbers).filter(|_| same) {
            let entry = self.orders.get_mut(*number)?;
            if !Arc::ptr_eq(&entry.progress, progress) {
                if identity(&entry.progress) != identity(progress) {
                    return None;
                }
                *entry = OrderEntry::new(*number, progress, entry.node, &mut self.shared);
            }
        }
        same.then_some(())
    }

    fn add_nodes(&mut self, fleet: &Fleet) {
        let mut views: Vec<_> = fleet.nodes.iter().enumerate().collect();
        views.sort_by_key(|(_, view)| view.name.as_str());
        self.node_numbers = places(views.iter().map(|(place, _)| *place));
        let views = views.into_iter().enumerate();
        self.nodes =
            views.map(|(number, (_, view))| NodeEntry::new(number, view, &mut self.shared)).collect();
    }

    fn add_orders(&mut self, fleet: &Fleet) {
        let names: HashMap<&str, &NodeEntry, RandomState> =
            self.nodes.iter().map(|node| (node.view.name.as_str(), node)).collect();
        let node = |progress: &OSUpgradeProgress| {
            let node = names.get(progress.spec.node_name.as_str())?;
            let order = progress.spec.order.as_ref();
            order.is_none_or(|order| order.node_uid == node.view.uid).then_some(node.number)
        };
        let progresses = fleet.progresses.iter().enumerate();
        let mut progresses: Vec<_> =
            progresses.map(|(place, progress)| (node(progress), place, progress)).collect();
        progresses.sort_by_key(|(node, ..)| *node);
        self.order_numbers = places(progresses.iter().map(|(_, place, _)| *place));
        self.by_node = vec![0..0; self.nodes.len()];
        self.orders.reserve_exact(fleet.progresses.len());
        for (number, (node, _, progress)) in progresses.into_iter().enumerate() {
            if let Some(range) = node.and_then(|node| self.by_node.get_mut(node)) {
                *range = if range.end == 0 { number..number + 1 } else { range.start..number + 1 };
            }
            self.orders.push(OrderEntry::new(number, progress, node, &mut self.shared));
        }
    }

    /// All nodes, by name.
    pub(super) fn nodes(&self) -> impl ExactSizeIterator<Item = NodeRef<'_>> {
        self.nodes.iter().map(NodeRef)
    }

    /// The node of that name.
    pub(super) fn node_named(&self, name: &str) -> Option<NodeRef<'_>> {
        let at = self.nodes.binary_search_by_key(&name, |node| node.view.name.as_str()).ok()?;
        self.nodes.get(at).map(NodeRef)
    }

    /// All progress objects, by node.
    pub(super) fn orders(&self) -> impl ExactSizeIterator<Item = OrderView<'_>> {
        self.orders.iter().map(OrderView)
    }

    /// Every progress object for this very node, hand-made ones included.
    pub(super) fn orders_of(&self, node: NodeRef<'_>) -> impl Iterator<Item = OrderView<'_>> {
        let orders = self.by_node.get(node.number).and_then(|range| self.orders.get(range.clone()));
        orders.unwrap_or_default().iter().map(OrderView)
    }

    /// The Node that a progress object is for, if that is there: not an earlier one of its name.
    pub(super) fn node_of(&self, order: OrderView<'_>) -> Option<NodeRef<'_>> {
        self.nodes.get(order.0.node?).map(NodeRef)
    }
}

/// The place of each thing in a list, given the one that each place has.
fn places(things: impl ExactSizeIterator<Item = usize>) -> Vec<usize> {
    let mut places = vec![0; things.len()];
    for (place, thing) in things.enumerate() {
        if let Some(known) = places.get_mut(thing) {
            *known = place;
        }
    }
    places
}

/// What makes a progress object this one, and never changes.
fn identity(progress: &OSUpgradeProgress) -> (Option<&str>, &str, Option<&str>) {
    let order = progress.spec.order.as_ref();
    let node_uid = order.map(|order| order.node_uid.as_str());
    (progress.metadata.uid.as_deref(), progress.spec.node_name.as_str(), node_uid)
}

impl NodeEntry {
    fn new(number: usize, view: &Arc<NodeView>, shared: &mut Shared) -> Self {
        Self {
            number,
            version: view.version.as_ref().map(|version| shared.version(version)),
            arch: view.arch.as_deref().map(|arch| shared.text(arch)),
            cordoned_for: view.cordoned_for.clone(),
            role: view.role,
            management: view.management,
            readiness: view.readiness,
            scheduling: view.scheduling,
            version_source: view.version_source,
            has_problem: Problem::of(view).is_some(),
            has_os_node: view.report != NodeReport::Missing,
            has_failed_images: matches!(&view.report, NodeReport::Present(report) if !report.failed_images.is_empty()),
            view: Arc::clone(view),
        }
    }
}

impl<'f> NodeRef<'f> {
    /// All that is known of it.
    pub(super) fn view(self) -> &'f NodeView {
        &self.0.view
    }

    pub(super) fn name(self) -> &'f str {
        &self.view().name
    }

    /// It as the object of a write.
    pub(super) fn object(self) -> ObjectRef {
        self.view().object()
    }

    /// What it runs.
    pub(super) fn version(self) -> Option<&'f OsVersion> {
        self.0.version.as_deref()
    }

    pub(super) fn arch(self) -> Option<&'f str> {
        self.0.arch.as_deref()
    }

    /// Whether it runs `version`. A kubelet's word is not enough for an image revision.
    pub(super) fn runs(self, version: &OsVersion) -> bool {
        self.version() == Some(version)
    }

    /// Whether it is known to run something else than `version`.
    pub(super) fn contradicts(self, version: &OsVersion) -> bool {
        self.version().is_some_and(|running| self.version_source.contradicts(running, version))
    }
}

impl Deref for NodeRef<'_> {
    type Target = NodeEntry;

    fn deref(&self) -> &NodeEntry {
        self.0
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
        let sent_back = status.and_then(|status| status.observed_rollback_nonce.as_deref());
        let installed = status.and_then(|status| status.installed.as_ref());
        let stage = order.and_then(|order| order.stage.as_ref());
        Self {
            number,
            node,
            owner: owner.map(|owner| shared.text(&owner.uid)),
            run: order.map(|order| order.run),
            hops: shared.hops(order.map_or(&[], |order| &order.hops)),
            stage: stage.map(|stage| shared.version(stage)),
            hop: status.and_then(|status| status.hop.as_deref()).map(|hop| shared.text(hop)),
            installed: installed.map(|installed| shared.version(&installed.version)),
            has_boot: order.is_some_and(|order| order.boot.is_some()),
            has_conditions: !progress.conditions().is_empty(),
            has_retry_nonce: retry_nonce.is_some(),
            retry_is_pending: retry_nonce.is_some_and(|nonce| Some(nonce) != retried),
            has_rollback_nonce: rollback_nonce.is_some(),
            rollback_is_wanted: rollback_nonce
                .is_some_and(|nonce| Some(nonce) != sent_back || !phase.is_final()),
            reboot_took: time_to_reboot(progress),
            stage_took: time_to_stage(progress),
            phase,
            progress: Arc::clone(progress),
        }
    }
}

impl<'f> OrderView<'f> {
    /// All that is known of it.
    pub(super) fn progress(self) -> &'f OSUpgradeProgress {
        &self.0.progress
    }

    /// The UID of the upgrade that owns it.
    pub(super) fn owner(self) -> Option<&'f str> {
        self.0.owner.as_deref()
    }

    /// The images to go through; none of a hand-made object.
    pub(super) fn hops(self) -> &'f [ImageRef] {
        &self.0.hops
    }

    pub(super) fn stage(self) -> Option<&'f OsVersion> {
        self.0.stage.as_deref()
    }

    /// What the node says it has installed.
    pub(super) fn installed(self) -> Option<&'f OsVersion> {
        self.0.installed.as_deref()
    }

    /// Whether it has leave to reboot, whether or not that was used.
    pub(super) fn has_boot(self) -> bool {
        self.0.has_boot
    }

    pub(super) fn has_conditions(self) -> bool {
        self.0.has_conditions
    }
}

/// When the last attempt at a phase began, by the node's own clock.
pub(super) fn phase_began(progress: &OSUpgradeProgress, phase: &ProgressPhase) -> Option<Timestamp> {
    let timeline = &progress.status.as_ref()?.timeline;
    timeline.iter().rev().find(|entry| entry.phase == *phase).map(|entry| entry.since.0)
}

/// Of the node's clock only what is possible is believed.
fn time_to_reboot(progress: &OSUpgradeProgress) -> Option<SignedDuration> {
    const LONGEST: SignedDuration = SignedDuration::from_mins(30);
    if progress.phase() != ProgressPhase::Completed {
        return None;
    }
    let committed = phase_began(progress, &ProgressPhase::Rebooting)?;
    let took = phase_began(progress, &ProgressPhase::Completed)?.duration_since(committed);
    (took.is_positive() && took < LONGEST).then_some(took)
}

fn time_to_stage(progress: &OSUpgradeProgress) -> Option<SignedDuration> {
    const LONGEST: SignedDuration = SignedDuration::from_hours(6);
    let began = phase_began(progress, &ProgressPhase::Downloading)?;
    let took = phase_began(progress, &ProgressPhase::Staged)?.duration_since(began);
    (took.is_positive() && took < LONGEST).then_some(took)
}

/// What many objects say in the same words is there once.
#[derive(Clone, Debug, Default)]
struct Shared {
    versions: BTreeSet<Arc<OsVersion>>,
    texts: BTreeSet<Arc<str>>,
    hops: Vec<Arc<[ImageRef]>>,
}

impl Shared {
    /// What more different ones than that say is not worth to be kept: some of it comes from outside.
    const MOST: usize = 64;

    fn version(&mut self, version: &OsVersion) -> Arc<OsVersion> {
        share(&mut self.versions, version, || Arc::new(version.clone()))
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        share(&mut self.texts, text, || Arc::from(text))
    }

    fn hops(&mut self, hops: &[ImageRef]) -> Arc<[ImageRef]> {
        if let Some(known) = self.hops.iter().find(|known| ***known == *hops) {
            return Arc::clone(known);
        }
        if self.hops.len() >= Self::MOST {
            self.hops.clear();
        }
        let hops = Arc::from(hops);
        self.hops.push(Arc::clone(&hops));
        hops
    }
}

fn share<T: Ord + ?Sized>(known: &mut BTreeSet<Arc<T>>, one: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
    if let Some(known) = known.get(one) {
        return Arc::clone(known);
    }
    if known.len() >= Shared::MOST {
        known.clear();
    }
    let one = make();
    known.insert(Arc::clone(&one));
    one
}
