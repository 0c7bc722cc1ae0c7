//! The power goes at random moments of an upgrade: the machine always starts again, and gets there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kube::Api;
use monok8s_sdk::api::{OSUpgradeProgress, ProgressPhase};
use serde_json::json;
use xtask::kubelet::Role;
use xtask::vm::{Defect, VmCluster};

use crate::images::Images;
use crate::scene::{
    ByHand, NEW, OLD, UNTIL_THE_GUARD, UPGRADE_TIMEOUT, boots_of, hollow_image, inside, machine, publish,
    ready_now, retry,
};

const VERSIONS: [&str; 2] = [OLD, NEW];
/// The older one, with a kubelet that never starts.
const BAD: &str = "bad";
/// `cargo xtask test --vm --kills N` sets it.
const KILLS: &str = "MONOK8S_VM_KILLS";
/// The same number draws the same moments; the test says which one it took.
const SEED: &str = "MONOK8S_VM_SEED";
/// Longer than an emulated machine takes to confirm a trial, whatever else goes on.
const TRIAL_SECONDS: u32 = 300;
const POLL: Duration = Duration::from_millis(500);

/// What a cut comes after.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The last power-on: the loader, the kernel, the guard.
    PowerOn,
    /// The agent's start: the download, the write, the read-back, the loader's state.
    Agent,
    /// The agent's word that it reboots: the loader's state, the way down.
    Reboot,
    /// The loader's word that it boots the new slot.
    Trial,
    /// The agent's word that it judges the trial.
    Confirming,
}

/// A cut comes at a random moment within so many seconds of one of these.
const MOMENTS: [(Moment, u64); 6] = [
    (Moment::PowerOn, 30),
    (Moment::Agent, 20),
    (Moment::Agent, 40),
    (Moment::Reboot, 4),
    (Moment::Trial, 40),
    (Moment::Confirming, 4),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_loses_power_at_random_always_gets_there() -> Result<()> {
    lose_power("node-4", number(KILLS)?.unwrap_or(20).div_ceil(2)).await
}

/// The other half, on a machine of its own, at the same time where there is a processor for it.
#[tokio::test(flavor = "multi_thread")]
async fn another_machine_that_loses_power_at_random_always_gets_there() -> Result<()> {
    lose_power("node-5", number(KILLS)?.unwrap_or(20) / 2).await
}

async fn lose_power(node: &str, kills: u64) -> Result<()> {
    ensure!(kills > 0, "{KILLS} must be 2 or more: each of two machines loses its power at least once");
    let Some(images) = Images::open().await? else { return Ok(()) };
    let seed = number(SEED)?.unwrap_or_else(now);
    println!("{node}: {kills} cuts, {SEED}={seed}");
    let cluster = machine(&images, &hollow_image(VERSIONS[0]), node, Role::Worker).await?;
    // Half of the cuts are kept for the image that cannot be confirmed, and what comes after it.
    let (random, spared) = (Random::new(seed, node), kills / 2);
    let mut subject = Subject { cluster, node, random, left: kills, spared };
    publish(&mut subject.cluster, &images, VERSIONS[1], &hollow_image(VERSIONS[1])).await?;
    let bad = hollow_image(VERSIONS[0]).with(Defect::KubeletNeverStarts);
    publish(&mut subject.cluster, &images, BAD, &bad).await?;
    let mut round = 0;
    while subject.left > 0 {
        round += 1;
        let number = round % 2;
        subject.upgrade(&format!("{node}-{round}"), VERSIONS[number], VERSIONS[number], Ends::There).await?;
        subject.spared = 0;
        // An image that failed on a node is not taken a second time.
        if round == 1 {
            subject.upgrade(&format!("{node}-bad"), VERSIONS[0], BAD, Ends::Back).await?;
        }
    }
    println!("{node}: {kills} cuts in {round} upgrades and one that goes back");
    Ok(())
}

/// Where an upgrade ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// On the new version, if need be after retries.
    There,
    /// On the old one: the new one cannot be confirmed.
    Back,
}

/// A machine that loses power.
struct Subject<'a> {
    cluster: VmCluster,
    node: &'a str,
    random: Random,
    /// How often it will still lose it.
    left: u64,
    /// So many of these times not in the upgrade under way.
    spared: u64,
}

