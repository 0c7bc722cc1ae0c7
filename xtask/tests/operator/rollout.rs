//! A rollout from `kubectl apply` to the last uncordon, and what people do to it on the way.

use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use monok8s_sdk::api::{ANNOTATION_CORDON, ProgressPhase};
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, Crds, Operator, catalog, manifest, truth};

const VERSIONS: &[&str] = &["v1.34.6", "v1.35.0", "v1.35.1", "v1.35.4"];

async fn cluster_of(nodes: &[NodeSpec], manner: Manner) -> Cluster {
    let mut cluster = Cluster::start().await;
    for node in nodes {
        cluster.add(node.clone(), manner, 1).await;
    }
    cluster
}

#[tokio::test]
async fn every_node_is_moved_one_at_a_time_and_then_nothing_is_written_any_more() {
    let nodes = [
        NodeSpec::worker("worker-1", "v1.35.1"),
        NodeSpec::worker("worker-2", "v1.35.1"),
        NodeSpec::control_plane("cp-1", "v1.35.1"),
        NodeSpec::worker("worker-3", "v1.35.4"),
    ];
    let cluster = cluster_of(&nodes, Manner::Works).await;
    let mut operator = cluster.operator("operator", &[]);
    cluster.apply(&manifest("my-upgrade", "v1.35.4", &catalog("v1.35.1", VERSIONS, &[]), "")).await;
    let upgrade = cluster.wait_for("my-upgrade", "Completed", "UpToDate", &mut operator).await;

    cluster.ledger.assert_clean();
    let reboots = cluster.ledger.reboots();
    assert_eq!(reboots.first().map(String::as_str), Some("cp-1: v1.35.4"), "the control plane goes first up");
    assert_eq!(reboots.len(), 3, "{reboots:?}");
    cluster.wait_for_no_cordon(&mut operator).await;
    for (condition, expected) in [("Ready", "True"), ("Reconciling", "False"), ("Stalled", "False")] {
        assert_eq!(truth(&upgrade, condition), expected, "{condition}");
    }
    let status = upgrade.status.unwrap();
    assert_eq!(status.observed_generation, upgrade.metadata.generation);
    assert_eq!((status.nodes.as_ref().unwrap().total, status.nodes.unwrap().up_to_date), (4, 4));

    let kubectl = cluster.control_plane.kubectl();
    let table = kubectl.succeed(&["get", "osupgrades"]).await.unwrap();
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "DESIRED", "RESOLVED", "PHASE"]);
    assert_eq!(words[1], ["my-upgrade", "v1.35.4", "v1.35.4", "Completed"]);
    assert_eq!(kubectl.succeed(&["get", "osnodes", "-o", "name"]).await.unwrap().lines().count(), 4);
    let events = kubectl.succeed(&["get", "events", "-n", "default"]).await.unwrap();
    assert!(events.contains("NodeCompleted") && events.contains("UpToDate"), "{events}");

    let metrics = operator.get("/metrics").await.unwrap().1;
    for line in [
        r#"monok8s_operator_nodes{upgrade="my-upgrade",state="upToDate"} 4"#,
        r#"monok8s_operator_upgrade_phase{upgrade="my-upgrade",phase="Completed"} 1"#,
        r#"monok8s_operator_actions_total{kind="grant-boot"} 3"#,
        "monok8s_operator_leading 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    assert_eq!(cluster.writes_within(Duration::from_secs(15)).await, []);
    assert_eq!(operator.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_node_that_is_a_minor_behind_takes_every_hop() {
    let cluster = cluster_of(&[NodeSpec::worker("worker-1", "v1.34.1")], Manner::Works).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&manifest("up", "stable", &catalog("v1.35.1", VERSIONS, &[]), "")).await;
    let upgrade = cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    assert_eq!(upgrade.status.unwrap().resolved_version.as_deref(), Some("v1.35.1"));
    cluster.ledger.assert_clean();
    assert_eq!(cluster.ledger.reboots().last().map(String::as_str), Some("worker-1: v1.35.1"));
    cluster.wait_for_no_cordon(&mut operator).await;
}

#[tokio::test]
async fn what_cannot_be_carried_out_is_refused_and_the_next_spec_is_judged_anew() {
    let cluster = cluster_of(&[NodeSpec::worker("worker-1", "v1.35.1")], Manner::Works).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let catalog = catalog("v1.35.1", VERSIONS, &["v1.35.0"]);
    cluster.apply(&manifest("up", "v1.35.3", &catalog, "")).await;
    let upgrade = cluster.wait_for("up", "Rejected", "VersionNotInCatalog", &mut operator).await;
    assert_eq!((truth(&upgrade, "Ready"), truth(&upgrade, "Stalled")), ("False".into(), "True".into()));
    let message = upgrade.status.unwrap().message.unwrap();
    assert!(message.contains("v1.35.1") && message.contains("v1.35.4"), "{message}");

    cluster.apply(&manifest("up", "v1.34.6", &catalog, "")).await;
    let upgrade = cluster.wait_for("up", "Rejected", "DowngradeRefused", &mut operator).await;
    assert_eq!(upgrade.status.unwrap().resolved_version.as_deref(), Some("v1.34.6"));

    cluster.apply(&manifest("up", "v1.35.0", &catalog, "")).await;
    cluster.wait_for("up", "Rejected", "VersionBlocked", &mut operator).await;

    assert_eq!(cluster.progresses().await, []);
    cluster.apply(&manifest("up", "v1.35.4", &catalog, "")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
}

/// Waits until the node is cordoned for an object that has leave to boot.
async fn wait_for_boot_grant(cluster: &Cluster, operator: &mut Operator) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        operator.child.expect_running().unwrap();
        let progresses = cluster.progresses().await;
        let granted =
            progresses.iter().find(|object| object.spec.order.as_ref().is_some_and(|o| o.boot.is_some()));
        if let Some(object) = granted {
            let node =
                cluster.nodes().await.into_iter().find(|node| node.name_any() == object.spec.node_name);
            assert_eq!(node.unwrap().annotations().get(ANNOTATION_CORDON), object.uid().as_ref());
            return object.spec.node_name.clone();
        }
        assert!(Instant::now() < deadline, "no boot grant; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_pause_takes_back_what_was_not_committed_and_a_hold_does_the_same() {
    let cluster = cluster_of(&[NodeSpec::worker("worker-1", "v1.35.1")], Manner::StopsAtStaged).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let catalog = catalog("v1.35.1", VERSIONS, &[]);
    cluster.apply(&manifest("up", "v1.35.4", &catalog, "")).await;
    let kubectl = cluster.control_plane.kubectl();
    let spec = manifest("up", "v1.35.4", &catalog, "paused: true");
    let hold = ["annotate", "osupgrade", "up", "monok8s.io/hold=true"];
    let release = ["annotate", "osupgrade", "up", "monok8s.io/hold-"];
    for held in [false, true] {
        wait_for_boot_grant(&cluster, &mut operator).await;
        if held {
            kubectl.succeed(&hold).await.unwrap();
        } else {
            cluster.apply(&spec).await;
        }
        cluster.wait_for_no_cordon(&mut operator).await;
        let progresses = cluster.progresses().await;
        assert!(progresses.iter().all(|object| object.spec.order.as_ref().unwrap().boot.is_none()));
        assert_eq!(truth(&cluster.upgrade("up").await, "Paused"), "True");
        // The last words about the node that is back.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(cluster.writes_within(Duration::from_secs(2)).await, []);
        if held {
            kubectl.succeed(&release).await.unwrap();
        } else {
            cluster.apply(&manifest("up", "v1.35.4", &catalog, "")).await;
        }
    }
    wait_for_boot_grant(&cluster, &mut operator).await;
}

#[tokio::test]
async fn a_higher_upgrade_takes_over_and_the_first_one_lets_go() {
    let cluster = cluster_of(&[NodeSpec::worker("worker-1", "v1.35.0")], Manner::StopsAtStaged).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let catalog = catalog("v1.35.1", VERSIONS, &[]);
    cluster.apply(&manifest("first", "v1.35.1", &catalog, "")).await;
    wait_for_boot_grant(&cluster, &mut operator).await;
    cluster.apply(&manifest("second", "v1.35.4", &catalog, "")).await;
    let first = cluster.wait_for("first", "Superseded", "Superseded", &mut operator).await;
    assert_eq!((truth(&first, "Ready"), truth(&first, "Stalled")), ("True".into(), "False".into()));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let progresses = cluster.progresses().await;
        let of = |name: &str| progresses.iter().find(|object| object.spec.source_ref.name == name);
        let let_go = of("first").is_some_and(|object| object.phase() == ProgressPhase::Superseded);
        if let_go && of("second").is_some_and(|object| object.spec.order.as_ref().unwrap().boot.is_some()) {
            break;
        }
        assert!(Instant::now() < deadline, "{progresses:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_deleted_upgrade_leaves_no_cordon() {
    let mut cluster = Cluster::start_with(Crds::Applied, ControllerManager::Running).await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::StopsAtStaged, 1).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", VERSIONS, &[]), "")).await;
    wait_for_boot_grant(&cluster, &mut operator).await;
    cluster.control_plane.kubectl().succeed(&["delete", "osupgrade", "up"]).await.unwrap();
    cluster.wait_for_no_cordon(&mut operator).await;
}

#[tokio::test]
async fn a_node_that_a_person_cordoned_is_moved_and_stays_cordoned() {
    let mut cluster = Cluster::start().await;
    for name in ["worker-1", "worker-2"] {
        cluster.add(NodeSpec::worker(name, "v1.35.1"), Manner::Works, 2).await;
    }
    cluster.control_plane.kubectl().succeed(&["cordon", "worker-1"]).await.unwrap();
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let rollout = "rollout: {maxUnavailable: 2}";
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", VERSIONS, &[]), rollout)).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
    assert_eq!(cluster.ledger.reboots().len(), 2);
    assert_eq!(cluster.cordons().await, ["worker-1"], "a person's cordon is a person's to take off");
}
