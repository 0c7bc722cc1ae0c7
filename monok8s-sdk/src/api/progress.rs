//! `OSUpgradeProgress`: one node's part of one run.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::open_enum::open_enum;
use super::{ImageRef, RollbackEvidence, TrialSpec, TrialStatus};
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// What one node shall do, and how far it is. Made by the operator, one per upgrade, run and node;
/// or by hand, without an order, where no operator runs.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "monok8s.io",
    version = "v1alpha1",
    kind = "OSUpgradeProgress",
    plural = "osupgradeprogresses",
    singular = "osupgradeprogress",
    shortname = "osup",
    category = "monok8s",
    status = "OSUpgradeProgressStatus",
    derive = "PartialEq",
    doc = "OSUpgradeProgress is one node's part of an upgrade: the spec is the order, the status the node's own report.",
    selectable = ".spec.nodeName",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.sourceRef.name"),
    printcolumn(name = "Current", type_ = "string", json_path = ".status.currentVersion"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.targetVersion"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.failureReason", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "self.sourceRef == oldSelf.sourceRef", "message": "sourceRef cannot change", "fieldPath": ".sourceRef" },
    { "rule": "self.nodeName == oldSelf.nodeName", "message": "nodeName cannot change", "fieldPath": ".nodeName" },
    { "rule": "has(self.order) == has(oldSelf.order)", "message": "an order can be neither added nor removed" },
]))]
pub struct OSUpgradeProgressSpec {
    /// The OSUpgrade this belongs to.
    pub source_ref: SourceRef,
    /// The node that does it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Any new, non-empty value retries a failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub retry_nonce: Option<String>,
    /// Any new, non-empty value boots the other slot on purpose, if that holds a version that is known to be good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub rollback_nonce: Option<String>,
    /// What the operator orders and grants. Absent: the agent resolves the upgrade itself and paces itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderSpec>,
}

/// A reference to an `OSUpgrade`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What the operator orders, and how far it lets the node go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "self.nodeUID == oldSelf.nodeUID", "message": "nodeUID cannot change" },
    { "rule": "self.run == oldSelf.run", "message": "run cannot change" },
    { "rule": "self.hops == oldSelf.hops", "message": "hops cannot change" },
    {
        "rule": "!has(self.stage) || self.hops.exists(hop, hop.version == self.stage)",
        "message": "stage must be the version of a hop",
    },
]))]
pub struct OrderSpec {
    /// The UID of the Node it was made for: a new node under an old name obeys no old order.
    #[serde(rename = "nodeUID")]
    #[schemars(length(min = 1, max = 64))]
    pub node_uid: String,
    /// The run of the upgrade.
    #[schemars(range(min = 1))]
    pub run: i64,
    /// The exact images to go through, oldest first; the last one is the target.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub hops: Vec<ImageRef>,
    /// The version that may be downloaded and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<OsVersion>,
    /// When leave to stage was given, by the operator's clock: the time of the first attempt runs from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_granted_at: Option<Time>,
    /// The reboot that may be committed to, once. It is still there when that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootGrant>,
    /// When the trial boot counts as good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialSpec>,
}

/// Leave to commit to one reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootGrant {
    /// Into which version: a hop, or for a rollback the version in the other slot.
    pub version: OsVersion,
    /// Until when the commit must be made.
    pub not_after: Time,
}

open_enum! {
    /// How far a node is: its own word; of a node that says nothing, the operator says the first one.
    pub enum ProgressPhase {
        /// Not begun, or waiting for leave to stage.
        Pending,
        /// The artifact is being downloaded and written to the inactive slot, in one stream.
        Downloading,
        /// The written slot is being read back from the medium.
        Verifying,
        /// The slot was read back and holds the ordered image; waiting for leave to reboot.
        Staged,
        /// The operator has cordoned the node and is emptying it.
        Draining,
        /// The node has committed to the reboot, and finishes from here on whatever happens.
        Rebooting,
        /// The trial boot has come up and is being judged.
        Confirming,
        /// The node runs the target, and the loader was told to keep it.
        Completed,
        /// The attempt failed before any reboot; waits for a new retryNonce.
        Failed,
        /// The trial boot was tried and the node came back to the old slot; waits for a new retryNonce.
        RolledBack,
        /// Another upgrade governs the node, or the upgrade wants something else.
        Superseded,
    }
}

