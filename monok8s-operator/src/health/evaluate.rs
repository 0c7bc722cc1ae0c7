//! One evaluation of a health check, which may take its time but not the operator's.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use monok8s_sdk::causes::chain;
use monok8s_sdk::health::Expression;
use monok8s_sdk::rollout::Health;
use serde_json::Value;
use tokio::sync::oneshot;

/// What an evaluation that takes longer may say is not waited for with the old answer in place.
const SLOW: Duration = Duration::from_secs(1);
/// Names of objects in a message.
const NAMED: usize = 10;

/// An object as an expression sees it.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// `namespace/name`, or the name.
    name: String,
    whole: Arc<Value>,
}

impl Object {
    pub(super) fn new(object: &DynamicObject) -> Self {
        let name = match object.namespace() {
            Some(namespace) => format!("{namespace}/{}", object.name_any()),
            None => object.name_any(),
        };
        let mut object = object.clone();
        // Who wrote which field is most of an object, and no expression's matter.
        object.metadata.managed_fields = None;
        Self { name, whole: Arc::new(serde_json::to_value(&object).unwrap_or_default()) }
    }
}

/// Evaluates one check, time after time.
pub(super) struct Evaluator<'a> {
    kind: &'a str,
    expression: &'a Arc<Expression>,
    lasts: Duration,
    /// An evaluation that was given up. Nothing can end it, so no other one is begun beside it.
    endless: Option<oneshot::Receiver<Health>>,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(kind: &'a str, expression: &'a Arc<Expression>, lasts: Duration) -> Self {
        Self { kind, expression, lasts, endless: None }
    }

    /// Evaluates the check for these objects, now. Calls `slow` if what was shown before grows old meanwhile.
    pub(super) async fn evaluate(&mut self, objects: Vec<Object>, slow: impl Fn()) -> Health {
        if objects.is_empty() {
            return Health::Unknown(format!("there is no such {}", self.kind));
        }
        let late = || {
            let seconds = self.lasts.as_secs();
            Health::Unknown(format!(
                "{:?} did not come to an end within {seconds}s",
                self.expression.source()
            ))
        };
        if self.endless.is_some() {
            slow();
        }
        if let Some(mut endless) = self.endless.take()
            && tokio::time::timeout(self.lasts, &mut endless).await.is_err()
        {
            let late = late();
            self.endless = Some(endless);
            return late;
        }
        let (kind, expression) = (self.kind.to_owned(), Arc::clone(self.expression));
        let (tell, mut told) = oneshot::channel();
        // Not a thread of the runtime, which would wait for it when the operator ends.
        let thread = std::thread::Builder::new().name("health-check".to_owned());
        let thread = thread.spawn(move || {
            // Nobody may be listening any more.
            let _ = tell.send(judge(&kind, &expression, &objects, Timestamp::now()));
        });
        if let Err(error) = thread {
            return Health::Unknown(format!("no thread could be started for it: {error}"));
        }
        let mut answer = tokio::time::timeout(self.lasts.min(SLOW), &mut told).await;
        if answer.is_err() {
            slow();
            answer = tokio::time::timeout(self.lasts.saturating_sub(SLOW), &mut told).await;
        }
        match answer {
            Ok(Ok(health)) => health,
            Ok(Err(_)) => {
                Health::Unknown(format!("the evaluation of {:?} broke off", self.expression.source()))
            }
            Err(_) => {
                let late = late();
                self.endless = Some(told);
                late
            }
        }
    }
}

/// What a check comes to: it has to hold for every object.
fn judge(kind: &str, expression: &Expression, objects: &[Object], now: Timestamp) -> Health {
    let mut sick = Vec::new();
    for object in objects {
        match expression.holds(&object.whole, now) {
            Ok(true) => {}
            Ok(false) => sick.push(object.name.as_str()),
            Err(error) => return Health::Unknown(format!("of {kind} {}, {}", object.name, chain(&error))),
        }
    }
    if sick.is_empty() {
        return Health::Holds;
    }
    sick.sort_unstable();
    let more = match sick.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    sick.truncate(NAMED);
    Health::DoesNotHold(format!("of {kind} {}{more}, {:?} is false", sick.join(", "), expression.source()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, ready: &Value) -> Object {
        let whole = Arc::new(json!({ "metadata": { "name": name }, "ready": ready }));
        Object { name: name.to_owned(), whole }
    }

    async fn evaluate(expression: &str, objects: Vec<Object>) -> Health {
        let expression = Arc::new(Expression::parse(expression).unwrap());
        Evaluator::new("Thing", &expression, Duration::from_secs(30)).evaluate(objects, || {}).await
    }

    #[tokio::test]
    async fn every_object_has_to_hold_and_those_that_do_not_are_named() {
        let ready = |objects| evaluate("object.ready == true", objects);
        let (good, bad) = (object("a", &json!(true)), object("b", &json!(false)));
        assert_eq!(ready(vec![good.clone()]).await, Health::Holds);
        let Health::DoesNotHold(why) = ready(vec![good.clone(), bad]).await else { panic!() };
        assert_eq!(why, "of Thing b, \"object.ready == true\" is false");
        assert_eq!(ready(vec![]).await, Health::Unknown("there is no such Thing".to_owned()));
        let missing = evaluate("object.steady == true", vec![good]).await;
        assert!(matches!(&missing, Health::Unknown(why) if why.starts_with("of Thing a, ")), "{missing:?}");
    }

    #[tokio::test]
    async fn an_evaluation_without_an_end_is_given_up_and_not_begun_again_beside_it() {
        // A few seconds' work, which outlives the test.
        let many: Vec<i32> = (0..50).collect();
        let object = Object { name: "a".to_owned(), whole: Arc::new(json!({ "many": many })) };
        let nested =
            "object.many.all(a, object.many.all(b, object.many.all(c, object.many.all(d, a < 1000))))";
        let expression = Arc::new(Expression::parse(nested).unwrap());
        let mut evaluator = Evaluator::new("Thing", &expression, Duration::from_millis(50));
        for _ in 0..2 {
            let health = evaluator.evaluate(vec![object.clone()], || {}).await;
            assert!(
                matches!(&health, Health::Unknown(why) if why.contains("did not come to an end")),
                "{health:?}"
            );
            assert!(evaluator.endless.is_some());
        }
    }
}
