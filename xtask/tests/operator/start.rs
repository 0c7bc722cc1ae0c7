//! What is there, or not, when the operator starts.

use std::process::Command;
use std::time::Duration;

use monok8s_sdk::digest::Sha256Digest;
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;
use xtask::programs::Program;

use super::agent::Manner;
use super::fixture::{Cluster, Crds, catalog, manifest};

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

#[tokio::test]
async fn an_object_it_cannot_read_holds_up_nothing_and_is_left_alone() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    // As if the CRDs were of a release that takes other versions.
    let version = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/order/properties/hops/items\
                   /properties/version/pattern";
    let loosen = format!(r#"[{{"op": "remove", "path": "{version}"}}]"#);
    let kubectl = cluster.control_plane.kubectl();
    let crd = ["patch", "crd", "osupgradeprogresses.monok8s.io", "--type=json", "-p", &loosen];
    kubectl.succeed(&crd).await.unwrap();
    let odd = format!(
        "apiVersion: monok8s.io/v1alpha1\nkind: OSUpgradeProgress\nmetadata: {{name: odd}}\nspec:\n  \
         sourceRef: {{name: gone}}\n  nodeName: worker-9\n  order:\n    nodeUID: u\n    run: 1\n    hops:\n    \
         - {{version: newest, urls: ['https://example.com/x'], checksum: '{}'}}\n",
        Sha256Digest::of(b"odd")
    );
    cluster.apply_when_taken(&odd).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", &["v1.35.4"], &[]), "")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    let metrics = operator.get("/metrics").await.unwrap().1;
    let line = r#"monok8s_operator_unreadable_objects{kind="osupgradeprogresses"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    let names = kubectl.succeed(&["get", "osup", "-o", "name"]).await.unwrap();
    assert!(names.contains("/odd"), "{names}");
}
