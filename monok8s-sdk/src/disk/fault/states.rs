//! Every state that a power failure may leave.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::medium::Medium;
use super::power::{Change, Content, Event, Moment, Sectors, What};
use super::random::Random;
use super::{FaultDirectory, FaultDisk, Files};

/// How many states are looked at where there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashes {
    /// How many sets of unflushed operations at one moment: all of them if they are not more than
    /// twice as many, else these, among them none, all, each alone and each missing.
    pub subsets: usize,
    /// In how many ways the last operation is torn after its first sectors, and in how many at
    /// sectors here and there; those before it share as many.
    pub tears: usize,
    /// What the choice depends on, where there is one. The same seed always gives the same states.
    pub seed: u64,
}

impl Default for Crashes {
    fn default() -> Self {
        Self { subsets: 256, tears: 64, seed: 1 }
    }
}

/// A log that is no longer written.
pub(super) struct Frozen {
    bases: Vec<Content>,
    events: Vec<Event>,
    /// For each event, if it is a change: since when it is sure to be on the medium.
    durable: Vec<Option<u64>>,
    /// Changes that were under way at the same time and touch the same bytes.
    races: Vec<(usize, usize)>,
}

impl Frozen {
    pub(super) fn new(bases: Vec<Content>, events: Vec<Event>) -> Self {
        let durable = events.iter().map(|event| durable_since(event, &events)).collect();
        let pairs = (0..events.len()).flat_map(|one| (one + 1..events.len()).map(move |other| (one, other)));
        let race = |(one, other): &(usize, usize)| {
            events.get(*one).zip(events.get(*other)).is_some_and(|(one, other)| one.races(other))
        };
        let races = pairs.filter(race).collect();
        Self { bases, events, durable, races }
    }

    fn change(&self, at: usize) -> Option<(&Event, &Change)> {
        self.events.get(at).and_then(|event| match &event.what {
            What::Change(change) => Some((event, change)),
            What::Sync(_) => None,
        })
    }

    fn is_durable(&self, at: usize, now: u64) -> bool {
        self.durable.get(at).copied().flatten().is_some_and(|since| since <= now)
    }

    /// The changes that began by `now` and that a power failure may take.
    fn pending(&self, now: u64) -> Vec<usize> {
        let is_pending = |at: &usize| {
            self.change(*at).is_some_and(|(event, _)| event.started <= now) && !self.is_durable(*at, now)
        };
        (0..self.events.len()).filter(is_pending).collect()
    }

    /// For each device: what is on the medium for sure at `now`, and how many of the log's events
    /// are in that.
    fn settled(&self, now: u64) -> Vec<(usize, Content)> {
        let settle = |(device, base): (usize, &Content)| {
            let mut content = base.clone();
            let mut seen = 0;
            for (at, event) in self.events.iter().enumerate() {
                if event.device == device
                    && let What::Change(change) = &event.what
                {
                    if !self.is_durable(at, now) {
                        break;
                    }
                    content.apply(change, None);
                }
                seen = at + 1;
            }
            (seen, content)
        };
        self.bases.iter().enumerate().map(settle).collect()
    }
}

fn durable_since(change: &Event, events: &[Event]) -> Option<u64> {
    let What::Change(what) = &change.what else { return None };
    let returned = change.returned?;
    let covers = |event: &&Event| match event.what {
        What::Sync(scope) => {
            event.device == change.device && what.is_covered_by(scope) && returned < event.started
        }
        What::Change(_) => false,
    };
    events.iter().filter(covers).filter_map(|event| event.returned).min()
}

impl Event {
    fn is_before(&self, other: &Self) -> bool {
        self.returned.is_some_and(|returned| returned < other.started)
    }

    fn races(&self, other: &Self) -> bool {
        let (What::Change(change), What::Change(touched)) = (&self.what, &other.what) else { return false };
        self.device == other.device
            && !self.is_before(other)
            && !other.is_before(self)
            && change.overlaps(touched)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Races {
    AsStarted,
    Reversed,
}

/// Which state, in numbers.
struct Plan {
    now: u64,
    /// The changes that made it although no flush covers them, ascending.
    kept: Vec<usize>,
    /// The one of them that made it in parts.
    torn: Option<(usize, Sectors)>,
    races: Races,
}

/// All planned states, one after the other.
pub struct CrashStates {
    frozen: Arc<Frozen>,
    plans: std::vec::IntoIter<Plan>,
    settled: (Option<u64>, Arc<Vec<(usize, Content)>>),
}

impl std::fmt::Debug for CrashStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CrashStates({} left)", self.plans.len())
    }
}

