//! The programs that run on a node.

pub mod agent;
pub mod ctl;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod guard;
mod host;
pub mod loader;
pub mod machine;
mod on_host;
pub mod politeness;
pub mod program;
pub mod reboot;
mod unknown_loader;
