//! The controller of MonoK8s OS upgrades, as a library, so that its stages can be tested.
//!
//! One loop for the whole fleet: [`observe`] takes a look from the watch caches, [`resolve`] says
//! what each upgrade comes to, [`plan`](mod@plan) asks the SDK's planner, [`apply`] carries the plan out and
//! [`status`] reports. Around it: [`leader`] (the Lease), [`catalogs`] (the readers of catalogs), [`pods`] (what
//! runs on cordoned nodes), [`health`] (the health checks), [`admin`] and [`metrics`].

pub mod access;
pub mod admin;
pub mod apply;
pub mod args;
pub mod cache;
pub mod catalogs;
pub mod crds;
pub mod events;
pub mod health;
mod known;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod observe;
pub mod plan;
pub mod pods;
pub mod resolve;
pub mod run;
pub mod status;
pub mod wake;
pub mod watch;
