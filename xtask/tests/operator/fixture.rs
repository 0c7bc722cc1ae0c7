//! A cluster for one test, and operators that run as their own service account.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::{ANNOTATION_CORDON, OSUpgrade, OSUpgradeProgress, find_condition};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::manifests::{Controller, to_yaml};
use tokio::sync::{Semaphore, SemaphorePermit};
use xtask::controlplane::{AuditedWrite, ControlPlane, ControllerManager, Options};
use xtask::kubelet::NodeSpec;
use xtask::process::Child;
use xtask::programs::Program;
use xtask::scratch::Scratch;

use super::agent::{Ledger, Machine, Manner};

pub(super) const NAMESPACE: &str = "mono-system";
pub(super) const OPERATOR_USER: &str = "system:serviceaccount:mono-system:controller";
/// Control planes at once: they are most of the load.
static CLUSTERS: Semaphore = Semaphore::const_new(2);

pub(super) struct Cluster {
    // Dropped in this order: machines before the control plane they talk to.
    pub(super) machines: BTreeMap<String, Machine>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) control_plane: ControlPlane,
    kubeconfig: PathBuf,
    scratch: Scratch,
    _permit: SemaphorePermit<'static>,
}

/// What of the manifests is there when an operator starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Crds {
    Applied,
    Missing,
}

impl Cluster {
    /// A control plane with the CRDs and the operator's account, and no nodes.
    pub(super) async fn start() -> Self {
        Self::start_with(Crds::Applied, ControllerManager::Absent).await
    }

    pub(super) async fn start_with(crds: Crds, controller_manager: ControllerManager) -> Self {
        let permit = CLUSTERS.acquire().await.unwrap();
        let control_plane = ControlPlane::start(Options { controller_manager }).await.unwrap();
        let kubectl = control_plane.kubectl();
        kubectl.succeed(&["create", "namespace", NAMESPACE]).await.unwrap();
        // The Deployment is only an object here; nothing runs it.
        let manifests = to_yaml(&Controller::default().own_objects());
        kubectl.succeed_with_stdin(&["apply", "-f", "-"], &manifests).await.unwrap();
        let kubeconfig =
            control_plane.service_account_kubeconfig(NAMESPACE, "controller", None).await.unwrap();
        let scratch = Scratch::new("operator").unwrap();
        let ledger = Arc::default();
        let cluster =
            Self { machines: BTreeMap::new(), ledger, control_plane, kubeconfig, scratch, _permit: permit };
        if crds == Crds::Applied {
            cluster.apply_crds().await;
        }
        cluster
    }

    pub(super) async fn apply_crds(&self) {
        self.control_plane.install_crds().await.unwrap();
    }

    pub(super) async fn apply(&self, yaml: &str) {
        self.control_plane.kubectl().succeed_with_stdin(&["apply", "-f", "-"], yaml).await.unwrap();
    }

