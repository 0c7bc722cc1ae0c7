//! The real agent on simulated machines, against a real API server, with no operator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "agent/bench.rs"]
mod bench;
#[path = "agent/disks.rs"]
mod disks;
#[path = "agent/failures.rs"]
mod failures;
#[path = "agent/indexed.rs"]
mod indexed;
#[path = "agent/indexed_kills.rs"]
mod indexed_kills;
#[path = "agent/kills.rs"]
mod kills;
#[path = "agent/orders.rs"]
mod orders;
#[path = "agent/power_cut_rows.rs"]
mod power_cut_rows;
#[path = "agent/power_cut_subject.rs"]
mod power_cut_subject;
#[path = "agent/power_cuts.rs"]
mod power_cuts;
#[path = "agent/upgrade.rs"]
mod upgrade;
