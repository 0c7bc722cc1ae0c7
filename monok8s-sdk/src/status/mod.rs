//! What a person wants to know of an upgrade: how far it is, why it waits, what needs somebody. Made of the objects
//! alone, so that it can be made of a dump as well as of a cluster.
//!
//! ```
//! use monok8s_sdk::status::{Cluster, Report};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // kubectl get osupgrades,osupgradeprogresses,osnodes,nodes -o json
//! let dump = br#"{"apiVersion": "v1", "kind": "List", "items": []}"#;
//! let cluster = Cluster::from_dump(dump)?;
//! assert!(Report::of(&cluster, "my-upgrade").is_none());
//! # Ok(())
//! # }
//! ```

mod attention;
mod cluster;
mod preview;
mod text;

pub use attention::{Attention, Level};
pub use cluster::{Cluster, DumpError};
pub use preview::{Move, Preview, Stay};
pub use text::table;

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::api::{
    ConditionType, OSUpgrade, OSUpgradeProgress, ProgressPhase, UpgradePhase, UpgradeReason, WindowScope,
    condition_is_true, find_condition,
};
use crate::digest::Sha256Digest;
use crate::rollout::{Assessment, Inspection, NodeReport, NodeView, Standing, WindowState, Windows, inspect};
use crate::slot::Slot;
use crate::version::OsVersion;

/// An upgrade and its nodes, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When the cluster looked so.
    pub now: Timestamp,
    /// The upgrade.
    pub upgrade: Summary,
    /// Its nodes, the worst first.
    pub nodes: Vec<NodeLine>,
    /// What needs a person, the worst first.
    pub attention: Vec<Attention>,
}

/// The upgrade as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its name.
    pub name: String,
    /// The version or channel that its spec asks for.
    pub desired: String,
    /// The version that this stands for, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it was resolved from: an address, a ConfigMap, or the spec itself.
    pub catalog: String,
    /// The sha256 of the catalog that the run is frozen to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog_digest: Option<Sha256Digest>,
    /// Where it stands, by its own status.
    pub phase: UpgradePhase,
    /// What it does next.
    pub course: Course,
    /// The one word of its status for why.
    pub reason: String,
    /// The sentence of its status.
    pub message: String,
    /// The number of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// When the run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it is expected to end, if nothing holds it up that nobody can foresee.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
    /// Whether nodes may reboot now; absent without windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// The next time that the controller has something to look at, in this upgrade or another one: a window, a
    /// deadline, the end of a soak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_event: Option<Timestamp>,
    /// How many nodes run the version.
    pub up_to_date: usize,
    /// How many it selects.
    pub total: usize,
}

/// What an upgrade does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Course {
    /// Nothing: it is where it should be.
    Done,
    /// Nodes are being upgraded.
    Progressing,
    /// It goes on when something else has happened.
    Waiting,
    /// Nothing until a person acts.
    Stalled,
}

/// The window for reboots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Window {
    /// It is open until then.
    OpenUntil(Timestamp),
    /// It is open, and nothing closes it.
    Open,
    /// It opens then.
    OpensAt(Timestamp),
    /// It never opens within a year.
    NeverOpens,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLine {
    /// Its name.
    pub node: String,
    /// The name of its progress object, if it has one in the run under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// The slot it runs from, as far as its agent said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// What it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<OsVersion>,
    /// What its state comes to.
    pub assessment: Assessment,
    /// Its own word for how far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ProgressPhase>,
    /// How much of the artifact was received, in percent, while it is downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Since when it is that far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it is expected to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
    /// One word for why it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<UpgradeReason>,
    /// One sentence.
    pub message: String,
}

impl Report {
    /// The report about the upgrade of that name; `None` if there is none.
    #[must_use]
    pub fn of(cluster: &Cluster, name: &str) -> Option<Self> {
        let upgrade =
            cluster.upgrades.iter().find(|upgrade| upgrade.metadata.name.as_deref() == Some(name))?;
        let fleet = cluster.fleet();
        let uid = upgrade.metadata.uid.as_deref().unwrap_or_default();
        let inspection = inspect(&fleet, cluster.now).remove(uid)?;
        let views: BTreeMap<&str, &NodeView> =
            fleet.nodes.iter().map(|node| (node.name.as_str(), node.as_ref())).collect();
        let progresses: BTreeMap<&str, &OSUpgradeProgress> = cluster
            .progresses
            .iter()
            .filter_map(|progress| Some((progress.metadata.name.as_deref()?, progress)))
            .collect();
        let line = |standing: &Standing| {
            let progress = standing.progress.as_deref().and_then(|name| progresses.get(name).copied());
            NodeLine::new(standing, views.get(standing.node.as_str()).copied(), progress)
        };
        let mut nodes: Vec<_> = inspection.nodes.iter().map(line).collect();
        nodes.sort_by(|a, b| (a.assessment, &a.node).cmp(&(b.assessment, &b.node)));
        let upgrade_line = Summary::new(upgrade, &inspection, cluster.now);
        let attention = attention::of(upgrade, &upgrade_line, &nodes, cluster);
        Some(Self { now: cluster.now, upgrade: upgrade_line, nodes, attention })
    }
}

