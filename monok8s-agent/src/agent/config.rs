//! What the agent is told on its command line or in its environment.

use std::path::PathBuf;
use std::str::FromStr;

/// Flags of `monok8s-agent run`. Every flag has a twin in the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Name of the Node this agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// Directory that the host's root is mounted at.
    #[arg(long, env = "MONOK8S_HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,

    /// Disk that holds both slots [default: the disk that the booted root is on].
    #[arg(long, env = "MONOK8S_DISK")]
    pub disk: Option<PathBuf>,

    /// PARTLABEL of slot A.
    #[arg(long, env = "MONOK8S_SLOT_A_LABEL", default_value = "rootfs-a")]
    pub slot_a_label: String,

    /// PARTLABEL of slot B.
    #[arg(long, env = "MONOK8S_SLOT_B_LABEL", default_value = "rootfs-b")]
    pub slot_b_label: String,

    /// Directory for the record that outlives reboots; must be on a partition that both slots share.
    #[arg(long, env = "MONOK8S_DATA_DIR", default_value = "/var/lib/monok8s")]
    pub data_dir: PathBuf,

    /// Boot loader: `auto`, or `simulated:PATH`, where PATH is the state file of a simulated loader.
    #[arg(long, env = "MONOK8S_BOOT_BACKEND", default_value = "auto")]
    pub boot_backend: BootBackendChoice,

    /// Command that reboots the host, split at blanks, run without a shell [default: reboot(2) after a sync].
    #[arg(long, env = "MONOK8S_REBOOT_COMMAND")]
    pub reboot_command: Option<RebootCommand>,

    /// URL that answers 2xx while the kubelet is healthy, or `none` to rely on the Node object alone.
    #[arg(long, env = "MONOK8S_KUBELET_HEALTHZ", default_value = "http://127.0.0.1:10248/healthz")]
    pub kubelet_healthz: Endpoint,

    /// URL that answers 2xx while a control-plane node's own API server and etcd are ready, or `none`.
    #[arg(long, env = "MONOK8S_APISERVER_READYZ", default_value = "https://127.0.0.1:6443/readyz")]
    pub apiserver_readyz: Endpoint,

    /// Paths inside an image, separated by commas, one of which must exist for its guard to count as installed.
    #[arg(
        long,
        env = "MONOK8S_GUARD_PATHS",
        value_delimiter = ',',
        default_value = "/usr/bin/monok8s-agent"
    )]
    pub guard_paths: Vec<String>,

    /// Seconds for which networks and disk reads are tried again after they first failed.
    #[arg(long, env = "MONOK8S_PATIENCE_SECONDS", default_value = "3600")]
    pub patience_seconds: u32,

    /// Namespace that ConfigMap catalogs of hand-made orders are read from.
    #[arg(long, env = "MONOK8S_NAMESPACE", default_value = "mono-system")]
    pub namespace: String,
}

/// Which boot loader the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootBackendChoice {
    /// Whatever is recognised. This release recognises none: the node reports itself, and refuses
    /// orders with `TrialUnsupported`.
    Auto,
    /// A file that a simulated loader reads.
    Simulated(PathBuf),
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebootCommand {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// Where the health of a part of the node is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Nowhere: where nothing listens, as in tests.
    None,
    /// With a GET of this URL.
    Url(String),
}

/// An argument that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArgumentError(String);

impl FromStr for BootBackendChoice {
    type Err = ArgumentError;

    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            Some(("simulated", path)) if !path.is_empty() => Ok(Self::Simulated(path.into())),
            _ => Err(ArgumentError(format!("{text:?} is no boot loader: write auto or simulated:PATH"))),
        }
    }
}

impl FromStr for RebootCommand {
    type Err = ArgumentError;

    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let program = words.next().ok_or_else(|| ArgumentError("the command is empty".to_owned()))?;
        Ok(Self { program, arguments: words.collect() })
    }
}

impl FromStr for Endpoint {
    type Err = ArgumentError;

    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        match text {
            "none" => Ok(Self::None),
            url if url.starts_with("http://") || url.starts_with("https://") => Ok(Self::Url(url.to_owned())),
            _ => Err(ArgumentError(format!("{text:?} is neither an http URL nor `none`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(more: &[&str]) -> Result<RunArgs, clap::Error> {
        let given = ["agent", "--node-name", "node-1", "--boot-backend", "simulated:/run/loader"];
        Cli::try_parse_from(given.iter().chain(more)).map(|cli| cli.run)
    }

    #[test]
    fn a_node_name_is_enough() {
        let alone = Cli::try_parse_from(["agent", "--node-name", "node-1"]).unwrap().run;
        assert_eq!(alone.boot_backend, BootBackendChoice::Auto);

        let args = parse(&[]).unwrap();
        assert_eq!(args.boot_backend, BootBackendChoice::Simulated("/run/loader".into()));
        assert_eq!(args.kubelet_healthz, Endpoint::Url("http://127.0.0.1:10248/healthz".to_owned()));
        assert_eq!(args.guard_paths, ["/usr/bin/monok8s-agent"]);
    }

    #[test]
    fn commands_are_split_without_a_shell() {
        let args = parse(&["--reboot-command", "touch  /tmp/$HOME;x"]).unwrap();
        let expected =
            RebootCommand { program: "touch".to_owned(), arguments: vec!["/tmp/$HOME;x".to_owned()] };
        assert_eq!(args.reboot_command, Some(expected));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for wrong in [
            ["--boot-backend", "simulated:"],
            ["--boot-backend", "grub9"],
            ["--reboot-command", " "],
            ["--kubelet-healthz", "localhost"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
