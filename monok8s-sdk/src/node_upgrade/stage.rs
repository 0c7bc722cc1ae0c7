//! Before the commit: the other slot is written, read back, and waits for its turn.

use k8s_openapi::jiff::Timestamp;

use super::action::{Action, Report, WaitReason};
use super::commit::is_known_good;
use super::decide::{fail, may_boot, may_stage};
use super::facts::{HeldToken, NodeFacts};
use super::order::{Order, Pace};
use super::record::{Attempt, AttemptKind, SeenObject, SlotContentState};
use super::step::Step;
use crate::api::{FailureReason, ImageRef, ProgressPhase};
use crate::boot::TryCounting;
use crate::digest::Sha256Digest;

/// More steps than any sane attempt records; a person must look.
pub(super) const MAX_STEPS: u32 = 500;
/// How often a slot may read back otherwise than the same process wrote it, before the disk is to
/// blame.
const MAX_REWRITES: u32 = 1;

/// What the record knows of the bytes in an attempt's slot.
pub(super) enum Content {
    /// The attempt's image, read back.
    Verified(Image),
    /// The attempt's image, to be read back.
    Unread(Image),
    /// Anything else.
    Unknown,
}

/// What a slot must read back as.
#[derive(Clone, Copy)]
pub(super) struct Image {
    digest: Sha256Digest,
    len: u64,
}

pub(super) fn content(facts: &NodeFacts, attempt: &Attempt) -> Content {
    let content = facts
        .record
        .slots
        .get(attempt.slot)
        .filter(|content| content.version == attempt.version && content.checksum == attempt.checksum);
    let image = content.and_then(|content| {
        Some((&content.state, Image { digest: content.image_digest?, len: content.image_len? }))
    });
    match image {
        Some((SlotContentState::Verified, image)) => Content::Verified(image),
        Some((SlotContentState::Written | SlotContentState::KnownGood, image)) => Content::Unread(image),
        Some((SlotContentState::Unknown(_), _)) | None => Content::Unknown,
    }
}

/// Whether this process holds the token of what the attempt wants to boot.
pub(super) fn holds_token(facts: &NodeFacts, attempt: &Attempt) -> bool {
    match content(facts, attempt) {
        Content::Verified(image) => {
            facts.token == Some(HeldToken { slot: attempt.slot, digest: image.digest })
        }
        Content::Unread(_) | Content::Unknown => false,
    }
}

pub(super) fn verify(attempt: &Attempt, image: &Image, phase: ProgressPhase) -> Action {
    Action::Verify {
        slot: attempt.slot,
        digest: image.digest,
        len: image.len,
        version: attempt.version.clone(),
        phase,
    }
}

/// No attempt yet: begin one, if the node may.
pub(super) fn begin(facts: &NodeFacts, order: &Order) -> Action {
    let booted = &facts.booted;
    let Some(hop) = order.next_hop(&booted.version) else {
        return Action::Wait(WaitReason::BootedSlotUnconfirmed { slot: booted.slot });
    };
    if !facts.loader.is_confirmed(booted.slot) {
        return Action::Wait(WaitReason::BootedSlotUnconfirmed { slot: booted.slot });
    }
    if !may_stage(order, &hop.version) {
        return Action::Wait(WaitReason::StageGrant { version: hop.version.clone() });
    }
    Action::Record(Step::Begun {
        object: order.object.clone(),
        version: hop.version.clone(),
        checksum: hop.checksum,
        slot: booted.slot.other(),
        trial: order.trial.clone(),
    })
}

