//! Programs that the machines of these tests are made with.

use std::process::{Command, Output, Stdio};

use xtask::host::Program;
pub(super) use xtask::host::{MCOPY, QEMU_X86_64 as QEMU};

pub(super) const MFORMAT: Program = Program { name: "mformat", package: "mtools" };
pub(super) const MMD: Program = Program { name: "mmd", package: "mtools" };
pub(super) const MDIR: Program = Program { name: "mdir", package: "mtools" };
pub(super) const MDEL: Program = Program { name: "mdel", package: "mtools" };
pub(super) const MIB: u64 = 1 << 20;

/// Runs a program that must succeed.
pub(super) fn run(program: Program, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Output {
    let mut command = Command::new(program.locate().unwrap());
    let output = arguments(command.stdin(Stdio::null())).output().unwrap();
    assert!(output.status.success(), "{}: {}", program.name, String::from_utf8_lossy(&output.stderr));
    output
}
