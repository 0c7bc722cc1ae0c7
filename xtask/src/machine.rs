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
mod power;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::disk::{Disk, DiskSpec, LoopDisk, LostTail, SectorSize, loop_obstacle};
use crate::kubelet::{Health, Kubelet, NodeSpec};
use crate::rootfs::Image;

use power::Power;

const MIB: u64 = 1 << 20;

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
    /// What ran from slot B before that, and is there still, known to be good; else the slot is empty.
    pub previous: Option<Image>,
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
            previous: None,
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
    stopped: Arc<Mutex<Option<ExitStatus>>>,
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
    /// Run the agent that ends itself at a point; told once no other runs.
    StopAt(String, oneshot::Sender<()>),
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
        if let Some(previous) = &spec.previous {
            disk.install(Slot::B, &previous.path)?;
            firmware::went_there_and_back(&paths.loader, &paths.data, &disk)?;
        }
        let kubelet = Kubelet::start(client, &spec.node).await?;
        let boots = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(Mutex::new(None));
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
            stop_at: None,
            stopped: Arc::clone(&stopped),
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
        Ok(Self { name, paths, disk, loops, boots, stopped, orders, running })
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

    /// Has an agent run, through reboots too, that ends itself at this point, `NAME` or `NAME:N`. With
    /// it the node stands still, all but its guard, until the power is cut or the guard resets it; then
    /// an agent runs that does not stop.
    pub async fn stop_at(&self, point: &str) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        self.order(Order::StopAt(point.to_owned(), done)).await?;
        Ok(is_done.await?)
    }

    /// How the agent of [`stop_at`](Self::stop_at) ended, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<ExitStatus> {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
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
