//! `ctl rollback NODE` and `ctl rollback --upgrade NAME`: nodes sent back from afar, as the controller paces it.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::jiff::Timestamp;
use kube::api::Patch;
use kube::{Api, Client};
use monok8s_sdk::api::{OSUpgradeProgress, ProgressPhase, ReturnState};
use monok8s_sdk::status::Cluster;
use serde_json::json;

use super::cluster::read;
use super::steer::params;

/// A node's object to be sent back by, and the version it goes to.
struct Candidate<'c> {
    node: &'c str,
    object: &'c str,
    version: &'c str,
}

/// Sends nodes back to their other slots: one, or all that an upgrade has brought to where they are. Returns what was
/// done, a line each.
pub(super) async fn send_back(
    client: &Client,
    node: Option<&str>,
    upgrade: Option<&str>,
) -> Result<Vec<String>> {
    let cluster = read(client).await?;
    let mut objects: Vec<_> =
        cluster.progresses.iter().filter(|object| object.phase() == ProgressPhase::Completed).collect();
    // Of several objects of a node, the youngest is what brought it where it is.
    objects.sort_by_key(|object| {
        std::cmp::Reverse(object.metadata.creation_timestamp.as_ref().map(|time| time.0))
    });
    objects.sort_by(|a, b| a.spec.node_name.cmp(&b.spec.node_name));
    objects.dedup_by(|a, b| a.spec.node_name == b.spec.node_name);
    objects.retain(|object| {
        node.is_none_or(|node| object.spec.node_name == node)
            && upgrade.is_none_or(|upgrade| object.spec.source_ref.name == upgrade)
    });
    let mut lines = Vec::new();
    let mut able = Vec::new();
    for object in objects {
        match candidate(&cluster, object) {
            Ok(candidate) => able.push(candidate),
            Err(why) => lines.push(format!("{}: {why}", object.spec.node_name)),
        }
    }
    if able.is_empty() {
        let of = match (node, upgrade) {
            (Some(node), _) => format!("{node} cannot be sent back"),
            (None, name) => format!("no node of {} can be sent back", name.unwrap_or_default()),
        };
        match lines.as_slice() {
            [] => bail!("{of}: no OSUpgradeProgress says that it was brought where it is"),
            lines => bail!("{of}: {}", lines.join("; ")),
        }
    }
    let nonce = format!("ctl-{}", Timestamp::now().as_second());
    let api: Api<OSUpgradeProgress> = Api::all(client.clone());
    for Candidate { node, object, version } in able {
        let patch = Patch::Merge(json!({ "spec": { "rollbackNonce": nonce } }));
        api.patch(object, &params(), &patch).await.with_context(|| format!("cannot send {node} back"))?;
        lines.push(format!("{node} goes back to {version}"));
    }
    Ok(lines)
}

/// What the node can go back to, or why it cannot.
fn candidate<'c>(cluster: &'c Cluster, object: &'c OSUpgradeProgress) -> Result<Candidate<'c>, String> {
    let node = object.spec.node_name.as_str();
    let source = object.spec.source_ref.name.as_str();
    let upgrade = cluster.upgrades.iter().find(|upgrade| upgrade.metadata.name.as_deref() == Some(source));
    let run = upgrade.and_then(|upgrade| upgrade.status.as_ref()?.run);
    if object.spec.order.as_ref().is_some_and(|order| Some(order.run) != run) {
        return Err(format!(
            "an earlier run of {source} brought it where it is, and is over: run `ctl rollback` there"
        ));
    }
    let report = cluster.os_nodes.iter().find(|report| report.metadata.name.as_deref() == Some(node));
    let status = report.and_then(|report| report.status.as_ref());
    let other = status
        .and_then(|status| status.other_slot.as_ref())
        .ok_or("it does not say what its other slot holds")?;
    if other.return_state != ReturnState::KnownGood {
        return Err(format!("its other slot is {}, not KnownGood", other.return_state));
    }
    let object = object.metadata.name.as_deref().ok_or("its object has no name")?;
    let version = other.version.as_deref().unwrap_or("what its other slot holds");
    Ok(Candidate { node, object, version })
}
