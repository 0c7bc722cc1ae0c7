//! Node selectors through every kind of `kubectl apply`: refused, or stored exactly as written, so
//! that no mistake turns into "every node" on its way to the operator.

use std::collections::BTreeMap;

use monok8s_sdk::api::OSUpgrade;
use serde_json::{Value, json};
use xtask::controlplane::{Kubectl, Output};

use super::setup::{control_plane, sample};

const CLIENTS: [&[&str]; 4] = [
    &["apply", "--validate=true", "-f", "-"],
    &["apply", "--validate=false", "-f", "-"],
    &["apply", "--server-side", "-f", "-"],
    &["apply", "--server-side", "--validate=false", "-f", "-"],
];

/// The upgrade called `name` whose spec has `selector` in the place of its own.
fn upgrade(name: &str, selector: &Value) -> Value {
    let mut upgrade = sample("osupgrade-minimal.yaml");
    upgrade["metadata"]["name"] = json!(name);
    let spec = upgrade["spec"].as_object_mut().unwrap();
    spec.remove("nodeSelector");
    spec.extend(selector.as_object().unwrap().clone());
    upgrade
}

/// Applies the upgrades in one stream.
async fn apply(kubectl: &Kubectl, args: &[&str], upgrades: &[Value]) -> Output {
    let stream: Vec<_> = upgrades.iter().map(Value::to_string).collect();
    kubectl.run_with_stdin(args, &stream.join("\n")).await.unwrap()
}

/// All upgrades there are.
async fn upgrades(kubectl: &Kubectl) -> Vec<OSUpgrade> {
    let text = kubectl.succeed(&["get", "osupgrades", "-o", "json"]).await.unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(list["items"].clone()).unwrap()
}

/// Names and selectors of all upgrades there are.
async fn stored(kubectl: &Kubectl) -> BTreeMap<String, Value> {
    let selector = |upgrade: &OSUpgrade| Value::Object(upgrade.spec.node_selector.0.clone());
    let all = upgrades(kubectl).await;
    all.iter().map(|upgrade| (upgrade.metadata.name.clone().unwrap(), selector(upgrade))).collect()
}

async fn delete_all(kubectl: &Kubectl) {
    kubectl.succeed(&["delete", "osupgrades", "--all"]).await.unwrap();
}

#[tokio::test]
async fn what_is_understood_or_rejected_later_is_stored_as_written() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    let expression = json!({ "key": "zone", "operator": "In", "values": ["a", "b"] });
    let selectors = [
        ("empty", json!({})),
        ("plain", json!({ "disktype": "ssd", "zone": "a" })),
        ("labels", json!({ "matchLabels": { "disktype": "ssd" } })),
        ("expressions", json!({ "matchExpressions": [expression] })),
        ("mix", json!({ "disktype": "ssd", "matchLabels": { "zone": "a" } })),
        ("typo", json!({ "matchLabel": { "disktype": "ssd" } })),
        ("typo-below", json!({ "matchExpressions": [{ "key": "zone", "operater": "Exists" }] })),
        ("number", json!({ "disktype": 1 })),
        ("list", json!({ "matchLabels": ["disktype"] })),
    ];
    let upgrades: Vec<_> = selectors
        .iter()
        .map(|(name, selector)| upgrade(name, &json!({ "nodeSelector": selector })))
        .collect();
    let expected: BTreeMap<_, _> =
        selectors.iter().map(|(name, selector)| ((*name).to_owned(), selector.clone())).collect();
    for args in CLIENTS {
        for _ in 0..2 {
            let output = apply(&kubectl, args, &upgrades).await;
            assert!(output.status.success(), "{args:?}: {}", output.stderr);
            assert_eq!(stored(&kubectl).await, expected, "{args:?}");
        }
        delete_all(&kubectl).await;
    }
}

