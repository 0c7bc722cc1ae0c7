//! What is on cordoned nodes that are managed: the pods of each, under a watch of its own while the node is
//! not in a reboot, and the volumes attached to them. Of all other nodes nothing is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::OSUpgradeProgress;
use monok8s_sdk::causes::chain;
use monok8s_sdk::rollout::{
    Eviction, EvictionAnswer, Fleet, Management, NodeView, PodController, PodView, Scheduling,
};
use tokio::task::AbortHandle;

use crate::access::ApiError;
use crate::known::Known;
use crate::metrics::Metrics;
use crate::wake::Bell;
use crate::watch::Watch;

const PODS: &str = "pods";
const VOLUMES: &str = "volumeattachments.storage.k8s.io";
const CLAIMS: &str = "persistentvolumeclaims";

/// What is known of cordoned nodes, and of evictions.
pub struct Pods {
    client: Client,
    bell: Bell,
    metrics: Arc<Metrics>,
    /// By the Node's UID.
    nodes: BTreeMap<String, Task<OnNode>>,
    /// As long as there are nodes.
    volumes: Option<Task<Volumes>>,
    evictions: BTreeMap<String, Eviction>,
}

/// A watch, which ends with it, and what it has told.
struct Task<T> {
    known: Arc<Mutex<T>>,
    task: AbortHandle,
}

/// What is known of one node's pods.
#[derive(Debug, Default)]
struct OnNode {
    name: String,
    pods: Known<PodView>,
    /// The volumes of the claims of those that stay, by `namespace/name`.
    claims: BTreeMap<String, String>,
    /// Why nothing is heard of them.
    error: Option<String>,
}

/// What is known of the volumes that are attached anywhere.
#[derive(Debug, Default)]
struct Volumes {
    attachments: Known<Attachment>,
    /// Why nothing is heard of them.
    error: Option<String>,
}

/// The name of a volume, and of the node that it is attached to.
#[derive(Debug)]
struct Attachment {
    node: String,
    volume: String,
}

