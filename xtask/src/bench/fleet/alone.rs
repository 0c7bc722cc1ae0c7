//! How long the API server takes for a fleet's objects when nobody plans them and nobody watches: what the
//! operator's own time is held against, since machines differ by more than operators do.

use std::time::Instant;

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, Resource as _};
use monok8s_sdk::api::OSUpgradeProgress;

/// Requests in flight at once, as many as the operator has.
const AT_ONCE: usize = 8;

/// Takes the objects away that the operator made, and creates the same once more, as they were when they were new.
/// Tells how many seconds that took. Nobody else may be at work.
pub(super) async fn server_alone(client: &Client) -> Result<f64> {
    let api: Api<OSUpgradeProgress> = Api::all(client.clone());
    let objects = api.list(&ListParams::default()).await?.items.into_iter().map(as_new);
    let objects = objects.collect::<Result<Vec<_>, _>>()?;
    api.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;

    let began = Instant::now();
    let url = OSUpgradeProgress::url_path(&(), None);
    let created = objects.into_iter().map(|object| {
        let request = http::Request::post(&url).header("Content-Type", "application/json").body(object);
        // The answer is not read: that is work of the operator's.
        async { client.request_text(request?).await.map_err(anyhow::Error::from) }
    });
    futures::stream::iter(created).buffer_unordered(AT_ONCE).try_for_each(async |_| Ok(())).await?;
    Ok(began.elapsed().as_secs_f64())
}

fn as_new(mut object: OSUpgradeProgress) -> serde_json::Result<Vec<u8>> {
    let mut metadata = std::mem::take(&mut object.metadata);
    object.metadata.name = metadata.name.take();
    object.metadata.owner_references = metadata.owner_references.take();
    object.status = None;
    if let Some(order) = &mut object.spec.order {
        (order.stage, order.stage_granted_at, order.boot) = (None, None, None);
    }
    serde_json::to_vec(&object)
}
