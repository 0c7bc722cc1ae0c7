//! Images that fail: each ends on the old slot, says why, and is not tried again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use monok8s_sdk::api::{FailureReason, ProgressPhase, RolledBackBy};
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{Defect, NodeImage, VmCluster};

use crate::images::Images;
use crate::scene::{ByHand, NEW, OLD, boots_of, environment, machine, publish, ready_now, retry, slot_holds};

const GOOD: &str = "good";
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

/// Longer than an emulated machine takes to start an agent while another one is at work.
const UNTIL_THE_AGENT: u32 = 120;
/// An agent that took a new catalog for a reason to try again would have begun.
const LONG_ENOUGH: Duration = Duration::from_secs(20);
/// Longer than it takes to start the guard.
const UNTIL_THE_GUARD: u32 = 60;

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
        case("data-not-mountable", Defect::DataNotMountable, FailureReason::TrialTimedOut, by_the_guard()),
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
    all_fail("node-2", Role::Worker, on_a_worker()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_on_a_node_of_the_control_plane() -> Result<()> {
    all_fail("cp-1", Role::ControlPlane, on_the_control_plane()).await
}

async fn all_fail(node: &str, role: Role, cases: [Case; 4]) -> Result<()> {
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, OLD, node, role).await?;
    let mut last = "";
    for case in cases {
        let image = NodeImage::of(NEW).with(case.defect.clone());
        publish(&mut cluster, &images, case.name, &image).await?;
        it_fails(&cluster, node, &case).await?;
        last = case.name;
    }
    publish(&mut cluster, &images, GOOD, &NodeImage::of(NEW)).await?;
    let cluster = &cluster;
    // A good catalog alone changes nothing; a new nonce does.
    let order = ByHand { name: last, node, version: NEW, artifact: GOOD, trial: json!({}) };
    let tried = boots_of(&cluster.vm(node)?.serial(), 'B');
    order.apply(cluster).await?;
    tokio::time::sleep(LONG_ENOUGH).await;
    let status = order.reaches(cluster, &ProgressPhase::RolledBack).await?;
    let boots = boots_of(&cluster.vm(node)?.serial(), 'B');
    ensure!((status.attempt, boots) == (Some(1), tried), "tried again, unasked: {status:?}");
    retry(cluster, last, "with a good catalog").await?;
    let began = Instant::now();
    order.reaches(cluster, &ProgressPhase::Completed).await?;
    ready_now(cluster, node, NEW).await?;
    println!("{node}: a new nonce with a good catalog: {:.0?}", began.elapsed());
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
