//! `cargo xtask`: everything that people who build this project run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::controlplane::{Binaries, ControlPlane, ControllerManager, Options, Tool, pinned_version};
use xtask::demo::{self, Afterwards};
use xtask::fuzz;
use xtask::generate::{self, Mode, Scope};
use xtask::process::{Interrupted, until_interrupted};
use xtask::test::Selection;

/// Generate, demonstrate and test MonoK8s OS upgrades.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show three nodes move from one version to the next, on real parts.
    Demo {
        /// Leave everything running at the end, with a kubeconfig to play with, until Ctrl-C.
        #[arg(long)]
        keep: bool,
        /// With two machines that really start, in QEMU: GRUB, a kernel, a kubelet. Takes root.
        #[arg(long)]
        vm: bool,
    },
    /// Prove everything that this machine can run, and say what was skipped and why.
    Test {
        /// Only what is shown by machines that really start.
        #[arg(long)]
        vm: bool,
        /// How often machines lose their power at a random moment: two of them share N [default: 20].
        #[arg(long, requires = "vm", value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
        kills: Option<u32>,
    },
    /// Run every parser of outside bytes on bytes that nobody thought of, with libFuzzer.
    Fuzz {
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Run this target only.
        #[arg(long)]
        target: Option<String>,
        /// Instead, write the seeds in fuzz/corpus/ anew.
        #[arg(long)]
        write_seeds: bool,
    },
    /// Write the CRDs in crds/ from the SDK's types.
    GenCrds(GenArgs),
    /// Write every generated file.
    Gen(GenArgs),
    /// Measure, beside what people use today.
    Bench {
        #[command(subcommand)]
        what: BenchWhat,
    },
    /// Build images of nodes that QEMU starts, and print what was built. Takes root.
    Image {
        /// Versions to build, such as v1.35.4.
        #[arg(required = true)]
        versions: Vec<String>,
        /// Directory that gets an ext4 image, its artifact and the artifact's index for each.
        #[arg(long, default_value = "target/vm/images")]
        output: PathBuf,
    },
    /// Find or build the pinned Kubernetes programs and print where they are.
    Controlplane {
        #[command(subcommand)]
        action: Option<ControlPlaneAction>,
    },
}

#[derive(Debug, clap::Args)]
struct GenArgs {
    /// Write nothing; fail if a file is not as it would be written.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Subcommand)]
enum BenchWhat {
    /// An OS image into the inactive slot. Takes root; results go to bench/.
    Image(xtask::bench::Options),
    /// A rollout over thousands of nodes: the operator's and the API server's work. Results go to bench/.
    Fleet(xtask::bench::fleet::Options),
}

#[derive(Debug, Subcommand)]
enum ControlPlaneAction {
    /// Run a control plane until Ctrl-C and print its kubeconfig's path.
    Up,
}

#[tokio::main]
async fn main() -> ExitCode {
    let task = Cli::parse().task;
    match until_interrupted(run(task)).await {
        Ok(()) => ExitCode::SUCCESS,
        // As a shell reports a program that SIGINT ended.
        Err(error) if error.is::<Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo { keep, vm } => {
            let afterwards = if keep { Afterwards::Keep } else { Afterwards::TakeDown };
            if vm { Box::pin(demo::run_vm(afterwards)).await } else { Box::pin(demo::run(afterwards)).await }
        }
        Task::Test { vm: true, kills } => xtask::test::run(Selection::Vm { kills }).await,
        Task::Test { .. } => xtask::test::run(Selection::All).await,
        Task::Image { versions, output } => xtask::vm::build_images(&versions, &output).await,
        Task::Bench { what: BenchWhat::Image(options) } => Box::pin(xtask::bench::run(options)).await,
        Task::Bench { what: BenchWhat::Fleet(options) } => Box::pin(xtask::bench::fleet::run(options)).await,
        Task::Fuzz { write_seeds: true, .. } => {
            fuzz::seeds::write(&xtask::host::workspace_root().join("fuzz/corpus"))
        }
        Task::Fuzz { seconds, target, .. } => fuzz::run(seconds, target.as_deref()).await,
        Task::GenCrds(args) => write_or_check(Scope::Crds, &args),
        Task::Gen(args) => write_or_check(Scope::All, &args),
        Task::Controlplane { action: None } => print_binaries().await,
        Task::Controlplane { action: Some(ControlPlaneAction::Up) } => control_plane_up().await,
    }
}

fn write_or_check(scope: Scope, args: &GenArgs) -> Result<()> {
    let mode = if args.check { Mode::Check } else { Mode::Write };
    generate::run(xtask::host::workspace_root(), scope, mode)
}

async fn print_binaries() -> Result<()> {
    let binaries = Binaries::find().await?;
    for tool in Tool::ALL {
        println!("{}", binaries.path(tool).display());
    }
    Ok(())
}

async fn control_plane_up() -> Result<()> {
    let options = Options { controller_manager: ControllerManager::Running };
    let control_plane = ControlPlane::start(options).await?;
    println!("{}", control_plane.kubeconfig_path().display());
    eprintln!("Kubernetes {} at {} until Ctrl-C", pinned_version()?, control_plane.server());
    std::future::pending().await
}
