//! `cargo xtask bench image`: how long an image takes into the other slot, and what it costs, beside
//! what people use today.
//!
//! Everything is real: Debian root trees, loop devices, the programs as Debian ships them. Contenders
//! take turns in one run on one machine, and only their ratios are worth remembering.

mod casync;
mod cgroup;
mod contender;
mod figures;
pub mod fleet;
mod host_facts;
mod inputs;
mod rauc;
mod report;
mod rig;
mod run;
mod session;
mod tool;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::disk::loop_obstacle;
use crate::host::{self, workspace_root};

use cgroup::Group;
use contender::{Contender, Hasher};
use inputs::{Inputs, Kind};
use report::Missing;
use rig::Pace;
use session::Session;

/// What everyone is compared with: the pipe that verifies nothing, and the script that verifies.
const BASELINES: [Contender; 2] = [Contender::Pipe, Contender::Shell(Hasher::OpenSsl)];

/// Which figures are wanted.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Small synthetic images and no download of Debian: shows that the command works, measures little.
    #[arg(long)]
    quick: bool,

    /// Size of the images in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048, conflicts_with = "quick")]
    size: u64,

    /// Runs of each contender in each case on the plain device.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: u32,

    /// The same on the throttled device.
    #[arg(long, value_name = "N", default_value_t = 1)]
    throttled_repetitions: u32,

    /// Only these contenders; the names are those in the JSON.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// Directory for image.json and image.md.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Measures, and writes the results.
///
/// # Errors
/// Something that everyone needs is missing, or a contender failed; in that case the results were
/// written all the same.
pub async fn run(options: Options) -> Result<()> {
    if let Some(obstacle) = loop_obstacle() {
        bail!("cannot measure: {obstacle}");
    }
    let cache = workspace_root().join("target/bench");
    fs::create_dir_all(&cache)?;
    let lock = fs::File::create(cache.join("lock"))?;
    lock.try_lock().context("another bench runs in this workspace: wait for it")?;
    let kind = if options.quick { Kind::Quick } else { Kind::Debian { mib: options.size } };
    let inputs = Inputs::provide(kind, &cache).await?;
    let (contenders, mut missing) = options.contenders()?;
    let mut paces = Vec::new();
    for (pace, repetitions) in Pace::ALL.into_iter().zip([options.repetitions, options.throttled_repetitions])
    {
        match Group::throttle_obstacle().filter(|_| pace == Pace::Throttled) {
            Some(why) => missing.push(Missing { what: "The throttled device".to_owned(), why }),
            None if repetitions > 0 => paces.push((pace, repetitions)),
            None => {}
        }
    }
    let mut session = Session::open(&cache, inputs, contenders).await?;
    let report = session.measure(&paces, missing).await?;
    let output = options.output.unwrap_or_else(|| workspace_root().join("bench"));
    report.write(&output)?;
    println!("{}", report.markdown()?);
    match report.failures() {
        failures if failures.is_empty() => Ok(()),
        failures => bail!("contenders failed:\n{}", failures.join("\n")),
    }
}

impl Options {
    /// Who takes part, and who cannot.
    fn contenders(&self) -> Result<(Vec<Contender>, Vec<Missing>)> {
        let known = || Contender::ALL.map(Contender::id);
        if let Some(wrong) = self.only.iter().find(|name| !known().contains(&name.as_str())) {
            bail!("there is no contender {wrong:?}: choose from {}", known().join(", "));
        }
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for contender in Contender::ALL {
            if !self.only.is_empty() && !self.only.iter().any(|name| name == contender.id()) {
                continue;
            }
            match host::provide(&contender.programs()) {
                Ok(()) => present.push(contender),
                Err(error) => {
                    let (what, why) = (contender.title().to_owned(), format!("{error:#}"));
                    missing.push(Missing { what, why });
                }
            }
        }
        Ok((present, missing))
    }
}
