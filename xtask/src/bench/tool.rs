//! Programs that only have to succeed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{Child, describe};

const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs `command` to its end, with its output in a file of `logs`.
pub(super) async fn run(name: &str, command: Command, logs: &Path) -> Result<()> {
    let log = logs.join(format!("{}.log", name.replace([' ', '/'], "-")));
    let mut child = Child::spawn(name, command, &log)?;
    match child.wait(PATIENCE).await? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{name} failed ({}); {}", describe(status), child.log_tail()),
        None => bail!("{name} still ran after an hour; {}", child.log_tail()),
    }
}

/// A bash script with mounts of its own, which go when it ends, however it ends.
pub(super) fn script(text: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "bash", "-c", text, "bash"])
        .args(arguments)
        .env("PATH", path());
    command
}

/// Debian keeps what is for root out of everyone's `PATH`.
pub(super) fn path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
