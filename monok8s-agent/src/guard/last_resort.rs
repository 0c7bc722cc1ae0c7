//! What ends a trial if the guard itself cannot: because it hangs in a disk that does not answer, in an init
//! that does not take the machine down, or over a loader that cannot be told anything.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::HostView;

use crate::host;
use crate::reboot::{self, RebootCommand};

/// How much later than the guard this acts: it has tried everything by then.
const GRACE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a machine may take to go down.
const GOING_DOWN: Duration = Duration::from_secs(60);
const NEVER: u64 = u64::MAX;

/// A thread that reads nothing but the clock, and reboots when a trial's time is long over. The loader's
/// burnt try then has to do.
pub(super) struct LastResort {
    /// The uptime in seconds at which the guard should have acted.
    deadline: Arc<AtomicU64>,
}

impl LastResort {
    pub(super) fn new(host: HostView, command: Option<RebootCommand>) -> io::Result<Self> {
        let deadline = Arc::new(AtomicU64::new(NEVER));
        let watched = Arc::clone(&deadline);
        thread::Builder::new().name("last resort".to_owned()).spawn(move || {
            loop {
                thread::sleep(INTERVAL);
                let deadline = watched.load(Ordering::Relaxed);
                let is_over = deadline != NEVER
                    && host::uptime(&host)
                        .is_ok_and(|uptime| uptime > Duration::from_secs(deadline).saturating_add(GRACE));
                if is_over {
                    go_down(&host, command.as_ref());
                    thread::sleep(GOING_DOWN);
                }
            }
        })?;
        Ok(Self { deadline })
    }

    /// The uptime at which the guard means to act; `None` once there is nothing to guard.
    pub(super) fn set(&self, deadline: Option<Duration>) {
        self.deadline.store(deadline.map_or(NEVER, |deadline| deadline.as_secs()), Ordering::Relaxed);
    }
}

fn go_down(host: &HostView, command: Option<&RebootCommand>) {
    tracing::error!("the trial is long over, and the machine still here: rebooting in spite of everything");
    let asked = match command {
        Some(_) => reboot::reboot(host, command),
        None => reboot::by_system_call(),
    };
    if let Err(error) = asked {
        tracing::error!(error = %chain(&error), "the host was not rebooted");
    }
}
