//! What outlives power cuts, as a value. The store is `boot::record_store`.
//!
//! The agent of the older release reads what the newer one wrote, after every rollback: every
//! level keeps the fields it does not know, words are open, and a format may add fields but never
//! change the meaning or the type of one. A record of a newer format stays one.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::facts::BootId;
use crate::api::open_enum::open_enum;
use crate::api::{BootGrant, FailureReason, ImageRef, RollbackEvidence, TrialSpec};
use crate::boot::AttemptId;
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// The format that this release writes.
pub const RECORD_FORMAT: u32 = 1;

/// Fields of a newer release.
pub(super) type Extra = BTreeMap<String, Value>;

/// What a node remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The format it was last written in, by whichever release knew most.
    pub format: u32,
    /// The number of the next attempt; counted up, never down.
    pub next_attempt: AttemptId,
    /// What each slot holds.
    #[serde(default)]
    pub slots: Slots,
    /// The attempt that is being made, or that failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Artifacts that failed on this node after a commit, newest last; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedArtifact>,
    /// Objects that were acted on, the latest last; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<SeenObject>,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            format: RECORD_FORMAT,
            next_attempt: AttemptId(1),
            slots: Slots::default(),
            attempt: None,
            failed: Vec::new(),
            seen: Vec::new(),
            extra: Extra::new(),
        }
    }
}

/// What each slot holds; absent where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slots {
    /// Slot A.
    #[serde(rename = "A", default, skip_serializing_if = "Option::is_none")]
    pub a: Option<SlotContent>,
    /// Slot B.
    #[serde(rename = "B", default, skip_serializing_if = "Option::is_none")]
    pub b: Option<SlotContent>,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Slots {
    /// What `slot` holds.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&SlotContent> {
        match slot {
            Slot::A => self.a.as_ref(),
            Slot::B => self.b.as_ref(),
        }
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut Option<SlotContent> {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }
}

/// What one slot holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotContent {
    /// The version.
    pub version: OsVersion,
    /// The sha256 of the artifact it was written from; absent for what was installed otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Sha256Digest>,
    /// The sha256 of the expanded image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Sha256Digest>,
    /// The length of the expanded image in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_len: Option<u64>,
    /// How much is known of its bytes.
    pub state: SlotContentState,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

open_enum! {
    /// How much is known of a slot's bytes.
    pub enum SlotContentState {
        /// All of the image was written and flushed.
        Written,
        /// It was read back from the medium and matched.
        Verified,
        /// It ran, confirmed. Its bytes may have changed since.
        KnownGood,
    }
}

/// One object, told apart from another one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectIdentity {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ObjectIdentity {
    /// An identity.
    #[must_use]
    pub fn new(name: &str, uid: &str) -> Self {
        Self { name: name.to_owned(), uid: uid.to_owned(), extra: Extra::new() }
    }
}

/// One attempt at one hop. From the commit on it is all that is needed to finish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its number on this node; the loader's trial carries it.
    pub id: AttemptId,
    /// The object it is made for.
    pub object: ObjectIdentity,
    /// Its number at this hop, from 1.
    pub number: u32,
    /// Forward, or back on purpose.
    pub kind: AttemptKind,
    /// The version it is to end on.
    pub version: OsVersion,
    /// The sha256 of the artifact; absent for a rollback into what was installed otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Sha256Digest>,
    /// The slot it is to end in.
    pub slot: Slot,
    /// How far it is.
    pub state: AttemptState,
    /// The boot under which the intent was recorded, or the slot was armed.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<BootId>,
    /// The boot in which the slot was armed, once `boot_id` is that of its trial.
    #[serde(default, rename = "armedBootID", skip_serializing_if = "Option::is_none")]
    pub armed_boot_id: Option<BootId>,
    /// The leave to reboot that it was committed with; absent where the node paces itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<BootGrant>,
    /// What is known of a trial that did not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RecordedRollback>,
    /// When its trial counts as good.
    #[serde(default)]
    pub trial: TrialSpec,
    /// Why it failed, or why its trial is sent back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<FailureReason>,
    /// That in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How often the slot did not read back as it was written.
    #[serde(default)]
    pub rewrites: u32,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Attempt {
    /// Whether the node may have gone past the point of no return.
    #[must_use]
    pub fn may_be_committed(&self) -> bool {
        match self.state {
            AttemptState::Intended
            | AttemptState::Committed
            | AttemptState::Reverting
            | AttemptState::Unknown(_) => true,
            AttemptState::Staging | AttemptState::RolledBack | AttemptState::Failed => false,
        }
    }

    /// Whether it has ended, and waits for a nonce.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, AttemptState::RolledBack | AttemptState::Failed)
    }
}

