//! Every bound in the schemas, broken one at a time in an otherwise good object.

use serde_json::{Map, Value, json};

use super::setup::{Judge, control_plane, sample, schema_of};

/// One way to break an object.
struct Breakage {
    path: String,
    bound: &'static str,
    object: Value,
}

/// Every way to break `object` in the part called `part`.
fn breakages(object: &Value, part: &str) -> Vec<Breakage> {
    let schema = schema_of(object["kind"].as_str().unwrap())["properties"][part].clone();
    let mut found = Vec::new();
    let pointer = format!("/{part}");
    visit(object, &schema, &pointer, part, &mut found);
    found
}

fn visit(object: &Value, schema: &Value, pointer: &str, path: &str, found: &mut Vec<Breakage>) {
    let Some(here) = object.pointer(pointer) else { return };
    for (bound, wrong) in wrong_values(schema.as_object().unwrap(), here) {
        let mut broken = object.clone();
        *broken.pointer_mut(pointer).unwrap() = wrong;
        found.push(Breakage { path: path.to_owned(), bound, object: broken });
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap();
        let mut broken = object.clone();
        broken.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(name);
        found.push(Breakage { path: format!("{path}.{name}"), bound: "Required", object: broken });
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        visit(object, property, &format!("{pointer}/{name}"), &format!("{path}.{name}"), found);
    }
    if let (Some(items), Some(list)) = (schema.get("items"), here.as_array()) {
        for index in 0..list.len() {
            visit(object, items, &format!("{pointer}/{index}"), &format!("{path}[{index}]"), found);
        }
    }
}

/// Values that break one bound each, with the words of the API server about it.
fn wrong_values(schema: &Map<String, Value>, good: &Value) -> Vec<(&'static str, Value)> {
    let number = |key: &str| schema.get(key).and_then(Value::as_i64);
    let length = |key: &str| number(key).map(|value| usize::try_from(value).unwrap());
    let mut wrong = Vec::new();
    let text = schema.get("type") == Some(&json!("string"));
    if let Some(longest) = length("maxLength") {
        wrong.push(("Too long", json!("a".repeat(longest + 1))));
    }
    if let Some(shortest) = length("minLength") {
        wrong.push(("at least", json!("a".repeat(shortest - 1))));
    }
    if schema.contains_key("pattern") {
        wrong.push(("should match", json!("!")));
    }
    if schema.contains_key("enum") {
        wrong.push(("Unsupported value", json!("Perhaps")));
    }
    if text && schema.get("format") == Some(&json!("date-time")) {
        wrong.push(("date-time", json!("yesterday")));
    }
    if let Some(smallest) = number("minimum") {
        wrong.push(("greater than or equal", json!(smallest - 1)));
    }
    if let Some(largest) = number("maximum") {
        wrong.push(("less than or equal", json!(largest + 1)));
    }
    let item = || good.as_array().and_then(|items| items.first().cloned()).unwrap_or(json!("a"));
    if let Some(most) = length("maxItems") {
        wrong.push(("Too many", json!(vec![item(); most + 1])));
    }
    if let Some(fewest) = length("minItems") {
        wrong.push(("at least", json!(vec![item(); fewest - 1])));
    }
    if let Some(most) = length("maxProperties") {
        let fields: Map<_, _> = (0..=most).map(|index| (format!("l{index}"), json!("a"))).collect();
        wrong.push(("Too many", Value::Object(fields)));
    }
    wrong
}

fn compare(breakage: &Breakage, said: Result<(), String>) -> Option<String> {
    let Breakage { path, bound, .. } = breakage;
    match said {
        Err(message) if message.contains(path.as_str()) && message.contains(bound) => None,
        other => Some(format!("{path} ({bound}): {other:?}")),
    }
}

#[tokio::test]
async fn of_specs() {
    let control_plane = control_plane().await;
    let judge = Judge::new(&control_plane);
    let mut wrong = Vec::new();
    let mut count = 0;
    for name in ["osupgrade-full.yaml", "osupgradeprogress-ordered.yaml"] {
        let good = sample(name);
        judge.judge(&good).await.unwrap();
        for breakage in breakages(&good, "spec") {
            count += 1;
            wrong.extend(compare(&breakage, judge.judge(&breakage.object).await));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 150, "only {count} bounds were tried");
}

#[tokio::test]
async fn of_statuses() {
    let control_plane = control_plane().await;
    let judge = Judge::new(&control_plane);
    let mut wrong = Vec::new();
    let mut count = 0;
    for name in ["osupgrade-full.yaml", "osupgradeprogress-ordered.yaml", "osnode.yaml"] {
        let good = sample(name);
        judge.create(&good).await.unwrap();
        let status = |object: &Value| json!({ "status": object["status"] });
        judge.judge_change(&good, &status(&good)).await.unwrap();
        for breakage in breakages(&good, "status") {
            count += 1;
            wrong.extend(compare(&breakage, judge.judge_change(&good, &status(&breakage.object)).await));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 120, "only {count} bounds were tried");
}
