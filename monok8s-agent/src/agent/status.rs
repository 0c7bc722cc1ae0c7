//! What the agent says about a progress object, as the status that carries it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use monok8s_sdk::api::{
    ByteProgress, ConditionType, Conditions, Installed, KSTATUS, OSUpgradeProgress, OSUpgradeProgressStatus,
    ProgressPhase, RollbackEvidence, TimelineEntry, TrialStatus, Truth, is_of_kstatus, shorten_message,
};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;

/// How many phases a timeline remembers.
const TIMELINE_LEN: usize = 32;

/// The node's word about one object at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    pub(super) generation: i64,
    pub(super) phase: ProgressPhase,
    /// A word for programs: the failure's, or the phase's.
    pub(super) reason: String,
    pub(super) message: String,
    /// Whether the phase is a failure, so that the reason is its `failureReason`.
    pub(super) failed: bool,
    pub(super) current_version: Option<OsVersion>,
    pub(super) target_version: Option<OsVersion>,
    pub(super) hop: Option<OsVersion>,
    /// The hop as the timeline tells it: only where there are several.
    pub(super) timeline_hop: Option<OsVersion>,
    /// The digest of the image that the phase is about, where its timeline tells it.
    pub(super) image_digest: Option<Sha256Digest>,
    /// How the node was emptied, where its timeline tells it.
    pub(super) drained: Option<String>,
    pub(super) attempt: u32,
    pub(super) retry_count: u32,
    pub(super) observed_retry_nonce: Option<String>,
    pub(super) observed_rollback_nonce: Option<String>,
    pub(super) inactive: Slot,
    pub(super) boot_id: String,
    pub(super) trial_deadline: Option<Timestamp>,
    pub(super) trial: Option<TrialStatus>,
    pub(super) rolled_back: Option<RollbackEvidence>,
    pub(super) installed: Option<Installed>,
    pub(super) progress: Option<ByteProgress>,
}

/// The status that says `report`, continuing the story that `previous` tells.
///
/// Holds exactly the fields the agent owns: server-side apply takes away what it once applied and
/// no longer sends, and the operator's conditions are not the agent's to repeat.
pub(super) fn status(
    report: &Report,
    previous: &OSUpgradeProgressStatus,
    now: Timestamp,
) -> OSUpgradeProgressStatus {
    let begun = !matches!(report.phase, ProgressPhase::Pending | ProgressPhase::Superseded);
    let completed = report.phase == ProgressPhase::Completed;
    let started_at = previous.started_at.clone().or_else(|| begun.then_some(Time(now)));
    let completed_at = completed.then(|| previous.completed_at.clone().unwrap_or(Time(now)));
    let text = |version: &OsVersion| version.to_string();
    let mut status = OSUpgradeProgressStatus {
        observed_generation: Some(report.generation),
        current_version: report.current_version.as_ref().map(text),
        target_version: report.target_version.as_ref().map(text),
        phase: Some(report.phase.clone()),
        started_at,
        completed_at,
        last_updated_at: Some(Time(now)),
        retry_count: Some(i32::try_from(report.retry_count).unwrap_or(i32::MAX)),
        inactive_partition: Some(report.inactive),
        failure_reason: Some(if report.failed { report.reason.clone() } else { String::new() }),
        message: Some(shorten_message(report.message.clone())),
        observed_retry_nonce: report.observed_retry_nonce.clone(),
        observed_rollback_nonce: report.observed_rollback_nonce.clone(),
        hop: report.hop.as_ref().map(text),
        attempt: Some(i32::try_from(report.attempt).unwrap_or(i32::MAX)),
        boot_id: Some(report.boot_id.clone()),
        trial_deadline: report.trial_deadline.map(|deadline| steady(deadline, previous)),
        trial: report.trial.clone(),
        rolled_back: report.rolled_back.clone(),
        installed: report.installed.clone(),
        progress: report.progress,
        timeline: timeline(report, &previous.timeline, now),
        conditions: conditions(report, &previous.conditions, now),
    };
    if change(previous, &status) == Change::None {
        status.last_updated_at.clone_from(&previous.last_updated_at);
    }
    status
}

/// The status of an object that ended, once its newer spec was seen and asks for nothing. `None`
/// where the agent never reported on it.
pub(super) fn acknowledged(object: &OSUpgradeProgress) -> Option<OSUpgradeProgressStatus> {
    let generation = object.metadata.generation;
    let mut status = object.status.clone()?;
    status.phase.as_ref()?;
    status.observed_generation = generation;
    status.conditions.retain(is_of_kstatus);
    for condition in &mut status.conditions {
        condition.observed_generation = generation;
    }
    Some(status)
}

