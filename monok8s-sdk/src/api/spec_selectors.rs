//! The selectors of an `OSUpgrade`, understood as they were written.

use serde_json::{Map, Value};

use super::{NodeSelector, OSUpgrade, Selector, SelectorError};

/// Where `kubectl apply` keeps the manifest that it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Where a spec has selectors; `[]` follows a list, of which each item has one.
const SELECTORS: [&str; 4] = [
    "nodeSelector",
    "rollout.canary.nodeSelector",
    "rollout.trial.checks[].pods.labelSelector",
    "rollout.healthChecks[].labelSelector",
];

/// A selector of an upgrade that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {error}")]
pub struct InvalidSelector {
    /// Where it is, below `spec`.
    pub path: String,
    /// What is wrong with it.
    pub error: SelectorError,
}

impl OSUpgrade {
    /// The node selector, once every selector of the spec was understood as it was written.
    ///
    /// Always use this, not the spec's fields alone. In YAML `disktype:` with nothing after it is a
    /// null, and `kubectl apply` sends a null as the wish to have no such key: what is stored then is
    /// a selector that matches more than was meant, or none. The copy of the manifest that `kubectl
    /// apply` keeps in an annotation still shows the null, and such an upgrade is refused.
    ///
    /// # Errors
    /// The upgrade selects nothing, and the error says which selector is wrong, and how.
    pub fn selector(&self) -> Result<Selector, InvalidSelector> {
        let at = |path: &str| {
            let path = path.to_owned();
            move |error| InvalidSelector { path, error }
        };
        // A spec that was read always serializes.
        let stored = serde_json::to_value(&self.spec).unwrap_or_default();
        for (path, selector) in selectors(&stored) {
            NodeSelector(selector.clone()).parse().map_err(at(&path))?;
        }
        for (path, applied) in self.last_applied().iter().flat_map(selectors) {
            let stored = stored.pointer(&pointer(&path)).and_then(Value::as_object);
            if let Some(key) = lost_key(applied, stored) {
                let error = SelectorError::Malformed { path: key, expected: "given a value" };
                return Err(at(&path)(error));
            }
        }
        self.spec.node_selector.parse().map_err(at("nodeSelector"))
    }

    /// The spec that `kubectl apply` applied last.
    fn last_applied(&self) -> Option<Value> {
        let annotations = self.metadata.annotations.as_ref()?;
        let mut applied: Value = serde_json::from_str(annotations.get(LAST_APPLIED)?).ok()?;
        applied.get_mut("spec").map(Value::take)
    }
}

/// The selectors of a spec that are there, each with its path.
fn selectors(spec: &Value) -> Vec<(String, &Map<String, Value>)> {
    let mut found = Vec::new();
    for place in SELECTORS {
        collect(spec, "", place, &mut found);
    }
    found
}

/// Adds the selectors at a place, the next part of which is a key of `value`.
fn collect<'v>(value: &'v Value, path: &str, rest: &str, found: &mut Vec<(String, &'v Map<String, Value>)>) {
    let (key, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let name = key.trim_end_matches("[]");
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value.get(name) {
        Some(Value::Array(items)) if name != key => {
            for (index, item) in items.iter().enumerate() {
                collect(item, &format!("{path}[{index}]"), rest, found);
            }
        }
        Some(Value::Object(selector)) if rest.is_empty() => found.push((path, selector)),
        Some(below) => collect(below, &path, rest, found),
        None => {}
    }
}

/// `/a/0/b` for `a[0].b`.
fn pointer(path: &str) -> String {
    format!("/{}", path.replace(['.', '['], "/").replace(']', ""))
}

/// The path of a key that was a null in the applied manifest and is not stored. A map of nothing but
/// nulls is not sent at all.
fn lost_key(applied: &Map<String, Value>, stored: Option<&Map<String, Value>>) -> Option<String> {
    applied.iter().find_map(|(key, value)| {
        let stored = stored.and_then(|stored| stored.get(key));
        match value {
            Value::Null => stored.is_none().then(|| key.clone()),
            Value::Object(below) => {
                lost_key(below, stored.and_then(Value::as_object)).map(|below| format!("{key}.{below}"))
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What comes of a spec with these fields, of which `kubectl apply` had sent `applied`.
    fn parse(stored: &Value, applied: Option<&Value>) -> Result<Selector, String> {
        let annotations = applied
            .map_or(json!({}), |applied| json!({ LAST_APPLIED: json!({ "spec": applied }).to_string() }));
        let mut upgrade = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgrade",
            "metadata": { "name": "u", "annotations": annotations },
            "spec": { "version": "v1.35.3", "catalog": { "inline": "images: []" }, "nodeSelector": {} },
        });
        upgrade["spec"].as_object_mut().unwrap().extend(stored.as_object().unwrap().clone());
        let upgrade: OSUpgrade = serde_json::from_value(upgrade).unwrap();
        upgrade.selector().map_err(|error| error.to_string())
    }

    /// A spec with one selector, at each place that can have one.
    fn places(selector: &Value) -> [(&'static str, Value); 4] {
        let check = |selector: &Value| json!({ "apiVersion": "v1", "kind": "Pod", "expression": "true", "labelSelector": selector });
        let pods = |selector: &Value| json!({ "name": "n", "pods": { "namespace": "n", "labelSelector": selector } });
        [
            ("nodeSelector", json!({ "nodeSelector": selector })),
            ("rollout.canary.nodeSelector", json!({ "rollout": { "canary": { "nodeSelector": selector } } })),
            (
                "rollout.trial.checks[1].pods.labelSelector",
                json!({ "rollout": { "trial": { "checks": [pods(&json!({})), pods(selector)] } } }),
            ),
            (
                "rollout.healthChecks[1].labelSelector",
                json!({ "rollout": { "healthChecks": [check(&json!({})), check(selector)] } }),
            ),
        ]
    }

    #[test]
    fn a_key_that_kubectl_dropped_for_its_null_is_missed_wherever_a_selector_is() {
        for (stored, applied, missed) in [
            (json!({}), json!({ "disktype": null }), Some("disktype")),
            (
                json!({ "matchLabels": {} }),
                json!({ "matchLabels": { "zone": null } }),
                Some("matchLabels.zone"),
            ),
            (json!({}), json!({ "matchLabels": { "zone": null } }), Some("matchLabels.zone")),
            (json!({}), json!({}), None),
            // Given a value since, by another tool than kubectl apply.
            (json!({ "disktype": "ssd" }), json!({ "disktype": null }), None),
        ] {
            for ((place, stored), (_, applied)) in places(&stored).iter().zip(places(&applied)) {
                let expected = missed.map(|key| format!("{place}: {key} is not given a value"));
                assert_eq!(parse(stored, Some(&applied)).err(), expected, "{stored} {applied}");
                assert_eq!(parse(stored, None).err(), None, "{stored}");
            }
        }
    }

    #[test]
    fn a_canary_that_kubectl_dropped_with_its_nulls_is_missed() {
        let applied = json!({ "rollout": { "canary": { "nodeSelector": { "pool": null } } } });
        let missed = parse(&json!({ "rollout": {} }), Some(&applied));
        assert_eq!(missed, Err("rollout.canary.nodeSelector: pool is not given a value".to_owned()));
    }

    #[test]
    fn a_mistake_is_found_wherever_a_selector_is() {
        for (place, spec) in places(&json!({ "disktype": 1 })) {
            let expected = format!("{place}: disktype is not a string; quote numbers and true/false");
            assert_eq!(parse(&spec, None), Err(expected));
        }
    }
}
