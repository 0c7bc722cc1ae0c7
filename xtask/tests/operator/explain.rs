//! Reasons to wait, made for real, and what `ctl status` and `ctl explain` say of it.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use monok8s_sdk::api::ProgressPhase;
use monok8s_sdk::status::Cluster as Dump;
use serde_json::Value;
use tokio::process::Command;
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;
use xtask::programs::Program;

use super::agent::Manner;
use super::fixture::{Cluster, Crds, Operator, catalog};
use super::pods::{PodSpec, Runtime, pods_on};

const PATIENCE: Duration = Duration::from_secs(60);
const ZONE: &str = "topology.kubernetes.io/zone";
const FAR: &str = "{schedule: '0 0 1 1 *', durationMinutes: 60, kind: Allow}";
const NEVER: &str = "{schedule: '*/5 * * * *', durationMinutes: 10, kind: Deny}";

/// An upgrade, and what one of its nodes says once it waits.
struct Case {
    name: &'static str,
    /// The nodes that it selects.
    nodes: &'static [&'static str],
    version: &'static str,
    /// Where it finds that.
    catalog: String,
    /// More of its spec.
    spec: String,
    node: &'static str,
    reason: &'static str,
    /// Part of the sentence.
    words: &'static str,
}

fn case(
    name: &'static str,
    nodes: &'static [&'static str],
    spec: impl Into<String>,
    node: &'static str,
    (reason, words): (&'static str, &'static str),
) -> Case {
    let catalog = inline(&["v1.35.1", "v1.35.4"], &[]);
    Case { name, nodes, version: "v1.35.4", catalog, spec: spec.into(), node, reason, words }
}

impl Case {
    fn to(self, version: &'static str, catalog: String) -> Self {
        Self { version, catalog, ..self }
    }
}

/// A catalog in the spec.
fn inline(versions: &[&str], blocked: &[&str]) -> String {
    let text = catalog(versions[0], versions, blocked);
    let lines: Vec<_> = text.lines().map(|line| format!("      {line}")).collect();
    format!("catalog:\n    inline: |\n{}", lines.join("\n"))
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let gate = "{apiVersion: v1, kind: ConfigMap, namespace: default, name: gate, expression: 'object.data.open == \"yes\"'}";
    vec![
        case("paused", &["w-1"], "paused: true", "w-1", ("Paused", "spec.paused is true")),
        case("window", &["w-1"], format!("rollout: {{windows: [{FAR}]}}"), "w-1", ("WaitingForWindow", "-01-01T00:00:00Z")),
        case("no-window", &["w-1"], format!("rollout: {{windows: [{NEVER}]}}"), "w-1", ("NoWindow", "within a year")),
        case("gate", &["w-1"], format!("rollout: {{healthChecks: [{gate}]}}"), "w-1", ("HealthGate", "forbids the operator to list configmaps")),
        case("budget", &["w-1", "w-2"], "", "w-2", ("WaitingForBudget", "w-1")),
        case("control-plane", &["cp-1", "w-1"], "rollout: {maxUnavailable: 2}", "w-1", ("WaitingForControlPlane", "cp-1")),
        case("canary", &["w-1", "w-2"], "rollout: {maxUnavailable: 2, canary: {nodeSelector: {kubernetes.io/hostname: w-2}}}", "w-1", ("WaitingForCanary", "w-2")),
        case("group", &["w-1", "w-2"], format!("rollout: {{maxUnavailable: 2, groupBy: {ZONE}}}"), "w-2", ("WaitingForGroup", "w-1")),
        case("staging", &["idle", "w-1"], "rollout: {maxParallelStaging: 1}", "w-1", ("WaitingToStage", "maxParallelStaging")),
        case("drain", &["pods"], "", "pods", ("DrainBlocked", "default/bare would be made again by nobody")),
        case("unreachable", &["dead"], "", "dead", ("NodeUnreachable", "is not Ready")),
        case("failed", &["broken", "w-1"], "rollout: {maxParallelStaging: 1, maxFailedNodes: 0}", "w-1", ("TooManyFailedNodes", "broken")),
        case("soaking", &["good", "w-1"], "rollout: {soakSeconds: 3600}", "w-1", ("Soaking", "good")),
        case("operator-last", &["op", "w-1"], "rollout: {maxUnavailable: 2}", "op", ("OperatorNodeLast", "w-1")),
        case("skew", &["w-1"], "", "w-1", ("KubeletSkew", "the oldest runs v1.35")).to("v1.36.0", inline(&["v1.35.1", "v1.36.0"], &[])),
        case("blocked", &["w-1"], "", "w-1", ("VersionBlocked", "v1.35.4")).to("v1.35.4", inline(&["v1.35.1", "v1.35.4"], &["v1.35.4"])),
        case("no-catalog", &["w-1"], "", "w-1", ("CatalogUnavailable", "127.0.0.1:9")).to("v1.35.4", "catalog: {url: 'http://127.0.0.1:9/images.yaml'}".to_owned()),
        // From here on v1.35.4 has failed on a node.
        case("fell-back", &["falls", "w-1"], "", "w-1", ("FailureThresholdReached", "falls")),
        case("quarantine", &["w-1"], "", "w-1", ("VersionQuarantined", "v1.35.4 failed on falls")),
    ]
}

