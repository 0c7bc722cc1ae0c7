//! Stage one: what the cluster looks like, from the watch caches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::{OSNode, OSUpgrade, OSUpgradeProgress, upgrade_name_of};
use monok8s_sdk::rollout::{NodeView, OSNodeView};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::cache::{Cache, Kept, Snapshot, Unreadable};
use crate::metrics::Metrics;
use crate::wake::Bell;
use crate::watch::Watch;

/// The four kinds that a plan depends on.
#[derive(Debug, Default)]
pub struct Caches {
    /// All Nodes, managed or not.
    pub nodes: Arc<Cache<Node>>,
    /// All upgrades.
    pub upgrades: Arc<Cache<OSUpgrade>>,
    /// All progress objects, hand-made ones too.
    pub progresses: Arc<Cache<OSUpgradeProgress>>,
    /// All reports of agents.
    pub os_nodes: Arc<Cache<OSNode>>,
}

impl Caches {
    /// Starts the four watches. They end with the set.
    #[must_use]
    pub fn watch(&self, client: &Client, bell: &Bell, metrics: &Arc<Metrics>) -> JoinSet<()> {
        let mut watches = JoinSet::new();
        watches.spawn(feed(
            "nodes",
            Arc::clone(&self.nodes),
            client.clone(),
            bell.clone(),
            Arc::clone(metrics),
        ));
        watches.spawn(feed(
            "osupgrades.monok8s.io",
            Arc::clone(&self.upgrades),
            client.clone(),
            bell.clone(),
            Arc::clone(metrics),
        ));
        watches.spawn(feed(
            "osupgradeprogresses.monok8s.io",
            Arc::clone(&self.progresses),
            client.clone(),
            bell.clone(),
            Arc::clone(metrics),
        ));
        watches.spawn(feed(
            "osnodes.monok8s.io",
            Arc::clone(&self.os_nodes),
            client.clone(),
            bell.clone(),
            Arc::clone(metrics),
        ));
        watches
    }

    /// Which kinds have not been listed yet.
    #[must_use]
    pub fn unsynced(&self) -> Vec<&'static str> {
        let all = [
            ("nodes", self.nodes.is_synced()),
            ("osupgrades", self.upgrades.is_synced()),
            ("osupgradeprogresses", self.progresses.is_synced()),
            ("osnodes", self.os_nodes.is_synced()),
        ];
        all.into_iter().filter(|(_, synced)| !synced).map(|(kind, _)| kind).collect()
    }

    /// What is known now.
    #[must_use]
    pub fn observe(&self) -> Observed {
        let (nodes, upgrades) = (self.nodes.snapshot(), self.upgrades.snapshot());
        let (progresses, os_nodes) = (self.progresses.snapshot(), self.os_nodes.snapshot());
        Observed { nodes, upgrades, progresses, os_nodes }
    }
}

async fn feed<K>(kind: &'static str, cache: Arc<Cache<K>>, client: Client, bell: Bell, metrics: Arc<Metrics>)
where
    K: Kept + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client);
    // A page is in memory as a whole, with everything that is not kept.
    let mut watch = Watch::new(kind, api, watcher::Config::default().page_size(100), metrics);
    loop {
        cache.observe(watch.next().await);
        bell.ring();
    }
}

/// One look at the cluster.
#[derive(Clone, Debug)]
pub struct Observed {
    /// All Nodes.
    pub nodes: Snapshot<NodeView>,
    /// All upgrades.
    pub upgrades: Snapshot<OSUpgrade>,
    /// All progress objects.
    pub progresses: Snapshot<OSUpgradeProgress>,
    /// All reports of agents.
    pub os_nodes: Snapshot<OSNodeView>,
}

impl Observed {
    /// The progress objects that the planner may judge: not those of an upgrade or a Node that this
    /// release cannot read, which would look as if it were gone.
    #[must_use]
    pub fn judged_progresses(&self) -> Vec<Arc<OSUpgradeProgress>> {
        let (upgrades, nodes) = (names(&self.upgrades.unreadable), names(&self.nodes.unreadable));
        let judged = self.progresses.objects.iter().filter(|object| {
            !upgrades.contains(upgrade_name_of(object)) && !nodes.contains(object.spec.node_name.as_str())
        });
        judged.cloned().collect()
    }

