//! What is known of one kind: what the watch delivered, and over it our own writes that the watch
//! has not caught up with.
//!
//! A plan that is made on a state older than our last write would give the same grant twice. So a
//! write's answer is kept until the watch has passed its resourceVersion. Comparing them as numbers
//! is what the API promises since Kubernetes 1.35, and what every server before it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Node, NodeStatus, NodeSystemInfo};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};
use monok8s_sdk::api::{GROUP, OSNode, OSUpgrade, OSUpgradeProgress};

/// A kind whose objects are kept, without what nobody looks at: it is often the larger half of them.
pub trait Kept: Resource<DynamicType = ()> {
    /// Takes that out.
    fn trim(&mut self) {
        self.meta_mut().managed_fields = None;
    }
}

impl Kept for OSUpgrade {}
impl Kept for OSUpgradeProgress {}
impl Kept for OSNode {}

/// Keeps only what a [`NodeView`](monok8s_sdk::rollout::NodeView) is made of: the names of fifty images, the
/// annotations of others, addresses, capacities and the other conditions are most of a Node.
impl Kept for Node {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|key, _| is_ours(key));
        }
        if let Some(status) = self.status.take() {
            let conditions = status.conditions.into_iter().flatten();
            let node_info = status.node_info.map(|info| NodeSystemInfo {
                boot_id: info.boot_id,
                kubelet_version: info.kubelet_version,
                architecture: info.architecture,
                ..NodeSystemInfo::default()
            });
            self.status = Some(NodeStatus {
                conditions: Some(conditions.filter(|condition| condition.type_ == "Ready").collect()),
                node_info,
                ..NodeStatus::default()
            });
        }
    }
}

fn is_ours(annotation: &str) -> bool {
    annotation.split_once('/').is_some_and(|(prefix, _)| prefix == GROUP)
}

/// All objects of one kind, by name.
#[derive(Debug)]
pub struct Cache<K> {
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    watched: BTreeMap<String, Watched<K>>,
    /// A list in progress, which replaces `watched` when it is complete.
    listing: Option<BTreeMap<String, Watched<K>>>,
    /// The newest resourceVersion in it. It counts once the list does: until then `watched` is
    /// older than our own writes.
    listed: u64,
    /// Our own writes.
    written: BTreeMap<String, Written<K>>,
    /// The watch has delivered everything up to this resourceVersion.
    seen: u64,
    synced: bool,
}

#[derive(Clone, Debug)]
enum Watched<K> {
    Readable(Arc<K>),
    Unreadable(Unreadable),
}

#[derive(Debug)]
struct Written<K> {
    version: u64,
    outcome: Outcome<K>,
    /// Made before the list in progress began, so that the list tells the truth about it.
    before_list: bool,
}

#[derive(Debug)]
enum Outcome<K> {
    Is(Arc<K>),
    Gone { uid: String },
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
pub struct Snapshot<K> {
    /// Those that can be read, by name.
    pub objects: Vec<Arc<K>>,
    /// Those that cannot.
    pub unreadable: Vec<Unreadable>,
}

impl<K> Default for Cache<K> {
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
    pub fn wrote(&self, mut object: K) {
        object.trim();
        let version = version_of(&object);
        let name = object.name_any();
        self.lock().remember(name, version, Outcome::Is(Arc::new(object)));
    }

    /// Takes in that an object was deleted by us, or found to be gone.
    pub fn gone(&self, object: &K) {
        let uid = object.uid().unwrap_or_default();
        self.lock().remember(object.name_any(), u64::MAX, Outcome::Gone { uid });
    }

    /// Whether the first list is complete.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.lock().synced
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<K> {
        let state = self.lock();
        let names: BTreeSet<&String> = state.watched.keys().chain(state.written.keys()).collect();
        let objects = names.into_iter().filter_map(|name| state.get(name)).collect();
        let unreadable = state.watched.values().filter_map(|object| match object {
            Watched::Readable(_) => None,
            Watched::Unreadable(object) => Some(object.clone()),
        });
        Snapshot { objects, unreadable: unreadable.collect() }
    }

