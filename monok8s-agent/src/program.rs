//! The program `monok8s-agent`: its command line, its log and its runtime.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::agent::{self, RunArgs};
use crate::guard::{self, GuardArgs};
use crate::on_host::OnHostArgs;

/// Carries out OS upgrades on the node it runs on.
#[derive(Debug, Parser)]
#[command(name = "monok8s-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What is logged: a level such as debug, or directives of tracing-subscriber.
    #[arg(long, env = "MONOK8S_LOG", default_value = "info", global = true)]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this node's OSUpgradeProgress objects and carry them out.
    Run(Box<RunArgs>),
    /// Send a trial boot back that nobody confirms: the host's dead-man switch.
    Guard(Box<GuardArgs>),
    #[command(hide = true)]
    OnHost(OnHostArgs),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, log } = Cli::parse();
    let ended = match command {
        // Before anything starts a thread.
        Command::OnHost(args) => Err(args.run().into()),
        Command::Guard(args) => start_log(&log).and_then(|()| guard::run(*args)),
        Command::Run(args) => start_log(&log).and_then(|()| run(*args)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("monok8s-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(log: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(log).context("--log cannot be understood")?;
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    Ok(())
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    // First of all: TLS clients built before a provider is chosen fail.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider was installed first"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The loop, the watch and one piece of long work; disks block on their own threads.
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(agent::run(args))
}