/// The status of an object that cannot be worked on, because of what is the matter on the node.
/// `None` where it says so already.
pub(super) fn troubled(
    object: &OSUpgradeProgress,
    problem: &str,
    now: Timestamp,
) -> Option<OSUpgradeProgressStatus> {
    let previous = object.status.clone().unwrap_or_default();
    let message = shorten_message(problem.to_owned());
    if previous.message.as_ref() == Some(&message) {
        return None;
    }
    let generation = object.metadata.generation.unwrap_or_default();
    let conditions = Conditions::new(&previous.conditions, generation, now)
        .with(ConditionType::Ready, Truth::Unknown, "NodeTrouble", message.clone())
        .with(ConditionType::Reconciling, Truth::True, "NodeTrouble", message.clone())
        .with(ConditionType::Stalled, Truth::False, "NodeTrouble", message.clone())
        .into_vec();
    Some(OSUpgradeProgressStatus {
        observed_generation: Some(generation),
        phase: Some(object.phase()),
        message: Some(message),
        conditions,
        last_updated_at: Some(Time(now)),
        ..previous
    })
}

/// A deadline is estimated anew each time; one that has hardly moved has not moved.
fn steady(deadline: Timestamp, previous: &OSUpgradeProgressStatus) -> Time {
    let near = |before: &&Time| before.0.duration_since(deadline).abs() <= SignedDuration::from_secs(10);
    previous.trial_deadline.as_ref().filter(near).cloned().unwrap_or(Time(deadline))
}

/// What separates two statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Nothing; times of writing do not count.
    None,
    /// Numbers that run on by themselves, of bytes or seconds: reported at a bounded rate.
    Bytes,
    /// Anything else: reported at once.
    News,
}

/// How far `next` is from what `previous` says.
pub(super) fn change(previous: &OSUpgradeProgressStatus, next: &OSUpgradeProgressStatus) -> Change {
    let comparable = |status: &OSUpgradeProgressStatus| {
        let mut status = status.clone();
        status.last_updated_at = None;
        status.conditions.retain(is_of_kstatus);
        status.conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
        status
    };
    let (mut previous, next) = (comparable(previous), comparable(next));
    if previous == next {
        return Change::None;
    }
    previous.progress = next.progress;
    if let (Some(trial), Some(next)) = (&mut previous.trial, &next.trial) {
        trial.remaining_seconds = next.remaining_seconds;
    }
    if previous == next { Change::Bytes } else { Change::News }
}

/// The conditions that kstatus reads: Ready, Reconciling and Stalled are always there, and at most
/// one of them is true.
fn conditions(report: &Report, previous: &[Condition], now: Timestamp) -> Vec<Condition> {
    let (ready, reconciling, stalled) = match &report.phase {
        // Superseded is let go of: nothing is left to do, and nothing is wrong.
        ProgressPhase::Completed | ProgressPhase::Superseded => (Truth::True, Truth::False, Truth::False),
        ProgressPhase::Failed | ProgressPhase::RolledBack => (Truth::False, Truth::False, Truth::True),
        _ => (Truth::Unknown, Truth::True, Truth::False),
    };
    let mut list = Conditions::new(previous, report.generation, now);
    for (kind, truth) in KSTATUS.into_iter().zip([ready, reconciling, stalled]) {
        list = list.with(kind, truth, &report.reason, report.message.clone());
    }
    list.into_vec()
}

fn timeline(report: &Report, previous: &[TimelineEntry], now: Timestamp) -> Vec<TimelineEntry> {
    let hop = report.timeline_hop.as_ref().map(ToString::to_string);
    let mut entries = previous.to_vec();
    if entries.last().is_none_or(|last| last.phase != report.phase || last.hop != hop) {
        entries.push(TimelineEntry {
            phase: report.phase.clone(),
            since: Time(now),
            hop,
            boot_id: Some(report.boot_id.clone()),
            slot: Some(report.inactive.other()),
            image_digest: report.image_digest,
            drained: report.drained.clone(),
        });
    }
    let surplus = entries.len().saturating_sub(TIMELINE_LEN);
    entries.drain(..surplus);
    entries
}

