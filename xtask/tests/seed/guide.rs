//! What the guide has in its boxes, and variations of it.

use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::testbed::Testbed;

/// The file of the guide that is called so.
pub(super) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/seed").join(name)
}

/// The guide's `upgrade.yaml`.
pub(super) fn upgrade_yaml() -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(file("upgrade.yaml")).unwrap()).unwrap()
}

/// The catalog in it.
pub(super) fn catalog() -> String {
    upgrade_yaml()["spec"]["catalog"]["inline"].as_str().unwrap().to_owned()
}

/// The guide's `upgrade.yaml` under another name, asking for another version.
pub(super) fn asking_for(name: &str, version: &str) -> Value {
    upgrade(name, version, &json!({}), &json!({"inline": catalog()}))
}

/// An `OSUpgrade`.
pub(super) fn upgrade(name: &str, version: &str, selector: &Value, catalog: &Value) -> Value {
    json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgrade",
        "metadata": {"name": name},
        "spec": {"version": version, "nodeSelector": selector, "catalog": catalog},
    })
}

/// `kubectl apply -f -`.
pub(super) async fn apply(testbed: &Testbed, object: &Value) {
    let said = testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &object.to_string()).await;
    said.unwrap_or_else(|error| panic!("{error:#}"));
}
