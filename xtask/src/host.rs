//! Programs of the machine we run on, and the Debian package that brings each.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Where Debian keeps programs that are for root, which is not in everyone's `PATH`.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"];

/// A program and the Debian or Ubuntu package it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Name of the executable.
    pub name: &'static str,
    /// Package to install it from.
    pub package: &'static str,
}

/// Makes an ext4 file system from a directory tree.
pub const MKE2FS: Program = Program { name: "mke2fs", package: "e2fsprogs" };
/// Reads files out of an ext4 image without mounting it.
pub const DEBUGFS: Program = Program { name: "debugfs", package: "e2fsprogs" };
/// Writes partition tables.
pub const SFDISK: Program = Program { name: "sfdisk", package: "fdisk" };
/// Attaches files as block devices.
pub const LOSETUP: Program = Program { name: "losetup", package: "mount" };
/// Starts children that die with their parent.
pub const SETPRIV: Program = Program { name: "setpriv", package: "util-linux" };

impl Program {
    /// Where the program is.
    ///
    /// # Errors
    /// It is not installed; the message names the command that installs it.
    pub fn locate(self) -> Result<PathBuf> {
        let Some(path) = locate(self.name) else {
            bail!("`{}` is not installed: run `apt-get install {}` as root", self.name, self.package);
        };
        Ok(path)
    }
}

/// The first executable called `name` in `PATH` or in a directory for system programs.
pub fn locate(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Whether this process may do what only root may: attach loop devices, open block devices.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_the_command_that_brings_it() {
        let missing = Program { name: "no-such-program-here", package: "some-package" };
        let message = missing.locate().unwrap_err().to_string();
        assert!(message.contains("apt-get install some-package"), "{message}");
    }

    #[test]
    fn finds_a_program_that_every_system_has() {
        assert!(locate("sh").is_some_and(|path| path.is_absolute()));
    }
}
