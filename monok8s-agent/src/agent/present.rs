//! What is said about an object while an action is done. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::{
    ByteProgress, ConditionType, Installed, OSUpgradeProgress, ProgressPhase, TrialCheckResult,
    TrialCheckState, TrialStatus, Truth, find_condition,
};
use monok8s_sdk::node_upgrade::{
    Action, Check, CheckState, NodeFacts, NodeView, Order, Report as Standing, TrialHealth, WaitReason,
};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;

use super::commit::Commitment;
use super::status::Report;

/// How much of what a check saw is told, in characters: four bytes each at most.
const MAX_SEEN: usize = 256;

/// What a report is made of, beside the action.
#[derive(Clone)]
pub(super) struct Scene<'a> {
    pub(super) object: &'a OSUpgradeProgress,
    pub(super) order: &'a Order,
    pub(super) facts: &'a NodeFacts,
    pub(super) work: WorkView,
    pub(super) now: Timestamp,
}

/// How far the long work is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WorkView {
    /// Bytes of the download, also after its end.
    pub(super) progress: Option<ByteProgress>,
    /// Why the last try ended, if it will be tried again.
    pub(super) interrupted_by: Option<String>,
}

/// What to say while `action` is done; `None` where what was said before still holds.
pub(super) fn report(scene: &Scene<'_>, action: &Action) -> Option<Report> {
    let Spoken { phase, reason, message, failed, hop } = words(scene, action)?;
    let Scene { object, order, facts, work, now } = scene;
    let uid = order.object.uid.as_str();
    let attempt = facts.record.attempt.as_ref().filter(|attempt| attempt.object.uid == uid);
    let trial_deadline = match action {
        Action::AwaitHealth { remaining, .. } => deadline(*now, *remaining),
        _ => None,
    };
    let several = order.hops.len() > 1;
    Some(Report {
        reason,
        message,
        failed,
        target_version: order.target().cloned(),
        attempt: attempt.map_or_else(|| known_attempt(object), |attempt| attempt.number),
        trial_deadline,
        trial: match action {
            Action::AwaitHealth { remaining, .. } => Some(trial(&facts.health, *remaining)),
            _ => None,
        },
        rolled_back: match action {
            Action::Report(Standing::RolledBack { .. }) => attempt
                .and_then(|attempt| attempt.rollback.as_ref())
                .map(|recorded| recorded.evidence.clone()),
            _ => None,
        },
        progress: work.progress.or_else(|| object.status.as_ref()?.progress),
        timeline_hop: hop.clone().filter(|_| several),
        hop,
        ..base(object, facts, phase)
    })
}

/// What an object is told that has to wait for its turn, or that cannot be worked on yet.
pub(super) fn holding(
    object: &OSUpgradeProgress,
    facts: &NodeFacts,
    reason: &str,
    message: String,
) -> Report {
    let target = object.spec.order.as_ref().and_then(|order| order.hops.last());
    Report {
        reason: reason.to_owned(),
        message,
        target_version: target.map(|image| image.version.clone()),
        ..base(object, facts, ProgressPhase::Pending)
    }
}

/// What an object is told that cannot be carried out, whatever is granted.
pub(super) fn refused(
    object: &OSUpgradeProgress,
    facts: &NodeFacts,
    reason: &str,
    message: String,
) -> Report {
    Report { failed: true, phase: ProgressPhase::Failed, ..holding(object, facts, reason, message) }
}

/// The part of a report that is true whatever is being done.
fn base(object: &OSUpgradeProgress, facts: &NodeFacts, phase: ProgressPhase) -> Report {
    let previous = object.status.as_ref();
    let seen = object.metadata.uid.as_deref().and_then(|uid| facts.record.seen(uid));
    let (inactive, installed) = (facts.booted.slot.other(), installed(facts));
    let image_digest = match phase {
        ProgressPhase::Staged => facts.record.slots.get(inactive).and_then(|content| content.image_digest),
        ProgressPhase::Completed => installed.as_ref().and_then(|installed| installed.image_digest),
        _ => None,
    };
    Report {
        image_digest,
        drained: None,
        generation: object.metadata.generation.unwrap_or_default(),
        reason: phase.as_str().to_owned(),
        phase,
        message: String::new(),
        failed: false,
        current_version: Some(facts.booted.version.clone()),
        target_version: None,
        hop: None,
        timeline_hop: None,
        attempt: 0,
        retry_count: seen.map_or(0, |seen| seen.retry_count),
        observed_retry_nonce: seen
            .and_then(|seen| seen.retry_nonce.clone())
            .or_else(|| previous.and_then(|status| status.observed_retry_nonce.clone())),
        observed_rollback_nonce: seen
            .and_then(|seen| seen.rollback_nonce.clone())
            .or_else(|| previous.and_then(|status| status.observed_rollback_nonce.clone())),
        inactive,
        boot_id: facts.booted.boot_id.0.clone(),
        trial_deadline: None,
        trial: None,
        rolled_back: None,
        installed,
        progress: None,
    }
}

