//! `OSUpgrade`: what a person or a GitOps engine asks for.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::open_enum::closed_enum;
use super::rollout_spec::RolloutSpec;
use super::{NodeSelector, OSUpgradeStatus};

/// Moves the selected nodes to an OS version. The spec is an intent that stands: a matching node
/// that joins later is brought to the same version.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "monok8s.io",
    version = "v1alpha1",
    kind = "OSUpgrade",
    plural = "osupgrades",
    singular = "osupgrade",
    shortname = "osu",
    category = "monok8s",
    status = "OSUpgradeStatus",
    derive = "PartialEq",
    doc = "OSUpgrade moves the selected nodes to an OS version, one after the other, and keeps them there.",
    printcolumn(name = "Desired", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Resolved", type_ = "string", json_path = ".status.resolvedVersion"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total", priority = 1),
    printcolumn(name = "Up-To-Date", type_ = "integer", json_path = ".status.nodes.upToDate", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct OSUpgradeSpec {
    /// The version that the nodes shall run, such as v1.35.3, or a channel of the catalog, such as stable.
    #[schemars(
        length(min = 1, max = 64),
        regex(
            pattern = r"^(v(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+r[1-9][0-9]*)?|[a-z][a-z0-9]*(-[a-z0-9]+)*)$"
        )
    )]
    pub version: String,
    /// The nodes, among the managed ones: a label map as in a Pod, or matchLabels/matchExpressions; {} means all of them.
    pub node_selector: NodeSelector,
    /// Where the list of images is.
    pub catalog: CatalogSource,
    /// Pin resolves a channel once a run; Follow resolves it again whenever the catalog changes. Default Pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_policy: Option<ChannelPolicy>,
    /// While true no further node is started. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Apply carries the upgrade out; Plan resolves, selects and forecasts, and changes nothing. Default Apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Whether a node may go to an older version than it runs. Default Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downgrade_policy: Option<DowngradePolicy>,
    /// Whether it is right that no node matches. Default false: then the upgrade stays Pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_empty: Option<bool>,
    /// Any new, non-empty value retries every failed node of this upgrade and acknowledges a quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub retry_nonce: Option<String>,
    /// How the rollout proceeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
}

/// Where a catalog is. Exactly one of inline, url and configMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.inline) ? 1 : 0) + (has(self.url) ? 1 : 0) + (has(self.configMap) ? 1 : 0) == 1",
        "message": "exactly one of inline, url and configMap is needed",
    },
    {
        "rule": "!has(self.inlineSignature) || has(self.inline)",
        "message": "inlineSignature goes with inline",
    },
]))]
pub struct CatalogSource {
    /// The catalog document itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 262_144))]
    pub inline: Option<String>,
    /// The http or https URL of the catalog document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s]+$"))]
    pub url: Option<String>,
    /// The name of a ConfigMap in the controller's namespace that holds the document under catalog.yaml, or under its only key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub config_map: Option<String>,
    /// The detached minisign signature of the inline document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub inline_signature: Option<String>,
}

closed_enum! {
    /// When a channel is resolved.
    #[derive(Default)]
    pub enum ChannelPolicy {
        /// Once a run.
        #[default]
        Pin,
        /// Whenever the catalog changes.
        Follow,
    }
}

closed_enum! {
    /// Whether an upgrade changes anything.
    #[derive(Default)]
    pub enum Mode {
        /// Carry it out.
        #[default]
        Apply,
        /// Say what would be done.
        Plan,
    }
}

closed_enum! {
    /// Whether a node may go to an older version than it runs.
    #[derive(Default)]
    pub enum DowngradePolicy {
        /// No: such a node is refused.
        #[default]
        Refuse,
        /// Yes.
        Allow,
    }
}

impl OSUpgradeSpec {
    /// The retry nonce; absent and empty are the same.
    #[must_use]
    pub fn retry_nonce(&self) -> &str {
        self.retry_nonce.as_deref().unwrap_or_default()
    }

    /// The rollout settings, each with its default where the spec has none.
    #[must_use]
    pub fn rollout(&self) -> RolloutSpec {
        self.rollout.clone().unwrap_or_default()
    }
}
