//! Fixtures behind `cargo xtask demo` and `cargo xtask test`: a real Kubernetes control plane, real
//! disk images and GPT disks, and a file server that misbehaves on request.
//!
//! Everything here cleans up after itself when it is dropped. A program that holds such values runs
//! its work under [`process::until_interrupted`], so that Ctrl-C drops them too.

pub mod bench;
pub mod cache;
pub mod controlplane;
pub mod demo;
pub mod digest;
pub mod disk;
pub mod fuzz;
pub mod generate;
mod go;
pub mod grub;
pub mod host;
pub mod http;
pub mod kubelet;
pub mod machine;
pub mod process;
pub mod programs;
pub mod promtool;
pub mod rootfs;
pub mod scratch;
pub mod test;
pub mod testbed;
pub mod vm;
