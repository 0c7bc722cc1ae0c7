//! Stage one: what the cluster looks like, from the watch caches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt as _};
use monok8s_sdk::api::{OSNode, OSUpgrade, OSUpgradeProgress, upgrade_name_of};
use monok8s_sdk::rollout::NodeView;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::cache::{Cache, Snapshot, Unreadable};
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
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client);
    let mut watch = Watch::new(kind, api, watcher::Config::default(), metrics);
    loop {
        cache.observe(watch.next().await);
        bell.ring();
    }
}

/// One look at the cluster.
#[derive(Clone, Debug)]
pub struct Observed {
    /// All Nodes.
    pub nodes: Snapshot<Node>,
    /// All upgrades.
    pub upgrades: Snapshot<OSUpgrade>,
    /// All progress objects.
    pub progresses: Snapshot<OSUpgradeProgress>,
    /// All reports of agents.
    pub os_nodes: Snapshot<OSNode>,
}

impl Observed {
    /// The progress objects that the planner may judge: not those of an upgrade or a Node that this
    /// release cannot read, which would look as if it were gone.
    #[must_use]
    pub fn judged_progresses(&self) -> Vec<OSUpgradeProgress> {
        let (upgrades, nodes) = (names(&self.upgrades.unreadable), names(&self.nodes.unreadable));
        let judged = self.progresses.objects.iter().filter(|object| {
            !upgrades.contains(upgrade_name_of(object)) && !nodes.contains(object.spec.node_name.as_str())
        });
        judged.map(|object| object.as_ref().clone()).collect()
    }

    /// The Nodes as the planner sees them. A cordon that was made for an object that cannot be
    /// judged counts as somebody else's: it takes up budget, and is not taken off.
    #[must_use]
    pub fn node_views(&self) -> Vec<NodeView> {
        let reports: BTreeMap<String, &Arc<OSNode>> =
            self.os_nodes.objects.iter().map(|report| (report.name_any(), report)).collect();
        let unjudged = self.unjudged_uids();
        let view = |node: &Arc<Node>| {
            let report = reports.get(&node.name_any()).map(AsRef::as_ref);
            let mut view = NodeView::new(node, report);
            if view.cordoned_for.as_ref().is_some_and(|uid| unjudged.contains(uid)) {
                view.cordoned_for = None;
            }
            view
        };
        self.nodes.objects.iter().map(view).collect()
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

fn names(unreadable: &[Unreadable]) -> BTreeSet<&str> {
    unreadable.iter().map(|object| object.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;
    use monok8s_sdk::api::{ANNOTATION_CORDON, OSUpgradeProgressSpec, SourceRef};

    use super::*;

    fn cordoned_for(uid: &str) -> Arc<Node> {
        let mut node = Node::default();
        node.metadata.name = Some(format!("node-of-{uid}"));
        node.metadata.annotations = Some([(ANNOTATION_CORDON.to_owned(), uid.to_owned())].into());
        node.spec = Some(NodeSpec { unschedulable: Some(true), ..NodeSpec::default() });
        Arc::new(node)
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
        let ours: Vec<_> = observed.node_views().into_iter().filter_map(|node| node.cordoned_for).collect();
        assert_eq!(ours, ["readable", "gone"], "what is gone for sure is still swept");
        let judged: Vec<_> = observed.judged_progresses().iter().map(kube::ResourceExt::name_any).collect();
        assert_eq!(judged, ["readable"]);
    }
}
