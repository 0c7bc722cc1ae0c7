//! GRUB: the state in its environment block, with the variables of RAUC's script and three of ours.
//!
//! A block stays where it is, and keeps its size: GRUB finds it by its blocks on the disk, does not
//! replay a file system's journal, and writes it in place. So do we, and so nothing is created,
//! grown, renamed or truncated here. In front lie the variables of the slots, within the first
//! sector, which a medium writes whole or not at all.
//!
//! - **One file, `grubenv`**, works with RAUC's script and with ours. There is one copy: a sector
//!   that cannot be read any more, or that is lost with the power, is the end of the node's state.
//!   And RAUC's script does not count but keeps a flag for each slot: a confirmed slot whose boot
//!   was cut short once is passed over at the next one until it is marked good.
//! - **Two files, `grubenv.0` and `grubenv.1`**, take our script, `deploy/host/grub/grub.cfg`. Each
//!   is a whole block with a revision, and both readers take the readable one with the higher
//!   revision, the first if they are equal. A change goes into the other one first, with the next
//!   revision, is flushed and read back; then into the one that was read. Afterwards both say the
//!   same, so that no loss of one brings an older state back: that might boot an invalidated slot.
//!   Only tries are refilled with the other one damaged: an older number of them does no harm.
//!
//! A change must hold the lock from before the read to after the write (`exclusive`), as GRUB's own
//! writes cannot overlap with ours.

#[cfg(test)]
mod crash_tests;
pub mod env_block;
#[cfg(all(feature = "test-util", feature = "image"))]
pub(crate) mod fuzzing;
#[cfg(any(test, feature = "test-util"))]
pub mod script;
#[cfg(test)]
mod tests;
mod variables;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use env_block::{BLOCK_LEN, EnvBlock, EnvBlockError, SECTOR_LEN};
pub use variables::{MAX_REVISION, MAX_TRIES, VariableError};

use super::{BootBackend, BootError, Capabilities, Change, LoaderStatus, Tries};
use crate::disk::{HostRegion, Region, RegionLock};

const NAME: &str = "grub";
/// The file of the variant with one.
pub const FILE: &str = "grubenv";
/// The files of the variant with two.
pub const FILES: [&str; 2] = ["grubenv.0", "grubenv.1"];

/// Why an environment block could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrubEnvError {
    /// It cannot be read.
    #[error("cannot read {}: mount the partition that GRUB was started from, or make the file with `grub-editenv {} create`", path.display(), path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no environment block.
    #[error("{} is no environment block of GRUB", path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: EnvBlockError,
    },
    /// Its variables do not say which slot boots.
    #[error("{} does not say which slot boots", path.display())]
    Variables {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: VariableError,
    },
    /// Neither of two can be used.
    #[error("neither copy can be used; the second: {second}")]
    NoCopy {
        /// What is wrong with the second.
        second: Box<GrubEnvError>,
        /// What is wrong with the first.
        source: Box<GrubEnvError>,
    },
    /// It cannot be written.
    #[error("cannot write {} in place", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What was written is not what is read.
    #[error("{} does not hold what was just written to it: its medium fails", path.display())]
    NotTaken {
        /// The file.
        path: PathBuf,
    },
}

/// The state of a GRUB that runs RAUC's script or ours.
///
/// ```no_run
/// use monok8s_sdk::boot::BootBackend as _;
/// use monok8s_sdk::boot::grub::GrubEnv;
///
/// let loader = GrubEnv::in_directory("/boot/grub");
/// println!("next boot: {:?}", loader.status()?.next_boot());
/// # Ok::<(), monok8s_sdk::boot::BootError>(())
/// ```
#[derive(Clone, Debug)]
pub struct GrubEnv {
    copies: Copies,
}

#[derive(Clone, Debug)]
enum Copies {
    One(Arc<dyn Region>),
    Two([Arc<dyn Region>; 2]),
}

/// One copy that can be used.
struct Found {
    revision: u32,
    block: EnvBlock,
    status: LoaderStatus,
}

