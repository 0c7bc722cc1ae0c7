//! What is known of one kind: what the watch delivered, and over it our own writes that the watch
//! has not caught up with.
//!
//! A plan that is made on a state older than our last write would give the same grant twice. So a
//! write's answer is kept until the watch has passed its resourceVersion. Comparing them as numbers
//! is what the API promises since Kubernetes 1.35, and what every server before it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};
use monok8s_sdk::api::{OSNode, OSUpgrade, OSUpgradeProgress, is_of_kstatus};
use monok8s_sdk::rollout::{NodeView, OSNodeView};

/// A kind whose objects are kept, without what nobody looks at: it is often the larger half of them.
pub trait Kept: Resource<DynamicType = ()> {
    /// What is kept of an object.
    type Form;

    /// Reduces an object to that.
    fn reduced(self) -> Self::Form;
}

impl Kept for OSUpgrade {
    type Form = Self;

    fn reduced(self) -> Self {
        compact(self)
    }
}

impl Kept for OSNode {
    type Form = OSNodeView;

    fn reduced(self) -> OSNodeView {
        OSNodeView::new(&self)
    }
}

/// Keeps the operator's own conditions: those of the agent say what the phase says. Of the timeline the times are
/// kept: the rest is for people.
impl Kept for OSUpgradeProgress {
    type Form = Self;

    fn reduced(mut self) -> Self {
        if let Some(status) = &mut self.status {
            status.conditions.retain(|condition| !is_of_kstatus(condition));
            for entry in &mut status.timeline {
                (entry.boot_id, entry.image_digest, entry.drained) = (None, None, None);
            }
        }
        compact(self)
    }
}

/// The names of fifty images, the annotations of others, addresses and capacities are most of a Node.
impl Kept for Node {
    type Form = NodeView;

    fn reduced(self) -> NodeView {
        NodeView::new(&self, None)
    }
}

/// A copy without managed fields: it takes up no more than it needs, and lies in one piece. What was read has room to
/// spare, and holes where something was taken out.
fn compact<K: Resource<DynamicType = ()> + Clone>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object.clone()
}

/// All objects of one kind, by name.
#[derive(Debug)]
pub struct Cache<K: Kept> {
    state: Mutex<State<K::Form>>,
}

#[derive(Debug)]
struct State<F> {
    watched: BTreeMap<String, Watched<F>>,
    /// A list in progress, which replaces `watched` when it is complete.
    listing: Option<BTreeMap<String, Watched<F>>>,
    /// The newest resourceVersion in it. It counts once the list does: until then `watched` is
    /// older than our own writes.
    listed: u64,
    /// Our own writes.
    written: BTreeMap<String, Written<F>>,
    /// The watch has delivered everything up to this resourceVersion.
    seen: u64,
    synced: bool,
}

#[derive(Debug)]
enum Watched<F> {
    Readable(Entry<F>),
    Unreadable(Unreadable),
}

#[derive(Debug)]
struct Written<F> {
    outcome: Outcome<F>,
    /// Made before the list in progress began, so that the list tells the truth about it.
    before_list: bool,
}

#[derive(Debug)]
enum Outcome<F> {
    Is(Entry<F>),
    Gone { uid: String },
}

/// An object, and what the cache has to know of it.
#[derive(Debug)]
struct Entry<F> {
    uid: String,
    /// Its resourceVersion as a number; 0, older than everything, if it is none.
    version: u64,
    object: Arc<F>,
}

impl<F> Entry<F> {
    fn of<K: Kept<Form = F>>(object: K) -> Self {
        let (uid, version) = (object.uid().unwrap_or_default(), version_of(&object));
        Self { uid, version, object: Arc::new(object.reduced()) }
    }
}

/// An object that this release cannot read. It is left alone, and so is what refers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What is wrong with it.
    pub error: String,
}

