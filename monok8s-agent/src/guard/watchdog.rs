//! The hardware watchdog: what resets a kernel that hangs.
//!
//! Kernel documentation, `watchdog/watchdog-api` and `ABI/testing/sysfs-class-watchdog`: opening the
//! device starts it, any byte keeps it from firing, and an `V` before the close stops it unless it
//! was built to go on.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use monok8s_sdk::boot::Reset;
use monok8s_sdk::disk::HostView;

/// `WDIOF_CARDRESET`: the watchdog reset the machine.
const CARD_RESET: u32 = 0x20;

/// A watchdog that runs. Dropped without [`stop`](Self::stop), it resets the machine in its time.
#[derive(Debug)]
pub(super) struct Watchdog {
    device: File,
    /// It cannot be stopped once it runs.
    runs_on: bool,
}

impl Watchdog {
    /// Starts the one called `name`, if there is one and nobody else has it.
    pub(super) fn start(host: &HostView, name: &str) -> Option<Self> {
        if name == "none" {
            return None;
        }
        let path = host.path("dev").join(name);
        let device = match OpenOptions::new().write(true).open(&path) {
            Ok(device) => device,
            Err(error) => {
                // There is none, or the host's init keeps it.
                tracing::debug!(%error, device = %path.display(), "no watchdog of this guard's own");
                return None;
            }
        };
        let runs_on = attribute(host, name, "nowayout").is_some_and(|text| text != "0");
        Some(Self { device, runs_on })
    }

    /// Keeps it from firing for one more of its periods.
    pub(super) fn keep(&mut self) {
        if let Err(error) = self.device.write_all(b"k") {
            tracing::warn!(%error, "cannot keep the watchdog from firing");
        }
    }

    /// The trial is over: it is not needed any more.
    pub(super) fn stop(mut self) {
        if !self.runs_on {
            let _ = self.device.write_all(b"V");
            return;
        }
        // It would fire without somebody who keeps it. This thread is that, until the machine goes down.
        tracing::info!("the watchdog cannot be stopped: it is kept from firing from now on");
        loop {
            self.keep();
            thread::sleep(Duration::from_secs(5));
        }
    }
}

/// What reset the machine before this boot, as far as its watchdog says.
pub(super) fn last_reset(host: &HostView, name: &str) -> Reset {
    let text = attribute(host, name, "bootstatus").unwrap_or_default();
    let status = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    if status.is_ok_and(|status| status & CARD_RESET != 0) { Reset::Watchdog } else { Reset::Unknown }
}

/// An attribute of a watchdog; `/dev/watchdog` is the first one by its old name.
fn attribute(host: &HostView, name: &str, attribute: &str) -> Option<String> {
    let name = if name == "watchdog" { "watchdog0" } else { name };
    let path = host.path("sys/class/watchdog").join(name).join(attribute);
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(attributes: &[(&str, &str)]) -> (tempfile::TempDir, HostView) {
        let root = tempfile::tempdir().unwrap();
        let sysfs = root.path().join("sys/class/watchdog/watchdog0");
        std::fs::create_dir_all(&sysfs).unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        for (name, text) in attributes {
            std::fs::write(sysfs.join(name), text).unwrap();
        }
        let view = HostView::new(root.path());
        (root, view)
    }

    #[test]
    fn a_watchdog_is_kept_and_then_stopped_with_the_magic_letter() {
        let (root, view) = host(&[("nowayout", "0\n")]);
        let device = root.path().join("dev/watchdog");
        assert!(Watchdog::start(&view, "watchdog").is_none(), "none is created");
        std::fs::write(&device, b"").unwrap();
        assert!(Watchdog::start(&view, "none").is_none());
        let mut watchdog = Watchdog::start(&view, "watchdog").unwrap();
        watchdog.keep();
        watchdog.keep();
        watchdog.stop();
        assert_eq!(std::fs::read(&device).unwrap(), b"kkV");
    }

    #[test]
    fn the_watchdog_says_whether_it_reset_the_machine() {
        let last = |text: &str| last_reset(&host(&[("bootstatus", text)]).1, "watchdog");
        assert_eq!(last("32\n"), Reset::Watchdog);
        assert_eq!(last("0x20\n"), Reset::Watchdog);
        assert_eq!(last("0\n"), Reset::Unknown);
        assert_eq!(last("?"), Reset::Unknown);
        assert_eq!(last_reset(&HostView::new("/nonexistent"), "watchdog"), Reset::Unknown);
    }
}
