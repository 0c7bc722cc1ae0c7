//! Objects of earlier releases, and of later ones, are read without loss and without complaint.

use std::fmt::Debug;
use std::fs;

use monok8s_sdk::api::{OSNode, OSUpgrade, OSUpgradeProgress};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xtask::host::workspace_root;

/// The file names and objects of every release's samples.
fn samples() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for release in fs::read_dir(workspace_root().join("testdata/compat")).unwrap() {
        for file in fs::read_dir(release.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), serde_yaml::from_str(&text).unwrap()));
        }
    }
    assert!(found.len() >= 6, "{} samples", found.len());
    found
}

/// Reads `object` as its kind and returns what would be written back.
fn round_trip(object: &Value) -> Value {
    fn through<K: DeserializeOwned + Serialize + Debug>(object: &Value) -> Value {
        let typed: K =
            serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
        serde_json::to_value(typed).unwrap()
    }
    match object["kind"].as_str().unwrap() {
        "OSUpgrade" => through::<OSUpgrade>(object),
        "OSUpgradeProgress" => through::<OSUpgradeProgress>(object),
        "OSNode" => through::<OSNode>(object),
        other => panic!("{other}"),
    }
}

#[test]
fn objects_of_every_release_survive_a_round_trip() {
    for (path, object) in samples() {
        assert_eq!(round_trip(&object), object, "{path}");
    }
}

#[test]
fn fields_of_a_newer_release_are_tolerated_at_every_depth() {
    fn strewn(value: &Value, path: &str) -> Value {
        match value {
            Value::Object(fields) => {
                let mut strewn: serde_json::Map<_, _> = fields
                    .iter()
                    .map(|(key, value)| (key.clone(), strewn(value, &format!("{path}/{key}"))))
                    .collect();
                // A selector keeps what it does not know, and label maps hold only strings.
                let free_form = ["nodeSelector", "labelSelector", "matchLabels", "matchExpressions"]
                    .iter()
                    .any(|name| path.contains(name));
                if !free_form {
                    strewn.insert("fromTheFuture".to_owned(), json!({ "deep": [1] }));
                }
                Value::Object(strewn)
            }
            Value::Array(items) => items.iter().map(|item| strewn(item, path)).collect(),
            scalar => scalar.clone(),
        }
    }
    for (path, object) in samples() {
        assert_eq!(round_trip(&strewn(&object, "")), object, "{path}");
    }
}

#[test]
fn nothing_is_written_as_null() {
    fn nulls(value: &Value, path: &str) {
        assert!(!value.is_null(), "{path} is null");
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(key, value)| nulls(value, &format!("{path}.{key}")));
            }
            Value::Array(items) => items.iter().for_each(|item| nulls(item, path)),
            _ => {}
        }
    }
    for (path, object) in samples() {
        nulls(&round_trip(&object), &path);
    }
    nulls(&serde_json::to_value(monok8s_sdk::api::OSUpgradeStatus::default()).unwrap(), "OSUpgradeStatus");
    nulls(
        &serde_json::to_value(monok8s_sdk::api::OSUpgradeProgressStatus::default()).unwrap(),
        "OSUpgradeProgressStatus",
    );
    nulls(&serde_json::to_value(monok8s_sdk::api::OSNodeStatus::default()).unwrap(), "OSNodeStatus");
}
