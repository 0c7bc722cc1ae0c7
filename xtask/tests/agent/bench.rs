//! A control plane, a file server and images, and the words to make objects with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::api::PostParams;
use kube::{Api, Client};
use monok8s_sdk::api::{OSNode, OSUpgrade, OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase};
use monok8s_sdk::manifests;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::controlplane::{ControlPlane, Kubectl, Options};
use xtask::http::FileServer;
use xtask::kubelet::NodeSpec;
use xtask::machine::{Machine, MachineSpec};
use xtask::rootfs::{Artifact, RootfsSpec};
use xtask::scratch::Scratch;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const IMAGE_BYTES: u64 = 16 * MIB;
pub(crate) const SLOT_BYTES: u64 = 24 * MIB;
pub(crate) const OLD: &str = "v1.35.1";
pub(crate) const NEW: &str = "v1.35.4";
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything but the machines.
pub(crate) struct Bench {
    pub(crate) control_plane: ControlPlane,
    pub(crate) files: FileServer,
    artifacts: BTreeMap<String, Artifact>,
    pub(crate) scratch: Scratch,
}

/// A small image of `version`.
pub(crate) fn small(version: &str) -> RootfsSpec {
    RootfsSpec::of(version).sized(IMAGE_BYTES, 4 * MIB + 5)
}

impl Bench {
    /// A control plane with CRDs and the agent's rights, and an artifact of [`OLD`] and of [`NEW`].
    pub(crate) async fn start() -> Self {
        let control_plane = ControlPlane::start(Options::default()).await.unwrap();
        control_plane.install_crds().await.unwrap();
        let kubectl = control_plane.kubectl();
        let manifest = manifests::to_yaml(&manifests::Agent::default().objects());
        kubectl.succeed_with_stdin(&["apply", "-f", "-"], &manifest).await.unwrap();
        let files = FileServer::start().await.unwrap();
        let scratch = Scratch::new("agent-tests").unwrap();
        let mut bench = Self { control_plane, files, artifacts: BTreeMap::new(), scratch };
        bench.build("old", &small(OLD));
        bench.build("new", &small(NEW));
        bench
    }

    /// Builds and serves an artifact; its path on the server is `/NAME`.
    pub(crate) fn build(&mut self, name: &str, spec: &RootfsSpec) -> Artifact {
        let image = spec.build(&self.path(&format!("{name}.ext4"))).unwrap();
        let artifact = image.compress(&self.path(&format!("{name}.zst"))).unwrap();
        self.publish(name, artifact)
    }

    /// The same with a block index, at `/NAME.idx`, which the entry names.
    pub(crate) fn build_indexed(&mut self, name: &str, spec: &RootfsSpec) -> Artifact {
        let image = spec.build(&self.path(&format!("{name}.ext4"))).unwrap();
        let artifact = image.compress_with_index(&self.path(&format!("{name}.zst"))).unwrap();
        self.publish(name, artifact)
    }

    fn publish(&mut self, name: &str, artifact: Artifact) -> Artifact {
        self.files.serve_file(&format!("/{name}"), &artifact.path);
        if let Some(index) = &artifact.index {
            self.files.serve_file(&format!("/{name}.idx"), &index.path);
        }
        self.artifacts.insert(name.to_owned(), artifact.clone());
        artifact
    }

