//! Judging a trial beside the agent, for which it may be that none can: a kubelet starts no pods after a boot
//! in which it has not reached the API server. And an agent that waits for the answers of one that is silent
//! may come too late.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::config::Kubeconfig;
use monok8s_sdk::disk::HostView;
use monok8s_sdk::node_upgrade::{Attempt, BootId, Check, TrialHealth};
use tokio::runtime::Runtime;

use crate::agent::HealthArgs;
use crate::agent::health::{HealthProbe, OnTrial};
use crate::host;
use crate::machine::MachineArgs;

/// How often a trial is looked at: what is seen changes slowly, and the machine is busy starting.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long an API server that is back may take to have an agent started.
const AGENT_STARTS: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What the agent looks at, looked at by a thread of the guard: a check may take long, and the watchdog
/// does not wait for it.
pub(super) struct Alone {
    trials: SyncSender<Trial>,
    /// The uptime at the last look.
    looked_at: Option<Duration>,
    seen: Arc<Mutex<LastLook>>,
}

/// What is looked at.
pub(super) struct Trial {
    pub(super) machine: MachineArgs,
    pub(super) attempt: Attempt,
    pub(super) boot_id: BootId,
    pub(super) uptime: Duration,
}

/// What was seen last.
#[derive(Clone, Debug, Default)]
struct LastLook {
    /// The uptime at which the API server was last seen not to answer.
    away_at: Option<Duration>,
    health: Option<TrialHealth>,
}

impl Alone {
    pub(super) fn new(health: HealthArgs, kubeconfigs: Vec<PathBuf>) -> Result<Self> {
        let eye = Eye::new(health, kubeconfigs)?;
        let seen = Arc::new(Mutex::new(LastLook::default()));
        let (trials, next) = sync_channel(0);
        let shown = Arc::clone(&seen);
        thread::Builder::new()
            .name("alone".to_owned())
            .spawn(move || eye.look_until_dropped(&next, &shown))
            .context("cannot start a thread")?;
        Ok(Self { trials, looked_at: None, seen })
    }

    /// Has one more look taken at a trial, unless the last one was a moment ago, or still goes on.
    pub(super) fn look(&mut self, trial: Trial) {
        let uptime = trial.uptime;
        if self.looked_at.is_some_and(|at| uptime.saturating_sub(at) < INTERVAL) {
            return;
        }
        // Else it is busy, or it is gone and will say nothing more: the deadline then decides.
        if self.trials.try_send(trial).is_ok() {
            self.looked_at = Some(uptime);
        }
    }

    /// What was seen last, if the API server is away.
    pub(super) fn without_api(&self, uptime: Duration) -> Option<TrialHealth> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let away = seen.away_at.is_some_and(|at| uptime.saturating_sub(at) < AGENT_STARTS);
        seen.health.filter(|_| away)
    }
}

/// What looks.
struct Eye {
    runtime: Runtime,
    http: reqwest::Client,
    probe: HealthProbe,
    /// Kubeconfigs of kubelets, on the host.
    kubeconfigs: Vec<PathBuf>,
}

impl Eye {
    fn new(health: HealthArgs, kubeconfigs: Vec<PathBuf>) -> Result<Self> {
        // Clients built before a provider is chosen fail; somebody may have chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let http = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .no_proxy()
            // Whether anybody answers is all that is asked.
            .tls_danger_accept_invalid_certs(true)
            .build()
            .context("cannot make an HTTP client")?;
        let probe = HealthProbe::new(health).context("cannot make an HTTP client")?;
        Ok(Self { runtime, http, probe, kubeconfigs })
    }

    fn look_until_dropped(mut self, trials: &Receiver<Trial>, shown: &Mutex<LastLook>) {
        let mut seen = LastLook::default();
        for trial in trials {
            self.look(&trial, &mut seen);
            shown.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&seen);
        }
    }

    /// One more look.
    fn look(&mut self, trial: &Trial, seen: &mut LastLook) {
        let Trial { machine, attempt, boot_id, uptime } = trial;
        let host = machine.host();
        if self.api_server_is_away(&host) {
            seen.away_at = Some(*uptime);
        }
        let version = match host::booted_version(&host) {
            Some(booted) if booted == attempt.version => Check::Holds,
            // Nothing excuses another version.
            Some(_) => {
                seen.health = None;
                return;
            }
            None => Check::Fails("the image states no version".to_owned()),
        };
        let on_trial = OnTrial { boot_id, checks: &attempt.trial.checks, uptime: *uptime };
        seen.health = Some(self.runtime.block_on(self.probe.observe(&host, None, on_trial, version)));
    }

    /// An API server whose address is not known is not away: its absence excuses nothing then.
    fn api_server_is_away(&self, host: &HostView) -> bool {
        let Some(url) = self.kubeconfigs.iter().find_map(|path| server(host, path)) else { return false };
        let url = format!("{}/readyz", url.trim_end_matches('/'));
        let answer = self.runtime.block_on(async { self.http.get(&url).send().await });
        // Whatever it says, be it that it does not know us, it is there; a balancer without an API
        // server behind it answers 502, 503 or 504.
        answer.map_or(true, |answer| answer.status().is_server_error())
    }
}

fn server(host: &HostView, path: &Path) -> Option<String> {
    let path = host.path(path.strip_prefix("/").unwrap_or(path));
    let kubeconfig = Kubeconfig::read_from(path).ok()?;
    kubeconfig.clusters.into_iter().find_map(|named| named.cluster?.server)
}
