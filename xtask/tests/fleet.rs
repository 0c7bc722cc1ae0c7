//! Whole fleets: the real operator and real agents on simulated machines, through what happens to
//! clusters. However it goes, no cordon stays behind and no fall-back slot is overwritten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "fleet/cuts.rs"]
mod cuts;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use monok8s_sdk::api::{
    ANNOTATION_CORDON, ConditionType, OSUpgrade, OSUpgradeProgress, ProgressPhase, UpgradePhase,
    find_condition,
};
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::controlplane::{AuditMark, ControllerManager};
use xtask::kubelet::NodeSpec;
use xtask::rootfs::RootfsSpec;
use xtask::testbed::Testbed;

const MIB: u64 = 1 << 20;
const OLD: &str = "v1.35.1";
const MIDDLE: &str = "v1.35.3";
const NEW: &str = "v1.35.4";
const LONG: Duration = Duration::from_secs(120);

/// A fleet on the old version, with the images of all three.
async fn fleet(nodes: &[NodeSpec]) -> Result<Testbed> {
    let mut testbed = Testbed::start(ControllerManager::Running).await?;
    for version in [OLD, MIDDLE, NEW] {
        testbed.publish(version, &RootfsSpec::of(version).sized(16 * MIB, 4 * MIB))?;
    }
    for node in nodes {
        testbed.add_machine(node.clone(), OLD).await?;
    }
    testbed.start_operator().await?;
    Ok(testbed)
}

async fn apply(testbed: &Testbed, name: &str, version: &str, more: serde_json::Value) -> Result<()> {
    let mut object = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgrade",
        "metadata": { "name": name },
        "spec": { "version": version, "nodeSelector": {}, "catalog": { "inline": testbed.catalog(OLD) } },
    });
    if let (Some(spec), Some(more)) = (object["spec"].as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &object.to_string()).await.map(drop)
}

async fn ends(testbed: &Testbed, name: &str, phase: UpgradePhase) -> Result<OSUpgrade> {
    testbed
        .wait_for(&format!("{name} to be {phase}"), LONG, || async {
            let upgrade = testbed.upgrades().await?.remove(name);
            Ok(upgrade.filter(|upgrade| {
                let status = upgrade.status.as_ref();
                status.and_then(|status| status.phase.as_ref()) == Some(&phase)
                    && status.and_then(|status| status.observed_generation) == upgrade.metadata.generation
            }))
        })
        .await
}

/// The first progress object of a node in one of `phases`.
async fn reaches(testbed: &Testbed, node: &str, phases: &[ProgressPhase]) -> Result<OSUpgradeProgress> {
    testbed
        .wait_for(&format!("{node} to be in {phases:?}"), LONG, || async {
            let all = testbed.progresses().await?;
            Ok(all
                .into_values()
                .find(|progress| progress.spec.node_name == node && phases.contains(&progress.phase())))
        })
        .await
}

async fn nodes(client: Client) -> Result<Vec<Node>> {
    Ok(Api::<Node>::all(client).list(&ListParams::default()).await?.items)
}

/// No node is cordoned, and none carries our annotation.
async fn no_cordon_is_left(testbed: &Testbed) -> Result<()> {
    testbed
        .wait_for("every cordon to be gone", LONG, || async {
            let left = nodes(testbed.client()).await?.into_iter().any(|node| {
                node.annotations().contains_key(ANNOTATION_CORDON)
                    || node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
            });
            Ok((!left).then_some(()))
        })
        .await
}

fn holds(testbed: &Testbed, node: &str, slot: Slot, version: &str) -> Result<()> {
    let image = &testbed.artifact(version)?.image;
    let found = testbed.machine(node)?.slot_digest(slot, image.bytes)?;
    ensure!(found == image.digest, "slot {slot} of {node} does not hold {version}");
    Ok(())
}

