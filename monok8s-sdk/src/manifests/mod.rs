//! What is installed in a cluster: the CRDs, the controller, the agents, and what they may do.
//!
//! The objects are plain JSON values without status, null or creation time, and state no field only
//! to repeat a default: applied twice they change nothing, and they differ from Git in nothing.

mod admission;
mod agent;
mod configmaps;
mod controller;
mod rbac;
mod readable;

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

pub use agent::Agent;
pub use configmaps::{ConfigMapCatalogs, configmap_catalogs};
pub use controller::Controller;
pub use readable::{Readable, ReadableError};

use crate::api::{LABEL_MANAGED, crds, sort_keys};

/// The namespace of everything, unless another one is asked for.
pub const DEFAULT_NAMESPACE: &str = "mono-system";
/// Deployment and `ServiceAccount` of the operator.
pub const CONTROLLER_NAME: &str = "controller";
/// `DaemonSet` and `ServiceAccount` of the agent.
pub const AGENT_NAME: &str = "node-agent";
/// The operator's image as every OS image ships it, under one name in all versions.
pub const LOCAL_CONTROLLER_IMAGE: &str = "localhost/monok8s/controller:local";
/// The agent's image as every OS image ships it, under one name in all versions.
pub const LOCAL_AGENT_IMAGE: &str = "localhost/monok8s/node-agent:local";
/// Port of the operator's `/healthz`, `/readyz` and `/metrics`.
pub const CONTROLLER_PORT: u16 = 8080;

/// Where a program's image comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageSource {
    /// The image that managed nodes ship: the pods are bound to such nodes, and nothing is pulled.
    #[default]
    Local,
    /// A registry: the reference, such as `registry.example.com/monok8s/controller:v1`.
    Registry(String),
}

/// The name of a namespace: a DNS label.
///
/// ```
/// use monok8s_sdk::manifests::Namespace;
///
/// assert_eq!(Namespace::default().as_str(), "mono-system");
/// assert!("kube system".parse::<Namespace>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Namespace(String);

/// Why a text is not the name of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a namespace: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends")]
pub struct NamespaceError {
    text: String,
}

impl Namespace {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The Namespace object. Its pods may be privileged, because the agent is.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": self.0,
                "labels": {
                    "app.kubernetes.io/part-of": PART_OF,
                    "pod-security.kubernetes.io/enforce": "privileged",
                },
            },
        })
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(DEFAULT_NAMESPACE.to_owned())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NamespaceError { text: text.chars().take(80).collect() })
        }
    }
}

/// The objects as one YAML stream with sorted keys, ready for `kubectl apply -f -`.
#[must_use]
pub fn to_yaml(objects: &[Value]) -> String {
    let documents: Vec<_> = objects
        .iter()
        .map(|object| serde_yaml::to_string(&sort_keys(object.clone())).unwrap_or_default())
        .collect();
    documents.join("---\n")
}

/// What comes before every program: its namespace and the CRDs.
fn prerequisites(namespace: &Namespace) -> Vec<Value> {
    let mut objects = vec![namespace.object()];
    objects.extend(crds());
    objects
}

pub(crate) const PART_OF: &str = "monok8s-os-upgrades";

/// Metadata of a namespaced object of the program `name`.
fn metadata(name: &str, namespace: &Namespace) -> Value {
    json!({ "name": name, "namespace": namespace.as_str(), "labels": labels(name) })
}

fn labels(name: &str) -> Value {
    json!({ "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": PART_OF })
}

/// What selects the pods of the program `name`. Never changes: a selector is immutable.
fn pod_labels(name: &str) -> Value {
    json!({ "app.kubernetes.io/name": name })
}

fn on_managed_nodes() -> Value {
    json!({ LABEL_MANAGED: "true" })
}

fn field_env(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

#[cfg(test)]
mod tests;
