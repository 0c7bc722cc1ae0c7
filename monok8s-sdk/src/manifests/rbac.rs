//! Roles, and who has them.

use serde_json::{Value, json};

use super::{Namespace, labels, metadata};

/// Leave to use `verbs` on `resources` of one API group.
pub(super) fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

pub(super) fn service_account(name: &str, namespace: &Namespace) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(name, namespace) })
}

/// A `ClusterRole` of the `ServiceAccount` called `account`, and its binding. Cluster-wide names carry
/// the product's, because others have controllers too.
pub(super) fn cluster_role(account: &str, namespace: &Namespace, rules: &[Value]) -> [Value; 2] {
    let name = format!("monok8s-{account}");
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": name, "labels": labels(account) },
        "rules": rules,
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": name, "labels": labels(account) },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [subject(account, namespace)],
    });
    [role, binding]
}

/// A Role called `name` in the namespace, bound to the `ServiceAccounts` called `accounts`.
pub(super) fn role(name: &str, namespace: &Namespace, accounts: &[&str], rules: &[Value]) -> [Value; 2] {
    let accounts: Vec<_> = accounts.iter().map(|account| (*account, namespace)).collect();
    role_of(name, namespace, &accounts, rules)
}

/// The same for accounts of other namespaces, each with its own.
pub(super) fn role_of(
    name: &str,
    namespace: &Namespace,
    accounts: &[(&str, &Namespace)],
    rules: &[Value],
) -> [Value; 2] {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(name, namespace),
        "rules": rules,
    });
    let subjects: Vec<_> = accounts.iter().map(|(account, of)| subject(account, of)).collect();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata(name, namespace),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": subjects,
    });
    [role, binding]
}

fn subject(account: &str, namespace: &Namespace) -> Value {
    json!({ "kind": "ServiceAccount", "name": account, "namespace": namespace.as_str() })
}
