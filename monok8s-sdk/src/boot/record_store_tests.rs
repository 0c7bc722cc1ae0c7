use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, TwoCopies) {
    let dir = tempfile::tempdir().unwrap();
    let copies = TwoCopies::new(dir.path(), "state");
    (dir, copies)
}

#[test]
fn a_fresh_directory_is_empty_and_a_missing_one_is_an_error() {
    let (dir, copies) = store();
    assert_eq!(copies.load().unwrap(), None);
    let unmounted = TwoCopies::new(dir.path().join("absent"), "state");
    assert!(matches!(unmounted.load(), Err(StoreError::NoDirectory { .. })));
    assert!(matches!(unmounted.save(b"x"), Err(StoreError::NoDirectory { .. })));
    assert!(!dir.path().join("absent").exists());
}

#[test]
fn the_newest_whole_copy_wins_wherever_the_other_one_was_cut() {
    for torn in [0_u8, 1] {
        let (_dir, copies) = store();
        copies.save(b"first").unwrap();
        copies.save(b"second").unwrap();
        let whole = fs::read(copies.path(&copies.copy(torn))).unwrap();
        let survivor: &[u8] = if torn == 0 { b"second" } else { b"first" };
        for cut in 0..whole.len() {
            fs::write(copies.path(&copies.copy(torn)), &whole[..cut]).unwrap();
            assert_eq!(copies.load().unwrap().as_deref(), Some(survivor), "copy {torn} cut at {cut}");
        }
        // The torn copy is the one that is replaced; the survivor stays until then.
        copies.save(b"third").unwrap();
        assert_eq!(copies.load().unwrap().as_deref(), Some(b"third".as_slice()));
        fs::write(copies.path(&copies.copy(torn)), b"").unwrap();
        assert_eq!(copies.load().unwrap().as_deref(), Some(survivor));
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let (_dir, copies) = store();
    copies.save(b"payload").unwrap();
    let whole = fs::read(copies.path(&copies.copy(0))).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(copies.path(&copies.copy(0)), &bytes).unwrap();
        assert!(matches!(copies.load(), Err(StoreError::Corrupt { .. })), "bit {bit}");
        assert!(matches!(copies.save(b"x"), Err(StoreError::Corrupt { .. })), "bit {bit}");
    }
}

#[test]
fn a_leftover_of_an_interrupted_save_changes_nothing() {
    let (dir, copies) = store();
    copies.save(b"first").unwrap();
    fs::write(dir.path().join("state.1.new"), b"half of it").unwrap();
    assert_eq!(copies.load().unwrap().as_deref(), Some(b"first".as_slice()));
    copies.save(b"second").unwrap();
    assert_eq!(copies.load().unwrap().as_deref(), Some(b"second".as_slice()));
    assert!(!dir.path().join("state.1.new").exists());
}

#[test]
fn a_payload_over_the_cap_is_refused_before_it_is_written() {
    let (_dir, copies) = store();
    copies.save(&vec![7; MAX_PAYLOAD]).unwrap();
    assert!(matches!(copies.save(&vec![7; MAX_PAYLOAD + 1]), Err(StoreError::TooLarge { .. })));
    assert_eq!(copies.load().unwrap().map(|bytes| bytes.len()), Some(MAX_PAYLOAD));
}

/// A tmpfs, unmounted on drop. `None` without the right to mount.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], dir.path()).then_some(Self(dir))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mount(args: &[&str], at: &Path) -> bool {
    std::process::Command::new("mount").args(args).arg(at).status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_or_read_only_file_system_is_a_clear_error_and_loses_nothing() {
    let Some(small) = SmallFileSystem::mount("size=64k") else {
        println!("SKIP: needs root to mount a small tmpfs");
        return;
    };
    let copies = TwoCopies::new(small.0.path(), "state");
    copies.save(b"kept").unwrap();
    let full = copies.save(&vec![1; 100 * 1024]).unwrap_err();
    assert!(full.to_string().contains("the file system is full"), "{full}");
    assert_eq!(full.reason(), FailureReason::RecordError);
    assert_eq!(copies.load().unwrap().as_deref(), Some(b"kept".as_slice()));
    copies.save(b"fits again").unwrap();

    assert!(mount(&["-o", "remount,ro"], small.0.path()));
    let read_only = copies.save(b"x").unwrap_err();
    assert!(read_only.to_string().contains("read-only"), "{read_only}");
    assert_eq!(copies.load().unwrap().as_deref(), Some(b"fits again".as_slice()));
}

#[test]
fn a_copy_that_is_a_directory_is_an_error() {
    let (_dir, copies) = store();
    fs::create_dir(copies.path(&copies.copy(0))).unwrap();
    assert!(matches!(copies.load(), Err(StoreError::Read { .. })));
}

#[test]
fn a_record_of_another_program_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    TwoCopies::new(dir.path(), "record").save(b"{\"format\":\"new\"}").unwrap();
    assert!(matches!(RecordStore::in_dir(dir.path()).load(), Err(StoreError::Malformed { .. })));
}

#[test]
fn a_record_comes_back_as_it_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let store = RecordStore::in_dir(dir.path());
    assert_eq!(store.load().unwrap(), Record::default());
    let mut record = Record::default();
    record.extra.insert("ofANewerRelease".to_owned(), serde_json::json!({ "a": [1, 2] }));
    store.save(&record).unwrap();
    assert_eq!(store.load().unwrap(), record);
}

proptest! {
    #[test]
    fn hostile_bytes_are_an_error_or_whole(first in proptest::collection::vec(any::<u8>(), 0..200), second in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let (_dir, copies) = store();
        let with_magic = |bytes: Vec<u8>| if magic { [MAGIC.to_vec(), bytes].concat() } else { bytes };
        fs::write(copies.path(&copies.copy(0)), with_magic(first)).unwrap();
        fs::write(copies.path(&copies.copy(1)), with_magic(second)).unwrap();
        let refused = matches!(copies.load(), Err(StoreError::Corrupt { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn what_is_encoded_is_decoded(revision: u64, payload in proptest::collection::vec(any::<u8>(), 0..500)) {
        let bytes = encode(revision, &payload);
        prop_assert_eq!(decode(&bytes), Some((revision, payload.as_slice())));
    }
}

#[test]
fn one_at_a_time_has_the_lock_and_says_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = RecordStore::in_dir(dir.path());
    let held = store.lock("the agent (process 7)").unwrap();
    let refused = store.lock("ctl flash").unwrap_err();
    assert!(matches!(&refused, StoreError::Held { holder, .. } if holder == "the agent (process 7)"));
    assert!(refused.to_string().contains("wait until its upgrade or flash has ended"), "{refused}");
    assert_eq!(store.load().unwrap(), Record::default(), "reading takes no lock");
    drop(held);

    // The same holder writes nothing, and needs to write nothing.
    let path = dir.path().join("record.lock");
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    drop(store.lock("the agent (process 7)").unwrap());
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    let _held = store.lock("ctl").unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "ctl");

    let absent = RecordStore::in_dir(dir.path().join("absent"));
    assert!(matches!(absent.lock("ctl"), Err(StoreError::NoDirectory { .. })));
}
