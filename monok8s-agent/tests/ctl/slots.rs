use std::fs;

use monok8s_sdk::boot::Tries;
use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};

use super::program::{Machine, ctl};

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
            "B": { "version": "v1.34.6", "state": "Verified" },
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
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let disk = machine.path("disk.img").display().to_string();
    let (a, b) = ("a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0", "b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0");
    let expected: [&[&str]; 3] = [
        &["SLOT", "STATE", "VERSION", "CONTENT", "LOADER", "SIZE", "PARTUUID", "DEVICE"],
        &["A", "booted", "v1.35.3", "KnownGood", "good, 3 left", "4.00 MiB", a, &disk],
        &["B", "-", "v1.34.6", "Verified", "never boots", "4.00 MiB", b, &disk],
    ];
    assert_eq!(rows, expected);
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
