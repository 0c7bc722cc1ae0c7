//! What an upgrade would do: which nodes go which way, in which order, until when, and what would hold up their
//! drains. Nothing is changed to find out.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::Cluster;
use super::text::{line, moment, or_dash, table};
use crate::api::{OSUpgrade, UpgradePhase, UpgradeReason};
use crate::rollout::{
    Assessment, Evaluation, PodView, Standing, Target, UpgradeView, drain_obstacles, inspect,
};
use crate::version::OsVersion;

/// A UID that no API server gives.
const UNAPPLIED: &str = "not-applied";

/// What an upgrade would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// When the cluster looked so.
    pub now: Timestamp,
    /// The upgrade's name.
    pub upgrade: String,
    /// Why the operator would refuse it as a whole, if it would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// The version that it would lead to.
    pub version: OsVersion,
    /// When it should end, if it began now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
    /// The nodes that it would move, in their order.
    pub moves: Vec<Move>,
    /// The nodes that it selects and would not move, and why.
    pub stays: Vec<Stay>,
    /// What else a person should know before.
    pub warnings: Vec<String>,
}

/// A node that would be moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// Its name.
    pub node: String,
    /// What it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<OsVersion>,
    /// The versions that it would boot, the last one being the target.
    pub hops: Vec<OsVersion>,
    /// When it should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
    /// What would hold up its drain, as things are.
    pub drain: Vec<String>,
}

/// A node that would not be moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stay {
    /// Its name.
    pub node: String,
    /// One word for why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<UpgradeReason>,
    /// One sentence.
    pub message: String,
}

impl Preview {
    /// What `upgrade` would do if it led to `target`. `pods` are those of nodes, by the node's name.
    #[must_use]
    pub fn of(
        cluster: &Cluster,
        upgrade: &OSUpgrade,
        target: &Target,
        pods: &BTreeMap<String, Vec<PodView>>,
    ) -> Self {
        let mut wanted = upgrade.clone();
        wanted.metadata.uid = Some(UNAPPLIED.to_owned());
        wanted.status = None;
        // Only one that is carried out governs a node.
        wanted.spec.mode = None;
        let mut fleet = cluster.fleet();
        fleet.upgrades.retain(|known| known.upgrade.metadata.name != upgrade.metadata.name);
        fleet.upgrades.push(UpgradeView {
            upgrade: wanted,
            evaluation: Evaluation::Accepted(target.clone()),
            catalog_error: None,
            health: Vec::new(),
        });
        let inspection = inspect(&fleet, cluster.now).remove(UNAPPLIED);
        let outlook = inspection.as_ref().map(|inspection| &inspection.outlook);
        let rejected = outlook.filter(|outlook| outlook.phase == UpgradePhase::Rejected);
        let rejected = rejected.map(|outlook| outlook.message.clone());
        let standings = inspection.map(|inspection| inspection.nodes);
        let (moving, staying): (Vec<_>, Vec<_>) =
            standings.unwrap_or_default().into_iter().partition(|standing| !standing.hops.is_empty());
        let spec = upgrade.spec.rollout().drain.unwrap_or_default();
        let mut moves: Vec<_> = moving
            .into_iter()
            .map(|standing| {
                let pods = pods.get(&standing.node).map(Vec::as_slice).unwrap_or_default();
                let drain = drain_obstacles(pods, &spec);
                let Standing { node, version: from, hops, ends, .. } = standing;
                Move { node, from, hops, ends, drain }
            })
            .collect();
        moves.sort_by(|a, b| (a.ends.is_none(), a.ends, &a.node).cmp(&(b.ends.is_none(), b.ends, &b.node)));
        let stays = staying.into_iter().map(Stay::new).collect();
        let ends = moves.iter().map(|node| node.ends).max().flatten();
        let version = target.resolved.version.clone();
        let upgrade = upgrade.metadata.name.clone().unwrap_or_default();
        Self { now: cluster.now, upgrade, rejected, version, ends, moves, stays, warnings: Vec::new() }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(why) = &self.rejected {
            line(&mut text, &format!("{} would be rejected: {why}.", self.upgrade));
            return text;
        }
        let count = self.moves.len();
        let ends = self.ends.map(|ends| format!(", done {}", moment(ends, self.now))).unwrap_or_default();
        line(&mut text, &format!("{} would move {count} nodes to {}{ends}.", self.upgrade, self.version));
        for warning in &self.warnings {
            line(&mut text, &format!("Warning: {warning}"));
        }
        let heading = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        if !self.moves.is_empty() {
            let mut rows = vec![heading(&["NODE", "FROM", "BY WAY OF", "DONE", "DRAIN"])];
            rows.extend(self.moves.iter().map(|node| node.row(self.now)));
            text.push('\n');
            text.push_str(&table(&rows));
        }
        if !self.stays.is_empty() {
            let mut rows = vec![heading(&["NODE THAT STAYS", "WHY"])];
            rows.extend(self.stays.iter().map(|node| vec![node.node.clone(), node.message.clone()]));
            text.push('\n');
            text.push_str(&table(&rows));
        }
        text
    }
}

impl Move {
    fn row(&self, now: Timestamp) -> Vec<String> {
        let hops: Vec<_> = self.hops.iter().map(ToString::to_string).collect();
        vec![
            self.node.clone(),
            or_dash(self.from.as_ref().map(ToString::to_string).unwrap_or_default()),
            hops.join(", "),
            or_dash(self.ends.map(|ends| moment(ends, now)).unwrap_or_default()),
            if self.drain.is_empty() { "nothing in its way".to_owned() } else { self.drain.join("; ") },
        ]
    }
}

impl Stay {
    fn new(standing: Standing) -> Self {
        let message = match standing.assessment {
            Assessment::Completed => format!("{} already", standing.message),
            _ => standing.message,
        };
        Self { node: standing.node, reason: standing.reason, message }
    }
}
