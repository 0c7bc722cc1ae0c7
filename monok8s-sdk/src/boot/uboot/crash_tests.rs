//! The power fails, and media fail, in the middle of every change.

use std::collections::BTreeSet;

use super::*;
use crate::boot::LoaderStatus;
use crate::boot::changes_fixture::{STEPS, both_good};
use crate::disk::fault::{Crashes, Fault, FaultDisk, Medium, Power};
use crate::slot::Slot;

/// Three sectors a copy, so that each can be torn inside of the variables.
const SIZE: usize = 1536;

/// What U-Boot does with a medium at power-on.
fn found(medium: &Medium) -> Result<(bool, Whole), [Flaw; 2]> {
    let bytes = medium.to_vec();
    let (first, second) = bytes.split_at(SIZE);
    choose([Ok(first), Ok(second)])
}

fn state(medium: &Medium) -> LoaderStatus {
    variables::status(&found(medium).expect("one copy is whole").1.environment).unwrap()
}

fn filler(seed: usize) -> String {
    "0123456789abcdef".chars().cycle().skip(seed).take(500).collect()
}

/// A medium with this state in both copies. Long variables lie before and between those that change.
fn installed(status: &LoaderStatus, serial: u8) -> Medium {
    let mut environment = Environment::default();
    environment.set("fill", Some(&filler(0)));
    environment.set("BOOT_ORDER", Some("A"));
    environment.set("more", Some(&filler(5)));
    variables::put(&mut environment, status).unwrap();
    let copy = |serial| environment.encode(SIZE, Layout::Redundant, serial).unwrap();
    Medium::of(&[copy(serial), copy(serial.wrapping_sub(1))].concat())
}

fn machine(medium: Medium) -> (Power, Arc<FaultDisk>, UbootEnv) {
    let power = Power::new();
    let disk = Arc::new(FaultDisk::new(&power, "environment", medium));
    let place = |offset| Place { region: Arc::clone(&disk) as Arc<dyn Region>, offset };
    let loader = UbootEnv::in_regions([place(0), place(SIZE as u64)], u32::try_from(SIZE).unwrap());
    (power, disk, loader)
}

/// Every medium that a power failure during a change may leave, each once.
fn crash_media(power: &Power, disk: &FaultDisk) -> Vec<Medium> {
    let mut seen = BTreeSet::new();
    power
        .crash_states(&Crashes::default())
        .map(|state| state.disk(disk))
        .filter(|medium| seen.insert(medium.to_vec()))
        .collect()
}

/// The loader finds a slot that may boot, and burns a try of it, whatever was left.
fn boots(status: &LoaderStatus) {
    let mut status = status.clone();
    for _ in 0..8 {
        let slot = status.boot_once().expect("a slot boots");
        assert!(status.may_boot(slot));
    }
}

#[test]
fn every_power_cut_leaves_the_old_or_the_new_state() {
    for step in &STEPS {
        for serial in [0, 1, 127, 253, 254, 255] {
            let old = (step.before)();
            let (power, disk, loader) = machine(installed(&old, serial));
            assert_eq!(loader.status().unwrap(), old, "{}", step.name);
            (step.change)(&loader).unwrap();
            let new = loader.status().unwrap();
            assert_ne!(old, new, "{}", step.name);
            let media = crash_media(&power, &disk);
            assert!(media.len() > 5, "{}: {}", step.name, media.len());
            let mut seen = (false, false);
            for medium in media {
                let status = state(&medium);
                assert!(status == old || status == new, "{}: {status:?}", step.name);
                seen = (seen.0 || status == old, seen.1 || status == new);
                boots(&status);
                again(step.change, &old, &new, medium);
            }
            assert_eq!(seen, (true, true), "{}", step.name);
        }
    }
}

