//! Events for edges; the levels are in the status. An edge is seen by comparing two looks of this
//! process, so a restart repeats none.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _, ResourceExt as _};
use monok8s_sdk::api::{
    ConditionType, OSUpgrade, OSUpgradeProgress, OSUpgradeStatus, ProgressPhase, UpgradePhase, find_condition,
};
use monok8s_sdk::rollout::DRAIN_BLOCKED;
use tokio::sync::mpsc;

use crate::status::Change;

/// The longest note that the API takes, in bytes.
const MAX_NOTE: usize = 1024;
/// Edges that wait to be published. More than that in one burst say nothing new.
const QUEUE: usize = 256;

/// Published edges that are kept. A fleet has no use for more: hardly anything is told twice.
const KEPT: usize = 256;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// The object it is told at.
    pub regarding: ObjectReference,
    /// Another object that has to do with it.
    pub related: Option<ObjectReference>,
    /// Whether a person should look.
    pub severity: Severity,
    /// One CamelCase word.
    pub reason: String,
    /// One sentence.
    pub note: String,
}

/// Whether a person should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It is as it should be.
    Normal,
    /// A person should look.
    Warning,
}

/// Publishes edges, one after the other, beside the planner. An event that cannot be published is
/// dropped: the status tells the same.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Edge>);

impl Events {
    /// Starts the publisher. It ends when the last handle is dropped.
    #[must_use]
    pub fn start(client: Client) -> Self {
        let (sender, mut edges) = mpsc::channel::<Edge>(QUEUE);
        let reporter =
            Reporter { controller: "monok8s-operator".to_owned(), instance: std::env::var("POD_NAME").ok() };
        tokio::spawn(async move {
            let mut recorder = Recorder::new(client.clone(), reporter.clone());
            let mut published = 0;
            while let Some(edge) = edges.recv().await {
                // It keeps what was published for minutes, to count what is told again, and goes through all of it
                // each time.
                if published == KEPT {
                    recorder = Recorder::new(client.clone(), reporter.clone());
                    published = 0;
                }
                published += 1;
                let (event, regarding) = edge.into_event();
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    tracing::debug!(%error, reason = event.reason, "an event could not be published");
                }
            }
        });
        Self(sender)
    }

    /// Publishes these when there is time.
    pub fn publish(&self, edges: impl IntoIterator<Item = Edge>) {
        for edge in edges {
            if self.0.try_send(edge).is_err() {
                tracing::debug!("too many events at once; one is dropped");
            }
        }
    }
}

impl Edge {
    fn into_event(self) -> (Event, ObjectReference) {
        let Self { regarding, related, severity, reason, mut note } = self;
        let end = (0..=MAX_NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
        let type_ = match severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        };
        let event = Event { type_, action: reason.clone(), reason, note: Some(note), secondary: related };
        (event, regarding)
    }
}

/// The edges between the statuses before and after.
#[must_use]
pub fn of_upgrades(changes: &[Change]) -> Vec<Edge> {
    changes.iter().filter_map(|change| of_upgrade(&change.before, &change.after)).collect()
}

fn of_upgrade(before: &OSUpgrade, after: &OSUpgradeStatus) -> Option<Edge> {
    let (then, now) = (ready_of(before.status.as_ref()), ready_of(Some(after)));
    if then == now {
        return None;
    }
    let stalled = find_condition(&after.conditions, &ConditionType::Stalled);
    let severity = match (&after.phase, stalled.is_some_and(|stalled| stalled.status == "True")) {
        (Some(UpgradePhase::Rejected | UpgradePhase::Failed), _) | (_, true) => Severity::Warning,
        _ => Severity::Normal,
    };
    Some(Edge {
        regarding: before.object_ref(&()),
        related: None,
        severity,
        reason: now.1?.to_owned(),
        note: after.message.clone().unwrap_or_default(),
    })
}

/// Phase and reason: the words of an upgrade that change seldom.
fn ready_of(status: Option<&OSUpgradeStatus>) -> (Option<&UpgradePhase>, Option<&str>) {
    let ready = status.and_then(|status| find_condition(&status.conditions, &ConditionType::Ready));
    (status.and_then(|status| status.phase.as_ref()), ready.map(|ready| ready.reason.as_str()))
}

/// Remembers how far each node was, and tells what happened since.
#[derive(Debug, Default)]
pub struct NodeEdges {
    before: Option<BTreeMap<String, Level>>,
}

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    phase: ProgressPhase,
    is_blocked: bool,
}

/// What happened between two looks.
#[derive(Debug, Default)]
pub struct Edges {
    /// What is told.
    pub told: Vec<Edge>,
    /// The objects whose attempt has ended.
    pub ended: Vec<Arc<OSUpgradeProgress>>,
}

