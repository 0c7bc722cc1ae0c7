//! Evictions, and what is answered to them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, EvictParams, Preconditions};
use kube::core::Status;
use monok8s_sdk::causes::chain;
use monok8s_sdk::rollout::{Action, EvictionAnswer, PodRef};

use super::{ApplyError, Done, Executor, REQUEST_TIMEOUT, request};
use crate::access::ApiError;

impl Executor<'_> {
    /// Asks for an eviction. No answer of one pod holds up the others.
    pub(super) async fn evict(&self, pod: &PodRef, grace_period_seconds: Option<i32>) -> Done {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = EvictParams {
            delete_options: Some(options(pod, grace_period_seconds)),
            ..EvictParams::default()
        };
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, api.evict(&pod.name, &params)).await {
            Ok(Ok(_)) => EvictionAnswer::Accepted,
            Ok(Err(kube::Error::Api(status))) if is_gone(&status) => EvictionAnswer::Accepted,
            Ok(Err(kube::Error::Api(status))) if status.code == 429 => refusal(pod, &status),
            Ok(Err(error)) => failed(pod, &ApiError::of("create", EVICTIONS, error)),
            Err(_) => {
                let late =
                    ApiError::TimedOut { verb: "create", resource: EVICTIONS.into(), after: REQUEST_TIMEOUT };
                failed(pod, &late)
            }
        };
        Done::Asked(pod.uid.clone(), answer)
    }

    /// Deletes a pod, whatever its budget says.
    pub(super) async fn delete_pod(
        &self,
        action: &Action,
        pod: &PodRef,
        grace_period_seconds: Option<i32>,
    ) -> Result<Done, ApplyError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let options = options(pod, grace_period_seconds);
        match request(action.kind(), &pod.name, "delete", "pods", api.delete(&pod.name, &options)).await {
            Ok(_) => Ok(Done::Written),
            // It is gone, or another one of its name came: the watch will tell.
            Err(ApplyError::Failed { source, .. }) if source.is_not_found() || source.is_conflict() => {
                Ok(Done::HeldBack)
            }
            Err(error) => Err(error),
        }
    }
}

const EVICTIONS: &str = "pods/eviction";

fn options(pod: &PodRef, grace_period_seconds: Option<i32>) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: grace_period_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
        preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    }
}

/// It is gone, or another pod has its name.
fn is_gone(status: &Status) -> bool {
    status.is_not_found() || status.is_conflict()
}

fn failed(pod: &PodRef, error: &ApiError) -> EvictionAnswer {
    EvictionAnswer::Failed(format!("{}/{}: {}", pod.namespace, pod.name, chain(error)))
}

/// What the API server says of the disruption budgets that refuse: `default/web needs 2 has 2`. Other words of a
/// newer server are passed on as they are.
fn refusal(pod: &PodRef, status: &Status) -> EvictionAnswer {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let (mut budgets, mut said) = (BTreeSet::new(), BTreeSet::new());
    for cause in causes.filter(|cause| cause.reason == "DisruptionBudget") {
        if let Some((name, needs, has)) = numbers(&cause.message) {
            budgets.insert(format!("{}/{name}", pod.namespace));
            said.insert(format!("{}/{name} needs {needs} has {has}", pod.namespace));
        } else {
            said.insert(format!("{}/{}: {}", pod.namespace, pod.name, cause.message));
        }
    }
    if said.is_empty() {
        said.insert(format!("{}/{}: {}", pod.namespace, pod.name, status.message));
    }
    let why = said.into_iter().collect::<Vec<_>>().join(", ");
    EvictionAnswer::Refused { budgets: budgets.into_iter().collect(), why }
}

/// Out of `The disruption budget web needs 2 healthy pods and has 2 currently`.
fn numbers(message: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = message.strip_prefix("The disruption budget ")?.split_once(" needs ")?;
    let (needs, rest) = rest.split_once(" healthy pods and has ")?;
    Some((name, needs, rest.strip_suffix(" currently")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(details: &serde_json::Value) -> (String, String) {
        let status = serde_json::json!({
            "status": "Failure", "code": 429, "reason": "TooManyRequests",
            "message": "Cannot evict pod as it would violate the pod's disruption budget.",
            "details": details,
        });
        let pod = PodRef { namespace: "default".into(), name: "web-1".into(), uid: "1".into() };
        match refusal(&pod, &serde_json::from_value(status).unwrap()) {
            EvictionAnswer::Refused { budgets, why } => (budgets.join(" "), why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_budget_is_named_with_its_numbers() {
        let cause = |message: &str| serde_json::json!({ "reason": "DisruptionBudget", "message": message });
        let usual = cause("The disruption budget web needs 2 healthy pods and has 2 currently");
        let (budgets, why) = refused(&serde_json::json!({ "causes": [usual] }));
        assert_eq!((budgets.as_str(), why.as_str()), ("default/web", "default/web needs 2 has 2"));
        let (budgets, why) = refused(&serde_json::json!({ "causes": [cause("not now")] }));
        assert_eq!((budgets.as_str(), why.as_str()), ("", "default/web-1: not now"));
        let (_, why) = refused(&serde_json::json!({}));
        assert_eq!(why, "default/web-1: Cannot evict pod as it would violate the pod's disruption budget.");
    }
}
