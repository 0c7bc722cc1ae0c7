//! The per-node state machine: what a node does next, from what was observed.
//!
//! [`decide`] is pure: no clock, no disk, no API. The caller observes [`NodeFacts`] and an
//! [`Order`], carries out the one [`Action`] it gets, and observes again. Every action is one step
//! that can be done twice without harm, so a crash between two steps needs no special case: what
//! to do after a start follows from the booted slot, the boot ID, the loader and the [`Record`].
//!
//! | fact | authority |
//! |---|---|
//! | which slot is booted, which version | the kernel and os-release, as [`Booted`] |
//! | which slot boots next, how many tries | the loader, as [`LoaderStatus`](crate::boot::LoaderStatus) |
//! | what the other slot holds | the record's digest; forgotten before the slot is invalidated |
//! | what is wanted | the API object; from the commit on the record's attempt |
//! | which artifacts failed here | the record |

mod action;
mod checks;
mod commit;
mod decide;
mod facts;
#[cfg(test)]
mod fixture;
mod guard;
mod order;
mod record;
mod select;
mod stage;
mod step;
mod trial;

pub use action::{Action, ArmedBy, Report, WaitReason};
pub use checks::{CheckSight, CheckState, Holds, NamedCheck};
pub use decide::decide;
pub use facts::{ApiView, BootId, Booted, Check, HeldToken, NodeFacts, NodeView, TrialHealth};
pub use guard::{
    CameBack, GUARD_GRACE, GuardAction, GuardFacts, TrialHint, guard, guard_deadline, passed_trial,
};
pub use order::{Freshness, Order, OrderError, Pace, Reported, Standing, TimeLimit};
pub use record::{
    Attempt, AttemptKind, AttemptState, FailedArtifact, ObjectIdentity, PinnedImage, RECORD_FORMAT, Record,
    RecordedRollback, SeenObject, SlotContent, SlotContentState, Slots,
};
pub use select::{Selection, select};
pub use step::Step;
pub use trial::{Verdict, judge};

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod simulation_tests;
