//! Stage five: what the cluster is told about each upgrade, if it changed.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use monok8s_sdk::api::{GROUP, OPERATOR_FIELD_MANAGER, OSUpgrade, OSUpgradeStatus, VERSION};
use monok8s_sdk::causes::chain;
use monok8s_sdk::rollout::Outlook;
use serde_json::json;

use crate::access::ApiError;
use crate::leader::Leadership;
use crate::observe::Caches;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const STATUS: &str = "osupgrades/status.monok8s.io";

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// The Lease is not held any more.
    #[error("the Lease is not held any more")]
    NotLeading,
    /// A request failed; the statuses after it were tried nevertheless.
    #[error("status of OSUpgrade {name}")]
    Failed {
        /// The upgrade.
        name: String,
        /// What happened.
        #[source]
        source: ApiError,
    },
}

/// A status that was written.
#[derive(Clone, Debug)]
pub struct Change {
    /// The object as it was.
    pub before: OSUpgrade,
    /// Its new status.
    pub after: OSUpgradeStatus,
}

/// Writes the statuses that differ from what is there, by server-side apply, and tells which.
/// One that fails does not keep the others from being written; the first failure is returned.
pub async fn write(
    upgrades: &[OSUpgrade],
    outlooks: &BTreeMap<String, Outlook>,
    now: Timestamp,
    client: &Client,
    caches: &Caches,
    leadership: &Leadership,
) -> (Vec<Change>, Result<(), StatusError>) {
    let api: Api<OSUpgrade> = Api::all(client.clone());
    let mut changes = Vec::new();
    let mut first_failure = Ok(());
    for upgrade in upgrades {
        let uid = upgrade.uid().unwrap_or_default();
        let Some(after) = outlooks.get(&uid).map(|outlook| outlook.status(upgrade, now)) else { continue };
        if upgrade.status.as_ref() == Some(&after) {
            continue;
        }
        if !leadership.may_act() {
            return (changes, Err(StatusError::NotLeading));
        }
        match apply(&api, upgrade, &after).await {
            Ok(written) => {
                caches.upgrades.wrote(written);
                changes.push(Change { before: upgrade.clone(), after });
            }
            // Deleted, or made again: the watch tells.
            Err(error) if error.is_not_found() || error.is_conflict() || error.is_other_uid() => {
                caches.upgrades.gone(&upgrade.name_any(), &upgrade.uid().unwrap_or_default());
            }
            Err(source) => {
                let error = StatusError::Failed { name: upgrade.name_any(), source };
                tracing::warn!(error = chain(&error), "a status could not be written");
                first_failure = first_failure.and(Err(error));
            }
        }
    }
    (changes, first_failure)
}

/// Always the full set of fields: one that is missing is one that is taken back. The UID keeps a
/// status from an object that was made again under the name.
async fn apply(
    api: &Api<OSUpgrade>,
    upgrade: &OSUpgrade,
    status: &OSUpgradeStatus,
) -> Result<OSUpgrade, ApiError> {
    let name = upgrade.name_any();
    let object = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "OSUpgrade",
        "metadata": { "name": name, "uid": upgrade.uid() },
        "status": status,
    });
    let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
    let patch = Patch::Apply(&object);
    match tokio::time::timeout(REQUEST_TIMEOUT, api.patch_status(&name, &params, &patch)).await {
        Ok(written) => written.map_err(|error| ApiError::of("patch", STATUS, error)),
        Err(_) => Err(ApiError::TimedOut { verb: "patch", resource: STATUS.into(), after: REQUEST_TIMEOUT }),
    }
}