impl NodeEdges {
    /// The edges since the last look. The first look has none.
    pub fn since(&mut self, progresses: &[Arc<OSUpgradeProgress>]) -> Edges {
        let uid = |object: &Arc<OSUpgradeProgress>| object.uid().unwrap_or_default();
        let level = |object: &Arc<OSUpgradeProgress>| Level {
            phase: object.phase(),
            is_blocked: blocked_drain(object).is_some(),
        };
        let now = progresses.iter().map(|object| (uid(object), level(object))).collect();
        let Some(before) = self.before.replace(now) else { return Edges::default() };
        let mut edges = Edges::default();
        for object in progresses {
            let (before, now) = (before.get(&uid(object)), level(object));
            if before.map(|before| &before.phase) != Some(&now.phase) {
                edges.told.extend(of_progress(object));
                edges.ended.extend(now.phase.is_final().then(|| Arc::clone(object)));
            }
            if now.is_blocked && before.is_none_or(|before| !before.is_blocked) {
                edges.told.extend(of_blocked_drain(object));
            }
        }
        edges
    }
}

/// What holds up the drain of a node.
fn blocked_drain(object: &OSUpgradeProgress) -> Option<&str> {
    let drained = find_condition(object.conditions(), &ConditionType::Drained)?;
    (drained.reason == DRAIN_BLOCKED).then_some(drained.message.as_str())
}

fn of_blocked_drain(object: &OSUpgradeProgress) -> Option<Edge> {
    Some(Edge {
        regarding: object.object_ref(&()),
        related: None,
        severity: Severity::Warning,
        reason: "DrainBlocked".to_owned(),
        note: format!("{} {}", object.spec.node_name, blocked_drain(object)?),
    })
}

fn of_progress(object: &OSUpgradeProgress) -> Option<Edge> {
    let status = object.status.as_ref()?;
    let (name, target) = (&object.spec.node_name, status.target_version.as_deref().unwrap_or("its target"));
    let why = || status.message.clone().or(status.failure_reason.clone()).unwrap_or_default();
    let (severity, reason, note) = match object.phase() {
        ProgressPhase::Completed => (Severity::Normal, "NodeCompleted", format!("{name} runs {target}")),
        ProgressPhase::Rebooting => {
            (Severity::Normal, "NodeRebooting", format!("{name} reboots into {target}"))
        }
        ProgressPhase::Failed => (Severity::Warning, "NodeFailed", format!("{name}: {}", why())),
        ProgressPhase::RolledBack => (Severity::Warning, "NodeRolledBack", format!("{name}: {}", why())),
        _ => return None,
    };
    Some(Edge { regarding: object.object_ref(&()), related: None, severity, reason: reason.to_owned(), note })
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::api::{OSUpgradeProgressSpec, OSUpgradeProgressStatus, SourceRef};

    use super::*;

    fn progress(uid: &str, phase: ProgressPhase) -> Arc<OSUpgradeProgress> {
        let spec = OSUpgradeProgressSpec {
            source_ref: SourceRef { name: "up".to_owned() },
            node_name: format!("node-of-{uid}"),
            retry_nonce: None,
            rollback_nonce: None,
            order: None,
        };
        let mut object = OSUpgradeProgress::new(&format!("osupgrade-{uid}"), spec);
        object.metadata.uid = Some(uid.to_owned());
        let target_version = Some("v1.35.4".to_owned());
        object.status =
            Some(OSUpgradeProgressStatus { phase: Some(phase), target_version, ..Default::default() });
        Arc::new(object)
    }

    #[test]
    fn a_restart_repeats_nothing_and_an_edge_is_told_once() {
        let mut edges = NodeEdges::default();
        let rebooting = [progress("1", ProgressPhase::Rebooting)];
        assert_eq!(edges.since(&rebooting).told, []);
        let done = [progress("1", ProgressPhase::Completed)];
        let Edges { told, ended } = edges.since(&done);
        assert_eq!((told.len(), ended.len()), (1, 1));
        assert_eq!(
            (told[0].reason.as_str(), told[0].note.as_str()),
            ("NodeCompleted", "node-of-1 runs v1.35.4")
        );
        let again = edges.since(&done);
        assert_eq!((again.told, again.ended.len()), (vec![], 0));
    }

    #[test]
    fn a_note_is_cut_at_a_character() {
        let edge = Edge {
            regarding: ObjectReference::default(),
            related: None,
            severity: Severity::Normal,
            reason: "R".to_owned(),
            note: format!("x{}", "é".repeat(MAX_NOTE)),
        };
        let note = edge.into_event().0.note.unwrap();
        assert_eq!(note.len(), MAX_NOTE - 1);
    }
}
