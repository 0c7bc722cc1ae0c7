//! The programs that run on a node.

pub mod ctl;
