//! What is built once and kept in `target/`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Cargo's target directory, as Cargo itself was told.
#[must_use]
pub fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace.join(directory),
        None => workspace.canonicalize().unwrap_or(workspace).join("target"),
    }
}

/// Holds `path` locked until the file is dropped, so that two processes do not build `what` at once.
pub(crate) async fn lock(path: &Path, what: &str) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut announced = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        if !announced {
            eprintln!("waiting for another process that builds {what} ({} is locked)", path.display());
            announced = true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
