//! What the operator says in an order whose agent has said nothing for a while: the node is down, or not there yet. An
//! agent that is there speaks within ten seconds, often of its second phase, and saves a write for each node.

use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use monok8s_sdk::api::{GROUP, OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase, VERSION};
use monok8s_sdk::rollout::NodeView;
use serde_json::json;

use super::{AT_ONCE, ApplyError, Executor, PROGRESS_STATUS, request};

/// The field manager of the first words. One of its own, so that the agent's first write takes
/// every field over and leaves none behind.
const FIELD_MANAGER: &str = "monok8s-operator-init";
/// How long an agent has for its first word. It waits for ten seconds whether leave to stage comes, to tell of both
/// at once.
const AGENTS_HAVE: SignedDuration = SignedDuration::from_secs(30);

/// What there is to say.
#[derive(Debug, Default)]
pub struct FirstWords {
    due: Vec<FirstWord>,
    /// When more may be.
    pub next_due: Option<Timestamp>,
}

/// The status of an object as it is when its agent says nothing.
#[derive(Debug, PartialEq)]
struct FirstWord {
    name: String,
    version: Option<String>,
    status: OSUpgradeProgressStatus,
}

/// What there is to say about these objects.
#[must_use]
pub fn first_words(
    progresses: &[Arc<OSUpgradeProgress>],
    nodes: &[Arc<NodeView>],
    now: Timestamp,
) -> FirstWords {
    let mut words = FirstWords::default();
    let mut silent = Vec::new();
    for object in progresses.iter().filter(|object| is_silent(object)) {
        let created = object.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
        let due = created.checked_add(AGENTS_HAVE).unwrap_or(now);
        // A clock that is far behind the API server's must not have it wait for hours.
        if now < due && due.duration_since(now) <= AGENTS_HAVE * 2 {
            words.next_due = words.next_due.into_iter().chain([due]).min();
        } else {
            silent.push(object);
        }
    }
    if !silent.is_empty() {
        let nodes: HashMap<&str, &NodeView> =
            nodes.iter().map(|node| (node.uid.as_str(), node.as_ref())).collect();
        words.due = silent.into_iter().filter_map(|object| first_word(object, &nodes)).collect();
    }
    words
}

fn is_silent(object: &OSUpgradeProgress) -> bool {
    let phase = object.status.as_ref().and_then(|status| status.phase.as_ref());
    object.spec.order.is_some() && phase.is_none() && object.metadata.deletion_timestamp.is_none()
}

fn first_word(object: &OSUpgradeProgress, nodes: &HashMap<&str, &NodeView>) -> Option<FirstWord> {
    let order = object.spec.order.as_ref()?;
    let node = nodes.get(order.node_uid.as_str())?;
    Some(FirstWord {
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
}

impl Executor<'_> {
    /// Says the first words. Tells how many writes were made.
    pub async fn say_first_words(&self, words: &FirstWords) -> Result<usize, ApplyError> {
        let said = words.due.iter().map(|word| async move {
            if !self.leadership.may_act() {
                return Err(ApplyError::NotLeading);
            }
            self.say(word).await
        });
        let said: Vec<bool> = stream::iter(said).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(said.into_iter().filter(|said| *said).count())
    }

    /// With the resourceVersion at which nothing was said: if the agent was faster, its word stands.
    async fn say(&self, word: &FirstWord) -> Result<bool, ApplyError> {
        let FirstWord { name, version, status } = word;
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
            "metadata": { "name": name, "resourceVersion": "7", "creationTimestamp": "2026-11-24T12:00:00Z" },
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
    fn only_what_nobody_spoke_of_for_a_while_is_spoken_for() {
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
        let at = |text: &str| first_words(&progresses, &nodes, text.parse().unwrap());
        for time in ["2026-11-24T12:00:29Z", "2026-11-24T11:59:58Z"] {
            let too_early = at(time);
            assert_eq!(too_early.due, []);
            assert_eq!(too_early.next_due, Some("2026-11-24T12:00:30Z".parse().unwrap()));
        }
        for time in ["2026-11-24T12:00:30Z", "2026-11-24T11:00:00Z"] {
            let FirstWords { due, next_due } = at(time);
            let [word] = due.as_slice() else { panic!("{due:?}") };
            assert_eq!((word.name.as_str(), word.version.as_deref(), next_due), ("new", Some("7"), None));
            assert_eq!(word.status.current_version.as_deref(), Some("v1.34.1"));
            assert_eq!(word.status.target_version.as_deref(), Some("v1.35.4"));
        }
    }
}