/// After a power cut the change is made again, and the power fails again.
fn again(
    change: fn(&dyn BootBackend) -> Result<(), BootError>,
    old: &LoaderStatus,
    new: &LoaderStatus,
    medium: Medium,
) {
    let (power, disk, loader) = machine(medium);
    change(&loader).unwrap();
    assert_eq!(loader.status().unwrap(), *new);
    for medium in crash_media(&power, &disk) {
        let status = state(&medium);
        assert!(status == *old || status == *new, "{status:?}");
    }
}

#[test]
fn once_a_change_is_made_no_copy_has_the_old_state() {
    for step in &STEPS {
        let (_power, disk, loader) = machine(installed(&(step.before)(), 255));
        (step.change)(&loader).unwrap();
        let new = loader.status().unwrap();
        for rotten in 0..2 {
            let mut bytes = disk.content().to_vec();
            bytes[rotten * SIZE + 700] ^= 1;
            assert_eq!(state(&Medium::of(&bytes)), new, "{}", step.name);
        }
    }
}

#[test]
fn a_copy_that_does_not_take_a_write_keeps_the_other_one_from_being_written() {
    for (fault, is_read_back) in [
        (Fault::Error, false),
        (Fault::NoSpace, false),
        (Fault::Short(512), false),
        (Fault::Dropped, true),
        (Fault::FlippedBit(8 * 900), true),
    ] {
        let medium = installed(&both_good(), 3);
        let (_power, disk, loader) = machine(medium.clone());
        disk.inject(0, fault);
        let error = loader.invalidate(Slot::B).unwrap_err();
        assert!(matches!(error, BootError::Write { .. }), "{fault:?}: {error}");
        let said = crate::causes::chain(&error);
        assert_eq!(said.contains("reads back differently"), is_read_back, "{said}");
        let after = disk.content();
        assert!(after.holds(0, &medium.to_vec()[..SIZE]), "{fault:?}: the active copy was touched");
        assert_eq!(state(&after), both_good(), "{fault:?}");
    }
}

#[test]
fn a_second_copy_that_does_not_take_its_write_is_an_error_after_the_first_has_the_state() {
    // The first write and its flush are operations 0 and 1.
    for fault in [Fault::Error, Fault::Dropped, Fault::FlippedBit(8 * 900)] {
        let (_power, disk, loader) = machine(installed(&both_good(), 3));
        disk.inject(2, fault);
        assert!(matches!(loader.invalidate(Slot::B), Err(BootError::Write { .. })), "{fault:?}");
        assert_eq!(state(&disk.content()), both_good().invalidated(Slot::B), "{fault:?}");
        // Whoever repeats it is not told that all is done while an old copy is left that could be read.
        if fault == Fault::Error {
            continue; // The device is gone for good.
        }
        loader.invalidate(Slot::B).unwrap();
        let bytes = disk.content().to_vec();
        for copy in bytes.chunks(SIZE) {
            let Ok(whole) = Environment::decode(copy, Layout::Redundant) else { continue };
            let status = variables::status(&whole.environment).unwrap();
            assert_eq!(status, both_good().invalidated(Slot::B), "{fault:?}");
        }
    }
}

#[test]
fn a_rotten_copy_is_replaced_by_the_next_change_and_not_before() {
    for rotten in 0..2 {
        let mut bytes = installed(&both_good(), 3).to_vec();
        bytes[rotten * SIZE + 700] ^= 1;
        let (_power, disk, loader) = machine(Medium::of(&bytes));
        assert_eq!(loader.status().unwrap(), both_good());
        loader.mark_good(Slot::A).unwrap();
        assert_eq!(disk.content().to_vec(), bytes, "nothing was to be changed");
        loader.invalidate(Slot::B).unwrap();
        let (first, second) =
            (disk.content().to_vec()[..SIZE].to_vec(), disk.content().to_vec()[SIZE..].to_vec());
        for copy in [first, second] {
            let whole = Environment::decode(&copy, Layout::Redundant).unwrap();
            assert_eq!(variables::status(&whole.environment).unwrap(), both_good().invalidated(Slot::B));
        }
    }
}
