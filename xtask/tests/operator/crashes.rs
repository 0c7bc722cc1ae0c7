//! The operator killed between any two of its writes.

use std::time::Duration;

use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, catalog, manifest, phase_and_reason};
use super::pods::{PodSpec, Runtime};

const KILLS: u64 = 100;
const WORKERS: usize = 19;

/// Moments without a pattern, the same for the same seed.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let given = std::env::var("MONOK8S_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let seed = given.unwrap_or_else(now);
        println!("MONOK8S_SEED={seed}");
        Self(seed)
    }

    /// From a tenth of a second to one and a half.
    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(100 + (self.0 >> 33) % 1400)
    }
}

#[tokio::test]
async fn killed_at_any_moment_and_started_again_it_ends_where_it_would_have() {
    let mut cluster = Cluster::start().await;
    for n in 1..=WORKERS {
        cluster.add(NodeSpec::worker(&format!("worker-{n:02}"), "v1.34.1"), Manner::Works, 3).await;
    }
    cluster.add(NodeSpec::control_plane("cp-1", "v1.34.1"), Manner::Works, 3).await;
    let _ = cluster.control_plane.kubectl().succeed(&["create", "serviceaccount", "default"]).await;
    let _runtime = Runtime::start(cluster.client());
    for n in (1..=WORKERS).step_by(3) {
        let pod = PodSpec::new(&format!("pod-{n:02}"), &format!("worker-{n:02}"));
        pod.takes(1).create(&cluster.client()).await;
    }
    let versions = ["v1.34.6", "v1.35.0", "v1.35.1", "v1.35.4"];
    let more = "rollout: {maxUnavailable: 3}";
    cluster.apply(&manifest("up", "v1.35.4", &catalog("v1.35.1", &versions, &[]), more)).await;

    let mut moments = Moments::new();
    for n in 0..KILLS {
        let operator = cluster.operator(&format!("operator-{n}"), &["--no-lease"]);
        tokio::time::sleep(moments.next()).await;
        operator.kill();
        cluster.ledger.assert_clean();
    }
    let mut operator = cluster.operator("last", &["--no-lease"]);
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
    cluster.wait_for_no_cordon(&mut operator).await;
    let progresses = cluster.progresses().await;
    assert_eq!(progresses.len(), WORKERS + 1, "one object a node, however often it was made");
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
