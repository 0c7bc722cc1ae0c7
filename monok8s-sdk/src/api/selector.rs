//! Node selectors: the plain label map of a Pod's `nodeSelector`, or a `LabelSelector`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A node selector as written. Required wherever it appears, because a misspelt key must not turn
/// into "every node"; `{}` says "every managed node" on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeSelector(pub Map<String, Value>);

/// A node selector that was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

/// Why a selector is refused. A refused selector selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// Both forms at once.
    #[error("mixes matchLabels/matchExpressions with the label {label:?}: use one form")]
    Mixed {
        /// The first plain label found beside the `LabelSelector` keys.
        label: String,
    },
    /// A value that fits neither form.
    #[error("{path} is not {expected}")]
    Malformed {
        /// Where, in the selector.
        path: String,
        /// What would be right there.
        expected: &'static str,
    },
    /// A key that is not a label key.
    #[error("{key:?} is not a label key")]
    BadKey {
        /// The key.
        key: String,
    },
    /// A value that is not a label value.
    #[error("{value:?} is not a label value (label {key})")]
    BadValue {
        /// The label it stands at.
        key: String,
        /// The value.
        value: String,
    },
}

impl NodeSelector {
    /// Understands the selector, or says what is wrong with it.
    ///
    /// ```
    /// use monok8s_sdk::api::NodeSelector;
    ///
    /// let plain: NodeSelector = serde_json::from_str(r#"{"disktype": "ssd"}"#)?;
    /// let labels = [("disktype".to_owned(), "ssd".to_owned())].into();
    /// assert!(plain.parse()?.matches(&labels));
    ///
    /// let mixed: NodeSelector = serde_json::from_str(r#"{"disktype": "ssd", "matchLabels": {}}"#)?;
    /// assert!(mixed.parse().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(&self) -> Result<Selector, SelectorError> {
        let structured = self.0.keys().any(|key| key == "matchLabels" || key == "matchExpressions");
        if !structured {
            let requirements = label_map("", &self.0)?;
            return Ok(Selector { requirements });
        }
        let plain = self.0.keys().find(|key| *key != "matchLabels" && *key != "matchExpressions");
        if let Some(label) = plain {
            return Err(SelectorError::Mixed { label: label.clone() });
        }
        let mut requirements = Vec::new();
        if let Some(labels) = self.0.get("matchLabels") {
            let labels = labels.as_object().ok_or(SelectorError::Malformed {
                path: "matchLabels".to_owned(),
                expected: "a map of labels",
            })?;
            requirements.extend(label_map("matchLabels.", labels)?);
        }
        if let Some(expressions) = self.0.get("matchExpressions") {
            let expressions = expressions.as_array().ok_or(SelectorError::Malformed {
                path: "matchExpressions".to_owned(),
                expected: "a list of {key, operator, values}",
            })?;
            for (index, expression) in expressions.iter().enumerate() {
                requirements.push(parse_expression(index, expression)?);
            }
        }
        Ok(Selector { requirements })
    }
}

fn label_map(path: &str, labels: &Map<String, Value>) -> Result<Vec<Requirement>, SelectorError> {
    labels
        .iter()
        .map(|(key, value)| {
            let value = value.as_str().ok_or_else(|| SelectorError::Malformed {
                path: format!("{path}{key}"),
                expected: "a string; quote numbers and true/false",
            })?;
            check_key(key)?;
            check_value(key, value)?;
            Ok(Requirement::In(key.clone(), vec![value.to_owned()]))
        })
        .collect()
}

fn parse_expression(index: usize, expression: &Value) -> Result<Requirement, SelectorError> {
    let path = format!("matchExpressions[{index}]");
    let malformed =
        |below: &str, expected| SelectorError::Malformed { path: format!("{path}{below}"), expected };
    let fields = expression.as_object().ok_or_else(|| malformed("", "{key, operator, values}"))?;
    if let Some(unknown) = fields.keys().find(|key| !matches!(key.as_str(), "key" | "operator" | "values")) {
        return Err(malformed(&format!(".{unknown}"), "one of key, operator, values"));
    }
    let key = fields.get("key").and_then(Value::as_str).ok_or_else(|| malformed(".key", "a label key"))?;
    check_key(key)?;
    let values = match fields.get("values") {
        None => Vec::new(),
        Some(values) => values
            .as_array()
            .and_then(|values| values.iter().map(|value| value.as_str().map(str::to_owned)).collect())
            .ok_or_else(|| malformed(".values", "a list of strings"))?,
    };
    for value in &values {
        check_value(key, value)?;
    }
    let key = key.to_owned();
    match (fields.get("operator").and_then(Value::as_str), values.is_empty()) {
        (Some("In"), false) => Ok(Requirement::In(key, values)),
        (Some("NotIn"), false) => Ok(Requirement::NotIn(key, values)),
        (Some("In" | "NotIn"), true) => Err(malformed(".values", "non-empty, as In and NotIn require")),
        (Some("Exists"), true) => Ok(Requirement::Exists(key)),
        (Some("DoesNotExist"), true) => Ok(Requirement::DoesNotExist(key)),
        (Some("Exists" | "DoesNotExist"), false) => {
            Err(malformed(".values", "empty, as Exists and DoesNotExist require"))
        }
        _ => Err(malformed(".operator", "one of In, NotIn, Exists, DoesNotExist")),
    }
}

