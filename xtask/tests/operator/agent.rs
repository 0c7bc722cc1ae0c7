//! A node with a stand-in for its agent: no disk, but the same words and the same commit.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::{
    AGENT_FIELD_MANAGER, ANNOTATION_CORDON, LABEL_CONTROL_PLANE, OSNode, OSNodeStatus, OSUpgradeProgress,
    OrderSpec, ProgressPhase,
};
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use xtask::kubelet::{Health, Kubelet, NodeSpec};

/// What all agents of a cluster saw together.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Nodes in their reboot now.
    away: Mutex<BTreeSet<String>>,
    /// `node: version` for every reboot, in order.
    reboots: Mutex<Vec<String>>,
    /// What must not happen, and did.
    violations: Mutex<Vec<String>>,
}

impl Ledger {
    pub(super) fn reboots(&self) -> Vec<String> {
        self.reboots.lock().unwrap().clone()
    }

    #[track_caller]
    pub(super) fn assert_clean(&self) {
        let violations = self.violations.lock().unwrap();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    fn leave(&self, node: &str, version: &str, budget: usize) {
        let mut away = self.away.lock().unwrap();
        away.insert(node.to_owned());
        if away.len() > budget {
            self.blame(format!("{away:?} are away at once, {budget} may be"));
        }
        self.reboots.lock().unwrap().push(format!("{node}: {version}"));
    }

    fn come_back(&self, node: &str) {
        self.away.lock().unwrap().remove(node);
    }

    fn blame(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }
}

/// How an agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Goes all the way.
    Works,
    /// Stages, and never commits.
    StopsAtStaged,
    /// Never begins to stage.
    NeverStages,
    /// Says that the artifact is not what was ordered.
    FailsToStage,
    /// Comes back in its old slot.
    FallsBack,
    /// Its Node is not Ready.
    NotReady,
    /// Commits to a reboot, and does not come back.
    StaysAway,
}

/// The pods on a node that are neither a `DaemonSet`'s nor a file's.
async fn pods_that_leave(client: &Client, node: &str) -> Vec<String> {
    let on = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(client.clone()).list(&on).await.unwrap();
    let leave = pods.iter().filter(|pod| {
        pod.owner_references().iter().all(|owner| owner.kind != "DaemonSet")
            && !pod.annotations().contains_key("kubernetes.io/config.mirror")
    });
    leave.map(kube::ResourceExt::name_any).collect()
}

/// A node and its agent. Dropped, both fall silent.
pub(super) struct Machine {
    agent: JoinHandle<()>,
}

