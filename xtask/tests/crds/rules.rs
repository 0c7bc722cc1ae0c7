//! Every CEL rule, and every pattern that people meet: what is accepted, and what is refused with
//! which words.

use serde_json::{Value, json};

use super::setup::{Judge, control_plane, merged, sample};

const ACCEPTED: &str = "";

/// Merges each patch into `base`, and compares what the API server says with what it should.
async fn check(judge: &Judge, base: &Value, cases: &[(&str, Value, &str)]) {
    judge.judge(base).await.unwrap();
    for (what, patch, expected) in cases {
        let said = judge.judge(&merged(base.clone(), patch)).await;
        compare(what, said, expected);
    }
}

#[track_caller]
fn compare(what: &str, said: Result<(), String>, expected: &str) {
    match (said, expected) {
        (Ok(()), ACCEPTED) => {}
        (Err(message), expected) if expected != ACCEPTED && message.contains(expected) => {}
        (said, expected) => panic!("{what}: expected {expected:?}, got {said:?}"),
    }
}

#[tokio::test]
async fn of_an_upgrade() {
    let control_plane = control_plane().await;
    let judge = Judge::new(&control_plane);
    let version = |version: &str| json!({ "spec": { "version": version } });
    let catalog = |catalog: Value| {
        let absent = json!({ "inline": null, "url": null, "configMap": null, "inlineSignature": null });
        json!({ "spec": { "catalog": merged(absent, &catalog) } })
    };
    let rollout = |rollout: Value| json!({ "spec": { "rollout": rollout } });
    let check_of = |check: Value| rollout(json!({ "trial": { "checks": [check] } }));
    let health = |health: Value| {
        let base = json!({ "apiVersion": "v1", "kind": "Pod", "expression": "true" });
        rollout(json!({ "healthChecks": [merged(base, &health)] }))
    };
    let one_source = "exactly one of inline, url and configMap";
    let one_check = "exactly one of http, exec and pods";
    let one_name = "exactly one of name and labelSelector";
    let two_boots = "rebootTimeoutSeconds must exceed trial.timeoutSeconds by two boots";
    let http = json!({ "url": "http://127.0.0.1/" });
    let cases = [
        ("a version", version("v1.35.3"), ACCEPTED),
        ("a pre-release with a revision", version("v1.36.0-rc.1+r2"), ACCEPTED),
        ("a channel", version("stable"), ACCEPTED),
        ("a channel of two words", version("candidate-1"), ACCEPTED),
        ("a version without v", version("1.35.3"), "spec.version"),
        ("a minor", version("v1.35"), "spec.version"),
        ("a revision 0", version("v1.35.3+r0"), "spec.version"),
        ("a channel in capitals", version("Stable"), "spec.version"),
        ("no version", json!({ "spec": { "version": null } }), "spec.version: Required value"),
        ("no catalog", json!({ "spec": { "catalog": null } }), "spec.catalog: Required value"),
        ("a url", catalog(json!({ "url": "https://example.com/images.yaml" })), ACCEPTED),
        ("a ConfigMap", catalog(json!({ "configMap": "images-cm" })), ACCEPTED),
        ("a signed document", catalog(json!({ "inline": "images: []", "inlineSignature": "s" })), ACCEPTED),
        ("no source", catalog(json!({})), one_source),
        ("two sources", catalog(json!({ "inline": "a: 1", "url": "http://example.com/" })), one_source),
        (
            "a signature of something else",
            catalog(json!({ "configMap": "images-cm", "inlineSignature": "s" })),
            "inlineSignature goes with inline",
        ),
        ("a file URL", catalog(json!({ "url": "file:///etc/passwd" })), "spec.catalog.url"),
        ("a ConfigMap with a path", catalog(json!({ "configMap": "../x" })), "spec.catalog.configMap"),
        ("just enough time", rollout(json!({ "rebootTimeoutSeconds": 1200 })), ACCEPTED),
        ("too little for the trial", rollout(json!({ "rebootTimeoutSeconds": 1199 })), two_boots),
        (
            "a trial too long for the default",
            rollout(json!({ "trial": { "timeoutSeconds": 1201 } })),
            two_boots,
        ),
        ("a trial that just fits", rollout(json!({ "trial": { "timeoutSeconds": 1200 } })), ACCEPTED),
        ("an HTTP check", check_of(json!({ "name": "a", "http": http })), ACCEPTED),
        ("a check of nothing", check_of(json!({ "name": "a" })), one_check),
        (
            "a check of two things",
            check_of(json!({ "name": "a", "http": http, "exec": { "command": ["b"] } })),
            one_check,
        ),
        (
            "a check that may hold until just before the end",
            check_of(json!({ "name": "a", "holdSeconds": 599, "http": http })),
            ACCEPTED,
        ),
        (
            "a check that outlasts its trial",
            check_of(json!({ "name": "a", "holdSeconds": 600, "http": http })),
            "a check must be able to hold",
        ),
        ("a health check by name", health(json!({ "name": "a" })), ACCEPTED),
        ("a health check by labels", health(json!({ "labelSelector": {} })), ACCEPTED),
        ("a health check of nothing", health(json!({})), one_name),
        ("a health check of both", health(json!({ "name": "a", "labelSelector": {} })), one_name),
        ("a count", rollout(json!({ "maxUnavailable": 3 })), ACCEPTED),
        ("a percentage", rollout(json!({ "maxUnavailable": "100%" })), ACCEPTED),
        (
            "a percentage over 100",
            rollout(json!({ "maxUnavailable": "101%" })),
            "spec.rollout.maxUnavailable",
        ),
        ("a count as text", rollout(json!({ "maxUnavailable": "3" })), "spec.rollout.maxUnavailable"),
        ("a negative count", rollout(json!({ "maxUnavailable": -1 })), "spec.rollout.maxUnavailable"),
        (
            "a window that applies twice to the same",
            rollout(
                json!({ "windows": [{ "kind": "Deny", "schedule": "0 0 * * *", "durationMinutes": 1, "appliesTo": ["Stage", "Stage"] }] }),
            ),
            "Duplicate value",
        ),
    ];
    check(&judge, &sample("osupgrade-minimal.yaml"), &cases).await;
}

