//! `cargo xtask test`: everything this machine can prove, and what it could not.
//!
//! Each step is a command that a person could type. Test binaries are counted test by test, every
//! other step counts as one. A test that cannot run here prints `SKIP: <reason>` and passes; it is
//! counted as skipped. In CI a skip is a failure, because there it would hide a missing proof.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::programs::{SHIPPED, STOPPING_AGENT, told_by_cargo};

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skips: Vec<String>,
    failures: Vec<String>,
}

/// How a step's outcome is counted.
#[derive(Clone, Copy)]
enum Counting {
    /// As one: it passes if the command exits with 0.
    Whole,
    /// Test by test, from libtest's output.
    Libtest,
}

struct Step {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    counting: Counting,
}

const fn step(name: &'static str, args: &'static [&'static str], counting: Counting) -> Step {
    Step { name, program: "cargo", args, env: &[], counting }
}

/// In order of how soon they find a mistake.
const STEPS: &[Step] = &[
    step("format", &["fmt", "--all", "--check"], Counting::Whole),
    step(
        "clippy",
        &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"],
        Counting::Whole,
    ),
    // The programs that the tests start, built as they are shipped.
    step("programs", SHIPPED, Counting::Whole),
    step("the agent that stops", STOPPING_AGENT, Counting::Whole),
    step(
        "tests",
        &["test", "--workspace", "--all-features", "--no-fail-fast", "--", "--show-output"],
        Counting::Libtest,
    ),
    step("generated files", &["xtask", "gen", "--check"], Counting::Whole),
    step("demo", &["xtask", "demo"], Counting::Whole),
    Step {
        name: "documentation",
        program: "cargo",
        args: &["doc", "--workspace", "--all-features", "--no-deps"],
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        counting: Counting::Whole,
    },
    // The working tree may be dirty while somebody develops; what is packaged is what is there.
    step("package", &["package", "--package", "monok8s-sdk", "--allow-dirty"], Counting::Whole),
    MACHINES,
];

/// Machines that really start. With the features that everything is tested with, so that nothing is built twice.
const MACHINES: Step = step(
    "virtual machines",
    &["test", "--workspace", "--all-features", "--test=vm", "--", "--show-output"],
    Counting::Libtest,
);

/// What is shown by machines that really start, and nothing else.
const VM_STEPS: &[Step] = &[step("programs", SHIPPED, Counting::Whole), MACHINES];

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every step.
    All,
    /// The tests with machines that really start, with this many power cuts at random moments.
    Vm {
        /// As many as the test takes by itself, if nothing is said.
        kills: Option<u32>,
    },
}

/// Runs the selected steps, prints the summary, and fails if anything failed or, in CI, was skipped.
pub async fn run(selection: Selection) -> Result<()> {
    let (steps, kills) = match selection {
        Selection::All => (STEPS, None),
        Selection::Vm { kills } => (VM_STEPS, kills),
    };
    let root = crate::host::workspace_root();
    crate::host::provide(&crate::host::FIXTURES)?;
    match selection {
        Selection::All => crate::host::provide_where_possible(&crate::host::LOADERS),
        // Asked for by name: without them nothing is left to do.
        Selection::Vm { .. } => {
            if let Some(reason) = crate::vm::obstacle() {
                bail!("no machine can be started here: {reason}");
            }
        }
    }
    crate::controlplane::Binaries::find().await?;
    let started = Instant::now();
    let tally = run_steps(root, steps, kills).await?;
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    print!("{}", Summary { tally: &tally, took: started.elapsed() });
    std::io::stdout().flush()?;
    ensure!(tally.failed == 0, "{} failed: {}", tally.failed, tally.failures.join(", "));
    ensure!(!ci || tally.skips.is_empty(), "in CI nothing may be skipped");
    Ok(())
}

async fn run_steps(root: &Path, steps: &[Step], kills: Option<u32>) -> Result<Tally> {
    let (mut total, started) = (Tally::default(), Instant::now());
    for step in steps {
        let began = Instant::now();
        let kills = kills.or_else(|| fewer_kills(step, started.elapsed()));
        println!("==> {}: {} {}", step.name, step.program, step.args.join(" "));
        let tally = run_step(root, step, kills).await?;
        println!("==> {}: {} in {:.0?}", step.name, verdict(&tally), began.elapsed());
        total.passed += tally.passed;
        total.failed += tally.failed;
        total.skips.extend(tally.skips);
        total.failures.extend(tally.failures);
    }
    Ok(total)
}