    pub(crate) fn artifact(&self, name: &str) -> &Artifact {
        &self.artifacts[name]
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn client(&self) -> Client {
        self.control_plane.client()
    }

    pub(crate) fn kubectl(&self) -> Kubectl {
        self.control_plane.kubectl()
    }

    /// A machine that runs [`OLD`], with an agent that has an agent's rights and no more.
    pub(crate) async fn machine(&self, name: &str, args: &[&str]) -> Machine {
        self.machine_with(name, args, |spec| spec).await
    }

    /// The same, changed before it is started.
    pub(crate) async fn machine_with(
        &self,
        name: &str,
        args: &[&str],
        change: impl FnOnce(MachineSpec) -> MachineSpec,
    ) -> Machine {
        let node = NodeSpec::worker(name, OLD);
        // The token is bound to the Node, which must be there first.
        drop(xtask::kubelet::Kubelet::start(self.client(), &node).await.unwrap());
        let kubeconfig = self
            .control_plane
            .service_account_kubeconfig(manifests::DEFAULT_NAMESPACE, manifests::AGENT_NAME, Some(name))
            .await
            .unwrap();
        self.create::<OSNode>(&json!({"metadata": {"name": name}})).await;
        let spec = MachineSpec {
            slot_bytes: SLOT_BYTES,
            agent_arguments: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..MachineSpec::new(node, self.artifact("old").image.clone())
        };
        Machine::start(change(spec), self.scratch.path(), self.client(), kubeconfig).await.unwrap()
    }

    /// An entry of a catalog.
    pub(crate) fn entry(&self, name: &str, version: &str) -> Value {
        let artifact = self.artifact(name);
        let mut entry = json!({
            "version": version,
            "url": self.files.url(&format!("/{name}")),
            "checksum": artifact.digest.to_string(),
            "size": artifact.image.bytes,
        });
        if let Some(index) = &artifact.index {
            let url = self.files.url(&format!("/{name}.idx"));
            entry["index"] = json!({"url": url, "checksum": index.digest.to_string()});
        }
        entry
    }

    /// An upgrade to `version` by an inline catalog of these entries.
    pub(crate) async fn upgrade(&self, name: &str, version: &str, entries: &[Value]) {
        self.upgrade_with(name, version, entries, &json!({})).await;
    }

    /// The same with rollout settings.
    pub(crate) async fn upgrade_with(&self, name: &str, version: &str, entries: &[Value], rollout: &Value) {
        let catalog = json!({"images": entries}).to_string();
        let spec = json!({
            "version": version,
            "nodeSelector": {},
            "catalog": {"inline": catalog},
            "rollout": rollout,
        });
        self.create::<OSUpgrade>(&json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    /// Replaces an upgrade's inline catalog.
    pub(crate) async fn recatalog(&self, name: &str, entries: &[Value]) {
        let catalog = json!({"images": entries}).to_string();
        let patch = json!({"spec": {"catalog": {"inline": catalog}}}).to_string();
        self.kubectl().succeed(&["patch", "osupgrade", name, "--type", "merge", "-p", &patch]).await.unwrap();
    }

    /// A progress object as people make it.
    pub(crate) async fn hand_made(&self, name: &str, upgrade: &str, node: &str) {
        let spec = json!({"sourceRef": {"name": upgrade}, "nodeName": node});
        self.create::<OSUpgradeProgress>(&json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    pub(crate) async fn create<K>(&self, object: &Value) -> K
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug,
        K: serde::de::DeserializeOwned + serde::Serialize,
    {
        let mut object = object.clone();
        object["apiVersion"] = json!(K::api_version(&()));
        object["kind"] = json!(K::kind(&()));
        let object: K = serde_json::from_value(object).unwrap();
        Api::<K>::all(self.client()).create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn progress(&self, name: &str) -> OSUpgradeProgress {
        Api::<OSUpgradeProgress>::all(self.client()).get(name).await.unwrap()
    }

    /// As in the user guide.
    pub(crate) async fn retry(&self, name: &str, nonce: &str) {
        let patch = format!("{{\"spec\":{{\"retryNonce\":\"{nonce}\"}}}}");
        self.kubectl()
            .succeed(&["patch", "osupgradeprogress", name, "--type", "merge", "-p", &patch])
            .await
            .unwrap();
    }

    /// Waits until a status is as wanted.
    pub(crate) async fn wait(
        &self,
        machine: &Machine,
        name: &str,
        wanted: impl Fn(&OSUpgradeProgressStatus) -> bool,
    ) -> OSUpgradeProgressStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.progress(name).await.status.unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{name} is still {:#?}\nboots: {:#?}\n{}",
                status,
                machine.boots(),
                tail(machine.log())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn wait_for_phase(
        &self,
        machine: &Machine,
        name: &str,
        phase: ProgressPhase,
    ) -> OSUpgradeProgressStatus {
        self.wait(machine, name, |status| status.phase.as_ref() == Some(&phase)).await
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The slots of all boots, in order.
pub(crate) fn booted(machine: &Machine) -> Vec<Slot> {
    machine.boots().iter().map(|boot| boot.slot).collect()
}
