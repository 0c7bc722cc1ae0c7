//! A slot's kernel and initrd, copied to where the loader can read them.
//!
//! `monok8s/a/` and `monok8s/b/` on the EFI system partition hold `vmlinuz`, `initrd.img`, and
//! `entry`, the lines that the slot's boot entry will have. The last is written last, after the
//! others were read back, and removed first: a slot without it cannot be armed.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use super::entry::EntryText;
use super::{BlsEntries, BlsError, KERNELS, STAGED, place};
use crate::digest::Sha256Digest;
use crate::disk::VerifiedSlot;
use crate::slot::Slot;
use crate::version::OsVersion;

/// The largest kernel or initrd in bytes.
pub const MAX_FILE_LEN: u64 = 512 << 20;
/// What is left free for the entries and the loader's own files, in bytes.
const RESERVE: u64 = 1 << 20;
const STEP: usize = 256 << 10;
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";

/// A slot's directory, from the root of the partition.
#[must_use]
pub fn directory(slot: Slot) -> String {
    match slot {
        Slot::A => format!("{KERNELS}/a"),
        Slot::B => format!("{KERNELS}/b"),
    }
}

/// A file in the slot's image.
pub struct Source<'a> {
    /// Its length in bytes.
    pub length: u64,
    /// Its bytes.
    pub bytes: &'a mut dyn Read,
}

/// What a slot boots.
pub struct BootFiles<'a> {
    /// The kernel, with its EFI stub.
    pub kernel: Source<'a>,
    /// The initrd, if it needs one.
    pub initrd: Option<Source<'a>>,
    /// The version, for people at the loader's menu.
    pub version: Option<&'a OsVersion>,
    /// The slot's partition as the kernel is told: `PARTUUID=...`. The rest of the command line is
    /// that of the other slot's entry.
    pub root: &'a str,
}

/// Why a slot's kernel is not where the loader can read it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The entries cannot be read.
    #[error("cannot read the boot entries")]
    Entries(#[from] BlsError),
    /// The slot may boot: its kernel is in use.
    #[error("slot {slot} still has a boot entry: it is invalidated before its kernel is replaced")]
    StillBoots {
        /// The slot.
        slot: Slot,
    },
    /// There is no command line to go by.
    #[error("the boot entry of slot {} has no line \"options\" with a root=: add one, it is the model for slot {slot}", slot.other())]
    NoOptions {
        /// The slot.
        slot: Slot,
    },
    /// Too large, or longer or shorter than its length.
    #[error(
        "the {name} of slot {slot} has {found} bytes, and should have {expected}, and {MAX_FILE_LEN} at most"
    )]
    Length {
        /// The slot.
        slot: Slot,
        /// The file.
        name: &'static str,
        /// How many bytes came; one more than expected stands for any number.
        found: u64,
        /// How many should have come.
        expected: u64,
    },
    /// The slot cannot be read.
    #[error("cannot read the {name} of slot {slot}")]
    Source {
        /// The slot.
        slot: Slot,
        /// The file.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The partition is full.
    #[error("the kernel of slot {slot} takes {needed} bytes, and {} has {free} free: enlarge it, or remove what is not needed", path.display())]
    NoSpace {
        /// The slot.
        slot: Slot,
        /// Where.
        path: PathBuf,
        /// How much is needed, in bytes.
        needed: u64,
        /// How much there is, in bytes.
        free: u64,
    },
    /// A file cannot be written or read again.
    #[error("cannot write {} and read it back", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What was written is not what is read.
    #[error("{} reads back differently from what was written: the medium fails", path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
    },
}

impl BlsEntries {
    /// Puts the kernel and the initrd of a slot on the partition, in place of those that it had, and
    /// reads them back. The slot must have been invalidated; afterwards it can be armed. Blocks on
    /// the disk.
    pub fn stage(&self, verified: &VerifiedSlot, mut files: BootFiles<'_>) -> Result<(), StageError> {
        let slot = verified.slot();
        let entries = self.load()?;
        if entries.has(slot) {
            return Err(StageError::StillBoots { slot });
        }
        let model = entries.text(slot.other()).and_then(|entry| entry.get("options"));
        let options =
            model.and_then(|options| with_root(options, files.root)).ok_or(StageError::NoOptions { slot })?;
        let dir = self.kernels(slot).path();
        self.clear(slot).map_err(|source| StageError::Write { path: dir.to_owned(), source })?;
        let length =
            files.kernel.length.saturating_add(files.initrd.as_ref().map_or(0, |initrd| initrd.length));
        require_space(slot, dir, length)?;

        let has_initrd = files.initrd.is_some();
        copy(slot, dir, KERNEL, &mut files.kernel)?;
        if let Some(initrd) = &mut files.initrd {
            copy(slot, dir, INITRD, initrd)?;
        }
        let text = EntryText::of(lines(slot, files.version, has_initrd, &options)).to_string();
        let written = place(self.kernels(slot), STAGED, text.as_bytes());
        written
            .and_then(|()| self.kernels(slot).sync())
            .map_err(|source| StageError::Write { path: dir.join(STAGED), source })?;
        if self.staged(slot).map(|staged| staged.to_string()) == Some(text) {
            Ok(())
        } else {
            Err(StageError::ReadBack { path: dir.join(STAGED) })
        }
    }