impl Selector {
    /// Whether a node with these labels is selected. An empty selector matches every node.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }
}

/// A qualified name: an optional DNS-subdomain prefix and `/`, then 1 to 63 name characters.
fn check_key(key: &str) -> Result<(), SelectorError> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_fits = prefix.is_none_or(|prefix| {
        !prefix.is_empty()
            && prefix.len() <= 253
            && prefix.split('.').all(|part| {
                is_label_text(part)
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    });
    if prefix_fits && is_label_text(name) {
        Ok(())
    } else {
        Err(SelectorError::BadKey { key: key.to_owned() })
    }
}

fn check_value(key: &str, value: &str) -> Result<(), SelectorError> {
    if value.is_empty() || is_label_text(value) {
        Ok(())
    } else {
        Err(SelectorError::BadValue { key: key.to_owned(), value: value.to_owned() })
    }
}

/// 1 to 63 of `[A-Za-z0-9_.-]`, starting and ending alphanumeric.
fn is_label_text(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// As the API server takes it: `app in (web),tier in (a,b),!old`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            match requirement {
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

impl JsonSchema for NodeSelector {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "NodeSelector".into()
    }

    // Unknown keys are preserved, not pruned: a pruned typo would select more nodes than was meant.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": 64,
            "x-kubernetes-preserve-unknown-fields": true,
            "x-kubernetes-map-type": "atomic",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn selects(selector: &str, labels: &[(&str, &str)]) -> Result<bool, SelectorError> {
        let selector: NodeSelector = serde_json::from_str(selector).unwrap();
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        selector.parse().map(|selector| selector.matches(&labels))
    }

    #[test]
    fn both_forms_select() {
        let ssd = [("disktype", "ssd"), ("zone", "a")];
        for (selector, expected) in [
            ("{}", true),
            (r#"{"disktype": "ssd"}"#, true),
            (r#"{"disktype": "ssd", "zone": "b"}"#, false),
            (r#"{"matchLabels": {"zone": "a"}}"#, true),
            (r#"{"matchLabels": {}}"#, true),
            (r#"{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}"#, true),
            (r#"{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}"#, false),
            (r#"{"matchExpressions": [{"key": "gpu", "operator": "NotIn", "values": ["a"]}]}"#, true),
            (r#"{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}"#, false),
            (r#"{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}"#, true),
            (
                r#"{"matchLabels": {"zone": "a"}, "matchExpressions": [{"key": "gpu", "operator": "Exists"}]}"#,
                false,
            ),
        ] {
            assert_eq!(selects(selector, &ssd), Ok(expected), "{selector}");
        }
    }

    #[test]
    fn mistakes_select_nothing() {
        for selector in [
            r#"{"disktype": "ssd", "matchLabels": {"zone": "a"}}"#,
            r#"{"matchLabel": {"zone": "a"}}"#,
            r#"{"matchLabels": null}"#,
            r#"{"matchLabels": "zone=a"}"#,
            r#"{"matchLabels": {"zone": 1}}"#,
            r#"{"matchExpressions": {}}"#,
            r#"{"matchExpressions": [{"key": "zone", "operator": "in", "values": ["a"]}]}"#,
            r#"{"matchExpressions": [{"key": "zone", "operator": "In"}]}"#,
            r#"{"matchExpressions": [{"key": "zone", "operator": "Exists", "values": ["a"]}]}"#,
            r#"{"matchExpressions": [{"key": "zone", "operator": "Exists", "value": "a"}]}"#,
            r#"{"matchExpressions": [{"operator": "Exists"}]}"#,
            r#"{"disktype": true}"#,
            r#"{"disktype": null}"#,
            r#"{"disk type": "ssd"}"#,
            r#"{"disktype": "s s d"}"#,
            r#"{"/disktype": "ssd"}"#,
            r#"{"": "ssd"}"#,
        ] {
            assert!(selects(selector, &[("zone", "a"), ("disktype", "ssd")]).is_err(), "{selector}");
        }
    }
}
