//! Health checks: nothing reboots while one does not hold, and the object is named.

use std::time::{Duration, Instant};

use monok8s_sdk::manifests::{Controller, to_yaml};
use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, Operator, catalog, manifest, truth};

const VERSIONS: &[&str] = &["v1.35.1", "v1.35.4"];
const PATIENCE: Duration = Duration::from_secs(60);

fn upgrade(expression: &str) -> String {
    let check = format!(
        "rollout: {{healthChecks: [{{apiVersion: v1, kind: ConfigMap, namespace: default, name: gate, expression: \
         {expression:?}}}]}}"
    );
    manifest("up", "v1.35.4", &catalog("v1.35.1", VERSIONS, &[]), &check)
}

fn gate(open: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: gate, namespace: default}}, data: {{open: {open:?}}}}}"
    )
}

/// Waits until the upgrade says that it waits for its health check, and why.
async fn until_it_waits(cluster: &Cluster, operator: &mut Operator, why: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        operator.child.expect_running().unwrap();
        let status = cluster.upgrade("up").await.status.unwrap_or_default();
        let message = status.message.unwrap_or_default();
        let waits = status.conditions.iter().any(|condition| condition.reason == "HealthGate");
        if waits && message.contains(why) {
            return;
        }
        assert!(Instant::now() < deadline, "{message:?}, not {why}; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn nothing_reboots_until_a_health_check_holds() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&upgrade("object.data.open == 'yes'")).await;
    until_it_waits(&cluster, &mut operator, "forbids the operator to list configmaps").await;

    let grant_read = ["ConfigMap".parse().unwrap()].into();
    let allowed = Controller { grant_read, ..Controller::default() };
    cluster.apply(&to_yaml(&allowed.own_objects())).await;
    until_it_waits(&cluster, &mut operator, "there is no such ConfigMap").await;
    cluster.apply(&gate("no")).await;
    let why = "of ConfigMap default/gate, \"object.data.open == 'yes'\" is false";
    until_it_waits(&cluster, &mut operator, why).await;
    assert!(cluster.cordons().await.is_empty());
    assert!(cluster.ledger.reboots().is_empty());

    cluster.apply(&gate("yes")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
}

#[tokio::test]
async fn an_expression_that_can_never_hold_rejects_its_upgrade() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("worker-1", "v1.35.1"), Manner::Works, 1).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&upgrade("self.data.open == 'yes'")).await;
    let rejected = cluster.wait_for("up", "Rejected", "InvalidHealthCheck", &mut operator).await;
    assert_eq!(truth(&rejected, "Stalled"), "True");
    let message = rejected.status.unwrap().message.unwrap();
    assert!(message.starts_with("rollout.healthChecks[0]: ") && message.contains("names self"), "{message}");
}
