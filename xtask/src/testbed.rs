//! A whole cluster on one machine: control plane, image server, operator and simulated nodes, put
//! together as the README tells a user to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::{OSUpgrade, OSUpgradeProgress};
use monok8s_sdk::manifests::DEFAULT_NAMESPACE as NAMESPACE;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::controlplane::{ControlPlane, ControllerManager, Kubectl, Options};
use crate::http::FileServer;
use crate::kubelet::NodeSpec;
use crate::machine::{Machine, MachineSpec};
use crate::process::Child;
use crate::programs::Program;
use crate::rootfs::{Artifact, RootfsSpec};
use crate::scratch::Scratch;

const POLL: Duration = Duration::from_millis(50);
/// Kinds that would start pods. There is no kubelet to run them; the programs are started directly,
/// with the same service accounts.
const WORKLOADS: [&str; 2] = ["Deployment", "DaemonSet"];

/// A running cluster. Dropping it ends and removes everything.
pub struct Testbed {
    // Dropped in this order: what uses the API server before the API server, files last.
    operator: Option<Child>,
    machines: Vec<Machine>,
    server: FileServer,
    artifacts: BTreeMap<String, Artifact>,
    accounts: Accounts,
    /// What the nodes know this machine's loopback interface as.
    host: &'static str,
    control_plane: ControlPlane,
    scratch: Scratch,
}

/// The names of the two service accounts, as the manifests have them.
struct Accounts {
    operator: String,
    agent: String,
}

impl Testbed {
    /// A cluster with the CRDs and the rights of operator and agent, and nothing that runs yet.
    pub async fn start(controllers: ControllerManager) -> Result<Self> {
        let control_plane = ControlPlane::start(Options { controller_manager: controllers }).await?;
        let kubectl = control_plane.kubectl();
        let operator = install(&kubectl, "controller").await?;
        let agent = install(&kubectl, "agent").await?;
        Ok(Self {
            operator: None,
            machines: Vec::new(),
            server: FileServer::start().await?,
            artifacts: BTreeMap::new(),
            accounts: Accounts { operator, agent },
            host: "127.0.0.1",
            control_plane,
            scratch: Scratch::new("testbed")?,
        })
    }

    /// With nodes that know the loopback interface of this machine as `host`.
    #[must_use]
    pub fn seen_as(self, host: &'static str) -> Self {
        Self { host, ..self }
    }

