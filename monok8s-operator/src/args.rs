//! The command line. Every flag has an environment twin, so that a Deployment can set either.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use monok8s_sdk::api::IntOrPercent;
use monok8s_sdk::manifests::DEFAULT_NAMESPACE;

/// Where a pod finds the namespace of its service account.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The controller of MonoK8s OS upgrades.
#[derive(Debug, Parser)]
#[command(name = "monok8s-operator", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry out the OSUpgrades of the cluster, until stopped.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions as YAML, ready for kubectl apply -f -.
    Crds,
}

/// How to run.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Namespace of the Lease and of ConfigMap catalogs [default: the pod's own, else mono-system].
    #[arg(long, env = "MONOK8S_NAMESPACE")]
    pub namespace: Option<String>,

    /// How many managed nodes may be unavailable at once over all upgrades, as a number or a
    /// percentage [default: no limit besides each upgrade's own].
    #[arg(long, env = "MONOK8S_MAX_UNAVAILABLE", value_parser = int_or_percent)]
    pub max_unavailable: Option<IntOrPercent>,

    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "MONOK8S_METRICS_ADDR", default_value = "0.0.0.0:8080")]
    pub metrics_addr: SocketAddr,

    /// Act without a Lease. Safe only if nothing can start a second operator.
    #[arg(long, env = "MONOK8S_NO_LEASE", overrides_with = "lease")]
    pub no_lease: bool,

    /// Act only while holding the Lease (the default; undoes --no-lease).
    #[arg(long, env = "MONOK8S_LEASE", overrides_with = "no_lease")]
    pub lease: bool,

    /// Seconds after which the Lease of a silent operator may be taken over.
    #[arg(long, env = "MONOK8S_LEASE_DURATION_SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u16).range(3..=3600))]
    pub lease_duration_seconds: u16,

    /// The node this operator runs on, which goes last within its role [default: $NODE_NAME].
    #[arg(long, env = "MONOK8S_NODE_NAME")]
    pub node_name: Option<String>,

    /// Seconds between two looks at a catalog that is not inline. Before a grant it is always read.
    #[arg(long, env = "MONOK8S_CATALOG_REFRESH_SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u32).range(5..=86_400))]
    pub catalog_refresh_seconds: u32,

    /// The form of log lines on stderr.
    #[arg(long, env = "MONOK8S_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: a level, or directives such as info,monok8s_operator=debug.
    #[arg(long, env = "MONOK8S_LOG", default_value = "info")]
    pub log: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether the operator acts only while it holds the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMode {
    /// It does.
    Held,
    /// It acts without one.
    None,
}

impl RunArgs {
    /// Whether a Lease is held. `--lease` wins over an environment that says otherwise.
    #[must_use]
    pub fn lease_mode(&self) -> LeaseMode {
        if self.no_lease && !self.lease { LeaseMode::None } else { LeaseMode::Held }
    }

    /// The namespace: the flag, else `POD_NAMESPACE` of the downward API, else the service account's,
    /// else [`DEFAULT_NAMESPACE`].
    #[must_use]
    pub fn namespace(&self) -> String {
        let from_file = || read_namespace(&PathBuf::from(NAMESPACE_FILE));
        let downward = || std::env::var("POD_NAMESPACE").ok().filter(|name| !name.is_empty());
        let named = self.namespace.clone().filter(|name| !name.is_empty());
        named.or_else(downward).or_else(from_file).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
    }

    /// The node this operator runs on, if it is known.
    #[must_use]
    pub fn node_name(&self) -> Option<String> {
        let named = self.node_name.clone();
        named.or_else(|| std::env::var("NODE_NAME").ok()).filter(|name| !name.is_empty())
    }

    /// The operator's own pod, as `namespace/name`, if it is one: from `POD_NAME` of the downward API.
    #[must_use]
    pub fn pod(&self) -> Option<String> {
        let name = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty())?;
        Some(format!("{}/{name}", self.namespace()))
    }
}

fn read_namespace(file: &Path) -> Option<String> {
    let name = std::fs::read_to_string(file).ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

fn int_or_percent(text: &str) -> Result<IntOrPercent, String> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    let number: i32 = digits.parse().map_err(|_| "expected a number such as 2, or 10%".to_owned())?;
    match (number, text.ends_with('%')) {
        (1..=100, true) => Ok(IntOrPercent::Percent(text.to_owned())),
        (1.., false) => Ok(IntOrPercent::Int(number)),
        _ => Err("expected at least 1 node, or 1% to 100%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> RunArgs {
        let all = ["monok8s-operator", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(args) => *args,
            Command::Crds => panic!("not run"),
        }
    }

    #[test]
    fn a_lease_is_held_unless_it_is_declined() {
        assert_eq!(run(&[]).lease_mode(), LeaseMode::Held);
        assert_eq!(run(&["--no-lease"]).lease_mode(), LeaseMode::None);
        assert_eq!(run(&["--no-lease", "--lease"]).lease_mode(), LeaseMode::Held);
    }

    #[test]
    fn budgets_are_numbers_or_percentages() {
        assert_eq!(int_or_percent("3"), Ok(IntOrPercent::Int(3)));
        assert_eq!(int_or_percent("25%"), Ok(IntOrPercent::Percent("25%".to_owned())));
        for wrong in ["", "0", "-1", "0%", "101%", "many", "1.5"] {
            assert!(int_or_percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_named_namespace_wins() {
        assert_eq!(run(&["--namespace", "os"]).namespace(), "os");
    }
}
