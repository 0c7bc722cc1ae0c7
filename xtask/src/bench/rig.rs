//! The machine that is flashed: a disk with two slots on loop devices, and what the kernel counts there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::slot::Slot;
use serde::Serialize;

use super::cgroup::{Group, Limits};
use super::figures::{float, median};
use super::{run, tool};
use crate::digest;
use crate::disk::{Disk, DiskSpec, LoopDisk, SectorSize};
use crate::machine::firmware;
use crate::rootfs::Image;

/// The target is slot B; A is booted.
const TARGET: Slot = Slot::B;
/// How much is written and read at least to measure a speed; bytes.
const SAMPLE: u64 = 256 << 20;
/// How far a throttled device may be off its rate.
const TOLERANCE: f64 = 0.15;

/// How fast the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pace {
    /// As fast as the file below the loop device.
    Plain,
    /// As an SD card or a small eMMC: 80 MB/s written, 250 MB/s read.
    Throttled,
}

/// What a slot holds before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// Zeroes, with their blocks allocated.
    Nothing,
    /// An image.
    Image(&'a Image),
}

/// What direct I/O on the target reaches; bytes per second.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Speeds {
    pub(super) write: f64,
    pub(super) read: f64,
}

/// Bytes that a device was asked to move so far. Zeroing commands count as writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counters {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// The disk, attached.
pub(super) struct Rig {
    /// What `/proc`, `/sys` and `/dev` of the machine show.
    pub(super) host: PathBuf,
    pub(super) logs: PathBuf,
    loops: LoopDisk,
}

impl Pace {
    pub(super) const ALL: [Self; 2] = [Self::Plain, Self::Throttled];

    pub(super) fn limits(self) -> Option<Limits> {
        (self == Self::Throttled).then_some(Limits { write: 80_000_000, read: 250_000_000 })
    }
}

impl Rig {
    /// A disk in `directory` whose slots have `slot_bytes`.
    pub(super) fn new(directory: &Path, slot_bytes: u64) -> Result<Self> {
        let spec = DiskSpec {
            identity: "bench".to_owned(),
            slot_bytes,
            data_bytes: 16 << 20,
            sector_size: SectorSize::B512,
        };
        let disk = Disk::create(&directory.join("disk.img"), &spec)?;
        let host = directory.join("host");
        firmware::write_kernel_view(&host, &disk, TARGET.other())?;
        let logs = directory.join("logs");
        fs::create_dir_all(&logs)?;
        Ok(Self { host, logs, loops: LoopDisk::attach(&disk)? })
    }

    /// The device of the whole disk.
    pub(super) fn disk(&self) -> &Path {
        self.loops.whole.path()
    }

    /// The device that is written.
    pub(super) fn target(&self) -> &Path {
        self.loops.slot(TARGET).path()
    }

    /// The device that is booted.
    pub(super) fn source(&self) -> &Path {
        self.loops.slot(TARGET.other()).path()
    }

    /// A group to run in, that sees the disk at this pace.
    pub(super) fn group(&self, pace: Pace) -> Result<Group> {
        let group = Group::new()?;
        if let Some(limits) = pace.limits() {
            for device in [self.target(), self.source()] {
                group.throttle(&number(device)?, limits)?;
            }
        }
        Ok(group)
    }

    /// Fills a slot, every block of it, so that later writes find the file allocated.
    pub(super) async fn fill(&self, device: &Path, content: Content<'_>) -> Result<()> {
        let mut command = Command::new("dd");
        command.arg(format!("of={}", device.display()));
        command.args(["bs=4M", "oflag=direct", "conv=fsync", "status=none"]);
        match content {
            Content::Nothing => {
                let bytes = size(device)?;
                command.args(["if=/dev/zero", "iflag=count_bytes", &format!("count={bytes}")]);
            }
            Content::Image(image) => {
                command.args([&format!("if={}", image.path.display()), "iflag=direct"]);
            }
        }
        tool::run("filling a slot", command, &self.logs).await
    }

    /// Fails unless the target holds `image` on the medium.
    pub(super) async fn expect(&self, image: &Image) -> Result<()> {
        let (device, bytes) = (self.target().to_owned(), image.bytes);
        let found = tokio::task::spawn_blocking(move || read_back(&device, bytes)).await??;
        ensure!(found == image.digest, "the slot holds {found} afterwards, not {}", image.digest);
        Ok(())
    }

    /// What the kernel has counted on the target.
    pub(super) fn counters(&self) -> Result<Counters> {
        let file = sysfs(self.target()).join("stat");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let sectors = |at: usize| fields.get(at).map(|sectors| sectors * 512);
        let (read, written) = sectors(2).zip(sectors(6)).context("the device's stat is too short")?;
        Ok(Counters { read, written })
    }

    /// Measures the target with `dd`, and fails if a throttle does not hold.
    pub(super) async fn speeds(&self, pace: Pace, image: &Image) -> Result<Speeds> {
        let bytes = image.bytes.min(if pace == Pace::Plain { u64::MAX } else { SAMPLE });
        // A throttle lets a first burst pass: too little of it shows nothing.
        let passes = SAMPLE.div_ceil(bytes);
        let target = self.target().display().to_string();
        let write = format!("if={} of={target} oflag=direct conv=fsync", image.path.display());
        let read = format!("if={target} of=/dev/null iflag=direct");
        let mut speeds = [0.0; 2];
        warm(&image.path)?;
        for (speed, operands) in speeds.iter_mut().zip([write, read]) {
            let mut samples = Vec::new();
            for _ in 0..3 {
                let dd = format!("dd {operands} bs=4M count={} status=none", bytes.div_ceil(4 << 20));
                let script = format!("for pass in $(seq {passes}); do {dd}; done");
                let seconds = run::timed(self.group(pace)?, &script, &self.logs).await?;
                samples.push(float(bytes * passes) / seconds);
            }
            *speed = median(&samples);
        }
        let [write, read] = speeds;
        if let Some(limits) = pace.limits() {
            for (what, found, wanted) in [("write", write, limits.write), ("read", read, limits.read)] {
                let ratio = found / float(wanted);
                ensure!(
                    (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio),
                    "the throttle does not hold: {what} runs at {:.0} MB/s instead of {:.0}",
                    found / 1e6,
                    float(wanted) / 1e6
                );
            }
        }
        Ok(Speeds { write, read })
    }
}

/// Brings a file into the page cache.
pub(super) fn warm(file: &Path) -> Result<()> {
    let mut file = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    Ok(())
}

fn read_back(device: &Path, bytes: u64) -> Result<Sha256Digest> {
    let mut dd = Command::new("dd")
        .arg(format!("if={}", device.display()))
        .args(["bs=4M", "iflag=direct,count_bytes", "status=none"])
        .arg(format!("count={bytes}"))
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let found = dd.stdout.take().map(digest::of_reader).transpose()?;
    ensure!(dd.wait()?.success(), "dd cannot read {}", device.display());
    found.context("dd has no output")
}

fn sysfs(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

fn number(device: &Path) -> Result<String> {
    let file = sysfs(device).join("dev");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

fn size(device: &Path) -> Result<u64> {
    let file = sysfs(device).join("size");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().parse::<u64>()? * 512)
}
