//! Disk work without getting in anybody's way: a rate, and a rate that gives way.

use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::target::{BlockTarget, DiskError};

/// How often the pressure is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How much may be done at once before it counts: what one operation transfers.
const BURST: Duration = Duration::from_millis(50);

/// How fast disks may be worked with, in bytes a second read and written together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Never faster than this; `None` is as fast as it goes.
    pub limit: Option<NonZeroU64>,
    /// Slower while the node suffers; `None` does not look.
    pub pressure: Option<Pressure>,
}

/// When the node suffers, and how slow the work may become then.
///
/// The kernel's pressure stall information counts every task, ours included, and nobody can tell whose
/// wait it was: a slow disk that does nothing but our work looks like pressure too. So an idle node is
/// worked on for a little less than that share of the time, and a busy one at `floor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// `/proc/pressure/io`, as this process sees it.
    pub file: PathBuf,
    /// The share of the time, in percent, in which some task waited for a disk, measured every second.
    pub above_percent: u8,
    /// Bytes a second that are always granted, if the limit is not lower.
    pub floor: NonZeroU64,
}

impl Pressure {
    /// Whether this kernel tells at all. It may be built or booted without.
    #[must_use]
    pub fn can_be_read(&self) -> bool {
        self.waited().is_some()
    }

    /// For how long some task has waited for a disk since the start of the machine. Averages would
    /// tell too late: the one over 10 s is still high when nobody has waited for many seconds.
    fn waited(&self) -> Option<Duration> {
        fs::read_to_string(&self.file).ok().as_deref().and_then(some_total)
    }
}

/// The `some total` of a pressure file.
fn some_total(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let micros = line.split_whitespace().find_map(|field| field.strip_prefix("total="))?;
    micros.parse().ok().map(Duration::from_micros)
}

/// What is granted at the moment. Pure: observations in, waits out.
#[derive(Clone, Debug)]
struct Grant {
    /// Bytes a second; `None` is without limit.
    rate: Option<u64>,
    /// When everything granted so far is used up.
    spent_until: Instant,
    looked_at: Instant,
    /// What the pressure file said then.
    waited: Option<Duration>,
    /// What was done since `looked_at`, in bytes.
    done: u64,
}

impl Grant {
    fn new(pace: &Pace, waited: Option<Duration>, now: Instant) -> Self {
        let rate = pace.limit.map(NonZeroU64::get);
        Self { rate, spent_until: now, looked_at: now, waited, done: 0 }
    }

    /// How long to wait before `bytes` are transferred.
    fn wait(&mut self, bytes: u64, now: Instant) -> Duration {
        self.done = self.done.saturating_add(bytes);
        let Some(rate) = self.rate else { return Duration::ZERO };
        let cost = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX),
        );
        let start = self.spent_until.max(now);
        self.spent_until = start + cost;
        start.duration_since(now).saturating_sub(BURST)
    }

    /// Halves the rate while the node suffers, and raises it by a quarter while it does not.
    fn adapt(&mut self, pace: &Pace, pressure: &Pressure, waited: Option<Duration>, now: Instant) {
        let passed = now.duration_since(self.looked_at).max(Duration::from_millis(1));
        let observed = u64::try_from(u128::from(self.done) * 1000 / passed.as_millis()).unwrap_or(u64::MAX);
        // Pressure that cannot be read is none: a kernel without it must not slow a node down.
        let suffered = waited.zip(self.waited).map_or(Duration::ZERO, |(now, then)| now.saturating_sub(then));
        (self.looked_at, self.waited, self.done) = (now, waited, 0);
        let (floor, limit) = (pressure.floor.get(), pace.limit.map(NonZeroU64::get));
        let rate = if suffered.as_millis() * 100 > passed.as_millis() * u128::from(pressure.above_percent) {
            Some((self.rate.unwrap_or(observed).min(observed.max(floor)) / 2).max(floor))
        } else {
            // Once the rate is above what is done, it is no limit.
            self.rate
                .map(|rate| rate.saturating_add(rate / 4))
                .filter(|rate| *rate / 4 <= observed.max(floor))
        };
        self.rate = match (rate, limit) {
            (Some(rate), Some(limit)) => Some(rate.min(limit)),
            (rate, limit) => rate.or(limit),
        };
    }
}

