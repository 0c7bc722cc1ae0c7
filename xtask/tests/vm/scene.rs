//! What the tests have in common: a machine, orders made by hand, and what is looked at.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube::Api;
use monok8s_sdk::api::{OSUpgradeProgress, OSUpgradeProgressStatus, ProgressPhase};
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{NodeImage, VmCluster};

use crate::images::Images;

/// What machines run before they are upgraded.
pub(crate) const OLD: &str = "v1.35.3";
/// What they are upgraded to.
pub(crate) const NEW: &str = "v1.35.4";
/// An upgrade under emulation: write, reboot, confirm.
pub(crate) const UPGRADE_TIMEOUT: Duration = Duration::from_secs(900);
/// Seconds of a trial that the guard ends: longer than it takes to start the guard.
pub(crate) const UNTIL_THE_GUARD: u32 = 45;
/// A command in a machine.
const COMMAND: Duration = Duration::from_secs(60);

/// An image for machines to which no operator comes.
pub(crate) fn hollow_image(version: &str) -> NodeImage {
    NodeImage::of(version).without_controller()
}

/// A control plane with the agents' `DaemonSet`, and a machine that runs this image of [`OLD`] and is Ready.
pub(crate) async fn machine(images: &Images, image: &NodeImage, node: &str, role: Role) -> Result<VmCluster> {
    let mut cluster = VmCluster::start().await?;
    publish(&mut cluster, images, OLD, image).await?;
    let began = Instant::now();
    cluster.add(node, role, OLD)?;
    cluster.ready(node, OLD, None).await?;
    println!("{node}: power-on to Ready: {:.0?}", began.elapsed());
    if role == Role::ControlPlane {
        cluster.label_control_plane(node).await?;
    }
    Ok(cluster)
}

/// Serves an image under a name.
pub(crate) async fn publish(
    cluster: &mut VmCluster,
    images: &Images,
    name: &str,
    image: &NodeImage,
) -> Result<()> {
    let artifact = images.artifact(image).await?;
    cluster.testbed_mut().serve(name, artifact).map(drop)
}

/// An order made by hand: an upgrade for one node to `version`, with the image published as `artifact`.
pub(crate) struct ByHand<'a> {
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    pub(crate) version: &'a str,
    pub(crate) artifact: &'a str,
    /// `spec.rollout.trial`.
    pub(crate) trial: serde_json::Value,
}

impl ByHand<'_> {
    /// Applies the upgrade, or applies it again as it now is, and the node's object.
    pub(crate) async fn apply(&self, cluster: &VmCluster) -> Result<()> {
        let testbed = cluster.testbed();
        let entry = testbed.catalog_entry(self.version, self.artifact, testbed.artifact(self.artifact)?);
        let upgrade = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgrade",
            "metadata": { "name": self.name },
            "spec": {
                "version": self.version,
                "downgradePolicy": "Allow",
                "nodeSelector": { "kubernetes.io/hostname": self.node },
                "catalog": { "inline": format!("images:\n{entry}") },
                "rollout": { "trial": self.trial },
            },
        });
        let progress = json!({
            "apiVersion": "monok8s.io/v1alpha1",
            "kind": "OSUpgradeProgress",
            "metadata": { "name": self.name },
            "spec": { "sourceRef": { "name": self.name }, "nodeName": self.node },
        });
        for object in [upgrade, progress] {
            let arguments = ["apply", "-f", "-"];
            testbed.kubectl().succeed_with_stdin(&arguments, &object.to_string()).await?;
        }
        Ok(())
    }

    /// Waits until the node's object is in a phase; fails at once if it ends in another one.
    pub(crate) async fn reaches(
        &self,
        cluster: &VmCluster,
        phase: &ProgressPhase,
    ) -> Result<OSUpgradeProgressStatus> {
        let objects: Api<OSUpgradeProgress> = Api::all(cluster.testbed().client());
        let ends = [ProgressPhase::Completed, ProgressPhase::Failed, ProgressPhase::RolledBack];
        let status = cluster
            .wait_for(&format!("{} to be {phase}", self.name), UPGRADE_TIMEOUT, || async {
                let status = objects.get(self.name).await?.status.unwrap_or_default();
                let there = status.phase.as_ref().is_some_and(|now| now == phase || ends.contains(now));
                Ok(there.then_some(status))
            })
            .await?;
        let described = format!("{:?} {:?}", status.failure_reason, status.message);
        ensure!(
            status.phase.as_ref() == Some(phase),
            "{} is {:?} instead of {phase}: {described}",
            self.name,
            status.phase
        );
        Ok(status)
    }
}

