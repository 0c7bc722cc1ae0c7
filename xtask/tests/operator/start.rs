//! What is there, or not, when the operator starts.

use std::process::Command;
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use monok8s_sdk::api::progress_name;
use monok8s_sdk::digest::Sha256Digest;
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;
use xtask::programs::Program;

use super::agent::Manner;
use super::fixture::{Cluster, Crds, Operator, catalog, manifest, phase_and_reason};

#[tokio::test]
async fn it_waits_for_its_crds_and_says_so() {
    let cluster = Cluster::start_with(Crds::Missing, ControllerManager::Absent).await;
    let mut operator = cluster.operator("operator", &[]);
    operator.wait_ready("waiting for the CRDs").await;
    assert_eq!(operator.get("/readyz").await.unwrap().0, 503);
    assert_eq!(operator.get("/healthz").await.unwrap().0, 200);
    cluster.apply_crds().await;
    operator.wait_ready("ok").await;
}

#[tokio::test]
async fn the_crds_it_prints_can_be_applied() {
    let cluster = Cluster::start_with(Crds::Missing, ControllerManager::Absent).await;
    let printed = Command::new(Program::Operator.locate().unwrap()).arg("crds").output().unwrap();
    assert!(printed.status.success() && printed.stderr.is_empty());
    cluster.apply(&String::from_utf8(printed.stdout).unwrap()).await;
    let found = cluster.control_plane.kubectl().succeed(&["get", "crds", "-o", "name"]).await.unwrap();
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[tokio::test]
async fn without_a_right_it_stays_up_and_names_the_rule() {
    let cluster = Cluster::start().await;
    let take = ["patch", "clusterrole", "monok8s-controller", "--type=json", "-p"];
    let rules = r#"[{"op": "replace", "path": "/rules", "value": [
        {"apiGroups": ["monok8s.io"], "resources": ["*"], "verbs": ["*"]}]}]"#;
    let kubectl = cluster.control_plane.kubectl();
    kubectl.succeed(&[&take[..], &[rules]].concat()).await.unwrap();
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    operator.wait_ready("listing nodes").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let log = operator.child.log_tail();
    assert!(log.contains("forbids the operator to list nodes") && log.contains("ClusterRole"), "{log}");
    operator.child.expect_running().unwrap();
}

/// Lets objects in that this release cannot read, as if the CRDs were of one that takes other versions.
async fn loosen_crd(cluster: &Cluster) {
    let version = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/order/properties/hops/items\
                   /properties/version/pattern";
    let loosen = format!(r#"[{{"op": "remove", "path": "{version}"}}]"#);
    let crd = ["patch", "crd", "osupgradeprogresses.monok8s.io", "--type=json", "-p", &loosen];
    cluster.control_plane.kubectl().succeed(&crd).await.unwrap();
}

/// An object that this release cannot read.
async fn apply_unreadable(cluster: &Cluster, name: &str, node: &str) {
    let odd = format!(
        "apiVersion: monok8s.io/v1alpha1\nkind: OSUpgradeProgress\nmetadata: {{name: {name}}}\nspec:\n  \
         sourceRef: {{name: gone}}\n  nodeName: {node}\n  order:\n    nodeUID: u\n    run: 1\n    hops:\n    \
         - {{version: newest, urls: ['https://example.com/x'], checksum: '{}'}}\n",
        Sha256Digest::of(b"odd")
    );
    cluster.apply_when_taken(&odd).await;
}

#[tokio::test]
async fn an_object_it_cannot_read_holds_up_nothing_and_is_left_alone() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    loosen_crd(&cluster).await;
    apply_unreadable(&cluster, "odd", "worker-9").await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", &["v1.35.4"], &[]), "")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    let metrics = operator.get("/metrics").await.unwrap().1;
    let line = r#"monok8s_operator_unreadable_objects{kind="osupgradeprogresses"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    let names = cluster.control_plane.kubectl().succeed(&["get", "osup", "-o", "name"]).await.unwrap();
    assert!(names.contains("/odd"), "{names}");
}

#[tokio::test]
async fn an_object_it_cannot_read_under_the_name_of_an_order_holds_up_that_order_only() {
    let mut cluster = Cluster::start().await;
    for name in ["worker-1", "worker-2"] {
        cluster.add(NodeSpec::worker(name, "v1.35.1"), Manner::Works, 1).await;
    }
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", &["v1.35.4"], &[]), "")).await;
    let upgrade = cluster.upgrade("up").await.uid().unwrap();
    let node = cluster.nodes().await.into_iter().find(|node| node.name_any() == "worker-1").unwrap();
    let name = progress_name(&upgrade, 1, &node.uid().unwrap());
    loosen_crd(&cluster).await;
    // Of a node that nobody looks at: the stand-in for its agent cannot read it either.
    apply_unreadable(&cluster, &name, "worker-9").await;

    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.ledger.reboots().is_empty() {
        operator.child.expect_running().unwrap();
        assert!(Instant::now() < deadline, "worker-2 was held up; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.wait_for_no_cordon(&mut operator).await;
    assert_eq!(cluster.ledger.reboots(), ["worker-2: v1.35.4"]);
    assert_eq!(phase_and_reason(&cluster.upgrade("up").await), ("Accepted".into(), "RollingOut".into()));
    let log = operator.child.log_tail();
    assert!(log.contains(&format!("create-progress {name}")), "{log}");
    // It is tried again, and not all the time.
    let before = passes(&operator).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let looks = passes(&operator).await - before;
    assert!(looks <= 10, "{looks} looks within 5 s");

    cluster.control_plane.kubectl().succeed(&["delete", "osup", &name]).await.unwrap();
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
}

/// How often an operator looked at the fleet.
async fn passes(operator: &Operator) -> u64 {
    let metrics = operator.get("/metrics").await.unwrap().1;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("monok8s_operator_pass_duration_seconds_count"))
        .unwrap_or_else(|| panic!("{metrics}"));
    line.split_whitespace().last().unwrap().parse().unwrap()
}
