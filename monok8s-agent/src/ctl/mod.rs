//! The program `ctl`. What was asked for goes to stdout and nothing else does; errors are printed once,
//! here. It exits with 0 when it did what was asked, 1 when it did not, and 2 when it was asked wrongly; `status --exit-code` has more.

mod catalog;
mod cluster;
mod create;
mod flash;
mod follow;
mod hold;
mod image;
mod output;
mod part;
mod plan;
mod rollback;
mod send_back;
mod slots;
mod status;
mod steer;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Install and operate MonoK8s OS upgrades.
#[derive(Debug, Parser)]
#[command(name = "ctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the manifests of a program, ready for `kubectl apply -f -`.
    #[command(subcommand)]
    Create(create::Create),
    /// Check catalogs, and ask what they would do.
    #[command(subcommand)]
    Catalog(catalog::Command),
    /// Write an image into the slot that is not booted, and read it back.
    Flash(Box<flash::Flash>),
    /// Make artifacts that nodes can fetch in part, and look at them.
    #[command(subcommand)]
    Image(image::Command),
    /// Boot the other slot on purpose: of this machine, of a node, or of all nodes of an upgrade.
    Rollback(Box<rollback::Rollback>),
    /// Show both slots of this machine, and what boots next.
    Slots(slots::Slots),
    /// Show how far upgrades are.
    Status(status::Status),
    /// Say why an upgrade is where it is.
    Explain(status::Explain),
    /// Say what an upgrade would do.
    Plan(plan::Plan),
    /// Begin no further node.
    Pause(steer::Pause),
    /// Go on where `pause` stopped.
    Resume(steer::Resume),
    /// Try failed nodes again.
    Retry(steer::Retry),
}

/// How a command ended that did what it was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// And there is nothing to complain about.
    Good,
    /// What was examined has errors; they were printed.
    Bad,
    /// A state that was asked for as an exit code.
    Code(u8),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::FAILURE,
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        // Whoever reads our output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<Outcome> {
    match command {
        Command::Create(create) => create.run(),
        Command::Catalog(command) => command.run(),
        Command::Flash(flash) => flash.run(),
        Command::Image(command) => command.run(),
        Command::Rollback(rollback) => rollback.run(),
        Command::Slots(slots) => slots.run(),
        Command::Status(status) => status.run(),
        Command::Explain(explain) => explain.run(),
        Command::Plan(plan) => plan.run(),
        Command::Pause(pause) => pause.run(),
        Command::Resume(resume) => resume.run(),
        Command::Retry(retry) => retry.run(),
    }
}
