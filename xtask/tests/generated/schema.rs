//! The rules for CRD schemas, over every property of the three CRDs.

use monok8s_sdk::api::crds;
use serde_json::{Map, Value, json};

/// Calls `visit` with the path and the schema of every property, list item and map value.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Map<String, Value>)) {
    let fields = schema.as_object().unwrap_or_else(|| panic!("{path} has no schema"));
    visit(path, fields);
    for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(child) = fields.get(key) {
            walk(&format!("{path}{suffix}"), child, visit);
        }
    }
}

/// What `broken` says about each property of each CRD.
fn complaints(broken: impl Fn(&str, &Map<String, Value>) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for crd in crds() {
        let kind = crd.pointer("/spec/names/kind").unwrap().as_str().unwrap();
        walk(kind, &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut |path, fields| {
            found.extend(broken(path, fields).map(|what| format!("{path}: {what}")));
        });
    }
    found
}

#[track_caller]
fn none(found: &[String]) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn word<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    fields.get(key).and_then(Value::as_str)
}

#[test]
fn every_property_has_a_type_and_a_description_and_is_never_null() {
    none(&complaints(|path, fields| {
        let typed =
            fields.contains_key("type") || fields.get("x-kubernetes-int-or-string") == Some(&json!(true));
        if !typed {
            return Some("no type".to_owned());
        }
        let item = path.ends_with("[]");
        if !item && word(fields, "description").is_none_or(|text| text.len() < 4) {
            return Some("no description".to_owned());
        }
        let banned = ["nullable", "anyOf", "oneOf", "allOf", "not", "$ref", "title"];
        banned.iter().find(|key| fields.contains_key(**key)).map(|key| format!("has {key}"))
    }));
}

#[test]
fn integers_are_int32_or_int64_with_whole_bounds() {
    none(&complaints(|_, fields| {
        match (word(fields, "type"), word(fields, "format")) {
            (Some("number"), _) => return Some("a number".to_owned()),
            (Some("integer"), Some("int32" | "int64")) => {}
            (Some("integer"), format) => return Some(format!("an integer of format {format:?}")),
            _ => {}
        }
        ["minimum", "maximum"]
            .iter()
            .find(|bound| fields.get(**bound).is_some_and(|value| !value.is_i64()))
            .map(|bound| format!("{bound} is not whole"))
    }));
}

#[test]
fn strings_lists_and_maps_are_bounded_and_say_how_they_merge() {
    none(&complaints(|_, fields| match word(fields, "type") {
        Some("string") => {
            let bounded = ["maxLength", "enum"].iter().any(|key| fields.contains_key(*key))
                || word(fields, "format") == Some("date-time");
            (!bounded).then(|| "an unbounded string".to_owned())
        }
        Some("array") => {
            let bounded = fields.contains_key("maxItems");
            let merge = word(fields, "x-kubernetes-list-type");
            let keyed = merge != Some("map") || fields.contains_key("x-kubernetes-list-map-keys");
            (!bounded || merge.is_none() || !keyed).then(|| "a list without a bound or list type".to_owned())
        }
        Some("object") => {
            let bounded = fields.contains_key("properties") || fields.contains_key("maxProperties");
            (!bounded).then(|| "an unbounded map".to_owned())
        }
        _ if fields.contains_key("x-kubernetes-int-or-string") => {
            let bounds = ["minimum", "maximum", "maxLength", "pattern"];
            (!bounds.iter().all(|key| fields.contains_key(*key))).then(|| "an unbounded value".to_owned())
        }
        _ => None,
    }));
}

#[test]
fn the_server_fills_in_nothing_but_the_first_status() {
    let defaults = complaints(|_, fields| fields.get("default").map(Value::to_string));
    let expected = [
        r#"OSUpgrade.status: {"observedGeneration":-1}"#,
        r#"OSUpgradeProgress.status: {"observedGeneration":-1}"#,
    ];
    assert_eq!(defaults, expected);
}

#[test]
fn status_is_a_subresource_and_each_crd_has_one_version() {
    for crd in crds() {
        let versions = crd["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 1);
        assert_eq!(versions[0]["name"], "v1alpha1");
        assert_eq!(versions[0]["subresources"], json!({ "status": {} }));
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd.get("status"), None);
    }
}

#[test]
fn conditions_are_those_of_meta_v1_and_merge_by_type() {
    let mut seen = 0;
    for crd in crds() {
        let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
        let Some(list) = status.pointer("/properties/conditions") else { continue };
        seen += 1;
        assert_eq!(list["x-kubernetes-list-type"], "map");
        assert_eq!(list["x-kubernetes-list-map-keys"], json!(["type"]));
        let item = &list["items"];
        assert_eq!(item["required"], json!(["type", "status", "lastTransitionTime", "reason", "message"]));
        let properties = &item["properties"];
        assert_eq!(properties["status"]["enum"], json!(["True", "False", "Unknown"]));
        assert_eq!(properties["type"]["maxLength"], 316);
        assert_eq!(properties["reason"]["minLength"], 1);
        assert_eq!(properties["reason"]["maxLength"], 1024);
        assert_eq!(properties["message"]["maxLength"], 32768);
        for patterned in ["type", "reason"] {
            assert!(properties[patterned]["pattern"].is_string(), "{patterned}");
        }
        assert_eq!(properties["lastTransitionTime"]["format"], "date-time");
        assert_eq!(properties["observedGeneration"]["minimum"], 0);
    }
    assert_eq!(seen, 2, "OSUpgrade and OSUpgradeProgress");
}