#[tokio::test]
async fn what_would_lose_its_meaning_is_refused_by_every_client() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    let mistakes = [
        ("misspelt", json!({ "nodeSelectr": { "disktype": "ssd" } })),
        ("case", json!({ "nodeselector": { "disktype": "ssd" } })),
        ("null", json!({ "nodeSelector": null })),
        ("none", json!({})),
        ("text", json!({ "nodeSelector": "disktype=ssd" })),
        ("list", json!({ "nodeSelector": ["disktype"] })),
    ];
    let ssd = json!({ "disktype": "ssd" });
    let wrong: Vec<_> = mistakes.iter().map(|(name, mistake)| upgrade(name, mistake)).collect();
    let right: Vec<_> =
        mistakes.iter().map(|(name, _)| upgrade(name, &json!({ "nodeSelector": ssd }))).collect();
    for args in CLIENTS {
        let refused = apply(&kubectl, args, &wrong).await;
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{args:?}: {}", refused.stdout);
        let about_it = refused.stderr.to_lowercase().matches("nodeselect").count();
        assert!(about_it >= mistakes.len(), "{args:?}: {}", refused.stderr);
        assert_eq!(stored(&kubectl).await, BTreeMap::new(), "{args:?}");

        // The same mistakes in an edit leave the objects as they were.
        assert!(apply(&kubectl, args, &right).await.status.success());
        let refused = apply(&kubectl, args, &wrong).await;
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{args:?}: {}", refused.stdout);
        let kept = stored(&kubectl).await;
        assert_eq!(kept.len(), mistakes.len());
        assert!(kept.values().all(|selector| *selector == ssd), "{args:?}: {kept:?}");
        delete_all(&kubectl).await;
    }
}

#[tokio::test]
async fn what_kubectl_drops_on_the_way_selects_nothing() {
    let control_plane = control_plane().await;
    let kubectl = control_plane.kubectl();
    // `disktype:` with nothing after it is a null. kubectl's own apply takes it for the wish to have no
    // such key, which would leave the selector of every node.
    let selectors = [
        ("plain", json!({ "disktype": null })),
        ("labels", json!({ "matchLabels": { "zone": null } })),
        ("expressions", json!({ "matchExpressions": null })),
    ];
    let elsewhere = |selector: &Value| {
        let check =
            json!({ "apiVersion": "v1", "kind": "Pod", "expression": "true", "labelSelector": selector });
        [
            upgrade(
                "canary",
                &json!({ "nodeSelector": {}, "rollout": { "canary": { "nodeSelector": selector } } }),
            ),
            upgrade("check", &json!({ "nodeSelector": {}, "rollout": { "healthChecks": [check] } })),
        ]
    };
    let wrong: Vec<_> = selectors
        .iter()
        .map(|(name, selector)| upgrade(name, &json!({ "nodeSelector": selector })))
        .chain(elsewhere(&json!({ "pool": null })))
        .collect();
    let ssd = json!({ "disktype": "ssd" });
    let right: Vec<_> = selectors
        .iter()
        .map(|(name, _)| upgrade(name, &json!({ "nodeSelector": ssd })))
        .chain(elsewhere(&json!({ "pool": "first" })))
        .collect();
    for args in CLIENTS {
        // At first as a creation, then as a change.
        for before in [&[][..], &right[..]] {
            if !before.is_empty() {
                assert!(apply(&kubectl, args, before).await.status.success());
                assert!(
                    upgrades(&kubectl).await.iter().all(|upgrade| upgrade.selector().is_ok()),
                    "{args:?}"
                );
            }
            for _ in 0..2 {
                assert!(apply(&kubectl, args, &wrong).await.status.success());
                for upgrade in upgrades(&kubectl).await {
                    let error = upgrade.selector().expect_err(&format!("{args:?}: {upgrade:?}"));
                    let path = match upgrade.metadata.name.as_deref() {
                        Some("canary") => "rollout.canary.nodeSelector",
                        Some("check") => "rollout.healthChecks[0].labelSelector",
                        _ => "nodeSelector",
                    };
                    assert_eq!(error.path, path, "{args:?}: {error}");
                }
            }
        }
        // A deliberate "every node" is still one.
        let every = [upgrade("plain", &json!({ "nodeSelector": {} }))];
        assert!(apply(&kubectl, args, &every).await.status.success());
        let all = upgrades(&kubectl).await;
        let plain = all.iter().find(|upgrade| upgrade.metadata.name.as_deref() == Some("plain")).unwrap();
        plain.selector().unwrap();
        delete_all(&kubectl).await;
    }
}
