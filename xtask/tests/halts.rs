//! Runs that stop by themselves, and what a person does about them: a good image and a new nonce.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use monok8s_sdk::api::{ANNOTATION_CORDON, ConditionType, OSUpgrade, UpgradePhase, find_condition};
use monok8s_sdk::boot::BootBackend as _;
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;
use xtask::rootfs::RootfsSpec;
use xtask::testbed::Testbed;

const MIB: u64 = 1 << 20;
const OLD: &str = "v1.35.1";
const NEW: &str = "v1.35.4";
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const LONG: Duration = Duration::from_secs(120);

fn small(version: &str) -> RootfsSpec {
    RootfsSpec::of(version).sized(16 * MIB, 4 * MIB)
}

/// Three workers on the old version; `bad` is served beside the images of both versions.
async fn fleet(bad: &RootfsSpec) -> Result<Testbed> {
    let mut testbed = Testbed::start(ControllerManager::Running).await?;
    testbed.publish(OLD, &small(OLD))?;
    testbed.publish(NEW, &small(NEW))?;
    testbed.publish("bad", bad)?;
    for node in NODES {
        testbed.add_machine(NodeSpec::worker(node, OLD), OLD).await?;
    }
    testbed.start_operator().await?;
    Ok(testbed)
}

/// Applies the upgrade with a catalog of one entry.
async fn apply(testbed: &Testbed, entry: &str, rollout: &Value, retry_nonce: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgrade",
        "metadata": { "name": "up" },
        "spec": {
            "version": NEW,
            "nodeSelector": {},
            "retryNonce": retry_nonce,
            "catalog": { "inline": format!("images:\n{entry}") },
            "rollout": rollout,
        },
    });
    testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &object.to_string()).await.map(drop)
}

async fn ends(testbed: &Testbed, phase: UpgradePhase) -> Result<OSUpgrade> {
    testbed
        .wait_for(&format!("the upgrade to be {phase}"), LONG, || async {
            let upgrade = testbed.upgrades().await?.remove("up").context("the upgrade is gone")?;
            let status = upgrade.status.clone().unwrap_or_default();
            let is_current = status.observed_generation == upgrade.metadata.generation;
            Ok((is_current && status.phase == Some(phase.clone())).then_some(upgrade))
        })
        .await
}

/// The run has stopped for `reason`, waits for a person, and goes no further.
async fn is_halted(testbed: &Testbed, reason: &str) -> Result<()> {
    let upgrade = ends(testbed, UpgradePhase::Failed).await?;
    let status = upgrade.status.context("no status")?;
    let stalled = find_condition(&status.conditions, &ConditionType::Stalled).context("no Stalled")?;
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", reason));
    let nodes = status.nodes.context("no counts")?;
    assert_eq!((nodes.total, nodes.up_to_date, nodes.failed), (3, 0, 1), "{nodes:?}");
    assert_eq!(nodes.failed_names, ["node-1"]);
    // Time alone changes nothing.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in &NODES[1..] {
        assert_eq!(booted(testbed, node)?, [Slot::A], "{node} went on");
    }
    no_cordon_is_left(testbed).await
}

async fn no_cordon_is_left(testbed: &Testbed) -> Result<()> {
    let api: Api<Node> = Api::all(testbed.client());
    testbed
        .wait_for("every cordon to be gone", LONG, || async {
            let nodes = api.list(&ListParams::default()).await?.items;
            let left = nodes.iter().any(|node| {
                node.annotations().contains_key(ANNOTATION_CORDON)
                    || node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
            });
            Ok((!left).then_some(()))
        })
        .await
}

fn booted(testbed: &Testbed, node: &str) -> Result<Vec<Slot>> {
    Ok(testbed.machine(node)?.boots().iter().map(|boot| boot.slot).collect())
}

/// Every node runs the good image, and remembers no attempt and no trial.
fn everything_is_in_order(testbed: &Testbed) -> Result<()> {
    for node in NODES {
        let machine = testbed.machine(node)?;
        let boot = machine.boots().last().context("it never booted")?.clone();
        assert_eq!((boot.slot, boot.version.as_str()), (Slot::B, NEW), "{node}");
        let image = &testbed.artifact(NEW)?.image;
        ensure!(machine.slot_digest(Slot::B, image.bytes)? == image.digest, "{node} runs other bytes");
        let old = &testbed.artifact(OLD)?.image;
        ensure!(machine.slot_digest(Slot::A, old.bytes)? == old.digest, "{node} lost its fall-back");
        let loader = SimulatedLoader::open(machine.loader_path()).status()?;
        ensure!(loader.trial.is_none() && loader.is_confirmed(Slot::B), "{node}: {loader:?}");
        let record = RecordStore::in_dir(machine.data_dir()).load()?;
        ensure!(record.attempt.is_none(), "{node}: {:?}", record.attempt);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_falls_back_stops_the_run_at_its_first_node() -> Result<()> {
    let testbed = fleet(&small(NEW).panicking()).await?;
    let bad = testbed.catalog_entry(NEW, "bad", testbed.artifact("bad")?);
    apply(&testbed, &bad, &json!({ "failureThreshold": 1 }), "").await?;
    is_halted(&testbed, "FailureThresholdReached").await?;
    assert_eq!(booted(&testbed, "node-1")?, [Slot::A, Slot::A]);

    let good = testbed.catalog_entry(NEW, NEW, testbed.artifact(NEW)?);
    apply(&testbed, &good, &json!({ "failureThreshold": 1 }), "with-a-good-image").await?;
    ends(&testbed, UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    assert_eq!(booted(&testbed, "node-1")?, [Slot::A, Slot::A, Slot::B]);
    everything_is_in_order(&testbed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_fails_stops_the_run_before_the_next_node_stages() -> Result<()> {
    let testbed = fleet(&small(NEW)).await?;
    // The server hands out something else than the catalog promises.
    let bad = testbed.catalog_entry(NEW, "bad", testbed.artifact(OLD)?);
    let careful = json!({ "maxFailedNodes": 0, "maxParallelStaging": 1 });
    apply(&testbed, &bad, &careful, "").await?;
    is_halted(&testbed, "TooManyFailedNodes").await?;
    assert_eq!(booted(&testbed, "node-1")?, [Slot::A]);
    for node in &NODES[1..] {
        let record = RecordStore::in_dir(testbed.machine(node)?.data_dir()).load()?;
        ensure!(record.attempt.is_none() && record.slots.b.is_none(), "{node} was touched: {record:?}");
    }

    let good = testbed.catalog_entry(NEW, NEW, testbed.artifact(NEW)?);
    apply(&testbed, &good, &careful, "with-a-good-image").await?;
    ends(&testbed, UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    everything_is_in_order(&testbed)
}