impl CrashStates {
    pub(super) fn plan(frozen: Frozen, began: u64, marks: &[u64], crashes: &Crashes) -> Self {
        let mut moments: Vec<(u64, Option<usize>)> = vec![(began, None)];
        moments.extend(marks.iter().map(|mark| (*mark, None)));
        for (at, event) in frozen.events.iter().enumerate() {
            match event.what {
                What::Change(_) => moments.push((event.started, Some(at))),
                What::Sync(_) => moments.extend(event.returned.map(|returned| (returned, None))),
            }
        }
        moments.sort_unstable();
        let mut planner =
            Planner { frozen: &frozen, crashes, random: Random::new(crashes.seed), plans: vec![] };
        for (now, newest) in moments {
            planner.at(now, newest);
        }
        let plans = planner.plans.into_iter();
        Self { frozen: Arc::new(frozen), plans, settled: (None, Arc::default()) }
    }
}

impl Iterator for CrashStates {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        let plan = self.plans.next()?;
        if self.settled.0 != Some(plan.now) {
            self.settled = (Some(plan.now), Arc::new(self.frozen.settled(plan.now)));
        }
        Some(CrashState { frozen: Arc::clone(&self.frozen), settled: Arc::clone(&self.settled.1), plan })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.plans.size_hint()
    }
}

impl ExactSizeIterator for CrashStates {}

struct Planner<'a> {
    frozen: &'a Frozen,
    crashes: &'a Crashes,
    random: Random,
    plans: Vec<Plan>,
}

impl Planner<'_> {
    /// The states that are new at `now`: those with the newest change in them, if there is one.
    fn at(&mut self, now: u64, newest: Option<usize>) {
        let mut others = self.frozen.pending(now);
        others.retain(|at| Some(*at) != newest);
        for kept in subsets(&others, self.crashes.subsets, &mut self.random) {
            self.push(now, &kept, newest, None);
        }
        let Some(newest) = newest else { return };
        for tear in self.tears_of(newest, self.crashes.tears) {
            // A tear matters by itself, beside all the others, and beside any of them.
            let some = others.iter().copied().filter(|_| self.random.coin()).collect();
            for kept in BTreeSet::from([Vec::new(), others.clone(), some]) {
                self.push(now, &kept, Some(newest), Some((newest, tear.clone())));
            }
        }
        // What began earlier may still be torn when the newest is there.
        for other in &others {
            for tear in self.tears_of(*other, self.crashes.tears / others.len()) {
                self.push(now, &others, Some(newest), Some((*other, tear)));
            }
        }
    }

    fn tears_of(&mut self, change: usize, limit: usize) -> BTreeSet<Sectors> {
        let sectors = self.frozen.change(change).map_or(0, |(_, change)| change.sectors());
        tears(sectors, limit.max(1), &mut self.random)
    }

    fn push(&mut self, now: u64, kept: &[usize], newest: Option<usize>, torn: Option<(usize, Sectors)>) {
        let mut kept = kept.to_vec();
        kept.extend(newest);
        kept.sort_unstable();
        if self.frozen.races.iter().any(|(one, other)| kept.contains(one) && kept.contains(other)) {
            let (kept, torn) = (kept.clone(), torn.clone());
            self.plans.push(Plan { now, kept, torn, races: Races::Reversed });
        }
        self.plans.push(Plan { now, kept, torn, races: Races::AsStarted });
    }
}

/// Sets of these, no two alike.
fn subsets(of: &[usize], limit: usize, random: &mut Random) -> BTreeSet<Vec<usize>> {
    let few = 1_usize.checked_shl(u32::try_from(of.len()).unwrap_or(u32::MAX));
    let pick = |chosen: &dyn Fn(usize) -> bool| -> Vec<usize> {
        of.iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, event)| *event).collect()
    };
    if let Some(few) = few.filter(|few| *few <= limit.saturating_mul(2)) {
        return (0..few).map(|mask| pick(&|at| mask >> at & 1 == 1)).collect();
    }
    let mut sets = BTreeSet::from([Vec::new(), of.to_vec()]);
    for one in 0..of.len() {
        sets.extend([pick(&|at| at == one), pick(&|at| at != one), pick(&|at| at < one)]);
    }
    while sets.len() < limit {
        let set = of.iter().copied().filter(|_| random.coin()).collect();
        sets.insert(set);
    }
    sets
}

