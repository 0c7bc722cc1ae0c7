//! One run of a program, measured.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use tokio::time::Instant;

use super::cgroup::Group;
use super::rig::Rig;
use super::tool;
use crate::http::FileServer;
use crate::process::{Child, describe};

/// No run takes longer.
const PATIENCE: Duration = Duration::from_secs(1200);
/// How often memory is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What a run took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Measured {
    pub(super) seconds: f64,
    /// Of all its processes, user and system.
    pub(super) cpu_seconds: f64,
    /// Bodies that the file server sent.
    pub(super) fetched: u64,
    pub(super) requests: u64,
    /// Data that its processes handed to block devices, the slot and temporary files alike.
    pub(super) written: u64,
    /// What the slot's device was asked to write, zeroing commands included.
    pub(super) slot_written: u64,
    /// What the slot's device was asked to read.
    pub(super) slot_read: u64,
    /// What it read back past the page cache and found right.
    pub(super) verified: u64,
    /// Peak resident sets of its processes, added up.
    pub(super) peak_rss: u64,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with success.
    Itself,
    /// Killed once its processes handed this much data to block devices. What the device counts would
    /// not do: zeroing commands come early and weigh as much there as data.
    Killed { written: u64 },
}

/// A shell script to run, its variables, and where its output goes.
pub(super) struct Task<'a> {
    pub(super) name: &'a str,
    pub(super) script: &'a str,
    pub(super) variables: &'a [(&'static str, String)],
    pub(super) log: &'a Path,
}

/// Runs a script in a group, and counts. Killed runs have no counts of their processes' I/O.
pub(super) async fn measure(
    task: &Task<'_>,
    group: Group,
    rig: &Rig,
    server: &FileServer,
    end: End,
) -> Result<Measured> {
    let counts = task.log.with_extension("io");
    let _ = fs::remove_file(&counts);
    let script = in_group(&group, task.script, Some(&counts));
    let mut command = tool::script(&script, &[]);
    command.envs(task.variables.iter().map(|(name, value)| (*name, value)));
    let (requests, fetched) = server.totals();
    let before = rig.counters()?;
    let start = Instant::now();
    let mut child = Child::spawn(task.name, command, task.log)?;
    let mut peak_rss = 0;
    let status = loop {
        peak_rss = peak_rss.max(group.resident());
        match child.wait(POLL).await? {
            Some(status) => break Some(status),
            None if due(end, start.elapsed(), &group) => break None,
            None => {}
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let written = match (status, end) {
        (Some(status), End::Itself) if status.success() => write_bytes(&counts)?,
        (Some(status), _) => bail!("{} ({}); {}", ended(end), describe(status), child.log_tail()),
        (None, End::Itself) => bail!("still running after {PATIENCE:?}; {}", child.log_tail()),
        (None, End::Killed { .. }) => {
            group.kill();
            child.kill()?;
            0
        }
    };
    let after = rig.counters()?;
    let (all_requests, all_fetched) = server.totals();
    Ok(Measured {
        seconds,
        cpu_seconds: group.cpu()?.as_secs_f64(),
        fetched: all_fetched - fetched,
        requests: all_requests - requests,
        written,
        slot_written: after.written - before.written,
        slot_read: after.read - before.read,
        verified: 0,
        peak_rss,
    })
}

/// Seconds that a script takes in a group, from its first command to its last.
pub(super) async fn timed(group: Group, text: &str, logs: &Path) -> Result<f64> {
    let result = logs.join("timed.seconds");
    let timed = format!(
        "set -euo pipefail\nstart=$(date +%s.%N)\n{text}\nend=$(date +%s.%N)\necho $start $end > {}\n",
        result.display()
    );
    tool::run("a measurement", tool::script(&in_group(&group, &timed, None), &[]), logs).await?;
    let text = fs::read_to_string(&result)?;
    let moments: Vec<f64> = text.split_whitespace().filter_map(|time| time.parse().ok()).collect();
    let [start, end] = moments.as_slice() else { bail!("no two times in {text:?}") };
    ensure!(end > start, "the clock went back");
    Ok(end - start)
}

/// Runs `text` as a child of the shell that joins the group: the kernel adds a child's I/O to that of
/// the parent that waited for it, so the shell knows the sum in the end.
fn in_group(group: &Group, text: &str, counts: Option<&Path>) -> String {
    let keep = counts.map_or(String::new(), |file| format!("cat /proc/$$/io > {}", file.display()));
    format!("{}bash -euo pipefail -c {}\ncode=$?\n{keep}\nexit $code", group.join_script(), quoted(text))
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn write_bytes(counts: &Path) -> Result<u64> {
    let text = fs::read_to_string(counts).with_context(|| format!("cannot read {}", counts.display()))?;
    let field = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    field.with_context(|| format!("{} has no write_bytes", counts.display()))
}

/// Whether a run that still goes on is to be killed.
fn due(end: End, elapsed: Duration, group: &Group) -> bool {
    elapsed >= PATIENCE || matches!(end, End::Killed { written } if group.written() >= written)
}

fn ended(end: End) -> &'static str {
    match end {
        End::Itself => "failed",
        End::Killed { .. } => "ended before it was to be killed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_survives_being_quoted() {
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("echo {}", quoted("it's $HOME"))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's $HOME\n");
    }
}
