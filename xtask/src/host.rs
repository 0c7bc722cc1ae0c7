//! Programs of the machine we run on, and the Debian package that brings each.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};

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
/// Starts children with mounts and processes of their own.
pub const UNSHARE: Program = Program { name: "unshare", package: "util-linux" };
/// Takes out of programs what only debuggers read.
pub const STRIP: Program = Program { name: "strip", package: "binutils" };
/// Reads a U-Boot environment.
pub const FW_PRINTENV: Program = Program { name: "fw_printenv", package: "libubootenv-tool" };
/// Changes a U-Boot environment.
pub const FW_SETENV: Program = Program { name: "fw_setenv", package: "libubootenv-tool" };
/// Makes a U-Boot environment from text.
pub const MKENVIMAGE: Program = Program { name: "mkenvimage", package: "u-boot-tools" };
/// Makes a script that U-Boot runs.
pub const MKIMAGE: Program = Program { name: "mkimage", package: "u-boot-tools" };
/// Makes the file system that U-Boot reads its script from.
pub const MKFS_VFAT: Program = Program { name: "mkfs.vfat", package: "dosfstools" };
/// Writes files into such a file system.
pub const MCOPY: Program = Program { name: "mcopy", package: "mtools" };
/// Runs a 64-bit ARM machine.
pub const QEMU_AARCH64: Program = Program { name: "qemu-system-aarch64", package: "qemu-system-arm" };
/// Emulates PCs.
pub const QEMU_X86_64: Program = Program { name: "qemu-system-x86_64", package: "qemu-system-x86" };
/// Checks partition tables.
pub const SGDISK: Program = Program { name: "sgdisk", package: "gdisk" };
/// What the fixtures here need.
pub const FIXTURES: [Program; 5] = [MKE2FS, DEBUGFS, SFDISK, LOSETUP, SETPRIV];

/// What the tests of boot loaders run, and run it in.
pub const LOADERS: [Program; 19] = [
    QEMU_X86_64,
    QEMU_AARCH64,
    MCOPY,
    MKFS_VFAT,
    SGDISK,
    FW_PRINTENV,
    FW_SETENV,
    MKENVIMAGE,
    MKIMAGE,
    Program { name: "bootctl", package: "systemd-boot" },
    Program { name: "kernel-install", package: "systemd" },
    crate::grub::GRUB_MKIMAGE,
    crate::grub::GRUB_EDITENV,
    crate::grub::GRUB_SCRIPT_CHECK,
    Program { name: "/usr/lib/grub/i386-pc/boot.img", package: "grub-pc-bin" },
    Program { name: "/usr/lib/grub/x86_64-efi/normal.mod", package: "grub-efi-amd64-bin" },
    Program { name: "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", package: "systemd-boot-efi" },
    Program { name: "/usr/share/ovmf/OVMF.fd", package: "ovmf" },
    Program { name: "/usr/lib/u-boot/qemu_arm64/u-boot.bin", package: "u-boot-qemu" },
];

/// The root of this workspace.
#[must_use]
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Runs a command to its end, and returns what it printed.
///
/// # Errors
/// It cannot be started, or fails; the message has what it said on stderr.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program}` failed ({}): {}", output.status, said.trim());
    Ok(output.stdout)
}

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

/// Makes sure that all of `programs` are here. As root on a machine with apt, installs the packages
/// of those that are not, and says so on stderr.
///
/// # Errors
/// Something is missing and could not be installed; the message names the command that would.
pub fn provide(programs: &[Program]) -> Result<()> {
    provide_by(programs, Program::locate)
}

/// The same for what is no program: `name` is the path of a directory.
///
/// # Errors
/// As [`provide`].
pub fn provide_directory(directory: Program) -> Result<()> {
    provide_by(&[directory], |Program { name, package }| {
        if !Path::new(name).is_dir() {
            bail!("{name} is missing: run `apt-get install {package}` as root");
        }
        Ok(PathBuf::from(name))
    })
}

/// Installs those of `things` that are not here and can be: programs by their names, other files by
/// their paths. What cannot be installed is left to the tests that use it, which say so.
pub fn provide_where_possible(things: &[Program]) {
    let find = |Program { name, package }: Program| {
        let found = if name.starts_with('/') {
            Some(PathBuf::from(name)).filter(|path| path.exists())
        } else {
            locate(name)
        };
        found.with_context(|| format!("{name} is missing: run `apt-get install {package}` as root"))
    };
    if is_root()
        && locate("apt-get").is_some()
        && let Err(error) = provide_by(things, find)
    {
        eprintln!("{error:#}");
    }
}

/// Of several tests that miss the same, one installs it, and the others find it.
static APT: Mutex<()> = Mutex::new(());

fn provide_by(programs: &[Program], locate_one: impl Fn(Program) -> Result<PathBuf>) -> Result<()> {
    let packages = missing_packages(programs, |program| locate_one(program).is_ok());
    if packages.is_empty() {
        return Ok(());
    }
    let _one_at_a_time = APT.lock().unwrap_or_else(PoisonError::into_inner);
    let packages = missing_packages(programs, |program| locate_one(program).is_ok());
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let Some(apt) = locate("apt-get").filter(|_| is_root()) else {
        bail!("programs are missing: run `apt-get install {list}` as root");
    };
    eprintln!("installing {list} with apt-get");
    // The package lists of a fresh machine are empty or old; refreshing them is slow, so it comes second.
    if !install(&apt, &packages)? {
        run_openly(Command::new(&apt).args(["-q", "update"]))?;
        install(&apt, &packages)?;
    }
    match programs.iter().find_map(|program| locate_one(*program).err()) {
        None => Ok(()),
        Some(error) => Err(error.context(format!("`apt-get install {list}` did not help"))),
    }
}

/// The packages that bring what is not `here`, each once.
fn missing_packages(programs: &[Program], here: impl Fn(Program) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        programs.iter().filter(|program| !here(**program)).map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn install(apt: &Path, packages: &[&str]) -> Result<bool> {
    let mut command = Command::new(apt);
    // Another process may be at it too.
    command.args(["-q", "-o", "DPkg::Lock::Timeout=600", "install", "--yes", "--no-install-recommends"]);
    command.args(packages);
    run_openly(command.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn run_openly(command: &mut Command) -> Result<bool> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    Ok(status.success())
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
    fn a_package_is_named_once_and_only_if_something_of_it_is_missing() {
        let all = [MKE2FS, DEBUGFS, SFDISK, SETPRIV];
        assert_eq!(missing_packages(&all, |_| false), ["e2fsprogs", "fdisk", "util-linux"]);
        assert_eq!(missing_packages(&all, |program| program != SFDISK), ["fdisk"]);
        assert!(missing_packages(&all, |_| true).is_empty());
    }

    #[test]
    fn finds_a_program_that_every_system_has() {
        assert!(locate("sh").is_some_and(|path| path.is_absolute()));
    }
}
