//! Simulated machines: everything of a node but the kernel.
//!
//! A machine has a real GPT disk with two root partitions, the state file of the simulated boot
//! loader, a data directory that survives reboots, and a directory that the agent takes for the
//! host's root: `/proc/cmdline`, the boot ID, the uptime, and the os-release of the booted slot,
//! read out of that slot's own ext4. On it runs the real agent, with the rights that its manifest
//! gives it.
//!
//! A reboot kills the agent, lets the simulated loader choose a slot, and starts a new agent under a
//! new boot ID. A slot comes up if its file system is readable and does not hold
//! [`PANIC_MARKER`](crate::rootfs::PANIC_MARKER); nothing else of a kernel is simulated. The host's guard is stood in for: a
//! trial that is not confirmed in time is reset.

pub(crate) mod firmware;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::disk::{Disk, DiskSpec, LoopDisk, LostTail, SectorSize, loop_obstacle};
use crate::kubelet::{Health, Kubelet, NodeSpec, new_boot_id};
use crate::process::Child;
use crate::programs::Program;
use crate::rootfs::Image;

const MIB: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(20);

/// What the disk of a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Loop devices, one for the disk and one for each slot. Takes root.
    Loop,
    /// A plain file.
    File,
}

impl Medium {
    /// Loop devices where this process may make them, else files.
    #[must_use]
    pub fn best() -> Self {
        if loop_obstacle().is_none() { Self::Loop } else { Self::File }
    }
}

/// What a machine is like.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Its Node. The kubelet's version is that of the image.
    pub node: NodeSpec,
    /// What slot A holds, and the machine runs at first.
    pub image: Image,
    /// The size of each slot, whole MiB.
    pub slot_bytes: u64,
    /// What its disk is.
    pub medium: Medium,
    /// How long a trial may stay unconfirmed before the guard resets the machine.
    pub guard: Duration,
    /// How long a boot takes.
    pub boot_time: Duration,
    /// Further arguments of the agent.
    pub agent_arguments: Vec<String>,
    /// The directory of the disk's file, if not beside everything else.
    pub disk_directory: Option<PathBuf>,
}

impl MachineSpec {
    /// A machine with slots as large as `image` plus half, on the best medium, that boots at once.
    #[must_use]
    pub fn new(node: NodeSpec, image: Image) -> Self {
        let slot_bytes = (image.bytes * 3 / 2).next_multiple_of(MIB);
        Self {
            node,
            image,
            slot_bytes,
            medium: Medium::best(),
            guard: Duration::from_secs(120),
            boot_time: Duration::from_millis(200),
            agent_arguments: Vec::new(),
            disk_directory: None,
        }
    }
}

/// One boot of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The slot that came up.
    pub slot: Slot,
    /// The version in it.
    pub version: String,
    /// Its boot ID.
    pub boot_id: String,
}

/// A running machine. Dropping it ends the agent and the kubelet stand-in, and detaches the disk.
pub struct Machine {
    name: String,
    paths: Paths,
    disk: Disk,
    /// Their drop detaches them.
    loops: Option<LoopDisk>,
    boots: Arc<Mutex<Vec<Boot>>>,
    orders: mpsc::Sender<Order>,
    running: JoinHandle<()>,
}

/// Where everything of one machine is.
#[derive(Clone, Debug)]
struct Paths {
    /// What the agent takes for the host's root.
    host: PathBuf,
    /// What survives reboots.
    data: PathBuf,
    /// The simulated loader's state.
    loader: PathBuf,
    /// Exists while a reboot is asked for.
    reboot: PathBuf,
    /// The agent's output.
    log: PathBuf,
}

/// What a machine is told to do.
enum Order {
    /// Kill the agent, and start another one in the same boot.
    KillAgent,
    /// Take away the power and give it back.
    PowerCut,
    /// Change what the kubelet says.
    Health(Health),
}

