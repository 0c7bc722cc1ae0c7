//! A stand-in for kubelets: it keeps a Node object as a kubelet would, and runs no pods.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// As a kubelet's default.
const LEASE_SECONDS: i32 = 40;
const HEARTBEAT: Duration = Duration::from_secs(10);
const LEASES: &str = "kube-node-lease";
const MANAGER: &str = "kubelet-stand-in";

/// Whether a node is part of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Labelled `node-role.kubernetes.io/control-plane`.
    ControlPlane,
    /// No role label.
    Worker,
}

/// The node to stand in for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name and hostname.
    pub name: String,
    /// Control plane or worker.
    pub role: Role,
    /// As in `v1.35.1`.
    pub kubelet_version: String,
    /// Beside those that every managed node has.
    pub labels: BTreeMap<String, String>,
}

impl NodeSpec {
    /// A managed worker.
    #[must_use]
    pub fn worker(name: &str, kubelet_version: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::Worker,
            kubelet_version: kubelet_version.to_owned(),
            labels: BTreeMap::new(),
        }
    }

    /// A managed control-plane node.
    #[must_use]
    pub fn control_plane(name: &str, kubelet_version: &str) -> Self {
        Self { role: Role::ControlPlane, ..Self::worker(name, kubelet_version) }
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// What the node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Ready, with heartbeats.
    Ready,
    /// Not ready, with heartbeats: the kubelet runs and its runtime does not.
    NotReady,
    /// No heartbeats: powered off. What the Node object says stays until a node lifecycle controller
    /// changes it.
    Silent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    health: Health,
    boot_id: String,
    version: String,
}

/// Keeps one Node. Dropped, it falls silent; the object stays.
pub struct Kubelet {
    name: String,
    client: Client,
    condition: watch::Sender<Condition>,
    beating: JoinHandle<()>,
}

impl Kubelet {
    /// Creates the Node, or takes over the one of that name, and returns when it is Ready.
    pub async fn start(client: Client, spec: &NodeSpec) -> Result<Self> {
        let condition = Condition {
            health: Health::Ready,
            boot_id: new_boot_id()?,
            version: spec.kubelet_version.clone(),
        };
        register(&client, spec).await.with_context(|| format!("cannot register Node {}", spec.name))?;
        report(&client, &spec.name, &condition).await?;
        let (sender, receiver) = watch::channel(condition);
        let beating = tokio::spawn(beat(client.clone(), spec.name.clone(), receiver));
        Ok(Self { name: spec.name.clone(), client, condition: sender, beating })
    }

    /// Name of the Node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Boot ID of the present boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.condition.borrow().boot_id.clone()
    }

    /// Changes the node's health; returns when the Node object says so.
    pub async fn set_health(&self, health: Health) -> Result<()> {
        self.change(|condition| condition.health = health).await
    }

    /// The node has booted: Ready, with a new boot ID and the version of the slot it booted. Returns
    /// the boot ID.
    pub async fn booted(&self, kubelet_version: &str) -> Result<String> {
        let boot_id = new_boot_id()?;
        self.booted_as(kubelet_version, &boot_id).await?;
        Ok(boot_id)
    }

    /// [`Kubelet::booted`] with a boot ID that the machine has already.
    pub async fn booted_as(&self, kubelet_version: &str, boot_id: &str) -> Result<()> {
        self.change(|condition| {
            *condition = Condition {
                health: Health::Ready,
                boot_id: boot_id.to_owned(),
                version: kubelet_version.to_owned(),
            };
        })
        .await
    }

    /// Falls silent and deletes the Node and its Lease.
    pub async fn remove(self) -> Result<()> {
        self.beating.abort();
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.delete(&self.name, &DeleteParams::default()).await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        match leases.delete(&self.name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            deleted => drop(deleted?),
        }
        Ok(())
    }

    async fn change(&self, change: impl FnOnce(&mut Condition)) -> Result<()> {
        let mut next = self.condition.borrow().clone();
        change(&mut next);
        report(&self.client, &self.name, &next).await?;
        self.condition.send_replace(next);
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// A boot ID as the kernel makes them.
pub fn new_boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    Ok(std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

async fn register(client: &Client, spec: &NodeSpec) -> Result<()> {
    let mut labels = spec.labels.clone();
    for (key, value) in [
        ("monok8s.io/managed", "true"),
        ("kubernetes.io/hostname", spec.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    if spec.role == Role::ControlPlane {
        labels.insert("node-role.kubernetes.io/control-plane".to_owned(), String::new());
    }
    let node = json!({"metadata": {"name": spec.name, "labels": labels}});
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.create(&PostParams::default(), &serde_json::from_value(node.clone())?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            nodes.patch(&spec.name, &PatchParams::default(), &Patch::Merge(node)).await?;
        }
        created => drop(created?),
    }
    Ok(())
}

/// Kubernetes' name for the machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Renews the Lease for as long as the node is not silent. As kubelets do, this writes the Node's
/// status only when it changes.
async fn beat(client: Client, name: String, mut condition: watch::Receiver<Condition>) {
    loop {
        let silent = condition.borrow_and_update().health == Health::Silent;
        if !silent && let Err(error) = renew(&client, &name).await {
            // The API server may be away on purpose; the next beat tries again.
            eprintln!("kubelet stand-in of {name}: {error:#}");
        }
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT) => {}
            changed = condition.changed() => if changed.is_err() { return },
        }
    }
}

async fn renew(client: &Client, name: &str) -> Result<()> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": MicroTime(Timestamp::now()),
        },
    });
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    leases.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(lease)).await?;
    Ok(())
}

async fn report(client: &Client, name: &str, condition: &Condition) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(status) = status(condition, Timestamp::now()) else { return Ok(()) };
    // Strategic, so that conditions of other owners stay.
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(json!({"status": status})))
        .await
        .with_context(|| format!("cannot write the status of Node {name}"))?;
    Ok(())
}

/// What a kubelet in this condition writes; nothing if it is silent.
fn status(condition: &Condition, now: Timestamp) -> Option<Value> {
    let (ready, reason, message) = match condition.health {
        Health::Ready => ("True", "KubeletReady", "kubelet is posting ready status"),
        Health::NotReady => ("False", "KubeletNotReady", "container runtime is down"),
        Health::Silent => return None,
    };
    let now = now.to_string();
    let ready = json!({
        "type": "Ready",
        "status": ready,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    });
    let capacity = json!({"cpu": "2", "memory": "2Gi", "pods": "110"});
    Some(json!({
        "conditions": [ready],
        "capacity": capacity,
        "allocatable": capacity,
        "nodeInfo": {
            "architecture": architecture(),
            "bootID": condition.boot_id,
            "containerRuntimeVersion": "none://stand-in",
            "kernelVersion": "6.12.0",
            "kubeProxyVersion": "",
            "kubeletVersion": condition.version,
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": format!("MonoK8s OS {}", condition.version),
            "systemUUID": "",
        },
    }))
}
