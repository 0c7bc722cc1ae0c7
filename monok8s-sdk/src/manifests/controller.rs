//! The operator: one replica, few rights, no privileges.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::rbac::{cluster_role, role, rule, service_account};
use super::{
    CONTROLLER_NAME, CONTROLLER_PORT, ConfigMapCatalogs, ImageSource, LOCAL_CONTROLLER_IMAGE, Namespace,
    Readable, configmap_catalogs, field_env, metadata, on_managed_nodes, pod_labels, prerequisites,
};
use crate::api::{GROUP, LABEL_CONTROL_PLANE};

/// How the operator is installed.
///
/// ```
/// use monok8s_sdk::manifests::{Controller, to_yaml};
///
/// let yaml = to_yaml(&Controller::default().objects());
/// assert!(yaml.contains("imagePullPolicy: Never"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// Where everything goes.
    pub namespace: Namespace,
    /// Where the image comes from.
    pub image: ImageSource,
    /// Whether catalogs may be read from `ConfigMaps`.
    pub config_maps: ConfigMapCatalogs,
    /// What it may read for health checks.
    pub grant_read: BTreeSet<Readable>,
}

impl Controller {
    /// Everything it takes: Namespace, CRDs, `ServiceAccount`, roles and Deployment, in the order in which
    /// they must be applied.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = prerequisites(&self.namespace);
        objects.extend(self.own_objects());
        if self.config_maps == ConfigMapCatalogs::Allowed {
            objects.extend(configmap_catalogs(&self.namespace));
        }
        objects
    }

    /// Only what is the operator's own: no Namespace, no CRDs.
    #[must_use]
    pub fn own_objects(&self) -> Vec<Value> {
        let mut objects = vec![service_account(CONTROLLER_NAME, &self.namespace)];
        objects.extend(cluster_role(CONTROLLER_NAME, &self.namespace, &self.cluster_rules()));
        let lease = [rule("coordination.k8s.io", &["leases"], &["get", "create", "patch"])];
        objects.extend(role(CONTROLLER_NAME, &self.namespace, &[CONTROLLER_NAME], &lease));
        objects.push(self.deployment());
        objects
    }

    fn cluster_rules(&self) -> Vec<Value> {
        let granted = self.grant_read.iter();
        let granted = granted.map(|kind| rule(kind.group(), &[kind.resource()], &["get", "list", "watch"]));
        cluster_rules().into_iter().chain(granted).collect()
    }

    fn deployment(&self) -> Value {
        let mut pod = json!({
            "serviceAccountName": CONTROLLER_NAME,
            "priorityClassName": "system-cluster-critical",
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "tolerations": [
                { "key": LABEL_CONTROL_PLANE, "operator": "Exists", "effect": "NoSchedule" },
            ],
            "containers": [self.container()],
        });
        if let (ImageSource::Local, Some(fields)) = (&self.image, pod.as_object_mut()) {
            fields.insert("nodeSelector".to_owned(), on_managed_nodes());
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(CONTROLLER_NAME, &self.namespace),
            "spec": {
                "replicas": 1,
                "revisionHistoryLimit": 3,
                // Two planners at once are what the Lease forbids; this avoids the wait for it.
                "strategy": { "type": "Recreate" },
                "selector": { "matchLabels": pod_labels(CONTROLLER_NAME) },
                "template": { "metadata": { "labels": pod_labels(CONTROLLER_NAME) }, "spec": pod },
            },
        })
    }

    fn container(&self) -> Value {
        let (image, pull_policy) = match &self.image {
            ImageSource::Local => (LOCAL_CONTROLLER_IMAGE, "Never"),
            ImageSource::Registry(reference) => (reference.as_str(), "IfNotPresent"),
        };
        let probe = |path: &str| json!({ "httpGet": { "path": path, "port": "http" } });
        json!({
            "name": CONTROLLER_NAME,
            "image": image,
            "imagePullPolicy": pull_policy,
            "command": ["monok8s-operator", "run"],
            "env": [
                field_env("NODE_NAME", "spec.nodeName"),
                field_env("POD_NAME", "metadata.name"),
                field_env("POD_NAMESPACE", "metadata.namespace"),
            ],
            "ports": [{ "name": "http", "containerPort": CONTROLLER_PORT }],
            "livenessProbe": probe("/healthz"),
            "readinessProbe": probe("/readyz"),
            "resources": {
                "requests": { "cpu": "20m", "memory": "64Mi" },
                "limits": { "memory": "512Mi" },
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
        })
    }
}

/// What the operator may do anywhere in the cluster.
fn cluster_rules() -> Vec<Value> {
    vec![
        rule(GROUP, &["osupgrades"], &["get", "list", "watch"]),
        rule(GROUP, &["osupgrades/status"], &["patch"]),
        rule(GROUP, &["osupgradeprogresses"], &["get", "list", "watch", "create", "patch", "delete"]),
        rule(GROUP, &["osupgradeprogresses/status"], &["patch"]),
        rule(GROUP, &["osnodes"], &["get", "list", "watch", "create"]),
        // A cordon is a patch.
        rule("", &["nodes"], &["get", "list", "watch", "patch"]),
        // Drains. Pods are only ever deleted where drain.onTimeout is Force.
        rule("", &["pods"], &["list", "watch", "delete"]),
        rule("", &["pods/eviction"], &["create"]),
        rule("", &["persistentvolumeclaims"], &["get"]),
        rule("storage.k8s.io", &["volumeattachments"], &["list", "watch"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ]
}