impl Summary {
    fn new(upgrade: &OSUpgrade, inspection: &Inspection, now: Timestamp) -> Self {
        let status = upgrade.status.clone().unwrap_or_default();
        let ready = find_condition(&status.conditions, &ConditionType::Ready);
        let catalog = &upgrade.spec.catalog;
        let source = match (&catalog.url, &catalog.config_map) {
            (Some(url), _) => url.clone(),
            (None, Some(name)) => format!("ConfigMap {name}"),
            (None, None) => "its spec".to_owned(),
        };
        let count = |assessment| inspection.nodes.iter().filter(|node| node.assessment == assessment).count();
        let total = inspection.nodes.len();
        // An end that some do not reach is none.
        let unfinished = inspection
            .nodes
            .iter()
            .filter(|node| !matches!(node.assessment, Assessment::Completed | Assessment::Excluded));
        let ends = unfinished.map(|node| node.ends).collect::<Option<Vec<_>>>();
        let ends = ends.and_then(|ends| ends.into_iter().max());
        Self {
            name: upgrade.metadata.name.clone().unwrap_or_default(),
            desired: upgrade.spec.version.clone(),
            version: status.resolved_version.clone(),
            catalog: source,
            catalog_digest: status.resolved.as_ref().map(|resolved| resolved.catalog_digest),
            phase: status.phase.clone().unwrap_or(UpgradePhase::Pending),
            course: course(upgrade, inspection),
            reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
            message: status.message.clone().unwrap_or_else(|| "no operator has looked at it yet".to_owned()),
            run: status.run,
            started_at: status.run_started_at.as_ref().map(|time| time.0),
            ends,
            window: window(upgrade, now),
            next_event: inspection.next_event,
            up_to_date: count(Assessment::Completed),
            total,
        }
    }
}

fn course(upgrade: &OSUpgrade, inspection: &Inspection) -> Course {
    let Some(status) = &upgrade.status else { return Course::Waiting };
    if status.observed_generation < upgrade.metadata.generation {
        return Course::Waiting;
    }
    let says = |kind| condition_is_true(&status.conditions, &kind);
    let moves = inspection.nodes.iter().any(|node| node.assessment == Assessment::Progressing);
    if says(ConditionType::Stalled) {
        Course::Stalled
    } else if says(ConditionType::Reconciling) {
        if moves { Course::Progressing } else { Course::Waiting }
    } else if says(ConditionType::Ready) {
        Course::Done
    } else {
        Course::Waiting
    }
}

fn window(upgrade: &OSUpgrade, now: Timestamp) -> Option<Window> {
    let rollout = upgrade.spec.rollout();
    let windows = Windows::new(&rollout.windows).ok().filter(|_| !rollout.windows.is_empty())?;
    Some(match windows.state(WindowScope::Reboot, now) {
        WindowState::Open { closes: Some(closes) } => Window::OpenUntil(closes),
        WindowState::Open { closes: None } => Window::Open,
        WindowState::Closed { opens: Some(opens) } => Window::OpensAt(opens),
        WindowState::Closed { opens: None } => Window::NeverOpens,
    })
}

/// How much of the artifact a node has received, in percent, while it downloads.
fn received(progress: &OSUpgradeProgress) -> Option<u8> {
    let bytes =
        progress.status.as_ref()?.progress.filter(|_| progress.phase() == ProgressPhase::Downloading)?;
    let percent =
        i128::from(bytes.bytes_done) * 100 / i128::from(Some(bytes.bytes_total).filter(|total| *total > 0)?);
    u8::try_from(percent.clamp(0, 100)).ok()
}

impl NodeLine {
    fn new(standing: &Standing, view: Option<&NodeView>, progress: Option<&OSUpgradeProgress>) -> Self {
        let slot = view.and_then(|view| match &view.report {
            NodeReport::Present(report) => report.booted_slot,
            NodeReport::Missing | NodeReport::Foreign => None,
        });
        let status = progress.and_then(|progress| progress.status.as_ref());
        let since = status.and_then(|status| status.timeline.last()).map(|entry| entry.since.0);
        Self {
            node: standing.node.clone(),
            progress: standing.progress.clone(),
            slot,
            version: standing.version.clone(),
            assessment: standing.assessment,
            phase: progress.map(OSUpgradeProgress::phase),
            percent: progress.and_then(received),
            since: since.or_else(|| progress?.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            ends: standing.ends,
            reason: standing.reason.clone(),
            message: standing.message.clone(),
        }
    }
}
