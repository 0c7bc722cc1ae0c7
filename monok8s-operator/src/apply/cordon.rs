//! The last look at a cordon before a reboot is granted. Pure.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use monok8s_sdk::api::{ANNOTATION_CORDON, OSUpgradeProgress};

/// What a node, read a moment ago, says about the cordon that an order needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cordon {
    /// It is cordoned: for this order, or by a person, whose cordon serves as well and stays.
    Holds,
    /// It is cordoned for another order, of which the plan may know nothing.
    OfAnotherOrder,
    /// It is not cordoned, or it is another node of that name.
    Missing,
}

pub(super) fn cordon(node: &Node, progress: &OSUpgradeProgress) -> Cordon {
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let meant =
        progress.spec.order.as_ref().is_some_and(|order| Some(&order.node_uid) == node.uid().as_ref());
    match node.annotations().get(ANNOTATION_CORDON) {
        _ if !cordoned || !meant => Cordon::Missing,
        Some(uid) if Some(uid) != progress.uid().as_ref() => Cordon::OfAnotherOrder,
        Some(_) | None => Cordon::Holds,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(node_uid: &str, annotations: &Value, unschedulable: bool) -> Cordon {
        let node = json!({
            "metadata": { "name": "node-1", "uid": node_uid, "annotations": annotations },
            "spec": { "unschedulable": unschedulable },
        });
        let progress = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": { "name": "osupgrade-1", "uid": "ours" },
            "spec": {
                "sourceRef": { "name": "up" },
                "nodeName": "node-1",
                "order": { "nodeUID": "node-uid", "run": 1, "hops": [] },
            },
        });
        let node = serde_json::from_value(node).unwrap();
        cordon(&node, &serde_json::from_value(progress).unwrap())
    }

    #[test]
    fn a_persons_cordon_serves_and_the_one_of_another_order_does_not() {
        let ours = json!({ ANNOTATION_CORDON: "ours" });
        let anothers = json!({ ANNOTATION_CORDON: "another's" });
        assert_eq!(judged("node-uid", &ours, true), Cordon::Holds);
        assert_eq!(judged("node-uid", &json!({}), true), Cordon::Holds, "a person's");
        assert_eq!(judged("node-uid", &anothers, true), Cordon::OfAnotherOrder);
        assert_eq!(judged("node-uid", &ours, false), Cordon::Missing, "lifted, and the annotation left");
        assert_eq!(judged("node-uid", &json!({}), false), Cordon::Missing);
        assert_eq!(judged("made-again", &ours, true), Cordon::Missing);
    }
}