/// Sets a new `retryNonce` on a node's object, and waits until the agent has taken it.
pub(crate) async fn retry(cluster: &VmCluster, name: &str, nonce: &str) -> Result<()> {
    let patch = json!({ "spec": { "retryNonce": nonce } }).to_string();
    let arguments = ["patch", "osupgradeprogress", name, "--type=merge", "-p", &patch];
    cluster.testbed().kubectl().succeed(&arguments).await?;
    let objects: Api<OSUpgradeProgress> = Api::all(cluster.testbed().client());
    cluster
        .wait_for(&format!("{name} to take its nonce"), Duration::from_secs(120), || async {
            Ok((!objects.get(name).await?.phase().is_final()).then_some(()))
        })
        .await
}

/// Runs a command in a machine.
pub(crate) async fn inside(cluster: &VmCluster, node: &str, command: &str) -> Result<String> {
    let mut guest = cluster.vm(node)?.guest(Duration::from_secs(300)).await?;
    guest.succeed(command, COMMAND).await
}

/// The boot that a machine is in.
pub(crate) async fn boot_id(cluster: &VmCluster, node: &str) -> Result<String> {
    let said = inside(cluster, node, "cat /proc/sys/kernel/random/boot_id").await?;
    Ok(said.trim().to_owned())
}

/// Waits until a Node is Ready with `version` in the boot that its machine is in.
pub(crate) async fn ready_now(cluster: &VmCluster, node: &str, version: &str) -> Result<()> {
    let boot = boot_id(cluster, node).await?;
    let deadline = Instant::now() + UPGRADE_TIMEOUT;
    while cluster.ready(node, version, None).await? != boot {
        ensure!(Instant::now() < deadline, "{node} is Ready, but not in boot {boot}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// GRUB's environment, of which both copies say the same.
pub(crate) async fn environment(cluster: &VmCluster, node: &str) -> Result<String> {
    let read =
        "for copy in 0 1; do head -c 1024 /boot/grub/grubenv.$copy | grep -v MONOK8S_REV; echo ---; done";
    let both = inside(cluster, node, read).await?;
    let (first, rest) = both.split_once("---\n").unwrap_or_default();
    ensure!(rest.strip_suffix("---\n") == Some(first), "the copies differ:\n{both}");
    Ok(first.to_owned())
}

/// Fails unless a slot holds the image that was published under `artifact`, bit for bit.
pub(crate) async fn slot_holds(cluster: &VmCluster, node: &str, slot: Slot, artifact: &str) -> Result<()> {
    let image = cluster.testbed().artifact(artifact)?.image.digest;
    let found = cluster.vm(node)?.disk().slot_digest(slot)?;
    ensure!(found == image, "slot {slot} of {node} is {found} instead of {artifact}, {image}");
    Ok(())
}

/// How often GRUB said that it boots a slot.
pub(crate) fn boots_of(serial: &str, slot: char) -> usize {
    serial.matches(&format!("Booting slot {slot} ")).count()
}

/// How often GRUB said so of slots A and B.
pub(crate) fn boots(cluster: &VmCluster, node: &str) -> Result<(usize, usize)> {
    let serial = cluster.vm(node)?.serial();
    Ok((boots_of(&serial, 'A'), boots_of(&serial, 'B')))
}

/// Fails unless, since so many boots of each slot, B was booted once and A not at all. Each holds its image, the
/// new one is good, and the guard has nothing left to do.
pub(crate) async fn is_in_slot_b(cluster: &VmCluster, node: &str, before: (usize, usize)) -> Result<()> {
    let boots = boots(cluster, node)?;
    ensure!(boots == (before.0, before.1 + 1), "{boots:?} boots after {before:?}");
    let shown = inside(cluster, node, "ctl slots").await?;
    println!("{shown}");
    ensure!(is_good(&environment(cluster, node).await?), "{shown}");
    slot_holds(cluster, node, Slot::A, OLD).await?;
    slot_holds(cluster, node, Slot::B, NEW).await?;
    let stands_down = "for second in $(seq 20); do \
        grep -q StoodDown /run/monok8s/guard.json && exit; sleep 1; done; cat /run/monok8s/guard.json; exit 1";
    inside(cluster, node, stands_down).await.map(drop)
}

/// GRUB's environment says that slot B boots by itself.
pub(crate) fn is_good(environment: &str) -> bool {
    ["ORDER=B A\n", "B_OK=1\n", "B_TRY=0\n"].iter().all(|line| environment.contains(line))
}
