//! Go programs read YAML 1.1, in which `on`, `1_000` and `12:30` are no strings.

use std::fs;
use std::path::Path;

use serde_json::Value;
use xtask::generate::Scope;
use xtask::host::workspace_root;

/// Whether a plain scalar with this text is a string to us and something else to a YAML 1.1 reader.
fn is_ambiguous(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let word = ["y", "n", "yes", "no", "on", "off", "<<", "="].contains(&lower.as_str());
    let digits = lower.trim_start_matches(['+', '-', '.']);
    let hex =
        digits.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let number_like = digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.chars().all(|letter| letter.is_ascii_digit() || "+-._:oetz ".contains(letter))
        && digits.matches('.').count() < 2;
    // What is no string to us either was quoted, or it would not have been read as one.
    let string = serde_yaml::from_str::<Value>(text).is_ok_and(|value| value.is_string());
    string && (word || hex || number_like)
}

/// Every string in `value`, keys included.
fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => {
            for (key, value) in fields {
                found.push(key.clone());
                strings(value, found);
            }
        }
        _ => {}
    }
}

/// Texts that stand somewhere in `yaml` as a plain scalar: after `: ` or `- `, or before `:`.
fn plain_scalars(yaml: &str) -> Vec<&str> {
    yaml.lines()
        .flat_map(|line| {
            let content = line.trim_start().trim_start_matches("- ");
            match content.split_once(": ") {
                Some((key, value)) => vec![key, value],
                None => vec![content.trim_end_matches(':')],
            }
        })
        .collect()
}

fn check(path: &Path, yaml: &str) {
    let plain = plain_scalars(yaml);
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        strings(&<Value as serde::Deserialize>::deserialize(document).unwrap(), &mut found);
    }
    for text in found.iter().filter(|text| is_ambiguous(text)) {
        assert!(!plain.contains(&text.as_str()), "{}: {text:?} needs quotes", path.display());
    }
}

#[test]
fn strings_that_older_readers_take_for_something_else_are_quoted() {
    for file in Scope::All.files() {
        check(&file.path, &file.content);
    }
    for entry in fs::read_dir(workspace_root().join("testdata/compat/v0.1.0")).unwrap() {
        let path = entry.unwrap().path();
        check(&path, &fs::read_to_string(&path).unwrap());
    }
}

#[test]
fn ambiguous_scalars_are_recognised() {
    for text in ["yes", "On", "n", "12:30:45", "1_000", "-1:30", "2026-11-24"] {
        assert!(is_ambiguous(text), "{text}");
    }
    for text in [
        "Always",
        "true",
        "8080",
        "v1.35.3",
        "0.1.0",
        "sha256:abc",
        "Deny",
        "-",
        "e2e",
        "monok8s.io/v1alpha1",
    ] {
        assert!(!is_ambiguous(text), "{text}");
    }
    let refused = std::panic::catch_unwind(|| check(Path::new("x.yaml"), "a:\n- \"on\"\nb: on\n"));
    assert!(refused.is_err(), "a plain on is a boolean to a YAML 1.1 reader");
}
