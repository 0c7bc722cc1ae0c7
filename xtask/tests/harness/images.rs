use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use monok8s_sdk::digest::Sha256Digest;
use xtask::host::DEBUGFS;
use xtask::rootfs::{Image, RootfsSpec};

const MIB: u64 = 1 << 20;

fn small(version: &str) -> RootfsSpec {
    RootfsSpec::of(version).sized(16 * MIB, 3 * MIB + 5)
}

/// A file of the image, or `None` if it has no such file.
fn read(image: &Image, path: &str) -> Option<String> {
    let file_system = ext4_view::Ext4::load(Box::new(fs::read(&image.path).unwrap())).unwrap();
    file_system.read_to_string(path).ok()
}

#[test]
fn an_image_says_its_version_and_carries_the_guard() {
    let directory = tempfile::tempdir().unwrap();
    let image = small("v1.35.4").build(&directory.path().join("rootfs.ext4")).unwrap();
    assert_eq!(image.bytes, 16 * MIB);
    assert_eq!(image.digest.hex(), sha256sum(&image.path));

    // Two readers: what a node uses, and the reference.
    let os_release = read(&image, "/etc/os-release").unwrap();
    assert!(os_release.contains("MONOK8S_VERSION=\"v1.35.4\""), "{os_release}");
    let output = Command::new(DEBUGFS.locate().unwrap())
        .args(["-R", "cat /etc/os-release"])
        .arg(&image.path)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), os_release);
    assert_eq!(read(&image, "/usr/bin/kubelet").unwrap(), "kubelet v1.35.4\n");
    assert!(read(&image, "/usr/bin/monok8s-agent").is_some());
    assert!(read(&image, "/etc/systemd/system/multi-user.target.wants/monok8s-guard.service").is_some());
}

#[test]
fn bad_images_are_bad_in_one_way_each() {
    let directory = tempfile::tempdir().unwrap();
    let build = |name: &str, spec: RootfsSpec| spec.build(&directory.path().join(name)).unwrap();
    let liar = build("liar", small("v1.35.4").claiming("v1.35.1"));
    assert!(read(&liar, "/etc/os-release").unwrap().contains("VERSION_ID=1.35.1"));
    assert!(read(&liar, "/usr/bin/monok8s-agent").is_some());
    let silent = build("silent", small("v1.35.4").claiming_nothing());
    assert!(!read(&silent, "/etc/os-release").unwrap().contains("VERSION"));
    let unguarded = build("unguarded", small("v1.35.4").without_guard());
    assert!(read(&unguarded, "/etc/os-release").unwrap().contains("v1.35.4"));
    assert_eq!(read(&unguarded, "/usr/bin/monok8s-agent"), None);

    let cramped = RootfsSpec::of("v1.35.4").sized(4 * MIB, 16 * MIB);
    let error = cramped.build(&directory.path().join("cramped")).unwrap_err().to_string();
    assert!(error.contains("mke2fs"), "{error}");
}

#[test]
fn artifacts_expand_to_the_image_in_one_frame_or_many() {
    let directory = tempfile::tempdir().unwrap();
    let image = small("v1.35.4").build(&directory.path().join("rootfs.ext4")).unwrap();
    let one = image.compress(&directory.path().join("one.zst")).unwrap();
    let many = image.compress_in_frames(&directory.path().join("many.zst"), 3 * MIB).unwrap();
    assert_eq!(one.digest.hex(), sha256sum(&one.path));
    for (artifact, frames) in [(&one, 1), (&many, 6)] {
        assert_eq!(artifact.bytes, fs::metadata(&artifact.path).unwrap().len());
        assert!(artifact.bytes < image.bytes / 4, "compresses: {}", artifact.bytes);
        let packed = fs::read(&artifact.path).unwrap();
        assert_eq!(Sha256Digest::of(&zstd::decode_all(packed.as_slice()).unwrap()), image.digest);
        assert_eq!(count_frames(&packed), frames);
    }
}

fn count_frames(packed: &[u8]) -> usize {
    let mut rest = packed;
    let mut frames = 0;
    while !rest.is_empty() {
        let mut decoder = zstd::Decoder::with_buffer(rest).unwrap().single_frame();
        decoder.read_to_end(&mut Vec::new()).unwrap();
        rest = decoder.finish();
        frames += 1;
    }
    frames
}