/// Ways to tear so many sectors, no two alike, none of them whole or nothing.
fn tears(sectors: usize, limit: usize, random: &mut Random) -> BTreeSet<Sectors> {
    let mut tears = BTreeSet::new();
    if sectors < 2 {
        return tears;
    }
    let cut = |chosen: &mut dyn FnMut(usize) -> bool| {
        let mut words = vec![0_u64; sectors.div_ceil(64)];
        for sector in (0..sectors).filter(|sector| chosen(*sector)) {
            if let Some(word) = words.get_mut(sector / 64) {
                *word |= 1 << (sector % 64);
            }
        }
        Sectors(words)
    };
    let boundaries: BTreeSet<usize> = if sectors - 1 <= limit {
        (1..sectors).collect()
    } else {
        (0..limit).map(|nth| 1 + nth * (sectors - 1) / limit).collect()
    };
    tears.extend(boundaries.iter().map(|boundary| cut(&mut |sector| sector < *boundary)));
    for _ in 0..limit.min(1 << sectors.min(16)) {
        tears.insert(cut(&mut |_| random.coin()));
    }
    tears.remove(&cut(&mut |_| false));
    tears.remove(&cut(&mut |_| true));
    tears
}

/// What is left after one power failure.
pub struct CrashState {
    frozen: Arc<Frozen>,
    settled: Arc<Vec<(usize, Content)>>,
    plan: Plan,
}

impl std::fmt::Debug for CrashState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { now, kept, torn, races } = &self.plan;
        write!(f, "power failed at {now}, of what was not flushed {kept:?} made it")?;
        if let Some((at, sectors)) = torn {
            write!(f, ", {at} only in the sectors {:x?}", sectors.0)?;
        }
        if *races == Races::Reversed { f.write_str(", races the other way round") } else { Ok(()) }
    }
}

impl CrashState {
    /// When the power failed.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment(self.plan.now)
    }

    /// What is on a disk.
    #[must_use]
    pub fn disk(&self, disk: &FaultDisk) -> Medium {
        match self.content(disk.device()) {
            Some(Content::Disk(medium)) => medium,
            _ => Medium::filled(0, 0),
        }
    }

    /// What is in a directory.
    #[must_use]
    pub fn directory(&self, directory: &FaultDirectory) -> Files {
        match self.content(directory.device()) {
            Some(Content::Directory(tree)) => Files::of(&tree),
            _ => Files::default(),
        }
    }

    fn content(&self, device: usize) -> Option<Content> {
        let Self { frozen, settled, plan } = self;
        let (seen, content) = settled.get(device)?;
        let mut content = content.clone();
        let of_this = |at: &usize| {
            let is_there = frozen.is_durable(*at, plan.now) || plan.kept.binary_search(at).is_ok();
            frozen.change(*at).is_some_and(|(event, change)| {
                event.device == device && event.started <= plan.now && (is_there || change.is_of_names())
            })
        };
        let mut changes: Vec<usize> = (*seen..frozen.events.len()).filter(of_this).collect();
        if plan.races == Races::Reversed {
            changes = reversed(frozen, changes);
        }
        // A file system keeps changes of names in order: with one of them, all later ones are lost.
        let mut names_lost = false;
        for at in changes {
            let Some((_, change)) = frozen.change(at) else { continue };
            let is_there = frozen.is_durable(at, plan.now) || plan.kept.binary_search(&at).is_ok();
            names_lost |= !is_there;
            if is_there && !(names_lost && change.is_of_names()) {
                let torn = plan.torn.as_ref().filter(|(torn, _)| *torn == at).map(|(_, sectors)| sectors);
                content.apply(change, torn);
            }
        }
        Some(content)
    }
}

/// The latest first, as far as what returned before another began stays before it.
fn reversed(frozen: &Frozen, mut changes: Vec<usize>) -> Vec<usize> {
    let mut order = Vec::with_capacity(changes.len());
    let waits = |one: usize, rest: &[usize]| {
        let started = |at: usize| frozen.events.get(at);
        rest.iter()
            .any(|other| started(*other).zip(started(one)).is_some_and(|(other, one)| other.is_before(one)))
    };
    while let Some(position) = changes.iter().rposition(|at| !waits(*at, &changes)) {
        order.push(changes.remove(position));
    }
    order
}