impl<T> Task<T> {
    fn known(&self) -> MutexGuard<'_, T> {
        lock(&self.known)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pods {
    /// Nothing is watched yet.
    #[must_use]
    pub fn new(client: Client, bell: Bell, metrics: Arc<Metrics>) -> Self {
        Self { client, bell, metrics, nodes: BTreeMap::new(), volumes: None, evictions: BTreeMap::new() }
    }

    /// Watches the nodes that are cordoned, and no others any more. Nobody asks for the pods of one that is in its
    /// reboot.
    pub fn follow(&mut self, nodes: &[Arc<NodeView>], progresses: &[Arc<OSUpgradeProgress>]) {
        let rebooting = progresses.iter().filter(|object| object.phase().is_committed());
        // By UID: an order of an earlier Node of its name may say for ever that it reboots.
        let rebooting = rebooting.filter_map(|object| object.spec.order.as_ref());
        let rebooting: BTreeSet<&str> = rebooting.map(|order| order.node_uid.as_str()).collect();
        let cordoned = nodes
            .iter()
            .filter(|node| node.scheduling == Scheduling::Cordoned && node.management == Management::Managed);
        // Volumes are followed through reboots too: they are one watch for all nodes.
        let is_any_cordoned = cordoned.clone().next().is_some();
        let cordoned = cordoned.filter(|node| !rebooting.contains(node.uid.as_str()));
        let cordoned: BTreeMap<&str, &str> =
            cordoned.map(|node| (node.uid.as_str(), node.name.as_str())).collect();
        self.nodes.retain(|uid, _| cordoned.contains_key(uid.as_str()));
        for (uid, name) in &cordoned {
            if !self.nodes.contains_key(*uid) {
                self.nodes.insert((*uid).to_owned(), self.watch_pods(name));
            }
        }
        self.volumes = match self.volumes.take() {
            _ if !is_any_cordoned => None,
            Some(task) => Some(task),
            None => Some(self.watch_volumes()),
        };
    }

    fn watch_pods(&self, node: &str) -> Task<OnNode> {
        let selected = Config::default().fields(&format!("spec.nodeName={node}"));
        let api = Api::<Pod>::all(self.client.clone());
        let mut watch = Watch::new(PODS, api, selected, Arc::clone(&self.metrics));
        let known = Arc::new(Mutex::new(OnNode { name: node.to_owned(), ..OnNode::default() }));
        let (into, bell, client) = (Arc::clone(&known), self.bell.clone(), self.client.clone());
        let task = tokio::spawn(async move {
            loop {
                let event = match watch.try_next().await {
                    Ok(event) => event,
                    Err(why) => {
                        lock(&into).error = Some(why);
                        bell.ring();
                        continue;
                    }
                };
                let claims = match &event {
                    Event::Apply(pod) | Event::InitApply(pod) => claims_of_one_that_stays(pod, &client).await,
                    Event::Init | Event::InitDone | Event::Delete(_) => Vec::new(),
                };
                let mut known = lock(&into);
                known.claims.extend(claims);
                known.error = None;
                known.pods.observe(event, PodView::new);
                drop(known);
                bell.ring();
            }
        });
        Task { known, task: task.abort_handle() }
    }

    fn watch_volumes(&self) -> Task<Volumes> {
        let api = Api::<VolumeAttachment>::all(self.client.clone());
        let mut watch = Watch::new(VOLUMES, api, Config::default(), Arc::clone(&self.metrics));
        let known = Arc::new(Mutex::new(Volumes::default()));
        let (into, bell) = (Arc::clone(&known), self.bell.clone());
        let task = tokio::spawn(async move {
            loop {
                let event = watch.try_next().await;
                let mut known = lock(&into);
                match event {
                    Ok(event) => {
                        known.error = None;
                        known.attachments.observe(event, Attachment::new);
                    }
                    Err(why) => known.error = Some(why),
                }
                drop(known);
                bell.ring();
            }
        });
        Task { known, task: task.abort_handle() }
    }

    /// Tells what is known of the nodes of a fleet.
    pub fn show(&self, fleet: &mut Fleet) {
        let volumes = self.volumes.as_ref().map(Task::known);
        let no_volumes = volumes.as_ref().and_then(|known| known.error.clone());
        for (uid, node) in &self.nodes {
            let known = node.known();
            if let Some(why) = known.error.as_ref().or(no_volumes.as_ref()) {
                fleet.unseen.insert(uid.clone(), why.clone());
            }
            let Some(pods) = known.pods.all() else { continue };
            fleet.pods.insert(uid.clone(), pods.cloned().collect());
            fleet.claims.extend(known.claims.clone());
        }
        let attachments = volumes.as_ref().and_then(|known| known.attachments.all());
        fleet.volumes = attachments.map(|attachments| {
            let mut by_node: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for Attachment { node, volume } in attachments {
                by_node.entry(node.clone()).or_default().insert(volume.clone());
            }
            by_node
        });
        fleet.evictions.clone_from(&self.evictions);
    }

    /// Takes in answers to evictions, and forgets those about pods that are gone.
    pub fn remember(&mut self, answers: Vec<(String, EvictionAnswer)>, now: Timestamp) {
        let nodes: Vec<_> = self.nodes.values().map(Task::known).collect();
        let there: BTreeSet<&str> =
            nodes.iter().filter_map(|node| node.pods.all()).flatten().map(|pod| pod.uid.as_str()).collect();
        self.evictions.retain(|uid, _| there.contains(uid.as_str()));
        let answers = answers.into_iter().map(|(uid, answer)| (uid, Eviction { at: now, answer }));
        self.evictions.extend(answers);
    }

    /// The nodes that cannot be drained for now, each with a disruption budget (as `namespace/name`) that refuses.
    #[must_use]
    pub fn refusing_budgets(&self) -> BTreeSet<(String, String)> {
        let mut all = BTreeSet::new();
        for node in self.nodes.values().map(Task::known) {
            let staying = node.pods.all().into_iter().flatten().filter(|pod| pod.ends.is_none());
            for eviction in staying.filter_map(|pod| self.evictions.get(&pod.uid)) {
                if let EvictionAnswer::Refused { budgets, .. } = &eviction.answer {
                    all.extend(budgets.iter().map(|budget| (node.name.clone(), budget.clone())));
                }
            }
        }
        all
    }
}

impl Attachment {
    fn new(attachment: &VolumeAttachment) -> Self {
        let volume = attachment.spec.source.persistent_volume_name.clone();
        Self {
            node: attachment.spec.node_name.clone(),
            volume: volume.unwrap_or_else(|| attachment.name_any()),
        }
    }
}

/// The volumes of a pod that no drain has leave: nothing will detach them.
async fn claims_of_one_that_stays(pod: &Pod, client: &Client) -> Vec<(String, String)> {
    let view = PodView::new(pod);
    let mut found = Vec::new();
    if view.controller != PodController::DaemonSet {
        return found;
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &view.namespace);
    for claim in &view.claims {
        match api.get_opt(claim).await {
            Ok(object) => {
                let volume = object.and_then(|claim| claim.spec?.volume_name);
                found.extend(volume.map(|volume| (format!("{}/{claim}", view.namespace), volume)));
            }
            // The drain waits for the volume then, and says so.
            Err(error) => tracing::warn!("{}", chain(&ApiError::of("get", CLAIMS, error))),
        }
    }
    found
}
