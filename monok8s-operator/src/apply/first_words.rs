//! What a new progress object says until its agent's first word.
//!
//! It follows its creation at once, and is made up for if the operator was stopped between the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use monok8s_sdk::api::{GROUP, OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase, VERSION};
use monok8s_sdk::rollout::NodeView;
use serde_json::json;

use super::{AT_ONCE, ApplyError, Executor, PROGRESS_STATUS, request};

/// The field manager of the first words. One of its own, so that the agent's first write takes
/// every field over and leaves none behind.
const FIELD_MANAGER: &str = "monok8s-operator-init";

/// A progress object that says nothing yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Silent {
    pub(super) name: String,
    pub(super) version: Option<String>,
    pub(super) status: OSUpgradeProgressStatus,
}

/// The ordered objects about which nobody has said anything.
#[must_use]
pub fn silent(progresses: &[Arc<OSUpgradeProgress>], nodes: &[Arc<NodeView>]) -> Vec<Silent> {
    let nodes: BTreeMap<&str, &NodeView> =
        nodes.iter().map(|node| (node.uid.as_str(), node.as_ref())).collect();
    let first_words = |object: &Arc<OSUpgradeProgress>| {
        let order = object.spec.order.as_ref()?;
        let phase = object.status.as_ref().and_then(|status| status.phase.as_ref());
        if phase.is_some() || object.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let node = nodes.get(order.node_uid.as_str())?;
        Some(Silent {
            name: object.name_any(),
            version: object.resource_version(),
            status: OSUpgradeProgressStatus {
                current_version: node.version.as_ref().map(ToString::to_string),
                target_version: order.hops.last().map(|hop| hop.version.to_string()),
                phase: Some(ProgressPhase::Pending),
                retry_count: Some(0),
                failure_reason: Some(String::new()),
                message: Some(String::new()),
                ..OSUpgradeProgressStatus::default()
            },
        })
    };
    progresses.iter().filter_map(first_words).collect()
}

impl Executor<'_> {
    /// Says the first words about these objects. Tells how many writes were made.
    pub async fn speak_for(&self, silent: &[Silent]) -> Result<usize, ApplyError> {
        let said = silent.iter().map(|silent| async move {
            if !self.leadership.may_act() {
                return Err(ApplyError::NotLeading);
            }
            self.say_first(silent).await
        });
        let said: Vec<bool> = stream::iter(said).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(said.into_iter().filter(|said| *said).count())
    }

    /// With the resourceVersion at which nothing was said: if the agent was faster, its word stands.
    pub(super) async fn say_first(&self, silent: &Silent) -> Result<bool, ApplyError> {
        let Silent { name, version, status } = silent;
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "OSUpgradeProgress",
            "metadata": { "name": name, "resourceVersion": version },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&object);
        let api: Api<OSUpgradeProgress> = Api::all(self.client.clone());
        let said = api.patch_status(name, &params, &patch);
        match request("first-words", name, "patch", PROGRESS_STATUS, said).await {
            Ok(object) => {
                self.caches.progresses.wrote(object);
                Ok(true)
            }
            Err(ApplyError::Failed { source, .. }) if source.is_conflict() || source.is_not_found() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::digest::Sha256Digest;

    use super::*;

    fn progress(name: &str, node_uid: &str, status: &serde_json::Value) -> OSUpgradeProgress {
        let hop = |version: &str| {
            let checksum = Sha256Digest::of(version.as_bytes());
            json!({ "version": version, "urls": ["https://example.com/x"], "checksum": checksum })
        };
        let hops = [hop("v1.34.6"), hop("v1.35.4")];
        let object = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": { "name": name, "resourceVersion": "7" },
            "spec": {
                "sourceRef": { "name": "up" },
                "nodeName": "node-1",
                "order": { "nodeUID": node_uid, "run": 1, "hops": hops },
            },
            "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn only_what_nobody_spoke_of_is_spoken_for() {
        let node = json!({
            "metadata": { "name": "node-1", "uid": "uid-1" },
            "status": { "nodeInfo": { "kubeletVersion": "v1.34.1", "bootID": "", "machineID": "", "systemUUID": "",
                "kernelVersion": "", "osImage": "", "containerRuntimeVersion": "", "kubeProxyVersion": "",
                "operatingSystem": "", "architecture": "" } },
        });
        let nodes = [Arc::new(NodeView::new(&serde_json::from_value(node).unwrap(), None))];
        let progresses = [
            progress("new", "uid-1", &json!({ "observedGeneration": -1 })),
            progress("spoken-of", "uid-1", &json!({ "phase": "Downloading" })),
            progress("of-another-node", "uid-2", &json!({})),
        ]
        .map(Arc::new);
        let silent = silent(&progresses, &nodes);
        let [silent] = silent.as_slice() else { panic!("{silent:?}") };
        assert_eq!((silent.name.as_str(), silent.version.as_deref()), ("new", Some("7")));
        assert_eq!(silent.status.current_version.as_deref(), Some("v1.34.1"));
        assert_eq!(silent.status.target_version.as_deref(), Some("v1.35.4"));
    }
}
