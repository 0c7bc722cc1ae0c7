//! How much of a machine's network and disks may be used to write a slot.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use monok8s_sdk::disk::{HostView, Pace, Pressure, Throttle};
use monok8s_sdk::image::DownloadLimits;

/// What the kernel says about waits for disks, below the host's root.
const PRESSURE_FILE: &str = "proc/pressure/io";

/// The flags. `ctl` takes the same ones and variables as the agent: what a node can bear does not
/// depend on who writes.
#[derive(Clone, Debug, clap::Args)]
pub struct PolitenessArgs {
    /// Most bytes a second to download, such as 20MiB, or none.
    #[arg(long, value_name = "BYTES", env = "MONOK8S_DOWNLOAD_RATE", default_value_t = Rate::None)]
    pub download_rate: Rate,

    /// Most bytes a second to write to the slots and read from them, together, such as 50MiB, or none.
    #[arg(
        long,
        value_name = "BYTES",
        env = "MONOK8S_DISK_RATE",
        default_value_t = Rate::None,
        value_parser = Rate::of_a_disk
    )]
    pub disk_rate: Rate,

    /// Slow down when tasks of the node, ours included, wait for disks for more than so many percent of
    /// the time, or none [default: 30 for the agent, none for ctl flash].
    #[arg(long, value_name = "PERCENT", env = "MONOK8S_IO_PRESSURE")]
    pub io_pressure: Option<PressureLimit>,

    /// Bytes a second that are written and read however busy the disks are.
    #[arg(
        long,
        value_name = "BYTES",
        env = "MONOK8S_IO_FLOOR",
        default_value_t = ByteRate::FLOOR,
        value_parser = ByteRate::of_a_disk
    )]
    pub io_floor: ByteRate,
}

impl PolitenessArgs {
    /// What was asked for, and `pressure` if nothing was said about that.
    #[must_use]
    pub fn with_default(self, pressure: PressureLimit) -> Politeness {
        Politeness {
            download_rate: self.download_rate.limit(),
            disk_rate: self.disk_rate.limit(),
            pressure: self.io_pressure.unwrap_or(pressure),
            floor: self.io_floor,
        }
    }
}

/// How a write behaves towards everything else on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Politeness {
    download_rate: Option<NonZeroU64>,
    disk_rate: Option<NonZeroU64>,
    pressure: PressureLimit,
    floor: ByteRate,
}

impl Default for Politeness {
    /// None at all.
    fn default() -> Self {
        let (download_rate, disk_rate) = (None, None);
        Self { download_rate, disk_rate, pressure: PressureLimit::None, floor: ByteRate::FLOOR }
    }
}

impl Politeness {
    /// What a slot, and everything that is read to make it, is kept to.
    #[must_use]
    pub fn throttle(&self, host: &HostView) -> Throttle {
        Throttle::new(Pace { limit: self.disk_rate, pressure: self.sensor(host) })
    }

    /// A sentence, if the machine cannot tell what it is asked about.
    #[must_use]
    pub fn missing(&self, host: &HostView) -> Option<String> {
        let sensor = self.sensor(host).filter(|sensor| !sensor.can_be_read())?;
        Some(format!(
            "{} says nothing, so nothing slows down for others: boot the kernel with psi=1, or set --disk-rate \
             (MONOK8S_DISK_RATE)",
            sensor.file.display()
        ))
    }

    fn sensor(&self, host: &HostView) -> Option<Pressure> {
        let above_percent = match self.pressure {
            PressureLimit::None => return None,
            PressureLimit::Above(percent) => percent,
        };
        Some(Pressure { file: host.path(PRESSURE_FILE), above_percent, floor: self.floor.0 })
    }

    /// Limits of all downloads of an image into a slot of `slot_size` bytes. The time they allow leaves
    /// room for what the rates slow down; a slot is written and read back.
    #[must_use]
    pub fn download_limits(&self, attempts: u32, slot_size: u64) -> DownloadLimits {
        let floor = (self.pressure != PressureLimit::None).then_some(self.floor.0);
        let disk = [self.disk_rate, floor].into_iter().flatten().min();
        let seconds = |bytes: u64, rate: Option<NonZeroU64>| rate.map_or(0, |rate| bytes / rate);
        let slowed =
            seconds(slot_size, self.download_rate).saturating_add(seconds(slot_size.saturating_mul(2), disk));
        let unlimited = DownloadLimits::default();
        let total = unlimited.total.saturating_add(Duration::from_secs(slowed));
        DownloadLimits { attempts, rate: self.download_rate, total, ..unlimited }
    }
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(NonZeroU64);

/// A limit in bytes a second, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// As fast as it goes.
    None,
    /// No faster than this.
    Limit(ByteRate),
}

