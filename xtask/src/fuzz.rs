//! `cargo xtask fuzz`: every parser of outside bytes, with libFuzzer.
//!
//! The targets are built with coverage by the stable compiler, whose code generator has the passes
//! for it. Where that does not work, for want of a C++ compiler, the same targets are run on blind
//! mutations instead. What a target does not survive is left in `fuzz/regressions/`, where the
//! tests of the SDK replay it.

pub mod seeds;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::fuzzing::{TARGETS, Target, drive};
use tokio::process::Command;

/// Coverage of branches and comparisons, as libFuzzer wants it. C code is not instrumented.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// The most memory a target may take, in MiB.
const MEMORY_MIB: u64 = 512;
/// The longest that one input may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    executions: u64,
    /// Edges that were reached, if they were counted.
    coverage: Option<u64>,
    peak_mib: Option<u64>,
    /// What was found.
    failure: Option<String>,
}

/// Runs one target or all of them for `seconds` each, and fails if one does not survive.
pub async fn run(seconds: u64, only: Option<&str>) -> Result<()> {
    let targets: Vec<_> =
        TARGETS.into_iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    ensure!(
        !targets.is_empty(),
        "there is no such target: choose one of {:?}",
        TARGETS.map(|(name, _)| name)
    );
    let programs = match build().await {
        Ok(programs) => Some(programs),
        Err(error) => {
            println!("FALLBACK: the libFuzzer targets cannot be built ({error:#}): blind mutations instead");
            None
        }
    };
    let mut failed = Vec::new();
    for (name, target) in targets {
        let outcome = match &programs {
            Some(programs) => libfuzzer(&programs.join(name), name, seconds).await?,
            None => blind(name, target, seconds).await?,
        };
        println!("{name:<12}{outcome}");
        ensure!(
            outcome.executions > 0 || outcome.failure.is_some(),
            "{name} was not executed, or its output is not understood any more"
        );
        failed.extend(outcome.failure.map(|_| name));
    }
    ensure!(failed.is_empty(), "not survived by {}: see fuzz/regressions/", failed.join(", "));
    Ok(())
}

fn fuzz() -> PathBuf {
    crate::host::workspace_root().join("fuzz")
}

fn scratch() -> PathBuf {
    crate::host::workspace_root().join("target/fuzz")
}

/// Where the built targets are.
async fn build() -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").stderr(Stdio::inherit()).output().await?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    // With a target named, the flags do not reach build scripts.
    let built = Command::new("cargo")
        .args(["build", "--bins", "--locked", "--target", host, "--target-dir"])
        .arg(scratch())
        .current_dir(fuzz())
        .env("RUSTFLAGS", RUSTFLAGS)
        .kill_on_drop(true)
        .status()
        .await
        .context("start cargo")?;
    ensure!(built.success(), "cargo says why above");
    Ok(scratch().join(host).join("debug"))
}

/// New inputs go to `target/`, what fails to `fuzz/regressions/`.
async fn libfuzzer(program: &Path, name: &str, seconds: u64) -> Result<Outcome> {
    let (corpus, seeds) = (scratch().join("corpus").join(name), fuzz().join("corpus").join(name));
    let regressions = fuzz().join("regressions").join(name);
    for directory in [&corpus, &regressions] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let log = scratch().join(format!("{name}.log"));
    let status = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-timeout={}", PATIENCE.as_secs()))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", regressions.display()))
        .args([corpus, seeds])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?)
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("start {}", program.display()))?;
    // Targets may be told bytes that are not text.
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    // Git keeps no empty directories; neither do we.
    let _ = fs::remove_dir(&regressions);
    let failure = (!status.success()).then(|| format!("{status}, see {}", log.display()));
    Ok(Outcome { failure, ..Outcome::read(&said) })
}

async fn blind(name: &str, target: Target, seconds: u64) -> Result<Outcome> {
    let corpus = fuzz().join("corpus").join(name);
    let entries = fs::read_dir(&corpus).with_context(|| format!("no {}", corpus.display()))?;
    let seeds = entries.map(|entry| Ok(fs::read(entry?.path())?)).collect::<Result<Vec<_>>>()?;
    let random = u64::from(std::process::id()) << 16;
    let run = move || drive(target, seeds, random, Duration::from_secs(seconds), PATIENCE);
    match tokio::task::spawn_blocking(run).await? {
        Ok(runs) => Ok(Outcome { executions: runs.inputs, ..Outcome::default() }),
        Err(found) => {
            let directory = fuzz().join("regressions").join(name);
            fs::create_dir_all(&directory)?;
            let path = directory.join(Sha256Digest::of(found.input()).to_string().replace(':', "-"));
            fs::write(&path, found.input())?;
            Ok(Outcome { failure: Some(path.display().to_string()), ..Outcome::default() })
        }
    }
}

impl Outcome {
    /// Reads libFuzzer's output: a line of progress ends `cov: 12 ft: ...`, statistics come last.
    fn read(said: &str) -> Self {
        let statistic = |name: &str| {
            let mut lines = said.lines().filter_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
            lines.next_back()?.trim_start_matches(':').trim().parse().ok()
        };
        let coverage = said.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split(' ').next());
        Self {
            executions: statistic("number_of_executed_units").unwrap_or(0),
            coverage: coverage.and_then(|edges| edges.parse().ok()),
            peak_mib: statistic("peak_rss_mb"),
            failure: None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10} executions", self.executions)?;
        if let Some(edges) = self.coverage {
            write!(f, "{edges:>7} edges")?;
        }
        if let Some(mib) = self.peak_mib {
            write!(f, "{mib:>5} MiB")?;
        }
        match &self.failure {
            Some(failure) => write!(f, "  FAILED: {failure}"),
            None => f.write_str("  ok"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_read_from_libfuzzers_output() {
        let said = "#2\tINITED cov: 81 ft: 90 corp: 3/9b exec/s: 0 rss: 31Mb\n\
                    #64\tpulse  cov: 97 ft: 120 corp: 8/90b\nDone 64 runs in 2 second(s)\n\
                    stat::number_of_executed_units: 64\nstat::average_exec_per_sec:     32\n\
                    stat::peak_rss_mb:              44\n";
        let outcome = Outcome::read(said);
        assert_eq!((outcome.executions, outcome.coverage, outcome.peak_mib), (64, Some(97), Some(44)));
        assert_eq!(outcome.to_string(), "        64 executions     97 edges   44 MiB  ok");
    }
}
