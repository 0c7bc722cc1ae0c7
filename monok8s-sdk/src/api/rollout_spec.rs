//! How a rollout proceeds. Nothing here has a server-side default; the accessors give the defaults.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::open_enum::closed_enum;
use super::{IntOrPercent, NodeSelector, Rounding};

/// How a rollout proceeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.rebootTimeoutSeconds) ? self.rebootTimeoutSeconds : 1800) >= (has(self.trial) && has(self.trial.timeoutSeconds) ? self.trial.timeoutSeconds : 600) + 600",
    "message": "rebootTimeoutSeconds must exceed trial.timeoutSeconds by two boots, 600 seconds",
}]))]
pub struct RolloutSpec {
    /// How many selected nodes may be unavailable at once, as a number or a percentage; a node that is NotReady, cordoned by anyone or mid-reboot counts. At least 1. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrPercent>,
    /// How many nodes may download and write at once, as a number or a percentage. At least 1. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel_staging: Option<IntOrPercent>,
    /// Worker nodes that go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// A label key whose values form groups that take turns, such as topology.kubernetes.io/zone. Absent: no groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub group_by: Option<String>,
    /// Seconds between the completion of a node and the reboot of the next one. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800))]
    pub soak_seconds: Option<i32>,
    /// How many nodes may roll back or not come back, as a number or a percentage, before the run halts and the version is quarantined. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<IntOrPercent>,
    /// How many nodes may fail before any reboot, as a number or a percentage rounded up, before the run halts. Default 10%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failed_nodes: Option<IntOrPercent>,
    /// Seconds that a node may take from its stage grant to Staged. Default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub staging_timeout_seconds: Option<i32>,
    /// Seconds that a node may take from its commit to Completed. Default 1800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub reboot_timeout_seconds: Option<i32>,
    /// When a trial boot counts as good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialSpec>,
    /// When nodes may stage or reboot. Empty: always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub windows: Vec<Window>,
    /// How nodes are emptied before their reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainSpec>,
    /// What must hold in the cluster before each reboot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub health_checks: Vec<HealthCheck>,
}

impl RolloutSpec {
    /// The unavailability budget, of `selected` nodes. Never below 1.
    #[must_use]
    pub fn max_unavailable(&self, selected: usize) -> usize {
        self.max_unavailable.as_ref().map_or(1, |value| value.of(selected, Rounding::DownAtLeastOne))
    }

    /// How many of `selected` nodes may stage at once. Never below 1.
    #[must_use]
    pub fn max_parallel_staging(&self, selected: usize) -> usize {
        self.max_parallel_staging.as_ref().map_or(5, |value| value.of(selected, Rounding::DownAtLeastOne))
    }

    /// How many of `selected` nodes may fail after a commit; reaching it halts and quarantines. Never below 1.
    #[must_use]
    pub fn failure_threshold(&self, selected: usize) -> usize {
        self.failure_threshold.as_ref().map_or(1, |value| value.of(selected, Rounding::Up)).max(1)
    }

    /// How many of `selected` nodes may fail before any reboot; exceeding it halts.
    #[must_use]
    pub fn max_failed_nodes(&self, selected: usize) -> usize {
        let default = IntOrPercent::Percent("10%".to_owned());
        self.max_failed_nodes.as_ref().unwrap_or(&default).of(selected, Rounding::Up)
    }

    /// Seconds that staging may take.
    #[must_use]
    pub fn staging_timeout_seconds(&self) -> i32 {
        self.staging_timeout_seconds.unwrap_or(3600)
    }

    /// Seconds from commit to completion.
    #[must_use]
    pub fn reboot_timeout_seconds(&self) -> i32 {
        self.reboot_timeout_seconds.unwrap_or(1800)
    }

    /// The trial settings.
    #[must_use]
    pub fn trial(&self) -> TrialSpec {
        self.trial.clone().unwrap_or_default()
    }
}

/// Worker nodes that go first within a minor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Which nodes, among the selected ones.
    pub node_selector: NodeSelector,
    /// Seconds between the last canary's completion and the next node's reboot. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800))]
    pub soak_seconds: Option<i32>,
}

/// When a trial boot counts as good, and what happens when nobody can tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.checks) || self.checks.all(c, (has(c.holdSeconds) ? c.holdSeconds : 10) < (has(self.timeoutSeconds) ? self.timeoutSeconds : 600))",
    "message": "a check must be able to hold for its holdSeconds within timeoutSeconds (600 unless it is set), or no trial is ever confirmed",
}]))]
pub struct TrialSpec {
    /// Seconds that a trial boot has to be confirmed before the node goes back. Default 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 86_400))]
    pub timeout_seconds: Option<i32>,
    /// What to do at the deadline when only the API server was missing. Default Revert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_unavailable: Option<ApiUnavailable>,
    /// Further checks, each of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub checks: Vec<TrialCheck>,
}

