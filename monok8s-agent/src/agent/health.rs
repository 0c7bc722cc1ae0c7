//! How well the booted slot is. Looked at during a trial only.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use monok8s_sdk::api::{LABEL_CONTROL_PLANE, TrialCheck};
use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::HostView;
use monok8s_sdk::node_upgrade::{BootId, Check, Holds, NodeView, TrialHealth};

use super::checks::{self, Means};
use super::cluster::{Cluster, ClusterError};
use super::config::{Endpoint, HealthArgs};
use crate::host;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Where static pods of a control plane are defined on its nodes.
const API_SERVER_MANIFEST: &str = "etc/kubernetes/manifests/kube-apiserver.yaml";

/// Asks the node's own endpoints and the API server.
pub(crate) struct HealthProbe {
    http: reqwest::Client,
    kubelet: Endpoint,
    api_server: Endpoint,
    holds: Holds,
}

/// What a trial is judged by.
#[derive(Clone, Copy)]
pub(crate) struct OnTrial<'a> {
    pub(crate) boot_id: &'a BootId,
    /// The checks that its upgrade configures.
    pub(crate) checks: &'a [TrialCheck],
    pub(crate) uptime: Duration,
}

impl HealthProbe {
    pub(crate) fn new(health: HealthArgs) -> Result<Self, reqwest::Error> {
        let HealthArgs { kubelet_healthz: kubelet, apiserver_readyz: api_server } = health;
        let http = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .no_proxy()
            // To a page for people, say, which would answer well.
            .redirect(reqwest::redirect::Policy::none())
            // What is asked is on this node, with certificates for other names, as a kubelet's probes
            // find it; the status is all that counts.
            .tls_danger_accept_invalid_certs(true)
            .build()?;
        Ok(Self { http, kubelet, api_server, holds: Holds::default() })
    }

    /// What holds right now, beside what is known of the version. Without `cluster`, what can be told
    /// without the API server.
    pub(crate) async fn observe(
        &mut self,
        host: &HostView,
        cluster: Option<&Cluster>,
        trial: OnTrial<'_>,
        version: Check,
    ) -> TrialHealth {
        let means = Means { http: &self.http.clone(), host, cluster };
        let configured = checks::observe(&mut self.holds, trial.checks, means, trial.uptime).await;
        let node = match cluster {
            Some(cluster) => Some(promptly(cluster.node()).await),
            None => None,
        };
        let labelled = node.as_ref().and_then(|node| node.as_ref().ok()).is_some_and(is_control_plane);
        let controls = labelled || host::holds_any(host, &[API_SERVER_MANIFEST.to_owned()]);
        let control_plane = async {
            if controls { self.ask("the local API server", &self.api_server).await } else { Check::NotNeeded }
        };
        let (kubelet, control_plane) = futures::join!(self.ask("the kubelet", &self.kubelet), control_plane);
        let node = node.map_or(NodeView::ApiUnreachable, |node| view(node, trial.boot_id));
        TrialHealth { version, kubelet, control_plane, configured, node }
    }

    async fn ask(&self, who: &str, endpoint: &Endpoint) -> Check {
        let Endpoint::Url(url) = endpoint else { return Check::NotNeeded };
        match self.http.get(url).send().await {
            Ok(answer) if answer.status().is_success() => Check::Holds,
            Ok(answer) => Check::Fails(format!("{who} answers {} at {url}", answer.status())),
            Err(_) => Check::Fails(format!("{who} does not answer at {url}")),
        }
    }
}

/// A trial has a deadline: an API server that is silent must not have it missed.
async fn promptly(request: impl Future<Output = Result<Node, ClusterError>>) -> Result<Node, ClusterError> {
    let silent = |_| Err(ClusterError::Unreachable { what: "the Node".to_owned(), source: None });
    tokio::time::timeout(ANSWER_TIMEOUT, request).await.unwrap_or_else(silent)
}

fn is_control_plane(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_CONTROL_PLANE))
}

fn view(node: Result<Node, ClusterError>, boot_id: &BootId) -> NodeView {
    let node = match node {
        Ok(node) => node,
        Err(ClusterError::Absent { what }) => return NodeView::NotReady(format!("{what} does not exist")),
        Err(ClusterError::Unreachable { .. }) => return NodeView::ApiUnreachable,
        // An API server that says no is there.
        Err(error) => return NodeView::NotReady(chain(&error)),
    };
    let status = node.status.unwrap_or_default();
    let seen = status.node_info.map(|info| info.boot_id).unwrap_or_default();
    let ready = status.conditions.unwrap_or_default().into_iter().find(|found| found.type_ == "Ready");
    match ready {
        _ if seen != boot_id.0 => {
            NodeView::NotReady("the Node object is still that of an earlier boot".to_owned())
        }
        Some(ready) if ready.status == "True" => NodeView::ReadyInThisBoot,
        Some(ready) => {
            let reason = ready.reason.unwrap_or_default();
            NodeView::NotReady(format!("the Node is not Ready: {reason}"))
        }
        None => NodeView::NotReady("the Node says nothing about being Ready".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(boot_id: &str, ready: &str) -> Node {
        let status = json!({
            "conditions": [{"type": "Ready", "status": ready, "reason": "KubeletNotReady"}],
            "nodeInfo": {"bootID": boot_id, "architecture": "", "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                "operatingSystem": "", "osImage": "", "systemUUID": ""},
        });
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": status})).unwrap()
    }

    #[test]
    fn only_a_node_that_is_ready_in_this_boot_counts() {
        let boot = BootId("b-2".to_owned());
        assert_eq!(view(Ok(node("b-2", "True")), &boot), NodeView::ReadyInThisBoot);
        assert!(
            matches!(view(Ok(node("b-1", "True")), &boot), NodeView::NotReady(seen) if seen.contains("earlier boot"))
        );
        assert!(
            matches!(view(Ok(node("b-2", "False")), &boot), NodeView::NotReady(seen) if seen.contains("KubeletNotReady"))
        );
        let absent = ClusterError::Absent { what: "Node n".to_owned() };
        assert!(matches!(view(Err(absent), &boot), NodeView::NotReady(_)));
        let away = ClusterError::Unreachable { what: "Node n".to_owned(), source: None };
        assert_eq!(view(Err(away), &boot), NodeView::ApiUnreachable);
    }
}