impl Machine {
    pub(super) async fn start(
        client: Client,
        spec: &NodeSpec,
        manner: Manner,
        ledger: &Arc<Ledger>,
        budget: usize,
    ) -> Self {
        let kubelet = Kubelet::start(client.clone(), spec).await.unwrap();
        if manner == Manner::NotReady {
            kubelet.set_health(Health::NotReady).await.unwrap();
        }
        let agent = Agent {
            client,
            kubelet,
            running: spec.kubelet_version.clone(),
            manner,
            ledger: Arc::clone(ledger),
            budget,
            slot: Slot::A,
            failed: json!([]),
        };
        Self { agent: tokio::spawn(agent.run()) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

struct Agent {
    client: Client,
    kubelet: Kubelet,
    running: String,
    manner: Manner,
    ledger: Arc<Ledger>,
    budget: usize,
    slot: Slot,
    /// The images that failed here.
    failed: Value,
}

impl Agent {
    async fn run(mut self) {
        loop {
            // A lost race or a server that is away: look again.
            let _ = self.turn().await;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }

    async fn turn(&mut self) -> Result<(), kube::Error> {
        self.report().await?;
        let mine = ListParams::default().fields(&format!("spec.nodeName={}", self.kubelet.name()));
        let mut objects = self.objects().list(&mine).await?.items;
        objects.retain(|object| object.spec.order.is_some());
        objects.sort_by_key(|object| object.metadata.creation_timestamp.clone());
        for object in objects {
            self.follow(&object).await?;
        }
        Ok(())
    }

    async fn follow(&mut self, object: &OSUpgradeProgress) -> Result<(), kube::Error> {
        let Some(order) = &object.spec.order else { return Ok(()) };
        let target = order.hops.last().unwrap().version.to_string();
        if object.status.as_ref().is_none_or(|status| status.phase.is_none()) {
            return self.say(object, ProgressPhase::Pending, &target, json!({})).await;
        }
        match object.phase() {
            phase if phase.is_final() => Ok(()),
            ProgressPhase::Rebooting => self.boot(object, order, &target).await,
            _ if object.conditions().iter().any(|c| c.type_ == "Superseded" && c.status == "True") => {
                self.say(object, ProgressPhase::Superseded, &target, json!({})).await
            }
            _ if self.running == target => {
                self.say(object, ProgressPhase::Completed, &target, self.done()).await
            }
            phase => self.stage_or_commit(object, order, &phase, &target).await,
        }
    }

    async fn stage_or_commit(
        &mut self,
        object: &OSUpgradeProgress,
        order: &OrderSpec,
        phase: &ProgressPhase,
        target: &str,
    ) -> Result<(), kube::Error> {
        let running = self.running.parse().unwrap();
        let Some(hop) = order.hops.iter().map(|hop| &hop.version).find(|hop| **hop > running) else {
            return Ok(());
        };
        let staged = *phase == ProgressPhase::Staged;
        let may_stage = order.stage.as_ref() == Some(hop) && !staged;
        match (&order.stage, &order.boot) {
            _ if self.manner == Manner::NeverStages => Ok(()),
            _ if may_stage && self.manner == Manner::FailsToStage => {
                let why = json!({ "failureReason": "ChecksumMismatch", "message": "the artifact's sha256 differs" });
                self.say(object, ProgressPhase::Failed, target, why).await
            }
            _ if may_stage => self.say(object, ProgressPhase::Staged, target, json!({ "hop": hop })).await,
            (_, Some(boot)) if staged && boot.version == *hop && self.commits() => {
                self.commit(object, &hop.to_string(), target).await
            }
            _ => Ok(()),
        }
    }

    fn commits(&self) -> bool {
        matches!(self.manner, Manner::Works | Manner::FallsBack | Manner::StaysAway)
    }

    /// The write that decides: with the resourceVersion of the object that carried the grant.
    async fn commit(
        &mut self,
        object: &OSUpgradeProgress,
        hop: &str,
        target: &str,
    ) -> Result<(), kube::Error> {
        let extra = json!({ "hop": hop, "bootID": self.kubelet.boot_id() });
        self.say_at(object, ProgressPhase::Rebooting, target, extra, object.resource_version()).await?;
        self.check_cordon(object).await;
        self.ledger.leave(self.kubelet.name(), hop, self.budget);
        Ok(())
    }

    async fn boot(
        &mut self,
        object: &OSUpgradeProgress,
        order: &OrderSpec,
        target: &str,
    ) -> Result<(), kube::Error> {
        let hop = object.status.as_ref().unwrap().hop.clone().unwrap();
        let image = order.hops.iter().find(|known| known.version.to_string() == hop).unwrap();
        if self.manner == Manner::StaysAway {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.check_cordon(object).await;
        if self.manner == Manner::FallsBack {
            self.ledger.come_back(self.kubelet.name());
            self.failed = json!([{
                "checksum": image.checksum, "version": image.version, "reason": "FellBack", "at": Time(Timestamp::now()),
            }]);
            self.report().await?;
            let why = json!({ "failureReason": "FellBack", "message": "the kernel did not come up" });
            return self.say(object, ProgressPhase::RolledBack, target, why).await;
        }
        if self.running != hop {
            self.kubelet.booted(&hop).await.unwrap();
            self.running = hop;
            self.slot = self.slot.other();
            self.report().await?;
        }
        self.ledger.come_back(self.kubelet.name());
        if self.running == target {
            self.say(object, ProgressPhase::Completed, target, self.done()).await
        } else {
            self.say(object, ProgressPhase::Pending, target, json!({})).await
        }
    }

    /// From the commit until the node is back, it is cordoned for this object, or by a person.
    async fn check_cordon(&self, object: &OSUpgradeProgress) {
        let node = Api::<Node>::all(self.client.clone()).get(self.kubelet.name()).await.unwrap();
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        let for_another =
            node.annotations().get(ANNOTATION_CORDON).is_some_and(|uid| Some(uid) != object.uid().as_ref());
        if !cordoned || for_another {
            self.ledger.blame(format!("{} reboots without a cordon of its own", self.kubelet.name()));
        }
        let pods = pods_that_leave(&self.client, self.kubelet.name()).await;
        if !pods.is_empty() {
            self.ledger.blame(format!("{} reboots with {pods:?} on it", self.kubelet.name()));
        }
        let control_plane = ListParams::default().labels(LABEL_CONTROL_PLANE);
        let others = Api::<Node>::all(self.client.clone()).list(&control_plane).await.unwrap();
        let away = self.ledger.away.lock().unwrap().clone();
        let away: Vec<_> =
            others.iter().map(kube::ResourceExt::name_any).filter(|name| away.contains(name)).collect();
        if away.len() > 1 {
            self.ledger.blame(format!("control-plane nodes {away:?} are away at once"));
        }
    }

    fn done(&self) -> Value {
        json!({
            "completedAt": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "installed": { "slot": self.slot, "version": self.running },
        })
    }

    async fn say(
        &self,
        object: &OSUpgradeProgress,
        phase: ProgressPhase,
        target: &str,
        extra: Value,
    ) -> Result<(), kube::Error> {
        self.say_at(object, phase, target, extra, None).await
    }

    async fn say_at(
        &self,
        object: &OSUpgradeProgress,
        phase: ProgressPhase,
        target: &str,
        extra: Value,
        version: Option<String>,
    ) -> Result<(), kube::Error> {
        let mut status = json!({
            "phase": phase,
            "currentVersion": self.running,
            "targetVersion": target,
            "observedGeneration": object.metadata.generation,
            "retryCount": 0,
            "failureReason": "",
            "message": "",
        });
        status.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let mut patch = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": { "name": object.name_any(), "uid": object.uid() },
            "status": status,
        });
        if let Some(version) = version {
            patch["metadata"]["resourceVersion"] = json!(version);
        }
        let params = PatchParams::apply(AGENT_FIELD_MANAGER).force();
        self.objects().patch_status(&object.name_any(), &params, &Patch::Apply(&patch)).await.map(drop)
    }

    /// Keeps the node's inventory true.
    async fn report(&self) -> Result<(), kube::Error> {
        let api: Api<OSNode> = Api::all(self.client.clone());
        let Some(report) = api.get_opt(self.kubelet.name()).await? else { return Ok(()) };
        let boot_id = self.kubelet.boot_id();
        let failed = self.failed.as_array().map_or(0, Vec::len);
        let says_so = |status: OSNodeStatus| {
            status.boot_id.as_ref() == Some(&boot_id) && status.failed_images.len() == failed
        };
        if report.status.is_some_and(says_so) {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSNode",
            "metadata": { "name": self.kubelet.name() },
            "status": {
                "bootedSlot": self.slot,
                "bootedVersion": self.running,
                "bootID": boot_id,
                "arch": "amd64",
                "failedImages": self.failed,
                "loader": { "backend": "simulated", "countsTries": "Proven" },
            },
        });
        let params = PatchParams::apply(AGENT_FIELD_MANAGER).force();
        api.patch_status(self.kubelet.name(), &params, &Patch::Apply(&patch)).await.map(drop)
    }

    fn objects(&self) -> Api<OSUpgradeProgress> {
        Api::all(self.client.clone())
    }
}
