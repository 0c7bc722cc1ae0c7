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
        for slot in ["a", "b"] {
            let dir = esp.path().join("monok8s").join(slot);
            fs::write(dir.join("vmlinuz"), "kernel").unwrap();
            let text = format!(
                "title {slot}\nversion v1.35.{slot}\nlinux /monok8s/{slot}/vmlinuz\noptions root={slot} ro\n"
            );
            fs::write(dir.join("entry"), &text).unwrap();
            if slot == "a" {
                let text = format!("{text}sort-key monok8s-500000000\n");
                fs::write(esp.entries().join("monok8s-a+3.conf"), text).unwrap();
            }
        }
        Some(esp)
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
