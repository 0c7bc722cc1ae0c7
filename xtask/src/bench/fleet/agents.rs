//! What agents and kubelets write, all of them by one driver that follows one watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::{
    AGENT_FIELD_MANAGER, Conditions, Installed, KSTATUS, LABEL_MANAGED, OSNode, OSUpgradeProgress,
    OSUpgradeProgressStatus, ProgressPhase, TimelineEntry, Truth, is_of_kstatus,
};
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::measure::{FROM, TO};

/// Requests in flight at once, as of a fleet whose agents do not wait for each other.
const AT_ONCE: usize = 16;
/// How long a node takes to stage, and to reboot: real ones take longer, but no less work.
const TAKES: Duration = Duration::from_secs(3);
/// So long an agent waits for leave to stage before it says that it waits.
const FIRST_WORD_AFTER: Duration = Duration::from_secs(10);

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
            (Some(_), None) if phase == ProgressPhase::Pending => {
                (ProgressPhase::Staged, &[ProgressPhase::Downloading, ProgressPhase::Staged])
            }
            _ if !has_spoken => (ProgressPhase::Pending, &[ProgressPhase::Pending]),
            (_, Some(_)) if phase == ProgressPhase::Staged => (
                ProgressPhase::Completed,
                &[ProgressPhase::Rebooting, ProgressPhase::Confirming, ProgressPhase::Completed],
            ),
            // The spec of what is done was changed: that was seen.
            _ if phase == ProgressPhase::Completed && is_unseen(object) => {
                _ = self.write(object, object.status.clone().unwrap_or_default()).await;
                return;
            }
            _ => return,
        };
        if self.mark(&object.name_any(), &wanted) {
            if wanted == ProgressPhase::Pending {
                tokio::time::sleep(FIRST_WORD_AFTER).await;
                if !self.is_marked(&object.name_any(), &wanted) {
                    return;
                }
            }
            let mut object = object.clone();
            for step in steps {
                if self.step(&mut object, step).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Whether nobody has begun this yet.
    fn mark(&self, name: &str, wanted: &ProgressPhase) -> bool {
        self.done().insert(name.to_owned(), wanted.clone()).as_ref() != Some(wanted)
    }

    /// Whether nothing has begun since.
    fn is_marked(&self, name: &str, wanted: &ProgressPhase) -> bool {
        self.done().get(name) == Some(wanted)
    }

    fn done(&self) -> MutexGuard<'_, BTreeMap<String, ProgressPhase>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next phase, which takes its time before it is over: a download and a reboot do.
    async fn step(&self, object: &mut OSUpgradeProgress, phase: &ProgressPhase) -> Result<()> {
        let node = object.spec.node_name.clone();
        if *phase == ProgressPhase::Confirming {
            self.boot(&node).await?;
        }
        let said = status(object, phase);
        self.write(object, said.clone()).await?;
        object.status = Some(said);
        if matches!(phase, ProgressPhase::Downloading | ProgressPhase::Rebooting) {
            tokio::time::sleep(TAKES).await;
        }
        Ok(())
    }

    async fn write(&self, object: &OSUpgradeProgress, mut status: OSUpgradeProgressStatus) -> Result<()> {
        status.observed_generation = object.metadata.generation;
        status.conditions.retain(is_of_kstatus);
        let name = object.name_any();
        let patch = patch("OSUpgradeProgress", &name, &serde_json::to_value(status)?);
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

fn is_unseen(object: &OSUpgradeProgress) -> bool {
    object.status.as_ref().and_then(|status| status.observed_generation) != object.metadata.generation
}

/// What an agent says of a phase, with all the fields that a real one fills.
fn status(object: &OSUpgradeProgress, phase: &ProgressPhase) -> OSUpgradeProgressStatus {
    let (node, now) = (&object.spec.node_name, Timestamp::now());
    let before = object.status.clone().unwrap_or_default();
    let is_done = *phase == ProgressPhase::Completed;
    let is_new = matches!(phase, ProgressPhase::Confirming | ProgressPhase::Completed);
    let (version, slot) = if is_new { (TO, Slot::B) } else { (FROM, Slot::A) };
    let boot_id = format!("{node}-{}", if is_new { 2 } else { 1 });
    let mut timeline = before.timeline;
    timeline.push(TimelineEntry {
        phase: phase.clone(),
        since: Time(now),
        hop: None,
        boot_id: Some(boot_id.clone()),
        slot: Some(slot),
        image_digest: None,
        drained: None,
    });
    let message = format!("the node is {phase}, and says so in a sentence");
    let truths = if is_done { [Truth::True, Truth::False] } else { [Truth::Unknown, Truth::True] };
    let truths = truths.into_iter().chain([Truth::False]);
    let conditions = KSTATUS.into_iter().zip(truths);
    let generation = object.metadata.generation.unwrap_or_default();
    let conditions = conditions
        .fold(Conditions::new(&before.conditions, generation, now), |all, (kind, truth)| {
            all.with(kind, truth, phase.as_str(), message.clone())
        });
    let installed = version.parse().ok().filter(|_| is_done);
    let installed = installed.map(|version| Installed { slot, version, image_digest: None });
    OSUpgradeProgressStatus {
        current_version: Some(version.to_owned()),
        target_version: Some(TO.to_owned()),
        phase: Some(phase.clone()),
        started_at: before.started_at.or(Some(Time(now))),
        completed_at: is_done.then_some(Time(now)),
        last_updated_at: Some(Time(now)),
        retry_count: Some(0),
        inactive_partition: Some(slot.other()),
        failure_reason: Some(String::new()),
        message: Some(message),
        hop: Some(TO.to_owned()),
        attempt: Some(1),
        boot_id: Some(boot_id),
        installed,
        timeline,
        conditions: conditions.into_vec(),
        ..OSUpgradeProgressStatus::default()
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
