//! What the agent is told on its command line or in its environment.

use std::str::FromStr;

use monok8s_sdk::image::GuardFiles;
use monok8s_sdk::manifests::DEFAULT_NAMESPACE;

use crate::machine::MachineArgs;
use crate::politeness::PolitenessArgs;
use crate::reboot::RebootCommand;

/// Flags of `monok8s-agent run`. Every flag has a twin in the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Name of the Node this agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// The slots, the boot loader and the record.
    #[command(flatten)]
    pub machine: MachineArgs,

    /// Command that reboots the host, split at blanks, run without a shell [default: what the host's init takes, else reboot(2) after a sync].
    #[arg(long, env = "MONOK8S_REBOOT_COMMAND")]
    pub reboot_command: Option<RebootCommand>,

    /// What the node's own health is asked for.
    #[command(flatten)]
    pub health: HealthArgs,

    /// Paths inside an image, separated by commas, one of which must exist for its guard to count as installed.
    #[arg(
        long,
        env = "MONOK8S_GUARD_PATHS",
        value_delimiter = ',',
        default_value = "/usr/bin/monok8s-agent"
    )]
    pub guard_paths: Vec<String>,

    /// Paths inside an image, separated by commas, one of which must exist for its guard to count as enabled; an
    /// empty one: that is not looked for.
    #[arg(
        long,
        env = "MONOK8S_GUARD_SERVICES",
        value_delimiter = ',',
        default_values_t = GuardFiles::default().services
    )]
    pub guard_services: Vec<String>,

    /// Seconds for which networks and disk reads are tried again after they first failed.
    #[arg(long, env = "MONOK8S_PATIENCE_SECONDS", default_value = "3600")]
    pub patience_seconds: u32,

    /// How much of the node may be used meanwhile.
    #[command(flatten)]
    pub politeness: PolitenessArgs,

    /// Namespace that ConfigMap catalogs of hand-made orders are read from.
    #[arg(long, env = "MONOK8S_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// What the health of a trial is asked for, on the node itself.
#[derive(Clone, Debug, clap::Args)]
pub struct HealthArgs {
    /// URL that answers 2xx while the kubelet is healthy, or `none` to rely on the Node object alone.
    #[arg(long, env = "MONOK8S_KUBELET_HEALTHZ", default_value = "http://127.0.0.1:10248/healthz")]
    pub kubelet_healthz: Endpoint,

    /// URL that answers 2xx while a control-plane node's own API server and etcd are ready, or `none`.
    #[arg(long, env = "MONOK8S_APISERVER_READYZ", default_value = "https://127.0.0.1:6443/readyz")]
    pub apiserver_readyz: Endpoint,
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
    use crate::machine::BootBackendChoice;
    use crate::politeness::{Politeness, PressureLimit};

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
        assert_eq!(alone.machine.boot_backend, BootBackendChoice::Auto);

        let args = parse(&[]).unwrap();
        assert_eq!(args.machine.boot_backend, BootBackendChoice::Simulated("/run/loader".into()));
        assert_eq!(args.health.kubelet_healthz, Endpoint::Url("http://127.0.0.1:10248/healthz".to_owned()));
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
    fn a_node_is_spared_unless_somebody_says_otherwise() {
        let politeness =
            |more: &[&str]| parse(more).unwrap().politeness.with_default(PressureLimit::OF_A_NODE);
        let own = politeness(&["--io-pressure=30", "--io-floor=4MiB", "--disk-rate=none"]);
        assert_eq!(politeness(&[]), own);
        assert_eq!(politeness(&["--io-pressure=none"]), Politeness::default());
        assert_ne!(politeness(&["--download-rate=20MiB"]), own);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for wrong in [
            ["--boot-backend", "simulated:"],
            ["--boot-backend", "grub9"],
            ["--reboot-command", " "],
            ["--kubelet-healthz", "localhost"],
            ["--download-rate", "fast"],
            ["--disk-rate", "20"],
            ["--io-pressure", "100"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