#[tokio::test]
async fn of_an_order_and_what_of_it_may_change() {
    let control_plane = control_plane().await;
    let judge = Judge::new(&control_plane);
    let ordered = sample("osupgradeprogress-ordered.yaml");
    let order = |order: Value| json!({ "spec": { "order": order } });
    let cases = [
        ("no grant yet", order(json!({ "stage": null, "boot": null })), ACCEPTED),
        ("the last hop", order(json!({ "stage": "v1.35.3+r2" })), ACCEPTED),
        ("no hop", order(json!({ "stage": "v1.35.3" })), "stage must be the version of a hop"),
        ("a stage that is no version", order(json!({ "stage": "stable" })), "spec.order.stage"),
        ("hops to nowhere", order(json!({ "hops": [] })), "spec.order.hops"),
        ("no node", json!({ "spec": { "nodeName": null } }), "spec.nodeName: Required value"),
        ("no source", json!({ "spec": { "sourceRef": null } }), "spec.sourceRef: Required value"),
    ];
    check(&judge, &ordered, &cases).await;

    judge.create(&ordered).await.unwrap();
    let mut hop = ordered["spec"]["order"]["hops"][1].clone();
    hop["urls"] = json!(["https://elsewhere.example.com/"]);
    for (what, patch, expected) in [
        ("a nonce", json!({ "spec": { "retryNonce": "again", "rollbackNonce": "back" } }), ACCEPTED),
        ("a grant", order(json!({ "stage": "v1.35.3+r2", "boot": null })), ACCEPTED),
        ("a trial", order(json!({ "trial": { "timeoutSeconds": 60 } })), ACCEPTED),
        ("the node", json!({ "spec": { "nodeName": "node-9" } }), "nodeName cannot change"),
        ("the source", json!({ "spec": { "sourceRef": { "name": "other" } } }), "sourceRef cannot change"),
        ("the node's UID", order(json!({ "nodeUID": "another" })), "nodeUID cannot change"),
        ("the run", order(json!({ "run": 4 })), "run cannot change"),
        ("the images", order(json!({ "stage": null, "hops": [hop] })), "hops cannot change"),
        ("the order taken away", json!({ "spec": { "order": null } }), "neither added nor removed"),
    ] {
        compare(what, judge.judge_change(&ordered, &patch).await, expected);
    }

    let by_hand = sample("osupgradeprogress-by-hand.yaml");
    judge.create(&by_hand).await.unwrap();
    let added = order(ordered["spec"]["order"].clone());
    compare("an order added", judge.judge_change(&by_hand, &added).await, "neither added nor removed");
}

#[tokio::test]
async fn of_an_upgrade_let_everything_in_it_change() {
    let control_plane = control_plane().await;
    let judge = Judge::new(&control_plane);
    let minimal = sample("osupgrade-minimal.yaml");
    judge.create(&minimal).await.unwrap();
    let mut full = sample("osupgrade-full.yaml");
    full["spec"]["catalog"]["inline"] = json!("images: [] # another");
    judge.judge_change(&minimal, &json!({ "spec": full["spec"] })).await.unwrap();
}
