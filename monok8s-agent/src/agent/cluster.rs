//! The agent's few requests to the API server. Each is bounded in time: an API server that is away
//! must not hold up what a node does on its own.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use monok8s_sdk::api::{
    AGENT_FIELD_MANAGER, OSNode, OSNodeStatus, OSUpgrade, OSUpgradeProgress, OSUpgradeProgressStatus,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::undeclared::leave_out;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The object is not there, or is another one under the same name.
    #[error("{what} does not exist")]
    Absent {
        /// The object, as kind and name.
        what: String,
    },
    /// The object changed since it was read.
    #[error("{what} has changed since it was read")]
    Conflict {
        /// The object, as kind and name.
        what: String,
    },
    /// The API server said no to this and will again.
    #[error("the API server refuses access to {what}: check the agent's RBAC rules")]
    Refused {
        /// The object, as kind and name.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// No answer, or one that a later try may change.
    #[error("cannot reach {what}")]
    Unreachable {
        /// The object, as kind and name.
        what: String,
        /// What came instead, if anything did in time.
        source: Option<Box<kube::Error>>,
    },
}

impl ClusterError {
    /// What the API server said, if it is not one of those above.
    fn answer(&self) -> Option<&str> {
        match self {
            Self::Unreachable { source: Some(source), .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(&status.message),
                _ => None,
            },
            _ => None,
        }
    }
}

/// This node's view of the cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    node_name: String,
}

impl Cluster {
    /// As seen by the agent of the node of this name.
    #[must_use]
    pub fn new(client: Client, node_name: String) -> Self {
        Self { client, node_name }
    }

    /// The Node object.
    pub(super) async fn node(&self) -> Result<Node, ClusterError> {
        self.get("Node", &self.node_name).await
    }

    /// A progress object, from a quorum read.
    pub(super) async fn progress(&self, name: &str) -> Result<OSUpgradeProgress, ClusterError> {
        self.get("OSUpgradeProgress", name).await
    }

    /// The upgrade that a hand-made progress object names.
    pub(super) async fn upgrade(&self, name: &str) -> Result<OSUpgrade, ClusterError> {
        self.get("OSUpgrade", name).await
    }

    /// This node's `OSNode`.
    pub(super) async fn os_node(&self) -> Result<OSNode, ClusterError> {
        self.get("OSNode", &self.node_name).await
    }

    /// The pods of one namespace on this node.
    pub(super) async fn pods(&self, namespace: &str) -> Result<Vec<Pod>, ClusterError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().fields(&format!("spec.nodeName={}", self.node_name));
        let what = format!("the pods of {namespace}");
        Ok(bounded(what, api.list(&params)).await?.items)
    }

    /// Writes the whole status that the agent owns, if the object is still the one that was read:
    /// always the same object, and with [`Precondition::Unchanged`] the same version of it.
    pub(super) async fn write_progress(
        &self,
        object: &OSUpgradeProgress,
        status: &OSUpgradeProgressStatus,
        precondition: Precondition,
    ) -> Result<OSUpgradeProgress, ClusterError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let mut metadata = json!({"name": name, "uid": object.metadata.uid});
        if precondition == Precondition::Unchanged
            && let Some(fields) = metadata.as_object_mut()
        {
            fields.insert("resourceVersion".to_owned(), json!(object.metadata.resource_version));
        }
        let document = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": metadata,
            "status": status,
        });
        self.apply_status("OSUpgradeProgress", &name, document).await
    }

    /// Writes the whole status of this node's `OSNode`.
    pub(super) async fn write_os_node(
        &self,
        object: &OSNode,
        status: &OSNodeStatus,
    ) -> Result<OSNode, ClusterError> {
        let document = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSNode",
            "metadata": {"name": self.node_name, "uid": object.metadata.uid},
            "status": status,
        });
        self.apply_status("OSNode", &self.node_name, document).await
    }

    async fn get<K>(&self, kind: &str, name: &str) -> Result<K, ClusterError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        bounded(format!("{kind} {name}"), api.get(name)).await
    }

    async fn apply_status<K>(
        &self,
        kind: &str,
        name: &str,
        mut document: serde_json::Value,
    ) -> Result<K, ClusterError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        let params = PatchParams::apply(AGENT_FIELD_MANAGER).force();
        loop {
            let patch = Patch::Apply(&document);
            let written = bounded(format!("{kind} {name}"), api.patch_status(name, &params, &patch)).await;
            match written {
                // With a field less each time, this ends.
                Err(error) if error.answer().is_some_and(|answer| leave_out(&mut document, answer)) => {
                    tracing::debug!(%kind, name, "the cluster's CRDs are older than this agent");
                }
                result => return result,
            }
        }
    }
}

/// What must be true of an object for a write to it to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precondition {
    /// It is still the same object.
    SameObject,
    /// Nothing in it has changed since it was read. A commit is such a write: a grant that is
    /// withdrawn meanwhile makes it fail.
    Unchanged,
}

async fn bounded<K>(
    what: String,
    request: impl Future<Output = Result<K, kube::Error>>,
) -> Result<K, ClusterError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(sorted(what, error)),
        Err(_) => Err(ClusterError::Unreachable { what, source: None }),
    }
}

fn sorted(what: String, error: kube::Error) -> ClusterError {
    let code = match &error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    };
    match code {
        404 => ClusterError::Absent { what },
        409 => ClusterError::Conflict { what },
        401 | 403 => ClusterError::Refused { what, source: Box::new(error) },
        _ => ClusterError::Unreachable { what, source: Some(Box::new(error)) },
    }
}
