//! `monok8s-agent guard`, the program, on machines in a directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use monok8s_sdk::api::{ApiUnavailable, TrialSpec};
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{ArmableSlot, AttemptId, BootBackend as _, TrialEvidence, Tries};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::node_upgrade::{ObjectIdentity, Record, Step};
use monok8s_sdk::slot::Slot;

const PATIENCE: Duration = Duration::from_secs(30);

/// A machine that runs slot A.
struct Machine {
    directory: tempfile::TempDir,
    _files: FileMachine,
    loader: SimulatedLoader,
}

/// Ends the program with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// `booted` is what the loader thinks was booted: A is what runs.
    fn new(loader_has: Slot) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = FileMachine::create(directory.path(), 4 << 20).unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("host/proc/sys/kernel/random")).unwrap();
        fs::write(path("host/proc/sys/kernel/random/boot_id"), "b-7\n").unwrap();
        let loader = SimulatedLoader::install(&path("loader"), loader_has, Tries(3)).unwrap();
        loader.boot(|_| true).unwrap();
        let machine = Self { directory, _files: files, loader };
        machine.at(10);
        machine
    }

    /// Slot B was good, and A runs on trial.
    fn on_trial() -> Self {
        let machine = Self::new(Slot::B);
        machine.loader.mark_good(Slot::B).unwrap();
        machine.loader.arm_trial(token(Slot::A), AttemptId(1), Tries::TRIAL).unwrap();
        assert_eq!(machine.loader.boot(|_| true).unwrap(), Slot::A);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// So many seconds after the boot. The clock of such a machine stands still.
    fn at(&self, uptime: u64) {
        fs::write(self.path("host/proc/uptime"), format!("{uptime}.00 1.00\n")).unwrap();
    }

    /// The agent's record of a trial of A that may last so long.
    fn recorded(&self, timeout_seconds: i32) {
        self.recorded_with(timeout_seconds, ApiUnavailable::Revert);
    }

    fn recorded_with(&self, timeout_seconds: i32, api_unavailable: ApiUnavailable) {
        fs::create_dir(self.path("data")).unwrap();
        let record = Record::default().after(&Step::Begun {
            object: ObjectIdentity::new("one", "u-1"),
            version: "v1.35.4".parse().unwrap(),
            checksum: Sha256Digest::of(b"artifact"),
            slot: Slot::A,
            trial: TrialSpec {
                timeout_seconds: Some(timeout_seconds),
                api_unavailable: Some(api_unavailable),
                ..TrialSpec::default()
            },
        });
        RecordStore::in_dir(self.path("data")).save(&record).unwrap();
    }

    fn guard(&self) -> Guard {
        self.guard_that_reboots_with(&format!("touch {}", self.path("rebooted").display()))
    }

    fn guard_that_reboots_with(&self, command: &str) -> Guard {
        let path = |name: &str| self.path(name).display().to_string();
        let child = Command::new(env!("CARGO_BIN_EXE_monok8s-agent"))
            .args(["guard", "--timeout-seconds=100", "--watchdog=watchdog"])
            .arg(format!("--host-root={}", path("host")))
            .arg(format!("--disk={}", path("disk.img")))
            .arg(format!("--data-dir={}", path("data")))
            .arg(format!("--boot-backend=simulated:{}", path("loader")))
            .arg(format!("--reboot-command={command}"))
            .arg("--kubelet-healthz=none")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Guard(child)
    }

    /// The kubelet's API server is at this address, and the image is the ordered version.
    fn api_server_at(&self, url: &str) {
        fs::create_dir_all(self.path("host/etc/kubernetes")).unwrap();
        let cluster = format!("clusters: [{{name: c, cluster: {{server: '{url}'}}}}]\n");
        fs::write(self.path("host/etc/kubernetes/kubelet.conf"), cluster).unwrap();
        fs::write(self.path("host/etc/os-release"), "MONOK8S_VERSION=v1.35.4\n").unwrap();
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("host/run/monok8s/guard.json")).unwrap_or_default()
    }

    fn rebooted(&self) -> bool {
        self.path("rebooted").exists()
    }

    fn evidence(&self) -> Option<TrialEvidence> {
        self.loader.status().unwrap().trial.map(|trial| trial.evidence)
    }
}

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.4".parse().unwrap(), None).into()
}

