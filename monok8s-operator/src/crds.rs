//! Waits for the kinds of `monok8s.io` to be served: with GitOps, the operator may well start
//! before the CRDs are applied.

use std::time::Duration;

use kube::Client;
use monok8s_sdk::api::{GROUP, VERSION};
use monok8s_sdk::causes::chain;

use crate::access::ApiError;
use crate::admin::{Health, Readiness};

const KINDS: [&str; 3] = ["osupgrades", "osupgradeprogresses", "osnodes"];
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Returns when all three kinds are served, however long that takes. What is missing is logged
/// when it changes, and told by `/readyz` meanwhile.
pub async fn wait(client: &Client, health: &Health) {
    let mut told = String::new();
    let mut pause = FIRST_RETRY;
    loop {
        let why = match missing(client).await {
            Ok(missing) if missing.is_empty() => return,
            Ok(missing) => {
                format!(
                    "waiting for the CRDs {}: apply the output of `monok8s-operator crds`",
                    missing.join(", ")
                )
            }
            Err(error) => chain(&error),
        };
        health.set(Readiness::Waiting(why.clone()));
        if why != told {
            tracing::warn!("{why}");
            told = why;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

/// The kinds that are not served. Read from discovery, which every service account may.
async fn missing(client: &Client) -> Result<Vec<String>, ApiError> {
    let served = match client.list_api_group_resources(&format!("{GROUP}/{VERSION}")).await {
        Ok(served) => served.resources,
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(ApiError::of("discover", "monok8s.io/v1alpha1", error)),
    };
    let absent = KINDS.iter().filter(|kind| !served.iter().any(|resource| resource.name == **kind));
    Ok(absent.map(|kind| format!("{kind}.{GROUP}")).collect())
}