fn booted_slots(testbed: &Testbed, node: &str) -> Vec<Slot> {
    testbed.machine(node).unwrap().boots().iter().map(|boot| boot.slot).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_moves_in_order_and_then_rests() -> Result<()> {
    let testbed = fleet(&[
        NodeSpec::control_plane("cp-1", OLD),
        NodeSpec::worker("node-1", OLD),
        NodeSpec::worker("node-2", OLD),
    ])
    .await?;
    let mark = testbed.control_plane().audit().mark()?;
    apply(&testbed, "up", NEW, json!({})).await?;
    let upgrade = ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    it_takes_few_writes(&testbed, mark)?;
    for node in ["cp-1", "node-1", "node-2"] {
        holds(&testbed, node, Slot::B, NEW)?;
        holds(&testbed, node, Slot::A, OLD)?;
        assert_eq!(booted_slots(&testbed, node), [Slot::A, Slot::B], "{node}");
        assert_eq!(testbed.machine(node)?.next_boot()?, Some(Slot::B), "{node}");
    }
    let counts = upgrade.status.context("no status")?.nodes.context("no counts")?;
    assert_eq!((counts.total, counts.up_to_date, counts.failed), (3, 3, 0));
    one_after_the_other(&testbed).await?;
    nothing_is_written(&testbed, Duration::from_secs(60)).await
}

/// The control plane first, and never two nodes between their commit and their completion.
async fn one_after_the_other(testbed: &Testbed) -> Result<()> {
    let mut spans = Vec::new();
    for progress in testbed.progresses().await?.into_values() {
        let status = progress.status.clone().context("no status")?;
        let rebooting = status.timeline.iter().find(|entry| entry.phase == ProgressPhase::Rebooting);
        let from = rebooting.context("it never rebooted")?.since.0;
        let until = status.completed_at.context("it never completed")?.0;
        spans.push((from, until, progress.spec.node_name));
    }
    spans.sort();
    assert_eq!(spans[0].2, "cp-1");
    for pair in spans.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{} and {} were away at once: {spans:?}", pair[0].2, pair[1].2);
    }
    Ok(())
}

/// Counted from the audit log, without what tells of the upgrade as a whole.
fn it_takes_few_writes(testbed: &Testbed, mark: AuditMark) -> Result<()> {
    let mut counts = BTreeMap::new();
    for write in testbed.control_plane().audit().writes_since(mark)? {
        let Some(account) = write.user.strip_prefix("system:serviceaccount:mono-system:") else { continue };
        if !matches!(write.resource.as_str(), "leases" | "events" | "osupgrades/status") {
            *counts.entry(format!("{account} {} {}", write.verb, write.resource)).or_insert(0) += 1;
        }
    }
    let made = |account: &str| {
        let by = counts.iter().filter(|(what, _)| what.starts_with(account));
        by.map(|(_, count)| count).sum::<u32>() / 3
    };
    // The OSNode; then an order, two grants, a cordon and its end. One is for a machine that is slow.
    assert!(made("controller") <= 6 + 1, "{counts:#?}");
    // Six phases and the OSNode, and one for each phase that lasts.
    assert!(made("node-agent") <= 7 + 2, "{counts:#?}");
    Ok(())
}