open_enum! {
    /// Where an attempt goes.
    pub enum AttemptKind {
        /// To an image that was ordered.
        Upgrade,
        /// To the other slot as it is, on purpose.
        Rollback,
    }
}

open_enum! {
    /// How far an attempt is.
    pub enum AttemptState {
        /// The slot is being written and read back.
        Staging,
        /// The intent to commit is recorded; nothing is armed.
        Intended,
        /// Committed: the slot is armed next, or was. The loader tells which.
        Committed,
        /// The running trial is to be sent back.
        Reverting,
        /// The target was tried, and the node is back in the old slot.
        RolledBack,
        /// It failed before the target was ever tried.
        Failed,
    }
}

/// What is known of a trial that did not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedRollback {
    /// The evidence.
    #[serde(flatten)]
    pub evidence: RollbackEvidence,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An artifact that failed on this node after a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedArtifact {
    /// The sha256 of the artifact.
    pub checksum: Sha256Digest,
    /// The version in it.
    pub version: OsVersion,
    /// Why.
    pub reason: FailureReason,
    /// When.
    pub at: Time,
    /// In which attempt.
    pub attempt: AttemptId,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What was seen of one object, and acted on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenObject {
    /// Its UID.
    pub uid: String,
    /// The highest generation; a lower one is a replay.
    pub generation: i64,
    /// The last retry nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_nonce: Option<String>,
    /// How many retries were begun.
    #[serde(default)]
    pub retry_count: u32,
    /// The last rollback nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_nonce: Option<String>,
    /// The version that a rollback holds the node on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_on: Option<OsVersion>,
    /// How many attempts were begun at the current hop.
    #[serde(default)]
    pub attempts: u32,
    /// How many attempts were confirmed.
    #[serde(default)]
    pub confirmed: u32,
    /// The leave to reboot that led to the last boot which was confirmed. Nobody takes it back from a node that is
    /// done, and it is not used twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<BootGrant>,
    /// Failures of attempts before this one were lifted by a retry.
    #[serde(default)]
    pub lifted_before: AttemptId,
    /// How many steps were recorded since the last retry or confirm.
    #[serde(default)]
    pub steps: u32,
    /// What a hand-made object was resolved to; kept until a new retry nonce.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<PinnedImage>,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One image of a pinned resolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// The image.
    #[serde(flatten)]
    pub image: ImageRef,
    /// Fields of a newer release.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Record {
    /// What was seen of the object with this UID.
    #[must_use]
    pub fn seen(&self, uid: &str) -> Option<&SeenObject> {
        self.seen.iter().find(|seen| seen.uid == uid)
    }

    /// The images a hand-made object was resolved to, if it was.
    #[must_use]
    pub fn pinned(&self, uid: &str) -> Vec<ImageRef> {
        self.seen(uid)
            .map(|seen| seen.pinned.iter().map(|pin| pin.image.clone()).collect())
            .unwrap_or_default()
    }

    /// The failure that keeps `checksum` off this node, unless a retry of this object lifted it.
    #[must_use]
    pub fn quarantine(&self, checksum: &Sha256Digest, uid: &str) -> Option<&FailedArtifact> {
        let lifted_before = self.seen(uid).map_or(AttemptId(0), |seen| seen.lifted_before);
        self.failed
            .iter()
            .rev()
            .find(|failed| failed.checksum == *checksum && failed.attempt >= lifted_before)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
