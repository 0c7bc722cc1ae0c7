//! One fleet, from nothing to its end.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::Api;
use kube::api::{ListParams, PostParams};
use monok8s_sdk::api::{OSNode, OSUpgrade, OSUpgradeProgress};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::manifests::{Controller, to_yaml};
use serde::Serialize;
use serde_json::json;

use super::agents::{Agents, register};
use super::alone::server_alone;
use crate::controlplane::{ControlPlane, ControllerManager, Options};
use crate::process::Child;
use crate::scratch::Scratch;

pub(super) const FROM: &str = "v1.35.1";
pub(super) const TO: &str = "v1.35.4";
const NAMESPACE: &str = "mono-system";
const OPERATOR_USER: &str = "system:serviceaccount:mono-system:controller";
const NAME: &str = "bench";
/// A rollout that takes longer has stopped.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How long a fleet at rest is listened to.
const REST: Duration = Duration::from_secs(20);

/// What was measured of one fleet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    /// Nodes.
    pub(super) nodes: usize,
    /// Seconds from the apply until each node had its progress object.
    pub(super) objects_seconds: f64,
    /// Seconds that the API server takes for the same objects alone, with as many requests in flight.
    pub(super) server_alone_seconds: f64,
    /// Seconds from the apply until all nodes were up to date, with a tenth of them away at once.
    pub(super) rollout_seconds: f64,
    /// The operator's memory at its highest, in MiB.
    pub(super) peak_rss_mib: f64,
    /// Seconds of CPU that the operator took for the rollout.
    pub(super) cpu_seconds: f64,
    /// Passes of the planning loop, and how long one took on average, in milliseconds.
    pub(super) passes: u32,
    /// From observation to status.
    pub(super) pass_mean_ms: f64,
    /// The planner alone.
    pub(super) plan_mean_ms: f64,
    /// The planner's time of a processor, which the machine's other work does not add to.
    pub(super) plan_mean_cpu_ms: f64,
    /// Writes of the operator for each node.
    pub(super) operator_writes_per_node: f64,
    /// Writes of agents for each node, as the driver makes them.
    pub(super) agent_writes_per_node: f64,
    /// Writes that were refused since the object had changed.
    pub(super) conflicts: usize,
    /// Writes of the operator in 20 seconds at rest.
    pub(super) writes_at_rest: usize,
}

/// A fleet from its first node to its rest after an upgrade.
pub(super) async fn measure(operator: &Path, nodes: usize) -> Result<Figures> {
    let scratch = Scratch::new("bench-fleet")?;
    let control_plane =
        ControlPlane::start(Options { controller_manager: ControllerManager::Absent }).await?;
    let kubectl = control_plane.kubectl();
    control_plane.install_crds().await?;
    kubectl.succeed(&["create", "namespace", NAMESPACE]).await?;
    let manifests = to_yaml(&Controller::default().own_objects());
    kubectl.succeed_with_stdin(&["apply", "-f", "-"], &manifests).await?;
    let kubeconfig = control_plane.service_account_kubeconfig(NAMESPACE, "controller", None).await?;
    let client = control_plane.client();
    println!("{nodes} nodes register");
    register(&client, nodes).await?;

    let mut operator = Operator::start(operator, &kubeconfig, &scratch)?;
    let api: Api<OSNode> = Api::all(client.clone());
    operator.until("an OSNode for each node", async || Ok(count(&api).await? == nodes)).await?;
    let agents = Agents::new(client.clone());
    agents.report(nodes).await?;
    let obeying = agents.obey();

    println!("the upgrade begins");
    let (mark, began, cpu) = (control_plane.audit().mark()?, Instant::now(), operator.cpu_seconds()?);
    let passes_before = operator.passes().await?;
    let upgrades: Api<OSUpgrade> = Api::all(client.clone());
    upgrades.create(&PostParams::default(), &upgrade()?).await?;
    let progresses: Api<OSUpgradeProgress> = Api::all(client.clone());
    operator
        .until("a progress object for each node", async || Ok(count(&progresses).await? == nodes))
        .await?;
    let objects_seconds = began.elapsed().as_secs_f64();
    operator.until("the end", async || is_completed(&upgrades).await).await?;
    let rollout_seconds = began.elapsed().as_secs_f64();
    let cpu_seconds = operator.cpu_seconds()? - cpu;
    let passes = operator.passes().await?.since(&passes_before);
    drop(obeying);

    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = control_plane.audit().writes_since(mark)?;
    let rest = control_plane.audit().mark()?;
    tokio::time::sleep(REST).await;
    let at_rest = control_plane.audit().writes_since(rest)?;
    let of_operator = |write: &&crate::controlplane::AuditedWrite| {
        write.user == OPERATOR_USER && !matches!(write.resource.as_str(), "leases" | "events")
    };
    let made = |resources: &[&str]| {
        let of_agents = writes.iter().filter(|write| write.user != OPERATOR_USER && write.code < 300);
        of_agents.filter(|write| resources.contains(&write.resource.as_str())).count()
    };
    let per_node = |count: usize| share(count, nodes);
    let peak_rss_mib = operator.peak_rss_mib()?;
    drop(operator);
    Ok(Figures {
        nodes,
        objects_seconds,
        server_alone_seconds: server_alone(&client).await?,
        rollout_seconds,
        peak_rss_mib,
        cpu_seconds,
        passes: passes.count,
        pass_mean_ms: passes.mean_ms(passes.pass_seconds),
        plan_mean_ms: passes.mean_ms(passes.plan_seconds),
        plan_mean_cpu_ms: passes.mean_ms(passes.plan_cpu_seconds),
        operator_writes_per_node: per_node(writes.iter().filter(of_operator).count()),
        agent_writes_per_node: per_node(made(&["osupgradeprogresses/status", "osnodes/status"])),
        conflicts: writes.iter().filter(of_operator).filter(|write| write.code == 409).count(),
        writes_at_rest: at_rest.iter().filter(of_operator).count(),
    })
}

