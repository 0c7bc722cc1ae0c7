//! The opt-in leave to read catalogs from `ConfigMaps`.

use serde_json::Value;

use super::rbac::{role, rule};
use super::{AGENT_NAME, CONTROLLER_NAME, Namespace};

/// Whether catalogs may be read from `ConfigMaps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConfigMapCatalogs {
    /// No, the default: a cluster's `ConfigMaps` are nobody's business who does not need them.
    #[default]
    Denied,
    /// Those in the programs' own namespace.
    Allowed,
}

/// A Role, and its binding, that lets the operator, and the agent where no operator runs, get the
/// `ConfigMaps` of their own namespace and no others.
#[must_use]
pub fn configmap_catalogs(namespace: &Namespace) -> Vec<Value> {
    let rules = [rule("", &["configmaps"], &["get"])];
    role("configmap-catalogs", namespace, &[CONTROLLER_NAME, AGENT_NAME], &rules).into()
}