open_enum! {
    /// Why an attempt failed or a trial was reverted. One definition each; the user guide uses the same words.
    pub enum FailureReason {
        /// The server answered that the artifact is not there (404 or 410).
        ArtifactNotFound,
        /// The server refused the artifact (401 or 403).
        ArtifactForbidden,
        /// The server's answer cannot be used: another status, a wrong length, a wrong range, a compressed transfer.
        UnusableAnswer,
        /// The artifact changed on the server while it was downloaded.
        ArtifactChanged,
        /// The connection broke off, at every attempt.
        DownloadInterrupted,
        /// The download did not end in the time allowed.
        DownloadTimedOut,
        /// The order names no address that can be used.
        NoArtifactUrl,
        /// The artifact's file or stream cannot be read.
        ArtifactUnreadable,
        /// The artifact's sha256 is not the ordered one.
        ChecksumMismatch,
        /// The artifact ends in the middle of its compressed data.
        TruncatedArtifact,
        /// The artifact is not zstd-compressed.
        NotZstd,
        /// The artifact's compressed data is damaged, or followed by something else.
        CorruptArtifact,
        /// The artifact needs more memory to decode than is granted.
        WindowTooLarge,
        /// The artifact is longer than any image for the slot can be.
        ArtifactTooLong,
        /// The expanded image is larger than the slot.
        ImageTooLarge,
        /// The artifact expands to more than its declared `size`.
        ExpandsBeyondSize,
        /// The artifact expands to less than its declared `size`.
        SizeMismatch,
        /// The expanded image's sha256 is not `imageChecksum`.
        ImageChecksumMismatch,
        /// The slot to be written is the booted one.
        SlotIsBooted,
        /// The slot is mounted, swap, held by another device, or open elsewhere.
        SlotInUse,
        /// The slot's device is missing, or is not the one that the partition table names.
        UnexpectedDevice,
        /// The host's files that tell what a slot is used for cannot be read.
        HostUnreadable,
        /// The device, or the file system that the slot's file is on, is full.
        NoSpaceLeft,
        /// The slot's device is gone, or smaller than it was.
        DeviceVanished,
        /// The slot's device cannot be read.
        DiskReadFailed,
        /// The slot's device cannot be written.
        DiskWriteFailed,
        /// What was read back from the medium is not what was written.
        ReadBackMismatch,
        /// The image holds another version than the ordered one.
        WrongVersion,
        /// The image's os-release is missing or cannot be read.
        InvalidOsRelease,
        /// The expanded image is no root file system that can be read.
        UnreadableImage,
        /// The image holds no guard that could bring a bad trial back.
        GuardMissing,
        /// The work was stopped because something else is wanted; not a failure.
        Cancelled,
        /// The boot loader does not count tries, so a trial could not fall back.
        TrialUnsupported,
        /// The loader's state cannot be read or written safely.
        LoaderError,
        /// The record on the data partition cannot be kept.
        RecordError,
        /// The same bytes failed on this node before.
        QuarantinedHere,
        /// The catalog cannot be read or used.
        CatalogError,
        /// The upgrade cannot be resolved to a path for this node.
        NotResolvable,
        /// The node came back in the old slot after the loader had tried the new one.
        FellBack,
        /// The new slot booted another version than the ordered one.
        WrongVersionBooted,
        /// The trial's deadline passed before the checks held.
        TrialTimedOut,
        /// The trial's deadline passed while the API server stayed away.
        ApiUnavailable,
        /// A person sent the trial back before it was confirmed.
        SentBackByPerson,
        /// The slot to go back to holds nothing that is known to be good.
        NothingToGoBackTo,
        /// The attempt was cut short and cannot go on by itself: the loader never tried the armed slot, or steps were repeated without end.
        Interrupted,
    }
}

