//! A slot's kernel and initrd, copied to where the loader can read them.
//!
//! `monok8s/a/` and `monok8s/b/` on the EFI system partition hold `vmlinuz`, `initrd.img`, and
//! `entry`, the lines that the slot's boot entry will have. The last is written last, after the
//! others were read back, and removed first: a slot without it cannot be armed.

use std::io::{self, BufReader, Read};
use std::mem;
use std::path::PathBuf;

use sha2::Digest as _;

use super::entry::EntryText;
use super::{BlsEntries, BlsError, KERNELS, STAGED, place};
use crate::digest::Sha256Digest;
use crate::disk::{Directory, VerifiedSlot};
use crate::slot::Slot;
use crate::version::OsVersion;

/// The largest kernel or initrd in bytes.
pub const MAX_FILE_LEN: u64 = 512 << 20;
/// What is left free for the entries and the loader's own files, in bytes.
const RESERVE: u64 = 1 << 20;
const STEP: usize = 256 << 10;
pub(super) const KERNEL: &str = "vmlinuz";
pub(super) const INITRD: &str = "initrd.img";

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
        let dir = self.kernels(slot);
        clear(dir).map_err(|source| StageError::Write { path: dir.path().to_owned(), source })?;
        let length =
            files.kernel.length.saturating_add(files.initrd.as_ref().map_or(0, |initrd| initrd.length));
        require_space(slot, dir, length)?;

        let has_initrd = files.initrd.is_some();
        copy(slot, dir, KERNEL, &mut files.kernel)?;
        if let Some(initrd) = &mut files.initrd {
            copy(slot, dir, INITRD, initrd)?;
        }
        let text = EntryText::of(lines(slot, files.version, has_initrd, &options)).to_string();
        place(dir, STAGED, text.as_bytes())
            .and_then(|()| dir.sync())
            .map_err(|source| StageError::Write { path: dir.path().join(STAGED), source })?;
        if self.staged(slot).map(|staged| staged.to_string()) == Some(text) {
            Ok(())
        } else {
            Err(StageError::ReadBack { path: dir.path().join(STAGED) })
        }
    }
}

/// Removes what the slot had: first what says that it is whole.
fn clear(dir: &dyn Directory) -> io::Result<()> {
    dir.create()?;
    for name in [STAGED, KERNEL, INITRD] {
        match dir.remove(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => {
                removed?;
                dir.sync()?;
            }
        }
    }
    Ok(())
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

fn require_space(slot: Slot, dir: &dyn Directory, length: u64) -> Result<(), StageError> {
    let path = dir.path().to_owned();
    let free = dir.free().map_err(|source| StageError::Write { path: path.clone(), source })?;
    let needed = length.saturating_add(RESERVE);
    if needed > free { Err(StageError::NoSpace { slot, path, needed, free }) } else { Ok(()) }
}

/// Copies a file and compares what the medium holds afterwards.
fn copy(
    slot: Slot,
    dir: &dyn Directory,
    name: &'static str,
    source: &mut Source<'_>,
) -> Result<(), StageError> {
    let expected = source.length;
    if expected == 0 || expected > MAX_FILE_LEN {
        return Err(StageError::Length { slot, name, found: expected, expected });
    }
    let path = dir.path().join(name);
    let failed = |source| StageError::Write { path: path.clone(), source };
    // One byte more than expected is enough to know.
    let mut bytes = Hashed::of((&mut *source.bytes).take(expected + 1));
    let filled = dir.fill(name, &mut bytes);
    if let Some(source) = bytes.failure.take() {
        return Err(StageError::Source { slot, name, source });
    }
    filled.map_err(failed)?;
    let (written, found) = bytes.digest();
    if found != expected {
        return Err(StageError::Length { slot, name, found, expected });
    }
    dir.sync().map_err(failed)?;
    let mut again = Hashed::of(dir.read_back(name).map_err(failed)?);
    io::copy(&mut BufReader::with_capacity(STEP, &mut again), &mut io::sink()).map_err(failed)?;
    if again.digest().0 == written { Ok(()) } else { Err(StageError::ReadBack { path }) }
}

/// Hashes what is read through it.
struct Hashed<R> {
    bytes: R,
    hasher: sha2::Sha256,
    found: u64,
    /// The first error, which whoever reads through this may take for one of its own.
    failure: Option<io::Error>,
}

impl<R: Read> Hashed<R> {
    fn of(bytes: R) -> Self {
        Self { bytes, hasher: sha2::Sha256::new(), found: 0, failure: None }
    }

    /// The digest and the number of bytes that were read.
    fn digest(&mut self) -> (Sha256Digest, u64) {
        (Sha256Digest::from(<[u8; 32]>::from(mem::take(&mut self.hasher).finalize())), self.found)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.bytes.read(buf) {
            Ok(read) => {
                self.hasher.update(buf.get(..read).unwrap_or_default());
                self.found += read as u64;
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::new(error.kind(), "the source cannot be read");
                self.failure = Some(error);
                Err(told)
            }
        }
    }
}
