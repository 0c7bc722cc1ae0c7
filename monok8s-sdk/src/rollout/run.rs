//! When a new run begins.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::fleet::{Target, UpgradeView};
use super::outlook::NewRun;
use crate::api::{
    CatalogSource, ChannelPolicy, DowngradePolicy, NodeSelector, OSUpgrade, OSUpgradeSpec, Resolved,
};
use crate::digest::Sha256Digest;
use crate::version::OsVersion;

/// What a run is begun for: the parts of a spec that say where which nodes shall go. How they go
/// (`rollout`, `paused`, `mode`) may change in the middle of one.
#[derive(Serialize)]
struct Meaning<'a> {
    version: &'a str,
    node_selector: &'a NodeSelector,
    catalog: &'a CatalogSource,
    channel_policy: ChannelPolicy,
    downgrade_policy: DowngradePolicy,
    /// What a followed channel points to.
    followed: Option<&'a OsVersion>,
}

/// The digest that is kept as `status.runDigest`.
///
/// `resolved` is what `spec.version` stands for by now; it matters only where a channel is
/// followed.
#[must_use]
pub fn run_digest(spec: &OSUpgradeSpec, resolved: &OsVersion) -> String {
    let follows = spec.channel_policy == Some(ChannelPolicy::Follow);
    let meaning = Meaning {
        version: &spec.version,
        node_selector: &spec.node_selector,
        catalog: &spec.catalog,
        channel_policy: spec.channel_policy.unwrap_or_default(),
        downgrade_policy: spec.downgrade_policy.unwrap_or_default(),
        followed: follows.then_some(resolved),
    };
    // Strings, maps with string keys and enums always serialize, and always the same way.
    Sha256Digest::of(&serde_json::to_vec(&meaning).unwrap_or_default()).to_string()
}

/// What the current run is frozen to, if the spec still means what the run was begun for and no
/// new nonce asks for another one. Whoever evaluates the spec passes exactly this on, whatever the
/// catalog says by now, unless the upgrade follows a channel: then it resolves the channel anew,
/// and passes this on only if the channel still points to the same version.
#[must_use]
pub fn frozen_target(upgrade: &OSUpgrade) -> Option<&Resolved> {
    let status = upgrade.status.as_ref()?;
    let resolved = status.resolved.as_ref()?;
    is_current(upgrade, resolved).then_some(resolved)
}

/// Whether the run in the status is the one that the spec asks for.
fn is_current(upgrade: &OSUpgrade, resolved: &Resolved) -> bool {
    let Some(status) = &upgrade.status else { return false };
    status.run.is_some_and(|run| run > 0)
        && status.run_digest.as_deref() == Some(run_digest(&upgrade.spec, &resolved.version).as_str())
        && !has_new_nonce(upgrade)
}

/// An empty nonce, or one that was removed, is never new.
fn has_new_nonce(upgrade: &OSUpgrade) -> bool {
    let observed = upgrade.status.as_ref().and_then(|status| status.observed_retry_nonce.as_deref());
    let nonce = upgrade.spec.retry_nonce();
    !nonce.is_empty() && nonce != observed.unwrap_or_default()
}

/// The number of the run that is under way.
pub(super) fn current_run(view: &UpgradeView) -> Option<i64> {
    view.upgrade.status.as_ref()?.run.filter(|run| *run > 0)
}

/// The run that has to begin before anything is done for `target`, if the current one is not for it.
pub(super) fn new_run(view: &UpgradeView, target: &Target, now: Timestamp) -> Option<NewRun> {
    (!is_current(&view.upgrade, &target.resolved)).then(|| NewRun {
        run: current_run(view).unwrap_or(0).saturating_add(1),
        digest: run_digest(&view.upgrade.spec, &target.resolved.version),
        resolved: target.resolved.clone(),
        retry_nonce: view.upgrade.spec.retry_nonce().to_owned(),
        started_at: now,
    })
}