/// Counts of fleets are far below what an f64 can hold.
fn share(count: usize, nodes: usize) -> f64 {
    let as_float = |count: usize| u32::try_from(count).map_or(f64::NAN, f64::from);
    as_float(count) / as_float(nodes.max(1))
}

async fn count<K>(api: &Api<K>) -> Result<usize>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    // The server counts what it leaves out.
    let list = api.list_metadata(&ListParams::default().limit(1)).await?;
    let more = list.metadata.remaining_item_count.unwrap_or(0);
    Ok(list.items.len() + usize::try_from(more)?)
}

async fn is_completed(upgrades: &Api<OSUpgrade>) -> Result<bool> {
    let status = upgrades.get(NAME).await?.status.unwrap_or_default();
    Ok(status.nodes.is_some_and(|nodes| nodes.total > 0 && nodes.up_to_date == nodes.total))
}

fn upgrade() -> Result<OSUpgrade> {
    let image = |version: &str| {
        let checksum = Sha256Digest::of(version.as_bytes());
        json!({ "version": version, "url": format!("https://images.example.com/{version}.zst"), "checksum": checksum })
    };
    let catalog = json!({ "stable": TO, "images": [image(FROM), image(TO)] });
    Ok(serde_json::from_value(json!({
        "apiVersion": "monok8s.io/v1alpha1", "kind": "OSUpgrade", "metadata": { "name": NAME },
        "spec": {
            "version": TO, "nodeSelector": {}, "catalog": { "inline": catalog.to_string() },
            "rollout": { "maxUnavailable": "10%", "maxParallelStaging": "10%" },
        },
    }))?)
}

/// The operator under test.
struct Operator {
    child: Child,
    address: SocketAddr,
}

/// What its metrics say of its passes.
struct Passes {
    count: u32,
    pass_seconds: f64,
    plan_seconds: f64,
    plan_cpu_seconds: f64,
}

impl Passes {
    fn since(&self, before: &Self) -> Self {
        Self {
            count: self.count - before.count,
            pass_seconds: self.pass_seconds - before.pass_seconds,
            plan_seconds: self.plan_seconds - before.plan_seconds,
            plan_cpu_seconds: self.plan_cpu_seconds - before.plan_cpu_seconds,
        }
    }

    fn mean_ms(&self, seconds: f64) -> f64 {
        seconds * 1000.0 / f64::from(self.count.max(1))
    }
}

impl Operator {
    fn start(program: &Path, kubeconfig: &Path, scratch: &Scratch) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = std::process::Command::new(program);
        command
            .args(["run", "--no-lease", "--metrics-addr", &address.to_string()])
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAMESPACE", NAMESPACE)
            .env("MONOK8S_LOG", "warn");
        let child = Child::spawn("operator", command, &scratch.path().join("operator.log"))?;
        Ok(Self { child, address })
    }

    /// Waits until something holds.
    async fn until(&mut self, what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await? {
            self.child.expect_running()?;
            if Instant::now() > deadline {
                bail!("{what} did not come within {}s; {}", PATIENCE.as_secs(), self.child.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    fn peak_rss_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// User and system time, at 100 ticks a second as on every Linux.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(") ").context("an odd stat")?.1;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
    }

    async fn passes(&self) -> Result<Passes> {
        let text = reqwest::get(format!("http://{}/metrics", self.address)).await?.text().await?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name}"))
        };
        let value = |name: &str| -> Result<f64> { Ok(number(name)?.parse()?) };
        Ok(Passes {
            count: number("monok8s_operator_pass_duration_seconds_count")?.parse()?,
            pass_seconds: value("monok8s_operator_pass_duration_seconds_sum")?,
            plan_seconds: value("monok8s_operator_plan_duration_seconds_sum")?,
            plan_cpu_seconds: value("monok8s_operator_plan_cpu_seconds_total")?,
        })
    }
}