impl Machine {
    /// Creates the machine below `directory` and boots it. Its agent uses `kubeconfig`.
    pub async fn start(
        spec: MachineSpec,
        directory: &Path,
        client: Client,
        kubeconfig: PathBuf,
    ) -> Result<Self> {
        let name = spec.node.name.clone();
        let directory = directory.join(&name);
        std::fs::create_dir_all(&directory)?;
        let paths = Paths {
            host: directory.join("host"),
            data: directory.join("data"),
            loader: directory.join("loader"),
            reboot: directory.join("reboot-requested"),
            log: directory.join("agent.log"),
        };
        let disk = Disk::create(
            &spec.disk_directory.as_deref().unwrap_or(&directory).join("disk.img"),
            &DiskSpec {
                identity: name.clone(),
                slot_bytes: spec.slot_bytes,
                data_bytes: MIB,
                sector_size: SectorSize::B512,
            },
        )?;
        disk.install(Slot::A, &spec.image.path)?;
        let loops = match spec.medium {
            Medium::Loop => Some(LoopDisk::attach(&disk)?),
            Medium::File => None,
        };
        std::fs::create_dir_all(&paths.data)?;
        firmware::install(&paths.loader)?;
        let kubelet = Kubelet::start(client, &spec.node).await?;
        let boots = Arc::new(Mutex::new(Vec::new()));
        let (orders, inbox) = mpsc::channel(16);
        let mut power = Power {
            agent_disk: loops
                .as_ref()
                .map_or_else(|| disk.path.clone(), |loops| loops.whole.path().to_owned()),
            spec,
            paths: paths.clone(),
            disk: disk.clone(),
            kubeconfig,
            kubelet,
            boots: Arc::clone(&boots),
            agent: None,
            up_since: Instant::now(),
            unreported: None,
        };
        power.boot().await?;
        let running = tokio::spawn(async move {
            if let Err(error) = power.run(inbox).await {
                eprintln!("machine {} stopped: {error:#}", power.spec.node.name);
            }
        });
        Ok(Self { name, paths, disk, loops, boots, orders, running })
    }

    /// The name of its Node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every boot so far, oldest first; the first one is that of [`Machine::start`].
    #[must_use]
    pub fn boots(&self) -> Vec<Boot> {
        self.boots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The slot that is booted.
    pub fn booted(&self) -> Result<Slot> {
        self.boots().last().map(|boot| boot.slot).context("the machine never came up")
    }

    /// The slot that the loader takes at the next boot.
    pub fn next_boot(&self) -> Result<Option<Slot>> {
        firmware::next_boot(&self.paths.loader)
    }

    /// The sha256 of the first `bytes` of a slot, read from the medium.
    pub fn slot_digest(&self, slot: Slot, bytes: u64) -> Result<Sha256Digest> {
        self.disk.digest(slot, bytes)
    }

    /// Zeroes the start of a slot, as a failing medium might.
    pub fn destroy_slot(&self, slot: Slot) -> Result<()> {
        self.disk.erase(slot)
    }

    /// Pulls out the disk from the start of a slot on. Takes [`Medium::Loop`].
    pub fn lose(&self, slot: Slot) -> Result<LostTail> {
        let loops = self.loops.as_ref().context("a machine on a plain file has no device to lose")?;
        LostTail::take(&self.disk, loops, slot)
    }

    /// The directory that survives reboots, where the record is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.paths.data
    }

    /// The state file of the simulated loader.
    #[must_use]
    pub fn loader_path(&self) -> &Path {
        &self.paths.loader
    }

    /// What the agent takes for the host's root.
    #[must_use]
    pub fn host_root(&self) -> &Path {
        &self.paths.host
    }

