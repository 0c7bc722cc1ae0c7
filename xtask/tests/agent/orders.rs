//! What an operator orders: nothing happens without its grant, and nothing against its withdrawal.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams};
use monok8s_sdk::api::{OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase};
use monok8s_sdk::boot::BootBackend as _;
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::http::{Fault, Times};
use xtask::machine::Machine;

use crate::bench::{Bench, MIB, NEW, OLD, booted};

const NAME: &str = "osupgrade-0123456789";

/// An order for a node without any grant.
async fn order(bench: &Bench, node: &str, node_uid: &str) {
    let artifact = bench.artifact("new");
    let hop = json!({
        "version": NEW,
        "urls": [bench.files.url("/new")],
        "checksum": artifact.digest.to_string(),
        "size": artifact.image.bytes,
    });
    let order = json!({"nodeUID": node_uid, "run": 1, "hops": [hop]});
    let spec = json!({"sourceRef": {"name": "up"}, "nodeName": node, "order": order});
    bench.create::<OSUpgradeProgress>(&json!({"metadata": {"name": NAME}, "spec": spec})).await;
}

async fn uid(bench: &Bench, node: &str) -> String {
    Api::<Node>::all(bench.client()).get(node).await.unwrap().metadata.uid.unwrap()
}

async fn grant(bench: &Bench, grants: Value) {
    let api = Api::<OSUpgradeProgress>::all(bench.client());
    let patch = Patch::Merge(json!({"spec": {"order": grants}}));
    api.patch(NAME, &PatchParams::default(), &patch).await.unwrap();
}

fn boot_until(seconds: i64) -> Value {
    let not_after = Timestamp::now() + SignedDuration::from_secs(seconds);
    json!({"version": NEW, "notAfter": not_after.to_string()})
}

fn is_armed(machine: &Machine) -> bool {
    SimulatedLoader::open(machine.loader_path()).status().unwrap().trial.is_some()
}

