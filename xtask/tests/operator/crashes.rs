//! The operator killed between any two of its writes.

use std::time::{Duration, Instant};

use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, catalog, manifest, phase_and_reason};

const KILLS: u64 = 25;

#[tokio::test]
async fn killed_at_any_moment_and_started_again_it_ends_where_it_would_have() {
    let mut cluster = Cluster::start().await;
    for n in 1..=5 {
        cluster.add(NodeSpec::worker(&format!("worker-{n}"), "v1.34.1"), Manner::Works, 2).await;
    }
    cluster.add(NodeSpec::control_plane("cp-1", "v1.34.1"), Manner::Works, 2).await;
    let versions = ["v1.34.6", "v1.35.0", "v1.35.1", "v1.35.4"];
    let more = "rollout: {maxUnavailable: 2}";
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", &versions, &[]), more)).await;

    let deadline = Instant::now() + Duration::from_secs(150);
    for n in 0..KILLS {
        let operator = cluster.operator(&format!("operator-{n}"), &["--no-lease"]);
        // Spread evenly over a second and a half, in an order without a pattern.
        tokio::time::sleep(Duration::from_millis(150 + n * 619 % 1350)).await;
        operator.kill();
        cluster.ledger.assert_clean();
        assert!(Instant::now() < deadline);
    }
    let mut operator = cluster.operator("last", &["--no-lease"]);
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
    cluster.wait_for_no_cordon(&mut operator).await;
    let progresses = cluster.progresses().await;
    assert_eq!(progresses.len(), 6, "one object a node, however often it was made");
    assert_eq!(cluster.upgrade("up").await.status.unwrap().run, Some(1));
    let mut reboots = cluster.ledger.reboots();
    let total = reboots.len();
    reboots.sort();
    reboots.dedup();
    assert_eq!(reboots.len(), total, "no node took a hop twice");
    assert_eq!(cluster.writes_within(Duration::from_secs(3)).await, []);
    assert_eq!(phase_and_reason(&cluster.upgrade("up").await).0, "Completed");
}

#[tokio::test]
async fn the_api_server_goes_away_and_comes_back() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    operator.wait_ready("ok").await;
    cluster.control_plane.kill_apiserver().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.control_plane.start_apiserver().await.unwrap();
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", &["v1.35.4"], &[]), "")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
}