/// Keeps everything that shares it to one pace: a slot that is written and what it is made from.
#[derive(Clone, Debug)]
pub struct Throttle {
    pace: Arc<Pace>,
    grant: Arc<Mutex<Grant>>,
}

impl Throttle {
    /// A throttle of its own. Clones share what is granted.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        let waited = pace.pressure.as_ref().and_then(Pressure::waited);
        let grant = Grant::new(&pace, waited, Instant::now());
        Self { pace: Arc::new(pace), grant: Arc::new(Mutex::new(grant)) }
    }

    /// Blocks until `bytes` may be transferred.
    pub(super) fn wait(&self, bytes: u64) {
        let now = Instant::now();
        let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pressure) = &self.pace.pressure
            && now.duration_since(grant.looked_at) >= LOOK
        {
            grant.adapt(&self.pace, pressure, pressure.waited(), now);
        }
        let wait = grant.wait(bytes, now);
        drop(grant);
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }
}

/// How much is zeroed at a time, in bytes.
const ZERO_STEP: u64 = 1 << 20;

/// A target that keeps to a pace.
pub(super) struct PacedTarget {
    target: Arc<dyn BlockTarget>,
    throttle: Throttle,
}

impl PacedTarget {
    pub(super) fn new(target: Arc<dyn BlockTarget>, throttle: Throttle) -> Self {
        Self { target, throttle }
    }
}

