//! Good input for every target, made by our own builders: `fuzz/corpus/`.

mod gpt_edit;
mod uboot;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::boot::grub::env_block::EnvBlock;
use monok8s_sdk::disk::fixture::{TestPartition, write_gpt};
use monok8s_sdk::image::{BuildOptions, build};

use crate::grub::GRUB_EDITENV;
use crate::host::{MKE2FS, workspace_root};

/// Writes all seeds anew. Seeds that were added by hand stay.
pub fn write(corpus: &Path) -> Result<()> {
    let put = |target: &str, name: &str, bytes: &[u8]| -> Result<()> {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), bytes).with_context(|| format!("cannot write the seed {target}/{name}"))
    };
    documents(&put)?;
    artifacts(&put)?;
    partition_tables(&put)?;
    gpt_edit::tables(&put)?;
    uboot::environments(&put)?;
    file_systems(&put)?;
    environments(&put)?;
    boot_entries(&put)?;
    answers(&put)
}

type Put<'a> = &'a dyn Fn(&str, &str, &[u8]) -> Result<()>;

fn documents(put: Put<'_>) -> Result<()> {
    let testdata = |path: &str| {
        fs::read(workspace_root().join("testdata").join(path)).with_context(|| format!("no testdata/{path}"))
    };
    for name in ["full", "mistakes", "seed"] {
        put("catalog", name, &testdata(&format!("catalogs/{name}.yaml"))?)?;
    }
    for name in ["empty", "from-newer-release", "rolled-back", "staged"] {
        let payload = testdata(&format!("records/format-1-{name}.json"))?;
        let length = u16::try_from(payload.len())?.to_le_bytes();
        let head = [0b111, 7, 8, length[0], length[1]];
        put("record", name, &[&head, payload.as_slice(), &payload].concat())?;
    }
    for name in [
        "osnode",
        "osupgrade-full",
        "osupgrade-minimal",
        "osupgradeprogress-by-hand",
        "osupgradeprogress-newer-words",
        "osupgradeprogress-ordered",
    ] {
        let object: serde_json::Value =
            serde_yaml::from_slice(&testdata(&format!("compat/v0.1.0/{name}.yaml"))?)?;
        put("objects", name, &serde_json::to_vec(&object)?)?;
    }
    let expressions = r#"{"matchLabels":{"disktype":"ssd"},"matchExpressions":[{"key":"zone","operator":"NotIn","values":["a"]}]}"#;
    put("objects", "selector", expressions.as_bytes())?;
    let quoted = "# all forms\nID=monok8s\nNAME='Mono \"K8s\"'\nMONOK8S_VERSION=\"v1.35.3+r2\"\nVERSION_ID=\"a\\\"\\$b\"\nX=a\\ b c\n";
    put("os_release", "quoted", quoted.as_bytes())?;
    put("os_release", "plain", b"ID=monok8s\nVERSION_ID=v1.35.4\n")
}

