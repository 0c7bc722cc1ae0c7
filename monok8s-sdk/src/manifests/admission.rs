//! What RBAC cannot say: an agent writes about its own node alone.
//!
//! All agents share one `ServiceAccount`, but the token that a kubelet hands to a pod names the node it
//! runs on, and the API server passes that on as the user's extra
//! `authentication.kubernetes.io/node-name` (Kubernetes 1.32; before it behind a feature gate). A
//! stolen token therefore reaches one node's objects and no others.

use serde_json::{Value, json};

use super::{AGENT_NAME, Namespace, labels};
use crate::api::{GROUP, VERSION};

const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";

/// Both policies, each with its binding.
pub(super) fn agent_policies(namespace: &Namespace) -> Vec<Value> {
    let progress = "object.spec.nodeName == variables.node && oldObject.spec.nodeName == variables.node";
    let node = "object.metadata.name == variables.node";
    [("osupgradeprogresses", progress), ("osnodes", node)]
        .into_iter()
        .flat_map(|(resource, own)| policy(namespace, resource, own))
        .collect()
}

/// The policy for one resource; `own` says when an object is the node's own.
fn policy(namespace: &Namespace, resource: &str, own: &str) -> [Value; 2] {
    let name = format!("monok8s-{AGENT_NAME}-{resource}");
    let metadata = json!({ "name": name, "labels": labels(AGENT_NAME) });
    let agent = format!("system:serviceaccount:{namespace}:{AGENT_NAME}");
    // An absent extra makes the name empty, which is no object's.
    let node = format!(
        "'{NODE_NAME_EXTRA}' in request.userInfo.extra ? request.userInfo.extra['{NODE_NAME_EXTRA}'][0] : ''"
    );
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": metadata,
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [{
                    "apiGroups": [GROUP],
                    "apiVersions": [VERSION],
                    "operations": ["CREATE", "UPDATE", "DELETE"],
                    "resources": [resource, format!("{resource}/*")],
                }],
            },
            "matchConditions": [
                { "name": "the-agent", "expression": format!("request.userInfo.username == '{agent}'") },
            ],
            "variables": [{ "name": "node", "expression": node }],
            "validations": [
                {
                    "expression": "request.operation == 'UPDATE' && request.subResource == 'status'",
                    "message": "a node agent writes status, and nothing else",
                    "reason": "Forbidden",
                },
                {
                    // A deletion has no object to look at; the rule above has refused it.
                    "expression": format!("request.operation != 'UPDATE' || variables.node != '' && {own}"),
                    "messageExpression": format!(
                        "variables.node == '' ? 'the token names no node: agents use the token that the kubelet gives their pod' : 'the agent of node ' + variables.node + ' writes only to {resource} of its own node'"
                    ),
                    "reason": "Forbidden",
                },
            ],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": metadata,
        "spec": { "policyName": name, "validationActions": ["Deny"] },
    });
    [policy, binding]
}
