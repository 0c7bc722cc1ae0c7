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

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedEntryExpr};
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, ExecutionError, IdedExpr, Program, Value};

/// The deepest brackets of an expression.
const MAX_NESTING: usize = 24;
/// The most operators of an expression, each of which may be a level of the tree that is evaluated.
const MAX_OPERATORS: usize = 256;
const STACK: usize = 32 << 20;

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
    /// It is nested so deeply, or so long, that reading or evaluating it could take more stack than there is.
    #[error(
        "{expression:?} is too complex: it may have {MAX_NESTING} levels of brackets and {MAX_OPERATORS} operators"
    )]
    TooComplex {
        /// As it was given, or its beginning.
        expression: String,
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
    /// Reads an expression. Nothing of it is evaluated, which may take for ever.
    ///
    /// # Errors
    ///
    /// If it is no CEL, names something that there is not, or is nested deeper or longer than any check needs.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        if !is_reasonable(source) {
            return Err(ExpressionError::TooComplex { expression: source.chars().take(100).collect() });
        }
        on_a_deep_stack(|| Self::parse_here(source)).unwrap_or_else(|| {
            let problem = "the parser broke off".to_owned();
            Err(ExpressionError::Syntax { expression: source.to_owned(), problem })
        })
    }

    fn parse_here(source: &str) -> Result<Self, ExpressionError> {
        let program = Program::compile(source).map_err(|errors| ExpressionError::Syntax {
            expression: source.to_owned(),
            problem: errors.to_string(),
        })?;
        let mut known = BTreeSet::from(["object", "now"]);
        bound_names(program.expression(), &mut known);
        let references = program.references();
        if let Some(name) = references.variables().into_iter().filter(|name| !known.contains(name)).min() {
            let (expression, name) = (source.to_owned(), name.to_owned());
            return Err(ExpressionError::UnknownName { expression, name });
        }
        Ok(Self { source: source.to_owned(), program })
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
        // The interpreter panics over what it does not implement, such as messages.
        on_a_deep_stack(|| self.holds_here(object, now)).unwrap_or_else(|| {
            let problem = "the interpreter does not implement it".to_owned();
            Err(ExpressionError::Failed { expression: self.source.clone(), problem })
        })
    }

    fn holds_here(&self, object: &serde_json::Value, now: Timestamp) -> Result<bool, ExpressionError> {
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

/// Does something on a thread of its own: parser and interpreter descend a dozen calls for each level. `None` if it
/// panicked, or there was no thread to be had.
fn on_a_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    let thread = std::thread::Builder::new().stack_size(STACK);
    std::thread::scope(|scope| thread.spawn_scoped(scope, work).ok()?.join().ok())
}

/// Whether an expression can be read and evaluated on an ordinary stack. What is in quotes does not count.
fn is_reasonable(source: &str) -> bool {
    let (mut nesting, mut deepest, mut operators) = (0_usize, 0, 0);
    let mut quote = None;
    let mut characters = source.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => drop(characters.next()),
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '(' | '[' | '{') => {
                nesting += 1;
                deepest = deepest.max(nesting);
            }
            (None, ')' | ']' | '}') => nesting = nesting.saturating_sub(1),
            (None, '?' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' | '&' | '|' | '.') => {
                operators += 1;
            }
            _ => {}
        }
    }
    deepest <= MAX_NESTING && operators <= MAX_OPERATORS
}

/// The names that macros such as `all` and `exists` give to elements.
fn bound_names<'e>(expression: &'e IdedExpr, names: &mut BTreeSet<&'e str>) {
    let mut all = |parts: &[&'e IdedExpr]| parts.iter().for_each(|part| bound_names(part, names));
    match &expression.expr {
        Expr::Call(call) => {
            all(&call.target.iter().map(AsRef::as_ref).chain(&call.args).collect::<Vec<_>>());
        }
        Expr::Comprehension(loops) => {
            all(&[&loops.iter_range, &loops.accu_init, &loops.loop_cond, &loops.loop_step, &loops.result]);
            names.extend([loops.iter_var.as_str(), loops.accu_var.as_str()]);
            names.extend(loops.iter_var2.as_deref());
        }
        Expr::List(list) => all(&list.elements.iter().collect::<Vec<_>>()),
        Expr::Map(map) => all(&map.entries.iter().flat_map(parts_of).collect::<Vec<_>>()),
        Expr::Struct(of) => all(&of.entries.iter().flat_map(parts_of).collect::<Vec<_>>()),
        Expr::Select(select) => all(&[&select.operand]),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

fn parts_of(entry: &IdedEntryExpr) -> Vec<&IdedExpr> {
    match &entry.expr {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
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
        assert!(matches!(parse("[1].all(x, y > 1)"), ExpressionError::UnknownName { .. }));
        let deep = format!("{}true{}", "(".repeat(2000), ")".repeat(2000));
        let long = format!("{}1 > 0", "1 + ".repeat(1000));
        let chosen = format!("{}true", "true ? true : ".repeat(300));
        for complex in [deep, long, chosen] {
            assert!(matches!(parse(&complex), ExpressionError::TooComplex { .. }), "{complex}");
        }
    }

    #[test]
    fn what_is_just_simple_enough_is_evaluated() {
        let nested = format!("{}true{}", "(".repeat(MAX_NESTING), ")".repeat(MAX_NESTING));
        let lists = format!("{}1{} != null", "[".repeat(MAX_NESTING), "]".repeat(MAX_NESTING));
        let long = format!("{}1 > 0", "1 + ".repeat(MAX_OPERATORS - 1));
        let chosen = format!("{}true", "true ? true : ".repeat(40));
        let quoted = format!("'{}' != ''", "((((...???".repeat(300));
        for simple in [nested, lists, long, chosen, quoted] {
            assert_eq!(holds(&simple, &json!({})), Ok(true), "{simple}");
        }
    }

    #[test]
    fn what_is_no_truth_does_not_hold() {
        let error = holds("1 + 1", &json!({})).unwrap_err();
        assert_eq!(error, "\"1 + 1\" gives int and not true or false");
        assert!(holds("Thing{a: 1} == null", &json!({})).unwrap_err().ends_with("does not implement it"));
        assert_eq!(holds("object.all(key, {'a': key}.a == key)", &json!({ "x": 1 })), Ok(true));
    }

    #[test]
    fn a_missing_field_is_neither_true_nor_false() {
        let error = holds("object.status.readyReplicas == 1", &json!({})).unwrap_err();
        assert!(error.contains("cannot be evaluated") && error.contains("status"), "{error}");
    }
}
