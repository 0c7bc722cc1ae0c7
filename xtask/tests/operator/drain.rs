//! Drains: pods leave by the eviction API before a node reboots, and what holds them up is named.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, ResourceExt as _};
use monok8s_sdk::api::{ConditionType, OSUpgradeProgress, find_condition};
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, Crds, Operator, catalog, manifest, truth};
use super::pods::{PodSpec, Runtime, finish, pods_on};

const VERSIONS: &[&str] = &["v1.35.1", "v1.35.4"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Two workers, and a runtime for their pods.
async fn cluster(controllers: ControllerManager) -> (Cluster, Runtime) {
    let mut cluster = Cluster::start_with(Crds::Applied, controllers).await;
    for name in ["worker-1", "worker-2"] {
        cluster.add(NodeSpec::worker(name, "v1.35.1"), Manner::Works, 1).await;
    }
    // Pods need it. Where there is a controller manager, it may come first.
    let _ = cluster.control_plane.kubectl().succeed(&["create", "serviceaccount", "default"]).await;
    let runtime = Runtime::start(cluster.client());
    (cluster, runtime)
}

/// An upgrade of worker-1 alone.
fn of_worker_1(rollout: &str) -> String {
    let manifest = manifest("up", "v1.35.4", &catalog("v1.35.1", VERSIONS, &[]), rollout);
    manifest.replace("nodeSelector: {}", "nodeSelector: {kubernetes.io/hostname: worker-1}")
}

async fn order(cluster: &Cluster) -> Option<OSUpgradeProgress> {
    cluster.progresses().await.into_iter().next()
}

/// Status, reason and message of a condition of the one order.
async fn says(cluster: &Cluster, kind: &ConditionType) -> Option<(String, String, String)> {
    let order = order(cluster).await?;
    let condition = find_condition(order.conditions(), kind)?;
    Some((condition.status.clone(), condition.reason.clone(), condition.message.clone()))
}

async fn until_it_says(
    cluster: &Cluster,
    operator: &mut Operator,
    kind: &ConditionType,
    reason: &str,
) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        operator.child.expect_running().unwrap();
        let said = says(cluster, kind).await;
        if let Some((_, _, message)) = said.as_ref().filter(|(_, known, _)| known == reason) {
            return message.clone();
        }
        assert!(Instant::now() < deadline, "{said:?}, not {reason}; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_same_pods_leave_as_with_kubectl_drain_and_the_same_stay() {
    let (cluster, _runtime) = cluster(ControllerManager::Absent).await;
    let (client, kubectl) = (cluster.client(), cluster.control_plane.kubectl());
    let set = "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: logs, namespace: default}, spec: {selector: \
               {matchLabels: {app: logs}}, template: {metadata: {labels: {app: logs}}, spec: {containers: [{name: \
               main, image: none}]}}}}";
    cluster.apply(set).await;
    let set = Api::<DaemonSet>::namespaced(client.clone(), "default").get("logs").await.unwrap();
    let set = set.uid().unwrap();
    for (node, prefix) in [("worker-1", "a"), ("worker-2", "b")] {
        let pod = |name: &str| PodSpec::new(&format!("{prefix}-{name}"), node);
        pod("plain").create(&client).await;
        pod("slow").takes(3).create(&client).await;
        pod("cache").with_empty_dir().create(&client).await;
        pod("job").bare().create(&client).await;
        finish(&client, &format!("{prefix}-job")).await;
        pod("daemon").of_daemon_set("logs", &set).create(&client).await;
        pod("ended-daemon").of_daemon_set("logs", &set).create(&client).await;
        finish(&client, &format!("{prefix}-ended-daemon")).await;
        pod("static").mirror().create(&client).await;
    }
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&of_worker_1("")).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
    let drain = ["drain", "worker-2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
    kubectl.succeed(&drain).await.unwrap();

    let left =
        |names: Vec<String>| -> Vec<String> { names.iter().map(|name| name[2..].to_owned()).collect() };
    let ours = left(pods_on(&client, "worker-1").await);
    assert_eq!(ours, left(pods_on(&client, "worker-2").await), "ours and those of kubectl drain");
    assert_eq!(ours, ["daemon", "static"]);
}

#[tokio::test]
async fn a_disruption_budget_is_named_with_its_numbers_until_it_lets_go() {
    let (cluster, _runtime) = cluster(ControllerManager::Running).await;
    let (client, kubectl) = (cluster.client(), cluster.control_plane.kubectl());
    PodSpec::new("web", "worker-1").create(&client).await;
    kubectl.succeed(&["create", "pdb", "web", "--selector=app=web", "--min-available=1"]).await.unwrap();
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&of_worker_1("")).await;
    // At first the controller manager may not have looked at the budget yet.
    let deadline = Instant::now() + PATIENCE;
    let expected = "cannot be drained: default/web needs 1 has 1";
    while until_it_says(&cluster, &mut operator, &ConditionType::Drained, "Blocked").await != expected {
        assert!(Instant::now() < deadline, "{:?}", says(&cluster, &ConditionType::Drained).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let upgrade = cluster.wait_for("up", "Accepted", "DrainBlocked", &mut operator).await;
    assert_eq!(truth(&upgrade, "DrainBlocked"), "True");
    let (_, metrics) = operator.get("/metrics").await.unwrap();
    let series = r#"monok8s_operator_refusing_budgets{node="worker-1",budget="default/web"} 1"#;
    assert!(metrics.contains(series), "{metrics}");
    let events = kubectl.succeed(&["get", "events.events.k8s.io", "-A", "-o", "json"]).await.unwrap();
    assert!(events.contains("worker-1 cannot be drained: default/web"), "{events}");
    assert_eq!(pods_on(&client, "worker-1").await, ["web"]);
    assert!(cluster.ledger.reboots().is_empty());
    kubectl.succeed(&["delete", "pdb", "web"]).await.unwrap();
    let upgrade = cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    assert_eq!(truth(&upgrade, "DrainBlocked"), "");
    cluster.ledger.assert_clean();
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_given_up_or_forced() {
    let (cluster, _runtime) = cluster(ControllerManager::Running).await;
    let (client, kubectl) = (cluster.client(), cluster.control_plane.kubectl());
    PodSpec::new("web", "worker-1").create(&client).await;
    kubectl.succeed(&["create", "pdb", "web", "--selector=app=web", "--min-available=1"]).await.unwrap();
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&of_worker_1("rollout: {maxFailedNodes: 1, drain: {timeoutSeconds: 8}}")).await;
    let message = until_it_says(&cluster, &mut operator, &ConditionType::TimedOut, "DrainTimedOut").await;
    assert!(message.contains("default/web needs 1 has 1"), "{message}");
    cluster.wait_for_no_cordon(&mut operator).await;
    assert_eq!(pods_on(&client, "worker-1").await, ["web"]);
    assert!(cluster.ledger.reboots().is_empty());

    let force = "retryNonce: again\n  rollout: {drain: {timeoutSeconds: 8, onTimeout: Force}}";
    cluster.apply(&of_worker_1(force)).await;
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
    assert!(pods_on(&client, "worker-1").await.is_empty());
    let forced = cluster.progresses().await;
    let forced = forced.iter().filter(|order| {
        find_condition(order.conditions(), &ConditionType::Drained)
            .is_some_and(|drained| drained.status == "True" && drained.reason == "Forced")
    });
    assert_eq!(forced.count(), 1);
}

#[tokio::test]
async fn a_drain_goes_on_where_the_operator_before_left_it() {
    let (cluster, _runtime) = cluster(ControllerManager::Absent).await;
    let client = cluster.client();
    PodSpec::new("bare", "worker-1").bare().create(&client).await;
    PodSpec::new("plain", "worker-1").create(&client).await;
    let mut operator = cluster.operator("first", &["--no-lease"]);
    cluster.apply(&of_worker_1("")).await;
    until_it_says(&cluster, &mut operator, &ConditionType::Drained, "Blocked").await;
    let began = |order: &OSUpgradeProgress| {
        let drained = find_condition(order.conditions(), &ConditionType::Drained).unwrap();
        drained.last_transition_time.0
    };
    let before = began(&order(&cluster).await.unwrap());
    operator.kill();
    let mut operator = cluster.operator("second", &["--no-lease"]);
    operator.wait_ready("").await;
    let deadline = Instant::now() + PATIENCE;
    while pods_on(&client, "worker-1").await != ["bare"] {
        assert!(Instant::now() < deadline, "{:?}", pods_on(&client, "worker-1").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(began(&order(&cluster).await.unwrap()), before, "the clock began anew");
    let message = says(&cluster, &ConditionType::Drained).await.unwrap().2;
    assert!(message.contains("default/bare would be made again by nobody"), "{message}");
    cluster.control_plane.kubectl().succeed(&["delete", "pod", "bare"]).await.unwrap();
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
}

/// A volume that is attached to worker-1, and its claim.
fn attached(name: &str) -> [String; 2] {
    let attachment = format!(
        "{{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, metadata: {{name: {name}}}, spec: {{attacher: \
         none.example.com, nodeName: worker-1, source: {{persistentVolumeName: pv-{name}}}}}}}"
    );
    let claim = format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}, namespace: default}}, spec: \
         {{accessModes: [ReadWriteOnce], volumeName: pv-{name}, storageClassName: none, resources: {{requests: \
         {{storage: 1Gi}}}}}}}}"
    );
    [attachment, claim]
}

