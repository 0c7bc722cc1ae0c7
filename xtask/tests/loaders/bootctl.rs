//! systemd's own reader of boot entries, on ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use monok8s_sdk::boot::bls::{BlsEntries, ENTRIES, sd_boot};
use monok8s_sdk::boot::{ArmableSlot, AttemptId, BootBackend as _, Tries};
use monok8s_sdk::disk::{HostDirectory, KnownGoodSlot};
use monok8s_sdk::slot::Slot;
use serde_json::Value;
use xtask::host::{Program, is_root};

const BOOTCTL: Program = Program { name: "bootctl", package: "systemd-boot" };
const KERNEL_INSTALL: Program = Program { name: "kernel-install", package: "systemd" };

/// A small file system of its own, as bootctl asks for; it goes with this value.
struct Esp(tempfile::TempDir);

impl Esp {
    fn mount() -> Option<Self> {
        let obstacle = BOOTCTL.locate().err().map(|error| error.to_string());
        let obstacle =
            obstacle.or_else(|| (!is_root()).then(|| "needs root to mount a small tmpfs".to_owned()));
        if let Some(reason) = obstacle {
            println!("SKIP: {reason}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=2m", "esp"];
        let mounted = Command::new("mount").args(mount).arg(dir.path()).status().unwrap();
        assert!(mounted.success());
        let esp = Self(dir);
        for dir in [ENTRIES, "EFI", "monok8s/a", "monok8s/b"] {
            fs::create_dir_all(esp.path().join(dir)).unwrap();
        }
        esp.stage("b");
        Some(esp)
    }

    /// Puts a kernel where an upgrade would; returns the lines of its entry.
    fn stage(&self, slot: &str) -> String {
        let dir = self.path().join("monok8s").join(slot);
        fs::write(dir.join("vmlinuz"), "kernel").unwrap();
        let text = format!(
            "title {slot}\nversion v1.35.{slot}\nlinux /monok8s/{slot}/vmlinuz\noptions root={slot} ro\n"
        );
        fs::write(dir.join("entry"), &text).unwrap();
        text
    }

    /// Installs slot A as `deploy/host/README.md` has it.
    fn install(&self) {
        let text = format!("{}sort-key monok8s-500000000\n", self.stage("a"));
        fs::write(self.entries().join("monok8s-a+3.conf"), text).unwrap();
    }

    /// The same with systemd's own tool, of which nothing but the sort-key has to be changed.
    fn install_with_kernel_install(&self) {
        let settings = tempfile::tempdir().unwrap();
        let kernel = settings.path().join("vmlinuz");
        for (name, text) in [
            ("install.conf", "layout=bls\n"),
            ("entry-token", "monok8s\n"),
            ("tries", "3\n"),
            ("cmdline", "root=a ro panic=5\n"),
            ("vmlinuz", "kernel"),
        ] {
            fs::write(settings.path().join(name), text).unwrap();
        }
        let output = Command::new(KERNEL_INSTALL.locate().unwrap())
            .args(["add", "a"])
            .arg(&kernel)
            .env("KERNEL_INSTALL_CONF_ROOT", settings.path())
            .env("BOOT_ROOT", self.path())
            .env("MACHINE_ID", "6b386f73000040008000000000000001")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let entry = self.entries().join("monok8s-a+3.conf");
        let text = fs::read_to_string(&entry).unwrap();
        let others = text.lines().filter(|line| !line.starts_with("sort-key"));
        let lines: Vec<_> = others.chain(["sort-key monok8s-500000000", ""]).collect();
        fs::write(&entry, lines.join("\n")).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn entries(&self) -> PathBuf {
        self.path().join(ENTRIES)
    }

    /// What bootctl lists: identity, tries left and tries done of each entry, in its order.
    fn listed(&self) -> Vec<(String, Option<u64>, Option<u64>)> {
        let output = Command::new(BOOTCTL.locate().unwrap())
            .args(["list", "--json=short", "--no-pager"])
            .arg(format!("--esp-path={}", self.path().display()))
            // It is no FAT on a disk with a GPT.
            .env("SYSTEMD_RELAX_ESP_CHECKS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // One object after the other in some releases, a list of them in others.
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        let values = values.flat_map(|value| match value.unwrap() {
            Value::Array(values) => values,
            value => vec![value],
        });
        let entry = |value: Value| {
            let left = value["triesLeft"].as_u64();
            // Where none was done, some releases say nothing.
            let done = value["triesDone"].as_u64().or(left.map(|_| 0));
            (value["id"].as_str().unwrap().to_owned(), left, done)
        };
        values.map(entry).collect()
    }
}

impl Drop for Esp {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

#[test]
fn systemd_reads_our_entries_counters_and_order_as_we_do() {
    let Some(esp) = Esp::mount() else { return };
    esp.install();
    goes_all_the_way(&esp);
}

#[test]
fn an_entry_that_systemd_wrote_is_taken_and_given_back_as_it_was() {
    let Some(esp) = Esp::mount() else { return };
    if let Err(reason) = KERNEL_INSTALL.locate() {
        println!("SKIP: {reason}");
        return;
    }
    esp.install_with_kernel_install();
    let before = fs::read_to_string(esp.entries().join("monok8s-a+3.conf")).unwrap();
    goes_all_the_way(&esp);
    // Through all of it, its lines are those that systemd wrote.
    assert_eq!(fs::read_to_string(esp.entries().join("monok8s-a.conf")).unwrap(), before);
}

/// A first start, a trial that falls back, and one that is confirmed, each read by systemd too.
fn goes_all_the_way(esp: &Esp) {
    let loader = BlsEntries::on_partition(esp.path());
    let power_on = || sd_boot::power_on(&HostDirectory::new(esp.entries())).unwrap();
    let id = |slot: &str| format!("monok8s-{slot}.conf");
    assert_eq!(esp.listed(), [(id("a"), Some(3), Some(0))]);
    assert_eq!(power_on(), Some(Slot::A));
    assert_eq!(esp.listed(), [(id("a"), Some(2), Some(1))]);
    loader.mark_good(Slot::A).unwrap();
    assert_eq!(esp.listed(), [(id("a"), None, None)]);

    loader.arm_trial(token(Slot::B), AttemptId(7), Tries::TRIAL).unwrap();
    assert_eq!(esp.listed(), [(id("b"), Some(1), Some(0)), (id("a"), None, None)]);
    assert_eq!(power_on(), Some(Slot::B));
    assert_eq!(esp.listed(), [(id("a"), None, None), (id("b"), Some(0), Some(1))]);
    loader.mark_good(Slot::A).unwrap();
    // What is left of the trial is no entry.
    assert_eq!(esp.listed(), [(id("a"), None, None)]);

    loader.arm_trial(token(Slot::B), AttemptId(8), Tries(2)).unwrap();
    assert_eq!(power_on(), Some(Slot::B));
    assert_eq!(esp.listed(), [(id("b"), Some(1), Some(1)), (id("a"), None, None)]);
    loader.confirm().unwrap();
    assert_eq!(esp.listed(), [(id("b"), None, None), (id("a"), None, None)]);
}
