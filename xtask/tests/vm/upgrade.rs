//! The whole path on a machine that really starts: ordered by the operator, which is a pod on that machine,
//! and by hand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use monok8s_sdk::api::{OSUpgrade, ProgressPhase, UpgradePhase};
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{NodeImage, VmCluster};

use crate::images::Images;
use crate::scene::{ByHand, UPGRADE_TIMEOUT, boots_of, inside, machine, publish};
use crate::start::agent_reports;

const OLD: &str = "v1.35.3";
const NEW: &str = "v1.35.4";
const NODE: &str = "node-1";
const ENVIRONMENT: &str = "head -c 1024 /boot/grub/grubenv.0";

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_moves_a_machine_on_and_it_stays_there() -> Result<()> {
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, OLD, NODE, Role::Worker).await?;
    agent_reports(&cluster, NODE, OLD).await?;
    publish(&mut cluster, &images, NEW, &NodeImage::of(NEW)).await?;
    by_the_operator(&cluster).await?;
    is_in_slot_b(&cluster, NODE).await?;
    it_still_starts(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_made_by_hand_does_the_same_without_an_operator() -> Result<()> {
    const NODE: &str = "node-6";
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, OLD, NODE, Role::Worker).await?;
    publish(&mut cluster, &images, NEW, &NodeImage::of(NEW)).await?;
    let boot = cluster.ready(NODE, OLD, None).await?;
    let began = Instant::now();
    let order = ByHand { name: "by-hand", node: NODE, version: NEW, artifact: NEW, trial: json!({}) };
    order.apply(&cluster).await?;
    let status = order.reaches(&cluster, &ProgressPhase::Completed).await?;
    println!("{OLD} to {NEW} by hand: {:.0?}", began.elapsed());
    ensure!(status.current_version.as_deref() == Some(NEW), "{status:?}");
    cluster.ready(NODE, NEW, Some(&boot)).await?;
    is_in_slot_b(&cluster, NODE).await
}

/// Each slot was booted once, the new one is good, and the guard has nothing left to do.
async fn is_in_slot_b(cluster: &VmCluster, node: &str) -> Result<()> {
    let serial = cluster.vm(node)?.serial();
    ensure!((boots_of(&serial, 'A'), boots_of(&serial, 'B')) == (1, 1), "one boot of each slot:\n{serial}");
    let shown = inside(cluster, node, "ctl slots").await?;
    println!("{shown}");
    ensure!(is_good(&inside(cluster, node, ENVIRONMENT).await?), "{shown}");
    let stands_down = "for second in $(seq 20); do \
        grep -q StoodDown /run/monok8s/guard.json && exit; sleep 1; done; cat /run/monok8s/guard.json; exit 1";
    inside(cluster, node, stands_down).await.map(drop)
}

/// GRUB's environment says that slot B boots by itself.
fn is_good(environment: &str) -> bool {
    ["ORDER=B A\n", "B_OK=1\n", "B_TRY=0\n"].iter().all(|line| environment.contains(line))
}

async fn by_the_operator(cluster: &VmCluster) -> Result<()> {
    let testbed = cluster.testbed();
    testbed.create("controller").await?;
    let boot = cluster.ready(NODE, OLD, None).await?;
    runs(cluster, "controller", OLD).await?;
    let began = Instant::now();
    let upgrade = json!({
        "apiVersion": "monok8s.io/v1alpha1",
        "kind": "OSUpgrade",
        "metadata": { "name": "my-upgrade" },
        "spec": { "version": NEW, "nodeSelector": {}, "catalog": { "inline": testbed.catalog(OLD) } },
    });
    testbed.kubectl().succeed_with_stdin(&["apply", "-f", "-"], &upgrade.to_string()).await?;
    let upgrades: Api<OSUpgrade> = Api::all(testbed.client());
    cluster
        .wait_for("the upgrade to be Completed", UPGRADE_TIMEOUT, || async {
            let phase = upgrades.get("my-upgrade").await?.status.and_then(|status| status.phase);
            ensure!(phase != Some(UpgradePhase::Failed), "the upgrade has failed");
            Ok((phase == Some(UpgradePhase::Completed)).then_some(()))
        })
        .await?;
    println!("{OLD} to {NEW} by the operator: {:.0?}", began.elapsed());
    cluster.ready(NODE, NEW, Some(&boot)).await?;
    let shown = cluster.testbed().kubectl().succeed(&["get", "nodes"]).await?;
    ensure!(shown.contains(NEW), "{shown}");
    let progresses = cluster.testbed().progresses().await?;
    let mine = progresses.values().find(|progress| progress.spec.source_ref.name == "my-upgrade");
    let phase = mine.and_then(|progress| progress.status.as_ref()?.phase.clone());
    ensure!(phase == Some(ProgressPhase::Completed), "{phase:?}");
    // The cordon went with the upgrade.
    let node = Api::<Node>::all(cluster.testbed().client()).get(NODE).await?;
    ensure!(node.spec.and_then(|spec| spec.unschedulable) != Some(true), "{NODE} is still cordoned");
    runs(cluster, "node-agent", NEW).await?;
    runs(cluster, "controller", NEW).await
}

/// A program's pod is ready, from the image that the booted version ships: the only place where there is
/// one, as nothing is ever pulled.
async fn runs(cluster: &VmCluster, program: &str, version: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.testbed().client(), "mono-system");
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/name={program}"));
    cluster
        .wait_for(&format!("{program} to be ready under {version}"), Duration::from_secs(300), || async {
            let all = pods.list(&selector).await?;
            let ready = all.iter().any(|pod| {
                let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
                conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            });
            Ok(ready.then_some(()))
        })
        .await
}

async fn it_still_starts(cluster: &mut VmCluster) -> Result<()> {
    for round in 1..=5 {
        let began = Instant::now();
        let before = inside(cluster, NODE, "cat /proc/sys/kernel/random/boot_id").await?;
        cluster.vm(NODE)?.guest(Duration::from_secs(60)).await?.start("systemctl reboot").await?;
        is_back(cluster, &before).await.with_context(|| format!("reboot {round}"))?;
        println!("reboot {round}: marked good after {:.0?}", began.elapsed());
    }
    // The power goes while it goes down for another one.
    let before = inside(cluster, NODE, "cat /proc/sys/kernel/random/boot_id").await?;
    cluster.vm(NODE)?.guest(Duration::from_secs(60)).await?.start("systemctl reboot").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.vm_mut(NODE)?.power_cut()?;
    cluster.vm_mut(NODE)?.power_on()?;
    is_back(cluster, &before).await.context("after the power cut")?;
    cluster.ready(NODE, NEW, None).await?;
    Ok(())
}

/// Waits until the machine has booted again, and the guard has marked the slot good that the upgrade went
/// to.
async fn is_back(cluster: &VmCluster, before: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let seen = inside(cluster, NODE, "cat /proc/sys/kernel/random/boot_id").await;
        if let Ok(boot) = &seen
            && boot != before
        {
            let environment = inside(cluster, NODE, ENVIRONMENT).await?;
            if is_good(&environment) {
                return Ok(());
            }
        }
        ensure!(Instant::now() < deadline, "{NODE} is not back: {seen:?}\n{}", cluster.vm(NODE)?.serial());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
