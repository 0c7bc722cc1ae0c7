//! The API server is away while a trial runs: what `trial.apiUnavailable` says happens, and the truth
//! arrives when the server is back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use monok8s_sdk::api::{FailureReason, ProgressPhase, RolledBackBy};
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::VmCluster;

use crate::images::Images;
use crate::scene::{
    ByHand, NEW, OLD, boots_of, environment, hollow_image, inside, machine, publish, ready_now,
};

const NODE: &str = "node-3";
/// Longer than an emulated machine takes to a healthy kubelet.
const TRIAL_SECONDS: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn with_the_api_server_away_the_policy_decides_and_the_truth_arrives_later() -> Result<()> {
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, &hollow_image(OLD), NODE, Role::Worker).await?;
    publish(&mut cluster, &images, NEW, &hollow_image(NEW)).await?;
    it_goes_back(&mut cluster).await?;
    it_is_kept(&mut cluster).await
}

/// Away from the reboot on: no pod starts without an API server, the agent neither, so that it is the
/// guard that judges.
async fn it_goes_back(cluster: &mut VmCluster) -> Result<()> {
    let began = Instant::now();
    let trial = json!({ "timeoutSeconds": TRIAL_SECONDS });
    let order = ByHand { name: "goes-back", node: NODE, version: NEW, artifact: NEW, trial };
    order.apply(cluster).await?;
    order.reaches(cluster, &ProgressPhase::Rebooting).await?;
    cluster.testbed_mut().control_plane_mut().kill_apiserver()?;
    until(cluster, "slot A is booted again", |serial| {
        boots_of(serial, 'B') == 1 && boots_of(serial, 'A') == 2
    })
    .await?;
    cluster.testbed_mut().control_plane_mut().start_apiserver().await?;
    let status = order.reaches(cluster, &ProgressPhase::RolledBack).await?;
    println!(
        "went back, and said so: {:.0?}: {:?} {:?}",
        began.elapsed(),
        status.failure_reason,
        status.message
    );
    ensure!(status.failure_reason.as_deref() == Some(FailureReason::ApiUnavailable.as_str()), "{status:?}");
    ensure!(
        status.rolled_back.as_ref().is_some_and(|evidence| evidence.by == RolledBackBy::Guard),
        "{status:?}"
    );
    ready_now(cluster, NODE, OLD).await
}

/// The same with the other policy: the guard finds the node well, and keeps it. That these bytes are tried
/// again at all shows that going back has quarantined nothing.
async fn it_is_kept(cluster: &mut VmCluster) -> Result<()> {
    let began = Instant::now();
    let trial = json!({ "timeoutSeconds": TRIAL_SECONDS, "apiUnavailable": "ConfirmLocally" });
    let order = ByHand { name: "is-kept", node: NODE, version: NEW, artifact: NEW, trial };
    order.apply(cluster).await?;
    order.reaches(cluster, &ProgressPhase::Rebooting).await?;
    cluster.testbed_mut().control_plane_mut().kill_apiserver()?;
    confirmed(cluster).await?;
    cluster.testbed_mut().control_plane_mut().start_apiserver().await?;
    order.reaches(cluster, &ProgressPhase::Completed).await?;
    println!("was kept, and said so: {:.0?}", began.elapsed());
    ready_now(cluster, NODE, NEW).await
}

async fn until(cluster: &VmCluster, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let serial = cluster.vm(NODE)?.serial();
        if holds(&serial) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "waited in vain until {what}:\n{serial}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The loader was told to keep slot B: it is good, and no trial any more. Until then the watchdog was armed.
async fn confirmed(cluster: &VmCluster) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut watched = false;
    loop {
        let state = "cat /sys/class/watchdog/watchdog0/state";
        let watchdog = inside(cluster, NODE, state).await.unwrap_or_default();
        let environment = environment(cluster, NODE).await.unwrap_or_default();
        let on_trial = environment.contains("MONOK8S_TRIAL=B:");
        watched |= on_trial && watchdog.trim() == "active";
        if environment.contains("B_OK=1") && !on_trial {
            ensure!(watched, "nothing had armed the watchdog");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "slot B was not confirmed: {environment}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
