//! A slot's kernel beside the entries: whole and read back, or not there.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use super::kernel::{BootFiles, INITRD, KERNEL, Source, StageError};
use super::tests::ENTRY_A;
use super::*;
use crate::boot::AttemptId;
use crate::causes::chain;
use crate::digest::Sha256Digest;
use crate::disk::fault::{Crashes, FaultDirectory, FaultDisk, Files, Medium, Power};
use crate::disk::{InactiveSlot, VerifiedSlot};

const ROOT: &str = "PARTUUID=bb";
const OPTIONS: &str = "root=PARTUUID=bb ro panic=5";

/// Slot B, with this in it.
fn verified(byte: u8) -> VerifiedSlot {
    let disk = FaultDisk::new(&Power::new(), "/dev/b", Medium::filled(4096, byte));
    let slot = InactiveSlot::on_test_storage(Slot::B, Arc::new(disk));
    slot.verify(Sha256Digest::of(&[byte; 4096]), 4096).unwrap()
}

/// A kernel or initrd of a length that ends in the middle of a sector.
fn content(byte: u8) -> Vec<u8> {
    vec![byte; 700]
}

fn source(bytes: &mut Cursor<Vec<u8>>) -> Source<'_> {
    Source { length: bytes.get_ref().len() as u64, bytes }
}

fn stage(loader: &BlsEntries, version: &str, byte: u8) -> Result<(), StageError> {
    let (mut kernel, mut initrd) = (Cursor::new(content(byte)), Cursor::new(content(byte + 1)));
    let version = version.parse().unwrap();
    let files = BootFiles {
        kernel: source(&mut kernel),
        initrd: Some(source(&mut initrd)),
        version: Some(&version),
        root: ROOT,
    };
    loader.stage(&verified(byte), files)
}

struct Esp {
    power: Power,
    entries: Arc<FaultDirectory>,
    kernels: Arc<FaultDirectory>,
}

impl Esp {
    fn holding(kernels: &Files) -> Self {
        let power = Power::new();
        let entry = [("monok8s-a+3.conf".to_owned(), Arc::from(ENTRY_A.as_bytes()))];
        let entries = FaultDirectory::new(&power, "/entries", &Files(BTreeMap::from(entry)));
        let kernels = FaultDirectory::new(&power, "/kernels", kernels);
        Self { power, entries: Arc::new(entries), kernels: Arc::new(kernels) }
    }

    fn loader_with(&self, kernels: Arc<dyn Directory>) -> BlsEntries {
        let none = Arc::new(FaultDirectory::new(&self.power, "/none", &Files::default()));
        BlsEntries::in_directories(Arc::clone(&self.entries) as Arc<dyn Directory>, [none, kernels])
    }

    fn loader(&self) -> BlsEntries {
        self.loader_with(Arc::clone(&self.kernels) as Arc<dyn Directory>)
    }

    fn arm(&self) -> Result<(), BootError> {
        self.loader().arm_trial(verified(0).into(), AttemptId(1), Tries(1))
    }
}

/// The version that a slot may be armed with, if it may: its files are all there then.
fn armable(loader: &BlsEntries, files: &Files) -> Option<String> {
    let staged = loader.staged(Slot::B)?;
    let version = staged.get("version").unwrap().to_owned();
    let byte = if version == "v1.35.3" { 3 } else { 4 };
    assert_eq!(files.0[KERNEL].as_ref(), content(byte), "the kernel of {version}");
    assert_eq!(files.0[INITRD].as_ref(), content(byte + 1), "the initrd of {version}");
    assert_eq!(staged.get("options"), Some(OPTIONS));
    Some(version)
}

