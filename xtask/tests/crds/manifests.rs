//! Every shipped manifest, applied as people apply it.

use std::path::Path;

use monok8s_sdk::manifests::{Agent, ConfigMapCatalogs, Controller, ImageSource, to_yaml};
use serde::Deserialize as _;
use serde_json::Value;
use xtask::controlplane::{ControlPlane, Kubectl, Options};
use xtask::generate::Scope;

use super::setup::{apply_crds, shipped};

/// How `kubectl` applies and compares: by itself, or by the server's field ownership.
const MODES: [&[&str]; 2] = [&[], &["--server-side"]];

/// Applies it twice; then `kubectl diff` sees no difference, and nothing was warned about.
async fn apply_twice(kubectl: &Kubectl, mode: &[&str], args: &[&str], input: &str) {
    for _ in 0..2 {
        let apply = [&["apply"], mode, args].concat();
        let output = kubectl.run_with_stdin(&apply, input).await.unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{apply:?}: {}", output.stderr);
    }
    let diff = [&["diff"], mode, args].concat();
    let diff = kubectl.run_with_stdin(&diff, input).await.unwrap();
    assert!(diff.status.success(), "{mode:?} {args:?}:\n{}{}", diff.stdout, diff.stderr);
    assert_eq!(diff.stdout, "");
}

#[tokio::test]
async fn applied_twice_each_file_changes_nothing() {
    for mode in MODES {
        let control_plane = ControlPlane::start(Options::default()).await.unwrap();
        let kubectl = control_plane.kubectl();
        apply_twice(&kubectl, mode, &["-f", &shipped("crds")], "").await;
        apply_twice(&kubectl, mode, &["-k", &shipped("deploy")], "").await;
        for name in ["namespace", "crds", "controller", "agent", "configmap-catalogs"] {
            let path = shipped(Path::new("deploy").join(format!("{name}.yaml")));
            apply_twice(&kubectl, mode, &["-f", &path], "").await;
        }
    }
}

#[tokio::test]
async fn what_ctl_prints_is_applied_in_one_go_on_an_empty_cluster() {
    let pulled = Controller {
        namespace: "ota".parse().unwrap(),
        image: ImageSource::Registry("registry.example.com/monok8s/controller:v1".to_owned()),
        config_maps: ConfigMapCatalogs::Allowed,
        grant_read: ["apps/Deployment".parse().unwrap()].into(),
    };
    for objects in [Controller::default().objects(), pulled.objects(), Agent::default().objects()] {
        let control_plane = ControlPlane::start(Options::default()).await.unwrap();
        apply_twice(&control_plane.kubectl(), &[], &["-f", "-"], &to_yaml(&objects)).await;
    }
}

#[tokio::test]
async fn kubectl_reads_each_generated_file_as_we_do() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let kubectl = control_plane.kubectl();
    apply_crds(&kubectl).await;
    for file in Scope::All.files() {
        // Read by kustomize, and by Prometheus and Grafana.
        if file.path.ends_with("kustomization.yaml") || file.path.starts_with("deploy/monitoring") {
            continue;
        }
        let ours: Vec<Value> = serde_yaml::Deserializer::from_str(&file.content)
            .map(|document| Value::deserialize(document).unwrap())
            .collect();
        let args = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
        let theirs = kubectl.succeed_with_stdin(&args, &file.content).await.unwrap();
        let theirs: Vec<Value> = serde_json::Deserializer::from_str(&theirs)
            .into_iter::<Value>()
            .flat_map(|read| match read.unwrap() {
                Value::Object(list) if list["kind"] == "List" => list["items"].as_array().unwrap().clone(),
                one => vec![one],
            })
            .collect();
        assert_eq!(theirs, ours, "{}", file.path.display());
    }
}
