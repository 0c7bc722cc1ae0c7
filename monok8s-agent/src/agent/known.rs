//! What is known of this node's objects: what the watch showed, and what requests brought since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use monok8s_sdk::api::OSUpgradeProgress;
use monok8s_sdk::node_upgrade::{Freshness, Record};
use tokio::sync::watch;

use super::orders::Orders;

/// Merges the watch with the answers to the agent's own requests, which arrive before the watch
/// tells of them. The newer of the two counts.
pub(super) struct Known {
    watched: watch::Receiver<Orders>,
    /// By UID.
    answered: BTreeMap<String, Arc<OSUpgradeProgress>>,
    /// UIDs that a request did not find; the watch may still show them.
    gone: BTreeSet<String>,
}

/// The objects at one moment.
pub(super) struct Snapshot {
    /// By name.
    pub(super) objects: BTreeMap<String, Arc<OSUpgradeProgress>>,
    /// Whether they were listed since this process started.
    pub(super) listed: bool,
    /// The UIDs of those that are there, and that this release cannot read.
    unreadable: BTreeSet<String>,
}

impl Snapshot {
    /// Whether the object of an attempt that may be committed is there, and cannot be read: whether
    /// the commit was taken is then unknown, and no reason to take it back. Of an attempt that is
    /// not committed, an object that cannot be read is as good as none: it orders nothing.
    pub(super) fn hides_commit_of(&self, record: &Record) -> bool {
        let committed = record.attempt.as_ref().filter(|attempt| attempt.may_be_committed());
        committed.is_some_and(|attempt| self.unreadable.contains(&attempt.object.uid))
    }
}

impl Known {
    pub(super) fn new(watched: watch::Receiver<Orders>) -> Self {
        Self { watched, answered: BTreeMap::new(), gone: BTreeSet::new() }
    }

    /// Returns when the watch shows something new; never if the watch has ended.
    pub(super) async fn changed(&mut self) {
        if self.watched.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The objects as they are known now.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let watched = self.watched.borrow_and_update().clone();
        let uids: BTreeSet<&str> = watched.objects.values().map(|object| uid(object)).collect();
        self.answered.retain(|uid, _| uids.contains(uid.as_str()));
        self.gone.retain(|uid| uids.contains(uid.as_str()));
        let objects = watched
            .objects
            .into_iter()
            .filter(|(_, object)| !self.gone.contains(uid(object)))
            .map(|(name, object)| {
                let answered = self.answered.get(uid(&object)).filter(|answered| is_newer(answered, &object));
                (name, answered.cloned().unwrap_or(object))
            })
            .collect();
        let unreadable = watched.unreadable.into_values().collect();
        Snapshot { objects, listed: watched.listed, unreadable }
    }

    /// Takes in the answer to a read or a write of the agent's own.
    pub(super) fn learn(&mut self, object: OSUpgradeProgress) {
        self.answered.insert(uid(&object).to_owned(), Arc::new(object));
    }

    /// Takes in that an object is not there any more.
    pub(super) fn miss(&mut self, object: &OSUpgradeProgress) {
        self.gone.insert(uid(object).to_owned());
    }

    /// How this version of an object was read: answers to requests come from the store itself.
    pub(super) fn freshness(&self, object: &OSUpgradeProgress) -> Freshness {
        let version = &object.metadata.resource_version;
        let answered = self.answered.get(uid(object));
        if answered.is_some_and(|answered| answered.metadata.resource_version == *version) {
            Freshness::Quorum
        } else {
            Freshness::Cached
        }
    }
}

fn uid(object: &OSUpgradeProgress) -> &str {
    object.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether `one` is a later version than `other` of the same object. Resource versions of one
/// resource can be compared as numbers (Kubernetes 1.35, API concepts); one that is no number is
/// the answer to a request, and that came last.
fn is_newer(one: &OSUpgradeProgress, other: &OSUpgradeProgress) -> bool {
    let number =
        |object: &OSUpgradeProgress| object.metadata.resource_version.as_deref()?.parse::<u128>().ok();
    match (number(one), number(other)) {
        (Some(one), Some(other)) => one >= other,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::api::TrialSpec;
    use monok8s_sdk::digest::Sha256Digest;
    use monok8s_sdk::node_upgrade::{BootId, Booted, ObjectIdentity, Step};
    use monok8s_sdk::slot::Slot;
    use serde_json::json;

    use super::*;

    fn object(uid: &str, version: &str) -> OSUpgradeProgress {
        serde_json::from_value(json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": {"name": "one", "uid": uid, "resourceVersion": version},
            "spec": {"sourceRef": {"name": "up"}, "nodeName": "node-1"},
        }))
        .unwrap()
    }

    fn version(known: &mut Known) -> Option<String> {
        known.snapshot().objects.get("one").and_then(|object| object.metadata.resource_version.clone())
    }

    #[test]
    fn the_newer_of_watch_and_answer_counts() {
        let (sender, receiver) = watch::channel(Orders::default());
        let mut known = Known::new(receiver);
        let show = |object: OSUpgradeProgress| {
            let objects = BTreeMap::from([("one".to_owned(), Arc::new(object))]);
            sender.send_replace(Orders { objects, listed: true, ..Orders::default() });
        };
        assert!(!known.snapshot().listed);
        show(object("u-1", "9"));
        assert_eq!(known.freshness(&object("u-1", "9")), Freshness::Cached);
        known.learn(object("u-1", "10"));
        assert_eq!(version(&mut known).as_deref(), Some("10"), "10 is later than 9, though not as a text");
        assert_eq!(known.freshness(&object("u-1", "10")), Freshness::Quorum);
        show(object("u-1", "11"));
        assert_eq!(version(&mut known).as_deref(), Some("11"));
        assert_eq!(known.freshness(&object("u-1", "11")), Freshness::Cached);

        known.miss(&object("u-1", "11"));
        assert_eq!(version(&mut known), None, "a request did not find it");
        show(object("u-2", "12"));
        assert_eq!(version(&mut known).as_deref(), Some("12"), "another object under its name");
    }

    #[test]
    fn an_unreadable_object_leaves_open_whether_a_commit_was_taken() {
        let (sender, receiver) = watch::channel(Orders::default());
        let mut known = Known::new(receiver);
        let unreadable = BTreeMap::from([("one".to_owned(), "u-1".to_owned())]);
        sender.send_replace(Orders { unreadable, listed: true, ..Orders::default() });
        let begun = |uid| {
            Record::default().after(&Step::Begun {
                object: ObjectIdentity::new("one", uid),
                version: "v1.35.4".parse().unwrap(),
                checksum: Sha256Digest::of(b"artifact"),
                slot: Slot::B,
                trial: TrialSpec::default(),
            })
        };
        let booted =
            Booted { slot: Slot::A, version: "v1.35.1".parse().unwrap(), boot_id: BootId("b-1".to_owned()) };
        let intended = |uid| begun(uid).after(&Step::Intended { booted: booted.clone(), leave: None });
        let snapshot = known.snapshot();
        assert!(snapshot.objects.is_empty());
        assert!(snapshot.hides_commit_of(&intended("u-1")));
        assert!(!snapshot.hides_commit_of(&intended("u-2")), "the object of another attempt");
        assert!(!snapshot.hides_commit_of(&begun("u-1")), "nothing is committed");
        assert!(!snapshot.hides_commit_of(&Record::default()));
    }
}
