use crate::api::FailureReason;
use std::fs::File;
use std::path::Path;

use super::super::GuardError;
use super::super::fixture::{FileMachine, TestPartition, write_gpt};
use super::super::host::{LoopBacking, Mount};
use super::*;

fn machine() -> (tempfile::TempDir, FileMachine) {
    let dir = tempfile::tempdir().unwrap();
    let machine = FileMachine::create(dir.path(), 4 << 20).unwrap();
    (dir, machine)
}

fn discover(machine: &FileMachine) -> Result<SlotMap, SlotsError> {
    SlotMap::discover(&machine.host(), &machine.layout())
}

fn command_line(dir: &Path, text: &str) {
    fs::write(dir.join("host/proc/cmdline"), text).unwrap();
}

#[test]
fn the_inactive_slot_is_the_one_not_booted() {
    let (_dir, machine) = machine();
    for booted in Slot::BOTH {
        machine.boot(booted).unwrap();
        let map = discover(&machine).unwrap();
        assert_eq!((map.booted().slot, map.inactive().slot), (booted, booted.other()));
        let refused = map.open_for_writing(&machine.host(), booted).unwrap_err();
        assert!(matches!(refused, GuardError::Booted { .. }), "{refused}");
        assert_eq!(refused.reason(), FailureReason::SlotIsBooted);
        let slot = map.open_inactive(&machine.host()).unwrap();
        slot.target().write_at(0, b"mark").unwrap();
        assert_eq!(machine.read(booted.other(), 4).unwrap(), b"mark");
        assert_eq!(machine.read(booted, 4).unwrap(), [0; 4]);
        machine.write(booted.other(), &[0; 4]).unwrap();
    }
}

#[test]
fn every_way_to_name_the_root_is_understood() {
    let (dir, machine) = machine();
    for (line, slot) in [
        ("root=PARTLABEL=rootfs-b", Slot::B),
        ("root=PARTUUID=B0B0B0B0-b0b0-b0b0-b0b0-b0b0b0b0b0b0", Slot::B),
        ("root=/dev/sda9 root=PARTLABEL=rootfs-a", Slot::A),
        ("myroot=PARTLABEL=rootfs-a root=\"PARTLABEL=rootfs-b\"", Slot::B),
    ] {
        command_line(dir.path(), line);
        assert_eq!(discover(&machine).unwrap().booted().slot, slot, "{line}");
    }
}

#[test]
fn an_unclear_booted_slot_is_refused() {
    let (dir, machine) = machine();
    let refused = |line: &str| {
        command_line(dir.path(), line);
        discover(&machine).unwrap_err()
    };
    assert!(matches!(refused("quiet"), SlotsError::BootedUnknown));
    assert!(matches!(refused("root=LABEL=root"), SlotsError::UnsupportedRoot { .. }));
    assert!(matches!(refused("root=UUID=abcd"), SlotsError::UnsupportedRoot { .. }));
    assert!(matches!(refused("root=PARTUUID=nonsense"), SlotsError::UnsupportedRoot { .. }));
    assert!(matches!(refused("root=PARTLABEL=recovery"), SlotsError::UnexpectedDisk { .. }));
    assert!(matches!(refused("root=/dev/sda2"), SlotsError::UnexpectedDisk { .. }));
}

#[test]
fn doubled_missing_and_shared_partitions_are_refused() {
    let (_dir, machine) = machine();
    let part = |label, seed, mib: u64| TestPartition { label, seed, offset: mib << 20, length: 1 << 20 };
    let refused = |parts: &[TestPartition<'_>], layout: &SlotLayout| {
        write_gpt(&File::options().write(true).read(true).open(machine.disk()).unwrap(), parts).unwrap();
        SlotMap::discover(&machine.host(), layout).unwrap_err()
    };
    let twice = [part("rootfs-a", 0xA0, 1), part("rootfs-b", 0xB0, 2), part("rootfs-b", 0xB1, 3)];
    let error = refused(&twice, &machine.layout());
    assert!(
        matches!(&error, SlotsError::Ambiguous { slot: Slot::B, indexes, .. } if *indexes == [2, 3]),
        "{error}"
    );

    let error = refused(&[part("rootfs-a", 0xA0, 1), part("data", 1, 2)], &machine.layout());
    assert!(matches!(error, SlotsError::Missing { slot: Slot::B, .. }), "{error}");
    assert!(error.to_string().contains("[\"rootfs-a\", \"data\"]"), "{error}");

    let guid = |text: &str| PartitionId::Guid(text.parse().unwrap());
    let same = SlotLayout { b: guid("a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0"), ..machine.layout() };
    assert!(matches!(refused(&twice, &same), SlotsError::SamePartition { index: 1, .. }));

    let by_guid = SlotLayout { b: guid("b1b1b1b1-b1b1-b1b1-b1b1-b1b1b1b1b1b1"), ..machine.layout() };
    assert_eq!(SlotMap::discover(&machine.host(), &by_guid).unwrap().inactive().partition.index, 3);
}

