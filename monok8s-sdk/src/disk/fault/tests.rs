use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};

use super::power::{Change, Scope, What};
use super::*;
use crate::disk::{Action, BlockTarget as _, Directory as _, DiskError};

const EVERYTHING: Crashes = Crashes { subsets: 1 << 12, tears: 64, seed: 7 };

fn disk(sectors: usize) -> (Power, FaultDisk) {
    let power = Power::new();
    let disk = FaultDisk::new(&power, "disk", Medium::filled(sectors * 512, 0));
    (power, disk)
}

fn write(disk: &FaultDisk, sector: u64, byte: u8) {
    disk.write_at(sector * 512, &[byte; 512]).unwrap();
}

/// The first byte of each sector, for each state.
fn outcomes(power: &Power, disk: &FaultDisk) -> BTreeSet<Vec<u8>> {
    let sectors = |medium: Medium| medium.to_vec().chunks(512).map(|sector| sector[0]).collect();
    power.crash_states(&EVERYTHING).map(|state| sectors(state.disk(disk))).collect()
}

#[test]
fn any_set_of_what_is_not_flushed_may_be_there_and_nothing_else() {
    let (power, disk) = disk(4);
    write(&disk, 0, 1);
    disk.flush().unwrap();
    for sector in 1..4 {
        write(&disk, sector, 1);
    }
    let mut expected = BTreeSet::from([vec![0; 4]]);
    for mask in 0..8_u8 {
        expected.insert(vec![1, mask & 1, mask >> 1 & 1, mask >> 2]);
    }
    assert_eq!(outcomes(&power, &disk), expected);
    disk.flush().unwrap();
    let last = power.crash_states(&EVERYTHING).last().unwrap();
    assert_eq!(last.disk(&disk), disk.content());
    power.settle();
    assert_eq!(outcomes(&power, &disk), BTreeSet::from([vec![1; 4]]));
}

#[test]
fn a_write_is_torn_at_every_sector_and_at_some_here_and_there() {
    let (power, disk) = disk(8);
    disk.write_at(0, &[1; 8 * 512]).unwrap();
    let seen = outcomes(&power, &disk);
    for whole in 0..=8 {
        let mut torn = vec![1; whole];
        torn.resize(8, 0);
        assert!(seen.contains(&torn), "{torn:?}");
    }
    assert!(seen.contains(&vec![0, 0, 0, 0, 0, 0, 0, 0]) && seen.len() > 40, "{}", seen.len());
}

#[test]
fn a_flush_covers_what_had_returned_when_it_was_called() {
    let (power, disk) = disk(2);
    let put = |sector: usize| {
        let pieces = medium::Piece::cut(sector * 512, &[1; 512]).into();
        power.begin(disk.device(), What::Change(Change::Put { offset: sector * 512, len: 512, pieces }))
    };
    let (first, second) = (put(0), put(1));
    power.end(first);
    let flush = power.begin(disk.device(), What::Sync(Scope::Disk));
    power.end(second);
    // Until it returns it has promised nothing.
    let all = BTreeSet::from([vec![0, 0], vec![0, 1], vec![1, 0], vec![1, 1]]);
    assert_eq!(outcomes(&power, &disk), all);
    power.end(flush);
    let now = power.now();
    let after: BTreeSet<_> = power
        .crash_states(&EVERYTHING)
        .filter(|state| state.moment() == now)
        .map(|state| (state.disk(&disk).holds(0, &[1; 512]), state.disk(&disk).holds(512, &[1; 512])))
        .collect();
    assert_eq!(after, BTreeSet::from([(true, false), (true, true)]));
}