#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_confirmed_slot_is_marked_good_and_the_guard_ends() {
    let machine = Machine::new(Slot::A);
    assert_eq!(machine.loader.status().unwrap().a.tries_left, Tries(2), "the boot burnt one");
    let mut guard = machine.guard();
    assert!(guard.0.wait().unwrap().success());
    assert_eq!(machine.loader.status().unwrap().a.tries_left, Tries(3));
    assert!(machine.said().contains(r#""state":"StoodDown""#), "{}", machine.said());
    assert!(!machine.rebooted());
}

#[test]
fn a_trial_is_sent_back_at_its_deadline_and_not_before() {
    let machine = Machine::on_trial();
    machine.recorded(30);
    fs::create_dir_all(machine.path("host/dev")).unwrap();
    fs::write(machine.path("host/dev/watchdog"), b"").unwrap();
    let _guard = machine.guard();
    until("it counts", || machine.said().contains(r#""state":"OnTrial""#));
    assert!(machine.said().contains(r#""deadlineUptimeSeconds":45"#), "{}", machine.said());
    machine.at(44);
    thread::sleep(Duration::from_secs(3));
    assert!(!machine.rebooted() && machine.evidence() == Some(TrialEvidence::None), "a second is left");
    let kept = fs::read(machine.path("host/dev/watchdog")).unwrap();
    assert!(kept.len() >= 2 && kept.iter().all(|byte| *byte == b'k'), "{kept:?}");
    machine.at(45);
    until("it reboots", || machine.rebooted());
    assert_eq!(machine.evidence(), Some(TrialEvidence::RevertedByGuard));
    assert_eq!(machine.loader.status().unwrap().next_boot(), Some(Slot::B));
    let kept = fs::read(machine.path("host/dev/watchdog")).unwrap();
    assert_ne!(kept.last(), Some(&b'V'), "the watchdog goes on, in case the reboot hangs");
}

#[test]
fn a_guard_that_hangs_in_a_reboot_that_does_not_come_is_not_the_last_word() {
    let machine = Machine::on_trial();
    let (asked, rebooted) = (machine.path("asked"), machine.path("rebooted"));
    let script = format!(
        "#!/bin/sh\nif [ -e {0} ]; then touch {1}; else touch {0}; exec sleep 15; fi\n",
        asked.display(),
        rebooted.display()
    );
    let program = machine.path("reboots-at-the-second-time");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let _guard = machine.guard_that_reboots_with(&program.display().to_string());
    until("it counts", || machine.said().contains("OnTrial"));
    machine.at(115);
    until("it asks", || asked.exists());
    machine.at(235);
    thread::sleep(Duration::from_secs(2));
    assert!(!machine.rebooted(), "two minutes are not over");
    machine.at(236);
    until("it asks again", || machine.rebooted());
}

#[test]
fn without_a_data_partition_its_own_deadline_holds() {
    let machine = Machine::on_trial();
    let _guard = machine.guard();
    until("it counts", || machine.said().contains(r#""deadlineUptimeSeconds":115"#));
    machine.at(116);
    until("it reboots", || machine.rebooted());
    assert_eq!(machine.evidence(), Some(TrialEvidence::RevertedByGuard));
}

/// An address on which nothing listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("https://{}", listener.local_addr().unwrap())
}

#[test]
fn with_the_api_server_away_no_agent_starts_and_the_upgrade_says_what_becomes_of_it() {
    let reverts = Machine::on_trial();
    reverts.recorded_with(30, ApiUnavailable::Revert);
    let confirms = Machine::on_trial();
    confirms.recorded_with(30, ApiUnavailable::ConfirmLocally);
    let wrong_version = Machine::on_trial();
    wrong_version.recorded_with(30, ApiUnavailable::ConfirmLocally);
    let machines = [&reverts, &confirms, &wrong_version];
    for machine in machines {
        machine.api_server_at(&nobody());
    }
    fs::write(wrong_version.path("host/etc/os-release"), "MONOK8S_VERSION=v1.35.3\n").unwrap();
    let mut guards = machines.map(Machine::guard);
    for machine in machines {
        until("it counts", || machine.said().contains("OnTrial"));
        machine.at(45);
    }
    until("it goes back", || reverts.rebooted() && wrong_version.rebooted());
    assert_eq!(reverts.evidence(), Some(TrialEvidence::RevertedWithoutApi));
    assert_eq!(wrong_version.evidence(), Some(TrialEvidence::RevertedByGuard));
    assert!(guards[1].0.wait().unwrap().success());
    assert!(!confirms.rebooted());
    assert!(confirms.loader.status().unwrap().is_confirmed(Slot::A));
}

#[test]
fn an_api_server_that_answers_excuses_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
            let answer = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        }
    });
    let answered = Machine::on_trial();
    answered.recorded_with(30, ApiUnavailable::ConfirmLocally);
    answered.api_server_at(&url);
    let _guard = answered.guard();
    until("it counts", || answered.said().contains("OnTrial"));
    answered.at(45);
    until("it goes back", || answered.rebooted());
    assert_eq!(answered.evidence(), Some(TrialEvidence::RevertedByGuard));
}

#[test]
fn an_agent_that_waits_for_a_silent_api_server_leaves_the_upgrades_word_to_the_guard() {
    let machine = Machine::on_trial();
    machine.recorded_with(30, ApiUnavailable::ConfirmLocally);
    machine.api_server_at(&nobody());
    let _agent = RecordStore::in_dir(machine.path("data")).lock("the agent").unwrap();
    let mut guard = machine.guard();
    until("it counts", || machine.said().contains("OnTrial"));
    machine.at(45);
    assert!(guard.0.wait().unwrap().success());
    assert!(!machine.rebooted() && machine.loader.status().unwrap().is_confirmed(Slot::A));
}

#[test]
fn a_guard_that_is_started_again_knows_what_the_first_one_knew() {
    // It stood down: an old command line and an unreadable loader are nothing to it.
    let machine = Machine::new(Slot::A);
    let line = fs::read_to_string(machine.path("host/proc/cmdline")).unwrap();
    fs::write(machine.path("host/proc/cmdline"), format!("{} monok8s.trial=A:1:1:none\n", line.trim()))
        .unwrap();
    assert!(machine.guard().0.wait().unwrap().success());
    for copy in ["loader.0", "loader.1"] {
        fs::write(machine.path(copy), b"garbage").unwrap();
    }
    machine.at(9999);
    assert!(machine.guard().0.wait().unwrap().success());
    assert!(!machine.rebooted());

    // It counted: what was sent back since is helped down.
    let machine = Machine::on_trial();
    drop({
        let guard = machine.guard();
        until("it counts", || machine.said().contains("OnTrial"));
        guard
    });
    machine.loader.revert(monok8s_sdk::boot::Reverter::Agent).unwrap();
    let _guard = machine.guard();
    thread::sleep(Duration::from_secs(2));
    assert!(!machine.rebooted(), "who sent it back has a minute");
    machine.at(100);
    until("it reboots", || machine.rebooted());
}

#[test]
fn a_confirm_makes_it_stand_down_and_stop_the_watchdog() {
    let machine = Machine::on_trial();
    fs::create_dir_all(machine.path("host/dev")).unwrap();
    fs::write(machine.path("host/dev/watchdog"), b"").unwrap();
    let mut guard = machine.guard();
    until("it counts", || machine.said().contains("OnTrial"));
    machine.loader.confirm().unwrap();
    machine.at(200);
    assert!(guard.0.wait().unwrap().success());
    assert!(!machine.rebooted());
    assert_eq!(fs::read(machine.path("host/dev/watchdog")).unwrap().last(), Some(&b'V'));
}

#[test]
fn a_watchdog_that_cannot_be_stopped_is_kept_from_firing_after_the_confirm() {
    let machine = Machine::on_trial();
    let (device, sysfs) =
        (machine.path("host/dev/watchdog"), machine.path("host/sys/class/watchdog/watchdog0"));
    fs::create_dir_all(&sysfs).unwrap();
    fs::write(sysfs.join("nowayout"), b"1\n").unwrap();
    fs::create_dir_all(machine.path("host/dev")).unwrap();
    fs::write(&device, b"").unwrap();
    let _guard = machine.guard();
    until("it counts", || machine.said().contains("OnTrial"));
    machine.loader.confirm().unwrap();
    until("it says that it stood down", || machine.said().contains("StoodDown"));
    let kept = || fs::read(&device).unwrap().len();
    let so_far = kept();
    until("it keeps the watchdog", || kept() > so_far);
    assert!(!fs::read(&device).unwrap().contains(&b'V'));
}

#[test]
fn a_trial_whose_loader_cannot_be_read_still_ends() {
    let machine = Machine::on_trial();
    let line = fs::read_to_string(machine.path("host/proc/cmdline")).unwrap();
    fs::write(machine.path("host/proc/cmdline"), format!("{} monok8s.trial=A:1:1:none\n", line.trim()))
        .unwrap();
    for copy in ["loader.0", "loader.1"] {
        fs::write(machine.path(copy), b"garbage").unwrap();
    }
    let _guard = machine.guard();
    until("it counts", || machine.said().contains("OnTrial"));
    assert!(!machine.rebooted());
    machine.at(116);
    until("it reboots", || machine.rebooted());
    assert_eq!(fs::read(machine.path("loader.0")).unwrap(), b"garbage", "no default was written");
}

#[test]
fn a_loader_that_does_not_obey_does_not_make_it_reboot_for_ever() {
    let machine = Machine::on_trial();
    machine.loader.revert(monok8s_sdk::boot::Reverter::Guard).unwrap();
    machine.at(9999);
    let mut guard = machine.guard();
    assert!(guard.0.wait().unwrap().success());
    assert!(!machine.rebooted());
}
