//! Programs of Go modules: pinned by a go.sum, built once, and kept in `target/`, in a directory named for a version
//! and for a digest of everything that decides what is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use monok8s_sdk::digest::Sha256Digest;

use crate::cache::{lock, target_directory};
use crate::host;

/// A Go module of `tool` directives, with no source of its own.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its directory in `xtask/`, and that of its programs in `target/`.
    pub(crate) name: &'static str,
    /// What its programs are, for people.
    pub(crate) title: &'static str,
    /// Its go.mod.
    pub(crate) go_mod: &'static str,
    /// Its go.sum.
    pub(crate) go_sum: &'static str,
    /// The package whose version they go by.
    pub(crate) versioned_by: &'static str,
    /// Flags of every build of it.
    pub(crate) flags: &'static [&'static str],
    /// Changes when its linker flags do, so that kept programs are built again.
    pub(crate) recipe: &'static str,
    /// What to do where there is no Go.
    pub(crate) without_go: &'static str,
}

/// Something to build, and what it is kept as.
#[derive(Debug, Clone)]
pub(crate) struct Executable {
    /// The package.
    pub(crate) package: &'static str,
    /// What `go build` calls it: the last element of the package that is not a version.
    pub(crate) built_name: &'static str,
    /// What it is kept as.
    pub(crate) name: String,
}

impl Module {
    /// The version that it pins, such as `v1.35.4`.
    pub(crate) fn version(&self) -> Result<&'static str> {
        self.go_mod
            .lines()
            .find_map(|line| line.trim().strip_prefix(self.versioned_by)?.strip_prefix(' '))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| {
                format!("xtask/{}/go.mod requires no version of {}", self.name, self.versioned_by)
            })
    }

    /// Where its programs are kept.
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        let recipe = [&self.flags.concat(), self.recipe].concat();
        let inputs = Sha256Digest::of([self.go_mod, self.go_sum, &recipe].concat().as_bytes()).hex();
        let key = inputs.get(..10).unwrap_or(&inputs);
        Ok(target_directory().join(self.name).join(format!("{}-{key}", self.version()?)))
    }

    /// Builds what is not yet there, with linker flags of its own. Each appears complete or not at all.
    pub(crate) async fn build(&self, executables: &[Executable], linker: &str) -> Result<()> {
        let directory = self.directory()?;
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let _lock = lock(&directory.join("lock"), self.title).await?;
        let missing: Vec<&Executable> =
            executables.iter().filter(|executable| !directory.join(&executable.name).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let go = self.go().await?;
        let names = missing.iter().map(|executable| executable.name.as_str()).collect::<Vec<_>>().join(", ");
        eprintln!(
            "building {names} {} from xtask/{}: not yet in {} (minutes the first time)",
            self.version()?,
            self.name,
            directory.display()
        );
        let started = Instant::now();
        let fresh = tempfile::Builder::new().prefix("building-").tempdir_in(&directory)?;
        let status = tokio::process::Command::new(&go)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name))
            .args(["build", "-mod=readonly", "-buildvcs=false", "-ldflags", linker])
            .args(self.flags)
            .arg("-o")
            .arg(fresh.path())
            .args(missing.iter().map(|executable| executable.package))
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .kill_on_drop(true)
            .status()
            .await
            .with_context(|| format!("cannot run {}", go.display()))?;
        if !status.success() {
            bail!("`go build` of {names} failed ({status}); its messages are above");
        }
        for executable in &missing {
            let built = fresh.path().join(executable.built_name);
            fs::rename(&built, directory.join(&executable.name))
                .with_context(|| format!("cannot keep {} as {}", built.display(), executable.name))?;
        }
        eprintln!("built {names} in {} s", started.elapsed().as_secs());
        Ok(())
    }

    /// Go, recent enough to fetch the toolchain that go.mod asks for.
    async fn go(&self) -> Result<PathBuf> {
        const REMEDY: &str = "install Go 1.21 or newer (it fetches the exact toolchain itself): \
            `curl -fsSL https://go.dev/dl/go1.26.0.linux-$(dpkg --print-architecture).tar.gz | tar -C /usr/local -xz` \
            as root";
        let (title, otherwise) = (self.title, self.without_go);
        let Some(go) = host::locate("go") else {
            bail!("building {title} takes Go, which is not installed: {REMEDY}{otherwise}");
        };
        let output = tokio::process::Command::new(&go)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .output()
            .await?;
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match minor(&found) {
            Some(minor) if minor >= 21 => Ok(go),
            _ => bail!("{} is {found:?}, too old to build {title}: {REMEDY}{otherwise}", go.display()),
        }
    }
}

/// The 26 of `go1.26.8`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("go1.")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_which_go_is_too_old() {
        assert_eq!(minor("go1.19.8"), Some(19));
        assert_eq!(minor("go1.26rc1"), Some(26));
        assert_eq!(minor(""), None);
    }
}
