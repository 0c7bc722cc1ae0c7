//! `ctl flash`: an image into a slot, by hand, with the guards of an upgrade.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressFinish, ProgressStyle};
use monok8s_sdk::causes::chain;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::{DiskError, InactiveSlot, SlotMap, Throttle, VerifiedSlot};
use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::image::{
    self, Cancel, Delivery, Download, Expected, GuardFiles, GuardFound, Indexed, Progress, ProgressSnapshot,
    Source, inspect,
};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use reqwest::Url;
use serde::Serialize;

use super::Outcome;
use super::hold::hold;
use super::output::Format;
use crate::machine::{Loader, MachineArgs};
use crate::politeness::{Politeness, PolitenessArgs, PressureLimit};

/// Interruptions of a download in a row after which it is given up: a person waits for the answer.
const ATTEMPTS: u32 = 5;
const REDRAW: Duration = Duration::from_millis(100);

/// Writes a zstd-compressed image into the slot that is not booted, and reads it back. The slot's first
/// 64 KiB are written last, so an image that broke off cannot boot. What boots next is not changed.
#[derive(Debug, Args)]
pub(super) struct Flash {
    /// Slot to write, A or B; never the booted one.
    #[arg(long)]
    slot: Slot,

    /// Artifact: a file, an http or https URL, or - for standard input.
    #[arg(default_value = "-")]
    source: Origin,

    /// What sha256sum prints for the artifact, after sha256:
    #[arg(long, value_name = "sha256:HEX")]
    checksum: Option<Sha256Digest>,

    /// Size of the expanded image in bytes.
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,

    /// The same as --checksum, of the expanded image.
    #[arg(long, value_name = "sha256:HEX")]
    image_checksum: Option<Sha256Digest>,

    #[command(flatten)]
    index: IndexArgs,

    #[command(flatten)]
    politeness: PolitenessArgs,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    machine: MachineArgs,
}

/// The block index of an artifact.
#[derive(Debug, Args)]
struct IndexArgs {
    /// URL of the artifact's block index: only what is in neither slot is fetched.
    #[arg(long, value_name = "URL", requires = "index_checksum")]
    index: Option<Url>,

    /// What sha256sum prints for the index, after sha256:
    #[arg(long, value_name = "sha256:HEX", requires = "index")]
    index_checksum: Option<Sha256Digest>,
}

/// Where the artifact comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Stdin,
    Url(Url),
    File(PathBuf),
}

/// What was done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Flashed {
    slot: Slot,
    device: String,
    bytes: u64,
    image_digest: Sha256Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<OsVersion>,
    /// Whole, Indexed, or WholeInstead of by the index that was given.
    delivery: &'static str,
    /// Why the index was of no use.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_reason: Option<String>,
    bytes_fetched: u64,
    /// Of the image: what was right in the slot already.
    bytes_reused: u64,
    /// Of the image: what was put into the slot.
    bytes_written: u64,
    /// Of the image: what was read back from the medium.
    bytes_verified: u64,
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return text.parse().map(Self::Url).map_err(|error| format!("{error}"));
        }
        Ok(Self::File(text.into()))
    }
}

impl Flash {
    pub(super) fn run(self) -> Result<Outcome> {
        // Before anything is touched: a source that cannot be had costs nothing.
        let source = self.source()?;
        let _lock = self.machine.kept_record().map(|store| hold(&store, "flash")).transpose()?;
        let slots = self.machine.slots()?;
        let host = self.machine.host();
        if let Some(missing) = self.politeness().missing(&host) {
            eprintln!("warning: {missing}");
        }
        let throttle = self.politeness().throttle(&host);
        let slot = self.take(&slots)?.paced(&throttle);
        let source = self.limited(source, &slots, &throttle)?;
        let expected =
            Expected { checksum: self.checksum, size: self.size, image_checksum: self.image_checksum };
        let progress = Progress::default();
        let (verified, delivery) = self.write(slot, source, expected, &progress)?;
        let counted = progress.snapshot();
        let (delivery, delivery_reason) = said(delivery);
        let flashed = Flashed {
            slot: verified.slot(),
            device: verified.description().to_owned(),
            bytes: verified.length(),
            image_digest: verified.image(),
            version: version_inside(&verified),
            delivery,
            delivery_reason,
            bytes_fetched: counted.bytes_done,
            bytes_reused: counted.bytes_reused,
            bytes_written: counted.bytes_written,
            bytes_verified: counted.bytes_verified,
        };
        self.output.print(&flashed, || flashed.text())?;
        Ok(Outcome::Good)
    }

    fn source(&self) -> Result<Source> {
        ensure!(
            self.index.index.is_none() || matches!(self.source, Origin::Url(_)),
            "an index is of use only to what is fetched: give the artifact's URL, or leave --index out"
        );
        Ok(match &self.source {
            Origin::Stdin => {
                ensure!(
                    !io::stdin().is_terminal(),
                    "standard input is a terminal: pipe the artifact into it, or name a file or URL"
                );
                Source::Reader(Box::new(io::stdin()))
            }
            Origin::File(path) => {
                ensure!(path.is_file(), "{} is not a file", path.display());
                Source::File(path.clone())
            }
            Origin::Url(url) => {
                // An error means that a provider is installed already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                Source::Http(Download::new(http_client(&HttpOptions::default())?, [url.clone()]))
            }
        })
    }