fn manifest(case: &Case) -> String {
    format!(
        "apiVersion: monok8s.io/v1alpha1\nkind: OSUpgrade\nmetadata: {{name: {}}}\nspec:\n  version: {}\n  \
         nodeSelector: {{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{}]}}]}}\n  \
         {}\n  {}\n",
        case.name,
        case.version,
        case.nodes.join(", "),
        case.catalog,
        case.spec
    )
}

async fn ctl(kubeconfig: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(Program::Ctl.locate().unwrap());
    command.args(args).env("KUBECONFIG", kubeconfig).output().await.unwrap()
}

async fn says(kubeconfig: &Path, args: &[&str]) -> String {
    let output = ctl(kubeconfig, args).await;
    assert!(output.status.success(), "ctl {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `ctl status` has a node wait for that reason, and returns the report.
async fn until_it_waits(cluster: &Cluster, case: &Case, operator: &mut Operator) -> Value {
    let kubeconfig = &cluster.control_plane.kubeconfig_path();
    let deadline = Instant::now() + PATIENCE;
    loop {
        operator.child.expect_running().unwrap();
        let report: Value =
            serde_json::from_str(&says(kubeconfig, &["status", case.name, "-o", "json"]).await).unwrap();
        let nodes = report["nodes"].as_array().unwrap();
        let line = nodes.iter().find(|line| line["node"] == case.node);
        let waits = |line: &&Value| {
            line["reason"] == case.reason && line["message"].as_str().unwrap().contains(case.words)
        };
        if line.as_ref().is_some_and(waits) {
            return report;
        }
        assert!(Instant::now() < deadline, "{}: {report:#}\n{}", case.name, operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn cluster() -> (Cluster, Runtime) {
    let mut cluster = Cluster::start_with(Crds::Applied, ControllerManager::Absent).await;
    let stays = Manner::StopsAtStaged;
    let worker = |name: &str| NodeSpec::worker(name, "v1.35.1");
    for (spec, manner) in [
        (NodeSpec::control_plane("cp-1", "v1.35.1"), stays),
        (worker("w-1").label(ZONE, "a"), stays),
        (worker("w-2").label(ZONE, "b"), stays),
        (worker("idle"), Manner::NeverStages),
        (worker("pods"), stays),
        (worker("dead"), Manner::NotReady),
        (worker("falls"), Manner::FallsBack),
        (worker("broken"), Manner::FailsToStage),
        (worker("good"), Manner::Works),
        (worker("op"), stays),
        (worker("away"), Manner::StaysAway),
    ] {
        cluster.add(spec, manner, 1).await;
    }
    let kubectl = cluster.control_plane.kubectl();
    kubectl.succeed(&["create", "serviceaccount", "default"]).await.unwrap();
    let runtime = Runtime::start(cluster.client());
    PodSpec::new("bare", "pods").bare().create(&cluster.client()).await;
    (cluster, runtime)
}

#[tokio::test]
async fn reasons_to_wait_are_told_with_what_causes_them() {
    let (cluster, _runtime) = cluster().await;
    let kubeconfig = &cluster.control_plane.kubeconfig_path();
    let mut operator = cluster.operator("operator", &["--no-lease", "--node-name", "op"]);
    for case in cases() {
        cluster.apply(&manifest(&case)).await;
        let report = until_it_waits(&cluster, &case, &mut operator).await;
        let explained = says(kubeconfig, &["explain", case.name, "--node", case.node]).await;
        let expected = format!("{}: ", case.reason);
        assert!(explained.contains(&expected) && explained.contains(case.words), "{explained}");
        let status = says(kubeconfig, &["status", case.name]).await;
        assert!(status.contains("ASSESSMENT") && status.contains(case.words), "{status}");
        check_dump(&cluster, (case.name, case.node), &report).await;
        cluster.control_plane.kubectl().succeed(&["delete", "osupgrade", case.name]).await.unwrap();
        // Nothing collects them here.
        let _ = cluster.control_plane.kubectl().succeed(&["delete", "osupgradeprogresses", "--all"]).await;
        cluster.wait_for_no_cordon(&mut operator).await;
    }
    // A node that is in the reboot of one upgrade is waited for by the next.
    let first = case("first", &["away"], "", "away", ("", "reboots"));
    let first = first.to("v1.35.2", inline(&["v1.35.1", "v1.35.2"], &[]));
    cluster.apply(&manifest(&first)).await;
    let deadline = Instant::now() + PATIENCE;
    while !cluster.progresses().await.iter().any(|object| object.phase() == ProgressPhase::Rebooting) {
        assert!(Instant::now() < deadline, "no reboot; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let catalog = inline(&["v1.35.1", "v1.35.5"], &[]);
    let second = case("upgrade", &["away"], "", "away", ("WaitingForUpgrade", "has the node in a reboot"));
    let second = second.to("v1.35.5", catalog);
    cluster.apply(&manifest(&second)).await;
    let report = until_it_waits(&cluster, &second, &mut operator).await;
    check_dump(&cluster, (second.name, second.node), &report).await;
    cluster.ledger.assert_clean();
}

/// A dump says the same as the cluster.
async fn check_dump(cluster: &Cluster, (name, node): (&str, &str), report: &Value) {
    let get = ["get", "osupgrades,osupgradeprogresses,osnodes,nodes", "-o", "json"];
    let dump = cluster.control_plane.kubectl().succeed(&get).await.unwrap();
    // For testdata/status.
    if let Some(into) = std::env::var_os("MONOK8S_DUMPS") {
        std::fs::write(Path::new(&into).join(format!("{name}.json")), &dump).unwrap();
    }
    let dump = Dump::from_dump(dump.as_bytes()).unwrap();
    let again = monok8s_sdk::status::Report::of(&dump, name).unwrap();
    let again = serde_json::to_value(&again).unwrap();
    let words = |report: &Value| -> [Value; 2] {
        let line = report["nodes"].as_array().unwrap().iter().find(|line| line["node"] == node).unwrap();
        ["assessment", "reason"].map(|field| line[field].clone())
    };
    assert_eq!(words(&again), words(report), "{name}");
}

#[tokio::test]
async fn people_pause_resume_and_retry() {
    let mut cluster = Cluster::start().await;
    cluster.add(NodeSpec::worker("w-1", "v1.35.1"), Manner::FailsToStage, 1).await;
    cluster.add(NodeSpec::worker("w-2", "v1.35.1"), Manner::Works, 1).await;
    let kubeconfig = &cluster.control_plane.kubeconfig_path();
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let case = case("up", &["w-1", "w-2"], "paused: true", "w-1", ("Paused", "spec.paused"));
    cluster.apply(&manifest(&case)).await;
    until_it_waits(&cluster, &case, &mut operator).await;
    assert_eq!(ctl(kubeconfig, &["status", "--exit-code"]).await.status.code(), Some(4));
    let watched = ctl(kubeconfig, &["status", "up", "--watch", "--timeout", "1"]).await;
    assert_eq!(watched.status.code(), Some(124));
    let said = String::from_utf8_lossy(&watched.stderr);
    assert!(said.starts_with("timed out: up: Paused: "), "{said}");
    let said = says(kubeconfig, &["pause", "--all"]).await;
    assert!(said.starts_with("up is paused"), "{said}");
    let said = says(kubeconfig, &["resume", "up"]).await;
    assert!(said.starts_with("up stays paused: its spec.paused is true"), "{said}");
    let unpaused = Case { spec: "rollout: {maxFailedNodes: 1}".to_owned(), ..case };
    cluster.apply(&manifest(&unpaused)).await;
    cluster.wait_for("up", "Accepted", "NodesFailed", &mut operator).await;
    assert_eq!(ctl(kubeconfig, &["status", "up", "--exit-code"]).await.status.code(), Some(5));
    let status = says(kubeconfig, &["status", "up"]).await;
    assert!(status.contains("next: ctl retry up --node w-1"), "{status}");
    // It needs a person, so there is nothing to follow.
    let watched = ctl(kubeconfig, &["status", "up", "--watch", "--exit-code"]).await;
    assert_eq!(watched.status.code(), Some(5));
    let said = String::from_utf8_lossy(&watched.stdout);
    assert!(
        said.contains("w-1: Degraded, Failed: ") && said.contains("w-2: Completed, Completed: "),
        "{said}"
    );

    let not_failed = ctl(kubeconfig, &["retry", "up", "--node", "w-2"]).await;
    assert_eq!(not_failed.status.code(), Some(1));
    let run = cluster.upgrade("up").await.status.unwrap().run.unwrap();
    let said = says(kubeconfig, &["retry", "up"]).await;
    assert!(said.starts_with("up begins a new run"), "{said}");
    let deadline = Instant::now() + PATIENCE;
    while cluster.upgrade("up").await.status.unwrap().run.unwrap() == run {
        assert!(Instant::now() < deadline, "no new run; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.wait_for("up", "Accepted", "NodesFailed", &mut operator).await;
    assert_eq!(says(kubeconfig, &["retry", "up", "--node", "w-1"]).await, "w-1 tries again\n");
    let nonces = cluster.progresses().await;
    assert!(nonces.iter().any(|object| object.retry_nonce().starts_with("ctl-")), "{nonces:?}");
    cluster.ledger.assert_clean();
}

#[tokio::test]
async fn a_plan_says_what_would_happen_and_changes_nothing() {
    let mut cluster = Cluster::start_with(Crds::Applied, ControllerManager::Running).await;
    for name in ["w-1", "w-2"] {
        cluster.add(NodeSpec::worker(name, "v1.34.1"), Manner::Works, 1).await;
    }
    cluster.add(NodeSpec::worker("w-3", "v1.35.4"), Manner::Works, 1).await;
    let kubectl = cluster.control_plane.kubectl();
    let _ = kubectl.succeed(&["create", "serviceaccount", "default"]).await;
    let _runtime = Runtime::start(cluster.client());
    PodSpec::new("bare", "w-1").bare().create(&cluster.client()).await;
    PodSpec::new("web", "w-2").create(&cluster.client()).await;
    kubectl.succeed(&["create", "pdb", "web", "--selector=app=web", "--min-available=1"]).await.unwrap();
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    operator.wait_ready("ok").await;
    let file = cluster.scratch().join("plan.yaml");
    let case = case("plan", &["w-1", "w-2", "w-3"], "", "w-1", ("", ""));
    let case = case.to("v1.35.4", inline(&["v1.34.6", "v1.35.4"], &[]));
    std::fs::write(&file, manifest(&case)).unwrap();

    let kubeconfig = &cluster.control_plane.kubeconfig_path();
    let path = file.to_str().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = says(kubeconfig, &["plan", path]).await;
        let complete = text.starts_with("plan would move 2 nodes to v1.35.4, done in ")
            && text.contains("v1.34.1   v1.35.4")
            && text.contains("default/bare would be made again by nobody")
            && text
                .contains("default/web: The disruption budget web needs 1 healthy pods and has 1 currently")
            && text.contains("runs v1.35.4 already");
        if complete {
            break;
        }
        // The controller manager may not have looked at the budget yet.
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(pods_on(&cluster.client(), "w-2").await, ["web"]);
    assert!(cluster.progresses().await.is_empty());
}
