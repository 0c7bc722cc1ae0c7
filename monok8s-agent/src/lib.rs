//! The programs that run on a node.

pub mod agent;
pub mod ctl;
#[cfg(feature = "failpoints")]
pub mod failpoints;
mod host;
pub mod machine;
pub mod politeness;
pub mod program;