#[tokio::test]
async fn a_node_does_not_reboot_with_volumes_attached_that_nothing_uses_any_more() {
    let (cluster, _runtime) = cluster(ControllerManager::Absent).await;
    let client = cluster.client();
    for manifest in [attached("web"), attached("logs")].concat() {
        cluster.apply(&manifest).await;
    }
    PodSpec::new("web", "worker-1").with_claim("web").create(&client).await;
    PodSpec::new("logs", "worker-1")
        .of_daemon_set("logs", "logs-uid")
        .with_claim("logs")
        .create(&client)
        .await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&of_worker_1("")).await;
    let deadline = Instant::now() + PATIENCE;
    while says(&cluster, &ConditionType::Drained)
        .await
        .is_none_or(|(_, _, message)| message != "waits for volumes to be detached: pv-web")
    {
        assert!(Instant::now() < deadline, "{:?}", says(&cluster, &ConditionType::Drained).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(pods_on(&client, "worker-1").await, ["logs"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.ledger.reboots().is_empty());
    cluster.control_plane.kubectl().succeed(&["delete", "volumeattachment", "web"]).await.unwrap();
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    cluster.ledger.assert_clean();
}

#[tokio::test]
async fn pods_take_their_whole_time_and_one_with_a_finalizer_holds_up_nobody_for_ever() {
    let (cluster, _runtime) = cluster(ControllerManager::Absent).await;
    let client = cluster.client();
    PodSpec::new("slow", "worker-1").with_grace(4).takes(4).create(&client).await;
    PodSpec::new("held", "worker-1").with_grace(1).with_finalizer().create(&client).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&of_worker_1("rollout: {drain: {timeoutSeconds: 20, onTimeout: Force}}")).await;
    until_it_says(&cluster, &mut operator, &ConditionType::Drained, "Draining").await;
    assert_eq!(pods_on(&client, "worker-1").await, ["held", "slow"], "an eviction is no kill");
    until_it_says(&cluster, &mut operator, &ConditionType::Drained, "Forced").await;
    assert!(cluster.ledger.reboots().is_empty());
    // A minute after its time it is not waited for any more.
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    assert_eq!(pods_on(&client, "worker-1").await, ["held"]);
}

#[tokio::test]
async fn a_cordon_that_somebody_takes_off_in_a_drain_is_put_back_before_the_reboot() {
    let (cluster, _runtime) = cluster(ControllerManager::Absent).await;
    let (client, kubectl) = (cluster.client(), cluster.control_plane.kubectl());
    PodSpec::new("bare", "worker-1").bare().create(&client).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    cluster.apply(&of_worker_1("")).await;
    until_it_says(&cluster, &mut operator, &ConditionType::Drained, "Blocked").await;
    kubectl.succeed(&["uncordon", "worker-1"]).await.unwrap();
    PodSpec::new("late", "worker-1").create(&client).await;
    kubectl.succeed(&["delete", "pod", "bare"]).await.unwrap();
    cluster.wait_for("up", "Completed", "UpToDate", &mut operator).await;
    // The agent looked at the cordon and at the pods when it committed.
    cluster.ledger.assert_clean();
    assert!(pods_on(&client, "worker-1").await.is_empty());
}
