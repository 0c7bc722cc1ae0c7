//! Images that fail: each ends on the old slot and says why. None is tried again by itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use monok8s_sdk::api::{FailureReason, ProgressPhase, RolledBackBy};
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{Defect, VmCluster};

use crate::images::Images;
use crate::scene::{
    ByHand, NEW, OLD, UNTIL_THE_GUARD, boots, boots_of, environment, hollow_image, is_in_slot_b, machine,
    publish, ready_now, retry, slot_holds,
};

/// An image, and what becomes of it.
struct Case {
    name: &'static str,
    defect: Defect,
    reason: FailureReason,
    outcome: Outcome,
}

/// What becomes of the node.
enum Outcome {
    /// The slot is not booted at all.
    Refused,
    /// Somebody brings the machine back, from a trial of so many seconds at most.
    RolledBack { by: RolledBackBy, trial_seconds: u32 },
    /// The kernel gives up, which it says on the serial line, and the loader passes the slot over.
    GaveUp { saying: &'static str },
}

/// Longer than an emulated machine takes to start an agent while others are at work.
const UNTIL_THE_AGENT: u32 = 150;
/// An agent that took a new catalog for a reason to try again would have begun.
const LONG_ENOUGH: Duration = Duration::from_secs(20);
/// The last of the images that fail on a worker.
const LAST: &str = "data-not-mountable";

fn back_by(by: RolledBackBy, trial_seconds: u32) -> Outcome {
    Outcome::RolledBack { by, trial_seconds }
}

/// What fails on any node.
fn on_a_worker() -> [Case; 4] {
    let case = |name, defect, reason, outcome| Case { name, defect, reason, outcome };
    let by_the_guard = || back_by(RolledBackBy::Guard, UNTIL_THE_GUARD);
    [
        case(
            "wrong-version",
            Defect::SaysItIs("v1.35.1".to_owned()),
            FailureReason::WrongVersion,
            Outcome::Refused,
        ),
        case(
            "kernel-panics",
            Defect::KernelPanics,
            FailureReason::FellBack,
            Outcome::GaveUp { saying: "Kernel panic - not syncing: VFS: Unable to mount root fs" },
        ),
        case(
            "kubelet-never-starts",
            Defect::KubeletNeverStarts,
            FailureReason::TrialTimedOut,
            by_the_guard(),
        ),
        case(LAST, Defect::DataNotMountable, FailureReason::TrialTimedOut, by_the_guard()),
    ]
}

/// What fails on a node of the control plane, and what might as well fail on another one.
fn on_the_control_plane() -> [Case; 4] {
    let case = |name, defect, reason, outcome| Case { name, defect, reason, outcome };
    let by_the_agent = || back_by(RolledBackBy::Agent, UNTIL_THE_AGENT);
    [
        case("no-guard", Defect::NoGuard, FailureReason::GuardMissing, Outcome::Refused),
        case(
            "no-init",
            Defect::NoInit,
            FailureReason::FellBack,
            Outcome::GaveUp { saying: "The root file system has no /sbin/init." },
        ),
        case("node-never-ready", Defect::NodeNeverReady, FailureReason::TrialTimedOut, by_the_agent()),
        case("api-never-ready", Defect::ApiServerNeverReady, FailureReason::TrialTimedOut, by_the_agent()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_fail_end_on_the_old_slot_and_are_not_tried_again() -> Result<()> {
    const NODE: &str = "node-2";
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, &hollow_image(OLD), NODE, Role::Worker).await?;
    all_fail(&mut cluster, &images, NODE, on_a_worker()).await?;
    publish(&mut cluster, &images, NEW, &hollow_image(NEW)).await?;
    // A good catalog alone changes nothing; a new nonce does.
    let order = ByHand { name: LAST, node: NODE, version: NEW, artifact: NEW, trial: json!({}) };
    let before = boots(&cluster, NODE)?;
    order.apply(&cluster).await?;
    tokio::time::sleep(LONG_ENOUGH).await;
    let status = order.reaches(&cluster, &ProgressPhase::RolledBack).await?;
    let since = boots(&cluster, NODE)?;
    ensure!((status.attempt, since) == (Some(1), before), "tried again, unasked: {status:?}");
    let began = Instant::now();
    retry(&cluster, LAST, "with a good catalog").await?;
    order.reaches(&cluster, &ProgressPhase::Completed).await?;
    println!("{NODE}: a new nonce with a good catalog: {:.0?}", began.elapsed());
    ready_now(&cluster, NODE, NEW).await?;
    is_in_slot_b(&cluster, NODE, before).await
}

/// Other defects, on a node of the control plane, which then takes the new version without a defect: ordered by
/// hand and with no operator, as everything here.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_control_plane_survives_them_too_and_takes_a_good_one() -> Result<()> {
    const NODE: &str = "cp-1";
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, &hollow_image(OLD), NODE, Role::ControlPlane).await?;
    all_fail(&mut cluster, &images, NODE, on_the_control_plane()).await?;
    publish(&mut cluster, &images, NEW, &hollow_image(NEW)).await?;
    let (boot, before) = (cluster.ready(NODE, OLD, None).await?, boots(&cluster, NODE)?);
    let began = Instant::now();
    let order = ByHand { name: "by-hand", node: NODE, version: NEW, artifact: NEW, trial: json!({}) };
    order.apply(&cluster).await?;
    let status = order.reaches(&cluster, &ProgressPhase::Completed).await?;
    println!("{NODE}: {OLD} to {NEW} by hand: {:.0?}", began.elapsed());
    ensure!(status.current_version.as_deref() == Some(NEW) && status.attempt == Some(1), "{status:?}");
    cluster.ready(NODE, NEW, Some(&boot)).await?;
    is_in_slot_b(&cluster, NODE, before).await
}

async fn all_fail(cluster: &mut VmCluster, images: &Images, node: &str, cases: [Case; 4]) -> Result<()> {
    for case in cases {
        let broken = hollow_image(NEW).with(case.defect.clone());
        publish(cluster, images, case.name, &broken).await?;
        it_fails(cluster, node, &case).await?;
    }
    Ok(())
}

async fn it_fails(cluster: &VmCluster, node: &str, case: &Case) -> Result<()> {
    let began = Instant::now();
    let serial = cluster.vm(node)?.serial();
    let boot_before = cluster.ready(node, OLD, None).await?;
    let (phase, trial) = match case.outcome {
        Outcome::Refused => (ProgressPhase::Failed, json!({})),
        Outcome::RolledBack { trial_seconds, .. } => {
            (ProgressPhase::RolledBack, json!({ "timeoutSeconds": trial_seconds }))
        }
        Outcome::GaveUp { .. } => (ProgressPhase::RolledBack, json!({})),
    };
    let order = ByHand { name: case.name, node, version: NEW, artifact: case.name, trial };
    order.apply(cluster).await?;
    let status = order.reaches(cluster, &phase).await?;
    println!("{node}: {}: {phase} after {:.0?}: {:?}", case.name, began.elapsed(), status.message);
    ensure!(status.failure_reason.as_deref() == Some(case.reason.as_str()), "{}: {status:?}", case.name);
    ensure!(status.attempt == Some(1) && status.retry_count.unwrap_or(0) == 0, "{}: {status:?}", case.name);
    let since = cluster.vm(node)?.serial().split_off(serial.len());
    let tried = boots_of(&since, 'B');
    let by = match &case.outcome {
        Outcome::Refused => None,
        Outcome::RolledBack { by, .. } => Some(by),
        Outcome::GaveUp { saying } => {
            let trial = since.split_once("Booting slot B ").map(|(_, after)| after).unwrap_or_default();
            ensure!(trial.contains(saying), "{}: the kernel did not say {saying:?}:\n{trial}", case.name);
            Some(&RolledBackBy::Loader)
        }
    };
    if let Some(by) = by {
        let boot = cluster.ready(node, OLD, Some(&boot_before)).await?;
        let evidence = status.rolled_back.as_ref();
        ensure!(
            evidence.is_some_and(|evidence| evidence.by == *by && evidence.returned_boot_id == boot),
            "{}: {evidence:?}",
            case.name
        );
        ensure!(tried == 1, "{}: slot B was booted {tried} times", case.name);
    } else {
        ensure!(cluster.ready(node, OLD, None).await? == boot_before, "{}: {node} was rebooted", case.name);
        ensure!(tried == 0, "{}: slot B was booted {tried} times", case.name);
    }
    let environment = environment(cluster, node).await?;
    ensure!(environment.contains("ORDER=A\n"), "{}: {environment}", case.name);
    slot_holds(cluster, node, Slot::A, OLD).await
}
