//! A cluster whose nodes are machines that really start.

use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use monok8s_sdk::api::LABEL_CONTROL_PLANE;

use crate::controlplane::ControllerManager;
use crate::kubelet::Role;
use crate::testbed::Testbed;
use crate::vm::{Identity, Vm, VmDisk};

/// What a machine's network calls the loopback interface of the machine that it runs on.
const HOST: &str = "10.0.2.2";
/// An emulated machine starts in half a minute when it has the processors for itself.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Rarely: to look takes processor time, which the machines need.
const POLL: Duration = Duration::from_millis(500);
/// Set, it names the directory that serial logs are kept in, unless [`VmCluster::keep_logs`] says another.
const LOGS: &str = "MONOK8S_VM_LOGS";
const TAIL_LINES: usize = 60;

/// Control plane, image server and machines. Dropping it ends and removes everything.
pub struct VmCluster {
    vms: Vec<Vm>,
    testbed: Testbed,
    logs: PathBuf,
}

impl VmCluster {
    /// A control plane with the CRDs and the agents, as `ctl create` prints them. No machine yet.
    pub async fn start() -> Result<Self> {
        let mut testbed = Testbed::start(ControllerManager::Running).await?.seen_as(HOST);
        // Pods of a DaemonSet are bound by it too.
        testbed.control_plane_mut().start_scheduler().await?;
        testbed.create("agent").await?;
        let logs = match std::env::var_os(LOGS) {
            Some(directory) => PathBuf::from(directory),
            None => testbed.directory().join("logs"),
        };
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self { vms: Vec::new(), testbed, logs })
    }

    /// What is not a machine.
    #[must_use]
    pub fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// The same, to change it.
    pub fn testbed_mut(&mut self) -> &mut Testbed {
        &mut self.testbed
    }

    /// Keeps the serial logs of machines that are added from now on in a directory of their own.
    pub fn keep_logs(&mut self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        directory.clone_into(&mut self.logs);
        Ok(())
    }

    /// Where serial logs are.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Adds a machine that runs what was published under `image` from slot A, and switches it on.
    pub fn add(&mut self, name: &str, role: Role, image: &str) -> Result<()> {
        let control_plane = self.testbed.control_plane();
        let identity = Identity {
            name: name.to_owned(),
            kubeconfig: control_plane.kubelet_kubeconfig(name, HOST)?,
            api_port: control_plane.port(),
            control_plane: role == Role::ControlPlane,
        };
        let image = &self.testbed.artifact(image)?.image;
        let disk = VmDisk::create(&self.testbed.directory().join(format!("{name}.raw")), &identity, image)?;
        let mut vm = Vm::new(name, disk, &self.logs, self.testbed.directory())?;
        vm.power_on()?;
        self.vms.push(vm);
        Ok(())
    }

    /// Labels a Node as part of the control plane, which its kubelet may not do.
    pub async fn label_control_plane(&self, node: &str) -> Result<()> {
        let label = format!("{LABEL_CONTROL_PLANE}=");
        self.testbed.kubectl().succeed(&["label", "node", node, &label]).await.map(drop)
    }

    /// A machine.
    pub fn vm(&self, name: &str) -> Result<&Vm> {
        let found = self.vms.iter().find(|vm| vm.name() == name);
        found.with_context(|| format!("there is no machine {name}"))
    }

    /// The same, to switch it on or off.
    pub fn vm_mut(&mut self, name: &str) -> Result<&mut Vm> {
        let found = self.vms.iter_mut().find(|vm| vm.name() == name);
        found.with_context(|| format!("there is no machine {name}"))
    }

    /// Waits until a Node is Ready under a kubelet of `version`, in a boot other than `not_boot`. Returns
    /// the boot ID.
    pub async fn ready(&self, name: &str, version: &str, not_boot: Option<&str>) -> Result<String> {
        let nodes: Api<Node> = Api::all(self.testbed.client());
        self.wait_for(&format!("{name} to be Ready with {version}"), BOOT_TIMEOUT, || async {
            let Some(node) = nodes.get_opt(name).await? else { return Ok(None) };
            let status = node.status.unwrap_or_default();
            let info = status.node_info.unwrap_or_default();
            let ready = status
                .conditions
                .unwrap_or_default()
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            let right = info.kubelet_version == version && not_boot != Some(info.boot_id.as_str());
            Ok((ready && right).then_some(info.boot_id))
        })
        .await
    }

    /// As [`Testbed::wait_for`], looking less often; the error also shows the ends of the serial logs.
    pub async fn wait_for<T, F>(&self, what: &str, timeout: Duration, look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        match self.testbed.look_every(POLL, what, timeout, look).await {
            Ok(found) => Ok(found),
            Err(error) => {
                let (pods, logs, serial) = (self.pods().await, self.pod_logs().await, self.serial_tails());
                Err(error.context(format!("{pods}\n{logs}\n{serial}")))
            }
        }
    }

    /// The ends of the logs of every machine's pods; the API server has no way to the kubelets.
    async fn pod_logs(&self) -> String {
        let mut text = String::new();
        for vm in &self.vms {
            let seen = async {
                let mut guest = vm.guest(Duration::from_secs(10)).await?;
                guest.succeed("tail -n 30 /var/log/pods/*/*/*.log", Duration::from_secs(10)).await
            };
            let seen = seen.await.unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(text, "--- pods on {}\n{seen}", vm.name());
        }
        text
    }

    async fn pods(&self) -> String {
        let arguments = ["describe", "pods", "--all-namespaces"];
        self.testbed.kubectl().succeed(&arguments).await.unwrap_or_else(|error| format!("{error:#}"))
    }

    fn serial_tails(&self) -> String {
        let mut text = String::new();
        for vm in &self.vms {
            let serial = vm.serial();
            let lines: Vec<_> = serial.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
            let _ = writeln!(text, "--- serial line of {}\n{}", vm.name(), tail.join("\n"));
            let _ = writeln!(text, "--- QEMU of {}\n{}", vm.name(), vm.log_tail());
        }
        text
    }
}
