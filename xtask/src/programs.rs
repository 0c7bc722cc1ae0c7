//! The programs of this workspace, as they were built last.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

use crate::host::workspace_root;

/// A program of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The controller.
    Operator,
    /// The node agent.
    Agent,
    /// The command line for people.
    Ctl,
}

impl Program {
    fn file_name(self) -> &'static str {
        match self {
            Self::Operator => "monok8s-operator",
            Self::Agent => "monok8s-agent",
            Self::Ctl => "ctl",
        }
    }

    /// Where the program is. The first call in a process has cargo bring all of them up to date, so
    /// that nobody tests an old build.
    ///
    /// # Errors
    /// The build fails.
    pub fn locate(self) -> Result<PathBuf> {
        static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
        let directory = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        let directory = directory.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(directory.join(self.file_name()))
    }
}

/// Builds with the profile that this process was built with, and returns where the results are.
fn build() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    // Test binaries are one level below the programs, in `deps`.
    let directory = own
        .ancestors()
        .skip(1)
        .find(|directory| directory.file_name().is_some_and(|name| name != "deps"))
        .context("this program is not in a target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "monok8s-operator", "--package", "monok8s-agent", "--bins"]);
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    // Build scripts watch what cargo tells a program of its package (ring's does). With ours passed on,
    // half the dependencies would be built anew here, and once more outside.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    let status = cargo
        .current_dir(workspace_root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the programs do not build: run `cargo build --workspace --bins`");
    Ok(directory.to_owned())
}
