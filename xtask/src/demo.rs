//! `cargo xtask demo`: three nodes move from v1.35.1 to v1.35.4, before your eyes and on real parts.

mod vm;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::api::{OSUpgrade, UpgradePhase};
use monok8s_sdk::slot::Slot;

use crate::controlplane::ControllerManager;
use crate::host;
use crate::kubelet::NodeSpec;
use crate::machine::{Machine, Medium};
use crate::rootfs::RootfsSpec;
use crate::testbed::Testbed;

pub use vm::run as run_vm;

const OLD: &str = "v1.35.1";
const NEW: &str = "v1.35.4";
const UPGRADE: &str = "my-upgrade-2";
const TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(250);

/// What happens to the cluster at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is taken down.
    TakeDown,
    /// It runs until Ctrl-C.
    Keep,
}

/// Runs the demo. Fails unless every node is `Completed` and the disks prove it.
pub async fn run(afterwards: Afterwards) -> Result<()> {
    let started = Instant::now();
    host::provide(&host::FIXTURES)?;
    say("a control plane: etcd, kube-apiserver, kube-controller-manager; CRDs and RBAC from `ctl create`");
    let mut testbed = Testbed::start(ControllerManager::Running).await?;
    say(&format!(
        "images {OLD} and {NEW}: ext4 from a directory tree, zstd with a block index, served over HTTP"
    ));
    for version in [OLD, NEW] {
        let artifact = testbed.publish_indexed(version, &RootfsSpec::of(version))?;
        println!(
            "  {version}  {} bytes, expands to {}  {}",
            artifact.bytes, artifact.image.bytes, artifact.digest
        );
    }
    say(&format!("three machines that run {OLD} from slot A, each with a GPT disk on {}", medium()));
    testbed.add_machine(NodeSpec::control_plane("cp-1", OLD), OLD).await?;
    testbed.add_machine(NodeSpec::worker("node-1", OLD), OLD).await?;
    testbed.add_machine(NodeSpec::worker("node-2", OLD), OLD).await?;
    testbed.start_operator().await?;
    let manifest = write_upgrade(&testbed, OLD, NEW)?;
    say(&format!("kubectl apply -f {}", manifest.display()));
    testbed.kubectl().succeed(&["apply", "-f", &manifest.to_string_lossy()]).await?;
    watch(&testbed, TIMEOUT).await?;
    say("what the nodes fetched; the rest was in the slot that they ran from");
    for line in fetched(&testbed).await? {
        println!("  {line}");
    }
    say("what is on the disks");
    for machine in testbed.machines() {
        println!("  {}", prove(&testbed, machine)?);
    }
    say(&format!("done: three nodes on {NEW} in {:.0?}", started.elapsed()));
    if afterwards == Afterwards::Keep {
        keep_running(&testbed).await;
    }
    Ok(())
}

/// Says how to get at the cluster, and waits for Ctrl-C.
async fn keep_running(testbed: &Testbed) {
    println!("export KUBECONFIG={}", testbed.control_plane().kubeconfig_path().display());
    say("running until Ctrl-C");
    std::future::pending::<()>().await;
}

fn say(step: &str) {
    println!("==> {step}");
}

fn medium() -> &'static str {
    match Medium::best() {
        Medium::Loop => "loop devices",
        Medium::File => "a plain file (loop devices need root)",
    }
}

fn write_upgrade(testbed: &Testbed, old: &str, new: &str) -> Result<PathBuf> {
    let catalog = testbed.catalog(old).trim_end().replace('\n', "\n      ");
    let text = format!(
        "apiVersion: monok8s.io/v1alpha1\nkind: OSUpgrade\nmetadata:\n  name: {UPGRADE}\nspec:\n  \
         version: {new}\n  nodeSelector: {{}}\n  catalog:\n    inline: |\n      {catalog}\n"
    );
    let path = testbed.directory().join("upgrade.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Prints the two tables whenever they change, until the upgrade has ended.
async fn watch(testbed: &Testbed, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let mut shown = String::new();
    loop {
        let tables = format!(
            "{}{}",
            testbed.kubectl().succeed(&["get", "osupgrades"]).await?,
            testbed.kubectl().succeed(&["get", "osupgradeprogresses"]).await?,
        );
        if tables != shown {
            println!("\n{tables}");
            shown = tables;
        }
        let upgrades = testbed.upgrades().await?;
        let upgrade = upgrades.get(UPGRADE).context("the upgrade is gone")?;
        match phase(upgrade) {
            Some(UpgradePhase::Completed) => return Ok(()),
            Some(UpgradePhase::Failed | UpgradePhase::Rejected) => {
                anyhow::bail!("the upgrade has failed\n{}", testbed.describe().await)
            }
            _ if Instant::now() > deadline => {
                anyhow::bail!("the upgrade did not end in {timeout:?}\n{}", testbed.describe().await)
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

/// How much each node fetched, by its own account.
async fn fetched(testbed: &Testbed) -> Result<Vec<String>> {
    let whole = testbed.artifact(NEW)?.bytes;
    let progresses = testbed.progresses().await?;
    let lines = progresses.values().map(|progress| {
        let bytes = progress.status.as_ref().and_then(|status| status.progress);
        let done = bytes.map_or(0, |bytes| bytes.bytes_done);
        format!("{}: {done} bytes, index included, of an artifact of {whole}", progress.spec.node_name)
    });
    Ok(lines.collect())
}

fn phase(upgrade: &OSUpgrade) -> Option<&UpgradePhase> {
    upgrade.status.as_ref()?.phase.as_ref()
}

/// Compares slot B with the image byte for byte, and asks the loader what it boots.
fn prove(testbed: &Testbed, machine: &Machine) -> Result<String> {
    let name = machine.name();
    let image = &testbed.artifact(NEW)?.image;
    let found = machine.slot_digest(Slot::B, image.bytes)?;
    ensure!(found == image.digest, "slot B of {name} is not the image: {found} instead of {}", image.digest);
    let old = &testbed.artifact(OLD)?.image;
    let kept = machine.slot_digest(Slot::A, old.bytes)?;
    ensure!(kept == old.digest, "slot A of {name} was touched");
    let next = machine.next_boot()?;
    ensure!(next == Some(Slot::B), "the loader of {name} boots {next:?} next, not slot B");
    let boots = machine.boots();
    ensure!(boots.len() == 2, "{name} booted {} times instead of twice: {boots:?}", boots.len());
    Ok(format!(
        "{name}: slot B is {NEW} byte for byte ({found}), slot A is untouched, the loader boots slot B"
    ))
}
