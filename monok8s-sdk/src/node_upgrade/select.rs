//! Which of a node's objects it works on. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::record::Record;
use crate::api::{ConditionType, OSUpgradeProgress, condition_is_true};

/// The objects of this node, told apart by what the agent owes each.
#[derive(Debug, Default)]
pub struct Selection {
    /// The one that is worked on.
    pub current: Option<Arc<OSUpgradeProgress>>,
    /// Those that want something too, and wait for their turn.
    pub waiting: Vec<Arc<OSUpgradeProgress>>,
    /// Those that ended, and whose spec has changed since in a way that asks for nothing.
    pub ended: Vec<Arc<OSUpgradeProgress>>,
}

/// Sorts the objects: what the node has committed to comes first, then what is to be let go of,
/// then the oldest of those with an order, then the oldest.
#[must_use]
pub fn select(
    objects: &BTreeMap<String, Arc<OSUpgradeProgress>>,
    record: &Record,
    node_uid: &str,
) -> Selection {
    let mut selection = Selection::default();
    let mut wanting = Vec::new();
    let committed = record.attempt.as_ref().filter(|attempt| attempt.may_be_committed());
    for object in objects.values() {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        if committed.is_some_and(|attempt| attempt.object.uid == uid) {
            selection.current = Some(Arc::clone(object));
        } else if object.spec.order.as_ref().is_some_and(|order| order.node_uid != node_uid) {
            // Made for an earlier node of this name; the operator sweeps it.
        } else if wants_something(object) {
            wanting.push(Arc::clone(object));
        } else if is_unacknowledged(object) {
            selection.ended.push(Arc::clone(object));
        }
    }
    wanting.sort_by_key(|object| precedence(object));
    let mut wanting = wanting.into_iter();
    if selection.current.is_none() && committed.is_none() {
        // With nothing else to do, how the last attempt ended is still the word on its object.
        let attempt = record.attempt.as_ref().map(|attempt| attempt.object.uid.as_str());
        let last = || objects.values().find(|object| object.metadata.uid.as_deref() == attempt).cloned();
        selection.current = wanting.next().or_else(|| attempt.and_then(|_| last()));
    }
    selection.waiting = wanting.collect();
    selection
}

fn precedence(object: &OSUpgradeProgress) -> (bool, bool, Option<Time>, Option<String>) {
    let metadata = &object.metadata;
    (
        !is_superseded(object),
        object.spec.order.is_none(),
        metadata.creation_timestamp.clone(),
        metadata.name.clone(),
    )
}

/// Not ended, or asked by a nonce that its status does not know yet. The status is what counts, not
/// the record: a nonce that is recorded and not yet reported still has its consequences to come. One on an object that
/// ended and was let go of has none: nobody answers it, and whatever else is ordered must not wait for that.
fn wants_something(object: &OSUpgradeProgress) -> bool {
    let status = object.status.as_ref();
    if is_superseded(object) && object.phase().is_final() {
        return false;
    }
    let unanswered = |asked: Option<&String>, answered: Option<&String>| {
        asked.is_some_and(|nonce| !nonce.is_empty() && Some(nonce) != answered)
    };
    let retry = status.and_then(|status| status.observed_retry_nonce.as_ref());
    let rollback = status.and_then(|status| status.observed_rollback_nonce.as_ref());
    !object.phase().is_final()
        || unanswered(object.spec.retry_nonce.as_ref(), retry)
        || unanswered(object.spec.rollback_nonce.as_ref(), rollback)
}

fn is_superseded(object: &OSUpgradeProgress) -> bool {
    condition_is_true(object.conditions(), &ConditionType::Superseded)
}

