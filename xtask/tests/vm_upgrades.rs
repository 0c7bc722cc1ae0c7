//! Upgrades of machines that really start: through a trial, or back. They take long, so `cargo xtask test
//! --vm` runs them and nothing else does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "vm/api_away.rs"]
mod api_away;
#[path = "vm/failures.rs"]
mod failures;
#[path = "vm/kills.rs"]
mod kills;
#[path = "vm/library.rs"]
mod library;
#[path = "vm/scene.rs"]
mod scene;
#[path = "vm/upgrade.rs"]
mod upgrade;

use library::library;
