//! The tables of the user guide, as `kubectl get` prints them.

use serde_json::{Value, json};
use xtask::controlplane::Kubectl;

use super::setup::{control_plane, sample};

/// Each line's words.
fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

async fn create(kubectl: &Kubectl, object: &Value) {
    kubectl.succeed_with_stdin(&["create", "-f", "-"], &object.to_string()).await.unwrap();
    let status = json!({ "status": object["status"] }).to_string();
    let target = [object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap()];
    let patch = ["patch", "--subresource=status", "--type=merge", "-p", &status];
    kubectl.succeed(&[&patch[..], &target[..]].concat()).await.unwrap();
}

#[tokio::test]
async fn upgrades() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    for (name, desired, resolved, phase) in [
        ("my-upgrade-3", "stable", "v1.35.4", "Pending"),
        ("my-upgrade-2", "v1.35.3", "v1.35.3", "Accepted"),
        ("my-downgrade-1", "v1.33.2", "v1.33.2", "Rejected"),
    ] {
        let mut upgrade = sample("osupgrade-minimal.yaml");
        upgrade["metadata"]["name"] = json!(name);
        upgrade["spec"]["version"] = json!(desired);
        upgrade["status"] = json!({ "resolvedVersion": resolved, "phase": phase });
        create(&kubectl, &upgrade).await;
    }
    let expected: &[&[&str]] = &[
        &["NAME", "DESIRED", "RESOLVED", "PHASE"],
        &["my-downgrade-1", "v1.33.2", "v1.33.2", "Rejected"],
        &["my-upgrade-2", "v1.35.3", "v1.35.3", "Accepted"],
        &["my-upgrade-3", "stable", "v1.35.4", "Pending"],
    ];
    for name in ["osupgrades", "osupgrade", "osu"] {
        assert_eq!(words(&kubectl.succeed(&["get", name]).await.unwrap()), expected);
    }
    let wide = kubectl.succeed(&["get", "osu", "-o", "wide"]).await.unwrap();
    assert_eq!(
        words(&wide)[0],
        ["NAME", "DESIRED", "RESOLVED", "PHASE", "NODES", "UP-TO-DATE", "REASON", "MESSAGE", "AGE"]
    );
}

#[tokio::test]
async fn progress() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    for (name, node, current, phase) in [
        ("osupgrade-abc123f", "node-1", "v1.34.1", "Downloading"),
        ("osupgrade-cde456g", "node-2", "v1.35.3", "Completed"),
    ] {
        let mut progress = sample("osupgradeprogress-by-hand.yaml");
        progress["metadata"]["name"] = json!(name);
        progress["spec"]["nodeName"] = json!(node);
        progress["status"] = json!({ "currentVersion": current, "targetVersion": "v1.35.3", "phase": phase });
        create(&kubectl, &progress).await;
    }
    let header: &[&str] = &["NAME", "NODE", "SOURCE", "CURRENT", "TARGET", "STATUS"];
    let first: &[&str] =
        &["osupgrade-abc123f", "node-1", "my-upgrade-2", "v1.34.1", "v1.35.3", "Downloading"];
    let second: &[&str] = &["osupgrade-cde456g", "node-2", "my-upgrade-2", "v1.35.3", "v1.35.3", "Completed"];
    for name in ["osupgradeprogresses", "osupgradeprogress", "osup"] {
        assert_eq!(words(&kubectl.succeed(&["get", name]).await.unwrap()), [header, first, second]);
    }
    // How an agent watches: only its own node's.
    let own = kubectl.succeed(&["get", "osup", "--field-selector", "spec.nodeName=node-2"]).await.unwrap();
    assert_eq!(words(&own), [header, second]);
}

#[tokio::test]
async fn nodes() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    create(&kubectl, &sample("osnode.yaml")).await;
    let expected: &[&[&str]] = &[
        &["NAME", "SLOT", "VERSION", "OTHER", "LOADER", "AGENT"],
        &["node-1", "A", "v1.33.4", "v1.33.3", "simulated", "0.1.0"],
    ];
    assert_eq!(words(&kubectl.succeed(&["get", "osnodes"]).await.unwrap()), expected);
    assert_eq!(words(&kubectl.succeed(&["get", "osn"]).await.unwrap()), expected);
    // The whole category at once.
    let all = kubectl.succeed(&["get", "monok8s", "-o", "name"]).await.unwrap();
    assert_eq!(all, "osnode.monok8s.io/node-1\n");
}

#[tokio::test]
async fn a_new_object_is_not_taken_for_a_finished_one() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    for name in ["osupgrade-minimal.yaml", "osupgradeprogress-by-hand.yaml"] {
        let object = sample(name).to_string();
        let created =
            kubectl.succeed_with_stdin(&["create", "-f", "-", "-o", "json"], &object).await.unwrap();
        let created: Value = serde_json::from_str(&created).unwrap();
        assert_eq!(created["status"], json!({ "observedGeneration": -1 }), "{name}");
    }
}
