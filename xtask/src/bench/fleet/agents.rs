//! What agents and kubelets write, all of them by one driver that follows one watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::{
    AGENT_FIELD_MANAGER, LABEL_MANAGED, OSNode, OSUpgradeProgress, ProgressPhase, TimelineEntry,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::measure::{FROM, TO};

/// Requests in flight at once, as of a fleet whose agents do not wait for each other.
const AT_ONCE: usize = 16;

/// Creates the Nodes as their kubelets would.
pub(super) async fn register(client: &Client, count: usize) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let mut nodes =
        futures::stream::iter(
            (0..count).map(|number| {
                let api = api.clone();
                async move {
                    api.create(&PostParams::default(), &node(number)?).await.map_err(anyhow::Error::from)
                }
            }),
        )
        .buffer_unordered(AT_ONCE);
    while let Some(created) = nodes.next().await {
        created?;
    }
    Ok(())
}

fn name(number: usize) -> String {
    format!("node-{number:05}")
}

fn node(number: usize) -> Result<Node> {
    let name = name(number);
    let zone = format!("zone-{}", number % 3);
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            LABEL_MANAGED: "true", "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone,
        } },
        "status": {
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            // As many as a kubelet tells of, and a watch brings with every heartbeat.
            "images": (0..50).map(image).collect::<Vec<_>>(),
            "nodeInfo": { "kubeletVersion": FROM, "bootID": format!("{name}-1"), "architecture": "amd64",
                "machineID": "", "systemUUID": "", "kernelVersion": "", "osImage": "",
                "containerRuntimeVersion": "", "kubeProxyVersion": "", "operatingSystem": "linux" },
        },
    }))?)
}

fn image(number: usize) -> Value {
    let name = format!("registry.example.com/team-{}/service-{number}", number % 7);
    json!({ "names": [format!("{name}@sha256:{number:064x}"), format!("{name}:v1.{number}.0")], "sizeBytes": 50_000_000 })
}

/// The agents of a fleet.
#[derive(Clone)]
pub(super) struct Agents {
    client: Client,
    requests: Arc<Semaphore>,
    /// How far each object is that is being written: a watch tells of a write only afterwards.
    done: Arc<Mutex<BTreeMap<String, ProgressPhase>>>,
}

impl Agents {
    pub(super) fn new(client: Client) -> Self {
        Self { client, requests: Arc::new(Semaphore::new(AT_ONCE)), done: Arc::default() }
    }

    /// The first report of each node.
    pub(super) async fn report(&self, count: usize) -> Result<()> {
        let mut reports = futures::stream::iter((0..count).map(|number| async move {
            let name = name(number);
            self.say_of_node(&name, FROM, &format!("{name}-1")).await
        }))
        .buffer_unordered(AT_ONCE);
        while let Some(written) = reports.next().await {
            written?;
        }
        Ok(())
    }

    /// Obeys orders until it is dropped.
    pub(super) fn obey(self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
            let mut events = watcher(api, watcher::Config::default()).boxed();
            let mut work = JoinSet::new();
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(object) | Event::InitApply(object)) = event {
                    let agents = self.clone();
                    work.spawn(async move { agents.follow(&object).await });
                }
                while work.try_join_next().is_some() {}
            }
        });
        tasks
    }

    async fn follow(&self, object: &OSUpgradeProgress) {
        let Some(order) = &object.spec.order else { return };
        let phase = object.phase();
        let has_spoken = object.status.as_ref().is_some_and(|status| status.phase.is_some());
        let (wanted, steps): (_, &[ProgressPhase]) = match (&order.stage, &order.boot) {
            // At the first sight of it.
            _ if !has_spoken => (ProgressPhase::Pending, &[ProgressPhase::Pending]),
            (Some(_), None) if phase == ProgressPhase::Pending => (
                ProgressPhase::Staged,
                &[ProgressPhase::Downloading, ProgressPhase::Verifying, ProgressPhase::Staged],
            ),
            (_, Some(_)) if phase == ProgressPhase::Staged => (
                ProgressPhase::Completed,
                &[ProgressPhase::Rebooting, ProgressPhase::Confirming, ProgressPhase::Completed],
            ),
            _ => return,
        };
        if self.mark(&object.name_any(), &wanted) {
            for step in steps {
                if self.step(object, step).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Whether nobody has begun this yet.
    fn mark(&self, name: &str, wanted: &ProgressPhase) -> bool {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.insert(name.to_owned(), wanted.clone()).as_ref() != Some(wanted)
    }

    async fn step(&self, object: &OSUpgradeProgress, phase: &ProgressPhase) -> Result<()> {
        let node = &object.spec.node_name;
        let now = serde_json::to_value(TimelineEntry {
            phase: phase.clone(),
            since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()),
            hop: None,
            boot_id: Some(format!("{node}-1")),
            slot: None,
        })?;
        let mut status = json!({
            "phase": phase, "targetVersion": TO, "hop": TO, "retryCount": 0, "timeline": [now],
            "currentVersion": if *phase == ProgressPhase::Completed { TO } else { FROM },
            "observedGeneration": object.metadata.generation,
        });
        if *phase == ProgressPhase::Confirming {
            self.boot(node).await?;
        }
        if *phase == ProgressPhase::Completed
            && let Some(fields) = status.as_object_mut()
        {
            fields.insert("installed".to_owned(), json!({ "slot": "B", "version": TO }));
        }
        let name = object.name_any();
        let patch = patch("OSUpgradeProgress", &name, &status);
        let _permit = self.requests.acquire().await?;
        let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
        api.patch_status(&name, &params(), &Patch::Apply(patch)).await?;
        Ok(())
    }

    /// The kubelet comes back with the new version, and the agent reports the new boot.
    async fn boot(&self, node: &str) -> Result<()> {
        let boot_id = format!("{node}-2");
        let status = json!({ "status": { "nodeInfo": { "kubeletVersion": TO, "bootID": boot_id } } });
        {
            let _permit = self.requests.acquire().await?;
            let api: Api<Node> = Api::all(self.client.clone());
            api.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await?;
        }
        self.say_of_node(node, TO, &boot_id).await
    }

    async fn say_of_node(&self, node: &str, version: &str, boot_id: &str) -> Result<()> {
        let status = json!({
            "bootedSlot": if version == FROM { "A" } else { "B" }, "bootedVersion": version, "bootID": boot_id,
            "arch": "amd64", "loader": { "backend": "simulated", "countsTries": "Proven" },
        });
        let _permit = self.requests.acquire().await?;
        let api: Api<OSNode> = Api::all(self.client.clone());
        api.patch_status(node, &params(), &Patch::Apply(patch("OSNode", node, &status))).await?;
        Ok(())
    }
}

fn patch(kind: &str, name: &str, status: &Value) -> Value {
    json!({
        "apiVersion": "monok8s.io/v1alpha1", "kind": kind, "metadata": { "name": name }, "status": status,
    })
}

fn params() -> PatchParams {
    PatchParams::apply(AGENT_FIELD_MANAGER).force()
}
