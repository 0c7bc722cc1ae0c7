//! `monok8s-agent guard`: the host's dead-man switch.
//!
//! A service of the host, started before anything that an image could have broken. It looks at the
//! loader, asks `monok8s_sdk::node_upgrade::guard`, and does what that says. It needs no API server,
//! no kubelet, no network and no data partition. See `deploy/host/` for its service definitions.

mod alone;
mod last_resort;
mod report;
mod watchdog;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use monok8s_sdk::boot::{LoaderStatus, Reset, Reverter};
use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::SlotMap;
use monok8s_sdk::node_upgrade::{
    Attempt, BootId, CameBack, GUARD_GRACE, GuardAction, GuardFacts, Record, TrialHealth, TrialHint, guard,
    guard_deadline, passed_trial,
};
use monok8s_sdk::slot::Slot;

use crate::agent::HealthArgs;
use crate::host;
use crate::machine::{Loader, MachineArgs};
use crate::reboot::{self, RebootCommand};

use alone::{Alone, Trial};
use last_resort::LastResort;
pub(crate) use report::{GuardReport, Seen};
use watchdog::Watchdog;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a host that was asked to reboot may take before its kernel is asked.
const GOING_DOWN: Duration = Duration::from_secs(30);
/// How long slots and loader are looked for. What is not there by then is not on this machine.
const LOOKING: Duration = Duration::from_secs(600);

/// Flags of `monok8s-agent guard`. Every flag has a twin in the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct GuardArgs {
    /// The slots, the boot loader and the record.
    #[command(flatten)]
    pub machine: MachineArgs,

    /// Seconds that a trial may last if no record tells, as when the data partition cannot be mounted.
    #[arg(long, env = "MONOK8S_GUARD_TIMEOUT", default_value = "600")]
    pub timeout_seconds: u32,

    /// Command that reboots the host, split at blanks, run without a shell [default: what the host's init takes, else reboot(2) after a sync].
    #[arg(long, env = "MONOK8S_REBOOT_COMMAND")]
    pub reboot_command: Option<RebootCommand>,

    /// What to do once there is nothing left to guard: supervisors that start again whatever ends want stay.
    #[arg(long, value_enum, default_value_t)]
    pub when_done: WhenDone,

    /// What a trial is judged by where no agent can.
    #[command(flatten)]
    pub health: HealthArgs,

    /// Kubeconfigs of the kubelet, separated by commas; the first that is there says where the API server is.
    #[arg(
        long,
        env = "MONOK8S_KUBELET_KUBECONFIG",
        value_delimiter = ',',
        default_value = "/etc/kubernetes/kubelet.conf,/var/lib/kubelet/kubeconfig"
    )]
    pub kubelet_kubeconfig: Vec<PathBuf>,

    /// Hardware watchdog that is kept running during a trial, below /dev, or `none`.
    #[arg(long, env = "MONOK8S_WATCHDOG", default_value = "watchdog")]
    pub watchdog: String,
}

/// What a guard does that has nothing left to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WhenDone {
    /// It ends.
    #[default]
    Exit,
    /// It sleeps until the machine goes down.
    Stay,
}

/// The guard of one boot.
struct Guard {
    args: GuardArgs,
    boot_id: BootId,
    command_line: String,
    booted: Option<Slot>,
    came_back: Option<CameBack>,
    sent_back_at: Option<Duration>,
    reset: Reset,
    /// What this boot's trial was last said to be. Once it was a trial, only the loader's word ends it.
    told: Option<Watch>,
    last_resort: LastResort,
    /// `None` where it cannot be had: the guard must not depend on it.
    alone: Option<Alone>,
    report: GuardReport,
}

/// What was last said of a trial.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Watch {
    /// The uptime at which it ends, in seconds.
    deadline: u64,
    /// Whether a watchdog runs.
    watchdog: bool,
}

/// What was seen at one look.
struct Sight {
    booted: Slot,
    loader: Option<LoaderStatus>,
    backend: Option<Loader>,
    record: Option<Record>,
    uptime: Duration,
}

/// Watches one boot, until its slot is known to be confirmed.
///
/// # Errors
/// The kernel's own files cannot be read, or the machine does not go down.
pub fn run(args: GuardArgs) -> Result<()> {
    let when_done = args.when_done;
    watch(args)?;
    match when_done {
        WhenDone::Exit => Ok(()),
        WhenDone::Stay => loop {
            thread::sleep(LOOKING);
        },
    }
}