/// The next step of an attempt that is being staged.
pub(super) fn next(
    facts: &NodeFacts,
    attempt: &Attempt,
    order: &Order,
    seen: &SeenObject,
    now: Timestamp,
) -> Action {
    if attempt.slot == facts.booted.slot {
        return Action::Record(Step::Dropped);
    }
    if seen.steps > MAX_STEPS {
        return fail(
            FailureReason::Interrupted,
            format!("{} steps did not lead to an end; look at the agent's log", seen.steps),
        );
    }
    if !facts.loader.is_confirmed(facts.booted.slot) {
        return Action::Wait(WaitReason::BootedSlotUnconfirmed { slot: facts.booted.slot });
    }
    if facts.loader.try_counting() == TryCounting::Unsupported {
        return fail(
            FailureReason::TrialUnsupported,
            "the loader was not seen to count tries, so a trial might never fall back".to_owned(),
        );
    }
    match attempt.kind {
        AttemptKind::Rollback => rollback(facts, attempt, order, now),
        AttemptKind::Upgrade => upgrade(facts, attempt, order, now),
        AttemptKind::Unknown(_) => Action::Record(Step::Dropped),
    }
}

fn rollback(facts: &NodeFacts, attempt: &Attempt, order: &Order, now: Timestamp) -> Action {
    if !is_known_good(facts, attempt) {
        return fail(
            FailureReason::NothingToGoBackTo,
            format!("slot {} holds nothing that ran here before and was confirmed", attempt.slot),
        );
    }
    if may_boot(facts, order, &attempt.version, now) {
        intend(facts, attempt, order)
    } else {
        staged(attempt)
    }
}

fn upgrade(facts: &NodeFacts, attempt: &Attempt, order: &Order, now: Timestamp) -> Action {
    let hop = order
        .next_hop(&facts.booted.version)
        .filter(|hop| hop.version == attempt.version && Some(hop.checksum) == attempt.checksum);
    let Some(hop) = hop else { return Action::Record(Step::Dropped) };
    if let Some(failed) = facts.record.quarantine(&hop.checksum, &order.object.uid) {
        return fail(
            FailureReason::QuarantinedHere,
            format!(
                "this image failed here at {} ({}); a new retryNonce tries it again",
                failed.at.0, failed.reason
            ),
        );
    }
    match content(facts, attempt) {
        Content::Verified(_) if !may_boot(facts, order, &attempt.version, now) => staged(attempt),
        Content::Verified(image) if !holds_token(facts, attempt) => {
            verify(attempt, &image, ProgressPhase::Staged)
        }
        Content::Verified(_) => intend(facts, attempt, order),
        Content::Unread(image) => verify(attempt, &image, ProgressPhase::Verifying),
        Content::Unknown => write(facts, attempt, order, hop),
    }
}

/// Forget, invalidate, write: in this order a cut at any point leaves a slot that cannot boot, and
/// a record that does not claim otherwise.
fn write(facts: &NodeFacts, attempt: &Attempt, order: &Order, hop: &ImageRef) -> Action {
    let slot = attempt.slot;
    if attempt.rewrites > MAX_REWRITES {
        return fail(
            FailureReason::ReadBackMismatch,
            format!(
                "slot {slot} was written {} times and never read back as written; replace the disk",
                attempt.rewrites
            ),
        );
    }
    if !may_stage(order, &hop.version) {
        return Action::Wait(WaitReason::StageGrant { version: hop.version.clone() });
    }
    if facts.record.slots.get(slot).is_some() {
        return Action::Record(Step::SlotForgotten { slot });
    }
    if facts.loader.order.contains(&slot) || facts.loader.may_boot(slot) {
        return Action::Invalidate { slot };
    }
    Action::Write { hop: hop.clone(), slot, attempt: attempt.number }
}

fn staged(attempt: &Attempt) -> Action {
    Action::Report(Report::Staged { version: attempt.version.clone(), slot: attempt.slot })
}

/// The slot leaves the loader's order first, so that finding it there after the commit tells that
/// its trial was confirmed. Arming puts it back.
fn intend(facts: &NodeFacts, attempt: &Attempt, order: &Order) -> Action {
    if facts.loader.order.contains(&attempt.slot) {
        return Action::Invalidate { slot: attempt.slot };
    }
    let leave = match &order.pace {
        Pace::Own => None,
        Pace::Granted { boot, .. } => boot.clone(),
    };
    Action::Record(Step::Intended { booted: facts.booted.clone(), leave })
}