impl Subject<'_> {
    /// Carries one upgrade out, however often the power goes.
    async fn upgrade(&mut self, name: &str, version: &str, artifact: &str, ends: Ends) -> Result<()> {
        let node = self.node;
        let before = self.booted()?;
        let seconds = if ends == Ends::There { TRIAL_SECONDS } else { UNTIL_THE_GUARD };
        let trial = json!({ "timeoutSeconds": seconds });
        ByHand { name, node, version, artifact, trial }.apply(&self.cluster).await?;
        let (mut nonces, left) = (0, self.left);
        loop {
            let left = self.left;
            let tried = boots_of(&self.serial()?, other(before));
            let phase =
                self.loses_power_until_it_ends(name, other(before)).await.with_context(|| name.to_owned())?;
            let tried = boots_of(&self.serial()?, other(before)) - tried;
            match (phase, ends) {
                (ProgressPhase::Completed, Ends::There) => break,
                (ProgressPhase::RolledBack, Ends::Back) => {}
                // A trial that lost its power went back, as it should; one that did not has no reason to.
                (ProgressPhase::RolledBack, Ends::There) if self.left < left => {}
                (phase, _) => bail!("{name} is {phase}:\n{}", self.cluster.testbed().describe().await),
            }
            ensure!(tried <= 1, "{name}: {tried} boots of one trial");
            if ends == Ends::Back {
                break;
            }
            // The image is good: once more.
            nonces += 1;
            retry(&self.cluster, name, &format!("{name}-{nonces}")).await?;
        }
        let expected = if ends == Ends::There { other(before) } else { before };
        let ended = self.booted()?;
        ensure!(ended == expected, "{name}: ended in slot {ended} instead of {expected}");
        let expected = if ends == Ends::There { version } else { other_version(version) };
        ready_now(&self.cluster, node, expected).await?;
        println!("{name}: {} cuts, {nonces} retries, ends with {expected}", left - self.left);
        Ok(())
    }

    /// Takes the power away at random moments, as long as there are some left.
    async fn loses_power_until_it_ends(&mut self, name: &str, target: char) -> Result<ProgressPhase> {
        let objects: Api<OSUpgradeProgress> = Api::all(self.cluster.testbed().client());
        loop {
            let (moment, longest) = MOMENTS[self.random.index(MOMENTS.len())];
            let wait = Duration::from_millis(self.random.below(longest * 1000));
            let boots = boots_of(&self.serial()?, target);
            let deadline = Instant::now() + UPGRADE_TIMEOUT;
            let mut began = None;
            let phase = loop {
                let phase = objects.get(name).await?.phase();
                if phase.is_final() {
                    return Ok(phase);
                }
                if began.is_none() && self.has_come(moment, &phase, target, boots).await? {
                    began = Some(Instant::now());
                }
                if self.left > self.spared && began.is_some_and(|began| began.elapsed() >= wait) {
                    break phase;
                }
                ensure!(Instant::now() < deadline, "still {phase}:\n{}", self.serial()?);
                tokio::time::sleep(POLL).await;
            };
            println!("{name}: cut {wait:.1?} after {moment:?}, at {phase}");
            self.left -= 1;
            self.cluster.vm_mut(self.node)?.power_cut()?;
            self.cluster.vm_mut(self.node)?.power_on()?;
            // Whatever was cut, something boots.
            inside(&self.cluster, self.node, "true").await.context("after a cut")?;
        }
    }

    /// Whether it was seen since the power came back, and `target` had been booted so often.
    async fn has_come(
        &self,
        moment: Moment,
        phase: &ProgressPhase,
        target: char,
        boots: usize,
    ) -> Result<bool> {
        Ok(match moment {
            Moment::PowerOn => true,
            Moment::Agent => self.agent_runs().await?,
            Moment::Reboot => *phase == ProgressPhase::Rebooting,
            Moment::Trial => boots_of(&self.serial()?, target) > boots,
            Moment::Confirming => *phase == ProgressPhase::Confirming,
        })
    }

    /// Whether the agent's pod has started since the power came back.
    async fn agent_runs(&self) -> Result<bool> {
        let Ok(mut guest) = self.cluster.vm(self.node)?.guest(Duration::ZERO).await else { return Ok(false) };
        // The guard is the same program; this shell speaks of both.
        let look = "all=$(grep -ls monok8s-agent /proc/[0-9]*/cmdline); grep -Ls guard $all | grep -q .";
        Ok(guest.succeed(look, Duration::from_secs(20)).await.is_ok())
    }

    fn serial(&self) -> Result<String> {
        Ok(self.cluster.vm(self.node)?.serial())
    }

    /// The slot that GRUB booted last.
    fn booted(&self) -> Result<char> {
        let serial = self.serial()?;
        let last = serial.rsplit_once("Booting slot ").and_then(|(_, rest)| rest.chars().next());
        last.context("GRUB has booted nothing")
    }
}

fn other(slot: char) -> char {
    if slot == 'A' { 'B' } else { 'A' }
}

fn other_version(version: &str) -> &'static str {
    if version == OLD { NEW } else { OLD }
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

/// xorshift64 (Marsaglia, "Xorshift RNGs", 2003), from a seed mixed as FNV-1a does.
struct Random(u64);

impl Random {
    /// The sequence of a machine.
    fn new(seed: u64, node: &str) -> Self {
        let mixed =
            node.bytes().fold(seed, |mixed, byte| (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(mixed.max(1))
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
