//! Faults and mistakes that must be found: if they were not, the other tests would prove nothing.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;

use super::super::fixture::boot;
use super::judge::HEAD;
use super::machine::{Leave, Machine};
use super::*;
use crate::boot::{BootBackend as _, Tries};
use crate::digest::Sha256Digest;
use crate::disk::fault::{Fault, FaultDirectory, FaultDisk, Power, ReadFault};
use crate::disk::{
    Action as DiskAction, BlockTarget, Directory, DiskError, InactiveSlot, KnownGoodSlot, RegionLock,
};
use crate::image::{BodyWritten, Cancel, Expected, Progress, write_body};

/// Writes, finishes and reads back on a disk with a fault. What came of it, and the disk.
fn flash(image: &OsImage, prepare: impl FnOnce(&FaultDisk)) -> (Result<(), String>, Arc<FaultDisk>) {
    let disk = Arc::new(FaultDisk::new(&Power::new(), "slot B", Medium::filled(SLOT, 0xAA)));
    prepare(&disk);
    let slot = InactiveSlot::on_test_storage(Slot::B, Arc::clone(&disk) as Arc<dyn BlockTarget>);
    let (progress, cancel) = (Progress::default(), Cancel::default());
    let written = write_body(slot, image.artifact.as_slice(), &Expected::default(), &progress, &cancel)
        .and_then(BodyWritten::finish)
        .map_err(|error| error.to_string());
    let verified = written.and_then(|written| written.verify().map_err(|error| error.to_string()));
    (verified.map(|_| ()), disk)
}

#[test]
fn no_lost_or_changed_operation_gets_past_the_read_back() {
    let images = images();
    let image = &images[2];
    let (whole, disk) = flash(image, |_| {});
    assert_eq!(whole, Ok(()));
    let log = disk.log();
    let (mut caught, mut harmless) = (0, 0);
    for at in 0..log.len() {
        let bits = [0, 1 + at as u64 * 40_503, log[at].2 * 8 - u64::from(log[at].2 > 0)];
        let flips = bits.map(Fault::FlippedBit);
        for fault in flips.into_iter().chain([Fault::Dropped]) {
            let (result, disk) = flash(image, |disk| disk.inject(at, fault));
            let differs = !image.is_in(&disk.content());
            assert_eq!(result.is_err(), differs, "{fault:?} at {at} of {log:?}");
            *(if differs { &mut caught } else { &mut harmless }) += 1;
        }
        for fault in [Fault::Error, Fault::NoSpace, Fault::Short(4096)] {
            let (result, disk) = flash(image, |disk| disk.inject(at, fault));
            assert!(result.is_err(), "{fault:?} at {at}");
            let content = disk.content();
            // Before it began the slot is as it was; the last flush comes after the first bytes.
            let headless = content.is_zero(4096, HEAD - 4096) || at == 0 || at + 1 == log.len();
            assert!(headless, "{fault:?} at {at}: a slot that failed has its first bytes");
        }
    }
    println!("{} operations: {caught} faults caught, {harmless} without effect", log.len());
    let changes = log.iter().filter(|(action, ..)| *action != DiskAction::Flush).count();
    // All but the zeroing of the first 64 KiB, which are written again in the end.
    assert!(caught >= (changes - 1) * 4, "{caught} of {changes}");
    assert!(harmless < caught, "{harmless}");
}

#[test]
fn no_read_that_fails_or_changes_counts_as_read_back() {
    let images = images();
    let image = &images[2];
    let (mut refused, mut reads) = (0, 0);
    // The writer also reads to see what need not be written; then a wrong answer costs a write.
    for at in 0..200 {
        for fault in [ReadFault::Error, ReadFault::FlippedBit(7), ReadFault::FlippedBit(8_000_001)] {
            let (result, disk) = flash(image, |disk| disk.inject_read(at, fault));
            reads = disk.reads();
            assert!(result.is_err() || image.is_in(&disk.content()), "{fault:?} at {at}");
            refused += u32::from(result.is_err());
        }
        if at > reads {
            break;
        }
    }
    println!("{reads} reads, {refused} faults refused");
    assert!(refused > 2, "{refused}");
}

/// A disk behind something that forgets flushes, or that answers reads from what was written.
struct Liar {
    disk: Arc<FaultDisk>,
    page_cache: Option<Mutex<Vec<u8>>>,
}

impl BlockTarget for Liar {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let Some(cache) = &self.page_cache else { return self.disk.read_at(offset, buf) };
        buf.copy_from_slice(&cache.lock().unwrap()[usize::try_from(offset).unwrap()..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        if let Some(cache) = &self.page_cache {
            let mut cache = cache.lock().unwrap();
            cache[usize::try_from(offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
        }
        self.disk.write_at(offset, bytes)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if let Some(cache) = &self.page_cache {
            let len = usize::try_from(len).unwrap();
            cache.lock().unwrap()[usize::try_from(offset).unwrap()..][..len].fill(0);
        }
        self.disk.zero(offset, len)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.page_cache.is_none() { Ok(()) } else { self.disk.flush() }
    }

    fn description(&self) -> &'static str {
        "a liar"
    }
}

fn states(machine: &Machine) -> CrashStates {
    machine.power.crash_states(&Crashes { subsets: 64, tears: 8, seed: 1 })
}

/// The first bad state, which is there.
fn found(machine: &Machine, old: Medium) -> String {
    let bad = find_bad(machine, old, states(machine)).expect("the mistake was not found");
    println!("{}", bad.chars().take(200).collect::<String>());
    bad
}

#[test]
fn the_same_states_without_a_mistake_are_good() {
    let (mut machine, old) = about_to_upgrade();
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine));
    assert_eq!(find_bad(&machine, old, states(&machine)), None);
}

