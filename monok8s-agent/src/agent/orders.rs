//! This node's progress objects, as the API server last showed them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client, ResourceExt as _};
use monok8s_sdk::api::OSUpgradeProgress;
use tokio::sync::watch;

/// Every progress object of this node, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// The objects; empty until the first list was read.
    pub(super) objects: BTreeMap<String, Arc<OSUpgradeProgress>>,
    /// By name, the UIDs of those that are there and that this release cannot read. What they said
    /// before is forgotten: it does not hold any more.
    pub(super) unreadable: BTreeMap<String, String>,
    /// Whether they were listed since this process started.
    pub(super) listed: bool,
}

type Guarded = DeserializeGuard<OSUpgradeProgress>;

/// Watches until the receiver is dropped; an API server that is away is asked again, with backoff.
///
/// The first list carries no resourceVersion, so the API server answers it from a quorum read: an
/// order from a stale cache could replay as a downgrade.
pub(super) async fn watch_orders(client: Client, node_name: String, orders: watch::Sender<Orders>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let api: Api<Guarded> = Api::all(client);
    let mut events = pin!(watch_objects(api, config).default_backoff());
    let mut listing = Orders::default();
    while let Some(event) = events.next().await {
        if orders.is_closed() {
            return;
        }
        match event {
            Ok(event) => apply(event, &node_name, &mut listing, &orders),
            Err(error) => tracing::warn!(%error, "cannot watch this node's progress objects, trying again"),
        }
    }
}

fn apply(event: Event<Guarded>, node_name: &str, listing: &mut Orders, orders: &watch::Sender<Orders>) {
    match event {
        Event::Init => *listing = Orders::default(),
        Event::InitApply(object) => listing.take_in(object, node_name),
        Event::InitDone => {
            let listed = Orders { listed: true, ..std::mem::take(listing) };
            orders.send_modify(|orders| *orders = listed);
        }
        Event::Apply(object) => orders.send_modify(|orders| orders.take_in(object, node_name)),
        Event::Delete(object) => orders.send_modify(|orders| orders.forget(&object.name_any())),
    }
}

impl Orders {
    /// Replaces what was known of an object. One that this release cannot read is named, and does
    /// not keep the others from being seen.
    fn take_in(&mut self, object: Guarded, node_name: &str) {
        let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
        self.forget(&name);
        match object.0 {
            // The selector is the server's; what is written to a disk is checked here as well.
            Ok(object) if object.spec.node_name == node_name => {
                self.objects.insert(name, Arc::new(object));
            }
            Ok(object) => {
                tracing::warn!(%name, node = object.spec.node_name, "ignored: a progress object of another node");
            }
            Err(error) => {
                tracing::warn!(
                    %name, %error,
                    "ignored: a progress object that this release cannot read; nothing is begun for it, \
                     and what the node has committed to goes on"
                );
                self.unreadable.insert(name, uid);
            }
        }
    }

    fn forget(&mut self, name: &str) {
        self.objects.remove(name);
        self.unreadable.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, node: &Value) -> Guarded {
        serde_json::from_value(json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": {"name": name, "uid": format!("u-{name}")},
            "spec": {"sourceRef": {"name": "up"}, "nodeName": node},
        }))
        .unwrap()
    }

    fn shown(orders: &watch::Sender<Orders>) -> (Vec<String>, Vec<String>) {
        let orders = orders.borrow();
        (orders.objects.keys().cloned().collect(), orders.unreadable.values().cloned().collect())
    }

    #[test]
    fn what_an_object_said_before_it_became_unreadable_is_forgotten_at_once() {
        let (orders, _) = watch::channel(Orders::default());
        let mut listing = Orders::default();
        let mut see = |event| apply(event, "node-1", &mut listing, &orders);
        let (ours, others, broken) = (json!("node-1"), json!("node-2"), json!({"of": "a newer release"}));
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();

        see(Event::Init);
        for (name, node) in [("a", &ours), ("b", &ours), ("c", &broken), ("d", &others)] {
            see(Event::InitApply(object(name, node)));
        }
        assert!(!orders.borrow().listed);
        see(Event::InitDone);
        assert!(orders.borrow().listed);
        assert_eq!(shown(&orders), (names(&["a", "b"]), names(&["u-c"])));

        see(Event::Apply(object("a", &broken)));
        assert_eq!(shown(&orders), (names(&["b"]), names(&["u-a", "u-c"])));
        see(Event::Apply(object("c", &ours)));
        see(Event::Apply(object("b", &others)));
        assert_eq!(shown(&orders), (names(&["c"]), names(&["u-a"])));
        see(Event::Delete(object("a", &broken)));
        see(Event::Delete(object("c", &broken)));
        assert_eq!(shown(&orders), (vec![], vec![]));
    }
}