#[test]
fn every_rule_has_a_message_and_only_identity_is_immutable() {
    let mut immutable = Vec::new();
    let mut count = 0;
    for crd in crds() {
        let kind = crd.pointer("/spec/names/kind").unwrap().as_str().unwrap();
        walk(kind, &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut |path, fields| {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            for rule in rules.into_iter().flatten() {
                count += 1;
                let text = rule["rule"].as_str().unwrap();
                assert!(rule["message"].as_str().is_some_and(|message| message.len() > 8), "{path}: {text}");
                if text.contains("oldSelf") {
                    immutable.push(format!("{path}: {text}"));
                }
            }
        });
    }
    assert!(count > 10, "only {count} rules found");
    let expected = [
        "OSUpgradeProgress.spec: self.sourceRef == oldSelf.sourceRef",
        "OSUpgradeProgress.spec: self.nodeName == oldSelf.nodeName",
        "OSUpgradeProgress.spec: has(self.order) == has(oldSelf.order)",
        "OSUpgradeProgress.spec.order: self.nodeUID == oldSelf.nodeUID",
        "OSUpgradeProgress.spec.order: self.run == oldSelf.run",
        "OSUpgradeProgress.spec.order: self.hops == oldSelf.hops",
    ];
    assert_eq!(immutable, expected);
}

#[test]
fn rules_call_only_functions_that_the_oldest_supported_server_knows() {
    // All of these are in Kubernetes 1.25 and later; optionals, sets, formats and semver are not.
    let known = ["has", "exists", "all", "size", "matches", "startsWith"];
    let mut called = Vec::new();
    for crd in crds() {
        walk("", &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut |_, fields| {
            for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
            {
                called.extend(called_functions(rule["rule"].as_str().unwrap()));
            }
        });
    }
    assert!(called.iter().any(|name| name == "has"), "{called:?}");
    called.retain(|name| !known.contains(&name.as_str()));
    assert!(called.is_empty(), "{called:?}");
}

/// The names before opening parentheses.
fn called_functions(rule: &str) -> Vec<String> {
    let calls = rule.match_indices('(').map(|(at, _)| {
        let name: Vec<char> = rule[..at].chars().rev().take_while(char::is_ascii_alphanumeric).collect();
        name.into_iter().rev().collect::<String>()
    });
    calls.filter(|name| !name.is_empty()).collect()
}

#[test]
fn names_columns_and_selectable_fields_are_those_of_the_user_guide() {
    let columns = |crd: &Value, priority: i64| -> Vec<String> {
        let all = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap().iter();
        all.filter(|column| column.get("priority").and_then(Value::as_i64).unwrap_or(0) == priority)
            .map(|column| column["name"].as_str().unwrap().to_uppercase())
            .collect()
    };
    let described: Vec<_> = crds()
        .iter()
        .map(|crd| {
            let names = &crd["spec"]["names"];
            let selectable = crd["spec"]["versions"][0].get("selectableFields").cloned();
            json!({
                "names": [names["plural"], names["singular"], names["shortNames"], names["categories"]],
                "columns": columns(crd, 0),
                "wide": columns(crd, 1),
                "selectable": selectable.unwrap_or_default(),
            })
        })
        .collect();
    let expected = json!([
        {
            "names": ["osupgrades", "osupgrade", ["osu"], ["monok8s"]],
            "columns": ["DESIRED", "RESOLVED", "PHASE"],
            "wide": ["NODES", "UP-TO-DATE", "REASON", "MESSAGE", "AGE"],
            "selectable": null,
        },
        {
            "names": ["osupgradeprogresses", "osupgradeprogress", ["osup"], ["monok8s"]],
            "columns": ["NODE", "SOURCE", "CURRENT", "TARGET", "STATUS"],
            "wide": ["REASON", "MESSAGE", "AGE"],
            "selectable": [{ "jsonPath": ".spec.nodeName" }],
        },
        {
            "names": ["osnodes", "osnode", ["osn"], ["monok8s"]],
            "columns": ["SLOT", "VERSION", "OTHER", "LOADER", "AGENT"],
            "wide": ["AGE"],
            "selectable": null,
        },
    ]);
    assert_eq!(Value::from(described), expected);
}

#[test]
fn optional_enums_keep_the_description_of_their_field() {
    let upgrade = &crds()[0];
    let spec = upgrade.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let mode = &spec["mode"];
    assert_eq!(mode["enum"], json!(["Apply", "Plan"]));
    assert!(mode["description"].as_str().unwrap().ends_with("Default Apply."), "{mode}");
}

#[test]
fn keys_are_sorted() {
    fn check(path: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                let keys: Vec<_> = fields.keys().collect();
                assert!(keys.is_sorted(), "{path}: {keys:?}");
                fields.iter().for_each(|(key, value)| check(&format!("{path}.{key}"), value));
            }
            Value::Array(items) => items.iter().for_each(|item| check(path, item)),
            _ => {}
        }
    }
    for crd in crds() {
        check("", &crd);
    }
}