#[test]
fn flushes_that_do_nothing_are_found() {
    let (mut machine, old) = about_to_upgrade();
    machine.through.0 = Arc::new(Liar { disk: Arc::clone(&machine.b), page_cache: None });
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine), "nothing is wrong while there is power");
    found(&machine, old);
}

/// An operation of the body: neither the zeroing of the first 64 KiB nor its flush.
const OF_THE_BODY: usize = 4;

#[test]
fn a_read_back_from_a_cache_is_found() {
    let (mut machine, old) = about_to_upgrade();
    let page_cache = Some(Mutex::new(machine.b.content().to_vec()));
    machine.through.0 = Arc::new(Liar { disk: Arc::clone(&machine.b), page_cache });
    machine.b.inject(machine.b.log().len() + OF_THE_BODY, Fault::Dropped);
    let end = machine.run(Leave::ToBoot);
    assert!(matches!(end, Action::Report(Report::RolledBack { .. })), "{end:?}");
    assert_eq!(machine.torn_boots, 1);
    found(&machine, old);
}

/// Up to where the slot is written next.
fn about_to_write() -> (Machine, Medium) {
    let (mut machine, old) = about_to_upgrade();
    while !machine.is_next(|action| matches!(action, Action::Write { .. })) {
        machine.step(Leave::ToStage);
    }
    (machine, old)
}

/// Writes the slot by hand: the first 64 KiB, then the rest, or the other way round.
fn write_by_hand(disk: &FaultDisk, image: &[u8], head_first: bool) {
    let head = || disk.write_at(0, &image[..HEAD]).unwrap();
    disk.zero(0, HEAD as u64).unwrap();
    disk.flush().unwrap();
    if head_first {
        head();
    }
    for (at, unit) in image.chunks(HEAD).enumerate().skip(1) {
        disk.write_at((at * HEAD) as u64, unit).unwrap();
    }
    disk.flush().unwrap();
    if !head_first {
        head();
        disk.flush().unwrap();
    }
}

#[test]
fn a_read_back_that_is_left_out_is_found() {
    let (mut machine, old) = about_to_write();
    machine.b.inject(machine.b.log().len() + OF_THE_BODY, Fault::Dropped);
    let (image, boot_id) = (&machine.images[2], boot("boot-1"));
    write_by_hand(&machine.b, &image.bytes, false);
    let written =
        Step::Written { image_digest: Sha256Digest::of(&image.bytes), image_len: image.bytes.len() as u64 };
    let (version, booted) = (image.version.clone(), machine.booted.clone());
    for step in [written, Step::Verified, Step::Intended { booted, leave: None }, Step::Committed { boot_id }]
    {
        let record = machine.store().load().unwrap();
        machine.store().save(&record.after(&step)).unwrap();
    }
    let attempt = machine.store().load().unwrap().attempt.unwrap().id;
    let token = KnownGoodSlot::from_confirm_record(Slot::B, version, None);
    machine.loader().arm_trial(token.into(), attempt, Tries::TRIAL).unwrap();
    machine.power_on();
    assert_eq!((machine.torn_boots, machine.booted.slot), (1, Slot::A));
    found(&machine, old);
}

#[test]
fn first_bytes_that_are_written_first_are_found() {
    let (machine, old) = about_to_write();
    write_by_hand(&machine.b, &machine.images[2].bytes, true);
    assert!(found(&machine, old).starts_with("the new first bytes are there before"));
}

#[test]
fn the_same_by_hand_in_the_right_order_is_good() {
    let (machine, old) = about_to_write();
    write_by_hand(&machine.b, &machine.images[2].bytes, false);
    assert_eq!(find_bad(&machine, old, states(&machine)), None);
}

/// A directory whose names are never synced.
#[derive(Debug)]
struct Forgetful(Arc<FaultDirectory>);

impl Directory for Forgetful {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn is_present(&self) -> bool {
        self.0.is_present()
    }

    fn create(&self) -> io::Result<()> {
        self.0.create()
    }

    fn free(&self) -> io::Result<u64> {
        self.0.free()
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        self.0.read(name, most)
    }

    fn read_back(&self, name: &str) -> io::Result<Box<dyn Read>> {
        self.0.read_back(name)
    }

    fn fill(&self, name: &str, bytes: &mut dyn Read) -> io::Result<()> {
        self.0.fill(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }

    fn lock(&self) -> io::Result<RegionLock> {
        self.0.lock()
    }
}

#[test]
fn a_record_that_is_not_synced_is_found() {
    let (mut machine, old) = about_to_upgrade();
    machine.through.1 = Arc::new(Forgetful(Arc::clone(&machine.data)));
    assert_eq!(machine.run(Leave::ToBoot), completed(&machine), "nothing is wrong while there is power");
    assert!(found(&machine, old).starts_with("the record says"));
}