    /// The object of that name, if it can be read.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<K>> {
        self.lock().get(name)
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Nothing here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kept> State<K> {
    /// What the watch says of an object, or what we wrote since.
    fn get(&self, name: &str) -> Option<Arc<K>> {
        let watched = match self.watched.get(name) {
            Some(Watched::Readable(object)) => Some(object),
            Some(Watched::Unreadable(_)) | None => None,
        };
        let object = match (self.written.get(name), watched) {
            (None, watched) => watched,
            (Some(written), watched) => match (&written.outcome, watched) {
                (Outcome::Is(_), Some(known)) if version_of(known.as_ref()) >= written.version => Some(known),
                (Outcome::Is(object), _) => Some(object),
                (Outcome::Gone { uid }, known) => known.filter(|known| known.uid().as_ref() != Some(uid)),
            },
        };
        object.cloned()
    }

    fn advance(&mut self, version: u64) {
        self.seen = self.seen.max(version);
        let (seen, watched) = (self.seen, &self.watched);
        self.written.retain(|name, written| match &written.outcome {
            Outcome::Is(_) => written.version > seen,
            // A deletion's own version is not told; it is over when the object is.
            Outcome::Gone { uid } => watched.get(name).is_some_and(|object| object.uid() == Some(uid)),
        });
    }

    fn remember(&mut self, name: String, version: u64, outcome: Outcome<K>) {
        let passed = matches!(outcome, Outcome::Is(_)) && version <= self.seen;
        let older = self
            .written
            .get(&name)
            .is_some_and(|known| known.version > version && matches!(known.outcome, Outcome::Is(_)));
        if !passed && !older {
            self.written.insert(name, Written { version, outcome, before_list: false });
        }
    }
}

impl<K: Kept> Watched<K> {
    fn uid(&self) -> Option<&String> {
        match self {
            Self::Readable(object) => object.meta().uid.as_ref(),
            Self::Unreadable(object) => Some(&object.uid),
        }
    }
}

fn read<K: Kept>(guarded: DeserializeGuard<K>) -> (String, Watched<K>) {
    let name = guarded.name_any();
    let object = match guarded.0 {
        Ok(mut object) => {
            object.trim();
            Watched::Readable(Arc::new(object))
        }
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
    use k8s_openapi::api::core::v1::{ContainerImage, NodeCondition};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use kube::core::error_boundary::InvalidObject;
    use monok8s_sdk::rollout::{NodeView, fixtures};

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
        let shown: Vec<_> = objects.iter().map(|n| (n.name_any(), n.labels()["state"].clone())).collect();
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
    fn of_a_node_only_what_is_looked_at_is_kept() {
        let heavy = || {
            let mut node = fixtures::node("a").cordoned_for("order").excluded().not_ready().node();
            let annotations = node.metadata.annotations.get_or_insert_default();
            annotations.insert("csi.example.com/node".to_owned(), "many".to_owned());
            node.metadata.managed_fields = Some(vec![]);
            let status = node.status.get_or_insert_default();
            status.images = Some(vec![ContainerImage::default()]);
            status.capacity = Some([("cpu".to_owned(), Quantity("2".to_owned()))].into());
            let condition = NodeCondition { type_: "MemoryPressure".to_owned(), ..NodeCondition::default() };
            status.conditions.get_or_insert_default().insert(0, condition);
            node
        };
        let mut light = heavy();
        light.trim();
        assert_eq!(NodeView::new(&light, None), NodeView::new(&heavy(), None));
        let status = light.status.as_ref().unwrap();
        assert_eq!((&status.images, &status.capacity, &light.metadata.managed_fields), (&None, &None, &None));
        assert_eq!(status.conditions.as_ref().unwrap().len(), 1);
        assert!(light.annotations().keys().all(|key| is_ours(key)), "{light:?}");

        let cache = Cache::default();
        list(&cache, vec![heavy()]);
        assert_eq!(*cache.get("a").unwrap(), light);
        let written = |mut node: Node| {
            node.metadata.resource_version = Some("9".to_owned());
            node
        };
        cache.wrote(written(heavy()));
        assert_eq!(*cache.get("a").unwrap(), written(light));
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
        cache.gone(&node("a", 5, "old"));
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
