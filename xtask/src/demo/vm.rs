//! `cargo xtask demo --vm`: two machines that really start move to the next version.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Afterwards, keep_running, say, watch, write_upgrade};
use crate::cache::target_directory;
use crate::kubelet::Role;
use crate::vm::{ImageLibrary, NodeImage, VmCluster, obstacle};

const OLD: &str = "v1.35.3";
const NEW: &str = "v1.35.4";
/// Two nodes, one after the other, each with two starts under emulation.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Runs the demo. Fails unless both kubelets report the new version.
pub async fn run(afterwards: Afterwards) -> Result<()> {
    let started = Instant::now();
    if let Some(reason) = obstacle() {
        bail!("no machine can be started here: {reason}");
    }
    say("a control plane, and the agents' DaemonSet from `ctl create agent`");
    let mut cluster = VmCluster::start().await?;
    cluster.keep_logs(&target_directory().join("vm/logs"))?;
    say(&format!("images {OLD} and {NEW}: Debian with systemd, containerd, a kubelet and our programs"));
    let mut library = ImageLibrary::open().await?;
    for version in [OLD, NEW] {
        let artifact = library.artifact(&NodeImage::of(version)).await?;
        let artifact = cluster.testbed_mut().serve(version, artifact)?;
        println!("  {version}  {} bytes, expands to {}", artifact.bytes, artifact.image.bytes);
    }
    say(&format!(
        "two machines in QEMU that run {OLD} from slot A; their serial lines are in {}",
        cluster.logs().display()
    ));
    cluster.add("cp-1", Role::ControlPlane, OLD)?;
    cluster.add("node-1", Role::Worker, OLD)?;
    for name in ["cp-1", "node-1"] {
        cluster.ready(name, OLD, None).await?;
    }
    cluster.label_control_plane("cp-1").await?;
    show_nodes(&cluster).await?;
    cluster.testbed_mut().start_operator().await?;
    let manifest = write_upgrade(cluster.testbed(), OLD, NEW)?;
    say(&format!("kubectl apply -f {}", manifest.display()));
    cluster.testbed().kubectl().succeed(&["apply", "-f", &manifest.to_string_lossy()]).await?;
    watch(cluster.testbed(), TIMEOUT).await?;
    for name in ["cp-1", "node-1"] {
        cluster.ready(name, NEW, None).await?;
    }
    show_nodes(&cluster).await?;
    say(&format!("done in {:.0?}; serial lines in {}", started.elapsed(), cluster.logs().display()));
    if afterwards == Afterwards::Keep {
        keep_running(cluster.testbed()).await;
    }
    Ok(())
}

async fn show_nodes(cluster: &VmCluster) -> Result<()> {
    println!("\n$ kubectl get nodes\n{}", cluster.testbed().kubectl().succeed(&["get", "nodes"]).await?);
    Ok(())
}
