//! The agent: one pod on every managed node, privileged on its node and nearly nothing in the cluster.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::admission::agent_policies;
use super::rbac::{cluster_role, role_of, rule, service_account};
use super::{
    AGENT_NAME, ImageSource, LOCAL_AGENT_IMAGE, Namespace, field_env, metadata, on_managed_nodes, pod_labels,
    prerequisites,
};
use crate::api::GROUP;

/// Where the host's data directory is, on the host and in the pod.
const DATA_DIRECTORY: &str = "/var/lib/monok8s";
/// Where the host's root is in the pod.
const HOST_ROOT: &str = "/host";

/// How the agents are installed.
///
/// ```
/// use monok8s_sdk::manifests::Agent;
///
/// let mut agent = Agent::default();
/// agent.settings.insert("MONOK8S_DISK".to_owned(), "/dev/nvme0n1".to_owned());
/// let daemon_set = agent.objects().pop();
/// assert_eq!(daemon_set.unwrap()["metadata"]["name"], "node-agent");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// Where everything goes.
    pub namespace: Namespace,
    /// Where the image comes from.
    pub image: ImageSource,
    /// Environment variables of the agent, each the twin of one of its flags (`MONOK8S_DISK` of
    /// `--disk`). They win over what the manifest sets by itself.
    pub settings: BTreeMap<String, String>,
    /// Namespaces whose pods the agents may read, for the `pods` checks of trials. None by default.
    pub pod_checks: BTreeSet<Namespace>,
}

impl Agent {
    /// Everything it takes: Namespace, CRDs, `ServiceAccount`, roles, admission policies and `DaemonSet`, in
    /// the order in which they must be applied.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = prerequisites(&self.namespace);
        objects.extend(self.own_objects());
        objects
    }

    /// Only what is the agent's own: no Namespace, no CRDs.
    #[must_use]
    pub fn own_objects(&self) -> Vec<Value> {
        let mut objects = vec![service_account(AGENT_NAME, &self.namespace)];
        objects.extend(cluster_role(AGENT_NAME, &self.namespace, &cluster_rules()));
        for namespace in &self.pod_checks {
            let rules = [rule("", &["pods"], &["list"])];
            objects.extend(role_of(
                "monok8s-pod-checks",
                namespace,
                &[(AGENT_NAME, &self.namespace)],
                &rules,
            ));
        }
        objects.extend(agent_policies(&self.namespace));
        objects.push(self.daemon_set());
        objects
    }

    fn daemon_set(&self) -> Value {
        let data = self.data_directory();
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata(AGENT_NAME, &self.namespace),
            "spec": {
                "revisionHistoryLimit": 3,
                "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "10%" } },
                "selector": { "matchLabels": pod_labels(AGENT_NAME) },
                "template": {
                    "metadata": { "labels": pod_labels(AGENT_NAME) },
                    "spec": {
                        "serviceAccountName": AGENT_NAME,
                        "priorityClassName": "system-node-critical",
                        "nodeSelector": on_managed_nodes(),
                        "tolerations": [{ "operator": "Exists" }],
                        // reboot(2) in a PID namespace of its own would end that and nothing else.
                        "hostPID": true,
                        // Images may be on the node's own network, and a trial boot may be without a CNI.
                        "hostNetwork": true,
                        "dnsPolicy": "ClusterFirstWithHostNet",
                        "containers": [self.container(data)],
                        "volumes": [
                            host_path("host", "/", "Directory"),
                            host_path("dev", "/dev", "Directory"),
                            host_path("data", data, "DirectoryOrCreate"),
                        ],
                    },
                },
            },
        })
    }

    fn container(&self, data: &str) -> Value {
        let (image, pull_policy) = match &self.image {
            ImageSource::Local => (LOCAL_AGENT_IMAGE, "Never"),
            ImageSource::Registry(reference) => (reference.as_str(), "IfNotPresent"),
        };
        json!({
            "name": AGENT_NAME,
            "image": image,
            "imagePullPolicy": pull_policy,
            "command": ["monok8s-agent", "run"],
            "env": self.environment(),
            "resources": {
                "requests": { "cpu": "10m", "memory": "64Mi" },
                "limits": { "memory": "256Mi" },
            },
            "securityContext": { "privileged": true, "runAsUser": 0, "readOnlyRootFilesystem": true },
            "volumeMounts": [
                // The host is read here; what is written goes to the slots' devices and the data directory.
                // A boot loader's environment on a partition of its own is written too: read-only is this
                // mount, and not those below it (no recursiveReadOnly).
                { "name": "host", "mountPath": HOST_ROOT, "readOnly": true, "mountPropagation": "HostToContainer" },
                { "name": "dev", "mountPath": "/dev" },
                { "name": "data", "mountPath": data },
            ],
        })
    }

    fn data_directory(&self) -> &str {
        self.settings.get("MONOK8S_DATA_DIR").map_or(DATA_DIRECTORY, String::as_str)
    }

    fn environment(&self) -> Vec<Value> {
        let own = [("MONOK8S_DATA_DIR", DATA_DIRECTORY), ("MONOK8S_HOST_ROOT", HOST_ROOT)];
        let mut variables: BTreeMap<&str, &str> = own.into();
        variables.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut environment = vec![
            field_env("NODE_NAME", "spec.nodeName"),
            field_env("MONOK8S_NAMESPACE", "metadata.namespace"),
        ];
        environment.extend(variables.iter().map(|(name, value)| json!({ "name": name, "value": value })));
        environment
    }
}

fn host_path(name: &str, path: &str, kind: &str) -> Value {
    json!({ "name": name, "hostPath": { "path": path, "type": kind } })
}

/// What every agent may do. Which objects it may write is narrowed to its own node's by admission.
fn cluster_rules() -> Vec<Value> {
    vec![
        rule(GROUP, &["osupgradeprogresses", "osupgrades"], &["get", "list", "watch"]),
        rule(GROUP, &["osnodes"], &["get"]),
        rule(GROUP, &["osupgradeprogresses/status", "osnodes/status"], &["patch"]),
        rule("", &["nodes"], &["get"]),
    ]
}
