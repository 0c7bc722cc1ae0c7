//! What is recorded, one durable step at a time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::facts::{BootId, Booted};
use super::record::{
    Attempt, AttemptKind, AttemptState, Extra, FailedArtifact, ObjectIdentity, PinnedImage, Record,
    RecordedRollback, SeenObject, SlotContent, SlotContentState,
};
use crate::api::{BootGrant, FailureReason, ImageRef, RollbackEvidence, TrialSpec};
use crate::boot::AttemptId;
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// How many failed artifacts and seen objects are remembered.
const REMEMBERED: usize = 32;

/// One durable step. The caller saves [`Record::after`] it before it does anything else.
///
/// [`Action::Record`](super::Action::Record) carries most of them. Those that report what a
/// physical action came to ([`Written`](Self::Written), [`Verified`](Self::Verified),
/// [`ReadBackDiffers`](Self::ReadBackDiffers), [`Committed`](Self::Committed),
/// [`Failed`](Self::Failed), [`Pinned`](Self::Pinned)) are made by the caller.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A generation of an object was read, before it is acted on.
    Accepted {
        /// The object.
        object: ObjectIdentity,
        /// The generation.
        generation: i64,
        /// A retry nonce that has nothing to retry.
        retry_nonce: Option<String>,
        /// A rollback nonce that was acted on before the record was lost.
        rollback_nonce: Option<String>,
    },
    /// A hand-made object was resolved to these images.
    Pinned {
        /// The object's UID.
        uid: String,
        /// The images, in the order they are taken.
        hops: Vec<ImageRef>,
    },
    /// An attempt at a hop begins.
    Begun {
        /// The object it is made for.
        object: ObjectIdentity,
        /// The version to end on.
        version: OsVersion,
        /// The artifact.
        checksum: Sha256Digest,
        /// The slot to end in.
        slot: Slot,
        /// When its trial counts as good.
        trial: TrialSpec,
    },
    /// The attempt is given up before its commit, because nobody wants it any more.
    Dropped,
    /// Nothing is known any more of what a slot holds: recorded before it is invalidated, and when
    /// it does not hold what an earlier process wrote, as after a power cut before the last flush.
    SlotForgotten {
        /// The slot.
        slot: Slot,
    },
    /// The whole image was written and flushed.
    Written {
        /// The sha256 of the expanded image.
        image_digest: Sha256Digest,
        /// Its length in bytes.
        image_len: u64,
    },
    /// The slot was read back from the medium and matched, and its image was found fit to boot.
    Verified,
    /// The slot did not read back as this process has just written it: its disk loses data.
    ReadBackDiffers,
    /// The node intends to commit. Nothing is armed yet.
    Intended {
        /// What runs now; the slot that a trial would come back to.
        booted: Booted,
        /// The leave that it goes by; `None` where the node paces itself.
        leave: Option<BootGrant>,
    },
    /// The intent is dropped; the slot stays staged.
    IntentDropped,
    /// The API server took the commit, or a commit is renewed after a power cut.
    Committed {
        /// The boot under which the slot is armed.
        boot_id: BootId,
    },
    /// The running trial is to be sent back.
    Reverting {
        /// Why.
        reason: FailureReason,
        /// That in a sentence.
        message: String,
        /// The boot that is on trial.
        boot_id: BootId,
    },
    /// The loader holds the new slot as good, and the node runs from it.
    Confirmed,
    /// The target was tried, and the node is back in the old slot.
    RolledBack {
        /// Why.
        reason: FailureReason,
        /// That in a sentence.
        message: String,
        /// What is known of it.
        evidence: Box<RollbackEvidence>,
    },
    /// The attempt failed without the target having been tried.
    Failed {
        /// Why.
        reason: FailureReason,
        /// That in a sentence.
        message: String,
    },
    /// A new retry nonce: everything of the attempt before is cleared.
    RetryBegun {
        /// The object's UID.
        uid: String,
        /// The nonce.
        nonce: String,
    },
    /// A new rollback nonce: everything of the attempt before is cleared, and an attempt into the
    /// other slot begins. The node is held where it ends.
    RollbackBegun {
        /// The object it is made for.
        object: ObjectIdentity,
        /// The nonce.
        nonce: String,
        /// The version in the other slot.
        version: OsVersion,
        /// The artifact that it was written from, if that is known.
        checksum: Option<Sha256Digest>,
        /// The other slot.
        slot: Slot,
        /// When its trial counts as good.
        trial: TrialSpec,
    },
    /// A person at the node sends it into the other slot. There is no object to ask, so this is the
    /// commit already. The node is held where it ends, whatever was ordered before.
    RollbackByHand {
        /// The version in the other slot.
        version: OsVersion,
        /// The artifact that it was written from, if that is known.
        checksum: Option<Sha256Digest>,
        /// The other slot.
        slot: Slot,
        /// When its trial counts as good.
        trial: TrialSpec,
        /// The boot in which it is armed.
        boot_id: BootId,
    },
}

