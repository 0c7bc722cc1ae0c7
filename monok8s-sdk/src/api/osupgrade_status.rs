//! What the operator reports about an upgrade.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::IntOrPercent;
use super::open_enum::open_enum;
use crate::digest::Sha256Digest;
use crate::version::OsVersion;

open_enum! {
    /// Where an upgrade stands as a whole.
    pub enum UpgradePhase {
        /// Not evaluated yet, no node matches, or the catalog cannot be reached.
        Pending,
        /// Resolved, and every refusal rule passed; the rollout goes on or may go on.
        Accepted,
        /// This spec cannot be carried out with this catalog on any selected node.
        Rejected,
        /// Every selected node that this upgrade governs runs the version.
        Completed,
        /// The run halted: too many nodes failed.
        Failed,
        /// Every selected node is governed by another upgrade.
        Superseded,
        /// A plan was made, and nothing was changed.
        Planned,
    }
}

/// What the operator reports about an upgrade.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OSUpgradeStatus {
    /// The generation of the spec that this status is about; -1 before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub observed_generation: Option<i64>,
    /// Where the upgrade stands as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<UpgradePhase>,
    /// The last retryNonce that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub observed_retry_nonce: Option<String>,
    /// The number of the current run, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub run: Option<i64>,
    /// When the current run was accepted; of two upgrades that both allow downgrades the later one governs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_started_at: Option<Time>,
    /// When the current run is expected to end, if nothing holds it up that nobody can foresee; absent while nobody can say. It is written anew when the estimate has moved by more than five minutes and by more than a tenth of what is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_completion_at: Option<Time>,
    /// A digest of the parts of the spec and catalog that the current run was begun for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub run_digest: Option<String>,
    /// The version that spec.version stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub resolved_version: Option<String>,
    /// One sentence about the current state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// What was resolved, frozen for the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// The selected nodes, counted by where they stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// What of the operator's surroundings the rollout goes by; there while the upgrade is Reconciling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorReport>,
    /// Ready, Reconciling and Stalled as kstatus reads them, and a few more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
    /// The last five runs, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<RunSummary>,
}

/// What the operator was told of its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperatorReport {
    /// The node that it runs on, which goes last within its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// How many managed nodes may be unavailable at once over all upgrades.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrPercent>,
    /// The version of the API server, where no Node runs the control plane: no kubelet gets newer than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_server: Option<OsVersion>,
}

/// What a run was resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// The target.
    pub version: OsVersion,
    /// The sha256 of the catalog document that was read.
    pub catalog_digest: Sha256Digest,
    /// The images that nodes may take on their way, oldest first.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub images: Vec<ImageRef>,
}

/// One image, exact to the byte: where it is and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageRef {
    /// The version inside.
    pub version: OsVersion,
    /// The architecture, as Kubernetes names it. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub arch: Option<String>,
    /// Where the artifact is, the best address first.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 2048)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub urls: Vec<String>,
    /// The sha256 of the artifact as served.
    pub checksum: Sha256Digest,
    /// The expanded size in bytes. Absent: the slot's size is the bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub size: Option<i64>,
    /// The sha256 of the expanded image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_checksum: Option<Sha256Digest>,
    /// The block index of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRef>,
    /// The oldest version that a node may come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<OsVersion>,
}

/// A block index: what lets a node fetch only what it does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IndexRef {
    /// Where it is.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// The sha256 of the index itself. Whoever vouches for it vouches for the image.
    pub checksum: Sha256Digest,
}

/// The selected nodes, counted by where they stand. Each node is counted once, and in total.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// All selected nodes, whoever governs them.
    pub total: i32,
    /// On the version.
    pub up_to_date: i32,
    /// Not started.
    pub pending: i32,
    /// Downloading, writing or verifying.
    pub staging: i32,
    /// Staged, and waiting for their turn.
    pub staged: i32,
    /// Cordoned or being drained, before the commit.
    pub draining: i32,
    /// Committed to the reboot, or in their trial.
    pub rebooting: i32,
    /// Failed or rolled back.
    pub failed: i32,
    /// Cannot be upgraded: no slot that fits, no loader that counts, another architecture.
    pub excluded: i32,
    /// Refused by a rule, such as a downgrade or a missing path.
    pub refused: i32,
    /// Governed by another upgrade.
    pub superseded: i32,
    /// The names of up to ten failed nodes, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub failed_names: Vec<String>,
}

/// One earlier run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// Its number.
    #[schemars(range(min = 0))]
    pub run: i64,
    /// The version it was for.
    #[schemars(length(max = 64))]
    pub version: String,
    /// How it ended.
    pub phase: UpgradePhase,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// How many of its nodes were on the version in the end.
    pub up_to_date: i32,
    /// How many of its nodes had failed in the end.
    pub failed: i32,
}
