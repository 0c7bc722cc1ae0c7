//! "Install the controller": `ctl create controller [--image]`, piped into `kubectl apply -f -`.
//! There are no pods here for `kubectl exec` to enter; `ctl` is started as it would be there.

use std::process::Command;

use serde_json::Value;
use xtask::programs::Program;
use xtask::testbed::Testbed;

pub(super) async fn without_an_image_it_runs_on_managed_nodes_from_what_they_have(testbed: &Testbed) {
    let pod = applied(testbed, &[]).await;
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "Never");
    assert_eq!(pod["nodeSelector"]["monok8s.io/managed"], "true");
}

pub(super) async fn with_an_image_it_runs_that_one(testbed: &Testbed) {
    let pod = applied(testbed, &["--image", "registry.example/monok8s/controller:v9"]).await;
    assert_eq!(pod["containers"][0]["image"], "registry.example/monok8s/controller:v9");
    assert_ne!(pod["containers"][0]["imagePullPolicy"], "Never");
    assert_eq!(pod["nodeSelector"]["monok8s.io/managed"], Value::Null);
}

/// The guide runs `ctl` in the pods of `ds/node-agent` in `mono-system`.
pub(super) async fn the_agents_have_the_name_that_the_guide_uses(testbed: &Testbed) {
    let arguments = ["apply", "--dry-run=server", "-f", "-", "-o", "json"];
    let said = testbed.kubectl().succeed_with_stdin(&arguments, &ctl(&["create", "agent"])).await.unwrap();
    let list: Value = serde_json::from_str(&said).unwrap();
    let objects = list["items"].as_array().unwrap();
    let agents = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    assert_eq!(agents["metadata"]["namespace"], "mono-system");
    assert_eq!(agents["metadata"]["name"], "node-agent");
}

/// `ctl create controller ARGUMENTS | kubectl apply -f -`, and the pod that the Deployment then has.
async fn applied(testbed: &Testbed, arguments: &[&str]) -> Value {
    let manifest = ctl(&[&["create", "controller"], arguments].concat());
    let kubectl = testbed.kubectl();
    let said = kubectl.succeed_with_stdin(&["apply", "-f", "-"], &manifest).await.unwrap();
    let deployment = said.lines().find(|line| line.starts_with("deployment.apps/")).expect("a Deployment");
    let name = deployment.split(' ').next().unwrap();
    let shown = kubectl.succeed(&["get", "-n", "mono-system", name, "-o", "json"]).await.unwrap();
    let deployment: Value = serde_json::from_str(&shown).unwrap();
    let spec = &deployment["spec"];
    assert_eq!((&spec["replicas"], &spec["strategy"]["type"]), (&1.into(), &"Recreate".into()));
    spec["template"]["spec"].clone()
}

/// What `ctl` prints.
fn ctl(arguments: &[&str]) -> String {
    let output = Command::new(Program::Ctl.locate().unwrap()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