/// All objects of a kind at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot<F> {
    /// Those that can be read, by name.
    pub objects: Vec<Arc<F>>,
    /// Those that cannot.
    pub unreadable: Vec<Unreadable>,
}

impl<K: Kept> Default for Cache<K> {
    fn default() -> Self {
        let state = State {
            watched: BTreeMap::new(),
            listing: None,
            listed: 0,
            written: BTreeMap::new(),
            seen: 0,
            synced: false,
        };
        Self { state: Mutex::new(state) }
    }
}

impl<K: Kept> Cache<K> {
    /// Takes in what the watch delivered.
    pub fn observe(&self, event: Event<DeserializeGuard<K>>) {
        let mut state = self.lock();
        match event {
            Event::Init => {
                state.listing = Some(BTreeMap::new());
                state.listed = 0;
                for written in state.written.values_mut() {
                    written.before_list = true;
                }
            }
            Event::InitApply(object) => {
                state.listed = state.listed.max(version_of(&object));
                let (name, object) = read(object);
                state.listing.get_or_insert_default().insert(name, object);
            }
            Event::InitDone => {
                state.watched = state.listing.take().unwrap_or_default();
                state.written.retain(|_, written| !written.before_list);
                let listed = state.listed;
                state.advance(listed);
                state.synced = true;
            }
            Event::Apply(object) => {
                state.advance(version_of(&object));
                let (name, object) = read(object);
                state.watched.insert(name, object);
            }
            Event::Delete(object) => {
                state.advance(version_of(&object));
                state.watched.remove(&object.name_any());
            }
        }
    }

    /// Takes in the answer to a write of ours.
    pub fn wrote(&self, object: K) {
        let name = object.name_any();
        self.lock().wrote(name, Entry::of(object));
    }

    /// Takes in that the object of this name and UID was deleted by us, or found to be gone.
    pub fn gone(&self, name: &str, uid: &str) {
        self.lock().gone(name, uid);
    }

    /// Whether the first list is complete.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.lock().synced
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<K::Form> {
        let state = self.lock();
        let names: BTreeSet<&String> = state.watched.keys().chain(state.written.keys()).collect();
        let known = names.into_iter().filter_map(|name| state.get(name));
        let objects = known.map(|known| Arc::clone(&known.object)).collect();
        let unreadable = state.watched.values().filter_map(|object| match object {
            Watched::Readable(_) => None,
            Watched::Unreadable(object) => Some(object.clone()),
        });
        Snapshot { objects, unreadable: unreadable.collect() }
    }

    /// The object of that name, if it can be read.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<K::Form>> {
        self.lock().get(name).map(|known| Arc::clone(&known.object))
    }

    fn lock(&self) -> MutexGuard<'_, State<K::Form>> {
        // Nothing here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> State<F> {
    /// What the watch says of an object, or what we wrote since.
    fn get(&self, name: &str) -> Option<&Entry<F>> {
        let watched = match self.watched.get(name) {
            Some(Watched::Readable(known)) => Some(known),
            Some(Watched::Unreadable(_)) | None => None,
        };
        match (self.written.get(name).map(|written| &written.outcome), watched) {
            (None, watched) => watched,
            (Some(Outcome::Is(written)), Some(known)) if known.version >= written.version => Some(known),
            (Some(Outcome::Is(written)), _) => Some(written),
            (Some(Outcome::Gone { uid }), known) => known.filter(|known| known.uid != *uid),
        }
    }

    fn advance(&mut self, version: u64) {
        self.seen = self.seen.max(version);
        let (seen, watched) = (self.seen, &self.watched);
        self.written.retain(|name, written| match &written.outcome {
            Outcome::Is(known) => known.version > seen,
            // A deletion's own version is not told; it is over when the object is.
            Outcome::Gone { uid } => watched.get(name).is_some_and(|object| object.uid() == uid),
        });
    }

    fn wrote(&mut self, name: String, object: Entry<F>) {
        let before = self.written.get(&name).map(|written| &written.outcome);
        let newer = matches!(before, Some(Outcome::Is(known)) if known.version > object.version);
        if object.version > self.seen && !newer {
            self.written.insert(name, Written { outcome: Outcome::Is(object), before_list: false });
        }
    }

    fn gone(&mut self, name: &str, uid: &str) {
        if self.get(name).is_some_and(|known| known.uid == uid) {
            let outcome = Outcome::Gone { uid: uid.to_owned() };
            self.written.insert(name.to_owned(), Written { outcome, before_list: false });
        }
    }
}