impl BlockTarget for PacedTarget {
    fn size(&self) -> u64 {
        self.target.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.throttle.wait(buf.len() as u64);
        self.target.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.throttle.wait(bytes.len() as u64);
        self.target.write_at(offset, bytes)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        // It is granted in full: a device that has no command for it is written to.
        let mut done = 0;
        while done < len {
            let part = (len - done).min(ZERO_STEP);
            self.throttle.wait(part);
            self.target.zero(offset + done, part)?;
            done += part;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.target.flush()
    }

    fn description(&self) -> &str {
        self.target.description()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::FileMachine;
    use super::super::{AlignedBuf, SlotMap};
    use super::*;
    use crate::slot::Slot;

    const MIB: u64 = 1 << 20;

    fn pace(limit: Option<u64>) -> Pace {
        let pressure = Pressure {
            file: "/proc/pressure/io".into(),
            above_percent: 30,
            floor: NonZeroU64::new(4 * MIB).unwrap(),
        };
        Pace { limit: limit.and_then(NonZeroU64::new), pressure: Some(pressure) }
    }

    /// A node whose disks do 100 MiB a second for us if they are let.
    struct Suffering {
        pace: Pace,
        grant: Grant,
        now: Instant,
        waited: Duration,
    }

    impl Suffering {
        fn new(pace: Pace) -> Self {
            let (now, waited) = (Instant::now(), Duration::from_secs(1000));
            let grant = Grant::new(&pace, Some(waited), now);
            Self { pace, grant, now, waited }
        }

        /// The rate in MiB a second after one more second, in which tasks waited for so many percent of it.
        fn after(&mut self, percent: u64) -> Option<u64> {
            self.now += LOOK;
            self.waited += Duration::from_millis(percent * 10);
            self.grant.done = self.grant.rate.map_or(100 * MIB, |rate| rate.min(100 * MIB));
            let pressure = self.pace.pressure.clone().unwrap();
            self.grant.adapt(&self.pace, &pressure, Some(self.waited), self.now);
            self.grant.rate.map(|rate| rate / MIB)
        }
    }

    #[test]
    fn a_rate_is_kept() {
        let start = Instant::now();
        let mut grant = Grant::new(&pace(Some(10 * MIB)), None, start);
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
        assert_eq!(Grant::new(&pace(None), None, start).wait(1 << 40, start), Duration::ZERO);
    }

    #[test]
    fn pressure_halves_the_rate_down_to_the_floor_and_calm_lifts_it() {
        let mut node = Suffering::new(pace(None));
        let rates: Vec<_> = [10, 80, 80, 80, 80, 100, 100].map(|percent| node.after(percent)).into();
        assert_eq!(rates, [None, Some(50), Some(25), Some(12), Some(6), Some(4), Some(4)]);
        assert_eq!(node.after(30), Some(5), "calm from the first second on");
        let calm = (0..30).map(|_| node.after(1)).last().unwrap();
        assert_eq!(calm, None, "calm again: no limit that is felt");
        let pressure = node.pace.pressure.clone().unwrap();
        node.grant.adapt(&node.pace, &pressure, None, node.now + LOOK);
        node.grant.adapt(&node.pace, &pressure, Some(Duration::from_secs(5000)), node.now + 2 * LOOK);
        assert_eq!(node.grant.rate, None, "a kernel that did not tell");
    }

    #[test]
    fn a_disk_that_does_nothing_else_is_used_for_a_quarter_of_the_time() {
        // Somebody waits for as long as we keep it busy: for as many percent as MiB of the 100 it does.
        let mut node = Suffering::new(pace(None));
        let rates: Vec<u64> =
            (0..100).scan(100, |rate, _| node.after(*rate).inspect(|now| *rate = *now)).collect();
        let mean = rates.iter().sum::<u64>() / 100;
        assert!(rates.len() == 100 && (22..=28).contains(&mean), "{mean} of {rates:?}");
    }

    #[test]
    fn a_limit_holds_in_calm_and_below_the_floor() {
        let mut node = Suffering::new(pace(Some(10 * MIB)));
        let rates: Vec<_> = [0, 80, 80, 0, 0, 0, 0, 0].map(|percent| node.after(percent)).into();
        assert_eq!(rates, [10, 5, 4, 5, 6, 7, 9, 10].map(Some));
        let mut node = Suffering::new(pace(Some(2 * MIB)));
        assert_eq!([0, 80, 80].map(|percent| node.after(percent)), [Some(2); 3]);
    }

    #[test]
    fn the_kernels_text_is_understood() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=7000001\nfull avg10=9.00 avg60=0 avg300=0 total=5\n";
        assert_eq!(some_total(text), Some(Duration::from_micros(7_000_001)));
        assert_eq!(some_total("full avg10=9.00 total=7\n"), None);
        assert_eq!(some_total("some avg10=1 total=x\n"), None);
        let pressure = |file: &str| Pressure { file: file.into(), ..pace(None).pressure.unwrap() };
        assert!(!pressure("/no/such/file").can_be_read());
    }

    #[test]
    fn a_suffering_node_is_noticed_in_its_pressure_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("io");
        let waited = |seconds: u64| {
            fs::write(&file, format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={seconds}000000\n"))
                .unwrap();
        };
        waited(1000);
        let mut pace = pace(None);
        pace.pressure.as_mut().unwrap().file.clone_from(&file);
        let throttle = Throttle::new(pace);
        // What it grants once another second has gone by in which 64 MiB were transferred.
        let a_second_later = || {
            {
                let mut grant = throttle.grant.lock().unwrap();
                grant.looked_at = grant.looked_at.checked_sub(LOOK).unwrap();
                grant.done = 64 * MIB;
            }
            throttle.wait(0);
            throttle.grant.lock().unwrap().rate
        };
        assert_eq!(a_second_later(), None, "nobody waited");
        waited(1600);
        let suffering = a_second_later().unwrap();
        assert!(suffering <= 32 * MIB, "{suffering}");
        let calm = a_second_later().unwrap();
        assert!(calm > suffering, "nobody waits any more: {calm}");
    }

    #[test]
    fn a_slot_and_what_it_is_made_from_share_one_rate() {
        let directory = tempfile::tempdir().unwrap();
        let machine = FileMachine::create(directory.path(), 4 * MIB).unwrap();
        let map = SlotMap::discover(&machine.host(), &machine.layout()).unwrap();
        let throttle = Throttle::new(Pace { limit: NonZeroU64::new(4 * MIB), pressure: None });
        let slot = map.open_inactive(&machine.host()).unwrap().paced(&throttle);
        let source = map.open_to_read(Slot::A).unwrap().paced(&throttle);
        let mut buf = AlignedBuf::zeroed(1 << 20);
        let began = Instant::now();
        slot.target().write_at(0, &buf).unwrap();
        source.read_at(0, &mut buf).unwrap();
        slot.target().read_at(0, &mut buf).unwrap();
        source.read_at(MIB, &mut buf).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(650), "{:?}", began.elapsed());
    }
}
