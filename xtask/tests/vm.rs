//! Machines that really start, in QEMU: GRUB, a kernel, systemd, containerd, a kubelet, and the agent as a
//! pod in it. They are upgraded, through a trial or back. By far the longest tests that there are:
//! `cargo xtask test` runs them last, `cargo xtask test --vm` nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "vm/api_away.rs"]
mod api_away;
#[path = "vm/failures.rs"]
mod failures;
#[path = "vm/images.rs"]
mod images;
#[path = "vm/kills.rs"]
mod kills;
#[path = "vm/scene.rs"]
mod scene;
#[path = "vm/upgrade.rs"]
mod upgrade;