fn watch(args: GuardArgs) -> Result<()> {
    let host = args.machine.host();
    let boot_id = BootId(host::boot_id(&host)?);
    let command_line = host.kernel_command_line().ok().flatten().unwrap_or_default();
    let reset = watchdog::last_reset(&host, &args.watchdog);
    let earlier = GuardReport::read(&host, &boot_id).map(|report| report.state);
    if earlier == Some(Seen::StoodDown) {
        tracing::info!("an earlier guard of this boot stood down: nothing to guard");
        return Ok(());
    }
    // What that one had seen to be a trial is one for this one as well.
    let is_trial = matches!(earlier, Some(Seen::OnTrial | Seen::SentBack));
    let report = GuardReport::new(&host, &boot_id);
    let last_resort = LastResort::new(args.machine.host(), args.reboot_command.clone())
        .context("cannot start the thread that reboots if all else fails")?;
    if is_trial || passed_trial(&command_line).is_some_and(|trial| !trial.evidence.is_reverted()) {
        let limit = Duration::from_secs(args.timeout_seconds.into()).saturating_add(GUARD_GRACE);
        // Time to look for a guard that was started again later than that.
        last_resort.set(Some(limit.max(host::uptime(&host)?)));
    }
    let alone = Alone::new(args.health.clone(), args.kubelet_kubeconfig.clone())
        .inspect_err(|error| tracing::warn!("cannot judge a trial without an agent: {error:#}"))
        .ok();
    let mut guard = Guard {
        args,
        boot_id,
        command_line,
        booted: None,
        came_back: is_trial.then_some(CameBack::No),
        sent_back_at: None,
        reset,
        told: is_trial.then_some(Watch { deadline: 0, watchdog: false }),
        last_resort,
        alone,
        report,
    };
    let began = Instant::now();
    let mut troubles = Troubles::default();
    loop {
        match guard.turn(&mut troubles) {
            Ok(Next::Done) => return Ok(()),
            Ok(Next::Again) => {}
            Ok(Next::Lost) if began.elapsed() > LOOKING && guard.told.is_none() => {
                guard.last_resort.set(None);
                guard.report.say(Seen::Blind, None);
                tracing::warn!(
                    "neither slots nor a boot loader were found on this machine: nothing to guard"
                );
                return Ok(());
            }
            Ok(Next::Lost) => guard.report.say(Seen::Blind, None),
            // Whatever it is, a trial must end: this goes on.
            Err(error) => troubles.tell(&format!("{error:#}")),
        }
        thread::sleep(INTERVAL);
    }
}

/// What follows a look.
enum Next {
    Again,
    /// Nothing could be seen that tells whether this is a trial.
    Lost,
    Done,
}

impl Sight {
    /// The attempt whose trial this boot is, as far as the record tells.
    fn trial(&self) -> Option<&Attempt> {
        let trial = self.loader.as_ref()?.trial.filter(|trial| trial.slot == self.booted)?;
        self.record.as_ref()?.attempt.as_ref().filter(|attempt| attempt.id == trial.attempt)
    }
}

impl Guard {
    fn turn(&mut self, troubles: &mut Troubles) -> Result<Next> {
        let Some(sight) = self.look(troubles)? else { return Ok(Next::Lost) };
        if let (Some(alone), Some(attempt)) = (&mut self.alone, sight.trial()) {
            alone.look(Trial {
                machine: self.args.machine.clone(),
                attempt: attempt.clone(),
                boot_id: self.boot_id.clone(),
                uptime: sight.uptime,
            });
        }
        let without_api = self.alone.as_ref().and_then(|alone| alone.without_api(sight.uptime));
        let facts = self.facts(&sight, without_api.as_ref());
        let action = guard(&facts);
        let deadline = guard_deadline(&facts);
        match action {
            GuardAction::LookAgain => return Ok(Next::Lost),
            GuardAction::StandDown => {
                self.stand_down(&sight);
                return Ok(Next::Done);
            }
            GuardAction::MarkGood => {
                let loader = sight.backend.as_ref().context("the loader is gone")?;
                // The watchdog's driver may have been loaded later than this was started.
                if self.reset == Reset::Unknown {
                    self.reset = watchdog::last_reset(&self.args.machine.host(), &self.args.watchdog);
                }
                loader.backend().mark_good_after(sight.booted, self.reset)?;
                tracing::info!(slot = %sight.booted, "marked good");
            }
            GuardAction::Watch { remaining } => {
                self.watch(&sight, deadline);
                tracing::debug!(?remaining, "on trial");
            }
            GuardAction::SendBack { by } => self.send_back(&sight, by)?,
            GuardAction::Confirm => {
                // It may take several tries to tell the loader.
                self.last_resort.keep_watchdog();
                tracing::warn!(slot = %sight.booted, "the API server is away, and all is well otherwise: confirming");
                let loader = sight.backend.as_ref().context("the loader is gone")?;
                loader.backend().confirm()?;
            }
            GuardAction::Reboot => self.go_down()?,
        }
        Ok(Next::Again)
    }

