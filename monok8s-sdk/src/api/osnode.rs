//! `OSNode`: what a node says about itself. The fleet's inventory, and what outlives every upgrade.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::open_enum::open_enum;
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

// The derive wants a spec type; `no_spec` makes its fields the object's own, and there are none.
/// One managed node's slots, loader and agent. Made by the operator, filled by the agent.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "monok8s.io",
    version = "v1alpha1",
    kind = "OSNode",
    plural = "osnodes",
    singular = "osnode",
    shortname = "osn",
    category = "monok8s",
    status = "OSNodeStatus",
    derive = "PartialEq",
    no_spec,
    doc = "OSNode is what a node says about its slots, its boot loader and its agent.",
    printcolumn(name = "Slot", type_ = "string", json_path = ".status.bootedSlot"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.bootedVersion"),
    printcolumn(name = "Other", type_ = "string", json_path = ".status.otherSlot.version"),
    printcolumn(name = "Loader", type_ = "string", json_path = ".status.loader.backend"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
pub struct OSNodeSpec {}

/// What a node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OSNodeStatus {
    /// The slot that `/` runs from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_slot: Option<Slot>,
    /// The version that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub booted_version: Option<String>,
    /// The kernel's boot ID.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// The architecture, as Kubernetes names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub arch: Option<String>,
    /// What the other slot holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_slot: Option<OtherSlotReport>,
    /// Both slots' partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 2),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["slot"])
    )]
    pub slots: Vec<SlotReport>,
    /// The boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<LoaderReport>,
    /// The host's dead-man switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardState>,
    /// The version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// Images that failed on this node after a commit, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub failed_images: Vec<FailedImage>,
    /// Why the node cannot be upgraded; empty when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub problem: Option<String>,
}

/// What the slot that is not booted holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OtherSlotReport {
    /// The slot.
    pub slot: Slot,
    /// The version in it, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// The sha256 of the image in it, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Sha256Digest>,
    /// Whether the node can be sent back to it.
    pub return_state: ReturnState,
}

open_enum! {
    /// Whether a node can go back to its other slot.
    pub enum ReturnState {
        /// It ran there before, and nothing was written since.
        KnownGood,
        /// It holds an image that was read back, and was never confirmed.
        Verified,
        /// It holds nothing that can be booted.
        Empty,
    }
}

/// One slot's partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotReport {
    /// The slot.
    pub slot: Slot,
    /// The partition's unique GUID, in lower case.
    #[serde(rename = "partUUID")]
    #[schemars(length(max = 64))]
    pub part_uuid: String,
    /// Its size in bytes.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
}

/// The boot loader, as its backend sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoaderReport {
    /// The backend's name.
    #[schemars(length(max = 64))]
    pub backend: String,
    /// Whether it was shown to count the tries of a trial.
    pub counts_tries: TryCounting,
}

open_enum! {
    /// Whether a loader was shown to count the tries of a trial.
    pub enum TryCounting {
        /// It was.
        Proven,
        /// It does not.
        Unsupported,
    }
}

open_enum! {
    /// The state of the host's dead-man switch.
    pub enum GuardState {
        /// Installed in the booted image; it has said nothing yet in this boot.
        Installed,
        /// The booted slot is on trial, and it counts down to sending it back.
        OnTrial,
        /// The booted slot is confirmed, and it has nothing left to do in this boot.
        StoodDown,
        /// It cannot read the boot loader's state.
        Blind,
        /// Not found.
        Missing,
    }
}

/// An image that failed on a node after a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedImage {
    /// The sha256 of the artifact.
    pub checksum: Sha256Digest,
    /// The version.
    pub version: OsVersion,
    /// Why.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// When.
    pub at: Time,
}