/// A report of a node in this phase.
#[cfg(test)]
pub(super) fn fixture(phase: ProgressPhase) -> Report {
    Report {
        generation: 3,
        reason: phase.as_str().to_owned(),
        phase,
        message: "as it is".to_owned(),
        failed: false,
        current_version: Some("v1.35.1".parse().unwrap()),
        target_version: Some("v1.35.4".parse().unwrap()),
        hop: Some("v1.35.2".parse().unwrap()),
        timeline_hop: None,
        attempt: 1,
        retry_count: 2,
        observed_retry_nonce: None,
        observed_rollback_nonce: None,
        inactive: Slot::B,
        boot_id: "b-1".to_owned(),
        trial_deadline: None,
        trial: None,
        rolled_back: None,
        installed: None,
        progress: None,
        image_digest: None,
        drained: None,
    }
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::api::{condition_is_true, find_condition};

    use super::fixture as report;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn story(phases: &[ProgressPhase]) -> OSUpgradeProgressStatus {
        phases.iter().zip(1..).fold(OSUpgradeProgressStatus::default(), |previous, (phase, second)| {
            status(&report(phase.clone()), &previous, at(second))
        })
    }

    #[test]
    fn every_phase_is_ready_or_reconciling_or_stalled_and_never_two_of_them() {
        for phase in ProgressPhase::KNOWN {
            let conditions = story(std::slice::from_ref(phase)).conditions;
            assert_eq!(conditions.len(), 3, "{phase}");
            let truths = KSTATUS.iter().filter(|kind| condition_is_true(&conditions, kind)).count();
            assert_eq!(truths, 1, "{phase}");
            assert!(conditions.iter().all(|condition| condition.observed_generation == Some(3)));
        }
        let stalled = story(&[ProgressPhase::RolledBack]).conditions;
        assert!(condition_is_true(&stalled, &ConditionType::Stalled));
    }

    #[test]
    fn the_story_keeps_its_beginning_and_each_phase_once() {
        use ProgressPhase::{Completed, Downloading, Pending, Staged};
        let told = story(&[Pending, Downloading, Downloading, Staged, Completed, Completed]);
        let phases: Vec<_> = told.timeline.iter().map(|entry| entry.phase.clone()).collect();
        assert_eq!(phases, [Pending, Downloading, Staged, Completed]);
        let place = |entry: &TimelineEntry| (entry.boot_id.clone(), entry.slot);
        assert!(told.timeline.iter().all(|entry| place(entry) == (Some("b-1".to_owned()), Some(Slot::A))));
        assert_eq!(told.started_at, Some(Time(at(2))));
        assert_eq!(told.completed_at, Some(Time(at(5))));
        let ready = find_condition(&told.conditions, &ConditionType::Ready).unwrap();
        assert_eq!(ready.last_transition_time, Time(at(5)));
        let long = story(&vec![[Downloading, Staged]; 40].concat());
        assert_eq!(long.timeline.len(), TIMELINE_LEN);
        assert_eq!(long.started_at, Some(Time(at(1))));
    }

    #[test]
    fn a_failure_names_its_reason_and_success_takes_it_back() {
        let failed =
            Report { failed: true, reason: "ChecksumMismatch".to_owned(), ..report(ProgressPhase::Failed) };
        let told = status(&failed, &OSUpgradeProgressStatus::default(), at(1));
        assert_eq!(told.failure_reason.as_deref(), Some("ChecksumMismatch"));
        let retried = status(&report(ProgressPhase::Downloading), &told, at(2));
        assert_eq!(retried.failure_reason.as_deref(), Some(""));
    }

    #[test]
    fn what_did_not_change_is_not_written() {
        let before = story(&[ProgressPhase::Downloading]);
        let again = status(&report(ProgressPhase::Downloading), &before, at(90));
        assert_eq!(change(&before, &again), Change::None);
        assert_eq!(again.last_updated_at, before.last_updated_at);

        let bytes = Some(ByteProgress { bytes_total: 9, bytes_done: 4, bytes_written: 3, bytes_reused: 0 });
        let moved = Report { progress: bytes, ..report(ProgressPhase::Downloading) };
        assert_eq!(change(&before, &status(&moved, &before, at(90))), Change::Bytes);
        let staged = status(&report(ProgressPhase::Staged), &before, at(90));
        assert_eq!(change(&before, &staged), Change::News);
        assert_eq!(staged.last_updated_at, Some(Time(at(90))));
    }

    #[test]
    fn the_operators_conditions_are_not_ours_to_compare() {
        let before = story(&[ProgressPhase::Staged]);
        let mut joined = before.clone();
        joined.conditions = Conditions::new(&[], 1, at(1))
            .with(ConditionType::BootGranted, Truth::True, "Granted", "")
            .into_vec()
            .into_iter()
            .chain(before.conditions.clone().into_iter().rev())
            .collect();
        assert_eq!(change(&joined, &before), Change::None);
    }
}