impl<F> Watched<F> {
    fn uid(&self) -> &str {
        match self {
            Self::Readable(known) => &known.uid,
            Self::Unreadable(object) => &object.uid,
        }
    }
}

fn read<K: Kept>(guarded: DeserializeGuard<K>) -> (String, Watched<K::Form>) {
    let name = guarded.name_any();
    let object = match guarded.0 {
        Ok(object) => Watched::Readable(Entry::of(object)),
        Err(invalid) => {
            let uid = invalid.metadata.uid.clone().unwrap_or_default();
            Watched::Unreadable(Unreadable { name: name.clone(), uid, error: invalid.error })
        }
    };
    (name, object)
}

/// The resourceVersion as a number; 0, older than everything, if it is none.
fn version_of<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use kube::core::error_boundary::InvalidObject;
    use monok8s_sdk::api::ProgressPhase;
    use serde_json::json;

    use super::*;

    fn node(name: &str, version: u64, label: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node.metadata.uid = Some(format!("uid-of-{name}"));
        node.metadata.resource_version = Some(version.to_string());
        node.metadata.labels = Some([("state".to_owned(), label.to_owned())].into());
        node
    }

    fn watched(node: Node) -> DeserializeGuard<Node> {
        DeserializeGuard(Ok(node))
    }

    fn listed(nodes: Vec<Node>) -> Cache<Node> {
        let cache = Cache::default();
        list(&cache, nodes);
        cache
    }

    fn list(cache: &Cache<Node>, nodes: Vec<Node>) {
        cache.observe(Event::Init);
        for node in nodes {
            cache.observe(Event::InitApply(watched(node)));
        }
        cache.observe(Event::InitDone);
    }

    #[track_caller]
    fn shows(cache: &Cache<Node>, expected: &[(&str, &str)]) {
        let objects = cache.snapshot().objects;
        let shown: Vec<_> = objects.iter().map(|n| (n.name.clone(), n.labels["state"].clone())).collect();
        let shown: Vec<_> = shown.iter().map(|(name, label)| (name.as_str(), label.as_str())).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_write_stands_until_the_watch_has_it() {
        let cache = listed(vec![node("a", 5, "old")]);
        cache.wrote(node("a", 9, "written"));
        shows(&cache, &[("a", "written")]);
        cache.observe(Event::Apply(watched(node("a", 7, "between"))));
        shows(&cache, &[("a", "written")]);
        cache.observe(Event::Apply(watched(node("a", 9, "written"))));
        cache.observe(Event::Apply(watched(node("a", 12, "later"))));
        shows(&cache, &[("a", "later")]);
    }

    #[test]
    fn of_an_order_the_operators_conditions_are_kept() {
        let condition = |kind: &str| {
            json!({ "type": kind, "status": "True", "reason": "Any", "message": "",
            "lastTransitionTime": "2026-11-24T12:00:00Z" })
        };
        let order: OSUpgradeProgress = serde_json::from_value(json!({
            "metadata": { "name": "order", "resourceVersion": "7", "managedFields": [{}] },
            "spec": { "sourceRef": { "name": "up" }, "nodeName": "node-1" },
            "status": { "phase": "Staged", "conditions": [condition("Ready"), condition("Drained"), condition("Stalled")] },
        }))
        .unwrap();
        let cache = Cache::default();
        cache.wrote(order);
        let kept = cache.get("order").unwrap();
        let kinds: Vec<_> = kept.conditions().iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!((kinds, kept.phase()), (vec!["Drained"], ProgressPhase::Staged));
        assert_eq!(kept.metadata.managed_fields, None);
    }

    #[test]
    fn a_created_object_is_there_at_once() {
        let cache = listed(vec![]);
        cache.wrote(node("a", 9, "written"));
        shows(&cache, &[("a", "written")]);
    }

    #[test]
    fn an_answer_that_comes_after_the_deletion_does_not_bring_the_object_back() {
        let cache = listed(vec![node("a", 5, "old")]);
        cache.observe(Event::Apply(watched(node("a", 9, "written"))));
        cache.observe(Event::Delete(watched(node("a", 11, "written"))));
        cache.wrote(node("a", 9, "written"));
        shows(&cache, &[]);
    }

    #[test]
    fn a_list_that_began_after_the_write_is_right_about_it() {
        let cache = listed(vec![node("a", 5, "old")]);
        cache.wrote(node("a", 9, "written"));
        // The watch broke; meanwhile the object was deleted.
        list(&cache, vec![node("b", 7, "old")]);
        shows(&cache, &[("b", "old")]);
    }

    #[test]
    fn a_write_stands_while_a_list_that_will_show_it_is_incomplete() {
        let cache = listed(vec![node("a", 5, "old")]);
        cache.wrote(node("a", 9, "written"));
        cache.observe(Event::Init);
        cache.observe(Event::InitApply(watched(node("b", 12, "later"))));
        shows(&cache, &[("a", "written")]);
        cache.observe(Event::InitApply(watched(node("a", 9, "written"))));
        cache.observe(Event::InitDone);
        shows(&cache, &[("a", "written"), ("b", "later")]);
    }

    #[test]
    fn a_write_during_a_list_stands() {
        let cache = listed(vec![node("a", 5, "old")]);
        cache.observe(Event::Init);
        cache.wrote(node("a", 9, "written"));
        cache.observe(Event::InitApply(watched(node("a", 5, "old"))));
        cache.observe(Event::InitDone);
        shows(&cache, &[("a", "written")]);
    }

    #[test]
    fn the_old_list_is_shown_until_the_new_one_is_complete() {
        let cache = listed(vec![node("a", 5, "old"), node("b", 6, "old")]);
        cache.observe(Event::Init);
        cache.observe(Event::InitApply(watched(node("b", 8, "new"))));
        shows(&cache, &[("a", "old"), ("b", "old")]);
        cache.observe(Event::InitDone);
        shows(&cache, &[("b", "new")]);
    }

    #[test]
    fn what_we_deleted_is_gone_at_once_but_its_successor_is_not() {
        let cache = listed(vec![node("a", 5, "old")]);
        cache.gone("a", "uid-of-a");
        shows(&cache, &[]);
        let mut successor = node("a", 9, "new");
        successor.metadata.uid = Some("another".to_owned());
        cache.observe(Event::Apply(watched(successor)));
        shows(&cache, &[("a", "new")]);
    }

    #[test]
    fn an_unreadable_object_is_told_apart_and_wedges_nothing() {
        let cache = listed(vec![node("a", 5, "old")]);
        let metadata = node("b", 6, "odd").metadata;
        let invalid = InvalidObject { error: "spec.version: not a string".to_owned(), metadata };
        cache.observe(Event::Apply(DeserializeGuard(Err(invalid))));
        shows(&cache, &[("a", "old")]);
        let unreadable = cache.snapshot().unreadable;
        assert_eq!((unreadable[0].name.as_str(), unreadable[0].uid.as_str()), ("b", "uid-of-b"));
    }

    #[test]
    fn it_is_synced_after_the_first_list() {
        let cache: Cache<Node> = Cache::default();
        assert!(!cache.is_synced());
        list(&cache, vec![]);
        assert!(cache.is_synced());
    }
}
