//! Where the control plane's programs come from.
//!
//! First `KUBEBUILDER_ASSETS`, as setup-envtest sets it. Else the Go module in `xtask/controlplane`,
//! whose `go.sum` pins every source: built once and kept in `target/controlplane/`, in a directory
//! named for the version and for a digest of everything that decides what is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use monok8s_sdk::digest::Sha256Digest;

use crate::cache::{lock, target_directory};
use crate::host;
use anyhow::{Context as _, Result, bail};

const GO_MOD: &str = include_str!("../../controlplane/go.mod");
const GO_SUM: &str = include_str!("../../controlplane/go.sum");
/// Packages that carry the version a Kubernetes program reports.
const STAMPED: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
/// Changes when the flags of the build do, so that kept programs are built again.
const RECIPE: &str = "CGO_ENABLED=0 -s -w, stamped";

/// A program of the Go module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// The store behind the API server.
    Etcd,
    /// The Kubernetes API.
    KubeApiserver,
    /// Garbage collection, tokens, disruption budgets, Deployments, node lifecycle.
    KubeControllerManager,
    /// The client that people use.
    Kubectl,
}

impl Tool {
    /// Every tool the control plane uses.
    pub const ALL: [Self; 4] = [Self::Etcd, Self::KubeApiserver, Self::KubeControllerManager, Self::Kubectl];

    /// Name of the executable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
        }
    }

    /// What `go build` calls the executable: the last element of the package that is not a version.
    const fn built_name(self) -> &'static str {
        match self {
            Self::Etcd => "server",
            _ => self.name(),
        }
    }

    /// setup-envtest ships no controller manager.
    const fn in_envtest(self) -> bool {
        !matches!(self, Self::KubeControllerManager)
    }
}

/// The programs of one control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// Path of each [`Tool`], in the order of [`Tool::ALL`].
    paths: [PathBuf; Tool::ALL.len()],
}

impl Binaries {
    /// Finds every tool, building what is neither given by `KUBEBUILDER_ASSETS` nor built already.
    ///
    /// # Errors
    /// `KUBEBUILDER_ASSETS` names a directory that lacks a program, Go is missing (the message says
    /// how to get it), or the build failed.
    pub async fn find() -> Result<Self> {
        let assets =
            std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()).map(PathBuf::from);
        let built = built_directory()?;
        let mut missing = Vec::new();
        let mut locate = |tool: Tool| -> Result<PathBuf> {
            if let Some(assets) = &assets {
                let path = assets.join(tool.name());
                if path.is_file() {
                    return Ok(path);
                }
                if tool.in_envtest() {
                    bail!(
                        "KUBEBUILDER_ASSETS is {}, which has no {}: unset it to build the pinned one, or point it at \
                         the directory that `setup-envtest use -p path` prints",
                        assets.display(),
                        tool.name()
                    );
                }
            }
            let path = built.join(tool.name());
            if !path.is_file() {
                missing.push(tool);
            }
            Ok(path)
        };
        let [etcd, apiserver, controllers, kubectl] = Tool::ALL;
        let paths = [locate(etcd)?, locate(apiserver)?, locate(controllers)?, locate(kubectl)?];
        if !missing.is_empty() {
            let missing: Vec<Executable> = missing.into_iter().map(Executable::of).collect();
            build(&missing, pinned_version()?, &built).await?;
        }
        Ok(Self { paths })
    }

    /// Path of the executable.
    #[must_use]
    pub fn path(&self, tool: Tool) -> &Path {
        let [etcd, apiserver, controllers, kubectl] = &self.paths;
        match tool {
            Tool::Etcd => etcd,
            Tool::KubeApiserver => apiserver,
            Tool::KubeControllerManager => controllers,
            Tool::Kubectl => kubectl,
        }
    }
}

/// The pinned kubelet, built to say that it is `version`. `KUBEBUILDER_ASSETS` has none.
///
/// # Errors
/// Go is missing or the build failed.
pub async fn kubelet(version: &str) -> Result<PathBuf> {
    let executable = Executable {
        package: "k8s.io/kubernetes/cmd/kubelet",
        built_name: "kubelet",
        name: format!("kubelet-{version}"),
    };
    built_as(executable, version).await
}

/// The pinned scheduler. `KUBEBUILDER_ASSETS` has none.
///
/// # Errors
/// Go is missing or the build failed.
pub async fn scheduler() -> Result<PathBuf> {
    let name = "kube-scheduler";
    let executable = Executable {
        package: "k8s.io/kubernetes/cmd/kube-scheduler",
        built_name: name,
        name: name.to_owned(),
    };
    built_as(executable, pinned_version()?).await
}

async fn built_as(executable: Executable, version: &str) -> Result<PathBuf> {
    let directory = built_directory()?;
    let path = directory.join(&executable.name);
    if !path.is_file() {
        build(&[executable], version, &directory).await?;
    }
    Ok(path)
}

