//! What keeps a machine going: its power, its reboots, and its agent.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Boot, MachineSpec, Order, Paths, firmware};
use crate::disk::Disk;
use crate::kubelet::{Health, Kubelet, new_boot_id};
use crate::process::Child;
use crate::programs::Program;

const POLL: Duration = Duration::from_millis(20);
/// How long an agent that ends itself may take for it after it asked for a reboot.
const GOING_DOWN: Duration = Duration::from_secs(1);

/// What keeps a machine going.
pub(super) struct Power {
    pub(super) spec: MachineSpec,
    pub(super) paths: Paths,
    pub(super) disk: Disk,
    pub(super) agent_disk: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) kubelet: Kubelet,
    pub(super) boots: Arc<Mutex<Vec<Boot>>>,
    /// Where the agent ends itself.
    pub(super) stop_at: Option<String>,
    /// How it did.
    pub(super) stopped: Arc<Mutex<Option<ExitStatus>>>,
    pub(super) agent: Option<Child>,
    pub(super) up_since: Instant,
    /// Version and boot ID that the Node object does not have yet.
    pub(super) unreported: Option<(String, String)>,
}

impl Power {
    pub(super) async fn run(&mut self, mut inbox: mpsc::Receiver<Order>) -> Result<()> {
        loop {
            match tokio::time::timeout(POLL, inbox.recv()).await {
                Ok(None) => return Ok(()),
                Ok(Some(order)) => self.obey(order).await?,
                Err(_) => {}
            }
            if self.guard_resets()? {
                self.power_on().await?;
            } else if self.paths.reboot.exists() && self.goes_down().await? {
                self.boot().await?;
            }
            if self.stands_still() {
                continue;
            }
            self.report_boot().await;
            self.keep_agent_running()?;
        }
    }

    async fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::KillAgent => self.kill_agent(),
            Order::StopAt(point, done) => {
                self.kill_agent()?;
                self.stop_at = Some(point);
                *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = None;
                // Whoever asked may have given up.
                let _ = done.send(());
                Ok(())
            }
            Order::PowerCut => self.power_on().await,
            Order::Health(health) => self.kubelet.set_health(health).await,
        }
    }

    fn stands_still(&self) -> bool {
        self.stop_at.is_some() && self.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether the reboot that was asked for comes about. It takes its time, and the agent may end
    /// itself meanwhile.
    async fn goes_down(&mut self) -> Result<bool> {
        if self.stop_at.is_none() {
            return Ok(true);
        }
        if let Some(agent) = &mut self.agent {
            agent.wait(GOING_DOWN).await?;
        }
        self.keep_agent_running()?;
        Ok(!self.stands_still())
    }

    /// The power, or a reset, comes as a surprise; from here on nothing ends itself.
    async fn power_on(&mut self) -> Result<()> {
        self.kill_agent()?;
        self.stop_at = None;
        self.boot().await
    }

    /// From power-off to a running agent.
    pub(super) async fn boot(&mut self) -> Result<()> {
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
            Some(agent) => agent.exit_status()?,
            None => return self.start_agent(),
        };
        match ended {
            Some(status) if self.stop_at.is_some() => {
                *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
            }
            Some(_) => self.start_agent()?,
            None => {}
        }
        Ok(())
    }

    fn start_agent(&mut self) -> Result<()> {
        let program = if self.stop_at.is_some() { Program::StoppingAgent } else { Program::Agent };
        let mut command = Command::new(program.locate()?);
        if let Some(point) = &self.stop_at {
            command.env("MONOK8S_FAILPOINT", point);
        }
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
        let name = format!("the agent of {}", self.spec.node.name);
        self.agent = Some(Child::spawn(&name, command, &self.paths.log)?);
        Ok(())
    }
}
