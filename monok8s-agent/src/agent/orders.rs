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
    let mut listing = BTreeMap::new();
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

fn apply(
    event: Event<Guarded>,
    node_name: &str,
    listing: &mut BTreeMap<String, Arc<OSUpgradeProgress>>,
    orders: &watch::Sender<Orders>,
) {
    match event {
        Event::Init => listing.clear(),
        Event::InitApply(object) => {
            if let Some((name, object)) = readable(object, node_name) {
                listing.insert(name, object);
            }
        }
        Event::InitDone => {
            let objects = std::mem::take(listing);
            orders.send_modify(|orders| *orders = Orders { objects, listed: true });
        }
        Event::Apply(object) => {
            if let Some((name, object)) = readable(object, node_name) {
                orders.send_modify(|orders| {
                    orders.objects.insert(name, object);
                });
            }
        }
        Event::Delete(object) => orders.send_modify(|orders| {
            orders.objects.remove(&object.name_any());
        }),
    }
}

/// An object that this release can read. One that it cannot is named and left alone, so that it
/// does not keep the others from being seen.
fn readable(object: Guarded, node_name: &str) -> Option<(String, Arc<OSUpgradeProgress>)> {
    let name = object.name_any();
    match object.0 {
        // The selector is the server's; what is written to a disk is checked here as well.
        Ok(object) if object.spec.node_name == node_name => Some((name, Arc::new(object))),
        Ok(object) => {
            tracing::warn!(%name, node = object.spec.node_name, "ignored: a progress object of another node");
            None
        }
        Err(error) => {
            tracing::warn!(%name, %error, "ignored: a progress object that this release cannot read");
            None
        }
    }
}
