//! What is inside an image, read from real ext4 file systems, and from broken ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use monok8s_sdk::api::FailureReason;
use monok8s_sdk::boot::bls::kernel::{BootFiles, Source, StageError};
use monok8s_sdk::boot::bls::{BlsEntries, ENTRIES};
use monok8s_sdk::boot::{AttemptId, BootBackend as _, Tries};
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::disk::{SlotMap, VerifiedSlot};
use monok8s_sdk::image::{
    Cancel, Expected, GuardFiles, GuardFound, InspectError, Inspection, Progress, SlotFile, inspect,
    write_body,
};
use monok8s_sdk::slot::Slot;
use proptest::prelude::*;

/// An ext4 image of what `fill` puts into a directory; `None`, and a line that says so, without
/// mke2fs.
fn image_of(fill: impl FnOnce(&Path)) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(&image)
        .arg("8M")
        .stdout(Stdio::null())
        .status();
    let Ok(made) = made else {
        println!("SKIP: mke2fs (package e2fsprogs) is not installed");
        return None;
    };
    assert!(made.success());
    Some(fs::read(&image).unwrap())
}

/// A root file system as ours are: os-release behind a symbolic link, the guard installed.
fn root_fs(tree: &Path) {
    for directory in ["etc", "usr/lib", "usr/bin"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::write(tree.join("usr/lib/os-release"), "ID=monok8s\nVERSION_ID=\"v1.35.4\"\n").unwrap();
    symlink("../usr/lib/os-release", tree.join("etc/os-release")).unwrap();
    fs::write(tree.join("usr/bin/monok8s-agent"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("usr/bin/monok8s-agent"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(tree.join(WANTS)).unwrap();
    let unit = "/usr/lib/systemd/system/monok8s-guard.service";
    symlink(unit, tree.join(WANTS).join("monok8s-guard.service")).unwrap();
}

const WANTS: &str = "etc/systemd/system/sysinit.target.wants";

/// Puts an image into a slot of a machine made of files.
fn in_slot(image: &[u8]) -> (tempfile::TempDir, VerifiedSlot) {
    let dir = tempfile::tempdir().unwrap();
    let machine = FileMachine::create(dir.path(), 32 << 20).unwrap();
    let host = machine.host();
    let slot = SlotMap::discover(&host, &machine.layout()).unwrap().open_inactive(&host).unwrap();
    let artifact = Cursor::new(zstd::encode_all(image, 1).unwrap());
    let body =
        write_body(slot, artifact, &Expected::default(), &Progress::default(), &Cancel::default()).unwrap();
    (dir, body.finish().unwrap().verify().unwrap())
}

fn inspected(image: &[u8]) -> Result<Inspection, InspectError> {
    let (_dir, slot) = in_slot(image);
    inspect(&slot, &GuardFiles::default())
}

#[test]
fn version_and_guard_are_found() {
    let Some(image) = image_of(root_fs) else { return };
    let found = inspected(&image).unwrap();
    assert_eq!(found.version.as_ref().map(ToString::to_string).as_deref(), Some("v1.35.4"));
    assert_eq!(found.guard, GuardFound::Enabled { program: "/usr/bin/monok8s-agent".to_owned() });
    let require = |version: &str| found.require(Slot::B, &version.parse().unwrap(), &GuardFiles::default());
    require("v1.35.4").unwrap();
    let wrong = require("v1.35.3").unwrap_err();
    assert_eq!(wrong.reason(), FailureReason::WrongVersion);
    assert!(wrong.to_string().contains("is v1.35.4, but v1.35.3 was ordered"), "{wrong}");
}

#[test]
fn links_are_followed_through_directories_and_from_the_image_s_own_root() {
    let Some(image) = image_of(|tree| {
        root_fs(tree);
        fs::create_dir_all(tree.join("system/v2")).unwrap();
        fs::rename(tree.join("usr"), tree.join("system/v2/usr")).unwrap();
        symlink("v2/../v2/./usr", tree.join("system/current")).unwrap();
        symlink("/system/current", tree.join("usr")).unwrap();
        fs::remove_file(tree.join("etc/os-release")).unwrap();
        symlink("/../usr//lib/os-release", tree.join("etc/os-release")).unwrap();
    }) else {
        return;
    };
    let found = inspected(&image).unwrap();
    assert!(found.version.is_some());
    assert_eq!(found.guard, GuardFound::Enabled { program: "/usr/bin/monok8s-agent".to_owned() });
}

#[test]
fn an_image_without_a_guard_is_refused() {
    for spoil in [
        (|tree: &Path| fs::remove_file(tree.join("usr/bin/monok8s-agent")).unwrap()) as fn(&Path),
        |tree| fs::write(tree.join("usr/bin/monok8s-agent"), "").unwrap(),
        |tree| {
            let path = tree.join("usr/bin/monok8s-agent");
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        },
        |tree| fs::remove_dir_all(tree.join("usr/bin")).unwrap(),
    ] {
        let Some(image) = image_of(|tree| {
            root_fs(tree);
            spoil(tree);
        }) else {
            return;
        };
        let found = inspected(&image).unwrap();
        assert_eq!(found.guard, GuardFound::Missing);
        let refused =
            found.require(Slot::B, &"v1.35.4".parse().unwrap(), &GuardFiles::default()).unwrap_err();
        assert_eq!(refused.reason(), FailureReason::GuardMissing);
    }
}

#[test]
fn a_guard_that_nothing_starts_is_none() {
    let with = |spoil: fn(&Path)| {
        let image = image_of(|tree| {
            root_fs(tree);
            fs::remove_dir_all(tree.join(WANTS)).unwrap();
            spoil(tree);
        });
        image.map(|image| inspected(&image).unwrap())
    };
    let Some(found) = with(|_| {}) else { return };
    assert_eq!(found.guard, GuardFound::NotEnabled { program: "/usr/bin/monok8s-agent".to_owned() });
    let require =
        |found: &Inspection, files: &GuardFiles| found.require(Slot::B, &"v1.35.4".parse().unwrap(), files);
    let refused = require(&found, &GuardFiles::default()).unwrap_err();
    assert_eq!(refused.reason(), FailureReason::GuardMissing);
    assert!(refused.to_string().contains("enable monok8s-guard"), "{refused}");

    let openrc = with(|tree| {
        fs::create_dir_all(tree.join("etc/runlevels/boot")).unwrap();
        symlink("/etc/init.d/monok8s-guard", tree.join("etc/runlevels/boot/monok8s-guard")).unwrap();
    });
    require(&openrc.unwrap(), &GuardFiles::default()).unwrap();
}

#[test]
fn what_states_no_version_is_told_from_what_is_no_root_file_system() {
    let Some(silent) = image_of(|tree| {
        root_fs(tree);
        fs::write(tree.join("usr/lib/os-release"), "ID=debian\nVERSION_ID=12\n").unwrap();
    }) else {
        return;
    };
    let found = inspected(&silent).unwrap();
    assert_eq!(found.version, None);
    found.require(Slot::B, &"v1.35.4".parse().unwrap(), &GuardFiles::default()).unwrap();

    let empty = image_of(|_| {}).unwrap();
    assert!(matches!(inspected(&empty), Err(InspectError::NoOsRelease { slot: Slot::B })));

    let huge = image_of(|tree| {
        root_fs(tree);
        fs::write(tree.join("usr/lib/os-release"), vec![b'#'; 2 << 20]).unwrap();
    });
    assert!(matches!(inspected(&huge.unwrap()), Err(InspectError::OsRelease { .. })));

    let circular = image_of(|tree| {
        root_fs(tree);
        fs::remove_file(tree.join("usr/lib/os-release")).unwrap();
        symlink("/etc/os-release", tree.join("usr/lib/os-release")).unwrap();
    });
    assert!(matches!(inspected(&circular.unwrap()), Err(InspectError::NotReadable { .. })));
}

#[test]
fn what_is_no_file_system_is_refused() {
    assert_eq!(inspected(&[7; 1000]).unwrap_err().reason(), FailureReason::UnreadableImage);
    assert_eq!(inspected(&vec![7; 1 << 20]).unwrap_err().reason(), FailureReason::UnreadableImage);
}

#[test]
fn a_superblock_that_asks_for_all_memory_is_refused() {
    let Some(image) = image_of(root_fs) else { return };
    // s_blocks_count_lo, s_log_block_size, s_blocks_per_group, s_blocks_count_hi
    for (field, value) in [(0x04, u32::MAX), (0x18, 7), (0x20, 1), (0x20, 0), (0x150, 1)] {
        let mut hostile = image.clone();
        hostile[1024 + field..][..4].copy_from_slice(&value.to_le_bytes());
        let refused = inspected(&hostile).unwrap_err();
        assert!(matches!(refused, InspectError::Geometry { .. }), "{field:#x}: {refused:?}");
    }
}

/// Broken metadata, past the checksums: those are turned off, as an attacker would.
#[test]
fn no_damage_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, path) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    root_fs(&tree);
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^metadata_csum,^has_journal", "-d"])
        .args([&tree, &path])
        .arg("2M")
        .stdout(Stdio::null())
        .status();
    if made.is_err() {
        println!("SKIP: mke2fs (package e2fsprogs) is not installed");
        return;
    }
    let image = fs::read(&path).unwrap();
    let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20);
    proptest!(ProptestConfig::with_cases(150), |(damage in damage)| {
        let mut hostile = image.clone();
        for (place, byte) in damage {
            hostile[*place.get(&used)] = byte;
        }
        let _ = inspected(&hostile);
    });
}

/// An EFI system partition whose only entry is slot A.
fn esp() -> tempfile::TempDir {
    let esp = tempfile::tempdir().unwrap();
    fs::create_dir_all(esp.path().join(ENTRIES)).unwrap();
    let entry =
        "linux /monok8s/a/vmlinuz\nsort-key monok8s-500000000\noptions quiet root=PARTUUID=aa ro panic=5\n";
    fs::write(esp.path().join(ENTRIES).join("monok8s-a.conf"), entry).unwrap();
    esp
}

fn stage(esp: &Path, slot: &VerifiedSlot) -> Result<(), StageError> {
    let mut kernel = SlotFile::open(slot, "/boot/vmlinuz").unwrap().unwrap();
    let mut initrd = SlotFile::open(slot, "/boot/initrd.img").unwrap();
    let version = "v1.35.4".parse().unwrap();
    let initrd = initrd.as_mut().map(|initrd| Source { length: initrd.length(), bytes: initrd });
    let kernel = Source { length: kernel.length(), bytes: &mut kernel };
    let files = BootFiles { kernel, initrd, version: Some(&version), root: "PARTUUID=bb" };
    BlsEntries::on_partition(esp).stage(slot, files)
}

#[test]
fn a_kernel_is_taken_out_of_its_slot_to_where_the_loader_reads_it() {
    let kernel: Vec<u8> = (0..700_001_u32).flat_map(|at| (at % 251).to_le_bytes()).collect();
    let Some(image) = image_of(|tree| {
        root_fs(tree);
        fs::create_dir_all(tree.join("boot")).unwrap();
        fs::write(tree.join("boot/vmlinuz-6.12"), &kernel).unwrap();
        symlink("vmlinuz-6.12", tree.join("boot/vmlinuz")).unwrap();
        fs::write(tree.join("boot/initrd.img"), b"initrd").unwrap();
    }) else {
        return;
    };
    let (_dir, slot) = in_slot(&image);
    assert!(SlotFile::open(&slot, "/boot/absent").unwrap().is_none());
    let esp = esp();
    // What another image left.
    let dir = esp.path().join("monok8s/b");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("entry"), "linux /elsewhere\n").unwrap();
    fs::write(dir.join("vmlinuz"), vec![1; 5_000_000]).unwrap();

    stage(esp.path(), &slot).unwrap();
    assert_eq!(fs::read(dir.join("vmlinuz")).unwrap(), kernel);
    assert_eq!(fs::read(dir.join("initrd.img")).unwrap(), b"initrd");

    let loader = BlsEntries::on_partition(esp.path());
    loader.arm_trial(slot.into(), AttemptId(3), Tries::TRIAL).unwrap();
    let entry = fs::read_to_string(esp.path().join(ENTRIES).join("monok8s-b+1.conf")).unwrap();
    assert_eq!(
        entry,
        "# Written when the slot was.\ntitle MonoK8s v1.35.4 (slot B)\nversion v1.35.4\n\
         linux /monok8s/b/vmlinuz\ninitrd /monok8s/b/initrd.img\noptions quiet root=PARTUUID=bb ro panic=5 monok8s.trial=B:3:1:none\n\
         sort-key monok8s-499999999\n# monok8s-trial 3 1\n"
    );
}

