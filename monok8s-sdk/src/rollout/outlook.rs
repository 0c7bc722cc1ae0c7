//! What is reported about an upgrade.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::order::later;
use crate::api::{
    ConditionType, Conditions, KEPT_RUNS, NodeCounts, OSUpgrade, OSUpgradeStatus, OperatorReport, Resolved,
    RunSummary, Truth, UpgradePhase, UpgradeReason, find_condition, shorten_message,
};
use crate::version::OsVersion;

/// What is to be reported about an upgrade. [`Outlook::status`] makes the status of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Where it stands.
    pub phase: UpgradePhase,
    /// Set if a run begins now. It takes effect once the status that carries it was written;
    /// nothing is planned for the upgrade before.
    pub new_run: Option<NewRun>,
    /// The version that is meant, as far as that is known.
    pub resolved_version: Option<OsVersion>,
    /// The selected nodes, counted.
    pub nodes: NodeCounts,
    /// One sentence: the message of the Ready condition.
    pub message: String,
    /// All conditions: type, truth, reason and message.
    pub conditions: Vec<(ConditionType, Truth, UpgradeReason, String)>,
    /// Why nodes wait, by name. Thousands of nodes that wait for the same share it.
    pub waits: Waits,
    /// When the run is expected to end; `None` while nobody can say.
    pub ends: Option<Timestamp>,
    /// What of the operator's surroundings it goes by; only while something is to be done.
    pub operator: Option<OperatorReport>,
}

/// A run that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRun {
    /// Its number.
    pub run: i64,
    /// A digest of what it is begun for.
    pub digest: String,
    /// What it is frozen to.
    pub resolved: Resolved,
    /// The retryNonce that it acts on.
    pub retry_nonce: String,
    /// When it begins.
    pub started_at: Timestamp,
}

/// Why nodes do not go on, by their names.
pub type Waits = BTreeMap<String, Arc<Wait>>;

/// Why a node does not go on, for now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// What kind of wait it is.
    pub reason: UpgradeReason,
    /// One sentence that names what is waited for.
    pub message: String,
}

impl Outlook {
    /// The whole status to apply, given the object as read. Equal to the one before, times
    /// included, if nothing changed.
    #[must_use]
    pub fn status(&self, upgrade: &OSUpgrade, now: Timestamp) -> OSUpgradeStatus {
        let before = upgrade.status.clone().unwrap_or_default();
        let generation = upgrade.metadata.generation.unwrap_or(0);
        let conditions = self.conditions.iter().fold(
            Conditions::new(&before.conditions, generation, now),
            |list, (kind, truth, reason, message)| list.with(kind.clone(), *truth, reason.as_str(), message),
        );
        let mut status = OSUpgradeStatus {
            observed_generation: Some(generation),
            phase: Some(self.phase.clone()),
            resolved_version: self.resolved_version.as_ref().map(OsVersion::to_string),
            message: Some(shorten_message(self.message.clone())),
            nodes: Some(self.nodes.clone()),
            conditions: conditions.into_vec(),
            observed_retry_nonce: before.observed_retry_nonce.clone(),
            run: before.run,
            run_started_at: before.run_started_at.clone(),
            expected_completion_at: self.ends.map(|ends| steady(ends, &before, now)),
            run_digest: before.run_digest.clone(),
            resolved: before.resolved.clone(),
            operator: self.operator.clone(),
            history: before.history.clone(),
        };
        if let Some(new) = &self.new_run {
            status.run = Some(new.run);
            status.run_started_at = Some(Time(new.started_at));
            status.run_digest = Some(new.digest.clone());
            status.resolved = Some(new.resolved.clone());
            status.history.splice(..0, summary(&before));
            status.history.truncate(KEPT_RUNS);
            if !new.retry_nonce.is_empty() {
                status.observed_retry_nonce = Some(new.retry_nonce.clone());
            }
        }
        status
    }
}

/// An estimate is made at every look. One that has hardly moved has not moved, or it would be written each time.
fn steady(ends: Timestamp, before: &OSUpgradeStatus, now: Timestamp) -> Time {
    const LEAST: SignedDuration = SignedDuration::from_mins(5);
    let tolerance = LEAST.max(ends.duration_since(now) / 10);
    let near = |told: &&Time| told.0 > now && told.0.duration_since(ends).abs() <= tolerance;
    let told = before.expected_completion_at.as_ref();
    // A run that is late is late by a while, as far as anyone knows.
    let is_late = told.is_some_and(|told| told.0 <= now);
    let ends = if is_late { ends.max(later(now, LEAST)) } else { ends };
    let told = told.filter(near).cloned();
    // As times are written in objects.
    told.unwrap_or_else(|| Time(Timestamp::from_second(ends.as_second()).unwrap_or(ends)))
}

/// The run that ends where the next one begins.
fn summary(before: &OSUpgradeStatus) -> Option<RunSummary> {
    let run = before.run.filter(|run| *run > 0)?;
    let nodes = before.nodes.clone().unwrap_or_default();
    let phase = before.phase.clone().unwrap_or(UpgradePhase::Pending);
    // A run that was done ended when its upgrade became Ready; another one ends without a time.
    let ready = find_condition(&before.conditions, &ConditionType::Ready);
    let completed_at = ready.filter(|ready| ready.status == "True").map(|ready| &ready.last_transition_time);
    Some(RunSummary {
        run,
        version: before.resolved.as_ref().map(|resolved| resolved.version.to_string()).unwrap_or_default(),
        phase,
        started_at: before.run_started_at.clone(),
        completed_at: completed_at.cloned(),
        up_to_date: nodes.up_to_date,
        failed: nodes.failed,
    })
}
