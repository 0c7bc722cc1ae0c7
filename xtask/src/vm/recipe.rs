//! The shell scripts in `node-image/`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::host::{UNSHARE, workspace_root};

/// What is laid over the base of node images.
pub(super) fn ours() -> PathBuf {
    directory().join("root")
}

fn directory() -> PathBuf {
    workspace_root().join("xtask/node-image")
}

/// Runs a script with mounts and processes of its own, which end with it, however it ends: what it leaves
/// mounted would be emptied by whoever removes the directory. What it says goes to `log`.
pub(super) async fn run(script: &str, arguments: &[&Path], log: &Path) -> Result<()> {
    let script = directory().join(script);
    let output = std::fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let status = Command::new(UNSHARE.locate()?)
        .args(["--mount-proc", "--pid", "--fork", "--kill-child", "sh"])
        .arg(&script)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .status()
        .await?;
    ensure!(status.success(), "{} failed ({status}): {}", script.display(), crate::process::tail(log)?);
    Ok(())
}