/// Stands for an object where a person at the node acts.
fn by_hand() -> ObjectIdentity {
    ObjectIdentity::new("", "")
}

impl Record {
    /// The record once `step` was taken. A step that does not fit leaves it unchanged; above all,
    /// nothing is begun over an attempt that may be committed.
    #[must_use]
    pub fn after(&self, step: &Step) -> Self {
        let mut next = self.clone();
        let begins = matches!(
            step,
            Step::Begun { .. }
                | Step::RetryBegun { .. }
                | Step::RollbackBegun { .. }
                | Step::RollbackByHand { .. }
        );
        if begins && self.attempt.as_ref().is_some_and(Attempt::may_be_committed) {
            return next;
        }
        next.take(step);
        next.count(step);
        next
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Accepted { object, generation, retry_nonce, rollback_nonce } => {
                self.accept(object, *generation, retry_nonce.as_ref(), rollback_nonce.as_ref());
            }
            Step::Pinned { uid, hops } => {
                let pin = |image: &ImageRef| PinnedImage { image: image.clone(), extra: Extra::new() };
                self.with_seen(uid, |seen| seen.pinned = hops.iter().map(pin).collect());
            }
            Step::Begun { object, version, checksum, slot, trial } => {
                self.begin(object, AttemptKind::Upgrade, version, Some(*checksum), *slot, trial);
            }
            Step::Dropped => self.attempt = None,
            Step::SlotForgotten { slot } => *self.slots.get_mut(*slot) = None,
            Step::Written { image_digest, image_len } => self.written(*image_digest, *image_len),
            Step::Verified => self.verified(),
            Step::ReadBackDiffers => self.read_back_differs(),
            Step::Intended { booted, leave } => self.intend(booted, leave.as_ref()),
            Step::IntentDropped => self.with_attempt(|attempt| {
                attempt.state = AttemptState::Staging;
                attempt.boot_id = None;
            }),
            Step::Committed { boot_id } => self.with_attempt(|attempt| {
                attempt.state = AttemptState::Committed;
                attempt.boot_id = Some(boot_id.clone());
            }),
            Step::Reverting { reason, message, boot_id } => {
                self.end(AttemptState::Reverting, reason, message);
                self.with_attempt(|attempt| {
                    let before = attempt.boot_id.replace(boot_id.clone());
                    if attempt.armed_boot_id.is_none() {
                        attempt.armed_boot_id = before;
                    }
                });
            }
            Step::Confirmed => self.confirm(),
            Step::RolledBack { reason, message, evidence } => {
                self.end(AttemptState::RolledBack, reason, message);
                let recorded = RecordedRollback { evidence: (**evidence).clone(), extra: Extra::new() };
                self.with_attempt(|attempt| attempt.rollback = Some(recorded));
                self.remember_failure(reason, &evidence.at);
            }
            Step::Failed { reason, message } => self.end(AttemptState::Failed, reason, message),
            Step::RetryBegun { uid, nonce } => self.begin_retry(uid, nonce),
            Step::RollbackBegun { object, nonce, version, checksum, slot, trial } => {
                self.with_seen(&object.uid, |seen| {
                    seen.rollback_nonce = Some(nonce.clone());
                    seen.attempts = 0;
                    seen.steps = 0;
                });
                self.begin(object, AttemptKind::Rollback, version, *checksum, *slot, trial);
            }
            Step::RollbackByHand { version, checksum, slot, trial, boot_id } => {
                self.begin(&by_hand(), AttemptKind::Rollback, version, *checksum, *slot, trial);
                self.with_attempt(|attempt| {
                    attempt.state = AttemptState::Committed;
                    attempt.boot_id = Some(boot_id.clone());
                });
            }
        }
    }

    fn accept(
        &mut self,
        object: &ObjectIdentity,
        generation: i64,
        retry_nonce: Option<&String>,
        rollback_nonce: Option<&String>,
    ) {
        let known = self.seen.iter().position(|seen| seen.uid == object.uid);
        let mut seen = match known {
            Some(at) => self.seen.remove(at),
            None => SeenObject::first(&object.uid),
        };
        seen.generation = seen.generation.max(generation);
        if let Some(nonce) = retry_nonce {
            seen.retry_nonce = Some(nonce.clone());
            seen.lifted_before = self.next_attempt;
        }
        if let Some(nonce) = rollback_nonce {
            seen.rollback_nonce = Some(nonce.clone());
        }
        self.seen.push(seen);
        let excess = self.seen.len().saturating_sub(REMEMBERED);
        self.seen.drain(..excess);
    }

    fn begin(
        &mut self,
        object: &ObjectIdentity,
        kind: AttemptKind,
        version: &OsVersion,
        checksum: Option<Sha256Digest>,
        slot: Slot,
        trial: &TrialSpec,
    ) {
        self.with_seen(&object.uid, |seen| seen.attempts = seen.attempts.saturating_add(1));
        self.attempt = Some(Attempt {
            id: self.next_attempt,
            object: object.clone(),
            number: self.seen(&object.uid).map_or(1, |seen| seen.attempts),
            kind,
            version: version.clone(),
            checksum,
            slot,
            state: AttemptState::Staging,
            boot_id: None,
            armed_boot_id: None,
            leave: None,
            rollback: None,
            trial: trial.clone(),
            reason: None,
            message: None,
            rewrites: 0,
            extra: Extra::new(),
        });
        self.next_attempt = AttemptId(self.next_attempt.0.saturating_add(1));
    }

    fn written(&mut self, image_digest: Sha256Digest, image_len: u64) {
        let Some(attempt) = &self.attempt else { return };
        let content = SlotContent {
            version: attempt.version.clone(),
            checksum: attempt.checksum,
            image_digest: Some(image_digest),
            image_len: Some(image_len),
            state: SlotContentState::Written,
            extra: Extra::new(),
        };
        *self.slots.get_mut(attempt.slot) = Some(content);
    }

    fn verified(&mut self) {
        let Some(slot) = self.attempt.as_ref().map(|attempt| attempt.slot) else { return };
        if let Some(content) = self.slots.get_mut(slot) {
            content.state = SlotContentState::Verified;
        }
    }

    fn read_back_differs(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        attempt.rewrites = attempt.rewrites.saturating_add(1);
        *self.slots.get_mut(attempt.slot) = None;
    }

    fn intend(&mut self, booted: &Booted, leave: Option<&BootGrant>) {
        self.know_good(booted.slot, &booted.version, None);
        self.with_attempt(|attempt| {
            attempt.state = AttemptState::Intended;
            attempt.boot_id = Some(booted.boot_id.clone());
            attempt.leave = leave.cloned();
        });
    }

    fn confirm(&mut self) {
        let Some(attempt) = self.attempt.take() else { return };
        self.know_good(attempt.slot, &attempt.version, attempt.checksum);
        self.failed.retain(|failed| Some(failed.checksum) != attempt.checksum);
        if attempt.object == by_hand() {
            for seen in &mut self.seen {
                seen.held_on = Some(attempt.version.clone());
            }
        }
        self.with_seen(&attempt.object.uid, |seen| {
            seen.attempts = 0;
            seen.confirmed = seen.confirmed.saturating_add(1);
            seen.spent.clone_from(&attempt.leave);
            seen.steps = 0;
            seen.held_on = (attempt.kind == AttemptKind::Rollback).then(|| attempt.version.clone());
        });
    }

    /// A slot that runs, confirmed: what is known of its bytes is kept where it is about this version.
    fn know_good(&mut self, slot: Slot, version: &OsVersion, checksum: Option<Sha256Digest>) {
        let content = self.slots.get_mut(slot);
        match content {
            Some(content) if content.version == *version => content.state = SlotContentState::KnownGood,
            _ => {
                *content = Some(SlotContent {
                    version: version.clone(),
                    checksum,
                    image_digest: None,
                    image_len: None,
                    state: SlotContentState::KnownGood,
                    extra: Extra::new(),
                });
            }
        }
    }

    fn begin_retry(&mut self, uid: &str, nonce: &str) {
        self.attempt = None;
        let lifted_before = self.next_attempt;
        self.with_seen(uid, |seen| {
            seen.retry_nonce = Some(nonce.to_owned());
            seen.retry_count = seen.retry_count.saturating_add(1);
            seen.lifted_before = lifted_before;
            seen.steps = 0;
            seen.held_on = None;
            seen.pinned = Vec::new();
        });
    }

    fn end(&mut self, state: AttemptState, reason: &FailureReason, message: &str) {
        self.with_attempt(|attempt| {
            attempt.state = state;
            attempt.reason = Some(reason.clone());
            attempt.message = Some(message.to_owned());
        });
    }

    /// Remembers the artifact, unless the trial came back for something the artifact cannot help.
    fn remember_failure(&mut self, reason: &FailureReason, at: &Time) {
        if matches!(reason, FailureReason::ApiUnavailable | FailureReason::RecordError) {
            return;
        }
        let Some((checksum, attempt)) =
            self.attempt.as_ref().and_then(|attempt| Some((attempt.checksum?, attempt)))
        else {
            return;
        };
        self.failed.retain(|failed| failed.checksum != checksum);
        self.failed.push(FailedArtifact {
            checksum,
            version: attempt.version.clone(),
            reason: reason.clone(),
            at: at.clone(),
            attempt: attempt.id,
            extra: Extra::new(),
        });
        let excess = self.failed.len().saturating_sub(REMEMBERED);
        self.failed.drain(..excess);
    }

    fn with_attempt(&mut self, change: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = &mut self.attempt {
            change(attempt);
        }
    }

    fn with_seen(&mut self, uid: &str, change: impl FnOnce(&mut SeenObject)) {
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.uid == uid) {
            change(seen);
        }
    }

    /// Counts a step of the attempt's object, so that going round in circles ends.
    fn count(&mut self, step: &Step) {
        if matches!(step, Step::Accepted { .. } | Step::Confirmed | Step::RetryBegun { .. }) {
            return;
        }
        if let Some(uid) = self.attempt.as_ref().map(|attempt| attempt.object.uid.clone()) {
            self.with_seen(&uid, |seen| seen.steps = seen.steps.saturating_add(1));
        }
    }
}

impl SeenObject {
    fn first(uid: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            generation: 0,
            retry_nonce: None,
            retry_count: 0,
            rollback_nonce: None,
            held_on: None,
            attempts: 0,
            confirmed: 0,
            spent: None,
            lifted_before: AttemptId(0),
            steps: 0,
            pinned: Vec::new(),
            extra: Extra::new(),
        }
    }
}
