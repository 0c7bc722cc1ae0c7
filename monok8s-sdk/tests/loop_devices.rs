//! The same slots on real block devices. Needs root and loop devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use monok8s_sdk::api::FailureReason;
use monok8s_sdk::disk::fixture::FileMachine;
use monok8s_sdk::disk::{
    BlockTarget as _, DirectTarget, DiskError, DiskSource, GuardError, HostView, SlotDevice, SlotLayout,
    SlotMap,
};
use monok8s_sdk::image::{Cancel, Expected, Progress, Source, flash};
use monok8s_sdk::slot::Slot;

const SLOT_SIZE: u64 = 16 << 20;

/// A loop device that goes away with this value.
struct Loop {
    node: PathBuf,
}

impl Loop {
    fn attach(arguments: &[&str], file: &Path) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show"]).args(arguments).arg(file).output().ok()?;
        let node = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self { node: node.trim().into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.node).status();
    }
}

/// A mount that goes away with this value.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

struct Machine {
    slot_b: Loop,
    disk: Loop,
    files: FileMachine,
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// One test at a time: a program that another test starts has our files until its `exec`, and
/// would hold a device for a moment after we let go of it.
static ALONE: Mutex<()> = Mutex::new(());

impl Machine {
    /// `None`, and a line that says so, where loop devices cannot be had.
    fn start(sector_size: &str) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let files = FileMachine::create(dir.path(), SLOT_SIZE).unwrap();
        for name in ["sys", "dev"] {
            symlink(Path::new("/").join(name), dir.path().join("host").join(name)).unwrap();
        }
        let offset = files.offset(Slot::B).to_string();
        let size = SLOT_SIZE.to_string();
        let disk = Loop::attach(&[], &files.disk());
        let window = ["--offset", offset.as_str(), "--sizelimit", &size, "--sector-size", sector_size];
        let slot_b = Loop::attach(&window, &files.disk());
        let (Some(disk), Some(slot_b)) = (disk, slot_b) else {
            println!("SKIP: loop devices cannot be attached (needs root and losetup)");
            return None;
        };
        Some(Self { slot_b, disk, files, dir, _alone: alone })
    }

    fn host(&self) -> HostView {
        self.files.host()
    }

    fn slots(&self) -> SlotMap {
        let layout = SlotLayout { disk: DiskSource::Path(self.disk.node.clone()), ..SlotLayout::default() };
        SlotMap::discover(&self.host(), &layout).unwrap()
    }
}

#[tokio::test]
async fn an_image_goes_through_the_loop_device_of_its_partition() {
    for sector_size in ["512", "4096"] {
        let Some(machine) = Machine::start(sector_size) else { return };
        machine.files.write(Slot::A, &vec![7; 100_000]).unwrap();
        let booted = machine.files.read_all(Slot::A).unwrap();
        // Not a multiple of any sector size, with zeroes over old bytes.
        machine.files.write(Slot::B, &vec![0xAA; 5 << 20]).unwrap();
        let mut image: Vec<u8> = (0..5_000_001_u32).map(|at| at.to_le_bytes()[1]).collect();
        image[1_000_000..3_000_000].fill(0);
        let artifact = zstd::encode_all(image.as_slice(), 1).unwrap();

        let slots = machine.slots();
        let SlotDevice::Device { path, .. } = &slots.inactive().device else { panic!("{slots:?}") };
        assert_eq!(path.file_name(), machine.slot_b.node.file_name());
        let slot = slots.open_inactive(&machine.host()).unwrap();
        let source = Source::Reader(Box::new(std::io::Cursor::new(artifact)));
        let (verified, _) =
            flash(slot, source, Expected::default(), &Progress::default(), &Cancel::default()).await.unwrap();
        assert_eq!(verified.length(), 5_000_001);
        drop(verified);
        assert!(machine.files.read(Slot::B, image.len()).unwrap() == image, "sectors of {sector_size}");
        let behind = machine.files.read(Slot::B, 5 << 20).unwrap()[image.len()..].to_vec();
        assert!(behind.iter().all(|byte| *byte == 0xAA), "bytes behind the image changed");
        assert!(machine.files.read_all(Slot::A).unwrap() == booted);
    }
}

#[test]
fn a_slot_is_held_by_one_writer_at_a_time() {
    let Some(machine) = Machine::start("512") else { return };
    let slots = machine.slots();
    let first = slots.open_inactive(&machine.host()).unwrap();
    let second = slots.open_inactive(&machine.host()).unwrap_err();
    assert!(matches!(second, GuardError::InUse { slot: Slot::B, .. }), "{second}");
    drop(first);
    slots.open_inactive(&machine.host()).unwrap();
}