/// When a node is taken to suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressureLimit {
    /// Never; nothing is looked at.
    None,
    /// When some task waited for a disk for more than this share of the last second, in percent.
    Above(u8),
}

/// Why a text is not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// It is in no known form.
    #[error("{0:?} is not a rate: write whole bytes a second, such as 20MiB, 500KiB or 20000000")]
    Form(String),
    /// It would hardly ever end.
    #[error("{text} a second is too slow: {least} a second is the least, or an upgrade would take hours")]
    TooSlow {
        /// What was asked for.
        text: String,
        /// The least that is not refused.
        least: ByteRate,
    },
}

/// A text that is not a share of the time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a pressure: write a percentage from 1 to 99, or none")]
pub struct PressureLimitError {
    text: String,
}

/// What a number may be followed by. As in Kubernetes quantities, with or without the B.
const UNITS: [(&str, u64); 6] =
    [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];

impl ByteRate {
    /// What an old SD card bears beside its work, and 2 GiB written and read back in 17 minutes.
    const FLOOR: Self = Self::of(4 << 20);
    /// 1 GiB takes four and a half hours.
    const LEAST: Self = Self::of(64 << 10);
    /// A disk transfers a MiB at a time, and cannot be interrupted while it waits to.
    const LEAST_OF_A_DISK: Self = Self::of(1 << 20);

    const fn of(bytes: u64) -> Self {
        match NonZeroU64::new(bytes) {
            Some(bytes) => Self(bytes),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// Reads a rate that a disk can be kept to.
    pub fn of_a_disk(text: &str) -> Result<Self, RateError> {
        text.parse::<Self>()?.at_least(Self::LEAST_OF_A_DISK, text)
    }

    fn at_least(self, least: Self, text: &str) -> Result<Self, RateError> {
        if self.0 < least.0 {
            return Err(RateError::TooSlow { text: text.to_owned(), least });
        }
        Ok(self)
    }
}

impl Rate {
    /// Reads a rate that a disk can be kept to, or none.
    pub fn of_a_disk(text: &str) -> Result<Self, RateError> {
        if text == "none" { Ok(Self::None) } else { ByteRate::of_a_disk(text).map(Self::Limit) }
    }

    fn limit(self) -> Option<NonZeroU64> {
        match self {
            Self::None => None,
            Self::Limit(rate) => Some(rate.0),
        }
    }
}

impl PressureLimit {
    /// What suits a node with etcd and a kubelet on the disk that is written to.
    pub const OF_A_NODE: Self = Self::Above(30);
}

impl FromStr for ByteRate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let form = || RateError::Form(text.chars().take(40).collect());
        let digits = text.find(|found: char| !found.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let prefix = unit.strip_suffix('B').unwrap_or(unit);
        let factor = match UNITS.into_iter().find(|(name, _)| *name == prefix) {
            Some((_, factor)) => factor,
            None if prefix.is_empty() => 1,
            None => return Err(form()),
        };
        let number: u64 = number.parse().map_err(|_| form())?;
        Self::of(number.checked_mul(factor).ok_or_else(form)?).at_least(Self::LEAST, text)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::Limit) }
    }
}

impl FromStr for PressureLimit {
    type Err = PressureLimitError;

    fn from_str(text: &str) -> Result<Self, PressureLimitError> {
        if text == "none" {
            return Ok(Self::None);
        }
        match text.strip_suffix('%').unwrap_or(text).parse() {
            Ok(percent @ 1..=99) => Ok(Self::Above(percent)),
            _ => Err(PressureLimitError { text: text.chars().take(40).collect() }),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.get();
        match [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)]
            .into_iter()
            .find(|(_, factor)| bytes.is_multiple_of(*factor))
        {
            Some((unit, factor)) => write!(f, "{}{unit}B", bytes / factor),
            None => write!(f, "{bytes}"),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Limit(rate) => rate.fmt(f),
        }
    }
}