    /// The Nodes as the planner sees them, those that have not changed as they are `known`. A cordon that was made
    /// for an object that cannot be judged counts as somebody else's: it takes up budget, and is not taken off.
    pub fn node_views(&self, known: &mut KnownNodes) -> Vec<Arc<NodeView>> {
        let unjudged = self.unjudged_uids();
        let views = known.follow(&self.nodes.objects, &self.os_nodes.objects).map(|view| {
            match view.cordoned_for.as_ref().filter(|uid| unjudged.contains(*uid)) {
                None => Arc::clone(view),
                Some(_) => Arc::new(NodeView { cordoned_for: None, ..view.as_ref().clone() }),
            }
        });
        views.collect()
    }

    /// Objects that this release cannot read, by kind.
    #[must_use]
    pub fn unreadable(&self) -> [(&'static str, &[Unreadable]); 4] {
        let Self { nodes, upgrades, progresses, os_nodes } = self;
        [
            ("nodes", &nodes.unreadable),
            ("osupgrades", &upgrades.unreadable),
            ("osupgradeprogresses", &progresses.unreadable),
            ("osnodes", &os_nodes.unreadable),
        ]
    }

    fn unjudged_uids(&self) -> BTreeSet<String> {
        let hidden = names(&self.upgrades.unreadable);
        let of_hidden =
            self.progresses.objects.iter().filter(|object| hidden.contains(upgrade_name_of(object)));
        let unreadable = self.progresses.unreadable.iter().map(|object| object.uid.clone());
        of_hidden.filter_map(|object| object.uid()).chain(unreadable).collect()
    }
}

/// What the planner was told of each Node, and of which objects that was made: of thousands of nodes a few change
/// between two looks.
#[derive(Debug, Default)]
pub struct KnownNodes {
    by_name: BTreeMap<String, KnownNode>,
}

#[derive(Debug)]
struct KnownNode {
    alone: Arc<NodeView>,
    report: Option<Arc<OSNodeView>>,
    view: Arc<NodeView>,
}

impl KnownNodes {
    /// Keeps what was made of the same two objects, makes the others anew, and forgets those that are gone.
    fn follow(
        &mut self,
        nodes: &[Arc<NodeView>],
        reports: &[Arc<OSNodeView>],
    ) -> impl Iterator<Item = &Arc<NodeView>> {
        let reports: BTreeMap<&str, &Arc<OSNodeView>> =
            reports.iter().map(|report| (report.name.as_str(), report)).collect();
        let mut before = std::mem::take(&mut self.by_name);
        for node in nodes {
            let report = reports.get(node.name.as_str()).copied();
            let known = before.remove(&node.name).filter(|known| known.is_of(node, report));
            let known = known.unwrap_or_else(|| KnownNode::new(node, report));
            self.by_name.insert(node.name.clone(), known);
        }
        self.by_name.values().map(|known| &known.view)
    }
}

impl KnownNode {
    fn new(alone: &Arc<NodeView>, report: Option<&Arc<OSNodeView>>) -> Self {
        let view = match report {
            Some(report) => Arc::new(alone.as_ref().clone().reported(report)),
            None => Arc::clone(alone),
        };
        Self { alone: Arc::clone(alone), report: report.cloned(), view }
    }

    fn is_of(&self, alone: &Arc<NodeView>, report: Option<&Arc<OSNodeView>>) -> bool {
        let same_report = match (&self.report, report) {
            (None, None) => true,
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, Some(_)) | (Some(_), None) => false,
        };
        same_report && Arc::ptr_eq(&self.alone, alone)
    }
}

