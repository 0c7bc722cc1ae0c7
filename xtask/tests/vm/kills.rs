//! The power goes at random moments of an upgrade: the machine always starts again, and gets there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::Api;
use monok8s_sdk::api::{OSUpgradeProgress, ProgressPhase};
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{NodeImage, VmCluster};

use crate::scene::{ByHand, inside, machines, publish};

const VERSIONS: [&str; 2] = ["v1.35.3", "v1.35.4"];
const NODE: &str = "node-1";
/// `cargo xtask test --vm --kills N` sets it.
const KILLS: &str = "MONOK8S_VM_KILLS";
/// The same number gives the same moments; the test says which one it took.
const SEED: &str = "MONOK8S_VM_SEED";
/// A cut comes at most so long after the order or the last start. An upgrade takes about as long.
const LONGEST_SECONDS: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_loses_power_at_random_always_gets_there() -> Result<()> {
    let Some(mut library) = crate::library().await? else { return Ok(()) };
    let kills = number(KILLS)?.unwrap_or(20);
    let mut random = Random(number(SEED)?.unwrap_or_else(now).max(1));
    println!("{kills} cuts, {SEED}={}", random.0);
    let mut cluster = machines(&mut library, VERSIONS[0], &[(NODE, Role::Worker)]).await?;
    publish(&mut cluster, &mut library, VERSIONS[1], &NodeImage::of(VERSIONS[1])).await?;
    let mut left = kills;
    let mut round = 0;
    while left > 0 {
        round += 1;
        let name = format!("kills-{round}");
        let version = VERSIONS[round % 2];
        let used =
            upgrade(&mut cluster, &name, version, left, &mut random).await.with_context(|| name.clone())?;
        left -= used;
    }
    println!("{kills} cuts in {round} upgrades");
    Ok(())
}

/// Carries one upgrade out, however often the power goes. Returns how often it went.
async fn upgrade(
    cluster: &mut VmCluster,
    name: &str,
    version: &str,
    most: u64,
    random: &mut Random,
) -> Result<u64> {
    let order =
        ByHand { name, node: NODE, version, artifact: version, trial: json!({ "timeoutSeconds": 300 }) };
    order.apply(cluster).await?;
    let allow = r#"{"spec":{"downgradePolicy":"Allow"}}"#;
    let arguments = ["patch", "osupgrade", name, "--type=merge", "-p", allow];
    cluster.testbed().kubectl().succeed(&arguments).await?;
    let objects: Api<OSUpgradeProgress> = Api::all(cluster.testbed().client());
    let mut cuts = 0;
    let mut nonces = 0;
    loop {
        let until = Instant::now() + Duration::from_millis(random.below(LONGEST_SECONDS * 1000));
        let phase = loop {
            let status = objects.get(name).await?.status.unwrap_or_default();
            match status.phase {
                Some(
                    phase @ (ProgressPhase::Completed | ProgressPhase::RolledBack | ProgressPhase::Failed),
                ) => break Some(phase),
                phase if cuts < most && Instant::now() > until => {
                    println!("{name}: cut at {phase:?}");
                    break None;
                }
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        match phase {
            Some(ProgressPhase::Completed) => break,
            // A trial that lost its power went back, as it should. The image is good: once more.
            Some(ProgressPhase::RolledBack) => {
                nonces += 1;
                let nonce = json!({ "spec": { "retryNonce": format!("{name}-{nonces}") } }).to_string();
                let arguments = ["patch", "osupgradeprogress", name, "--type=merge", "-p", &nonce];
                cluster.testbed().kubectl().succeed(&arguments).await?;
                moves_on(&objects, name).await?;
            }
            Some(phase) => ensure!(false, "{name} is {phase}:\n{}", cluster.testbed().describe().await),
            None => {
                cuts += 1;
                cluster.vm_mut(NODE)?.power_cut()?;
                cluster.vm_mut(NODE)?.power_on()?;
                // Whatever was cut, something boots.
                inside(cluster, NODE, "true").await.context("after a cut")?;
            }
        }
    }
    cluster.ready(NODE, version, None).await?;
    println!("{name}: at {version} after {cuts} cuts and {nonces} retries");

    Ok(cuts)
}

/// Waits until the agent has taken the nonce.
async fn moves_on(objects: &Api<OSUpgradeProgress>, name: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while objects.get(name).await?.status.and_then(|status| status.phase) == Some(ProgressPhase::RolledBack) {
        ensure!(Instant::now() < deadline, "{name} does not take its nonce");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

fn number(variable: &str) -> Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{variable}={text} is no number"))?)),
        Err(_) => Ok(None),
    }
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs()
}

/// xorshift64; Marsaglia, "Xorshift RNGs", 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
