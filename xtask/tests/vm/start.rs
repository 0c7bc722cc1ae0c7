//! A machine came up through GRUB, and the agent reports from inside.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::Api;
use monok8s_sdk::api::OSNode;
use monok8s_sdk::slot::Slot;
use xtask::vm::VmCluster;

use crate::scene::{boots_of, inside};

const PATIENCE: Duration = Duration::from_secs(300);

/// Fails unless a machine that is Ready was started once, from slot A, with this version.
pub(crate) async fn agent_reports(cluster: &VmCluster, node: &str, version: &str) -> Result<()> {
    // GRUB says so before there is a kernel.
    let serial = cluster.vm(node)?.serial();
    ensure!((boots_of(&serial, 'A'), boots_of(&serial, 'B')) == (1, 0), "{serial}");
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
