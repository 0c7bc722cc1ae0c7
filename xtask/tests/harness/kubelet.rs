use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use std::time::{Duration, Instant};
use xtask::controlplane::{ControlPlane, Options};
use xtask::kubelet::{Health, Kubelet, NodeSpec};

fn ready(node: &Node) -> String {
    let conditions = node.status.as_ref().unwrap().conditions.as_ref().unwrap();
    conditions.iter().find(|condition| condition.type_ == "Ready").unwrap().status.clone()
}

#[tokio::test]
async fn a_node_is_ready_reboots_fails_and_goes() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let nodes: Api<Node> = Api::all(control_plane.client());
    let spec = NodeSpec::control_plane("cp-1", "v1.35.1").label("disktype", "ssd");
    let kubelet = Kubelet::start(control_plane.client(), &spec).await.unwrap();

    let node = nodes.get("cp-1").await.unwrap();
    assert_eq!(ready(&node), "True");
    let labels = node.metadata.labels.clone().unwrap();
    for (key, value) in
        [("monok8s.io/managed", "true"), ("disktype", "ssd"), ("node-role.kubernetes.io/control-plane", "")]
    {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    let table = control_plane.kubectl().succeed(&["get", "nodes"]).await.unwrap();
    assert!(table.lines().any(|line| line.starts_with("cp-1") && line.ends_with("v1.35.1")), "{table}");

    kubelet.set_health(Health::NotReady).await.unwrap();
    assert_eq!(ready(&nodes.get("cp-1").await.unwrap()), "False");
    let before = kubelet.boot_id();
    let boot_id = kubelet.booted("v1.35.4").await.unwrap();
    assert_ne!(boot_id, before);
    let node = nodes.get("cp-1").await.unwrap();
    assert_eq!(ready(&node), "True");
    let info = node.status.unwrap().node_info.unwrap();
    assert_eq!((info.boot_id, info.kubelet_version), (boot_id, "v1.35.4".to_owned()));

    let leases: Api<Lease> = Api::namespaced(control_plane.client(), "kube-node-lease");
    let deadline = Instant::now() + Duration::from_secs(10);
    while leases.get_opt("cp-1").await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "no heartbeat");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    kubelet.remove().await.unwrap();
    assert!(nodes.get_opt("cp-1").await.unwrap().is_none());
}
