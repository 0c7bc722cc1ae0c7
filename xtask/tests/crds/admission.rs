//! An agent's token reaches the status of its own node's objects, and nothing else.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use xtask::controlplane::{ControlPlane, Kubectl, Options};

use super::setup::{sample, shipped};

/// A cluster with two nodes and their objects.
async fn cluster() -> ControlPlane {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let kubectl = control_plane.kubectl();
    kubectl.succeed(&["apply", "-k", &shipped("deploy")]).await.unwrap();
    kubectl.wait_for_crds().await.unwrap();
    for node in ["node-1", "node-2"] {
        let object = serde_json::from_value(json!({ "metadata": { "name": node } })).unwrap();
        Api::<Node>::all(control_plane.client()).create(&PostParams::default(), &object).await.unwrap();
        let mut progress = sample("osupgradeprogress-by-hand.yaml");
        progress["metadata"]["name"] = json!(format!("progress-of-{node}"));
        progress["spec"]["nodeName"] = json!(node);
        let mut inventory = sample("osnode.yaml");
        inventory["metadata"]["name"] = json!(node);
        for object in [progress, inventory, sample("osupgrade-minimal.yaml")] {
            kubectl.succeed_with_stdin(&["apply", "-f", "-"], &object.to_string()).await.unwrap();
        }
    }
    control_plane
}

async fn agent(control_plane: &ControlPlane, node: Option<&str>) -> Kubectl {
    let path = control_plane.service_account_kubeconfig("mono-system", "node-agent", node).await.unwrap();
    control_plane.kubectl().with_kubeconfig(&path)
}

/// Writes a status as the agent does: by server-side apply.
async fn write(kubectl: &Kubectl, kind: &str, name: &str, status: Value) -> Result<(), String> {
    let object = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "status": status,
    });
    let args = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--subresource=status",
        "--field-manager=monok8s-agent",
        "--validate=false",
        "-f",
        "-",
    ];
    outcome(kubectl, &args, &object.to_string()).await
}

async fn outcome(kubectl: &Kubectl, args: &[&str], input: &str) -> Result<(), String> {
    let output = kubectl.run_with_stdin(args, input).await.unwrap();
    if output.status.success() { Ok(()) } else { Err(output.stderr) }
}

/// A policy is in force a moment after it was created.
async fn wait_until_enforced(kubectl: &Kubectl) {
    let deadline = Instant::now() + Duration::from_secs(30);
    for (kind, name) in [("OSUpgradeProgress", "progress-of-node-2"), ("OSNode", "node-2")] {
        while write(kubectl, kind, name, json!({})).await.is_ok() {
            assert!(Instant::now() < deadline, "{kind} can still be written");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn an_agent_writes_the_status_of_its_own_node_s_objects_only() {
    let control_plane = cluster().await;
    let first = agent(&control_plane, Some("node-1")).await;
    wait_until_enforced(&first).await;
    let phase = || json!({ "phase": "Completed" });
    let version = || json!({ "bootedVersion": "v1.35.3" });

    write(&first, "OSUpgradeProgress", "progress-of-node-1", phase()).await.unwrap();
    write(&first, "OSNode", "node-1", version()).await.unwrap();
    for (kind, name, status, resource) in [
        ("OSUpgradeProgress", "progress-of-node-2", phase(), "osupgradeprogresses"),
        ("OSNode", "node-2", version(), "osnodes"),
    ] {
        let refused = write(&first, kind, name, status).await.unwrap_err();
        let words = format!("the agent of node node-1 writes only to {resource} of its own node");
        assert!(refused.contains(&words), "{refused}");
    }

    let anywhere = agent(&control_plane, None).await;
    let refused = write(&anywhere, "OSNode", "node-1", version()).await.unwrap_err();
    assert!(refused.contains("the token names no node"), "{refused}");
    let refused = write(&anywhere, "OSUpgradeProgress", "progress-of-node-1", phase()).await.unwrap_err();
    assert!(refused.contains("the token names no node"), "{refused}");
}

#[tokio::test]
async fn an_agent_may_do_nothing_else() {
    let control_plane = cluster().await;
    let first = agent(&control_plane, Some("node-1")).await;
    let spec = ["-p", r#"{"spec":{"retryNonce":"x"}}"#, "--type=merge"];
    let refused: &[&[&str]] = &[
        &[&["patch", "osupgradeprogress", "progress-of-node-1"], &spec[..]].concat(),
        &[&["patch", "osupgrade", "my-upgrade-2"], &spec[..]].concat(),
        &["delete", "osupgradeprogress", "progress-of-node-1"],
        &["delete", "osnode", "node-1"],
        &["delete", "node", "node-2"],
        &["patch", "node", "node-1", "-p", r#"{"spec":{"unschedulable":true}}"#],
        &["get", "configmaps", "-n", "mono-system"],
        &["get", "secrets", "-n", "mono-system"],
        &["get", "pods", "--all-namespaces"],
        &["get", "nodes"],
        &["get", "osnodes"],
    ];
    for args in refused {
        let Err(error) = outcome(&first, args, "").await else { panic!("{args:?} was allowed") };
        assert!(error.contains("Forbidden"), "{args:?}: {error}");
    }
    let allowed: &[&[&str]] =
        &[&["get", "osup"], &["get", "osu"], &["get", "osnode", "node-1"], &["get", "node", "node-1"]];
    for args in allowed {
        outcome(&first, args, "").await.unwrap_or_else(|error| panic!("{args:?}: {error}"));
    }
}

#[tokio::test]
async fn configmaps_become_readable_with_the_opt_in_and_only_in_its_namespace() {
    let control_plane = cluster().await;
    let admin = control_plane.kubectl();
    for namespace in ["mono-system", "default"] {
        admin.succeed(&["create", "configmap", "images-cm", "-n", namespace]).await.unwrap();
    }
    let path = control_plane.service_account_kubeconfig("mono-system", "controller", None).await.unwrap();
    let controller = admin.with_kubeconfig(&path);
    let agent = agent(&control_plane, Some("node-1")).await;
    let read = ["get", "configmap", "images-cm", "-n", "mono-system"];
    for program in [&controller, &agent] {
        assert!(outcome(program, &read, "").await.unwrap_err().contains("Forbidden"));
    }
    admin.succeed(&["apply", "-f", &shipped("deploy/configmap-catalogs.yaml")]).await.unwrap();
    for program in [&controller, &agent] {
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = outcome(program, &read, "").await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let elsewhere = ["get", "configmap", "images-cm", "-n", "default"];
        assert!(outcome(program, &elsewhere, "").await.unwrap_err().contains("Forbidden"));
        assert!(
            outcome(program, &["get", "configmaps", "-n", "mono-system"], "").await.is_err(),
            "get, not list"
        );
    }
}
