//! `spec.nodeSelector`, in every form and with every mistake, through each way to apply it.

use monok8s_sdk::api::OSUpgradeStatus;
use monok8s_sdk::api::UpgradePhase::{self, Pending, Rejected};
use serde_json::{Value, json};
use xtask::testbed::Testbed;

use super::guide::{catalog, upgrade};
use super::look::{UPGRADE, sources, told, upgrade_until};

/// Ways to apply, with the `kubectl` arguments of each.
const WAYS: [(&str, &[&str]); 3] = [
    ("validated", &["apply", "-f", "-"]),
    ("unvalidated", &["apply", "--validate=false", "-f", "-"]),
    ("server-side", &["apply", "--server-side", "-f", "-"]),
];

/// What a selector comes to.
enum Outcome {
    /// So many of the two nodes.
    Selects(i32),
    /// The upgrade says this instead, and selects nothing.
    Says(UpgradePhase, &'static str),
}

/// Of the two nodes, one is labelled `disktype: ssd`.
fn understood() -> Vec<(&'static str, Value, Outcome)> {
    use Outcome::{Says, Selects};
    let expression = json!([{"key": "disktype", "operator": "In", "values": ["ssd"]}]);
    let misspelt = json!([{"key": "disktype", "operater": "In", "values": ["ssd"]}]);
    let invalid = || Says(Rejected, "InvalidNodeSelector");
    vec![
        ("empty", json!({}), Selects(2)),
        ("plain", json!({"disktype": "ssd"}), Selects(1)),
        ("labels", json!({"matchLabels": {"disktype": "ssd"}}), Selects(1)),
        ("expressions", json!({"matchExpressions": expression}), Selects(1)),
        ("both", json!({"matchLabels": {"disktype": "ssd"}, "matchExpressions": expression}), Selects(1)),
        ("mix", json!({"disktype": "ssd", "matchLabels": {"disktype": "ssd"}}), invalid()),
        ("typo-in-key", json!({"matchLabel": {"disktype": "ssd"}}), invalid()),
        ("typo-in-expression", json!({"matchExpressions": misspelt}), invalid()),
        ("typo-in-label", json!({"disktpye": "ssd"}), Says(Pending, "NoMatchingNodes")),
    ]
}

pub(super) async fn select_what_they_say_and_mistakes_select_nothing(testbed: &Testbed) {
    for (way, command) in WAYS {
        let mut objects = Vec::new();
        for (case, selector, _) in understood() {
            objects.push(upgrade(
                &format!("{case}-{way}"),
                "stable",
                &selector,
                &json!({"inline": catalog()}),
            ));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        testbed.kubectl().succeed_with_stdin(command, &list.to_string()).await.unwrap();
        refused_at_the_door(testbed, way, command).await;
    }
    for (way, _) in WAYS {
        for (case, _, outcome) in understood() {
            comes_to(testbed, &format!("{case}-{way}"), &outcome).await;
        }
    }
    let sources = sources(testbed).await.unwrap();
    let mistaken = |source: &&String| source.starts_with("mix") || source.starts_with("typo");
    assert_eq!(sources.iter().find(mistaken), None, "a mistake selected a node");
}

async fn comes_to(testbed: &Testbed, name: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Selects(nodes) => {
            let selects =
                |status: &OSUpgradeStatus| status.nodes.as_ref().is_some_and(|all| all.total == *nodes);
            upgrade_until(testbed, name, &format!("selects {nodes}"), UPGRADE, selects).await;
        }
        Outcome::Says(phase, reason) => {
            let message = told(testbed, name, phase, reason).await;
            if *reason == "NoMatchingNodes" {
                assert!(message.contains("disktype"), "it names the labels there are: {message}");
            }
        }
    }
}

/// A misspelt key, a null and no selector at all never become an object.
async fn refused_at_the_door(testbed: &Testbed, way: &str, command: &[&str]) {
    for (case, key, selector) in [
        ("misspelt", Some("nodeSelectr"), json!({"disktype": "ssd"})),
        ("null", Some("nodeSelector"), Value::Null),
        ("none", None, Value::Null),
    ] {
        let name = format!("{case}-{way}");
        let mut object = upgrade(&name, "stable", &json!({}), &json!({"inline": catalog()}));
        let spec = object["spec"].as_object_mut().unwrap();
        spec.remove("nodeSelector");
        if let Some(key) = key {
            spec.insert(key.to_owned(), selector);
        }
        let output = testbed.kubectl().run_with_stdin(command, &object.to_string()).await.unwrap();
        assert!(!output.status.success(), "{name} was accepted: {}", output.stdout);
        assert!(output.stderr.contains("nodeSelect"), "{name}: {}", output.stderr);
        assert!(!testbed.upgrades().await.unwrap().contains_key(&name), "{name} is there");
    }
}