impl GrubEnv {
    /// The state in the directory that GRUB calls its prefix: in two files if there is one of them,
    /// else in one. Nothing is read yet.
    #[must_use]
    pub fn in_directory(dir: impl AsRef<Path>) -> Self {
        let path = |name: &str| dir.as_ref().join(name);
        let region = |name: &str| -> Arc<dyn Region> { Arc::new(HostRegion::new(path(name))) };
        if FILES.iter().any(|name| path(name).exists()) {
            Self::redundant(FILES.map(region))
        } else {
            Self::single(region(FILE))
        }
    }

    /// The state in this directory, if GRUB keeps any of slots there: the two files, or the
    /// variables in the one. A GRUB that boots something else has a `grubenv` as well.
    #[must_use]
    pub fn detect(dir: impl AsRef<Path>) -> Option<Self> {
        let found = Self::in_directory(dir);
        match &found.copies {
            Copies::Two(_) => Some(found),
            Copies::One(region) => {
                let block = read_block(region.as_ref()).ok()?;
                block.get("ORDER").is_some().then_some(found)
            }
        }
    }

    /// The state in one block.
    #[must_use]
    pub fn single(region: Arc<dyn Region>) -> Self {
        Self { copies: Copies::One(region) }
    }

    /// The state in two blocks.
    #[must_use]
    pub fn redundant(regions: [Arc<dyn Region>; 2]) -> Self {
        Self { copies: Copies::Two(regions) }
    }

    fn load(&self) -> Result<LoaderStatus, GrubEnvError> {
        match &self.copies {
            Copies::One(region) => Ok(read_single(region.as_ref())?.status),
            Copies::Two(regions) => Ok(newest(regions)?.1.status),
        }
    }

    fn save(&self, status: &LoaderStatus) -> Result<(), GrubEnvError> {
        match &self.copies {
            Copies::One(region) => {
                let Found { block, .. } = read_single(region.as_ref())?;
                write(region.as_ref(), &changed(region.as_ref(), block, status, None)?)
            }
            Copies::Two(regions) => {
                let (at, Found { revision, block, status: before }) = newest(regions)?;
                let [first, second] = regions;
                let (read, other) = if at == 0 { (first, second) } else { (second, first) };
                let bytes = changed(read.as_ref(), block, status, Some(revision))?;
                match write(other.as_ref(), &bytes) {
                    // GRUB goes on burning tries in the one that can be written. They have to be refilled
                    // there, or the node changes slots for no reason.
                    Err(GrubEnvError::Read { .. } | GrubEnvError::Write { .. })
                        if status.differs_in_tries_only(&before) => {}
                    written => written?,
                }
                write(read.as_ref(), &bytes)
            }
        }
    }
}

fn changed(
    region: &dyn Region,
    mut block: EnvBlock,
    status: &LoaderStatus,
    revision: Option<u32>,
) -> Result<[u8; BLOCK_LEN], GrubEnvError> {
    let variables = |source| GrubEnvError::Variables { path: region.path().to_owned(), source };
    variables::set_status(&mut block, status).map_err(variables)?;
    if let Some(revision) = revision {
        if revision >= MAX_REVISION {
            return Err(variables(VariableError::Revisions));
        }
        block.set("MONOK8S_REV", &(revision + 1).to_string());
    }
    block.encode().map_err(|source| GrubEnvError::Block { path: region.path().to_owned(), source })
}

fn read_block(region: &dyn Region) -> Result<EnvBlock, GrubEnvError> {
    let path = || region.path().to_owned();
    let size = region.size().map_err(|source| GrubEnvError::Read { path: path(), source })?;
    if size != BLOCK_LEN as u64 {
        let found = usize::try_from(size).unwrap_or(usize::MAX);
        return Err(GrubEnvError::Block { path: path(), source: EnvBlockError::Size { found } });
    }
    let bytes = region.read(0, BLOCK_LEN).map_err(|source| GrubEnvError::Read { path: path(), source })?;
    EnvBlock::parse(&bytes).map_err(|source| GrubEnvError::Block { path: path(), source })
}

