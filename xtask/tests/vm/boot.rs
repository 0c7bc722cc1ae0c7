//! A machine comes up through GRUB, and the agent reports from inside.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use monok8s_sdk::api::OSNode;
use monok8s_sdk::slot::Slot;
use xtask::kubelet::Role;
use xtask::vm::{NodeImage, VmCluster};

const VERSION: &str = "v1.35.3";
const NODE: &str = "node-1";
const PATIENCE: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_starts_through_grub_and_its_agent_reports() -> Result<()> {
    let Some(mut library) = crate::library().await? else { return Ok(()) };
    let mut cluster = VmCluster::start().await?;
    cluster.create_agents(&[]).await?;
    let began = Instant::now();
    let artifact = library.artifact(&NodeImage::of(VERSION)).await?;
    cluster.testbed_mut().serve(VERSION, artifact)?;
    println!("image: {:.1?}", began.elapsed());
    let began = Instant::now();
    cluster.add(NODE, Role::Worker, VERSION)?;
    cluster.ready(NODE, VERSION, None).await?;
    println!("power-on to Ready: {:.1?}", began.elapsed());
    // GRUB says so before there is a kernel.
    let serial = cluster.vm(NODE)?.serial();
    ensure!(serial.contains("Booting slot A in (hd0,gpt3)."), "{serial}");
    the_pod_runs(&cluster).await?;
    println!("power-on to the agent's pod: {:.1?}", began.elapsed());
    the_agent_reports(&cluster).await?;
    // Nothing leaves for any place but the machine that it runs on.
    let mut guest = cluster.vm(NODE)?.guest(PATIENCE).await?;
    let routes = guest.succeed("ip route", PATIENCE).await?;
    ensure!(!routes.contains("default"), "{routes}");
    Ok(())
}

async fn the_pod_runs(cluster: &VmCluster) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.testbed().client(), "mono-system");
    cluster
        .wait_for("the agent's pod to run", PATIENCE, || async {
            let all = pods.list(&ListParams::default()).await?;
            let running = all.iter().any(|pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                phase == Some("Running")
            });
            Ok(running.then_some(()))
        })
        .await
}

async fn the_agent_reports(cluster: &VmCluster) -> Result<()> {
    let nodes: Api<OSNode> = Api::all(cluster.testbed().client());
    // The operator, which is not here, creates it.
    let object = serde_json::json!({
        "apiVersion": "monok8s.io/v1alpha1", "kind": "OSNode", "metadata": { "name": NODE },
    });
    let arguments = ["apply", "-f", "-"];
    cluster.testbed().kubectl().succeed_with_stdin(&arguments, &object.to_string()).await?;
    let status = cluster
        .wait_for("the agent's report", PATIENCE, || async {
            let status = nodes.get(NODE).await?.status.unwrap_or_default();
            Ok(status.booted_slot.is_some().then_some(status))
        })
        .await?;
    ensure!(status.booted_slot == Some(Slot::A), "{status:?}");
    ensure!(status.booted_version.as_deref() == Some(VERSION), "{status:?}");
    ensure!(status.loader.as_ref().is_some_and(|loader| loader.backend == "grub"), "{status:?}");
    ensure!(status.problem.as_deref().is_none_or(str::is_empty), "{status:?}");
    Ok(())
}