/// The CRD as a release had it that knew less of a timeline.
async fn know_less(bench: &Bench) {
    let kubectl = bench.control_plane.kubectl();
    let properties =
        "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/timeline/items/properties";
    let remove = |field: &str| json!({ "op": "remove", "path": format!("{properties}/{field}") });
    let patch = json!([remove("bootID"), remove("slot")]).to_string();
    let crd = "osupgradeprogresses.monok8s.io";
    kubectl.succeed(&["patch", "crd", crd, "--type=json", "--patch", &patch]).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while kubectl.succeed(&["explain", "osupgradeprogress.status.timeline.slot"]).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the API server does not take the older schema");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_crds_are_older_than_the_agent_is_told_what_it_can_hold() {
    let bench = Bench::start().await;
    know_less(&bench).await;
    let machine = bench.machine("node-1", &[]).await;
    order(&bench, "node-1", &uid(&bench, "node-1").await).await;
    grant(&bench, json!({"stage": NEW, "boot": boot_until(600)})).await;
    bench.wait_for_phase(&machine, NAME, ProgressPhase::Completed).await;
    assert_eq!(booted(&machine), [Slot::A, Slot::B]);
    let timeline = bench.progress(NAME).await.status.unwrap().timeline;
    assert!(timeline.len() > 3, "{timeline:?}");
    assert!(timeline.iter().all(|entry| entry.slot.is_none() && entry.boot_id.is_none()), "{timeline:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_as_far_as_it_is_granted() {
    let bench = Bench::start().await;
    let machine = bench.machine("node-1", &[]).await;
    order(&bench, "node-1", &uid(&bench, "node-1").await).await;
    let status = bench.wait_for_phase(&machine, NAME, ProgressPhase::Pending).await;
    assert_eq!(status.message.as_deref(), Some("waits for leave to stage v1.35.4"));
    assert_eq!((status.current_version.as_deref(), status.target_version.as_deref()), (Some(OLD), Some(NEW)));
    assert!(bench.files.requests().is_empty(), "nothing is fetched without leave");

    grant(&bench, json!({"stage": NEW})).await;
    bench.wait_for_phase(&machine, NAME, ProgressPhase::Staged).await;
    // A grant that came too late is none.
    grant(&bench, json!({"boot": boot_until(-5)})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.progress(NAME).await.phase(), ProgressPhase::Staged);
    assert!(!is_armed(&machine));
    assert_eq!(booted(&machine), [Slot::A]);

    grant(&bench, json!({"boot": boot_until(600)})).await;
    bench.wait_for_phase(&machine, NAME, ProgressPhase::Completed).await;
    assert_eq!(booted(&machine), [Slot::A, Slot::B]);
    assert_eq!(bench.files.requests().len(), 1, "one download");

    // The grants go; the agent takes note, and rests: nothing is written for as long as nothing changes.
    grant(&bench, json!({"stage": null, "boot": null})).await;
    let generation = bench.progress(NAME).await.metadata.generation;
    bench.wait(&machine, NAME, |status| status.observed_generation == generation).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mark = bench.control_plane.audit().mark().unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let writes = bench.control_plane.audit().writes_since(mark).unwrap();
    let of_agents: Vec<_> = writes.iter().filter(|write| write.user.contains("node-agent")).collect();
    assert!(of_agents.is_empty(), "{of_agents:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_superseded_is_let_go_of_and_what_is_for_another_node_is_left_alone() {
    let bench = Bench::start().await;
    let machine = bench.machine("node-1", &[]).await;
    order(&bench, "node-1", "the-uid-of-an-earlier-node").await;
    grant(&bench, json!({"stage": NEW, "boot": boot_until(600)})).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.progress(NAME).await.status.unwrap_or_default().phase, None, "not one word");
    assert!(bench.files.requests().is_empty());
    bench.kubectl().succeed(&["delete", "osupgradeprogress", NAME]).await.unwrap();

    order(&bench, "node-1", &uid(&bench, "node-1").await).await;
    grant(&bench, json!({"stage": NEW})).await;
    bench.wait_for_phase(&machine, NAME, ProgressPhase::Staged).await;
    grant(&bench, json!({"stage": null})).await;
    let condition = json!({"type": "Superseded", "status": "True", "reason": "Superseded", "message": "",
        "lastTransitionTime": Timestamp::now().to_string()});
    let document = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgradeProgress",
        "metadata": {"name": NAME},
        "status": {"conditions": [condition]},
    });
    let params = PatchParams::apply("monok8s-operator").force();
    let api = Api::<OSUpgradeProgress>::all(bench.client());
    api.patch_status(NAME, &params, &Patch::Apply(document)).await.unwrap();
    let status = bench.wait_for_phase(&machine, NAME, ProgressPhase::Superseded).await;
    assert!(
        status.conditions.iter().any(|condition| condition.type_ == "Superseded"),
        "both co-own the list"
    );
    assert!(!is_armed(&machine));
    assert_eq!(booted(&machine), [Slot::A]);
}

/// A slot is flashed by hand meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_begun_while_somebody_else_has_the_record_and_nobody_else_gets_it_then() {
    let bench = Bench::start().await;
    let machine = bench.machine("node-1", &[]).await;
    let store = RecordStore::in_dir(machine.data_dir());
    let held = loop {
        // The agent has it for moments.
        match store.lock("a test") {
            Ok(held) => break held,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let before = store.load().unwrap();
    bench.files.inject("/new", Fault::Throttle { bytes_per_second: MIB }, Times::Always);
    bench.upgrade("up", NEW, &[bench.entry("new", NEW)]).await;
    bench.hand_made(NAME, "up", "node-1").await;
    let says_why = |status: &OSUpgradeProgressStatus| {
        status.message.as_ref().is_some_and(|message| message.contains("is in use by a test: wait until"))
    };
    bench.wait(&machine, NAME, says_why).await;
    assert_eq!(store.load().unwrap(), before);
    assert_eq!(bench.files.bytes_served("/new"), 0);

    drop(held);
    bench.wait_for_phase(&machine, NAME, ProgressPhase::Downloading).await;
    for _ in 0..50 {
        let refused = store.lock("a test").unwrap_err().to_string();
        assert!(refused.contains("is in use by monok8s-agent (process "), "{refused}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.wait_for_phase(&machine, NAME, ProgressPhase::Completed).await;
}