#[test]
fn a_mounted_slot_is_refused_with_its_mount_point() {
    let Some(machine) = Machine::start("512") else { return };
    let run = |program: &str, arguments: &[&Path]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("mke2fs", &[Path::new("-q"), &machine.slot_b.node]);
    let at = machine.dir.path().join("mounted here");
    std::fs::create_dir(&at).unwrap();
    run("mount", &[&machine.slot_b.node, &at]);
    let mounted = Mounted(at.clone());

    // With no table of mounts to look at, the kernel's own refusal is left.
    let refused = machine.slots().open_inactive(&machine.host()).unwrap_err();
    assert!(matches!(refused, GuardError::InUse { .. }), "{refused}");

    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts.lines().filter(|line| line.contains("mounted\\040here")).collect::<Vec<_>>().join("\n");
    std::fs::create_dir_all(machine.dir.path().join("host/proc/1")).unwrap();
    std::fs::write(machine.dir.path().join("host/proc/1/mountinfo"), ours).unwrap();
    let refused = machine.slots().open_inactive(&machine.host()).unwrap_err();
    let GuardError::Mounted { mount_point, .. } = &refused else { panic!("{refused}") };
    assert_eq!(Path::new(mount_point), at);
    drop(mounted);
}

#[test]
fn a_partition_without_a_device_says_how_to_get_one() {
    let Some(machine) = Machine::start("512") else { return };
    let slots = machine.slots();
    machine.files.boot(Slot::B).unwrap();
    // Slot A has no loop device of its own.
    let refused = machine.slots().open_inactive(&machine.host()).unwrap_err();
    assert!(matches!(refused, GuardError::NoDevice { slot: Slot::A, offset: 1_048_576, .. }), "{refused}");
    drop(slots);
}

#[test]
fn a_device_that_is_another_one_by_now_is_refused() {
    let Some(machine) = Machine::start("512") else { return };
    let slots = machine.slots();
    let Some(number) = slots.inactive().device.number() else { panic!("{slots:?}") };
    let other = DirectTarget::open_device(&machine.disk.node, Some(number)).unwrap_err();
    assert!(matches!(other, DiskError::WrongDevice { .. }), "{other}");
}

type Attempt = fn(&DirectTarget) -> Result<(), DiskError>;

/// A device that is open loses its size when it goes away. The kernel then answers as if it were
/// full, or at its end.
#[test]
fn a_device_that_goes_away_while_it_is_open_has_vanished() {
    let Some(machine) = Machine::start("512") else { return };
    let slot_b = &machine.slot_b.node;
    let held = std::fs::read(machine.files.disk()).unwrap();
    let resize = |length: u64| {
        let file = std::fs::OpenOptions::new().write(true).open(machine.files.disk()).unwrap();
        file.set_len(length).unwrap();
        let told = Command::new("losetup").arg("--set-capacity").arg(slot_b).status().unwrap();
        assert!(told.success());
    };
    let attempts: [(&str, Attempt); 5] = [
        ("write", |target| target.write_at(4096, &[1; 8192])),
        ("write of an odd length", |target| target.write_at(4097, &[1; 10])),
        ("zero", |target| target.zero(4096, 8192)),
        ("read", |target| target.read_at(4096, &mut [0; 8192])),
        ("read of an odd length", |target| target.read_at(4097, &mut [0; 10])),
    ];
    for (name, attempt) in attempts {
        let target = DirectTarget::open_device(slot_b, None).unwrap();
        attempt(&target).unwrap();
        resize(machine.files.offset(Slot::B));
        let error = attempt(&target).unwrap_err();
        assert!(matches!(error, DiskError::Vanished { .. }), "{name}: {error:?}");
        assert_eq!(error.reason(), FailureReason::DeviceVanished);
        assert!(error.to_string().contains("check the disk and its connection"), "{error}");
        resize(held.len() as u64);
        drop(target);
        let again = DirectTarget::open_device(slot_b, None).unwrap();
        assert_eq!(again.size(), SLOT_SIZE);
        attempt(&again).unwrap_or_else(|error| panic!("{name}, and the device is back: {error}"));
    }
}

/// A partition of a disk that goes away keeps its size, but its node leads nowhere any more.
#[test]
fn a_device_that_fails_and_cannot_be_opened_again_has_vanished() {
    let Some(machine) = Machine::start("512") else { return };
    let node = machine.dir.path().join("slot-b");
    for (is_there, reason) in [(true, None), (false, Some(FailureReason::DeviceVanished))] {
        let small = machine.dir.path().join("small");
        std::fs::create_dir_all(&small).unwrap();
        let arguments = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        assert!(Command::new("mount").args(arguments).arg(&small).status().unwrap().success());
        let mounted = Mounted(small.clone());
        std::fs::File::create(small.join("disk")).unwrap().set_len(4 << 20).unwrap();
        let device = Loop::attach(&[], &small.join("disk")).unwrap();
        symlink(&device.node, &node).unwrap();
        let target = DirectTarget::open_device(&node, None).unwrap();
        if !is_there {
            std::fs::remove_file(&node).unwrap();
        }
        // More than what is behind the device has room for.
        let error = target.write_at(0, &vec![1; 3 << 20]).unwrap_err();
        let vanished = Some(error.reason()).filter(|reason| *reason == FailureReason::DeviceVanished);
        assert_eq!(vanished, reason, "{error:?}");
        let _ = std::fs::remove_file(&node);
        drop((target, device, mounted));
    }
}