/// A node's own report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OSUpgradeProgressStatus {
    /// The generation of the spec that this status is about; -1 before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The version the node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub current_version: Option<String>,
    /// The version the node goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub target_version: Option<String>,
    /// How far the node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ProgressPhase>,
    /// When the first attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the target was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// When the phase, the message or the progress last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated_at: Option<Time>,
    /// How many retries a nonce has asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub retry_count: Option<i32>,
    /// The slot that is not booted, which is the one written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactive_partition: Option<Slot>,
    /// Why the attempt failed; empty when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub failure_reason: Option<String>,
    /// One sentence about the current state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// The last retryNonce that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub observed_retry_nonce: Option<String>,
    /// The last rollbackNonce that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub observed_rollback_nonce: Option<String>,
    /// The hop that is being taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub hop: Option<String>,
    /// The number of the attempt at this hop, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attempt: Option<i32>,
    /// The boot ID under which this was written.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// When an unconfirmed trial goes back, in the node's own estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_deadline: Option<Time>,
    /// The trial boot that is being judged; absent at all other times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialStatus>,
    /// What is known of the trial that did not hold; absent when none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RollbackEvidence>,
    /// What the booted slot holds, once it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<Installed>,
    /// Bytes of the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ByteProgress>,
    /// When each phase began, oldest first; the last 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub timeline: Vec<TimelineEntry>,
    /// Ready, Reconciling and Stalled as kstatus reads them; BootGranted, Drained, Soaking, TimedOut, Superseded and Degraded are the operator's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
}

impl OSUpgradeProgress {
    /// The phase, `Pending` when none was written yet.
    #[must_use]
    pub fn phase(&self) -> ProgressPhase {
        self.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or(ProgressPhase::Pending)
    }

    /// The conditions, none when no status was written yet.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }

    /// When the last attempt at a phase began, by the node's own clock; `None` if the timeline does not tell.
    #[must_use]
    pub fn phase_began(&self, phase: &ProgressPhase) -> Option<Timestamp> {
        let timeline = &self.status.as_ref()?.timeline;
        timeline.iter().rev().find(|entry| entry.phase == *phase).map(|entry| entry.since.0)
    }

    /// Whether a person asks for the other slot, and the node has not answered for good.
    #[must_use]
    pub fn rollback_is_wanted(&self) -> bool {
        let status = self.status.as_ref();
        let answered = status.and_then(|status| status.observed_rollback_nonce.as_deref());
        let wanted = self.spec.rollback_nonce.as_deref().filter(|nonce| !nonce.is_empty());
        wanted.is_some_and(|nonce| Some(nonce) != answered || !self.phase().is_final())
    }

    /// The retry nonce; absent and empty are the same.
    #[must_use]
    pub fn retry_nonce(&self) -> &str {
        self.spec.retry_nonce.as_deref().unwrap_or_default()
    }
}

impl ProgressPhase {
    /// Whether the node has committed to a reboot and not yet reported how it ended.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Rebooting | Self::Confirming)
    }

    /// Whether the node does nothing more by itself.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::RolledBack | Self::Superseded)
    }
}

/// What the booted slot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// The slot.
    pub slot: Slot,
    /// The version.
    pub version: OsVersion,
    /// The sha256 of the expanded image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Sha256Digest>,
}

/// Bytes of one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ByteProgress {
    /// Bytes of the artifact, 0 while unknown.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes of the artifact that were received.
    #[schemars(range(min = 0))]
    pub bytes_done: i64,
    /// Bytes of the image that are on the medium.
    #[schemars(range(min = 0))]
    pub bytes_written: i64,
    /// Bytes of the image that were already there.
    #[schemars(range(min = 0))]
    pub bytes_reused: i64,
}

/// When a phase began; it ended when the next one did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimelineEntry {
    /// The phase.
    pub phase: ProgressPhase,
    /// When it began.
    pub since: Time,
    /// The hop, when there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub hop: Option<String>,
    /// The boot in which the node said so: a phase of another boot than the one before was reached by a reboot.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// The slot that the node was running from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// What the phase was about: the digest of the image that was read back for `Staged`, and of the one that runs for
    /// `Completed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Sha256Digest>,
    /// How the node had been emptied when it committed to the reboot: the reason of its condition `Drained`, such as
    /// `Forced`. Absent where nothing had to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub drained: Option<String>,
}
