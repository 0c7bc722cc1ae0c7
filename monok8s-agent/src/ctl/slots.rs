//! `ctl slots`: what is in both slots, and what boots next.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use anyhow::Result;
use clap::Args;
use indicatif::HumanBytes;
use monok8s_sdk::api::TryCounting;
use monok8s_sdk::boot::{BootBackend, LoaderStatus};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::{HostView, SlotDevice, SlotPartition};
use monok8s_sdk::node_upgrade::{BootId, SlotContent, SlotContentState};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use serde::Serialize;

use super::output::Format;
use super::{Outcome, output};
use crate::guard::{GuardReport, Seen};
use crate::host::{self, booted_version};
use crate::machine::{Loader, MachineArgs};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    loader: Option<LoaderReport>,
    guard: GuardView,
}

/// The boot loader.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoaderReport {
    backend: &'static str,
    counts_tries: TryCounting,
}

/// The host's guard.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardView {
    state: GuardWord,
    /// Seconds until it sends an unconfirmed trial back.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_seconds: Option<u64>,
}

/// What the guard of this boot says.
#[derive(Clone, Copy, Serialize)]
enum GuardWord {
    OnTrial,
    StoodDown,
    SentBack,
    Blind,
    /// A word of another release.
    Unknown,
    /// Nothing.
    Silent,
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
    /// The sha256 of the image that was read back from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_digest: Option<Sha256Digest>,
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
        let known = self.machine.loader()?;
        let backend = known.as_ref().map(Loader::backend);
        let loader = backend.map(BootBackend::status).transpose()?;
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
            loader: backend.zip(loader.as_ref()).map(|(backend, status)| LoaderReport {
                backend: backend.name(),
                counts_tries: status.try_counting().into(),
            }),
            guard: GuardView::of(&self.machine.host()),
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
            image_digest: content.and_then(|content| content.image_digest),
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
            or_dash(self.image_digest.as_ref().map(short)),
            or_dash(self.loader.as_ref().map(LoaderView::text)),
            HumanBytes(self.size_bytes).to_string(),
            self.part_uuid.clone(),
            self.device.clone(),
        ]
    }
}

impl GuardView {
    fn of(host: &HostView) -> Self {
        // Without the kernel's own files there is no guard that could have said anything.
        let boot_id = host::boot_id(host).map(BootId).ok();
        let report = boot_id.and_then(|boot_id| GuardReport::read(host, &boot_id));
        let uptime = host::uptime(host).map_or(0, |uptime| uptime.as_secs());
        let deadline = report.as_ref().and_then(|report| report.deadline_uptime_seconds);
        Self {
            state: report.map_or(GuardWord::Silent, |report| report.state.into()),
            remaining_seconds: deadline.map(|at| at.saturating_sub(uptime)),
        }
    }

    fn text(&self) -> String {
        match (self.state, self.remaining_seconds) {
            (GuardWord::OnTrial, Some(left)) => {
                format!("sends the booted slot back in {left} s, unless it is confirmed")
            }
            (GuardWord::OnTrial, None) => "waits for a confirm of the booted slot".to_owned(),
            (GuardWord::StoodDown, _) => "stood down: the booted slot is confirmed".to_owned(),
            (GuardWord::SentBack, _) => {
                "has sent the booted slot back; the machine is about to reboot".to_owned()
            }
            (GuardWord::Blind, _) => "cannot read the boot loader's state".to_owned(),
            (GuardWord::Unknown, _) => "says something that this ctl does not know".to_owned(),
            (GuardWord::Silent, _) => "has said nothing in this boot".to_owned(),
        }
    }
}

impl From<Seen> for GuardWord {
    fn from(seen: Seen) -> Self {
        match seen {
            Seen::OnTrial => Self::OnTrial,
            Seen::StoodDown => Self::StoodDown,
            Seen::SentBack => Self::SentBack,
            Seen::Blind => Self::Blind,
            Seen::Unknown => Self::Unknown,
        }
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

/// Enough to tell two images apart; the whole of it is in the other forms of the output.
fn short(digest: &Sha256Digest) -> String {
    digest.to_string().chars().take("sha256:".len() + 12).collect()
}

impl Report {
    fn text(&self) -> String {
        let header =
            ["SLOT", "STATE", "VERSION", "CONTENT", "DIGEST", "LOADER", "SIZE", "PARTUUID", "DEVICE"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.slots.iter().map(SlotReport::row));
        let next = self.next_boot.map_or("unknown".to_owned(), |slot| slot.to_string());
        let loader = self.loader.as_ref().map_or("unknown".to_owned(), |loader| {
            let counts = match loader.counts_tries {
                TryCounting::Proven => "counts tries",
                _ => "was not seen to count tries",
            };
            format!("{}, {counts}", loader.backend)
        });
        let guard = self.guard.text();
        format!("{}\nNext boot: {next}\nLoader: {loader}\nGuard: {guard}\n", output::table(&rows))
    }
}