/// How many power cuts the machines get where everything before them took long: the whole has to end in time.
fn fewer_kills(step: &Step, elapsed: Duration) -> Option<u32> {
    const SLOW: Duration = Duration::from_secs(35 * 60);
    (step.name == MACHINES.name && elapsed > SLOW).then_some(4)
}

fn verdict(tally: &Tally) -> &'static str {
    if tally.failed == 0 { "ok" } else { "FAILED" }
}

/// Runs one step with its output passed on as it comes.
async fn run_step(root: &Path, step: &Step, kills: Option<u32>) -> Result<Tally> {
    let mut command = Command::new(step.program);
    for name in told_by_cargo() {
        command.env_remove(name);
    }
    let mut child = command
        .args(step.args)
        .envs(step.env.iter().copied())
        .envs(kills.map(|kills| ("MONOK8S_VM_KILLS", kills.to_string())))
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {} for the step {}", step.program, step.name))?;
    let mut group = Group::of(&child);
    let mut output =
        BufReader::new(child.stdout.take().context("the step's output is not a pipe")?).split(b'\n');
    let mut tally = Tally::default();
    while let Some(line) = output.next_segment().await? {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.count(&line);
    }
    let status = child.wait().await?;
    group.0 = None;
    Ok(conclude(step, tally, status.success()))
}

/// A step and everything it started. Dropped before the step has ended, as by Ctrl-C, it ends them.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The only failure is that the group is gone already.
            let _ = kill_process_group(group, Signal::TERM);
        }
    }
}

/// A step passes by its exit code alone; what was counted in its output only adds detail.
fn conclude(step: &Step, counted: Tally, success: bool) -> Tally {
    let mut tally = match step.counting {
        Counting::Whole => Tally { passed: usize::from(success), ..Tally::default() },
        Counting::Libtest => counted,
    };
    if !success {
        tally.failed = tally.failed.max(1);
        tally.failures.push(step.name.to_owned());
    }
    tally
}

impl Tally {
    /// Counts one line of libtest's output.
    fn count(&mut self, line: &str) {
        if let Some(reason) = line.trim_start().strip_prefix("SKIP: ") {
            self.skips.push(reason.to_owned());
            // It was, or will be, counted as passed by the summary of its binary.
            self.passed = self.passed.wrapping_sub(1);
        }
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number_before = |word: &str| {
            rest.split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|count| count.trim().parse::<usize>().ok())
                .unwrap_or(0)
        };
        self.passed = self.passed.wrapping_add(number_before("passed"));
        self.failed += number_before("failed");
        for _ in 0..number_before("ignored") {
            self.skips.push("ignored by its author".to_owned());
        }
    }
}

struct Summary<'a> {
    tally: &'a Tally,
    took: Duration,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.tally;
        writeln!(f)?;
        for skip in &tally.skips {
            writeln!(f, "skipped: {skip}")?;
        }
        for failure in &tally.failures {
            writeln!(f, "failed: {failure}")?;
        }
        writeln!(f, "took {}m{:02}s", self.took.as_secs() / 60, self.took.as_secs() % 60)?;
        writeln!(f, "{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skips.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.count(line));
        tally
    }

    #[test]
    fn a_skip_is_not_a_pass() {
        let tally = counted(
            "test disk::loop_device ... ok\nSKIP: loop devices need root\n\
             test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s\n\
             test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n",
        );
        assert_eq!((tally.passed, tally.failed), (9, 2));
        assert_eq!(tally.skips, ["loop devices need root", "ignored by its author"]);
    }

    #[test]
    fn a_step_that_dies_without_a_count_has_failed() {
        let step = step("tests", &[], Counting::Libtest);
        let tally = conclude(&step, Tally::default(), false);
        assert_eq!((tally.failed, tally.failures), (1, vec!["tests".to_owned()]));
    }

    #[test]
    fn only_a_slow_machine_is_spared_power_cuts() {
        let (fast, slow) = (Duration::from_secs(30 * 60), Duration::from_secs(60 * 60));
        let machines = STEPS.iter().find(|step| step.name == MACHINES.name).unwrap();
        assert_eq!((fewer_kills(machines, fast), fewer_kills(machines, slow)), (None, Some(4)));
        assert_eq!(fewer_kills(&STEPS[0], slow), None);
    }

    #[test]
    fn the_last_line_is_the_summary() {
        let tally = Tally { passed: 12, failed: 0, ..Tally::default() };
        let text = Summary { tally: &tally, took: Duration::from_secs(61) }.to_string();
        assert_eq!(text.lines().last(), Some("12 passed, 0 failed, 0 skipped"));
    }
}
