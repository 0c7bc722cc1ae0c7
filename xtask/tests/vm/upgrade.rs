//! The whole path on a machine that really starts, ordered by the operator, which is a pod on that machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use monok8s_sdk::api::{OSNode, OSUpgrade, ProgressPhase, UpgradePhase};
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{NodeImage, VmCluster};

use crate::images::Images;
use crate::scene::{
    NEW, OLD, UPGRADE_TIMEOUT, boot_id, boots, environment, inside, is_good, is_in_slot_b, machine, publish,
    ready_now,
};

const NODE: &str = "node-1";
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_moves_a_machine_on_and_it_stays_there() -> Result<()> {
    let Some(images) = Images::open().await? else { return Ok(()) };
    let mut cluster = machine(&images, &NodeImage::of(OLD), NODE, Role::Worker).await?;
    agent_reports(&cluster, NODE, OLD).await?;
    publish(&mut cluster, &images, NEW, &NodeImage::of(NEW)).await?;
    by_the_operator(&cluster).await?;
    is_in_slot_b(&cluster, NODE, (1, 0)).await?;
    it_still_starts(&mut cluster).await
}

/// Fails unless a machine that is Ready was started once, from slot A, with this version.
async fn agent_reports(cluster: &VmCluster, node: &str, version: &str) -> Result<()> {
    // GRUB says so before there is a kernel.
    ensure!(boots(cluster, node)? == (1, 0), "{}", cluster.vm(node)?.serial());
    // Nothing leaves for any place but the machine that it runs on.
    let routes = inside(cluster, node, "ip route").await?;
    ensure!(!routes.contains("default"), "{routes}");
    // The operator, which is not here, creates it.
    let object = serde_json::json!({
        "apiVersion": "monok8s.io/v1alpha1", "kind": "OSNode", "metadata": { "name": node },
    });
    let arguments = ["apply", "-f", "-"];
    cluster.testbed().kubectl().succeed_with_stdin(&arguments, &object.to_string()).await?;
    let nodes: Api<OSNode> = Api::all(cluster.testbed().client());
    let status = cluster
        .wait_for("the agent's report", PATIENCE, || async {
            let status = nodes.get(node).await?.status.unwrap_or_default();
            Ok(status.booted_slot.is_some().then_some(status))
        })
        .await?;
    ensure!(status.booted_slot == Some(Slot::A), "{status:?}");
    ensure!(status.booted_version.as_deref() == Some(version), "{status:?}");
    ensure!(status.loader.as_ref().is_some_and(|loader| loader.backend == "grub"), "{status:?}");
    ensure!(status.problem.as_deref().is_none_or(str::is_empty), "{status:?}");
    Ok(())
}

async fn by_the_operator(cluster: &VmCluster) -> Result<()> {
    let testbed = cluster.testbed();
    testbed.create("controller").await?;
    let boot = cluster.ready(NODE, OLD, None).await?;
    let agent = runs(cluster, "node-agent", None).await?;
    let controller = runs(cluster, "controller", None).await?;
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
    let progresses = cluster.testbed().progresses().await?;
    let mine = progresses.values().find(|progress| progress.spec.source_ref.name == "my-upgrade");
    let phase = mine.and_then(|progress| progress.status.as_ref()?.phase.clone());
    ensure!(phase == Some(ProgressPhase::Completed), "{phase:?}");
    // The cordon went with the upgrade.
    let node = Api::<Node>::all(cluster.testbed().client()).get(NODE).await?;
    ensure!(node.spec.and_then(|spec| spec.unschedulable) != Some(true), "{NODE} is still cordoned");
    runs(cluster, "node-agent", Some(&agent)).await?;
    runs(cluster, "controller", Some(&controller)).await.map(drop)
}

/// Waits until a program's pod is ready, in another container than `before`, and returns the container. Its
/// image is in the booted slot: the only place where there is one, as nothing is ever pulled.
async fn runs(cluster: &VmCluster, program: &str, before: Option<&str>) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.testbed().client(), "mono-system");
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/name={program}"));
    cluster
        .wait_for(&format!("{program} to be ready, and not in {before:?}"), PATIENCE, || async {
            let all = pods.list(&selector).await?;
            let mut containers = all
                .iter()
                .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref())
                .flatten()
                .filter(|container| container.ready)
                .filter_map(|container| container.container_id.clone());
            Ok(containers.find(|container| Some(container.as_str()) != before))
        })
        .await
}

async fn it_still_starts(cluster: &mut VmCluster) -> Result<()> {
    for round in 1..=5 {
        let began = Instant::now();
        let before = Seen::now(cluster).await?;
        cluster.vm(NODE)?.guest(Duration::from_secs(60)).await?.start("systemctl reboot").await?;
        let after = before.is_followed(cluster).await.with_context(|| format!("reboot {round}"))?;
        println!("reboot {round}: marked good after {:.0?}", began.elapsed());
        let boots = (after.boots.0 - before.boots.0, after.boots.1 - before.boots.1);
        ensure!(boots == (0, 1), "reboot {round}: {boots:?} boots of slots A and B");
    }
    // The power goes while it goes down for another one.
    let before = Seen::now(cluster).await?;
    cluster.vm(NODE)?.guest(Duration::from_secs(60)).await?.start("systemctl reboot").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.vm_mut(NODE)?.power_cut()?;
    cluster.vm_mut(NODE)?.power_on()?;
    let after = before.is_followed(cluster).await.context("after the power cut")?;
    ensure!(after.boots.0 == before.boots.0, "slot A was booted after the power cut");
    ready_now(cluster, NODE, NEW).await
}

/// A boot, and how often each slot had been booted by then.
struct Seen {
    boot: String,
    boots: (usize, usize),
}

impl Seen {
    async fn now(cluster: &VmCluster) -> Result<Self> {
        Ok(Self { boot: boot_id(cluster, NODE).await?, boots: boots(cluster, NODE)? })
    }

    /// Waits until the machine has booted again, and the guard has marked the slot good that the upgrade
    /// went to.
    async fn is_followed(&self, cluster: &VmCluster) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = Self::now(cluster).await;
            if let Ok(seen) = &seen
                && seen.boot != self.boot
                && is_good(&environment(cluster, NODE).await?)
            {
                return Self::now(cluster).await;
            }
            let seen = seen.map(|seen| seen.boot);
            ensure!(
                Instant::now() < deadline,
                "{NODE} is not back: {seen:?}\n{}",
                cluster.vm(NODE)?.serial()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
