//! Catalogs that are not inline.

use std::time::{Duration, Instant};

use xtask::http::{Fault, FileServer, Times};
use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, NAMESPACE, catalog, spec, truth};

const RULE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: catalogs, namespace: mono-system}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: catalogs, namespace: mono-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: catalogs}
subjects:
- {kind: ServiceAccount, name: controller, namespace: mono-system}
";

#[tokio::test]
async fn a_config_map_is_read_once_the_rule_that_the_message_names_is_there() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&spec("up", "v1.35.4", "catalog: {configMap: images-cm}", "")).await;
    let upgrade = cluster.wait_for("up", "Pending", "CatalogUnavailable", &mut operator).await;
    assert_eq!(
        (truth(&upgrade, "Stalled"), truth(&upgrade, "CatalogReachable")),
        ("False".into(), "False".into())
    );
    let message = upgrade.status.unwrap().message.unwrap();
    assert!(
        message.contains("configmaps") && message.contains("get") && message.contains("images-cm"),
        "{message}"
    );

    let document = catalog("v1.35.1", &["v1.35.4"], &[]);
    let literal = format!("--from-literal=catalog.yaml={document}");
    let create = ["create", "configmap", "images-cm", "-n", NAMESPACE, &literal];
    cluster.control_plane.kubectl().succeed(&create).await.unwrap();
    cluster.apply(RULE).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
}

#[tokio::test]
async fn a_version_published_a_moment_ago_is_found_and_one_blocked_a_moment_ago_is_not_granted() {
    let mut cluster = Cluster::start().await;
    for n in 1..=2 {
        cluster.add(NodeSpec::worker(&format!("worker-{n}"), "v1.35.1"), Manner::Works, 1).await;
    }
    let server = FileServer::start().await.unwrap();
    let source = format!("catalog: {{url: '{}'}}", server.url("/images.yaml"));
    let mut operator = cluster.operator("operator", &["--no-lease", "--catalog-refresh-seconds", "3600"]);

    server.serve_bytes("/images.yaml", catalog("v1.35.1", &["v1.35.1"], &[]).into_bytes());
    cluster.apply(&spec("up", "v1.35.1", &source, "")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    // Published, then asked for, long before the next refresh.
    server.serve_bytes("/images.yaml", catalog("v1.35.1", &["v1.35.1", "v1.35.4"], &[]).into_bytes());
    cluster.apply(&spec("up", "v1.35.4", &source, "rollout: {soakSeconds: 0}")).await;
    // Blocked as soon as the first node is on its way.
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.ledger.reboots().is_empty() {
        assert!(Instant::now() < deadline, "no reboot; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server
        .serve_bytes("/images.yaml", catalog("v1.35.1", &["v1.35.1", "v1.35.4"], &["v1.35.4"]).into_bytes());
    tokio::time::sleep(Duration::from_secs(10)).await;
    operator.child.expect_running().unwrap();
    assert_eq!(cluster.ledger.reboots().len(), 1, "{:?}", cluster.ledger.reboots());
    cluster.wait_for_no_cordon(&mut operator).await;
}

#[tokio::test]
async fn a_catalog_that_is_away_is_waited_for() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    let server = FileServer::start().await.unwrap();
    server.serve_bytes("/images.yaml", catalog("v1.35.4", &["v1.35.4"], &[]).into_bytes());
    server.inject("/images.yaml", Fault::Status(503), Times::First(2));
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let source = format!("catalog: {{url: '{}'}}", server.url("/images.yaml"));
    cluster.apply(&spec("up", "stable", &source, "")).await;
    cluster.wait_for("up", "Pending", "CatalogUnavailable", &mut operator).await;
    let upgrade = cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    assert_eq!(truth(&upgrade, "CatalogReachable"), "True");
}
