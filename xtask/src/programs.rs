//! The programs of this workspace, as they were built last.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

use crate::host::{STRIP, run, workspace_root};

/// What cargo calls all of them, as they are shipped.
pub(crate) const SHIPPED: &[&str] =
    &["build", "--package=monok8s-operator", "--package=monok8s-agent", "--bins"];
/// The agent that ends itself at a point. Both packages are named, so that everything they depend on is
/// built once for this and for what is shipped.
pub(crate) const STOPPING_AGENT: &[&str] = &[
    "build",
    "--package=monok8s-operator",
    "--package=monok8s-agent",
    "--features=monok8s-agent/failpoints",
    "--bin=monok8s-agent-failpoints",
];

/// A program of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The controller.
    Operator,
    /// The node agent.
    Agent,
    /// The node agent that ends itself where `MONOK8S_FAILPOINT` says; nobody ships it.
    StoppingAgent,
    /// The command line for people.
    Ctl,
}

impl Program {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Operator => "monok8s-operator",
            Self::Agent => "monok8s-agent",
            Self::StoppingAgent => "monok8s-agent-failpoints",
            Self::Ctl => "ctl",
        }
    }

    fn build_command(self) -> &'static [&'static str] {
        if self == Self::StoppingAgent { STOPPING_AGENT } else { SHIPPED }
    }

    /// Where the program is. The first call in a process has cargo bring it up to date, so that nobody
    /// tests an old build.
    ///
    /// # Errors
    /// The build fails.
    pub fn locate(self) -> Result<PathBuf> {
        static BUILT: [OnceLock<std::result::Result<PathBuf, String>>; 2] =
            [OnceLock::new(), OnceLock::new()];
        let [shipped, stopping] = &BUILT;
        let built = if self == Self::StoppingAgent { stopping } else { shipped };
        let directory = built.get_or_init(|| {
            let profile = own_profile().map_err(|error| format!("{error:#}"))?;
            build(profile, self.build_command()).map_err(|error| format!("{error:#}"))
        });
        let directory = directory.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(directory.join(self.file_name()))
    }

    /// The same, optimised whatever this process is, and nothing else built; for measurements.
    pub fn locate_release(self) -> Result<PathBuf> {
        let package = if self == Self::Operator { "monok8s-operator" } else { "monok8s-agent" };
        let (package, program) = (format!("--package={package}"), format!("--bin={}", self.file_name()));
        let directory = build(own_profile()?.with_file_name("release"), &["build", &package, &program])?;
        Ok(directory.join(self.file_name()))
    }

    /// Writes the program to `path` without what only debuggers read, which is most of its size.
    ///
    /// # Errors
    /// The build fails, or the copy.
    pub(crate) fn strip_to(self, path: &Path) -> Result<()> {
        run(Command::new(STRIP.locate()?).arg("-o").arg(path).arg(self.locate()?)).map(drop)
    }
}

/// Where this process was built, which tells the profile.
fn own_profile() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    // Test binaries are one level below the programs, in `deps`.
    let mut above = own.ancestors().skip(1);
    let directory = above.find(|directory| directory.file_name().is_some_and(|name| name != "deps"));
    Ok(directory.context("this program is not in a target directory")?.to_owned())
}

/// The variables in which cargo tells a program of its package. No cargo that builds in the same target
/// directory may see them: build scripts watch them (ring's does), and half the dependencies would be built anew
/// there, and once more outside.
pub(crate) fn told_by_cargo() -> impl Iterator<Item = String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
}

/// Builds with the profile of a directory, and returns the directory.
fn build(directory: PathBuf, command: &[&str]) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(command).arg("--quiet");
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    for name in told_by_cargo() {
        cargo.env_remove(name);
    }
    let status = cargo
        .current_dir(workspace_root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the programs do not build: run `cargo {}`", command.join(" "));
    Ok(directory)
}
