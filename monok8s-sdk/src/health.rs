//! The expressions of health checks: [CEL](https://cel.dev) over one `object` and the time `now`, with the
//! functions that Kubernetes adds to it
//! (<https://kubernetes.io/docs/reference/using-api/cel/>).
//!
//! ```
//! use monok8s_sdk::health::Expression;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let is_ready = Expression::parse("object.status.readyReplicas >= object.spec.replicas")?;
//! let now = "2026-11-24T12:00:00Z".parse()?;
//! let deployment = serde_json::json!({ "spec": { "replicas": 2 }, "status": { "readyReplicas": 1 } });
//! assert_eq!(is_ready.holds(&deployment, now), Ok(false));
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, ExecutionError, Program, Value};

/// A CEL expression over `object` and `now`.
pub struct Expression {
    source: String,
    program: Program,
}

/// Why an expression says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionError {
    /// It is no CEL.
    #[error("{expression:?} is no CEL expression: {problem}")]
    Syntax {
        /// As it was given.
        expression: String,
        /// What the parser found, and where.
        problem: String,
    },
    /// It names something other than `object` and `now`, or a function that there is not.
    #[error("{expression:?} names {name}, and there are only object and now")]
    UnknownName {
        /// As it was given.
        expression: String,
        /// The name.
        name: String,
    },
    /// It is not about true and false.
    #[error("{expression:?} gives {found} and not true or false")]
    NotBoolean {
        /// As it was given.
        expression: String,
        /// The type that it gives.
        found: String,
    },
    /// It cannot be evaluated on this object. `has(object.field)` says whether a field is there.
    #[error("{expression:?} cannot be evaluated: {problem}")]
    Failed {
        /// As it was given.
        expression: String,
        /// What happened.
        problem: String,
    },
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    ///
    /// If it is no CEL, or it is plain that it can never be evaluated to true or false.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        let program = Program::compile(source).map_err(|errors| ExpressionError::Syntax {
            expression: source.to_owned(),
            problem: errors.to_string(),
        })?;
        let expression = Self { source: source.to_owned(), program };
        // Of an object without any fields most say that one is missing, which is no mistake.
        let empty = serde_json::Value::Object(serde_json::Map::new());
        match expression.holds(&empty, Timestamp::UNIX_EPOCH) {
            Err(error @ (ExpressionError::UnknownName { .. } | ExpressionError::NotBoolean { .. })) => {
                Err(error)
            }
            Ok(_) | Err(_) => Ok(expression),
        }
    }

    /// As it was given.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it holds for an object at a time.
    ///
    /// # Errors
    ///
    /// If it cannot be evaluated, as when a field is missing, or gives something other than true and false.
    pub fn holds(&self, object: &serde_json::Value, now: Timestamp) -> Result<bool, ExpressionError> {
        let expression = || self.source.clone();
        let mut context = Context::default().with_all();
        context.add_variable_from_value("object", value(object));
        context.add_variable_from_value("now", time(now));
        match self.program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(ExpressionError::NotBoolean {
                expression: expression(),
                found: other.type_of().to_string(),
            }),
            Err(ExecutionError::UndeclaredReference(name)) => {
                Err(ExpressionError::UnknownName { expression: expression(), name: name.to_string() })
            }
            Err(error) => {
                Err(ExpressionError::Failed { expression: expression(), problem: error.to_string() })
            }
        }
    }
}

/// As the API server gives values to expressions: whole numbers are ints.
fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Null,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        Json::Object(fields) => {
            let fields =
                fields.iter().map(|(name, field)| (Key::String(Arc::new(name.clone())), value(field)));
            Value::Map(Map { map: Arc::new(fields.collect()) })
        }
    }
}

/// Times of jiff and chrono reach equally far but for the last days of the year 9999.
fn time(now: Timestamp) -> Value {
    let time = chrono::DateTime::from_timestamp(now.as_second(), now.subsec_nanosecond().unsigned_abs());
    time.map_or(Value::Null, |time| Value::Timestamp(time.fixed_offset()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(expression: &str, object: &serde_json::Value) -> Result<bool, String> {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        let parsed = Expression::parse(expression).map_err(|error| error.to_string())?;
        parsed.holds(object, now).map_err(|error| error.to_string())
    }

    #[test]
    fn expressions_see_the_object_and_the_time() {
        let object = json!({
            "spec": { "replicas": 3 },
            "status": { "readyReplicas": 3, "capacity": "10Gi", "lastBackup": "2026-11-24T11:00:00Z",
                "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Lost", "status": "False" }] },
        });
        for (expression, expected) in [
            ("object.status.readyReplicas == object.spec.replicas", true),
            ("object.status.readyReplicas > object.spec.replicas - 1", true),
            ("object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')", true),
            ("object.status.conditions.all(c, c.status == 'True')", false),
            ("now - timestamp(object.status.lastBackup) < duration('2h')", true),
            ("now - timestamp(object.status.lastBackup) < duration('30m')", false),
            ("has(object.status.paused) ? !object.status.paused : true", true),
            ("quantity(object.status.capacity).isGreaterThan(quantity('9Gi'))", true),
            ("!has(object.metadata)", true),
        ] {
            assert_eq!(holds(expression, &object), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn what_can_never_hold_is_refused_when_it_is_read() {
        let parse = |source: &str| Expression::parse(source).unwrap_err();
        assert!(matches!(parse("object.status.ready ="), ExpressionError::Syntax { .. }));
        assert_eq!(
            parse("self.status == 'x'").to_string(),
            "\"self.status == 'x'\" names self, and there are only object and now"
        );
        assert!(matches!(parse("1 + 1"), ExpressionError::NotBoolean { .. }));
        let deep = format!("{}true{}", "(".repeat(2000), ")".repeat(2000));
        assert!(matches!(parse(&deep), ExpressionError::Syntax { .. }));
    }

    #[test]
    fn a_missing_field_is_neither_true_nor_false() {
        let error = holds("object.status.readyReplicas == 1", &json!({})).unwrap_err();
        assert!(error.contains("cannot be evaluated") && error.contains("status"), "{error}");
    }
}
