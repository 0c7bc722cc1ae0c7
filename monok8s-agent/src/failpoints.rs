//! Named instants at which the agent ends itself with SIGKILL, so that a test finds on the disk
//! exactly what is there at that instant. Nothing is flushed, dropped or said to anybody any more.
//!
//! Only the program `monok8s-agent-failpoints` looks at the variable that names the instant, and it is
//! built with the feature `failpoints` alone: no other program has a trace of this.
//!
//! This is not the crate `fail`: there a point is a string that nobody checks, so one that is misspelt
//! never fires and its test passes; none of its actions ends a process, and a callback that does
//! cannot count hits. The names, the count and the signal would be here all the same, beside a second
//! random number generator in the tree.
//!
//! What lasts is changed in three places: the directory of the record, that of the loader's state, and
//! the slot. They are watched from outside (`watched`), so that the SDK knows nothing of this.

mod point;
pub(crate) mod watched;

use std::io::Write as _;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use monok8s_sdk::api::ProgressPhase;
use monok8s_sdk::node_upgrade::{Action, Step};
use rustix::process::{Signal, getpid, kill_process};

pub use point::Point;

/// The variable that names where to stop: `NAME`, or `NAME:N` for the Nth time that a process comes by.
pub const VARIABLE: &str = "MONOK8S_FAILPOINT";

/// Where to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stop {
    point: Point,
    hit: NonZeroU32,
}

/// A text that names no point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}={text:?} names no point: write NAME, or NAME:N for the Nth time, with one of\n  {}", Point::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join("\n  "))]
pub struct UnknownPoint {
    text: String,
}

impl FromStr for Stop {
    type Err = UnknownPoint;

    fn from_str(text: &str) -> Result<Self, UnknownPoint> {
        let unknown = || UnknownPoint { text: text.to_owned() };
        let (name, hit) = text.split_once(':').unwrap_or((text, "1"));
        let point = Point::ALL.iter().copied().find(|point| point.name() == name).ok_or_else(unknown)?;
        Ok(Self { point, hit: hit.parse().map_err(|_| unknown())? })
    }
}

static STOP: OnceLock<Stop> = OnceLock::new();

/// Takes the point from the environment; without the variable the agent never stops.
pub fn read_environment() -> Result<(), UnknownPoint> {
    if let Some(text) = std::env::var_os(VARIABLE) {
        let _ = STOP.set(text.to_string_lossy().parse()?);
    }
    Ok(())
}

/// The process ends here if it was told to.
pub(crate) fn reached(point: Point) {
    static HITS: AtomicU32 = AtomicU32::new(0);
    let Some(stop) = STOP.get().filter(|stop| stop.point == point) else { return };
    if HITS.fetch_add(1, Ordering::SeqCst) + 1 != stop.hit.get() {
        return;
    }
    // In one piece, whatever other threads log meanwhile.
    let _ = std::io::stderr().write_all(format!("stopped at {}\n", point.name()).as_bytes());
    // Whether it works is seen from outside: nothing after this may happen.
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// The points of one durable change of a small file.
#[derive(Clone, Copy)]
struct Save {
    /// The new copy lies beside the one that it is to replace.
    beside: Point,
    /// It has replaced it, and the directory is not flushed.
    renamed: Option<Point>,
    /// It is on the medium.
    done: Point,
}

impl Save {
    const fn new(beside: Point, done: Point) -> Self {
        Self { beside, renamed: None, done }
    }

    const fn with_renamed(self, renamed: Point) -> Self {
        Self { renamed: Some(renamed), ..self }
    }
}

/// What the next save of a file is about.
struct Next(Mutex<Option<Save>>);

impl Next {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn set(&self, save: Option<Save>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = save;
    }

    fn get(&self) -> Option<Save> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static RECORD: Next = Next::new();
static LOADER: Next = Next::new();

/// The record is saved next, as it is after `step`.
pub(crate) fn records(step: &Step) {
    use Point as P;
    RECORD.set(match step {
        Step::Accepted { .. } => Some(Save::new(P::AcceptedBeside, P::Accepted)),
        Step::Pinned { .. } => Some(Save::new(P::PinnedBeside, P::Pinned)),
        Step::Begun { .. } => Some(Save::new(P::BegunBeside, P::Begun)),
        Step::SlotForgotten { .. } => Some(Save::new(P::ClearedBeside, P::Cleared)),
        Step::Written { .. } => Some(Save::new(P::DigestBeside, P::DigestRecorded)),
        Step::Verified => Some(Save::new(P::VerifiedBeside, P::Verified)),
        Step::Intended { .. } => Some(Save::new(P::IntendedBeside, P::Intended)),
        Step::Committed { .. } => Some(Save::new(P::CommittedBeside, P::Committed)),
        Step::Confirmed => Some(Save::new(P::ConfirmRecordBeside, P::ConfirmRecorded)),
        Step::Reverting { .. } => Some(Save::new(P::RevertingBeside, P::Reverting)),
        Step::RolledBack { .. } => Some(Save::new(P::RolledBackBeside, P::RolledBack)),
        // Neither on the straight way nor on the way back.
        Step::Dropped
        | Step::ReadBackDiffers
        | Step::IntentDropped
        | Step::Failed { .. }
        | Step::RetryBegun { .. }
        | Step::RollbackBegun { .. }
        | Step::RollbackByHand { .. } => None,
    });
}

/// The loader's state is changed next, if it is, for `action`.
pub(crate) fn acts(action: &Action) {
    use Point as P;
    LOADER.set(match action {
        Action::MarkGood { .. } => Some(Save::new(P::MarkGoodBeside, P::MarkedGood)),
        Action::Invalidate { .. } => Some(Save::new(P::InvalidateBeside, P::Invalidated)),
        Action::Arm { .. } => Some(Save::new(P::ArmBeside, P::Armed).with_renamed(P::ArmRenamed)),
        Action::Confirm { .. } => {
            Some(Save::new(P::ConfirmBeside, P::Confirmed).with_renamed(P::ConfirmRenamed))
        }
        Action::RevertTrial { .. } => Some(Save::new(P::RevertBeside, P::Reverted)),
        Action::Disarm => Some(Save::new(P::DisarmBeside, P::Disarmed)),
        _ => None,
    });
}

/// The object says that it is in `phase`.
pub(crate) fn said(phase: &ProgressPhase) {
    match phase {
        ProgressPhase::Staged => reached(Point::StagedReported),
        ProgressPhase::Completed => reached(Point::CompletedReported),
        ProgressPhase::RolledBack => reached(Point::RolledBackReported),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_that_leads_to_it() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            let stop = |hit| Ok(Stop { point: *point, hit: NonZeroU32::new(hit).unwrap() });
            assert_eq!(point.name().parse(), stop(1));
            assert_eq!(format!("{}:3", point.name()).parse(), stop(3));
        }
    }

    #[test]
    fn what_names_no_point_is_refused_with_every_name() {
        for text in ["", "armd", "armed:", "armed:0", "armed:-1", "Armed", "armed:1:2"] {
            let refused = text.parse::<Stop>().unwrap_err().to_string();
            assert!(refused.contains(&format!("{text:?} names no point")), "{refused}");
            for point in Point::ALL {
                assert!(refused.contains(&format!("\n  {}", point.name())), "{refused}");
            }
        }
    }
}