    /// `None` while the slots cannot be told apart.
    fn look(&mut self, troubles: &mut Troubles) -> Result<Option<Sight>> {
        let machine = &self.args.machine;
        let host = machine.host();
        let booted = match self.booted {
            Some(booted) => booted,
            None => match SlotMap::discover(&host, &machine.layout()) {
                Ok(slots) => *self.booted.insert(slots.booted().slot),
                // A trial in which not even that can be told is told by the one who booted it.
                Err(error) => {
                    troubles.tell(&chain(&error));
                    let Some(trial) = passed_trial(&self.command_line) else { return Ok(None) };
                    trial.slot
                }
            },
        };
        // Not cached: the partition with the loader's state may be mounted later than this starts.
        let backend = machine.loader().unwrap_or_else(|error| {
            troubles.tell(&chain(&error));
            None
        });
        let status = backend.as_ref().map(|loader| loader.backend().status());
        let loader = match status {
            Some(Ok(status)) => Some(status),
            Some(Err(error)) => {
                troubles.tell(&chain(&error));
                None
            }
            None => None,
        };
        let record = machine.kept_record().and_then(|store| store.load().ok());
        let uptime = host::uptime(&host)?;
        if let Some(loader) = &loader {
            self.came_back.get_or_insert_with(|| CameBack::at_first_look(booted, loader));
            let sent_back = loader.trial.is_some_and(|trial| trial.evidence.is_reverted());
            if sent_back {
                self.sent_back_at.get_or_insert(uptime);
            }
        }
        Ok(Some(Sight { booted, loader, backend, record, uptime }))
    }

    fn facts<'a>(&'a self, sight: &'a Sight, without_api: Option<&'a TrialHealth>) -> GuardFacts<'a> {
        let record = sight.record.as_ref();
        GuardFacts {
            booted: sight.booted,
            loader: sight.loader.as_ref(),
            hint: match self.told {
                Some(_) => TrialHint::OnTrial,
                None => TrialHint::of(&self.command_line, record, sight.booted, &self.boot_id),
            },
            record,
            uptime: sight.uptime,
            default_limit: Duration::from_secs(self.args.timeout_seconds.into()),
            sent_back_at: self.sent_back_at,
            came_back: self.came_back.unwrap_or(CameBack::No),
            without_api,
        }
    }

    /// One more second of a trial. A watchdog runs, so that a kernel that hangs is reset.
    fn watch(&mut self, sight: &Sight, deadline: Duration) {
        self.last_resort.set(Some(deadline));
        // Its driver may be loaded later than this starts.
        let start = || Watchdog::start(&self.args.machine.host(), &self.args.watchdog);
        let watchdog = self.last_resort.has_watchdog(start);
        let watch = Watch { deadline: deadline.as_secs(), watchdog };
        if self.told.replace(watch) != Some(watch) {
            let Watch { deadline, watchdog } = watch;
            tracing::info!(slot = %sight.booted, deadline, watchdog, "this boot is a trial");
        }
        self.report.say(Seen::OnTrial, Some(deadline));
    }

    fn stand_down(&mut self, sight: &Sight) {
        self.last_resort.set(None);
        if let Some(loader) = &sight.backend
            && !loader.backend().is_settled()
            && let Err(error) = loader.backend().mark_good(sight.booted)
        {
            tracing::warn!(error = %chain(&error), "an old copy of the loader's state is still there");
        }
        self.report.say(Seen::StoodDown, None);
        tracing::info!("stands down");
        // Last: one that cannot be stopped is kept from firing from here on.
        if let Some(watchdog) = self.last_resort.take_watchdog() {
            watchdog.stop();
        }
    }

    /// Tells the loader, and goes down even if it cannot be told: the burnt try then has to do.
    fn send_back(&mut self, sight: &Sight, by: Reverter) -> Result<()> {
        tracing::warn!(slot = %sight.booted, "not confirmed in time: going back");
        if let Some(loader) = sight.backend.as_ref().map(Loader::backend) {
            let told = loader.revert(by).and_then(|()| loader.status());
            match told {
                // Between the look and the word: there was no trial left to send back.
                Ok(status) if status.is_confirmed(sight.booted) => return Ok(()),
                Ok(_) => {}
                Err(error) => tracing::error!(error = %chain(&error), "the loader was not told"),
            }
        }
        self.go_down()
    }

    /// From here on the watchdog is not kept: if all else fails, it resets the machine.
    fn go_down(&mut self) -> Result<()> {
        drop(self.last_resort.take_watchdog());
        self.report.say(Seen::SentBack, None);
        let host = self.args.machine.host();
        if let Err(error) = reboot::reboot(&host, self.args.reboot_command.as_ref()) {
            tracing::error!(error = %chain(&error), "the host was not rebooted");
        }
        thread::sleep(GOING_DOWN);
        if self.args.reboot_command.is_none() {
            reboot::by_system_call()?;
        }
        Ok(())
    }
}

/// What is in the way, told once and not every second.
#[derive(Default)]
struct Troubles {
    told: String,
}

impl Troubles {
    fn tell(&mut self, problem: &str) {
        if self.told != problem {
            tracing::warn!(problem, "cannot see everything, looking again");
            problem.clone_into(&mut self.told);
        }
    }
}
