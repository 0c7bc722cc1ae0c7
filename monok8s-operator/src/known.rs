//! What a watch has told so far, reduced to what is asked of it.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Objects of a watch, by UID.
#[derive(Debug)]
pub(crate) struct Known<V> {
    all: BTreeMap<String, V>,
    /// A list in progress, which replaces `all` when it is complete.
    listing: BTreeMap<String, V>,
    is_listing: bool,
    is_synced: bool,
}

impl<V> Default for Known<V> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), listing: BTreeMap::new(), is_listing: false, is_synced: false }
    }
}

impl<V> Known<V> {
    /// Takes in one event.
    pub(crate) fn observe<K: ResourceExt>(&mut self, event: Event<K>, reduce: impl Fn(&K) -> V) {
        let uid = |object: &K| object.uid().unwrap_or_default();
        match event {
            Event::Init => {
                self.listing.clear();
                self.is_listing = true;
            }
            Event::InitApply(object) => drop(self.listing.insert(uid(&object), reduce(&object))),
            Event::InitDone => {
                self.all = std::mem::take(&mut self.listing);
                (self.is_listing, self.is_synced) = (false, true);
            }
            Event::Apply(object) => drop(self.all.insert(uid(&object), reduce(&object))),
            Event::Delete(object) => drop(self.all.remove(&uid(&object))),
        }
    }

    /// Whether a list is in progress, so that what is known is old.
    pub(crate) fn is_listing(&self) -> bool {
        self.is_listing
    }

    /// All of them, once they have been listed.
    pub(crate) fn all(&self) -> Option<impl Iterator<Item = &V>> {
        self.is_synced.then(|| self.all.values())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some(format!("{name}-uid"));
        pod
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let mut known = Known::default();
        let mut names_after = |events: Vec<Event<Pod>>| {
            for event in events {
                known.observe(event, ResourceExt::name_any);
            }
            known.all().map(|all| all.cloned().collect::<Vec<String>>())
        };
        assert_eq!(names_after(vec![Event::Init, Event::InitApply(pod("a"))]), None);
        let names = names_after(vec![Event::InitDone, Event::Apply(pod("b"))]);
        assert_eq!(names.unwrap(), ["a", "b"]);
        assert_eq!(names_after(vec![Event::Delete(pod("a"))]).unwrap(), ["b"]);
        // The watch broke, and what happened meanwhile is in the list.
        assert_eq!(names_after(vec![Event::Init, Event::InitApply(pod("c"))]).unwrap(), ["b"]);
        assert_eq!(names_after(vec![Event::InitDone]).unwrap(), ["c"]);
    }
}