fn names(unreadable: &[Unreadable]) -> BTreeSet<&str> {
    unreadable.iter().map(|object| object.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;
    use monok8s_sdk::api::{ANNOTATION_CORDON, OSNodeSpec, OSUpgradeProgressSpec, SourceRef};
    use monok8s_sdk::rollout::NodeReport;

    use super::*;

    fn cordoned_for(uid: &str) -> Arc<NodeView> {
        let mut node = Node::default();
        node.metadata.name = Some(format!("node-of-{uid}"));
        node.metadata.annotations = Some([(ANNOTATION_CORDON.to_owned(), uid.to_owned())].into());
        node.spec = Some(NodeSpec { unschedulable: Some(true), ..NodeSpec::default() });
        Arc::new(NodeView::new(&node, None))
    }

    fn progress(uid: &str, upgrade: &str) -> Arc<OSUpgradeProgress> {
        let spec = OSUpgradeProgressSpec {
            source_ref: SourceRef { name: upgrade.to_owned() },
            node_name: format!("node-of-{uid}"),
            retry_nonce: None,
            rollback_nonce: None,
            order: None,
        };
        let mut object = OSUpgradeProgress::new(uid, spec);
        object.metadata.uid = Some(uid.to_owned());
        Arc::new(object)
    }

    fn unreadable(name: &str) -> Unreadable {
        Unreadable { name: name.to_owned(), uid: name.to_owned(), error: "odd".to_owned() }
    }

    #[test]
    fn a_cordon_for_what_cannot_be_read_is_somebody_elses() {
        let nodes = ["readable", "of-odd-upgrade", "odd-progress", "gone"].map(cordoned_for).to_vec();
        let objects = vec![
            progress("readable", "up"),
            progress("of-odd-upgrade", "odd-upgrade"),
            progress("of-odd-node", "up"),
        ];
        let observed = Observed {
            nodes: Snapshot { objects: nodes, unreadable: vec![unreadable("node-of-of-odd-node")] },
            upgrades: Snapshot { objects: vec![], unreadable: vec![unreadable("odd-upgrade")] },
            progresses: Snapshot { objects, unreadable: vec![unreadable("odd-progress")] },
            os_nodes: Snapshot { objects: vec![], unreadable: vec![] },
        };
        let views = observed.node_views(&mut KnownNodes::default());
        let mut ours: Vec<_> = views.iter().filter_map(|node| node.cordoned_for.as_deref()).collect();
        ours.sort_unstable();
        assert_eq!(ours, ["gone", "readable"], "what is gone for sure is still swept");
        let judged: Vec<_> = observed.judged_progresses().iter().map(|object| object.name_any()).collect();
        assert_eq!(judged, ["readable"]);
    }

    #[test]
    fn only_what_has_changed_is_looked_at_again() {
        let observed = |nodes: &[&Arc<NodeView>], reports: &[&Arc<OSNodeView>]| Observed {
            nodes: Snapshot { objects: nodes.iter().copied().cloned().collect(), unreadable: vec![] },
            upgrades: Snapshot { objects: vec![], unreadable: vec![] },
            progresses: Snapshot { objects: vec![], unreadable: vec![] },
            os_nodes: Snapshot { objects: reports.iter().copied().cloned().collect(), unreadable: vec![] },
        };
        let (a, b, mut known) = (cordoned_for("a"), cordoned_for("b"), KnownNodes::default());
        let report = Arc::new(OSNodeView::new(&OSNode::new("node-of-b", OSNodeSpec {})));
        let first = observed(&[&a, &b], &[]).node_views(&mut known);
        let again = observed(&[&a, &b], &[]).node_views(&mut known);
        assert!(first.iter().zip(&again).all(|(first, again)| Arc::ptr_eq(first, again)));
        let reported = observed(&[&a, &b], &[&report]).node_views(&mut known);
        assert!(Arc::ptr_eq(&first[0], &reported[0]) && !Arc::ptr_eq(&first[1], &reported[1]));
        assert!(matches!(reported[1].report, NodeReport::Present(_)));
        let mut uncordoned = a.as_ref().clone();
        uncordoned.cordoned_for = None;
        let changed = observed(&[&Arc::new(uncordoned), &b], &[]).node_views(&mut known);
        assert_eq!((changed[0].cordoned_for.as_ref(), &changed[1].report), (None, &NodeReport::Missing));
        assert_eq!(observed(&[&b], &[]).node_views(&mut known).len(), 1);
    }
}