/// The digest by another program than ours.
fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

mod disks {
    use super::*;
    use monok8s_sdk::slot::Slot;
    use xtask::disk::{Disk, DiskSpec, LoopDisk, SectorSize, loop_obstacle};
    use xtask::host::SFDISK;

    fn spec(sector_size: SectorSize) -> DiskSpec {
        DiskSpec { identity: "node-1".to_owned(), slot_bytes: 16 * MIB, data_bytes: 8 * MIB, sector_size }
    }

    /// The partition table as `sfdisk --json` reads it back.
    fn table(path: &Path) -> serde_json::Value {
        let output = Command::new(SFDISK.locate().unwrap()).arg("--json").arg(path).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["partitiontable"].clone()
    }

    fn assert_table(table: &serde_json::Value, disk: &Disk, sector: u64) {
        assert_eq!(table["label"], "gpt");
        for (found, expected) in table["partitions"].as_array().unwrap().iter().zip(disk.partitions()) {
            assert_eq!(found["name"], expected.name);
            assert_eq!(found["uuid"].as_str().unwrap().to_lowercase(), expected.partuuid);
            assert_eq!(found["start"].as_u64().unwrap() * sector, expected.offset);
            assert_eq!(found["size"].as_u64().unwrap() * sector, expected.bytes);
        }
        assert_eq!(table["partitions"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_disk_has_the_partitions_it_says_and_holds_an_image() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::create(&directory.path().join("disk"), &spec(SectorSize::B512)).unwrap();
        assert_table(&table(&disk.path), &disk, 512);

        let image = small("v1.35.1").build(&directory.path().join("rootfs.ext4")).unwrap();
        disk.install(Slot::A, &image.path).unwrap();
        assert_eq!(disk.digest(Slot::A, image.bytes).unwrap(), image.digest);
        assert_ne!(disk.digest(Slot::B, image.bytes).unwrap(), image.digest);
        assert_table(&table(&disk.path), &disk, 512);

        let large = directory.path().join("large");
        File::create(&large).unwrap().set_len(17 * MIB).unwrap();
        let error = disk.install(Slot::B, &large).unwrap_err().to_string();
        assert!(error.contains("does not fit rootfs-b"), "{error}");
        assert!(Disk::create(&disk.path, &spec(SectorSize::B512)).is_err(), "never overwrites");
    }

    #[test]
    fn loop_devices_show_the_disk_and_go_away() {
        if let Some(reason) = loop_obstacle() {
            println!("SKIP: {reason}");
            return;
        }
        for (sector_size, sector) in [(SectorSize::B512, 512), (SectorSize::B4096, 4096)] {
            let directory = tempfile::tempdir().unwrap();
            let disk = Disk::create(&directory.path().join("disk"), &spec(sector_size)).unwrap();
            let loops = LoopDisk::attach(&disk).unwrap();
            assert_table(&table(loops.whole.path()), &disk, sector);

            let device = loops.slot(Slot::B).path();
            let mut slot = File::options().write(true).open(device).unwrap();
            slot.write_all(&vec![0xB5; 1 << 16]).unwrap();
            slot.sync_all().unwrap();
            drop(slot);
            assert_eq!(disk.digest(Slot::B, 1 << 16).unwrap(), Sha256Digest::of(&vec![0xB5; 1 << 16]));
            assert_eq!(disk.digest(Slot::A, 1 << 16).unwrap(), Sha256Digest::of(&vec![0; 1 << 16]));

            assert_eq!(attached(&disk.path), 4);
            drop(loops);
            assert_eq!(attached(&disk.path), 0);
        }
    }

    /// How many loop devices the kernel has on `file`.
    fn attached(file: &Path) -> usize {
        let file = file.to_str().unwrap();
        fs::read_dir("/sys/block")
            .unwrap()
            .flatten()
            .filter(|entry| {
                fs::read_to_string(entry.path().join("loop/backing_file"))
                    .is_ok_and(|found| found.trim() == file)
            })
            .count()
    }
}