    /// Removes what the slot had: first what says that it is whole.
    fn clear(&self, slot: Slot) -> io::Result<()> {
        let directory = self.kernels(slot);
        fs::create_dir_all(directory.path())?;
        for name in [STAGED, KERNEL, INITRD] {
            match directory.remove(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => {
                    removed?;
                    directory.sync()?;
                }
            }
        }
        Ok(())
    }
}

fn lines(slot: Slot, version: Option<&OsVersion>, has_initrd: bool, options: &str) -> Vec<String> {
    let path = |name: &str| format!("/{}/{name}", directory(slot));
    let mut lines = vec!["# Written when the slot was.".to_owned()];
    match version {
        Some(version) => {
            lines.push(format!("title MonoK8s {version} (slot {slot})"));
            lines.push(format!("version {version}"));
        }
        None => lines.push(format!("title MonoK8s (slot {slot})")),
    }
    lines.push(format!("linux {}", path(KERNEL)));
    if has_initrd {
        lines.push(format!("initrd {}", path(INITRD)));
    }
    lines.push(format!("options {options}"));
    lines
}

/// A command line with another root. `None` if it has none, or two.
fn with_root(options: &str, root: &str) -> Option<String> {
    let mut found = 0;
    let words: Vec<_> = options
        .split_whitespace()
        .map(|word| {
            if word.starts_with("root=") {
                found += 1;
                format!("root={root}")
            } else {
                word.to_owned()
            }
        })
        .collect();
    (found == 1).then(|| words.join(" "))
}

fn require_space(slot: Slot, dir: &Path, length: u64) -> Result<(), StageError> {
    let path = dir.to_owned();
    let found = rustix::fs::statvfs(dir)
        .map_err(|errno| StageError::Write { path: path.clone(), source: errno.into() })?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let needed = length.saturating_add(RESERVE);
    if needed > free { Err(StageError::NoSpace { slot, path, needed, free }) } else { Ok(()) }
}

/// Copies a file and compares what the medium holds afterwards.
fn copy(slot: Slot, dir: &Path, name: &'static str, source: &mut Source<'_>) -> Result<(), StageError> {
    let expected = source.length;
    if expected == 0 || expected > MAX_FILE_LEN {
        return Err(StageError::Length { slot, name, found: expected, expected });
    }
    let path = dir.join(name);
    let failed = |source| StageError::Write { path: path.clone(), source };
    let mut file = File::create(&path).map_err(failed)?;
    let mut hasher = sha2::Sha256::new();
    let mut buf = vec![0; STEP];
    let mut found = 0;
    // One byte more than expected is enough to know.
    let mut bytes = (&mut *source.bytes).take(expected + 1);
    loop {
        let read = bytes.read(&mut buf).map_err(|source| StageError::Source { slot, name, source })?;
        let part = buf.get(..read).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        found += read as u64;
        hasher.update(part);
        file.write_all(part).map_err(failed)?;
    }
    if found != expected {
        return Err(StageError::Length { slot, name, found, expected });
    }
    file.sync_all().and_then(|()| File::open(dir)?.sync_all()).map_err(failed)?;
    drop(file);
    let written = Sha256Digest::from(<[u8; 32]>::from(hasher.finalize()));
    if digest(&path).map_err(failed)? == written { Ok(()) } else { Err(StageError::ReadBack { path }) }
}

/// Of what the medium holds, as far as the system can be told to forget what it has in memory.
fn digest(path: &Path) -> io::Result<Sha256Digest> {
    let mut file = File::open(path)?;
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let mut hasher = sha2::Sha256::new();
    let mut buf = vec![0; STEP];
    loop {
        let read = file.read(&mut buf)?;
        if read == 0 {
            return Ok(Sha256Digest::from(<[u8; 32]>::from(hasher.finalize())));
        }
        hasher.update(buf.get(..read).unwrap_or_default());
    }
}
