//! Fields that the cluster's CRDs do not have yet. An agent ships with the OS, so it may be newer than they are; and a
//! server-side apply with one undeclared field is refused as a whole.

use serde_json::Value;

/// How the API server says it; before each stands the path of the field.
const WORDS: &str = ": field not declared in schema";

/// Takes the fields out that the API server's answer names. Whether there were any.
pub(super) fn leave_out(document: &mut Value, answer: &str) -> bool {
    let paths = answer.match_indices(WORDS).filter_map(|(at, _)| {
        let path = answer.get(..at)?.split_whitespace().next_back()?;
        path.strip_prefix('.')
    });
    let mut any = false;
    for path in paths {
        // Whatever the place in a list: no item of it can have the field.
        let names: Vec<&str> = path.split('.').filter_map(|name| name.split('[').next()).collect();
        any |= remove(document, &names);
    }
    any
}

fn remove(value: &mut Value, names: &[&str]) -> bool {
    match (value, names) {
        (Value::Array(items), _) => {
            items.iter_mut().filter_map(|item| remove(item, names).then_some(())).count() > 0
        }
        (Value::Object(fields), [name]) => fields.remove(*name).is_some(),
        (Value::Object(fields), [name, rest @ ..]) => {
            fields.get_mut(*name).is_some_and(|inner| remove(inner, rest))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_answer_names_is_left_out_everywhere_and_nothing_else() {
        let mut document = json!({ "status": {
            "phase": "Staged", "mood": "fine",
            "timeline": [{ "phase": "Pending", "slot": "A" }, { "phase": "Staged", "slot": "A" }],
        } });
        let answer = "failed to create typed patch object (/one; monok8s.io/v1alpha1, Kind=OSUpgradeProgress): errors:\n  \
                      .status.mood: field not declared in schema\n  .status.timeline[0].slot: field not declared in schema";
        assert!(leave_out(&mut document, answer));
        let left = json!({ "status": { "phase": "Staged", "timeline": [{ "phase": "Pending" }, { "phase": "Staged" }] } });
        assert_eq!(document, left);
        // Said again of what is gone, it is no reason to try again.
        assert!(!leave_out(&mut document, answer));
        for other in [
            "etcdserver: request timed out",
            ": field not declared in schema",
            "x: field not declared in schema",
        ] {
            assert!(!leave_out(&mut document, other), "{other}");
        }
        assert_eq!(document, left);
    }
}
