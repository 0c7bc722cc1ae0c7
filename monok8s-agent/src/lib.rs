//! The programs that run on a node.

pub mod agent;
pub mod ctl;
mod host;
pub mod machine;
pub mod politeness;
