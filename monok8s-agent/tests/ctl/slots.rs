use std::fs;

use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{AttemptId, BootBackend as _, Tries};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};

use super::program::{Machine, ctl};

const DIGEST: &str = "sha256:2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e";

fn machine() -> Machine {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("host/etc")).unwrap();
    fs::write(machine.path("host/etc/os-release"), "VERSION_ID=\"v1.35.3\"\n").unwrap();
    SimulatedLoader::install(&machine.path("loader"), Slot::A, Tries(3)).unwrap();
    let record = json!({
        "format": 1,
        "nextAttempt": 2,
        "slots": {
            "A": { "version": "v1.33.0", "state": "KnownGood" },
            "B": { "version": "v1.34.6", "state": "Verified", "imageDigest": DIGEST },
        },
    });
    RecordStore::in_dir(machine.path("data")).save(&serde_json::from_value(record).unwrap()).unwrap();
    machine
}

#[test]
fn a_table_for_people() {
    let machine = machine();
    let backend = format!("--boot-backend=simulated:{}", machine.path("loader").display());
    let table = ctl(&machine.args("slots", &[&backend])).good();
    let (table, facts) = table.split_once("\n\n").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let disk = machine.path("disk.img").display().to_string();
    let (a, b) = ("a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0", "b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0");
    let expected: [&[&str]; 3] = [
        &["SLOT", "STATE", "VERSION", "CONTENT", "DIGEST", "LOADER", "SIZE", "PARTUUID", "DEVICE"],
        &["A", "booted", "v1.35.3", "KnownGood", "-", "good, 3 left", "4.00 MiB", a, &disk],
        &["B", "-", "v1.34.6", "Verified", "sha256:2e2e2e2e2e2e", "never boots", "4.00 MiB", b, &disk],
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        facts,
        "Next boot: A\nLoader: simulated, was not seen to count tries\nGuard: has said nothing in this boot\n"
    );
}

#[test]
fn a_trial_is_shown_with_the_guards_deadline() {
    let machine = machine();
    let loader = SimulatedLoader::open(&machine.path("loader"));
    assert_eq!(loader.boot(|_| true).unwrap(), Slot::A);
    loader.mark_good(Slot::A).unwrap();
    let token = KnownGoodSlot::from_confirm_record(Slot::B, "v1.34.6".parse().unwrap(), None);
    loader.arm_trial(token.into(), AttemptId(1), Tries::TRIAL).unwrap();
    for (path, text) in [
        ("host/proc/sys/kernel/random/boot_id", "b-2\n"),
        ("host/proc/uptime", "100.00 1.00\n"),
        ("host/run/monok8s/guard.json", r#"{"state":"OnTrial","bootID":"b-2","deadlineUptimeSeconds":615}"#),
    ] {
        fs::create_dir_all(machine.path(path).parent().unwrap()).unwrap();
        fs::write(machine.path(path), text).unwrap();
    }
    let backend = format!("--boot-backend=simulated:{}", machine.path("loader").display());
    let shown = ctl(&machine.args("slots", &[&backend])).good();
    assert!(shown.contains("trial, 1 left"), "{shown}");
    assert!(shown.contains("Next boot: B\n"), "{shown}");
    assert!(shown.contains("Loader: simulated, counts tries\n"), "{shown}");
    assert!(shown.contains("sends the booted slot back in 515 s, unless it is confirmed"), "{shown}");
}

#[test]
fn json_for_programs() {
    let machine = machine();
    let backend = format!("--boot-backend=simulated:{}", machine.path("loader").display());
    let output = ctl(&machine.args("slots", &["-o", "json", &backend])).good();
    let report: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(report["nextBoot"], "A");
    assert_eq!(report["slots"][0]["booted"], true);
    assert_eq!(report["slots"][1]["sizeBytes"], 4 << 20);
    assert_eq!(report["slots"][1]["partUUID"], "b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0");
    assert_eq!(report["slots"][1]["loader"], json!({ "bootable": false, "onTrial": false, "triesLeft": 0 }));
}

#[test]
fn without_loader_and_record_it_shows_what_it_can() {
    let machine = Machine::new();
    let report: Value = serde_json::from_str(&ctl(&machine.args("slots", &["-ojson"])).good()).unwrap();
    assert_eq!(report["slots"][0].get("version"), None);
    assert_eq!(report["slots"][0].get("loader"), None);
    assert_eq!(report["slots"][0]["booted"], true);
}

#[test]
fn an_unreadable_loader_is_an_error() {
    let machine = machine();
    let backend = format!("--boot-backend=simulated:{}", machine.path("nowhere/loader").display());
    let error = ctl(&machine.args("slots", &[&backend])).bad(1);
    assert!(error.contains("simulated boot loader"), "{error}");
}