impl TrialSpec {
    /// Seconds that a trial boot has to be confirmed.
    #[must_use]
    pub fn timeout_seconds(&self) -> i32 {
        self.timeout_seconds.unwrap_or(600)
    }

    /// How long a trial boot has to be confirmed.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds().try_into().unwrap_or_default())
    }
}

closed_enum! {
    /// What a node does at the trial's deadline when everything it can see is well but the API server stays away.
    #[derive(Default)]
    pub enum ApiUnavailable {
        /// Go back to the old slot; nothing is quarantined.
        #[default]
        Revert,
        /// Keep the new slot; if its image states no version, go back, because only the API server could tell it.
        ConfirmLocally,
    }
}

/// A check that must hold on the node during its trial. Exactly one of http, exec and pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.http) ? 1 : 0) + (has(self.exec) ? 1 : 0) + (has(self.pods) ? 1 : 0) == 1",
    "message": "exactly one of http, exec and pods is needed",
}]))]
pub struct TrialCheck {
    /// What the status calls it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Seconds that it must hold without a break. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub hold_seconds: Option<i32>,
    /// An HTTP GET that must answer with 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A command on the host that must exit with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecCheck>,
    /// Pods that must be Running and ready on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodsCheck>,
}

impl TrialCheck {
    /// How long it must hold without a break.
    #[must_use]
    pub fn hold(&self) -> Duration {
        Duration::from_secs(self.hold_seconds.unwrap_or(10).try_into().unwrap_or_default())
    }
}

/// An HTTP check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// The URL, seen from the node.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s]+$"))]
    pub url: String,
}

/// A command check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecCheck {
    /// Program and arguments; no shell.
    #[schemars(length(min = 1, max = 32), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
}

/// A check of the pods on the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodsCheck {
    /// The namespace of the pods.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Which pods; at least one must be on the node.
    pub label_selector: NodeSelector,
}

/// A time in which something may, or may not, be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Allow or Deny. A Deny window wins over an Allow window.
    pub kind: WindowKind,
    /// When it opens: a cron expression of five fields, such as 0 2 * * sat.
    #[schemars(length(min = 9, max = 128))]
    pub schedule: String,
    /// How long it stays open.
    #[schemars(range(min = 1, max = 10_080))]
    pub duration_minutes: i32,
    /// The IANA time zone of the schedule. Default UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// What it applies to. Empty: Reboot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub applies_to: Vec<WindowScope>,
}

closed_enum! {
    /// Whether a window opens or closes.
    pub enum WindowKind {
        /// Work is done only inside such windows.
        Allow,
        /// No work is started inside such windows.
        Deny,
    }
}

closed_enum! {
    /// What a window is for.
    pub enum WindowScope {
        /// Downloading and writing.
        Stage,
        /// Cordon, drain and reboot.
        Reboot,
    }
}

/// How a node is emptied before its reboot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainSpec {
    /// Auto drains unless no other node could take the pods. Default Auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<DrainPolicy>,
    /// Seconds that a drain may take. Default 1800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: Option<i32>,
    /// What to do when that time is over. Default Abort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<DrainOnTimeout>,
    /// What pods without a controller mean. Default Block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmanaged_pods: Option<UnmanagedPods>,
    /// Whether pods with emptyDir volumes are evicted. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_empty_dir_data: Option<bool>,
    /// Seconds that each pod gets to end. Absent: each pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub grace_period_seconds: Option<i32>,
}

closed_enum! {
    /// Whether nodes are drained.
    #[derive(Default)]
    pub enum DrainPolicy {
        /// Always, unless no other node could take the pods.
        #[default]
        Auto,
        /// Always.
        Always,
        /// Never.
        Never,
    }
}

closed_enum! {
    /// What happens when a drain takes too long.
    #[derive(Default)]
    pub enum DrainOnTimeout {
        /// Uncordon, and the node has failed.
        #[default]
        Abort,
        /// Delete what is left, recorded as forced.
        Force,
    }
}

closed_enum! {
    /// What pods without a controller mean for a drain.
    #[derive(Default)]
    pub enum UnmanagedPods {
        /// They block it.
        #[default]
        Block,
        /// They are deleted.
        Delete,
    }
}

/// Something in the cluster that must hold before each reboot. Exactly one of name and labelSelector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.name) != has(self.labelSelector)",
    "message": "exactly one of name and labelSelector is needed",
}]))]
pub struct HealthCheck {
    /// API version of the objects, such as apps/v1.
    #[schemars(length(min = 1, max = 317))]
    pub api_version: String,
    /// Kind of the objects.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the one object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Labels of the objects, each of which must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<NodeSelector>,
    /// Namespace, for namespaced kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// A CEL expression over object and now that must be true.
    #[schemars(length(min = 1, max = 4096))]
    pub expression: String,
    /// Seconds that evaluation may take before it counts as not holding. Default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: Option<i32>,
}