/// An image of `length` bytes with repetition, noise and zeroes in it.
fn image(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let noise = std::iter::repeat_with(|| {
        // xorshift64; Marsaglia, "Xorshift RNGs", 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    let kind = |at: usize| at / 4096 % 8;
    noise
        .take(length)
        .enumerate()
        .map(|(at, noise)| match kind(at) {
            0 => noise,
            1..5 => u8::try_from(at % 7).unwrap_or(0),
            _ => 0,
        })
        .collect()
}

fn artifacts(put: Put<'_>) -> Result<()> {
    for (name, length) in [("one-block", 4096), ("short", 70_001), ("frames", 180_000)] {
        let mut artifact = Vec::new();
        let options = BuildOptions { level: 3, frame_log: 16 };
        let index = build(&mut image(length).as_slice(), &mut artifact, options)?;
        put("write", name, &artifact)?;
        put("index", name, index.as_bytes())?;
        put("seek_table", name, artifact.get(artifact.len().saturating_sub(100)..).unwrap_or(&artifact))?;
    }
    let zeroes = build(&mut vec![0; 1 << 20].as_slice(), &mut Vec::new(), BuildOptions::default())?;
    put("index", "zeroes", zeroes.as_bytes())?;
    // One frame that does not say how much it holds, with a checksum.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
    encoder.include_contentsize(false)?;
    encoder.include_checksum(true)?;
    std::io::Write::write_all(&mut encoder, &image(90_000))?;
    put("write", "stream", &encoder.finish()?)?;
    let mut frames = zstd::encode_all(&b"after a frame that is skipped"[..], 3)?;
    frames.splice(0..0, [0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    put("write", "skippable", &frames)?;
    put("write", "too-long", &zstd::encode_all(vec![0; 1 << 20].as_slice(), 1)?)
}

fn partition_tables(put: Put<'_>) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    file.set_len(80 * 512)?;
    let partition =
        |label, seed, sector: u64| TestPartition { label, seed, offset: sector * 512, length: 2048 };
    write_gpt(&file, &[partition("rootfs-a", 0xA0, 36), partition("rootfs-b", 0xB0, 42)])?;
    let mut disk = Vec::new();
    std::io::Seek::rewind(&mut file)?;
    std::io::Read::read_to_end(&mut file, &mut disk)?;
    put("gpt", "as-found", &[&[0], disk.as_slice()].concat())?;
    // Four entries, and only the primary copy.
    disk.truncate(16 * 512);
    let mut set = |at: usize, bytes: &[u8]| -> Result<()> {
        disk.get_mut(at..at + bytes.len()).context("the disk is too short")?.copy_from_slice(bytes);
        Ok(())
    };
    set(512 + 40, &4_u64.to_le_bytes())?;
    set(512 + 48, &15_u64.to_le_bytes())?;
    set(512 + 80, &4_u32.to_le_bytes())?;
    for (entry, first) in [(0, 4_u64), (1, 10)] {
        set(1024 + entry * 128 + 32, &[first.to_le_bytes(), (first + 5).to_le_bytes()].concat())?;
    }
    put("gpt", "sealed", &[&[1], disk.as_slice()].concat())
}

/// The smallest root file systems that mke2fs makes.
fn file_systems(put: Put<'_>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let tree = scratch.path().join("tree");
    for directory in ["etc", "usr/lib", "usr/bin"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::write(tree.join("usr/lib/os-release"), "ID=monok8s\nMONOK8S_VERSION=v1.35.4\n")?;
    std::os::unix::fs::symlink("../usr/lib/os-release", tree.join("etc/os-release"))?;
    let guard = tree.join("usr/bin/monok8s-agent");
    fs::write(&guard, "#!/bin/sh\n")?;
    fs::set_permissions(&guard, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    for (name, features) in [
        ("extents", "^has_journal,^resize_inode,^metadata_csum,^64bit"),
        ("block-maps", "^has_journal,^resize_inode,^metadata_csum,^64bit,^extent"),
        ("checksums", "^has_journal,^resize_inode,metadata_csum,64bit"),
    ] {
        let image = scratch.path().join(name);
        // Otherwise mke2fs leaves out what is empty at the end.
        fs::File::create(&image)?.set_len(64 << 10)?;
        let made = Command::new(MKE2FS.locate()?)
            .args(["-q", "-t", "ext4", "-b", "1024", "-I", "256", "-N", "32", "-m", "0", "-O", features])
            .arg("-d")
            .args([&tree, &image])
            .arg("64k")
            .output()?;
        ensure!(made.status.success(), "mke2fs: {}", String::from_utf8_lossy(&made.stderr));
        put("inspect", name, &fs::read(&image)?)?;
    }
    Ok(())
}

/// GRUB's environment: as its own tool writes it, and as we do.
fn environments(put: Put<'_>) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let editenv = |arguments: &[&str]| -> Result<Vec<u8>> {
        let ran = Command::new(GRUB_EDITENV.locate()?).arg(file.path()).args(arguments).output()?;
        ensure!(ran.status.success(), "grub-editenv: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(fs::read(file.path())?)
    };
    put("grub_env", "empty", &editenv(&["create"])?)?;
    let slots = ["set", "ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=1", "B_TRY=1", "odd=a\\b=#"];
    put("grub_env", "by-its-tool", &editenv(&slots)?)?;
    let counted = ["set", "MONOK8S_TRIES=3", "MONOK8S_REV=7", "MONOK8S_TRIAL=B:7:1:none", "MONOK8S_COUNTS=1"];
    let block = EnvBlock::parse(&editenv(&counted)?)?;
    put("grub_env", "ours", &block.encode()?)
}

/// A directory of boot entries in each state of an upgrade.
fn boot_entries(put: Put<'_>) -> Result<()> {
    let entry = |slot: char, key: u32, trial: &str| {
        format!(
            "title {slot}\nlinux /monok8s/{slot}/vmlinuz\noptions root=x ro\nsort-key monok8s-{key:09}\n{trial}"
        )
    };
    let trial = "# monok8s-trial 7 1\n";
    let (a, b) = (entry('a', 500_000_000, ""), entry('b', 499_999_999, trial));
    for (name, files) in [
        ("installed", vec![("monok8s-a+3.conf", &a)]),
        ("armed", vec![("monok8s-a.conf", &a), ("monok8s-b+1.conf", &b), ("monok8s-counts", &String::new())]),
        ("tried", vec![("monok8s-a+2-1.conf", &a), ("monok8s-b+0-1.conf", &b)]),
        ("ended", vec![("monok8s-a.conf", &a), ("monok8s-b.ended-fell-back", &b)]),
        ("confirmed", vec![("monok8s-a.conf", &a), ("monok8s-b.conf", &b)]),
    ] {
        let mut bytes = Vec::new();
        for (name, content) in files {
            bytes.extend([u8::try_from(name.len())?, u8::try_from(content.len())?]);
            bytes.extend(name.bytes().chain(content.bytes()));
        }
        put("bls", name, &bytes)?;
    }
    Ok(())
}

fn answers(put: Put<'_>) -> Result<()> {
    let answer = |numbers: [u64; 3], status: u16, length: u64, lines: &str| {
        let numbers = numbers.map(u64::to_le_bytes).concat();
        [numbers.as_slice(), &status.to_le_bytes(), &length.to_le_bytes(), lines.as_bytes()].concat()
    };
    let part = "bytes 50-99/100\n\"one\"\nMon\nidentity\n\"one\"\nMon\n";
    put("answer", "part", &answer([50, 0, 100], 206, 50, part))?;
    put("answer", "first-part", &answer([0, 50, 0], 206, 50, "bytes 0-49/*\n"))?;
    put("answer", "whole", &answer([50, 0, 100], 200, 100, "\n\"one\"\n\n\n\"two\"\n"))?;
    put("answer", "beyond", &answer([50, 0, 0], 416, 0, "\n\n\ngzip\nW/\"x\"\n"))
}