impl fmt::Display for PressureLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Above(percent) => percent.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    fn rate(bytes: u64) -> Rate {
        Rate::Limit(ByteRate::of(bytes))
    }

    #[test]
    fn rates_are_written_as_people_write_them() {
        for (text, bytes) in [
            ("20MiB", 20 << 20),
            ("20Mi", 20 << 20),
            ("500KiB", 500 << 10),
            ("2GiB", 2 << 30),
            ("20MB", 20_000_000),
            ("20M", 20_000_000),
            ("100kB", 100_000),
            ("1G", 1_000_000_000),
            ("1000000", 1_000_000),
            ("1000000B", 1_000_000),
        ] {
            let read: Rate = text.parse().unwrap();
            assert_eq!(read, rate(bytes), "{text}");
            assert_eq!(read.to_string().parse(), Ok(read), "{text} printed and read again");
        }
        assert_eq!("none".parse(), Ok(Rate::None));
        assert_eq!(rate(20 << 20).to_string(), "20MiB");
        assert_eq!(rate(1_000_001).to_string(), "1000001");
    }

    #[test]
    fn what_is_no_rate_is_refused_in_a_sentence() {
        for wrong in
            ["", "MiB", "fast", "-1", "1.5MiB", "20 MiB", "20mib", "20MiB/s", "20Mbit", "99999999999G"]
        {
            let refused = wrong.parse::<Rate>().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{wrong:?} is not a rate: write")), "{refused}");
        }
        for (slow, least) in [("0", "64KiB"), ("20", "64KiB"), ("63KiB", "64KiB")] {
            let refused = slow.parse::<Rate>().unwrap_err().to_string();
            let said = format!("{slow} a second is too slow: {least} a second is the least");
            assert!(refused.starts_with(&said), "{refused}");
        }
        assert!(Rate::of_a_disk("1000KiB").unwrap_err().to_string().contains("1MiB a second is the least"));
        assert_eq!(Rate::of_a_disk("1MiB"), Ok(rate(1 << 20)));
        assert!(ByteRate::of_a_disk("none").is_err(), "there is always a floor");
    }

    #[test]
    fn a_pressure_is_a_share_of_the_time() {
        assert_eq!("30".parse(), Ok(PressureLimit::Above(30)));
        assert_eq!("30%".parse(), Ok(PressureLimit::Above(30)));
        assert_eq!("none".parse(), Ok(PressureLimit::None));
        for wrong in ["0", "100", "off", "", "%", "12.5", "-3"] {
            let refused = wrong.parse::<PressureLimit>().unwrap_err().to_string();
            assert!(refused.contains("write a percentage from 1 to 99, or none"), "{refused}");
        }
    }

    #[test]
    fn a_download_has_the_time_that_its_rates_take() {
        let hours =
            |politeness: &Politeness| politeness.download_limits(3, 9 << 30).total.as_secs_f64() / 3600.0;
        let mut politeness = Politeness::default();
        assert!((0.99..1.01).contains(&hours(&politeness)));
        politeness.download_rate = NonZeroU64::new(1 << 20);
        assert!((3.5..3.6).contains(&hours(&politeness)), "{}", hours(&politeness));
        politeness.disk_rate = NonZeroU64::new(8 << 20);
        assert!((4.1..4.3).contains(&hours(&politeness)), "{}", hours(&politeness));
        politeness.pressure = PressureLimit::OF_A_NODE;
        assert!((4.8..4.9).contains(&hours(&politeness)), "at the floor: {}", hours(&politeness));
        assert_eq!(politeness.download_limits(3, 1).rate, NonZeroU64::new(1 << 20));
    }

    #[test]
    fn the_guide_has_each_flag_with_its_variable_and_default() {
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/os-upgrades.md");
        let guide = std::fs::read_to_string(guide).unwrap();
        let command = PolitenessArgs::augment_args(clap::Command::new("x"));
        for flag in command.get_arguments() {
            let (long, variable) = (flag.get_long().unwrap(), flag.get_env().unwrap().to_str().unwrap());
            let default = flag.get_default_values().first().map_or_else(
                || PressureLimit::OF_A_NODE.to_string(),
                |default| default.to_str().unwrap().to_owned(),
            );
            let row = format!("| `--{long}` | `{variable}` | `{default}`");
            assert!(guide.contains(&row), "docs/os-upgrades.md lacks {row}");
        }
    }

    #[test]
    fn a_kernel_that_does_not_tell_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let host = HostView::new(directory.path());
        let mut politeness = Politeness::default();
        assert_eq!(politeness.missing(&host), None, "nobody asked");
        politeness.pressure = PressureLimit::OF_A_NODE;
        assert!(politeness.missing(&host).unwrap().contains("psi=1"));
        let file = host.path(PRESSURE_FILE);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "some avg10=0.00 avg60=0.00 avg300=0.00 total=17\n").unwrap();
        assert_eq!(politeness.missing(&host), None);
    }
}