#[test]
fn a_power_failure_leaves_a_kernel_that_is_whole_or_cannot_be_armed() {
    let esp = Esp::holding(&Files::default());
    stage(&esp.loader(), "v1.35.3", 3).unwrap();
    esp.power.settle();
    stage(&esp.loader(), "v1.35.4", 4).unwrap();
    let (mut old, mut none, mut new) = (0, 0, 0);
    for crash in esp.power.crash_states(&Crashes::default()) {
        let files = crash.directory(&esp.kernels);
        let after = Esp::holding(&files);
        match armable(&after.loader(), &files).as_deref() {
            Some("v1.35.3") => old += 1,
            Some(_) => new += 1,
            None => {
                none += 1;
                assert!(after.arm().is_err(), "{crash:?}");
            }
        }
        // It can be done again from there.
        stage(&after.loader(), "v1.35.4", 4).unwrap();
        assert_eq!(armable(&after.loader(), &after.kernels.files()).as_deref(), Some("v1.35.4"));
    }
    println!("{old} old, {none} none, {new} new");
    assert!(old > 0 && none > 10 && new > 0, "{old} {none} {new}");
}

/// A directory on a medium that does not hold what was written.
#[derive(Debug)]
struct Lossy(Arc<FaultDirectory>, &'static str);

impl Directory for Lossy {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn is_present(&self) -> bool {
        true
    }
    fn create(&self) -> io::Result<()> {
        Ok(())
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
        self.0.fill(name, bytes)?;
        let mut written = self.0.read(name, u64::MAX)?.unwrap_or_default();
        if let Some(last) = written.last_mut().filter(|_| name == self.1) {
            *last ^= 1;
        }
        self.0.write(name, &written)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }
    fn lock(&self) -> io::Result<RegionLock> {
        self.0.lock()
    }
}

#[test]
fn what_does_not_read_back_is_not_armed() {
    for name in [KERNEL, INITRD] {
        let esp = Esp::holding(&Files::default());
        let lossy = esp.loader_with(Arc::new(Lossy(Arc::clone(&esp.kernels), name)));
        let error = stage(&lossy, "v1.35.4", 4).unwrap_err();
        assert!(matches!(&error, StageError::ReadBack { path } if path.ends_with(name)), "{error:?}");
        assert!(esp.arm().is_err());
    }
}

/// A reader that fails after what it has.
struct Failing(Cursor<Vec<u8>>);

impl Read for Failing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::Error::other("the disk is gone")),
            read => Ok(read),
        }
    }
}

#[test]
fn a_kernel_that_is_not_as_long_as_it_says_is_refused() {
    let refused = |length: u64, bytes: &mut dyn Read| {
        let esp = Esp::holding(&Files::default());
        stage(&esp.loader(), "v1.35.3", 3).unwrap();
        let kernel = Source { length, bytes };
        let files = BootFiles { kernel, initrd: None, version: None, root: ROOT };
        let error = esp.loader().stage(&verified(4), files).unwrap_err();
        (chain(&error), esp)
    };
    let (shorter, esp) = refused(701, &mut Cursor::new(content(4)));
    assert!(shorter.contains("has 700 bytes, and should have 701"), "{shorter}");
    // What was there before is gone with it: nothing stale can be armed.
    assert!(esp.arm().is_err());
    let (longer, _) = refused(699, &mut Cursor::new(content(4)));
    assert!(longer.contains("has 700 bytes, and should have 699"), "{longer}");
    let (unreadable, esp) = refused(900, &mut Failing(Cursor::new(content(4))));
    assert_eq!(unreadable, "cannot read the vmlinuz of slot B: the disk is gone");
    assert!(esp.arm().is_err());
    let (empty, _) = refused(0, &mut Cursor::new(Vec::new()));
    assert!(empty.contains("has 0 bytes"), "{empty}");
}

#[test]
fn a_slot_that_boots_keeps_its_kernel() {
    let esp = Esp::holding(&Files::default());
    stage(&esp.loader(), "v1.35.3", 3).unwrap();
    esp.arm().unwrap();
    let before = esp.kernels.files();
    let error = stage(&esp.loader(), "v1.35.4", 4).unwrap_err();
    assert!(matches!(error, StageError::StillBoots { slot: Slot::B }), "{error:?}");
    assert_eq!(esp.kernels.files(), before);
}
