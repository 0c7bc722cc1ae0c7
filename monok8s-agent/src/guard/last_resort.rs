//! What ends a trial if the guard itself cannot: because it hangs in a disk that does not answer, in an init
//! that does not take the machine down, or over a loader that cannot be told anything. It also keeps the
//! hardware watchdog from firing until then, as a disk that is slow is no kernel that hangs.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::HostView;

use super::watchdog::Watchdog;
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
pub(super) struct LastResort(Arc<Shared>);

struct Shared {
    /// The uptime in seconds at which the guard should have acted.
    deadline: AtomicU64,
    watchdog: Mutex<Option<Watchdog>>,
}

impl LastResort {
    pub(super) fn new(host: HostView, command: Option<RebootCommand>) -> io::Result<Self> {
        let shared = Arc::new(Shared { deadline: AtomicU64::new(NEVER), watchdog: Mutex::new(None) });
        let watched = Self(Arc::clone(&shared));
        thread::Builder::new().name("last resort".to_owned()).spawn(move || {
            loop {
                thread::sleep(INTERVAL);
                let Ok(uptime) = host::uptime(&host) else { continue };
                match watched.0.deadline.load(Ordering::Relaxed) {
                    NEVER => {}
                    deadline if uptime < Duration::from_secs(deadline) => watched.keep_watchdog(),
                    deadline if uptime > Duration::from_secs(deadline).saturating_add(GRACE) => {
                        go_down(&host, command.as_ref());
                        thread::sleep(GOING_DOWN);
                    }
                    _ => {}
                }
            }
        })?;
        Ok(Self(shared))
    }

    /// The uptime at which the guard means to act; `None` once there is nothing to guard.
    pub(super) fn set(&self, deadline: Option<Duration>) {
        self.0.deadline.store(deadline.map_or(NEVER, |deadline| deadline.as_secs()), Ordering::Relaxed);
    }

    /// Whether a watchdog runs, after one more attempt to start it if none does. It is kept from firing
    /// until the deadline.
    pub(super) fn has_watchdog(&self, start: impl FnOnce() -> Option<Watchdog>) -> bool {
        let mut watchdog = self.watchdog();
        if watchdog.is_none() {
            *watchdog = start();
        }
        watchdog.is_some()
    }

    /// Keeps it from firing for one more of its periods.
    pub(super) fn keep_watchdog(&self) {
        if let Some(watchdog) = self.watchdog().as_mut() {
            watchdog.keep();
        }
    }

    /// From here on the caller sees to it.
    pub(super) fn take_watchdog(&self) -> Option<Watchdog> {
        self.watchdog().take()
    }

    fn watchdog(&self) -> MutexGuard<'_, Option<Watchdog>> {
        self.0.watchdog.lock().unwrap_or_else(PoisonError::into_inner)
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