#[test]
fn a_kernel_in_use_is_never_replaced_and_half_a_kernel_is_never_armed() {
    let Some(image) = image_of(|tree| {
        fs::create_dir_all(tree.join("boot")).unwrap();
        fs::write(tree.join("boot/vmlinuz"), [7; 5000]).unwrap();
    }) else {
        return;
    };
    let (_dir, slot) = in_slot(&image);
    let esp = esp();
    let loader = BlsEntries::on_partition(esp.path());
    stage(esp.path(), &slot).unwrap();

    // Shorter than it says, and longer: what was staged before is gone, and nothing can be armed.
    for (length, bytes) in [(5001, &[7_u8; 5000][..]), (4999, &[7; 5000]), (0, &[]), (u64::MAX, &[7; 5000])] {
        stage(esp.path(), &slot).unwrap();
        let mut bytes = bytes;
        let kernel = Source { length, bytes: &mut bytes };
        let files = BootFiles { kernel, initrd: None, version: None, root: "PARTUUID=bb" };
        let error = loader.stage(&slot, files).unwrap_err();
        let (too_large, wrong) = (length == u64::MAX, matches!(error, StageError::Length { .. }));
        assert!(wrong || too_large && matches!(error, StageError::NoSpace { .. }), "{error}");
        assert!(!esp.path().join("monok8s/b/entry").exists());
    }
    let at_b = SlotFile::open(&slot, "/boot/vmlinuz").unwrap().unwrap().length();
    assert_eq!(at_b, 5000);
    stage(esp.path(), &slot).unwrap();
    let (_other_dir, other) = in_slot(&image);
    loader.arm_trial(slot.into(), AttemptId(3), Tries::TRIAL).unwrap();
    let error = stage(esp.path(), &other).unwrap_err();
    assert!(matches!(error, StageError::StillBoots { slot: Slot::B }), "{error}");
    assert_eq!(fs::read(esp.path().join("monok8s/b/vmlinuz")).unwrap(), [7; 5000]);
}