fn read_single(region: &dyn Region) -> Result<Found, GrubEnvError> {
    let block = read_block(region)?;
    let status = variables::status(&block)
        .map_err(|source| GrubEnvError::Variables { path: region.path().to_owned(), source })?;
    Ok(Found { revision: 0, block, status })
}

fn read_one_of_two(region: &dyn Region) -> Result<Found, GrubEnvError> {
    let found = read_single(region)?;
    let revision = variables::revision(&found.block)
        .map_err(|source| GrubEnvError::Variables { path: region.path().to_owned(), source })?;
    Ok(Found { revision, ..found })
}

/// The copy that counts, and which one it is.
fn newest(regions: &[Arc<dyn Region>; 2]) -> Result<(usize, Found), GrubEnvError> {
    let [first, second] = regions.each_ref().map(|region| read_one_of_two(region.as_ref()));
    match (first, second) {
        (Ok(first), Ok(second)) if second.revision > first.revision => Ok((1, second)),
        (Ok(first), _) => Ok((0, first)),
        (Err(_), Ok(second)) => Ok((1, second)),
        (Err(first), Err(second)) => {
            Err(GrubEnvError::NoCopy { second: Box::new(second), source: Box::new(first) })
        }
    }
}

/// The second sector before the first, and only if it changes. With our layout it never does; where
/// another tool's layout is changed to ours, the variables of others are in the second sector before
/// they leave the first.
fn write(region: &dyn Region, bytes: &[u8; BLOCK_LEN]) -> Result<(), GrubEnvError> {
    let path = || region.path().to_owned();
    let size = region.size().map_err(|source| GrubEnvError::Write { path: path(), source })?;
    if size != BLOCK_LEN as u64 {
        let source = io::Error::other(format!("it has {size} bytes instead of {BLOCK_LEN}"));
        return Err(GrubEnvError::Write { path: path(), source });
    }
    let (first, second) = bytes.split_at(SECTOR_LEN);
    // What cannot be read is written.
    for (offset, sector) in [(SECTOR_LEN, second), (0, first)] {
        if region.read(offset as u64, SECTOR_LEN).is_ok_and(|held| held == sector) {
            continue;
        }
        region.write(offset as u64, sector).map_err(|source| GrubEnvError::Write { path: path(), source })?;
    }
    let held = region.read(0, BLOCK_LEN).map_err(|source| GrubEnvError::Read { path: path(), source })?;
    if held == bytes { Ok(()) } else { Err(GrubEnvError::NotTaken { path: path() }) }
}

impl BootBackend for GrubEnv {
    fn name(&self) -> &'static str {
        NAME
    }

    /// As many as the script counts to; where the state cannot be read, that is told by whatever
    /// reads it next.
    fn capabilities(&self) -> Capabilities {
        Capabilities { max_tries: self.load().map_or(Tries(1), |status| status.tries_full) }
    }

    fn status(&self) -> Result<LoaderStatus, BootError> {
        self.load().map_err(|source| BootError::Read { backend: NAME, source: source.into() })
    }

    fn store(&self, change: &Change) -> Result<(), BootError> {
        self.save(change.status()).map_err(|source| match source {
            GrubEnvError::NotTaken { .. } => BootError::NotTaken { backend: NAME },
            source => BootError::Write { backend: NAME, source: source.into() },
        })
    }

    fn is_settled(&self) -> bool {
        let Copies::Two(regions) = &self.copies else { return true };
        let [first, second] = regions.each_ref().map(|region| read_one_of_two(region.as_ref()));
        !matches!((first, second), (Ok(first), Ok(second)) if first.status != second.status)
    }

    fn exclusive(&self) -> Result<RegionLock, BootError> {
        let locked = match &self.copies {
            Copies::One(region) => region.lock(),
            // The first is the one that all lock, as long as it is there.
            Copies::Two([first, second]) => match first.lock() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => second.lock(),
                locked => locked,
            },
        };
        locked.map_err(|source| BootError::Locked { backend: NAME, source })
    }
}
