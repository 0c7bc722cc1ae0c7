//! Where the control plane's programs come from.
//!
//! First `KUBEBUILDER_ASSETS`, as setup-envtest sets it. Else the Go module in `xtask/controlplane`,
//! whose `go.sum` pins every source: built once and kept in `target/controlplane/`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::go::{Executable, Module};

const MODULE: Module = Module {
    name: "controlplane",
    title: "the control plane",
    go_mod: include_str!("../../controlplane/go.mod"),
    go_sum: include_str!("../../controlplane/go.sum"),
    versioned_by: "k8s.io/kubernetes",
    flags: &[],
    recipe: "-s -w, stamped",
    without_go: ", or set KUBEBUILDER_ASSETS to the directory that `setup-envtest use -p path` prints",
};
/// Packages that carry the version a Kubernetes program reports.
const STAMPED: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

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
        let built = MODULE.directory()?;
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
            MODULE.build(&missing, &stamp(pinned_version()?)).await?;
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
    let path = MODULE.directory()?.join(&executable.name);
    if !path.is_file() {
        MODULE.build(&[executable], &stamp(version)).await?;
    }
    Ok(path)
}

impl Executable {
    fn of(tool: Tool) -> Self {
        Self { package: tool.package(), built_name: tool.built_name(), name: tool.name().to_owned() }
    }
}

/// The Kubernetes version that the Go module pins, such as `v1.35.4`.
pub fn pinned_version() -> Result<&'static str> {
    MODULE.version()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_pinned_version() {
        let version = pinned_version().unwrap();
        assert!(version.split('.').count() == 3 && !version.contains(' '), "{version}");
        let staging = version.replacen("v1.", "v0.", 1);
        let replaced: Vec<&str> = MODULE.go_mod.lines().filter(|line| line.contains(" => ")).collect();
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
            assert!(MODULE.go_mod.lines().any(|line| line.trim() == tool.package()), "{tool:?}");
        }
    }
}
