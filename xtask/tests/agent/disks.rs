//! Disks that give out under a real write.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use monok8s_sdk::api::{OSUpgradeProgressStatus, ProgressPhase};
use monok8s_sdk::slot::Slot;
use xtask::disk::loop_obstacle;
use xtask::http::{Fault, Times};
use xtask::machine::{MachineSpec, Medium};

use crate::bench::{Bench, MIB, NEW, booted};

/// A file system in memory of a size in MiB. Dropping it unmounts it.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf, mebibytes: u64) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let size = format!("size={mebibytes}m");
        mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], &path);
        Self(path)
    }

    fn grow(&self, mebibytes: u64) {
        mount(&["-o", &format!("remount,size={mebibytes}m")], &self.0);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the kernel may still be taking the loop devices on it apart.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let status = Command::new("mount").args(arguments).arg(path).status().unwrap();
    assert!(status.success(), "mount {arguments:?} failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_the_attempt_and_room_mends_it() {
    if let Some(obstacle) = loop_obstacle() {
        println!("SKIP: {obstacle}");
        return;
    }
    let bench = Bench::start().await;
    let old = bench.artifact("old").image.clone();
    // Room for what slot A holds, and for some of slot B.
    let small = Tmpfs::mount(bench.path("small"), 19);
    let directory = small.0.clone();
    let on_it = |spec| MachineSpec { disk_directory: Some(directory), ..spec };
    let machine = bench.machine_with("node-1", &[], on_it).await;
    bench.upgrade("up", NEW, &[bench.entry("new", NEW)]).await;
    bench.hand_made("by-hand", "up", "node-1").await;
    let status = bench.wait_for_phase(&machine, "by-hand", ProgressPhase::Failed).await;
    println!("{:?}: {:?}", status.failure_reason, status.message);
    let reason = status.failure_reason.unwrap();
    assert!(["NoSpaceLeft", "DiskWriteFailed"].contains(&reason.as_str()), "{reason}: {:?}", status.message);
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest);
    assert_eq!(booted(&machine), [Slot::A]);

    small.grow(64);
    bench.retry("by-hand", "retry-1").await;
    bench.wait_for_phase(&machine, "by-hand", ProgressPhase::Completed).await;
    let new = &bench.artifact("new").image;
    assert_eq!(machine.slot_digest(Slot::B, new.bytes).unwrap(), new.digest);
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest);
    drop(machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_vanishes_under_a_write_fails_the_attempt_and_serves_again_when_it_is_back() {
    if let Some(obstacle) = loop_obstacle() {
        println!("SKIP: {obstacle}");
        return;
    }
    let bench = Bench::start().await;
    let old = bench.artifact("old").image.clone();
    let machine = bench.machine("node-1", &[]).await;
    // Slow enough to be in the middle of the write, which goes on as the bytes come.
    bench.files.inject("/new", Fault::Throttle { bytes_per_second: MIB }, Times::Always);
    bench.upgrade("up", NEW, &[bench.entry("new", NEW)]).await;
    bench.hand_made("by-hand", "up", "node-1").await;
    while bench.files.bytes_served("/new") < MIB {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost = machine.lose(Slot::B).unwrap();
    let status = bench.wait_for_phase(&machine, "by-hand", ProgressPhase::Failed).await;
    println!("{:?}: {:?}", status.failure_reason, status.message);
    assert_eq!(status.failure_reason.as_deref(), Some("DeviceVanished"), "{:?}", status.message);
    let message = status.message.unwrap();
    assert!(message.contains("an attempt to write it at byte"), "{message}");
    assert!(message.contains("check the disk and its connection"), "{message}");
    assert!(!message.contains("free space"), "{message}");
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest);
    assert_eq!(booted(&machine), [Slot::A]);

    lost.give_back().unwrap();
    bench.files.heal("/new");
    bench.retry("by-hand", "retry-1").await;
    bench.wait_for_phase(&machine, "by-hand", ProgressPhase::Completed).await;
    let new = &bench.artifact("new").image;
    assert_eq!(machine.slot_digest(Slot::B, new.bytes).unwrap(), new.digest);
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest);
    assert_eq!(booted(&machine), [Slot::A, Slot::B]);
}

/// Nothing that could not be remembered is begun: the record is saved before a byte is fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_partition_that_takes_no_writes_is_told_before_a_byte_is_fetched() {
    if let Some(obstacle) = loop_obstacle() {
        println!("SKIP: {obstacle}");
        return;
    }
    let bench = Bench::start().await;
    let troubles = [
        ("node-1", "the file system is read-only, look at the kernel log and remount it"),
        ("node-2", "the file system is full, free some space"),
    ];
    bench.upgrade("up", NEW, &[bench.entry("new", NEW)]).await;
    for (node, words) in troubles {
        let before = bench.files.bytes_served("/new");
        let data = Tmpfs::mount(bench.path(node).join("data"), 1);
        let machine = bench.machine(node, &[]).await;
        let filler = data.0.join("filler");
        if node == "node-1" {
            mount(&["-o", "remount,ro"], &data.0);
        } else {
            let full = std::fs::write(&filler, vec![1; 2 << 20]).unwrap_err();
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        }
        bench.hand_made(node, "up", node).await;
        let tells = |status: &OSUpgradeProgressStatus| {
            status.message.as_ref().is_some_and(|message| message.contains(words))
        };
        let status = bench.wait(&machine, node, tells).await;
        println!("{node}: {:?}: {:?}", status.phase, status.message);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(bench.files.bytes_served("/new"), before, "{node} has fetched");
        assert_eq!(booted(&machine), [Slot::A]);

        // Nobody has to ask again.
        if node == "node-1" {
            mount(&["-o", "remount,rw"], &data.0);
        } else {
            std::fs::remove_file(&filler).unwrap();
        }
        bench.wait_for_phase(&machine, node, ProgressPhase::Completed).await;
        assert_eq!(booted(&machine), [Slot::A, Slot::B]);
        drop(machine);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_file_serves_where_nobody_is_root() {
    let bench = Bench::start().await;
    let in_a_file = |spec| MachineSpec { medium: Medium::File, ..spec };
    let machine = bench.machine_with("node-1", &[], in_a_file).await;
    bench.upgrade("up", NEW, &[bench.entry("new", NEW)]).await;
    bench.hand_made("by-hand", "up", "node-1").await;
    bench.wait_for_phase(&machine, "by-hand", ProgressPhase::Completed).await;
    let (old, new) = (&bench.artifact("old").image, &bench.artifact("new").image);
    assert_eq!(machine.slot_digest(Slot::B, new.bytes).unwrap(), new.digest);
    assert_eq!(machine.slot_digest(Slot::A, old.bytes).unwrap(), old.digest);
    assert_eq!(booted(&machine), [Slot::A, Slot::B]);
}
