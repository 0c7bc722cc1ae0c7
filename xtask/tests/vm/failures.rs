//! Images that fail: each ends on the old slot, says why, and is not tried again.

use std::time::Instant;

use anyhow::{Result, ensure};
use monok8s_sdk::api::{FailureReason, ProgressPhase, RolledBackBy};
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{Defect, NodeImage, VmCluster};

use crate::scene::{ByHand, boots_of, inside, machines, publish};

const OLD: &str = "v1.35.3";
const NEW: &str = "v1.35.4";
const GOOD: &str = "good";
/// Longer than an emulated machine takes to be confirmed while another one starts beside it.
const TRIAL_SECONDS: u32 = 150;

/// An image, and what becomes of it.
struct Case {
    name: &'static str,
    defect: Defect,
    reason: FailureReason,
    /// Who brings the machine back; nobody, if it is not booted at all.
    by: Option<RolledBackBy>,
}

fn case(name: &'static str, defect: Defect, reason: FailureReason, by: Option<RolledBackBy>) -> Case {
    Case { name, defect, reason, by }
}

/// What fails on any node.
fn on_the_worker() -> [Case; 4] {
    [
        case("wrong-version", Defect::SaysItIs("v1.35.1".to_owned()), FailureReason::WrongVersion, None),
        case("kernel-panics", Defect::KernelPanics, FailureReason::FellBack, Some(RolledBackBy::Loader)),
        case(
            "kubelet-never-starts",
            Defect::KubeletNeverStarts,
            FailureReason::TrialTimedOut,
            Some(RolledBackBy::Guard),
        ),
        case(
            "data-not-mountable",
            Defect::DataNotMountable,
            FailureReason::TrialTimedOut,
            Some(RolledBackBy::Guard),
        ),
    ]
}

/// What fails on a node of the control plane, and half of the rest, so that both machines are busy.
fn on_the_control_plane() -> [Case; 4] {
    [
        case("no-guard", Defect::NoGuard, FailureReason::GuardMissing, None),
        case("no-init", Defect::NoInit, FailureReason::FellBack, Some(RolledBackBy::Loader)),
        case(
            "node-never-ready",
            Defect::NodeNeverReady,
            FailureReason::TrialTimedOut,
            Some(RolledBackBy::Agent),
        ),
        case(
            "api-never-ready",
            Defect::ApiServerNeverReady,
            FailureReason::TrialTimedOut,
            Some(RolledBackBy::Agent),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_fail_end_on_the_old_slot_and_are_not_tried_again() -> Result<()> {
    let Some(mut library) = crate::library().await? else { return Ok(()) };
    let nodes = [("cp-1", Role::ControlPlane), ("node-1", Role::Worker)];
    let mut cluster = machines(&mut library, OLD, &nodes).await?;
    publish(&mut cluster, &mut library, GOOD, &NodeImage::of(NEW)).await?;
    for case in on_the_control_plane().iter().chain(&on_the_worker()) {
        let image = NodeImage::of(NEW).with(case.defect.clone());
        publish(&mut cluster, &mut library, case.name, &image).await?;
    }
    let (on_cp, on_worker) = tokio::join!(
        all_fail(&cluster, "cp-1", on_the_control_plane()),
        all_fail(&cluster, "node-1", on_the_worker()),
    );
    on_cp.and(on_worker)
}

async fn all_fail(cluster: &VmCluster, node: &str, cases: [Case; 4]) -> Result<()> {
    let mut last = "";
    for case in cases {
        it_fails(cluster, node, &case).await?;
        last = case.name;
    }
    // A good catalog alone changes nothing; a new nonce does.
    let order = ByHand { name: last, node, version: NEW, artifact: GOOD, trial: json!({}) };
    order.apply(cluster).await?;
    let nonce = r#"{"spec":{"retryNonce":"with a good catalog"}}"#;
    let arguments = ["patch", "osupgradeprogress", last, "--type=merge", "-p", nonce];
    cluster.testbed().kubectl().succeed(&arguments).await?;
    let began = Instant::now();
    order.reaches(cluster, &ProgressPhase::Completed).await?;
    cluster.ready(node, NEW, None).await?;
    println!("{node}: a new nonce with a good catalog: {:.0?}", began.elapsed());
    Ok(())
}

fn order<'a>(node: &'a str, name: &'a str, artifact: &'a str) -> ByHand<'a> {
    ByHand { name, node, version: NEW, artifact, trial: json!({ "timeoutSeconds": TRIAL_SECONDS }) }
}

async fn it_fails(cluster: &VmCluster, node: &str, case: &Case) -> Result<()> {
    let began = Instant::now();
    let before = boots_of(&cluster.vm(node)?.serial(), 'B');
    let boot_before = cluster.ready(node, OLD, None).await?;
    let order = order(node, case.name, case.name);
    order.apply(cluster).await?;
    let phase = if case.by.is_some() { ProgressPhase::RolledBack } else { ProgressPhase::Failed };
    let status = order.reaches(cluster, &phase).await?;
    println!("{node}: {}: {phase} after {:.0?}: {:?}", case.name, began.elapsed(), status.message);
    ensure!(status.failure_reason.as_deref() == Some(case.reason.as_str()), "{}: {status:?}", case.name);
    ensure!(status.attempt == Some(1) && status.retry_count.unwrap_or(0) == 0, "{}: {status:?}", case.name);
    let tried = boots_of(&cluster.vm(node)?.serial(), 'B') - before;
    if let Some(by) = &case.by {
        let boot = cluster.ready(node, OLD, Some(&boot_before)).await?;
        let evidence = status.rolled_back.as_ref();
        ensure!(evidence.is_some_and(|evidence| evidence.by == *by), "{}: {evidence:?}", case.name);
        ensure!(
            evidence.is_some_and(|evidence| evidence.returned_boot_id == boot),
            "{}: {evidence:?}",
            case.name
        );
        ensure!(tried == 1, "{}: slot B was booted {tried} times", case.name);
    } else {
        ensure!(cluster.ready(node, OLD, None).await? == boot_before, "{}: {node} was rebooted", case.name);
        ensure!(tried == 0, "{}: slot B was booted {tried} times", case.name);
    }
    let environment = inside(cluster, node, "head -c 1024 /boot/grub/grubenv.0").await?;
    ensure!(environment.contains("ORDER=A\n"), "{}: {environment}", case.name);
    Ok(())
}
