//! `ctl slots`: what is in both slots, and what boots next.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;
use monok8s_sdk::boot::LoaderStatus;
use monok8s_sdk::disk::{SlotDevice, SlotPartition};
use monok8s_sdk::node_upgrade::{SlotContent, SlotContentState};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use serde::Serialize;

use super::output::Format;
use super::{Outcome, output};
use crate::host::booted_version;
use crate::machine::MachineArgs;

/// Shows where the slots are, what they hold and what the boot loader thinks of them.
#[derive(Debug, Args)]
pub(super) struct Slots {
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    machine: MachineArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_boot: Option<Slot>,
    slots: Vec<SlotReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SlotReport {
    slot: Slot,
    booted: bool,
    /// Of the booted slot what its os-release says, of the other one what the record says.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<OsVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<SlotContentState>,
    device: String,
    size_bytes: u64,
    #[serde(rename = "partUUID")]
    part_uuid: String,
    part_label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    loader: Option<LoaderView>,
}

/// What the boot loader holds about a slot.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoaderView {
    bootable: bool,
    on_trial: bool,
    tries_left: u8,
}

impl Slots {
    pub(super) fn run(self) -> Result<Outcome> {
        let map = self.machine.slots()?;
        let loader = self.machine.known_loader().map(|loader| loader.status()).transpose()?;
        let record = self.machine.kept_record().map(|store| store.load()).transpose()?;
        let booted = map.booted().slot;
        let report = |slot: Slot| {
            let content = record.as_ref().and_then(|record| record.slots.get(slot));
            let mut report = SlotReport::new(map.get(slot), content, loader.as_ref());
            if slot == booted {
                report.booted = true;
                report.version = booted_version(&self.machine.host()).or(report.version.take());
            }
            report
        };
        let report = Report {
            disk: map.disk().display().to_string(),
            next_boot: loader.as_ref().and_then(LoaderStatus::next_boot),
            slots: Slot::BOTH.map(report).into(),
        };
        self.output.print(&report, || report.text())?;
        Ok(Outcome::Good)
    }
}

impl SlotReport {
    fn new(at: &SlotPartition, content: Option<&SlotContent>, loader: Option<&LoaderStatus>) -> Self {
        Self {
            slot: at.slot,
            booted: false,
            version: content.map(|content| content.version.clone()),
            content: content.map(|content| content.state.clone()),
            device: match &at.device {
                SlotDevice::Device { path, .. } | SlotDevice::FileWindow { path } => {
                    path.display().to_string()
                }
                _ => "-".to_owned(),
            },
            size_bytes: at.partition.length,
            part_uuid: at.partition.guid.to_string(),
            part_label: at.partition.name.clone(),
            loader: loader.map(|status| LoaderView {
                bootable: status.may_boot(at.slot),
                on_trial: status.trial.is_some_and(|trial| trial.slot == at.slot),
                tries_left: status.slot(at.slot).tries_left.0,
            }),
        }
    }

    fn row(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.slot.to_string(),
            if self.booted { "booted" } else { "-" }.to_owned(),
            or_dash(self.version.as_ref().map(ToString::to_string)),
            or_dash(self.content.as_ref().map(ToString::to_string)),
            or_dash(self.loader.as_ref().map(LoaderView::text)),
            HumanBytes(self.size_bytes).to_string(),
            self.part_uuid.clone(),
            self.device.clone(),
        ]
    }
}

impl LoaderView {
    fn text(&self) -> String {
        match (self.on_trial, self.bootable) {
            (true, _) => format!("trial, {} left", self.tries_left),
            (false, true) => format!("good, {} left", self.tries_left),
            (false, false) => "never boots".to_owned(),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let header = ["SLOT", "STATE", "VERSION", "CONTENT", "LOADER", "SIZE", "PARTUUID", "DEVICE"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.slots.iter().map(SlotReport::row));
        output::table(&rows)
    }
}