    /// Applies what the API server takes only once it has learned of a changed CRD.
    pub(super) async fn apply_when_taken(&self, yaml: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let kubectl = self.control_plane.kubectl();
        while let Err(error) = kubectl.succeed_with_stdin(&["apply", "-f", "-"], yaml).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Adds a node whose agent expects that no more than `budget` nodes are away at once.
    pub(super) async fn add(&mut self, spec: NodeSpec, manner: Manner, budget: usize) {
        let machine = Machine::start(self.client(), &spec, manner, &self.ledger, budget).await;
        self.machines.insert(spec.name, machine);
    }

    /// A directory that goes with it.
    pub(super) fn scratch(&self) -> &std::path::Path {
        self.scratch.path()
    }

    pub(super) fn client(&self) -> Client {
        self.control_plane.client()
    }

    pub(super) fn operator(&self, name: &str, args: &[&str]) -> Operator {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = Command::new(Program::Operator.locate().unwrap());
        command
            .args(["run", "--metrics-addr", &address.to_string()])
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("POD_NAMESPACE", NAMESPACE)
            .env("MONOK8S_LOG", "info,monok8s_operator=debug");
        let log = self.scratch.path().join(format!("{name}.log"));
        Operator { child: Child::spawn(name, command, &log).unwrap(), address }
    }

    pub(super) async fn upgrade(&self, name: &str) -> OSUpgrade {
        Api::<OSUpgrade>::all(self.client()).get(name).await.unwrap()
    }

    pub(super) async fn progresses(&self) -> Vec<OSUpgradeProgress> {
        Api::<OSUpgradeProgress>::all(self.client()).list(&ListParams::default()).await.unwrap().items
    }

    pub(super) async fn nodes(&self) -> Vec<Node> {
        Api::<Node>::all(self.client()).list(&ListParams::default()).await.unwrap().items
    }

    /// The nodes that are cordoned or marked as such by us.
    pub(super) async fn cordons(&self) -> Vec<String> {
        let nodes = self.nodes().await;
        let cordoned = nodes.iter().filter(|node| {
            node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
                || node.annotations().contains_key(ANNOTATION_CORDON)
        });
        cordoned.map(kube::ResourceExt::name_any).collect()
    }

    /// Waits until the last cordon is taken off.
    pub(super) async fn wait_for_no_cordon(&self, operator: &mut Operator) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            operator.child.expect_running().unwrap();
            let cordons = self.cordons().await;
            if cordons.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{cordons:?} are still cordoned; {}",
                operator.child.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until an upgrade's phase and the reason of its Ready condition are these.
    pub(super) async fn wait_for(
        &self,
        name: &str,
        phase: &str,
        reason: &str,
        operator: &mut Operator,
    ) -> OSUpgrade {
        let mut last = String::new();
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            operator.child.expect_running().unwrap();
            let upgrade = self.upgrade(name).await;
            let now = phase_and_reason(&upgrade);
            if now == (phase.to_owned(), reason.to_owned()) {
                return upgrade;
            }
            last = if now == (String::new(), String::new()) { last } else { format!("{now:?}") };
            if Instant::now() > deadline {
                let progresses: Vec<_> = self.progresses().await.iter().map(summary).collect();
                panic!(
                    "{name}: {last}, not {phase} {reason}: {:#?}\n{progresses:#?}\n{}",
                    upgrade.status,
                    operator.child.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the operator writes within `time`, its Lease aside.
    pub(super) async fn writes_within(&self, time: Duration) -> Vec<AuditedWrite> {
        let mark = self.control_plane.audit().mark().unwrap();
        tokio::time::sleep(time).await;
        let mut writes = self.control_plane.audit().writes_since(mark).unwrap();
        writes.retain(|write| write.user == OPERATOR_USER && write.resource != "leases");
        writes
    }
}

fn summary(progress: &OSUpgradeProgress) -> String {
    let order = progress.spec.order.as_ref();
    let conditions: Vec<_> =
        progress.conditions().iter().map(|c| format!("{}={}", c.type_, c.status)).collect();
    format!(
        "{} {} {:?} stage {:?} boot {:?} {conditions:?}",
        progress.name_any(),
        progress.spec.node_name,
        progress.phase(),
        order.and_then(|order| order.stage.as_ref().map(ToString::to_string)),
        order.and_then(|order| order.boot.as_ref().map(|boot| boot.version.to_string())),
    )
}

pub(super) fn phase_and_reason(upgrade: &OSUpgrade) -> (String, String) {
    let Some(status) = &upgrade.status else { return Default::default() };
    let phase = status.phase.as_ref().map(ToString::to_string).unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    (phase, ready.map(|ready| ready.reason.clone()).unwrap_or_default())
}

/// `True`, `False`, `Unknown`, or nothing.
pub(super) fn truth(upgrade: &OSUpgrade, condition: &str) -> String {
    let conditions = upgrade.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let kind = condition.to_owned().into();
    find_condition(conditions, &kind).map(|condition| condition.status.clone()).unwrap_or_default()
}

pub(super) struct Operator {
    pub(super) child: Child,
    pub(super) address: SocketAddr,
}

impl Operator {
    /// Status code and body of one of its pages; `None` if it does not answer.
    pub(super) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let response = reqwest::get(format!("http://{}{path}", self.address)).await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// Waits until `/readyz` says this.
    pub(super) async fn wait_ready(&mut self, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut last = None;
        while Instant::now() < deadline {
            self.child.expect_running().unwrap();
            last = self.get("/readyz").await;
            if last.as_ref().is_some_and(|(_, body)| body.contains(words)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("/readyz says {last:?}, not {words:?}; {}", self.child.log_tail());
    }

    pub(super) async fn stop(self) -> ExitStatus {
        self.child.terminate(Duration::from_secs(10)).await.unwrap()
    }

    pub(super) fn kill(self) {
        self.child.kill().unwrap();
    }
}

/// A catalog of these versions whose artifacts nobody fetches.
pub(super) fn catalog(stable: &str, versions: &[&str], blocked: &[&str]) -> String {
    let image = |version: &&str| {
        let checksum = Sha256Digest::of(version.as_bytes());
        format!(
            "- version: {version}\n  url: https://images.example.com/{version}.img.zst\n  checksum: {checksum}"
        )
    };
    let images: Vec<_> = versions.iter().map(image).collect();
    let images = images.join("\n");
    format!("stable: {stable}\nimages:\n{images}\nblocked: [{}]\n", blocked.join(", "))
}

/// An upgrade of every managed node, with an inline catalog; `more` is added to the spec.
pub(super) fn manifest(name: &str, version: &str, catalog: &str, more: &str) -> String {
    let inline: Vec<_> = catalog.lines().map(|line| format!("      {line}")).collect();
    spec(name, version, &format!("catalog:\n    inline: |\n{}", inline.join("\n")), more)
}

/// An upgrade of every managed node; `catalog` and `more` are fields of the spec.
pub(super) fn spec(name: &str, version: &str, catalog: &str, more: &str) -> String {
    format!(
        "apiVersion: monok8s.io/v1alpha1\nkind: OSUpgrade\nmetadata:\n  name: {name}\nspec:\n  version: {version}\n  \
         nodeSelector: {{}}\n  {}\n  {more}\n",
        catalog.trim_end()
    )
}
