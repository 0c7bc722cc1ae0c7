//! What a node says about a trial: while it runs, and after it did not hold.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::open_enum::open_enum;
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// A trial boot that is being judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialStatus {
    /// Seconds until the node goes back, when this was written.
    #[schemars(range(min = 0))]
    pub remaining_seconds: i32,
    /// The last result of each check: of the version, the kubelet, the control plane and the Node, then of those that the upgrade configures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub checks: Vec<TrialCheckResult>,
}

/// The last result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialCheckResult {
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// How it stands.
    pub state: TrialCheckState,
    /// What was seen, where it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

open_enum! {
    /// How a check of a trial stands.
    pub enum TrialCheckState {
        /// It has been well for as long as it has to.
        Held,
        /// It is well, and has to stay so for a while.
        Holding,
        /// It is not well.
        Failing,
        /// It takes the API server to tell, and that does not answer.
        ApiUnreachable,
    }
}

/// What is known of a trial that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackEvidence {
    /// Who brought the node back.
    pub by: RolledBackBy,
    /// The version that was tried.
    pub version: OsVersion,
    /// The sha256 of its artifact. These bytes are not tried again on this node without a new retryNonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Sha256Digest>,
    /// The slot that was tried.
    pub slot: Slot,
    /// How many boots the loader was allowed.
    #[schemars(range(min = 0))]
    pub tries_armed: i32,
    /// How many of them the loader still had when the node came back.
    #[schemars(range(min = 0))]
    pub tries_left: i32,
    /// The boot in which the trial was armed.
    #[serde(default, rename = "armedBootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub armed_boot_id: Option<String>,
    /// The trial's own boot, if anyone in it could record it.
    #[serde(default, rename = "trialBootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub trial_boot_id: Option<String>,
    /// The boot in which the node was back.
    #[serde(rename = "returnedBootID")]
    #[schemars(length(max = 64))]
    pub returned_boot_id: String,
    /// When it was noticed.
    pub at: Time,
}

open_enum! {
    /// Who brought a node back from a trial.
    pub enum RolledBackBy {
        /// The boot loader: the trial's boot ended without anyone in it saying so, as after a panic.
        Loader,
        /// The hardware watchdog, which reset the machine; then the loader.
        Watchdog,
        /// The host's guard, at the deadline.
        Guard,
        /// The agent, which judged the trial.
        Agent,
        /// A person, with `ctl rollback`.
        Person,
    }
}