    /// The same source as far as it is downloaded: within its limits, and with the index that was given.
    fn limited(&self, source: Source, slots: &SlotMap, throttle: &Throttle) -> Result<Source> {
        let Source::Http(artifact) = source else { return Ok(source) };
        let limits = self.politeness().download_limits(ATTEMPTS, slots.get(self.slot).partition.length);
        let artifact = artifact.with_limits(limits);
        let (Some(index), Some(checksum)) = (&self.index.index, self.index.index_checksum) else {
            return Ok(Source::Http(artifact));
        };
        let client = http_client(&HttpOptions::default())?;
        let index = Download::new(client, [index.clone()]).with_limits(limits);
        let warn = |slot, error: &DiskError| {
            eprintln!("warning: slot {slot} cannot be used again: {}", chain(error));
        };
        let reuse = slots.open_to_reuse(self.slot, warn);
        let reuse = reuse.into_iter().map(|slot| slot.paced(throttle)).collect();
        let indexed = Indexed::new(artifact, index, checksum).with_reuse(reuse);
        Ok(indexed.with_kept(self.machine.kept_indexes()).into())
    }

    /// A person waits, so nothing slows down for others unless that was asked for.
    fn politeness(&self) -> Politeness {
        self.politeness.clone().with_default(PressureLimit::None)
    }

    /// Makes sure that nothing needs the slot, and that nothing will boot it or trust it from now on.
    fn take(&self, slots: &SlotMap) -> Result<InactiveSlot> {
        let slot = slots.open_for_writing(&self.machine.host(), self.slot)?;
        let known = self.machine.loader()?;
        let loader = known.as_ref().map(Loader::backend);
        if let Some(loader) = loader {
            let status = loader.status()?;
            let booted = slots.booted().slot;
            if status.trial.is_some() || !status.is_confirmed(booted) {
                bail!(
                    "slot {booted} is not confirmed, or a trial is armed: slot {} is what the node goes back to, \
                     or goes to; wait until the upgrade has ended",
                    self.slot
                );
            }
        }
        // The record first: it must never claim more than the slot holds.
        if let Some(store) = self.machine.kept_record() {
            let mut record = store.load()?;
            if let Some(attempt) = record.attempt.as_ref().filter(|attempt| !attempt.has_ended()) {
                bail!(
                    "an upgrade to {} is going on in slot {}: wait until it has ended, or delete its \
                     OSUpgradeProgress {}",
                    attempt.version,
                    attempt.slot,
                    attempt.object.name
                );
            }
            let content = match self.slot {
                Slot::A => &mut record.slots.a,
                Slot::B => &mut record.slots.b,
            };
            if content.take().is_some() {
                store.save(&record)?;
            }
        }
        if let Some(loader) = &loader {
            loader.invalidate(self.slot)?;
        }
        Ok(slot)
    }

    fn write(
        &self,
        slot: InactiveSlot,
        source: Source,
        expected: Expected,
        progress: &Progress,
    ) -> Result<(VerifiedSlot, Delivery)> {
        // An interrupt ends the process, which the slot survives as it survives a power cut.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let device = slot.description().to_owned();
        let bar = if io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        let bar = bar.with_finish(ProgressFinish::AndClear).with_message("writing");
        let cancel = Cancel::default();
        let flashing = image::flash(slot, source, expected, progress, &cancel);
        let done = runtime.block_on(progress.watch(REDRAW, flashing, |now| draw(&bar, &now)));
        done.with_context(|| format!("cannot flash slot {} ({device})", self.slot))
    }
}

impl Flashed {
    fn text(&self) -> String {
        let Self { slot, device, bytes, image_digest, version, .. } = self;
        let version =
            version.as_ref().map_or("an image that states no version".to_owned(), ToString::to_string);
        format!(
            "slot {slot} ({device}) holds {version}: {}, {image_digest}, read back from the medium\n{}: \
             {} fetched; of the image {} were right in the slot already, {} were put there\n",
            HumanBytes(*bytes),
            self.way(),
            HumanBytes(self.bytes_fetched),
            HumanBytes(self.bytes_reused),
            HumanBytes(self.bytes_written),
        )
    }

    fn way(&self) -> String {
        match (self.delivery, &self.delivery_reason) {
            (_, Some(reason)) => {
                format!("the artifact was fetched whole, the index was of no use ({reason})")
            }
            ("Indexed", _) => "by the index".to_owned(),
            _ => "the whole artifact".to_owned(),
        }
    }
}

/// How the image came, in a word, and why.
fn said(delivery: Delivery) -> (&'static str, Option<String>) {
    match delivery {
        Delivery::Indexed => ("Indexed", None),
        Delivery::WholeInstead { reason } => ("WholeInstead", Some(reason)),
        _ => ("Whole", None),
    }
}

/// The version in the image. What is odd about it is said, and does not undo the write.
fn version_inside(slot: &VerifiedSlot) -> Option<OsVersion> {
    match inspect(slot, &GuardFiles::default()) {
        Ok(inspection) => {
            if !matches!(inspection.guard, GuardFound::Enabled { .. }) {
                eprintln!(
                    "warning: the image has no guard that is started: a trial boot of it could not fall back by itself"
                );
            }
            inspection.version
        }
        Err(error) => {
            eprintln!("warning: {:#}", anyhow::Error::new(error));
            None
        }
    }
}

/// Shows how much of the image is in the slot and was read back, if it is known how long it is; else how
/// much of the artifact came.
fn draw(bar: &ProgressBar, now: &ProgressSnapshot) {
    let (position, length) = match now.image_bytes {
        Some(image) => (now.bytes_verified, Some(image)),
        None => (now.bytes_done, now.bytes_total),
    };
    if let Some(length) = length {
        bar.set_length(length);
    }
    bar.set_style(style(length.is_some()));
    bar.set_position(position);
}

pub(super) fn style(with_end: bool) -> ProgressStyle {
    let template = if with_end {
        "{msg:12} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"
    } else {
        "{msg:12} {bytes} {binary_bytes_per_sec} {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
