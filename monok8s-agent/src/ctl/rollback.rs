//! `ctl rollback`: the other slot, on purpose, by a person at the node.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use monok8s_sdk::api::TrialSpec;
use monok8s_sdk::boot::{BootBackend, Reverter, Tries, TryCounting};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::node_upgrade::{Attempt, BootId, Record, SlotContentState, Step};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use serde::Serialize;

use super::Outcome;
use super::cluster::ClusterArgs;
use super::hold::hold;
use super::output::{self, Format};
use super::send_back::send_back;
use crate::host;
use crate::machine::MachineArgs;
use crate::reboot::{RebootCommand, reboot};

/// Without NODE and --upgrade, this is about this machine: it arms the slot that is not booted, if what it holds ran before and was confirmed: on trial, as after an
/// upgrade, so that a slot that does not come up is left again. While the booted slot itself is on trial,
/// that trial is sent back. Nothing is drained. An agent that runs here reboots the node.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// A node of the cluster: it gets a rollbackNonce, and the controller drains it and has it reboot when its turn
    /// comes.
    #[arg(value_name = "NODE", conflicts_with_all = ["upgrade", "reboot"])]
    node: Option<String>,

    /// The same for all nodes that this upgrade has brought where they are.
    #[arg(long, value_name = "NAME", conflicts_with = "reboot")]
    upgrade: Option<String>,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Reboot as well.
    #[arg(long)]
    reboot: bool,

    /// Seconds that the other slot has to prove itself.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = clap::value_parser!(i32).range(30..=86_400))]
    trial_timeout: i32,

    /// Command that reboots the host, split at blanks [default: what the host's init takes].
    #[arg(long, env = "MONOK8S_REBOOT_COMMAND")]
    reboot_command: Option<RebootCommand>,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    machine: MachineArgs,
}

/// What was done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RolledBack {
    /// The slot that boots next.
    next_boot: Slot,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<OsVersion>,
    /// Armed: the other slot is on trial next. SentBack: the running trial was ended.
    done: &'static str,
}

impl Rollback {
    pub(super) fn run(self) -> Result<Outcome> {
        if self.node.is_some() || self.upgrade.is_some() {
            let (node, upgrade) = (self.node.as_deref(), self.upgrade.as_deref());
            let done = self.cluster.with(async |client| send_back(&client, node, upgrade).await)?;
            self.output.print(&done, || output::lines(&done))?;
            return Ok(Outcome::Good);
        }
        let booted = self.machine.slots()?.booted().slot;
        let Some(loader) = self.machine.loader()? else {
            bail!("no boot loader that can be told is known on this machine: set --boot-backend");
        };
        let backend = loader.backend();
        let status = backend.status()?;
        let done = if status.trial.is_some_and(|trial| trial.slot == booted) {
            // The agent has the record all through a trial. The loader's word is enough here.
            backend.revert(Reverter::Person)?;
            ensure!(
                !backend.status()?.is_confirmed(booted),
                "the trial of slot {booted} was confirmed at this moment: run this again to go back to slot {}",
                booted.other()
            );
            RolledBack { next_boot: booted.other(), version: None, done: "SentBack" }
        } else {
            self.arm(booted, backend)?
        };
        self.output.print(&done, || done.text(self.reboot))?;
        if self.reboot {
            reboot(&self.machine.host(), self.reboot_command.as_ref())?;
        }
        Ok(Outcome::Good)
    }

    fn arm(&self, booted: Slot, backend: &dyn BootBackend) -> Result<RolledBack> {
        self.machine.require_lasting_data_dir()?;
        ensure!(
            backend.canary()? == TryCounting::Proven,
            "the boot loader was not seen to count tries, so a slot that does not come up would never be left again: reboot once, then see `ctl slots`"
        );
        let store = self.machine.record();
        let _lock = hold(&store, "rollback")?;
        let record = store.load().context("cannot tell what the other slot holds")?;
        let slot = booted.other();
        let step = self.step(&record, slot)?;
        // The record may be of a data partition that was not there when somebody wrote the slot.
        ensure!(
            backend.status()?.is_confirmed(slot),
            "the boot loader does not have slot {slot} for good: write it with `ctl flash`, or order an upgrade"
        );
        let next = record.after(&step);
        let attempt = next.attempt.as_ref().context("the attempt cannot be recorded")?;
        let (id, version) = (attempt.id, attempt.version.clone());
        let digest = record.slots.get(slot).and_then(|content| content.image_digest);
        // The record first: what is armed without it would be nobody's trial.
        store.save(&next)?;
        let token = KnownGoodSlot::from_confirm_record(slot, version.clone(), digest);
        backend.arm_trial(token.into(), id, Tries::TRIAL)?;
        Ok(RolledBack { next_boot: slot, version: Some(version), done: "Armed" })
    }

    fn step(&self, record: &Record, slot: Slot) -> Result<Step> {
        ensure!(
            !record.attempt.as_ref().is_some_and(Attempt::may_be_committed),
            "an upgrade of this node is past its commit: let it end first"
        );
        let content = record.slots.get(slot).filter(|content| content.state == SlotContentState::KnownGood);
        let Some(content) = content else {
            bail!(
                "slot {slot} holds nothing that is known to have run well on this node: write it with `ctl flash`, or order an upgrade"
            );
        };
        Ok(Step::RollbackByHand {
            version: content.version.clone(),
            checksum: content.checksum,
            slot,
            trial: TrialSpec { timeout_seconds: Some(self.trial_timeout), ..TrialSpec::default() },
            boot_id: BootId(host::boot_id(&self.machine.host())?),
        })
    }
}

impl RolledBack {
    fn text(&self, reboots: bool) -> String {
        let what = match &self.version {
            Some(version) => format!("slot {} ({version}) boots next, on trial", self.next_boot),
            None => format!("the running trial was sent back: slot {} boots next", self.next_boot),
        };
        let then = if reboots { "rebooting" } else { "reboot the node, unless its agent does" };
        format!("{what}; {then}\n")
    }
}