    /// The control plane.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The same, to stop and start parts of it.
    pub fn control_plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// A client for the administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.control_plane.client()
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        self.control_plane.kubectl()
    }

    /// The image server.
    #[must_use]
    pub fn server(&self) -> &FileServer {
        &self.server
    }

    /// A directory that goes away with the testbed.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Builds the image, compresses it, and serves it under its own name.
    pub fn publish(&mut self, name: &str, spec: &RootfsSpec) -> Result<&Artifact> {
        let image = spec.build(&self.scratch.path().join(format!("{name}.ext4")))?;
        let artifact = image.compress(&self.scratch.path().join(format!("{name}.ext4.zst")))?;
        self.serve(name, artifact)
    }

    /// The same with a block index, which its entry names.
    pub fn publish_indexed(&mut self, name: &str, spec: &RootfsSpec) -> Result<&Artifact> {
        let image = spec.build(&self.scratch.path().join(format!("{name}.ext4")))?;
        let artifact = image.compress_with_index(&self.scratch.path().join(format!("{name}.ext4.zst")))?;
        self.serve(name, artifact)
    }

    /// Serves an artifact, and its index if it has one, as what is published under a name.
    pub fn serve(&mut self, name: &str, artifact: Artifact) -> Result<&Artifact> {
        self.server.serve_file(&artifact_path(name), &artifact.path);
        if let Some(index) = &artifact.index {
            self.server.serve_file(&index_path(name), &index.path);
        }
        self.artifacts.insert(name.to_owned(), artifact);
        self.artifact(name)
    }

    /// What was published under a name.
    pub fn artifact(&self, name: &str) -> Result<&Artifact> {
        self.artifacts.get(name).with_context(|| format!("{name} was not published"))
    }

    /// The address of what was published under a name.
    #[must_use]
    pub fn artifact_url(&self, name: &str) -> String {
        self.server.url_at(self.host, &artifact_path(name))
    }

    /// Applies everything that `ctl create` prints of `controller` or `agent`, for nodes that run pods.
    pub async fn create(&self, what: &str) -> Result<()> {
        self.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &manifests(what)?).await.map(drop)
    }

    /// A catalog of everything that was published under its version.
    #[must_use]
    pub fn catalog(&self, stable: &str) -> String {
        let mut catalog = format!("stable: {stable}\nimages:\n");
        for (version, artifact) in &self.artifacts {
            catalog.push_str(&self.catalog_entry(version, version, artifact));
        }
        catalog
    }

    /// One entry of a catalog: `version`, at the address of what was published as `name`.
    #[must_use]
    pub fn catalog_entry(&self, version: &str, name: &str, artifact: &Artifact) -> String {
        let mut entry = format!("  - version: {version}\n");
        // Writing to a String cannot fail.
        let _ = writeln!(entry, "    url: {}", self.artifact_url(name));
        let _ = writeln!(entry, "    checksum: {}", artifact.digest);
        let _ = writeln!(entry, "    size: {}", artifact.image.bytes);
        if let Some(index) = &artifact.index {
            let url = self.server.url_at(self.host, &index_path(name));
            let _ = writeln!(entry, "    index: {{url: \"{url}\", checksum: \"{}\"}}", index.digest);
        }
        entry
    }

    /// Adds a node that runs the image published as `version`.
    pub async fn add_machine(&mut self, node: NodeSpec, version: &str) -> Result<&Machine> {
        let image = self.artifact(version)?.image.clone();
        self.add(MachineSpec::new(node, image)).await
    }

    /// Adds a node.
    pub async fn add(&mut self, spec: MachineSpec) -> Result<&Machine> {
        // The agent's token names its node, so the Node must be there first.
        let name = spec.node.name.clone();
        let kubelet = crate::kubelet::Kubelet::start(self.client(), &spec.node).await?;
        drop(kubelet);
        let kubeconfig = self.agent_kubeconfig(&name).await?;
        let machine = Machine::start(spec, self.scratch.path(), self.client(), kubeconfig).await?;
        self.machines.push(machine);
        self.machine(&name)
    }

    /// The rights of the agent on a node.
    pub async fn agent_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        self.control_plane.service_account_kubeconfig(NAMESPACE, &self.accounts.agent, Some(node)).await
    }

    /// A node's machine.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        let found = self.machines.iter().find(|machine| machine.name() == name);
        found.with_context(|| format!("there is no machine {name}"))
    }

    /// All machines, in the order in which they were added.
    #[must_use]
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// Takes a machine away; its Node stays.
    pub fn remove_machine(&mut self, name: &str) {
        self.machines.retain(|machine| machine.name() != name);
    }

    /// Throws the disk of a removed machine away, so that another one can take its name.
    pub fn forget_disk(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.scratch.path().join(name))?)
    }

    /// Starts the operator with its own rights.
    pub async fn start_operator(&mut self) -> Result<()> {
        self.start_operator_with(&[]).await
    }

    /// Starts the operator with more arguments.
    pub async fn start_operator_with(&mut self, arguments: &[&str]) -> Result<()> {
        let account = &self.accounts.operator;
        let kubeconfig = self.control_plane.service_account_kubeconfig(NAMESPACE, account, None).await?;
        let mut command = Command::new(Program::Operator.locate()?);
        command
            .args(["run", "--namespace", NAMESPACE, "--metrics-addr", "127.0.0.1:0"])
            // A killed operator leaves its Lease behind; its successor waits for that long.
            .args(["--lease-duration-seconds", "3"])
            .args(arguments)
            .env("KUBECONFIG", kubeconfig);
        self.operator = Some(Child::spawn("the operator", command, &self.operator_log())?);
        Ok(())
    }

    /// Kills the operator with SIGKILL.
    pub fn kill_operator(&mut self) -> Result<()> {
        match self.operator.take() {
            Some(operator) => operator.kill().map(drop),
            None => bail!("the operator is not running"),
        }
    }

    /// Where the operator's output goes.
    #[must_use]
    pub fn operator_log(&self) -> PathBuf {
        self.scratch.path().join("operator.log")
    }

    /// All upgrades, by name.
    pub async fn upgrades(&self) -> Result<BTreeMap<String, OSUpgrade>> {
        let all = Api::<OSUpgrade>::all(self.client()).list(&ListParams::default()).await?;
        Ok(all.into_iter().map(|upgrade| (upgrade.name_any(), upgrade)).collect())
    }

    /// All progress objects, by name.
    pub async fn progresses(&self) -> Result<BTreeMap<String, OSUpgradeProgress>> {
        let all = Api::<OSUpgradeProgress>::all(self.client()).list(&ListParams::default()).await?;
        Ok(all.into_iter().map(|progress| (progress.name_any(), progress)).collect())
    }

    /// Polls until `look` finds something. The error says what was waited for, and shows the cluster.
    pub async fn wait_for<T, F>(&self, what: &str, timeout: Duration, look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        self.look_every(POLL, what, timeout, look).await
    }

    /// The same, looking so often.
    pub(crate) async fn look_every<T, F>(
        &self,
        pause: Duration,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("waited {timeout:?} in vain for {what}\n{}", self.describe().await);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// What a person would look at first when something does not move.
    pub async fn describe(&self) -> String {
        let mut text = String::new();
        for kind in ["osupgrades", "osupgradeprogresses", "nodes"] {
            let arguments = ["get", kind, "-o", "wide"];
            let shown = self.kubectl().succeed(&arguments).await.unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(text, "$ kubectl get {kind} -o wide\n{shown}");
        }
        if let Some(operator) = &self.operator {
            let _ = writeln!(text, "{}", operator.log_tail());
        }
        for machine in &self.machines {
            let log = std::fs::read_to_string(machine.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(10).collect();
            let _ = writeln!(text, "--- {} {:?}", machine.name(), machine.boots());
            lines.iter().rev().for_each(|line| {
                let _ = writeln!(text, "{line}");
            });
        }
        text
    }
}

/// The path under which the image server has what was published as `name`.
#[must_use]
pub fn artifact_path(name: &str) -> String {
    format!("/monok8s-{name}.ext4.zst")
}

/// The path of its block index.
fn index_path(name: &str) -> String {
    format!("/monok8s-{name}.ext4.idx")
}

/// What `ctl create` prints.
fn manifests(what: &str) -> Result<String> {
    let output = Command::new(Program::Ctl.locate()?).args(["create", what]).output()?;
    if !output.status.success() {
        bail!("`ctl create {what}` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Applies what `ctl create` prints, as the guide says, except for what would need a kubelet.
/// Returns the name of the service account.
async fn install(kubectl: &Kubectl, what: &str) -> Result<String> {
    let manifests = manifests(what)?;
    let mut applied = String::new();
    let mut account = None;
    for document in serde_yaml::Deserializer::from_str(&manifests) {
        let object = Value::deserialize(document)?;
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
        if kind == "ServiceAccount" {
            account = object.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned);
        }
        if !WORKLOADS.contains(&kind) && !object.is_null() {
            let _ = write!(applied, "---\n{}", serde_yaml::to_string(&object)?);
        }
    }
    kubectl.succeed_with_stdin(&["apply", "-f", "-"], &applied).await?;
    account.with_context(|| format!("`ctl create {what}` prints no ServiceAccount"))
}
