//! Writing without getting in anybody's way: a rate, and a rate that gives way.

use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::target::{BlockTarget, CacheBypass, DiskError};

/// How often the pressure is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How much may be done at once before it counts: what one operation transfers.
const BURST: Duration = Duration::from_millis(50);

/// How fast a slot may be written and read back, in bytes a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Never faster than this; `None` is as fast as it goes.
    pub limit: Option<NonZeroU64>,
    /// Slower while the node suffers; `None` does not look.
    pub pressure: Option<Pressure>,
}

/// When the node suffers, and how slow a write may become then.
///
/// The kernel's pressure stall information counts every task, ours included: on a node that does
/// nothing else a slow disk looks like pressure too, and the write goes at `floor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// `/proc/pressure/io`, as this process sees it.
    pub file: PathBuf,
    /// The share of the last 10 s, in percent, in which some task waited for a disk.
    pub above_percent: u8,
    /// Bytes a second that are always granted.
    pub floor: NonZeroU64,
}

/// What is granted at the moment. Pure: observations in, waits out.
#[derive(Clone, Debug)]
struct Grant {
    /// Bytes a second; `None` is without limit.
    rate: Option<u64>,
    /// When everything granted so far is used up.
    spent_until: Instant,
    looked_at: Instant,
    /// What was done since `looked_at`, in bytes.
    done: u64,
}

impl Grant {
    fn new(pace: &Pace, now: Instant) -> Self {
        Self { rate: pace.limit.map(NonZeroU64::get), spent_until: now, looked_at: now, done: 0 }
    }

    /// How long to wait before `bytes` are transferred.
    fn wait(&mut self, bytes: u64, now: Instant) -> Duration {
        self.done += bytes;
        let Some(rate) = self.rate else { return Duration::ZERO };
        let cost = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX),
        );
        let start = self.spent_until.max(now);
        self.spent_until = start + cost;
        start.duration_since(now).saturating_sub(BURST)
    }

    /// Halves the rate while the node suffers, and raises it by a quarter while it does not.
    fn adapt(&mut self, pace: &Pace, pressure: &Pressure, percent: Option<f64>, now: Instant) {
        let passed = now.duration_since(self.looked_at).as_millis().max(1);
        let observed = u64::try_from(u128::from(self.done) * 1000 / passed).unwrap_or(u64::MAX);
        (self.looked_at, self.done) = (now, 0);
        let floor = pressure.floor.get();
        let limit = pace.limit.map(NonZeroU64::get);
        // Pressure that cannot be read is none: a kernel without it must not slow a node down.
        self.rate = if percent.is_some_and(|percent| percent > f64::from(pressure.above_percent)) {
            let halved = self.rate.unwrap_or(observed).min(observed.max(floor)) / 2;
            Some(limit.map_or(halved, |limit| halved.min(limit)).max(floor))
        } else {
            // Once the rate is above what is done, it is no limit.
            let raised =
                self.rate.map(|rate| rate + rate / 4).filter(|rate| *rate / 4 <= observed.max(floor));
            match (raised, limit) {
                (Some(raised), Some(limit)) => Some(raised.min(limit)),
                (raised, limit) => raised.or(limit),
            }
        };
    }
}

/// The `some avg10` of a pressure file.
fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// A target that keeps to a pace.
pub(super) struct PacedTarget {
    target: Arc<dyn BlockTarget>,
    pace: Pace,
    grant: Mutex<Grant>,
}

impl PacedTarget {
    pub(super) fn new(target: Arc<dyn BlockTarget>, pace: Pace) -> Self {
        let grant = Mutex::new(Grant::new(&pace, Instant::now()));
        Self { target, pace, grant }
    }

    fn wait(&self, bytes: u64) {
        let now = Instant::now();
        let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pressure) = &self.pace.pressure
            && now.duration_since(grant.looked_at) >= LOOK
        {
            let percent = fs::read_to_string(&pressure.file).ok().as_deref().and_then(some_avg10);
            grant.adapt(&self.pace, pressure, percent, now);
        }
        let wait = grant.wait(bytes, now);
        drop(grant);
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }
}

impl BlockTarget for PacedTarget {
    fn size(&self) -> u64 {
        self.target.size()
    }

    fn alignment(&self) -> u64 {
        self.target.alignment()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.wait(buf.len() as u64);
        self.target.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.wait(bytes.len() as u64);
        self.target.write_at(offset, bytes)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        // Mostly a command without data; where it is not, the target's own writes are slow enough.
        self.wait(len.min(1 << 20));
        self.target.zero(offset, len)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.target.flush()
    }

    fn cache_bypass(&self) -> CacheBypass {
        self.target.cache_bypass()
    }

    fn description(&self) -> &str {
        self.target.description()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pace(limit: Option<u64>) -> Pace {
        let pressure = Pressure {
            file: "/proc/pressure/io".into(),
            above_percent: 30,
            floor: NonZeroU64::new(4 * MIB).unwrap(),
        };
        Pace { limit: limit.and_then(NonZeroU64::new), pressure: Some(pressure) }
    }

    #[test]
    fn a_rate_is_kept() {
        let start = Instant::now();
        let mut grant = Grant::new(&pace(Some(10 * MIB)), start);
        let mut now = start;
        for _ in 0..100 {
            now += grant.wait(MIB, now);
        }
        let took = now.duration_since(start).as_secs_f64();
        assert!((9.7..=10.0).contains(&took), "100 MiB at 10 MiB/s took {took} s");
        // A pause is not made up for.
        now += Duration::from_secs(60);
        assert_eq!(grant.wait(MIB, now), Duration::ZERO);
        let waits: Duration = (0..10).map(|_| grant.wait(MIB, now)).max().unwrap();
        assert!(waits >= Duration::from_millis(900), "{waits:?}");
        assert_eq!(Grant::new(&pace(None), start).wait(1 << 40, start), Duration::ZERO);
    }

    #[test]
    fn pressure_halves_the_rate_down_to_the_floor_and_calm_lifts_it() {
        let pace = pace(None);
        let pressure = pace.pressure.clone().unwrap();
        let mut now = Instant::now();
        let mut grant = Grant::new(&pace, now);
        let mut rates = Vec::new();
        for percent in [Some(10.0), Some(80.0), Some(80.0), Some(80.0), Some(80.0), Some(80.0)] {
            now += LOOK;
            grant.done = grant.rate.unwrap_or(100 * MIB);
            grant.adapt(&pace, &pressure, percent, now);
            rates.push(grant.rate.map(|rate| rate / MIB));
        }
        assert_eq!(rates, [None, Some(50), Some(25), Some(12), Some(6), Some(4)]);
        for _ in 0..30 {
            now += LOOK;
            grant.done = grant.rate.map_or(100 * MIB, |rate| rate.min(100 * MIB));
            grant.adapt(&pace, &pressure, Some(1.0), now);
        }
        assert_eq!(grant.rate, None, "calm again: no limit that is felt");
        grant.adapt(&pace, &pressure, None, now + LOOK);
        assert_eq!(grant.rate, None, "a kernel that does not tell");
    }

    #[test]
    fn the_kernels_text_is_understood() {
        let text =
            "some avg10=12.34 avg60=1.00 avg300=0.10 total=1\nfull avg10=9.00 avg60=0 avg300=0 total=0\n";
        assert_eq!(some_avg10(text), Some(12.34));
        assert_eq!(some_avg10("full avg10=9.00\n"), None);
        assert_eq!(some_avg10("some avg10=x\n"), None);
    }
}