#[test]
fn an_image_larger_than_the_slot_is_refused() {
    let (_dir, machine) = machine();
    let slot = discover(&machine).unwrap().open_inactive(&machine.host()).unwrap();
    slot.require_room(4 << 20).unwrap();
    let refused = slot.require_room((4 << 20) + 1).unwrap_err();
    assert!(matches!(refused, GuardError::TooSmall { slot_size: 4_194_304, image_size: 4_194_305, .. }));
}

// The rest examines decisions on devices, without devices.

fn device(name: &str, minor: u32, size: u64) -> BlockDevice {
    BlockDevice {
        name: name.to_owned(),
        number: DeviceNumber { major: 8, minor },
        size,
        partition_of: None,
        holders: Vec::new(),
        backing: None,
    }
}

fn partition(index: u32, offset: u64, length: u64) -> Partition {
    let guid = "a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0".parse().unwrap();
    Partition { index, name: format!("p{index}"), guid, kind: guid, offset, length, attributes: 0 }
}

fn on_device(slot: Slot, index: u32) -> SlotPartition {
    let device = SlotDevice::Device {
        path: format!("/dev/sda{index}").into(),
        number: DeviceNumber { major: 8, minor: index },
    };
    SlotPartition { slot, partition: partition(index, u64::from(index) << 20, 1 << 20), device }
}

fn root_mount(number: &str) -> Vec<Mount> {
    let mount =
        |number, at: &str| Mount { number: DeviceNumber::parse(number).unwrap(), mount_point: at.to_owned() };
    vec![mount("0:1", "/"), mount(number, "/"), mount("8:9", "/var")]
}

#[test]
fn the_device_of_root_is_checked_against_the_command_line() {
    let (a, b) = (on_device(Slot::A, 2), on_device(Slot::B, 3));
    let mut verity = device("sda3", 3, 1 << 20);
    verity.holders.push("dm-0".to_owned());
    let mut dm = device("dm-0", 0, 1 << 20);
    dm.number = DeviceNumber { major: 253, minor: 0 };
    let devices = [device("sda2", 2, 1 << 20), verity, dm];
    let judge = |line: &str, mounts: Option<&[Mount]>| {
        booted(root_parameter(line).as_ref(), mounts, &devices, &a, &b, Path::new("/dev/sda"))
    };
    assert_eq!(judge("root=/dev/sda2", None).unwrap(), Slot::A);
    assert_eq!(judge("root=/dev/sda2", Some(&root_mount("8:2"))).unwrap(), Slot::A);
    assert_eq!(
        judge("root=/dev/sda2", Some(&root_mount("0:40"))).unwrap(),
        Slot::A,
        "an overlay tells nothing"
    );
    assert_eq!(judge("root=LABEL=x", Some(&root_mount("8:3"))).unwrap(), Slot::B);
    assert_eq!(judge("root=PARTLABEL=p3", Some(&root_mount("253:0"))).unwrap(), Slot::B, "dm-verity");
    assert!(matches!(
        judge("root=/dev/sda2", Some(&root_mount("8:3"))),
        Err(SlotsError::Contradiction { command_line: Slot::A, mounted: Slot::B })
    ));
    assert!(matches!(
        judge("root=/dev/sda2", Some(&root_mount("8:17"))),
        Err(SlotsError::UnexpectedDisk { .. })
    ));
}

#[test]
fn without_a_usable_root_parameter_the_device_of_root_leads_to_the_disk() {
    let devices = [device("sda2", 2, 1 << 20)];
    let number = DeviceNumber::parse("8:2");
    let lead = |line: &str, mounted| identified(root_parameter(line), mounted, &devices);
    assert_eq!(lead("quiet", number).unwrap(), Root::Device("sda2".to_owned()));
    assert_eq!(lead("root=LABEL=x", number).unwrap(), Root::Device("sda2".to_owned()));
    assert_eq!(lead("root=/dev/sdb1", number).unwrap(), Root::Device("sdb1".to_owned()));
    assert!(matches!(lead("quiet", None), Err(SlotsError::BootedUnknown)));
    assert!(matches!(
        lead("root=LABEL=x", DeviceNumber::parse("8:9")),
        Err(SlotsError::UnsupportedRoot { .. })
    ));
}

#[test]
fn partition_devices_are_matched_by_place_and_size() {
    let wanted = partition(2, 3 << 20, 5 << 20);
    let backing = |offset| Some(LoopBacking { file: "/images/disk.img".into(), offset });
    let disk = BlockDevice { backing: backing(0), ..device("sda", 0, 1 << 30) };
    let part = |start, size| BlockDevice {
        partition_of: Some(("sda".to_owned(), start)),
        ..device("sda2", 2, size)
    };
    assert!(shows(&part(3 << 20, 5 << 20), &disk, &wanted));
    assert!(!shows(&part(3 << 20, 4 << 20), &disk, &wanted));
    assert!(!shows(&part(2 << 20, 5 << 20), &disk, &wanted));
    let looped = |offset, size| BlockDevice { backing: backing(offset), ..device("loop7", 7, size) };
    assert!(shows(&looped(3 << 20, 5 << 20), &disk, &wanted));
    assert!(!shows(&looped(3 << 20, 6 << 20), &disk, &wanted));
    assert!(!shows(&looped(0, 5 << 20), &disk, &wanted));
    assert!(!shows(&device("sdb", 9, 5 << 20), &disk, &wanted));
}
