//! The record's lock, as a person's command takes it.

use std::time::{Duration, Instant};

use anyhow::Result;
use monok8s_sdk::boot::record_store::{RecordLock, RecordStore, StoreError};

/// How long another holder of the record is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(100);

/// Keeps the agent from beginning anything meanwhile. It has the lock for moments between upgrades,
/// which are waited for, and all through an upgrade.
pub(super) fn hold(store: &RecordStore, command: &str) -> Result<RecordLock> {
    let holder = format!("ctl {command} (process {})", std::process::id());
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.lock(&holder) {
            Err(StoreError::Held { .. }) if Instant::now() < deadline => std::thread::sleep(INTERVAL),
            done => return Ok(done?),
        }
    }
}