/// Counted from the audit log. Leases are how a leader and a kubelet say that they live, and the
/// kubelet's heartbeat is not ours.
async fn nothing_is_written(testbed: &Testbed, quiet: Duration) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mark = testbed.control_plane().audit().mark()?;
    tokio::time::sleep(quiet).await;
    let writes = testbed.control_plane().audit().writes_since(mark)?;
    let ours: Vec<_> = writes
        .into_iter()
        .filter(|write| {
            write.user.starts_with("system:serviceaccount:mono-system:") && write.resource != "leases"
        })
        .collect();
    assert!(ours.is_empty(), "written at rest: {ours:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_again() -> Result<()> {
    let testbed = fleet(&[NodeSpec::worker("node-1", OLD), NodeSpec::worker("node-2", OLD)]).await?;
    // To the middle; before anyone is done to the new one; and back again.
    apply(&testbed, "up", MIDDLE, json!({ "paused": true })).await?;
    ends(&testbed, "up", UpgradePhase::Accepted).await?;
    apply(&testbed, "up", MIDDLE, json!({})).await?;
    reaches(
        &testbed,
        "node-1",
        &[ProgressPhase::Downloading, ProgressPhase::Verifying, ProgressPhase::Staged],
    )
    .await?;
    // Paused, so that nobody gets there before the way back is seen.
    apply(&testbed, "up", NEW, json!({ "paused": true })).await?;
    testbed
        .wait_for("the second run", LONG, || async {
            let upgrade = testbed.upgrades().await?.remove("up").context("the upgrade is gone")?;
            let run = upgrade.status.and_then(|status| status.run);
            Ok((run == Some(2)).then_some(()))
        })
        .await?;
    apply(&testbed, "up", MIDDLE, json!({})).await?;
    let upgrade = ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    for node in ["node-1", "node-2"] {
        assert_eq!(testbed.machine(node)?.boots().last().unwrap().version, MIDDLE, "{node}");
    }
    let run = upgrade.status.unwrap().run.unwrap();
    assert_eq!(run, 3, "each changed version begins a run of its own");

    // Done, then on to the new one and back: refused, and allowed.
    apply(&testbed, "up", NEW, json!({})).await?;
    ends(&testbed, "up", UpgradePhase::Completed).await?;
    apply(&testbed, "up", MIDDLE, json!({})).await?;
    let refused = ends(&testbed, "up", UpgradePhase::Rejected).await?.status.unwrap();
    assert_eq!(refused.resolved_version.as_deref(), Some(MIDDLE));
    assert_eq!(
        find_condition(&refused.conditions, &ConditionType::Ready).unwrap().reason,
        "DowngradeRefused"
    );
    apply(&testbed, "up", MIDDLE, json!({ "downgradePolicy": "Allow" })).await?;
    ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    for node in ["node-1", "node-2"] {
        assert_eq!(testbed.machine(node)?.boots().last().unwrap().version, MIDDLE, "{node}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_upgrades_want_the_same_nodes() -> Result<()> {
    let testbed = fleet(&[NodeSpec::worker("node-1", OLD), NodeSpec::worker("node-2", OLD)]).await?;
    apply(&testbed, "lower", MIDDLE, json!({})).await?;
    apply(&testbed, "higher", NEW, json!({})).await?;
    ends(&testbed, "higher", UpgradePhase::Completed).await?;
    ends(&testbed, "lower", UpgradePhase::Superseded).await?;
    no_cordon_is_left(&testbed).await?;
    for node in ["node-1", "node-2"] {
        assert_eq!(testbed.machine(node)?.boots().last().unwrap().version, NEW, "{node}");
    }
    // An old manifest, applied again, changes nothing.
    apply(&testbed, "lower", MIDDLE, json!({})).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ends(&testbed, "lower", UpgradePhase::Superseded).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_deleted_before_and_after_the_commit() -> Result<()> {
    let testbed = fleet(&[NodeSpec::worker("node-1", OLD), NodeSpec::worker("node-2", OLD)]).await?;
    let upgrades: Api<OSUpgrade> = Api::all(testbed.client());
    // Before: the node is staged, and somebody holds the reboot back.
    apply(&testbed, "first", NEW, json!({ "rollout": { "maxUnavailable": 1 } })).await?;
    reaches(
        &testbed,
        "node-1",
        &[ProgressPhase::Downloading, ProgressPhase::Verifying, ProgressPhase::Staged],
    )
    .await?;
    upgrades.delete("first", &DeleteParams::background()).await?;
    testbed
        .wait_for("the progress objects to go", LONG, || async {
            Ok(testbed.progresses().await?.is_empty().then_some(()))
        })
        .await?;
    no_cordon_is_left(&testbed).await?;

    // After: whoever committed finishes on its record alone.
    apply(&testbed, "second", NEW, json!({})).await?;
    let committed = testbed
        .wait_for("a node to commit", LONG, || async {
            let all = testbed.progresses().await?;
            Ok(all.into_values().find(|progress| progress.phase().is_committed()))
        })
        .await?
        .spec
        .node_name;
    upgrades.delete("second", &DeleteParams::background()).await?;
    testbed
        .wait_for("the committed node to finish", LONG, || async {
            let machine = testbed.machine(&committed)?;
            let confirmed = machine.next_boot()? == Some(Slot::B) && machine.booted()? == Slot::B;
            Ok(confirmed.then_some(()))
        })
        .await?;
    no_cordon_is_left(&testbed).await?;
    holds(&testbed, &committed, Slot::A, OLD)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(booted_slots(&testbed, &committed), [Slot::A, Slot::B]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_made_again_under_its_name() -> Result<()> {
    let mut testbed = fleet(&[NodeSpec::worker("node-1", OLD)]).await?;
    apply(&testbed, "up", NEW, json!({})).await?;
    let before_the_commit =
        [ProgressPhase::Pending, ProgressPhase::Downloading, ProgressPhase::Verifying, ProgressPhase::Staged];
    let first = reaches(&testbed, "node-1", &before_the_commit).await?;
    testbed.remove_machine("node-1");
    Api::<Node>::all(testbed.client()).delete("node-1", &DeleteParams::background()).await?;
    testbed.forget_disk("node-1")?;
    testbed.add_machine(NodeSpec::worker("node-1", OLD), OLD).await?;
    ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    let done = reaches(&testbed, "node-1", &[ProgressPhase::Completed]).await?;
    assert_ne!(first.uid(), done.uid(), "the new node worked off the old node's order");
    assert_eq!(booted_slots(&testbed, "node-1"), [Slot::A, Slot::B]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_killed_again_and_again() -> Result<()> {
    let mut testbed = fleet(&[
        NodeSpec::control_plane("cp-1", OLD),
        NodeSpec::worker("node-1", OLD),
        NodeSpec::worker("node-2", OLD),
    ])
    .await?;
    apply(&testbed, "up", NEW, json!({})).await?;
    // Uneven pauses, so that the kills fall between different writes.
    for pause in [130u64, 610, 370, 890, 250, 1130, 490, 730, 170, 950] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        testbed.kill_operator()?;
        testbed.start_operator_with(&["--no-lease"]).await?;
    }
    ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    for node in ["cp-1", "node-1", "node-2"] {
        holds(&testbed, node, Slot::A, OLD)?;
        assert_eq!(booted_slots(&testbed, node), [Slot::A, Slot::B], "{node}");
    }
    one_after_the_other(&testbed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fell_back_behind_our_back_is_not_up_to_date() -> Result<()> {
    let testbed = fleet(&[NodeSpec::worker("node-1", OLD)]).await?;
    apply(&testbed, "up", NEW, json!({})).await?;
    ends(&testbed, "up", UpgradePhase::Completed).await?;
    // The new slot rots; at the next power cut the loader takes the old one.
    testbed.machine("node-1")?.destroy_slot(Slot::B)?;
    testbed.machine("node-1")?.power_cut().await?;
    let upgrade = testbed
        .wait_for("the unexplained rollback to be told", LONG, || async {
            let upgrade = testbed.upgrades().await?.remove("up").context("the upgrade is gone")?;
            let ready = upgrade
                .status
                .as_ref()
                .and_then(|status| find_condition(&status.conditions, &ConditionType::Ready).cloned());
            Ok(ready.filter(|ready| ready.status != "True").map(|_| upgrade))
        })
        .await?;
    let counts = upgrade.status.unwrap().nodes.unwrap();
    assert_eq!(counts.up_to_date, 0, "{counts:?}");
    let degraded = testbed
        .wait_for("the node's object to be degraded", LONG, || async {
            let all = testbed.progresses().await?;
            let told = all.values().find_map(|progress| {
                find_condition(progress.conditions(), &ConditionType::Degraded).cloned()
            });
            Ok(told.filter(|told| told.status == "True"))
        })
        .await?;
    assert_eq!(degraded.reason, "UnexplainedRollback");
    no_cordon_is_left(&testbed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_cordon_is_counted_and_kept() -> Result<()> {
    let testbed = fleet(&[NodeSpec::worker("node-1", OLD), NodeSpec::worker("node-2", OLD)]).await?;
    let api: Api<Node> = Api::all(testbed.client());
    let cordon = |on: bool| Patch::Merge(json!({ "spec": { "unschedulable": on } }));
    api.patch("node-2", &PatchParams::default(), &cordon(true)).await?;
    apply(&testbed, "up", NEW, json!({})).await?;
    reaches(&testbed, "node-1", &[ProgressPhase::Staged]).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let node = api.get("node-1").await?;
    assert!(!node.annotations().contains_key(ANNOTATION_CORDON), "node-1 went while the budget was spent");
    assert_eq!(booted_slots(&testbed, "node-1"), [Slot::A]);
    api.patch("node-2", &PatchParams::default(), &cordon(false)).await?;
    ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await
}