/// Something to build, and what it is kept as.
#[derive(Debug, Clone)]
struct Executable {
    package: &'static str,
    built_name: &'static str,
    name: String,
}

impl Executable {
    fn of(tool: Tool) -> Self {
        Self { package: tool.package(), built_name: tool.built_name(), name: tool.name().to_owned() }
    }
}

/// The Kubernetes version that the Go module pins, such as `v1.35.4`.
pub fn pinned_version() -> Result<&'static str> {
    GO_MOD
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split_whitespace().next())
        .context("xtask/controlplane/go.mod requires no version of k8s.io/kubernetes")
}

fn built_directory() -> Result<PathBuf> {
    let inputs = Sha256Digest::of([GO_MOD, GO_SUM, RECIPE].concat().as_bytes()).hex();
    let key = inputs.get(..10).unwrap_or(&inputs);
    Ok(target_directory().join("controlplane").join(format!("{}-{key}", pinned_version()?)))
}

/// Builds what is not yet in `directory`, stamped with `version`. Each appears there complete or not at
/// all.
async fn build(executables: &[Executable], version: &str, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let _lock = lock(&directory.join("lock"), "the control plane").await?;
    let missing: Vec<&Executable> =
        executables.iter().filter(|executable| !directory.join(&executable.name).is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let go = go().await?;
    let names: Vec<&str> = missing.iter().map(|executable| executable.name.as_str()).collect();
    eprintln!(
        "building {} of Kubernetes {} from xtask/controlplane: not yet in {} (minutes the first time)",
        names.join(", "),
        pinned_version()?,
        directory.display()
    );
    let started = Instant::now();
    let fresh = tempfile::Builder::new().prefix("building-").tempdir_in(directory)?;
    let status = tokio::process::Command::new(&go)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("controlplane"))
        .args(["build", "-mod=readonly", "-buildvcs=false", "-ldflags", &stamp(version), "-o"])
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
        bail!("`go build` of {} failed ({status}); its messages are above", names.join(", "));
    }
    for executable in &missing {
        let built = fresh.path().join(executable.built_name);
        fs::rename(&built, directory.join(&executable.name))
            .with_context(|| format!("cannot keep {} as {}", built.display(), executable.name))?;
    }
    eprintln!("built {} in {} s", names.join(", "), started.elapsed().as_secs());
    Ok(())
}

/// Linker flags that make the programs report `version`, and leave out what only debuggers read.
fn stamp(version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut flags = "-s -w".to_owned();
    for package in STAMPED {
        for (name, value) in
            [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")]
        {
            flags.extend([" -X ", package, ".", name, "=", value]);
        }
    }
    flags
}

/// Go, recent enough to fetch the toolchain that go.mod asks for.
async fn go() -> Result<PathBuf> {
    const REMEDY: &str = "install Go 1.21 or newer (it fetches the exact toolchain itself): \
        `curl -fsSL https://go.dev/dl/go1.26.0.linux-$(dpkg --print-architecture).tar.gz | tar -C /usr/local -xz` as root, \
        or set KUBEBUILDER_ASSETS to the directory that `setup-envtest use -p path` prints";
    let Some(go) = host::locate("go") else {
        bail!("building the control plane takes Go, which is not installed: {REMEDY}");
    };
    let output = tokio::process::Command::new(&go)
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local")
        .output()
        .await?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match minor(&found) {
        Some(minor) if minor >= 21 => Ok(go),
        _ => bail!("{} is {found:?}, too old to build the control plane: {REMEDY}", go.display()),
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
    fn reads_the_pinned_version() {
        let version = pinned_version().unwrap();
        assert!(version.split('.').count() == 3 && !version.contains(' '), "{version}");
        let staging = version.replacen("v1.", "v0.", 1);
        let replaced: Vec<&str> = GO_MOD.lines().filter(|line| line.contains(" => ")).collect();
        assert!(replaced.len() > 30, "staging repositories are replaced: {replaced:?}");
        for line in replaced {
            assert!(line.ends_with(&staging), "{line} is not at {staging}");
        }
    }

    #[test]
    fn stamps_every_field_that_a_version_report_shows() {
        let flags = stamp("v1.35.4");
        for field in ["gitVersion=v1.35.4", "gitMajor=1", "gitMinor=35"] {
            assert!(flags.contains(&format!("k8s.io/component-base/version.{field}")), "{flags}");
        }
    }

    #[test]
    fn every_tool_is_a_tool_of_the_go_module() {
        for tool in Tool::ALL {
            assert!(GO_MOD.lines().any(|line| line.trim() == tool.package()), "{tool:?}");
        }
    }

    #[test]
    fn knows_which_go_is_too_old() {
        assert_eq!(minor("go1.19.8"), Some(19));
        assert_eq!(minor("go1.26rc1"), Some(26));
        assert_eq!(minor(""), None);
    }
}
