//! The objects that a report is made of, read from a cluster or from a dump.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{
    ConditionType, OSNode, OSUpgrade, OSUpgradeProgress, UpgradePhase, UpgradeReason, condition_is_true,
    find_condition,
};
use crate::rollout::{Evaluation, Fleet, Health, NodeView, Target, UpgradeView, frozen_target};

/// The objects that a report is made of, and the time at which they were read.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// All Nodes.
    pub nodes: Vec<Node>,
    /// All upgrades.
    pub upgrades: Vec<OSUpgrade>,
    /// All progress objects.
    pub progresses: Vec<OSUpgradeProgress>,
    /// All reports of agents.
    pub os_nodes: Vec<OSNode>,
    /// When.
    pub now: Timestamp,
}

/// A dump that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// It is no JSON.
    #[error("the dump is no JSON")]
    NotJson(#[source] serde_json::Error),
    /// It is no `List`.
    #[error(
        "the dump is no List of objects: make it with `kubectl get osupgrades,osupgradeprogresses,osnodes,nodes -o json`"
    )]
    NotAList,
    /// One of its objects is not what it says.
    #[error("{kind} {name} in the dump cannot be read")]
    Unreadable {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Fields whose times lie in the past when they are written.
const PAST: [&str; 7] = [
    "creationTimestamp",
    "lastHeartbeatTime",
    "lastTransitionTime",
    "lastUpdatedAt",
    "runStartedAt",
    "since",
    "time",
];

impl Cluster {
    /// Reads what `kubectl get osupgrades,osupgradeprogresses,osnodes,nodes -o json` prints. The time is the newest
    /// one in it; other kinds are passed over.
    ///
    /// # Errors
    ///
    /// If it is no such list.
    pub fn from_dump(dump: &[u8]) -> Result<Self, DumpError> {
        let dump: Value = serde_json::from_slice(dump).map_err(DumpError::NotJson)?;
        let items = dump.get("items").and_then(Value::as_array).ok_or(DumpError::NotAList)?;
        let mut cluster = Self::default();
        for item in items {
            match item.get("kind").and_then(Value::as_str) {
                Some("Node") => cluster.nodes.push(read(item)?),
                Some("OSUpgrade") => cluster.upgrades.push(read(item)?),
                Some("OSUpgradeProgress") => cluster.progresses.push(read(item)?),
                Some("OSNode") => cluster.os_nodes.push(read(item)?),
                _ => {}
            }
        }
        cluster.now = items.iter().filter_map(newest).max().unwrap_or_default();
        Ok(cluster)
    }

    /// The fleet as the planner sees it, as far as the objects tell. What only the operator watches, pods and the
    /// objects of health checks, is taken from what it wrote.
    #[must_use]
    pub fn fleet(&self) -> Fleet {
        let reports: BTreeMap<&str, &OSNode> = self
            .os_nodes
            .iter()
            .filter_map(|report| Some((report.metadata.name.as_deref()?, report)))
            .collect();
        let view = |node: &Node| {
            let report = node.metadata.name.as_deref().and_then(|name| reports.get(name).copied());
            Arc::new(NodeView::new(node, report))
        };
        let drained = self
            .progresses
            .iter()
            // On an order that is over it tells of a drain of the past.
            .filter(|progress| !progress.phase().is_final())
            .filter(|progress| condition_is_true(progress.conditions(), &ConditionType::Drained));
        let drained = drained.filter_map(|progress| Some(progress.spec.order.as_ref()?.node_uid.clone()));
        let mut told = self.upgrades.iter().filter_map(|upgrade| upgrade.status.as_ref()?.operator.clone());
        let operator = told.next_back().unwrap_or_default();
        Fleet {
            operator_node: operator.node_name,
            max_unavailable: operator.max_unavailable,
            api_server: operator.api_server,
            nodes: self.nodes.iter().map(view).collect(),
            upgrades: self.upgrades.iter().map(upgrade_view).collect(),
            progresses: self.progresses.iter().cloned().map(Arc::new).collect(),
            // What had to leave these has left. Of the others nothing is known here.
            pods: drained.map(|uid| (uid, Vec::new())).collect(),
            volumes: Some(BTreeMap::new()),
            ..Fleet::default()
        }
    }
}

fn read<T: DeserializeOwned>(item: &Value) -> Result<T, DumpError> {
    T::deserialize(item).map_err(|source| DumpError::Unreadable {
        kind: item.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned(),
        name: item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        source,
    })
}

/// The newest time that was the present when it was written.
fn newest(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Array(items) => items.iter().filter_map(newest).max(),
        Value::Object(fields) => {
            let time = |(name, value): (&String, &Value)| {
                let is_past = PAST.contains(&name.as_str());
                value
                    .as_str()
                    .filter(|_| is_past)
                    .and_then(|text| text.parse().ok())
                    .or_else(|| newest(value))
            };
            fields.iter().filter_map(time).max()
        }
        _ => None,
    }
}

/// An upgrade as its operator last saw it.
fn upgrade_view(upgrade: &OSUpgrade) -> UpgradeView {
    let status = upgrade.status.clone().unwrap_or_default();
    let condition = |kind| find_condition(&status.conditions, &kind);
    let told = |kind, truth: &str| condition(kind).filter(|told| told.status == truth);
    let reason = condition(ConditionType::Ready).map(|ready| UpgradeReason::from(ready.reason.clone()));
    let message = status.message.clone().unwrap_or_default();
    let resolved = status.resolved_version.as_ref().and_then(|version| version.parse().ok());
    let evaluation = match (frozen_target(upgrade), &status.phase) {
        (Some(frozen), phase) if *phase != Some(UpgradePhase::Rejected) => {
            Evaluation::Accepted(Target { resolved: frozen.clone(), blocked: BTreeSet::new() })
        }
        (_, Some(UpgradePhase::Rejected)) => Evaluation::Rejected {
            reason: reason.unwrap_or(UpgradeReason::InvalidVersion),
            message,
            resolved,
        },
        _ => Evaluation::Pending {
            reason: reason.unwrap_or(UpgradeReason::ResolvingCatalog),
            message,
            resolved,
        },
    };
    let shut = told(ConditionType::HealthGate, "True").map(|gate| gate.message.clone());
    let health = match shut {
        Some(why) => Health::DoesNotHold(why),
        None => Health::Holds,
    };
    UpgradeView {
        evaluation,
        catalog_error: told(ConditionType::CatalogReachable, "False").map(|error| error.message.clone()),
        health: upgrade.spec.rollout().health_checks.iter().map(|_| health.clone()).collect(),
        upgrade: upgrade.clone(),
    }
}

#[cfg(feature = "client")]
mod read {
    use kube::api::{Api, ListParams};
    use kube::{Client, Resource};
    use serde::de::DeserializeOwned;

    use super::{Cluster, Timestamp};

    /// Objects in one answer.
    const PAGE: u32 = 500;

    impl Cluster {
        /// Reads a cluster, page by page.
        ///
        /// # Errors
        ///
        /// If the API server does not answer, or does not let us list one of the four kinds.
        pub async fn read(client: &Client) -> Result<Self, kube::Error> {
            Ok(Self {
                upgrades: all(client).await?,
                progresses: all(client).await?,
                os_nodes: all(client).await?,
                nodes: all(client).await?,
                now: Timestamp::now(),
            })
        }
    }

    async fn all<K>(client: &Client) -> Result<Vec<K>, kube::Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(client.clone());
        let mut objects = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = api.list(&page).await?;
            objects.extend(list.items);
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(objects),
            }
        }
    }
}
