//! A machine that really starts, in QEMU: GRUB, a kernel, systemd, containerd, a kubelet, and the agent as
//! a pod in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "vm/boot.rs"]
mod boot;
#[path = "vm/library.rs"]
mod library;

use library::library;