    /// Where the agent's output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.paths.log
    }

    /// Kills the agent with SIGKILL; another one starts in the same boot.
    pub async fn kill_agent(&self) -> Result<()> {
        self.order(Order::KillAgent).await
    }

    /// Takes away the power, and boots.
    pub async fn power_cut(&self) -> Result<()> {
        self.order(Order::PowerCut).await
    }

    /// Changes what the kubelet says about the node.
    pub async fn set_health(&self, health: Health) -> Result<()> {
        self.order(Order::Health(health)).await
    }

    async fn order(&self, order: Order) -> Result<()> {
        match self.orders.send(order).await {
            Ok(()) => Ok(()),
            Err(_) => bail!("machine {} has stopped; see {}", self.name, self.paths.log.display()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The task owns the agent and the kubelet stand-in; their own drops end them.
        self.running.abort();
    }
}

/// What keeps a machine going.
struct Power {
    spec: MachineSpec,
    paths: Paths,
    disk: Disk,
    agent_disk: PathBuf,
    kubeconfig: PathBuf,
    kubelet: Kubelet,
    boots: Arc<Mutex<Vec<Boot>>>,
    agent: Option<Child>,
    up_since: Instant,
    /// Version and boot ID that the Node object does not have yet.
    unreported: Option<(String, String)>,
}

impl Power {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Order>) -> Result<()> {
        loop {
            match tokio::time::timeout(POLL, inbox.recv()).await {
                Ok(None) => return Ok(()),
                Ok(Some(order)) => self.obey(order).await?,
                Err(_) => {}
            }
            if self.paths.reboot.exists() || self.guard_resets()? {
                self.boot().await?;
            }
            self.report_boot().await;
            self.keep_agent_running()?;
        }
    }

    async fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::KillAgent => self.kill_agent(),
            Order::PowerCut => self.boot().await,
            Order::Health(health) => self.kubelet.set_health(health).await,
        }
    }

    /// From power-off to a running agent.
    async fn boot(&mut self) -> Result<()> {
        self.kill_agent()?;
        self.kubelet.set_health(Health::Silent).await?;
        match std::fs::remove_file(&self.paths.reboot) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let (slot, os_release) = firmware::boot(&self.paths.loader, &self.disk)?;
        tokio::time::sleep(self.spec.boot_time).await;
        let version = os_release.version.clone();
        let boot_id = new_boot_id()?;
        self.unreported = Some((version.clone(), boot_id.clone()));
        self.report_boot().await;
        firmware::write_host(&self.paths.host, &self.disk, slot, &os_release, &boot_id)?;
        self.up_since = Instant::now();
        self.boots.lock().unwrap_or_else(PoisonError::into_inner).push(Boot { slot, version, boot_id });
        self.keep_agent_running()
    }

    /// Has the kubelet tell the API server of this boot, now or, while that is away, later.
    async fn report_boot(&mut self) {
        if let Some((version, boot_id)) = &self.unreported
            && self.kubelet.booted_as(version, boot_id).await.is_ok()
        {
            self.unreported = None;
        }
    }

    /// Stands in for the host's guard: resets a trial that was not confirmed in time.
    fn guard_resets(&self) -> Result<bool> {
        let booted = self.boots.lock().unwrap_or_else(PoisonError::into_inner).last().map(|boot| boot.slot);
        let on_trial = firmware::slot_on_trial(&self.paths.loader)?;
        Ok(on_trial.is_some() && on_trial == booted && self.up_since.elapsed() > self.spec.guard)
    }

    fn kill_agent(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.kill()?;
        }
        Ok(())
    }

    /// As a kubelet would: an agent that ended is started again.
    fn keep_agent_running(&mut self) -> Result<()> {
        firmware::write_uptime(&self.paths.host, self.up_since.elapsed())?;
        let ended = match &mut self.agent {
            Some(agent) => agent.exit_status()?.is_some(),
            None => true,
        };
        if ended {
            self.agent = Some(self.start_agent()?);
        }
        Ok(())
    }

    fn start_agent(&self) -> Result<Child> {
        let mut command = Command::new(Program::Agent.locate()?);
        command
            .arg("run")
            .args(["--node-name", &self.spec.node.name])
            .args(["--kubelet-healthz", "none", "--apiserver-readyz", "none"])
            .arg("--host-root")
            .arg(&self.paths.host)
            .arg("--disk")
            .arg(&self.agent_disk)
            .arg("--data-dir")
            .arg(&self.paths.data)
            .arg("--boot-backend")
            .arg(format!("simulated:{}", self.paths.loader.display()))
            .arg("--reboot-command")
            .arg(format!("touch {}", self.paths.reboot.display()))
            .args(&self.spec.agent_arguments)
            .env("KUBECONFIG", &self.kubeconfig);
        Child::spawn(&format!("the agent of {}", self.spec.node.name), command, &self.paths.log)
    }
}
