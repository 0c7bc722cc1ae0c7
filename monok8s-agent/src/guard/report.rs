//! What the guard says about itself: a small file below `/run`, for the agent and for people.

use std::path::PathBuf;
use std::time::Duration;

use monok8s_sdk::disk::HostView;
use monok8s_sdk::node_upgrade::BootId;
use serde::{Deserialize, Serialize};

/// Below the host's root. `/run` is emptied by every boot.
const DIRECTORY: &str = "run/monok8s";
const FILE: &str = "guard.json";
const MAX_LENGTH: u64 = 4096;

/// What the guard sees, or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seen {
    /// The booted slot is on trial; it counts down.
    OnTrial,
    /// The booted slot is confirmed; nothing is left to do in this boot.
    StoodDown,
    /// The trial's time was over; the machine goes back.
    SentBack,
    /// It cannot tell whether this is a trial.
    Blind,
    /// A word of another release.
    #[serde(other)]
    Unknown,
}

/// The guard's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GuardReport {
    /// What it sees.
    pub(crate) state: Seen,
    /// The boot it is about.
    #[serde(rename = "bootID")]
    pub(crate) boot_id: BootId,
    /// The uptime, in seconds, at which it sends an unconfirmed trial back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_uptime_seconds: Option<u64>,
    #[serde(skip)]
    path: PathBuf,
}

impl GuardReport {
    pub(super) fn new(host: &HostView, boot_id: &BootId) -> Self {
        Self {
            state: Seen::Unknown,
            boot_id: boot_id.clone(),
            deadline_uptime_seconds: None,
            path: host.path(DIRECTORY).join(FILE),
        }
    }

    /// Says it, if it is news. Nobody depends on it, so that it cannot be said is no failure.
    pub(super) fn say(&mut self, state: Seen, deadline: Option<Duration>) {
        let deadline = deadline.map(|deadline| deadline.as_secs());
        if (state, deadline) == (self.state, self.deadline_uptime_seconds) {
            return;
        }
        (self.state, self.deadline_uptime_seconds) = (state, deadline);
        if let Err(error) = self.write() {
            tracing::warn!(%error, file = %self.path.display(), "cannot say how the guard stands");
        }
    }

    fn write(&self) -> std::io::Result<()> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let beside = self.path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(self)?)?;
        std::fs::rename(&beside, &self.path)
    }

    /// What the guard of this boot said; `None` if it has said nothing.
    pub(crate) fn read(host: &HostView, boot_id: &BootId) -> Option<Self> {
        let path = host.path(DIRECTORY).join(FILE);
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).ok()?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_LENGTH), &mut bytes).ok()?;
        let report: Self = serde_json::from_slice(&bytes).ok()?;
        (report.boot_id == *boot_id).then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guard_says_is_read_in_the_same_boot() {
        let root = tempfile::tempdir().unwrap();
        let host = HostView::new(root.path());
        let boot = BootId("b-1".to_owned());
        assert_eq!(GuardReport::read(&host, &boot), None);
        let mut report = GuardReport::new(&host, &boot);
        report.say(Seen::OnTrial, Some(Duration::from_secs(615)));
        let read = GuardReport::read(&host, &boot).unwrap();
        assert_eq!((read.state, read.deadline_uptime_seconds), (Seen::OnTrial, Some(615)));
        assert_eq!(GuardReport::read(&host, &BootId("b-2".to_owned())), None, "of an earlier boot");
    }

    #[test]
    fn a_word_of_another_release_is_unknown_and_rubbish_is_nothing() {
        let root = tempfile::tempdir().unwrap();
        let host = HostView::new(root.path());
        let boot = BootId("b-1".to_owned());
        std::fs::create_dir_all(root.path().join(DIRECTORY)).unwrap();
        let put = |text: &str| std::fs::write(root.path().join(DIRECTORY).join(FILE), text).unwrap();
        put(r#"{"state":"Asleep","bootID":"b-1"}"#);
        assert_eq!(GuardReport::read(&host, &boot).unwrap().state, Seen::Unknown);
        put("{");
        assert_eq!(GuardReport::read(&host, &boot), None);
    }
}