#[test]
fn only_what_was_under_way_together_may_end_up_in_either_order() {
    let (power, disk) = disk(1);
    write(&disk, 0, 1);
    write(&disk, 0, 2);
    let last = |power: &Power| {
        let states: Vec<_> = power.crash_states(&EVERYTHING).collect();
        let moment = states.last().unwrap().moment();
        let of_then = states.into_iter().filter(|state| state.moment() == moment);
        of_then.map(|state| state.disk(&disk).to_vec()[0]).collect::<BTreeSet<_>>()
    };
    assert_eq!(last(&power), BTreeSet::from([2]));
    let put = |byte: u8| {
        let pieces = medium::Piece::cut(0, &[byte; 512]).into();
        power.begin(disk.device(), What::Change(Change::Put { offset: 0, len: 512, pieces }))
    };
    disk.flush().unwrap();
    power.settle();
    let (three, four) = (put(3), put(4));
    power.end(three);
    power.end(four);
    assert_eq!(last(&power), BTreeSet::from([3, 4]));
}

#[test]
fn several_writers_at_once_lose_nothing_that_was_flushed() {
    let (power, disk) = disk(64);
    let disk = Arc::new(disk);
    let barrier = Arc::new(Barrier::new(4));
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (disk, barrier) = (Arc::clone(&disk), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                for sector in 0..16 {
                    write(&disk, writer * 16 + sector, 1);
                    if sector == 7 {
                        disk.flush().unwrap();
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let states = power.crash_states(&Crashes { subsets: 64, ..EVERYTHING });
    let last = states.last().unwrap().disk(&disk);
    for writer in 0..4 {
        assert!(last.holds(writer * 16 * 512, &[1; 8 * 512]), "writer {writer} flushed these");
    }
    assert_eq!(disk.content().to_vec(), vec![1; 64 * 512]);
}

#[test]
fn each_fault_does_what_it_says() {
    let full = |fault| {
        let (power, disk) = disk(4);
        disk.inject(0, fault);
        let result = disk.write_at(0, &[1; 4 * 512]);
        (power, disk, result)
    };
    for (fault, part) in [(Fault::Error, 0), (Fault::Short(512), 512)] {
        let (power, disk, result) = full(fault);
        assert!(matches!(result, Err(DiskError::Io { action: Action::Write, .. })), "{result:?}");
        assert!(disk.content().holds(0, &vec![1; part]) && disk.content().is_zero(part, 4096));
        assert!(matches!(disk.write_at(0, &[1]), Err(DiskError::Poisoned { action: Action::Write, .. })));
        assert!(matches!(disk.flush(), Err(DiskError::Poisoned { .. })));
        assert!(matches!(disk.read_at(0, &mut [0]), Err(DiskError::Poisoned { .. })));
        assert!(disk.log().is_empty());
        // Part of what failed may be there, or not.
        assert_eq!(outcomes(&power, &disk).len(), if part == 0 { 1 } else { 2 });
    }
    assert!(matches!(full(Fault::NoSpace).2, Err(DiskError::NoSpace { .. })));
    let (_, disk, result) = full(Fault::Dropped);
    assert!(result.is_ok() && disk.content().is_zero(0, 4 * 512));
    assert_eq!(disk.log(), [(Action::Write, 0, 4 * 512)]);
    let (_, disk, result) = full(Fault::FlippedBit(8 * 700 + 1));
    assert!(result.is_ok() && disk.content().holds(0, &[1; 700]) && disk.content().holds(700, &[3, 1]));
}

#[test]
fn zeroings_flushes_and_reads_fail_too() {
    let (power, disk) = disk(4);
    write(&disk, 0, 1);
    disk.inject(1, Fault::Dropped);
    disk.flush().unwrap();
    assert_eq!(outcomes(&power, &disk).len(), 2, "a dropped flush keeps nothing");
    disk.inject_read(0, ReadFault::FlippedBit(0));
    disk.inject_read(1, ReadFault::Error);
    let mut byte = [0];
    disk.read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert!(matches!(disk.read_at(0, &mut byte), Err(DiskError::Io { action: Action::Read, .. })));
    disk.read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [1], "a failed read changes nothing");
    disk.zero(0, 0).unwrap();
    disk.inject(2, Fault::FlippedBit(3));
    disk.zero(0, 512).unwrap();
    assert!(disk.content().holds(0, &[8, 0]));
    disk.inject(3, Fault::Error);
    assert!(matches!(disk.flush(), Err(DiskError::Io { action: Action::Flush, .. })));
    assert!(matches!(disk.zero(0, 1), Err(DiskError::Poisoned { action: Action::Flush, .. })));
    let (_, disk) = self::disk(1);
    assert!(matches!(disk.write_at(511, &[0; 2]), Err(DiskError::OutOfBounds { .. })));
    disk.write_at(0, &[1]).unwrap();
}

#[test]
fn a_directory_keeps_what_was_synced_and_tears_what_was_not() {
    let power = Power::new();
    let dir = FaultDirectory::new(&power, "/data", &Files::default());
    let old = [1; 1024];
    dir.write("file", &old).unwrap();
    dir.sync().unwrap();
    power.settle();
    let contents = |power: &Power| -> BTreeSet<Option<Vec<u8>>> {
        let file = |state: CrashState| state.directory(&dir).0.get("file").map(|bytes| bytes.to_vec());
        power.crash_states(&EVERYTHING).map(file).collect()
    };
    let (whole_old, whole_new) = (Some(old.to_vec()), Some(vec![2; 1024]));

    dir.write("file.new", &[2; 1024]).unwrap();
    dir.rename("file.new", "file").unwrap();
    dir.sync().unwrap();
    assert_eq!(contents(&power), BTreeSet::from([whole_old.clone(), whole_new.clone()]));
    assert_eq!(dir.read("file", 2).unwrap().unwrap(), [2, 2]);
    assert_eq!(dir.read("file.new", 2).unwrap(), None);
    assert_eq!(dir.rename("file.new", "file").unwrap_err().kind(), std::io::ErrorKind::NotFound);

    // In place: the old bytes, none, some or all of the new ones.
    power.settle();
    dir.write("file", &[3; 1024]).unwrap();
    let seen = contents(&power);
    assert!(seen.contains(&whole_new) && seen.contains(&Some(vec![])) && seen.contains(&Some(vec![3; 512])));

    // Renamed before it was synced: the name may lead to anything.
    power.settle();
    let change = |change| power.act(dir.device(), What::Change(change));
    change(Change::Create { name: "file.new".into(), inode: 77 });
    change(Change::Fill { inode: 77, bytes: [4; 1024].as_slice().into() });
    change(Change::Rename { from: "file.new".into(), to: "file".into() });
    let seen = contents(&power);
    assert!(seen.contains(&Some(vec![])) && seen.contains(&Some(vec![4; 512])), "{}", seen.len());
    assert!(seen.contains(&Some(vec![3; 1024])));
}

#[test]
fn many_operations_are_sampled_and_the_same_seed_gives_the_same_states() {
    let (power, disk) = disk(100);
    for sector in 0..100 {
        write(&disk, sector, 1);
    }
    let all = |seed| -> Vec<String> {
        let crashes = Crashes { subsets: 400, tears: 4, seed };
        power.crash_states(&crashes).map(|state| format!("{state:?}")).collect()
    };
    let (one, two) = (all(1), all(2));
    assert_eq!(one, all(1));
    assert_ne!(one, two);
    let different: BTreeSet<_> = one.iter().collect();
    assert_eq!(different.len(), one.len(), "no state twice");
    assert!(one.len() > 30_000, "{}", one.len());
}

#[test]
fn two_disks_lose_power_at_the_same_moment_and_each_for_itself() {
    let (power, one) = disk(1);
    let two = FaultDisk::new(&power, "two", Medium::filled(512, 0));
    write(&one, 0, 1);
    one.flush().unwrap();
    write(&two, 0, 1);
    two.flush().unwrap();
    let seen: BTreeSet<_> = power
        .crash_states(&EVERYTHING)
        .map(|state| (state.disk(&one).is_zero(0, 512), state.disk(&two).is_zero(0, 512)))
        .collect();
    assert_eq!(seen, BTreeSet::from([(true, true), (false, true), (false, false)]));
}