fn is_unacknowledged(object: &OSUpgradeProgress) -> bool {
    let observed = object.status.as_ref().and_then(|status| status.observed_generation);
    observed != object.metadata.generation
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::ObjectIdentity;
    use super::super::step::Step;
    use super::*;
    use crate::boot::AttemptId;

    /// An object; its UID is its name with `u-` before it, its age follows from `second`.
    fn object(name: &str, second: u32, ordered_for: Option<&str>, status: &Value) -> OSUpgradeProgress {
        let order = ordered_for.map(|node_uid| {
            let hop = json!({"version": "v1.35.4", "urls": ["http://x/y"], "checksum": format!("sha256:{}", "a".repeat(64))});
            json!({"nodeUID": node_uid, "run": 1, "hops": [hop]})
        });
        let mut spec = json!({"sourceRef": {"name": "up"}, "nodeName": "node-1"});
        if let Some(order) = order {
            spec["order"] = order;
        }
        let created = format!("2026-01-01T00:00:{second:02}Z");
        serde_json::from_value(json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": {"name": name, "uid": format!("u-{name}"), "generation": 2, "creationTimestamp": created},
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    fn at(phase: &str) -> Value {
        json!({"phase": phase, "observedGeneration": 2})
    }

    fn order_of(
        objects: Vec<OSUpgradeProgress>,
        record: &Record,
    ) -> (Option<String>, Vec<String>, Vec<String>) {
        let name = |object: &Arc<OSUpgradeProgress>| object.metadata.name.clone().unwrap();
        let objects =
            objects.into_iter().map(|object| (object.metadata.name.clone().unwrap(), Arc::new(object)));
        let selection = select(&objects.collect(), record, "node-uid");
        let names = |list: &[Arc<OSUpgradeProgress>]| list.iter().map(name).collect();
        (selection.current.as_ref().map(name), names(&selection.waiting), names(&selection.ended))
    }

    #[test]
    fn an_order_goes_before_an_older_hand_made_object_and_the_older_of_two_first() {
        let objects = vec![
            object("hand", 1, None, &json!({})),
            object("old", 2, Some("node-uid"), &at("Pending")),
            object("new", 3, Some("node-uid"), &at("Pending")),
            object("done", 0, Some("node-uid"), &at("Completed")),
        ];
        let (current, waiting, ended) = order_of(objects, &Record::default());
        assert_eq!(current.as_deref(), Some("old"));
        assert_eq!(waiting, ["new", "hand"]);
        assert!(ended.is_empty());
    }

    #[test]
    fn an_order_for_an_earlier_node_of_this_name_is_left_alone() {
        let objects = vec![object("stray", 1, Some("other-uid"), &at("Pending"))];
        assert_eq!(order_of(objects, &Record::default()), (None, vec![], vec![]));
    }

    #[test]
    fn a_nonce_wakes_what_has_ended_and_a_changed_spec_alone_does_not() {
        let mut nonce =
            object("failed", 1, None, &json!({"phase": "Failed", "observedRetryNonce": "retry-1"}));
        nonce.spec.retry_nonce = Some("retry-1".to_owned());
        let (current, _, ended) = order_of(vec![nonce.clone()], &Record::default());
        assert_eq!((current, ended), (None, vec!["failed".to_owned()]));
        nonce.spec.retry_nonce = Some(String::new());
        assert_eq!(order_of(vec![nonce.clone()], &Record::default()).0, None);
        nonce.spec.retry_nonce = Some("retry-2".to_owned());
        assert_eq!(order_of(vec![nonce], &Record::default()).0.as_deref(), Some("failed"));
    }

    #[test]
    fn what_is_superseded_is_let_go_of_before_the_next_begins() {
        let condition = json!({"type": "Superseded", "status": "True", "reason": "Superseded", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"phase": "Staged", "conditions": [condition]});
        let objects = vec![
            object("a-new", 1, Some("node-uid"), &at("Pending")),
            object("b-old", 2, Some("node-uid"), &status),
        ];
        assert_eq!(order_of(objects, &Record::default()).0.as_deref(), Some("b-old"));
    }

    #[test]
    fn a_nonce_on_what_ended_and_was_let_go_of_keeps_nothing_else_waiting() {
        let condition = json!({"type": "Superseded", "status": "True", "reason": "LetGo", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        for phase in ["Superseded", "Completed", "Failed"] {
            let status = json!({"phase": phase, "observedGeneration": 1, "conditions": [condition]});
            let mut old = object("old", 1, Some("node-uid"), &status);
            (old.spec.rollback_nonce, old.spec.retry_nonce) =
                (Some("back".to_owned()), Some("again".to_owned()));
            let objects = vec![old, object("new", 2, Some("node-uid"), &at("Pending"))];
            let (current, waiting, ended) = order_of(objects, &Record::default());
            assert_eq!((current.as_deref(), waiting), (Some("new"), vec![]), "{phase}");
            assert_eq!(ended, ["old"], "its spec is acknowledged: {phase}");
        }
    }

    #[test]
    fn nothing_comes_before_what_the_node_has_committed_to() {
        let begun = Step::Begun {
            object: ObjectIdentity::new("hand", "u-hand"),
            version: "v1.35.4".parse().unwrap(),
            checksum: crate::digest::Sha256Digest::of(b"artifact"),
            slot: crate::slot::Slot::B,
            trial: crate::api::TrialSpec::default(),
        };
        let boot_id = crate::node_upgrade::BootId("b-1".to_owned());
        let record = Record::default().after(&begun).after(&Step::Committed { boot_id });
        assert_eq!(record.attempt.as_ref().map(|attempt| attempt.id), Some(AttemptId(1)));
        let objects = vec![
            object("order", 1, Some("node-uid"), &at("Pending")),
            object("hand", 2, None, &at("Rebooting")),
        ];
        let (current, waiting, _) = order_of(objects, &record);
        assert_eq!((current.as_deref(), waiting), (Some("hand"), vec!["order".to_owned()]));
        // Its object is gone: the record alone leads on, and nothing else begins.
        let objects = vec![object("order", 1, Some("node-uid"), &at("Pending"))];
        assert_eq!(order_of(objects, &record).0, None);
    }
}
