use crate::api::FailureReason;
use std::fs;

use proptest::prelude::*;

use super::*;

fn file_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn never_creates_extends_or_takes_the_wrong_kind() {
    let (dir, path) = file_of(&[1; 10_000]);
    assert!(matches!(DirectTarget::open_file(&dir.path().join("absent")), Err(DiskError::Open { .. })));
    assert!(!dir.path().join("absent").exists());
    assert!(matches!(DirectTarget::open_file(dir.path()), Err(DiskError::Open { .. })));
    assert!(matches!(DirectTarget::open_device(&path, None), Err(DiskError::NotABlockDevice { .. })));
    assert!(matches!(DirectTarget::open_file_window(&path, 9_999, 2), Err(DiskError::OutOfBounds { .. })));
    assert!(matches!(DirectTarget::open_file_window(&path, u64::MAX, 2), Err(DiskError::OutOfBounds { .. })));
    let target = DirectTarget::open_file(&path).unwrap();
    assert!(matches!(target.write_at(9_999, b"ab"), Err(DiskError::OutOfBounds { .. })));
    target.write_at(9_999, b"a").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
}

#[test]
fn a_full_file_system_poisons_the_writer() {
    let Some(full) = FullFileSystem::mount() else {
        println!("SKIP: needs root to mount a small tmpfs");
        return;
    };
    let path = full.dir.path().join("disk.img");
    let sparse = File::create(&path).unwrap();
    sparse.set_len(8 << 20).unwrap();
    let target = DirectTarget::open_file(&path).unwrap();
    let failed = (0..8).find_map(|mib| target.write_at(mib << 20, &vec![1; 1 << 20]).err()).unwrap();
    assert_eq!(failed.reason(), FailureReason::NoSpaceLeft);
    assert!(matches!(target.write_at(0, b"x"), Err(DiskError::Poisoned { action: Action::Write, .. })));
    assert!(matches!(target.read_at(0, &mut [0]), Err(DiskError::Poisoned { .. })));
    assert!(matches!(target.flush(), Err(DiskError::Poisoned { .. })));
}

#[test]
fn a_file_that_was_cut_short_has_vanished() {
    let (_dir, path) = file_of(&[1; 12 * 1024]);
    let target = DirectTarget::open_file(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    target.read_at(0, &mut [0; 4096]).unwrap();
    let error = target.read_at(8192, &mut [0; 4096]).unwrap_err();
    assert_eq!(error.reason(), FailureReason::DeviceVanished, "{error:?}");
}

struct FullFileSystem {
    dir: tempfile::TempDir,
}

impl FullFileSystem {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir })
    }
}

impl Drop for FullFileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Vec<u8>),
    Zero(usize, usize),
}

fn ops(size: usize) -> impl Strategy<Value = Vec<Op>> {
    let write =
        (0..size, proptest::collection::vec(any::<u8>(), 0..9000)).prop_map(move |(at, mut bytes)| {
            bytes.truncate(size - at);
            Op::Write(at, bytes)
        });
    let zero = (0..size, 0..size).prop_map(move |(at, len)| Op::Zero(at, len.min(size - at)));
    proptest::collection::vec(prop_oneof![write, zero], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any alignment, in a window of any alignment: what is read back is what a byte array would
    /// hold, and nothing outside of the window changes.
    #[test]
    fn behaves_like_a_byte_array(base in 0_usize..9000, direct in any::<bool>(), ops in ops(40_000)) {
        let size = 40_000;
        let mut expected = vec![0xAA; base + size + 5000];
        let (_dir, path) = file_of(&expected);
        let mut target = DirectTarget::open_file_window(&path, base as u64, size as u64).unwrap();
        if !direct {
            // What is left on a file system that refuses direct I/O.
            target.file = target.edges.as_ref().unwrap().try_clone().unwrap();
            target.bypass = CacheBypass::DroppedPages;
        }
        for op in &ops {
            match op {
                Op::Write(at, bytes) => {
                    target.write_at(*at as u64, bytes).unwrap();
                    expected[base + at..base + at + bytes.len()].copy_from_slice(bytes);
                }
                Op::Zero(at, len) => {
                    target.zero(*at as u64, *len as u64).unwrap();
                    expected[base + at..base + at + len].fill(0);
                }
            }
        }
        target.flush().unwrap();
        let mut read = vec![0; size];
        target.read_at(0, &mut read).unwrap();
        prop_assert!(read == expected[base..base + size]);
        prop_assert!(fs::read(&path).unwrap() == expected);
    }
}
