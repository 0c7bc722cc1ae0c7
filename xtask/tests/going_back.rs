//! A person sends a node back to its other slot on purpose, with a `rollbackNonce`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use monok8s_sdk::api::{
    ANNOTATION_CORDON, ConditionType, OSNode, OSUpgradeProgress, ProgressPhase, UpgradePhase, find_condition,
};
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};
use xtask::controlplane::ControllerManager;
use xtask::kubelet::NodeSpec;
use xtask::rootfs::RootfsSpec;
use xtask::testbed::Testbed;

const MIB: u64 = 1 << 20;
const OLD: &str = "v1.35.1";
const NEW: &str = "v1.35.4";
const NODE: &str = "node-1";
const LONG: Duration = Duration::from_secs(120);

async fn one_node() -> Result<Testbed> {
    let mut testbed = Testbed::start(ControllerManager::Running).await?;
    for version in [OLD, NEW] {
        testbed.publish(version, &RootfsSpec::of(version).sized(16 * MIB, 4 * MIB))?;
    }
    testbed.add_machine(NodeSpec::worker(NODE, OLD), OLD).await?;
    Ok(testbed)
}

async fn apply(testbed: &Testbed, retry_nonce: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgrade",
        "metadata": { "name": "up" },
        "spec": {
            "version": NEW,
            "nodeSelector": {},
            "retryNonce": retry_nonce,
            "catalog": { "inline": testbed.catalog(NEW) },
        },
    });
    testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &object.to_string()).await.map(drop)
}

async fn patch(testbed: &Testbed, progress: &str, spec: Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    let command = ["patch", "osupgradeprogress", progress, "--type", "merge", "-p", &patch];
    testbed.kubectl().succeed(&command).await.map(drop)
}

fn reason(progress: &OSUpgradeProgress) -> &str {
    find_condition(progress.conditions(), &ConditionType::Ready).map_or("", |ready| &ready.reason)
}

/// A progress object that is as wanted.
async fn reaches(
    testbed: &Testbed,
    what: &str,
    wanted: impl Fn(&OSUpgradeProgress) -> bool,
) -> Result<OSUpgradeProgress> {
    testbed
        .wait_for(what, LONG, || async { Ok(testbed.progresses().await?.into_values().find(&wanted)) })
        .await
}

async fn upgrade_is_completed(testbed: &Testbed) -> Result<()> {
    testbed
        .wait_for("the upgrade to complete", LONG, || async {
            let upgrade = testbed.upgrades().await?.remove("up").context("the upgrade is gone")?;
            let generation = upgrade.metadata.generation;
            let status = upgrade.status.unwrap_or_default();
            let is_done = status.phase == Some(UpgradePhase::Completed);
            Ok((is_done && status.observed_generation == generation).then_some(()))
        })
        .await
}

async fn cordoned_for(client: Client) -> Result<Option<String>> {
    let node = Api::<Node>::all(client).get(NODE).await?;
    Ok(node.annotations().get(ANNOTATION_CORDON).cloned())
}

fn was_sent_back(progress: &OSUpgradeProgress) -> bool {
    let observed = progress.status.as_ref().and_then(|status| status.observed_rollback_nonce.as_deref());
    observed == Some("back-1")
        && progress.phase() == ProgressPhase::Completed
        && reason(progress) == "RolledBackOnRequest"
}

fn booted(testbed: &Testbed) -> Result<Vec<(Slot, String)>> {
    let boots = testbed.machine(NODE)?.boots();
    Ok(boots.into_iter().map(|boot| (boot.slot, boot.version)).collect())
}

fn there_and_back() -> Vec<(Slot, String)> {
    [(Slot::A, OLD), (Slot::B, NEW), (Slot::A, OLD)].map(|(slot, version)| (slot, version.to_owned())).into()
}

fn holds(testbed: &Testbed, slot: Slot, version: &str) -> Result<()> {
    let image = &testbed.artifact(version)?.image;
    let found = testbed.machine(NODE)?.slot_digest(slot, image.bytes)?;
    ensure!(found == image.digest, "slot {slot} does not hold {version}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sends_a_node_back_like_any_other_reboot_and_holds_it_there() -> Result<()> {
    let mut testbed = one_node().await?;
    testbed.start_operator().await?;
    apply(&testbed, "").await?;
    upgrade_is_completed(&testbed).await?;
    let done =
        reaches(&testbed, "the node to be done", |progress| progress.phase() == ProgressPhase::Completed)
            .await?;

    patch(&testbed, &done.name_any(), json!({ "rollbackNonce": "back-1" })).await?;
    let granted = reaches(&testbed, "leave to boot the old version", |progress| {
        let boot = progress.spec.order.as_ref().and_then(|order| order.boot.as_ref());
        boot.is_some_and(|boot| boot.version.to_string() == OLD)
    })
    .await?;
    assert_eq!(cordoned_for(testbed.client()).await?, granted.uid());
    reaches(&testbed, "the node to be back", was_sent_back).await?;
    let free = || async { Ok(cordoned_for(testbed.client()).await?.is_none().then_some(())) };
    testbed.wait_for("the cordon to be gone", LONG, free).await?;

    // It stays: the upgrade still wants the new version, and the person more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(booted(&testbed)?, there_and_back());
    assert_eq!(testbed.machine(NODE)?.next_boot()?, Some(Slot::A));
    holds(&testbed, Slot::B, NEW)?;
    let upgrade = testbed.upgrades().await?.remove("up").context("the upgrade is gone")?;
    let counts = upgrade.status.unwrap().nodes.unwrap();
    assert_eq!((counts.total, counts.up_to_date, counts.failed), (1, 0, 0), "{counts:?}");

    // Until its upgrade changes.
    apply(&testbed, "on-again").await?;
    upgrade_is_completed(&testbed).await?;
    assert_eq!(booted(&testbed)?.last(), Some(&(Slot::B, NEW.to_owned())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_made_object_sends_its_node_back_too() -> Result<()> {
    let testbed = one_node().await?;
    let os_node = json!({ "apiVersion": "monok8s.io/v1alpha1", "kind": "OSNode",
        "metadata": { "name": NODE }, "spec": {} });
    let os_nodes = Api::<OSNode>::all(testbed.client());
    os_nodes.create(&PostParams::default(), &serde_json::from_value(os_node)?).await?;
    apply(&testbed, "").await?;
    let by_hand = json!({ "apiVersion": "monok8s.io/v1alpha1", "kind": "OSUpgradeProgress",
        "metadata": { "name": "by-hand" }, "spec": { "sourceRef": { "name": "up" }, "nodeName": NODE } });
    testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &by_hand.to_string()).await?;
    reaches(&testbed, "the node to be done", |progress| progress.phase() == ProgressPhase::Completed).await?;

    patch(&testbed, "by-hand", json!({ "rollbackNonce": "back-1" })).await?;
    reaches(&testbed, "the node to be back", was_sent_back).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(booted(&testbed)?, there_and_back());
    holds(&testbed, Slot::B, NEW)?;

    // Its twin leads forward again.
    patch(&testbed, "by-hand", json!({ "retryNonce": "on-again" })).await?;
    reaches(&testbed, "the node to be on the new version", |progress| {
        progress.phase() == ProgressPhase::Completed && reason(progress) == "Completed"
    })
    .await?;
    assert_eq!(booted(&testbed)?.last(), Some(&(Slot::B, NEW.to_owned())));
    Ok(())
}
