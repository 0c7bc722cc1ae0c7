//! The fleet planner: what the operator does next, over all upgrades, nodes, progress objects and
//! cordons at once.
//!
//! [`plan()`] is a pure function of what was observed ([`Fleet`]) and the time. It makes every
//! choice; whoever carries the [`Plan`] out makes none. [`plan_with`] makes the same plan
//! sooner, where one follows on another. Three properties hold by construction, so that the executor may
//! be stopped between any two of its writes:
//!
//! - No action of a plan needs another action of the same plan to have succeeded. What has to come
//!   second (a reboot after the cordon, an uncordon after the withdrawal, anything of a run after
//!   its number) is planned only when the first was observed.
//! - Every action names the object, its UID and the resourceVersion it was decided on. A conflict
//!   means that the facts were old: observe and plan again.
//! - What counts is what is observed. A node that is to be uncordoned is unavailable until it was
//!   seen to be back.

mod action;
mod boot;
mod budget;
mod draft;
mod drain;
#[cfg(any(test, feature = "test-util"))]
pub mod fixtures;
mod fleet;
mod forecast;
mod gates;
mod govern;
mod halt;
mod health;
mod index;
mod inspect;
mod judge;
mod line;
mod order;
mod outlook;
mod pace;
mod plan;
mod pods;
mod refusals;
mod report;
mod route;
mod run;
mod stage;
mod survey;
mod sweep;
#[cfg(test)]
mod tests;
mod windows;

pub use action::{Action, NewProgress, ObjectRef, Plan, PodRef};
pub use drain::{DRAIN_BLOCKED, DRAIN_FORCED, Eviction, EvictionAnswer, drain_obstacles};
pub use fleet::{
    Evaluation, Fleet, Management, NodeReport, NodeView, OSNodeView, Readiness, Role, Scheduling, Taints,
    Target, UpgradeView, VersionSource,
};
pub use health::Health;
pub use inspect::{Assessment, Inspection, Standing, inspect};
pub use outlook::{NewRun, Outlook, Wait, Waits};
pub use plan::{PlanMemory, plan, plan_with};
pub use pods::{PodController, PodData, PodRun, PodView};
pub use run::{frozen_target, run_digest};
pub use windows::{WindowError, WindowState, Windows};