/// The number of the last attempt, as the status has it: the record forgets it with the confirm.
fn known_attempt(object: &OSUpgradeProgress) -> u32 {
    let known = object.status.as_ref().and_then(|status| status.attempt);
    known.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

/// What the booted slot holds, once the loader was told to keep it.
fn installed(facts: &NodeFacts) -> Option<Installed> {
    let booted = &facts.booted;
    let content = facts.record.slots.get(booted.slot).filter(|content| content.version == booted.version);
    facts.loader.is_confirmed(booted.slot).then(|| Installed {
        slot: booted.slot,
        version: booted.version.clone(),
        image_digest: content.and_then(|content| content.image_digest),
    })
}

/// How every check of the running trial stands.
fn trial(health: &TrialHealth, remaining: Duration) -> TrialStatus {
    let own =
        [("Version", &health.version), ("Kubelet", &health.kubelet), ("ControlPlane", &health.control_plane)];
    let own = own.into_iter().filter(|(_, check)| **check != Check::NotNeeded).map(|(name, check)| {
        let state = match check {
            Check::Fails(_) => TrialCheckState::Failing,
            Check::Holds | Check::NotNeeded => TrialCheckState::Held,
        };
        result(name, state, check.missing())
    });
    let node = match &health.node {
        NodeView::ReadyInThisBoot => result("Node", TrialCheckState::Held, None),
        NodeView::NotReady(seen) => result("Node", TrialCheckState::Failing, Some(seen)),
        NodeView::ApiUnreachable => result("Node", TrialCheckState::ApiUnreachable, None),
    };
    let configured = health.configured.iter().map(|check| match &check.state {
        CheckState::Held => result(&check.name, TrialCheckState::Held, None),
        CheckState::Holding { .. } => result(&check.name, TrialCheckState::Holding, None),
        CheckState::Failing(seen) => result(&check.name, TrialCheckState::Failing, Some(seen)),
        CheckState::ApiUnreachable => result(&check.name, TrialCheckState::ApiUnreachable, None),
    });
    TrialStatus {
        remaining_seconds: i32::try_from(remaining.as_secs()).unwrap_or(i32::MAX),
        checks: own.chain([node]).chain(configured).collect(),
    }
}

fn result(name: &str, state: TrialCheckState, seen: Option<&str>) -> TrialCheckResult {
    let message = seen.map(|seen| seen.chars().take(MAX_SEEN).collect());
    TrialCheckResult { name: name.to_owned(), state, message }
}

fn deadline(now: Timestamp, remaining: Duration) -> Option<Timestamp> {
    now.checked_add(remaining).ok()
}

struct Spoken {
    phase: ProgressPhase,
    reason: String,
    message: String,
    failed: bool,
    hop: Option<OsVersion>,
}

impl Spoken {
    fn of(phase: ProgressPhase, message: String, hop: Option<&OsVersion>) -> Self {
        Self { reason: phase.as_str().to_owned(), phase, message, failed: false, hop: hop.cloned() }
    }

    fn because(self, reason: &str) -> Self {
        Self { reason: reason.to_owned(), ..self }
    }

    fn failed(self) -> Self {
        Self { failed: true, ..self }
    }
}

fn words(scene: &Scene<'_>, action: &Action) -> Option<Spoken> {
    use ProgressPhase::{Confirming, Downloading, Pending};
    let booted = &scene.facts.booted;
    let spoken = match action {
        Action::Wait(WaitReason::StageGrant { version }) => {
            let message = format!("waits for leave to stage {version}");
            Spoken::of(Pending, message, Some(version)).because("WaitingForStageGrant")
        }
        Action::Wait(WaitReason::BootedSlotUnconfirmed { slot }) => {
            let message = format!(
                "slot {slot} runs without a confirm, and no slot is written that the node may have to go back to"
            );
            Spoken::of(Pending, message, None).because("BootedSlotUnconfirmed")
        }
        Action::Write { hop, slot, .. } => {
            let message = match &scene.work.interrupted_by {
                None => format!("downloads {} into slot {slot}", hop.version),
                Some(why) => {
                    format!("downloads {} into slot {slot}, and tries again after: {why}", hop.version)
                }
            };
            Spoken::of(Downloading, message, Some(&hop.version))
        }
        Action::Verify { slot, version, phase, .. } => {
            let message = match &scene.work.interrupted_by {
                None => format!("reads {version} back from slot {slot}"),
                Some(why) => format!("reads {version} back from slot {slot}, and tries again after: {why}"),
            };
            Spoken::of(phase.clone(), message, Some(version))
        }
        Action::AwaitHealth { missing, .. } => {
            let what = match scene.facts.health.version.missing() {
                Some(_) => "an image written as ",
                None => "",
            };
            let message =
                format!("{what}{} runs on trial in slot {}: {missing}", booted.version, booted.slot);
            Spoken::of(Confirming, message, Some(&booted.version))
        }
        Action::Report(Standing::Staged { version, slot }) if is_being_drained(scene.object) => {
            let message = format!("{version} is in slot {slot}; the node is being emptied for the reboot");
            Spoken::of(ProgressPhase::Draining, message, Some(version))
        }
        Action::Report(standing) => standing_words(standing, booted.slot),
        // Each of these is over before anyone could read about it, or speaks for itself: a commit
        // is a status of its own, and what follows it must not wait for the API server.
        Action::Wait(_)
        | Action::Record(_)
        | Action::Reread
        | Action::MarkGood { .. }
        | Action::Invalidate { .. }
        | Action::Commit { .. }
        | Action::Arm { .. }
        | Action::Disarm
        | Action::Reboot { .. }
        | Action::Confirm { .. }
        | Action::RevertTrial { .. } => return None,
    };
    Some(spoken)
}

/// The operator's word, mirrored into the phase: it has cordoned the node, and pods are still there.
fn is_being_drained(object: &OSUpgradeProgress) -> bool {
    find_condition(object.conditions(), &ConditionType::Drained)
        .is_some_and(|condition| condition.status == Truth::False.as_str())
}

fn standing_words(standing: &Standing, booted: Slot) -> Spoken {
    let phase = standing.phase();
    match standing {
        Standing::Completed { version } => {
            Spoken::of(phase, format!("runs {version} in slot {booted}"), None)
        }
        Standing::Held { version } => {
            let message = format!("went back to {version} in slot {booted} on request, and stays there");
            Spoken::of(phase, message, None).because("RolledBackOnRequest")
        }
        Standing::Staged { version, slot } => {
            let message = format!("{version} is in slot {slot} and was read back; waits for leave to reboot");
            Spoken::of(phase, message, Some(version))
        }
        Standing::Failed { reason, message } | Standing::RolledBack { reason, message } => {
            Spoken::of(phase, message.clone(), None).because(reason.as_str()).failed()
        }
        Standing::Superseded => {
            let message = "let go of: another upgrade governs the node, or the upgrade wants something else";
            Spoken::of(phase, message.to_owned(), None)
        }
    }
}

/// What announces a commit, bound to the hop that is committed to.
pub(super) fn commitment(commitment: &Commitment<'_>) -> Report {
    let Commitment { object, order, facts, version, slot, progress } = *commitment;
    let attempt = facts.record.attempt.as_ref();
    let drained = find_condition(object.conditions(), &ConditionType::Drained);
    Report {
        drained: drained.filter(|drained| drained.status == "True").map(|drained| drained.reason.clone()),
        message: format!("is committed to reboot into {version} in slot {slot}"),
        target_version: order.target().cloned(),
        hop: Some(version.clone()),
        timeline_hop: (order.hops.len() > 1).then(|| version.clone()),
        attempt: attempt.map_or(0, |attempt| attempt.number),
        progress,
        ..base(object, facts, ProgressPhase::Rebooting)
    }
}
