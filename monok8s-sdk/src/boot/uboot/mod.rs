//! U-Boot: the state in the variables of its environment.
//!
//! [`UbootEnv`] reads and writes the environment that `fw_env.config` names, the one that
//! `fw_printenv` shows, in files and on block devices. Raw flash (MTD, UBI) is refused: it is erased
//! before it is written, by ways of its own that are not here.
//!
//! What counts tries is the boot script, ours in `deploy/host/u-boot/` or RAUC's.

mod config;
mod copies;
#[cfg(test)]
mod crash_tests;
mod environment;
#[cfg(test)]
mod tests;
mod variables;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BootBackend, BootError, Capabilities, Change, LoaderStatus};
use crate::disk::{HostRegion, Region, RegionLock};

pub use config::{ConfigError, EnvConfig, Location, MAX_CONFIG, MAX_SIZE, Offset};
use copies::Copies;
pub use copies::Place;
#[cfg(all(feature = "test-util", feature = "image"))]
pub(crate) use copies::choose;
pub use environment::{Environment, Flaw, Layout, TooLarge, Whole};
pub use variables::VariableError;
#[cfg(all(feature = "test-util", feature = "image"))]
pub(crate) use variables::{put, status};

const NAME: &str = "u-boot";
/// The kernel's number for block devices on flash (`Documentation/admin-guide/devices.txt`).
const MTD_BLOCK_MAJOR: u32 = 31;
/// What `fw_printenv` and `fw_setenv` lock; `/var/lock` is `/run/lock`.
const TOOLS_LOCK: &str = "run/lock/fw_printenv.lock";

/// Whether an environment in one place only is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundancy {
    /// It is not: a power cut in the middle of a write leaves no environment at all.
    Required,
    /// It is, because someone who knows that has said so.
    SingleCopyAllowed,
}

/// Why a U-Boot environment could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UbootError {
    /// The configuration, or what it names, cannot be opened.
    #[error("cannot open {}: check that it exists and that this process may use it", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The configuration is not what the format has.
    #[error("cannot use {}", path.display())]
    Config {
        /// The configuration.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// There is only one copy.
    #[error("{} names one copy of the environment, which a power cut can destroy: give U-Boot a redundant one", config.display())]
    SingleCopy {
        /// The configuration.
        config: PathBuf,
    },
    /// Raw flash.
    #[error("{} is raw flash, which is erased before it is written; that is not supported: keep the environment on a block device or in a file", path.display())]
    Flash {
        /// The device.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{} is neither a plain file nor a block device", path.display())]
    NotStorage {
        /// What was found.
        path: PathBuf,
    },
    /// A copy does not lie within what it should lie in.
    #[error("a copy of the environment does not lie within {}, which has {size} bytes: correct the offset or the size in fw_env.config", path.display())]
    Beyond {
        /// The device or file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The two copies are on top of each other.
    #[error("the two copies of the environment overlap on {}: correct the offsets in fw_env.config", path.display())]
    Overlap {
        /// The device or file.
        path: PathBuf,
    },
    /// The only copy is not whole.
    #[error(
        "the U-Boot environment in {place} is damaged ({flaw}): restore it before the next reboot; U-Boot takes its built-in one instead, which knows nothing of the slots"
    )]
    Damaged {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// Neither copy is whole.
    #[error(
        "both copies of the U-Boot environment are damaged ({first}: {first_flaw}; {second}: {second_flaw}): restore one before the next reboot; U-Boot takes its built-in one instead, which knows nothing of the slots"
    )]
    BothDamaged {
        /// Where the first one is.
        first: String,
        /// What is wrong with it.
        first_flaw: Flaw,
        /// Where the second one is.
        second: String,
        /// What is wrong with it.
        second_flaw: Flaw,
    },
    /// The variables say nothing of the slots, or what means nothing.
    #[error(transparent)]
    Variables(#[from] VariableError),
    /// The variables do not fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A copy cannot be written.
    #[error("cannot write the copy of the U-Boot environment in {place}")]
    Write {
        /// Where it is.
        place: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A copy reads back differently from what was written.
    #[error(
        "the copy of the U-Boot environment in {place} reads back differently from what was written: its medium may be failing"
    )]
    ReadBack {
        /// Where it is.
        place: String,
    },
}

/// The state of U-Boot's script, in an environment.
///
/// ```no_run
/// use std::path::Path;
///
/// use monok8s_sdk::boot::BootBackend as _;
/// use monok8s_sdk::boot::uboot::{Redundancy, UbootEnv};
///
/// let loader = UbootEnv::from_config(Path::new("/"), "etc/fw_env.config", Redundancy::Required)?;
/// println!("next boot: {:?}", loader.status()?.next_boot());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct UbootEnv {
    copies: Copies,
    /// Bytes of one copy.
    size: usize,
    tools_lock: Option<PathBuf>,
}

impl UbootEnv {
    /// Whether the host is configured for U-Boot's tools.
    #[must_use]
    pub fn detect(host_root: &Path, config: impl AsRef<Path>) -> bool {
        host_root.join(config).is_file()
    }

    /// The environment that a host's `fw_env.config` names. Paths in there are the host's, and are
    /// looked for below `host_root`. Nothing of the environment is read yet.
    pub fn from_config(
        host_root: &Path,
        config: impl AsRef<Path>,
        redundancy: Redundancy,
    ) -> Result<Self, UbootError> {
        let path = host_root.join(config);
        let parsed = read_config(&path)?.parse();
        let parsed = parsed.map_err(|source| UbootError::Config { path: path.clone(), source })?;
        let (copies, size) = match parsed {
            EnvConfig::Single(_) if redundancy == Redundancy::Required => {
                return Err(UbootError::SingleCopy { config: path });
            }
            EnvConfig::Single(only) => (Copies::Single(place(host_root, &only)?), only.size),
            EnvConfig::Redundant([first, second]) => {
                let places = [place(host_root, &first)?, place(host_root, &second)?];
                refuse_overlap(&places, first.size)?;
                (Copies::Redundant(places), first.size)
            }
        };
        let tools_lock = Some(host_root.join(TOOLS_LOCK));
        Ok(Self { copies, size: usize::try_from(size).unwrap_or(usize::MAX), tools_lock })
    }

    /// A redundant environment of `size` bytes a copy in regions of the caller's making.
    #[must_use]
    pub fn in_regions(places: [Place; 2], size: u32) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        Self { copies: Copies::Redundant(places), size, tools_lock: None }
    }

    fn read(&self) -> Result<LoaderStatus, UbootError> {
        Ok(variables::status(&self.copies.load(self.size)?.whole.environment)?)
    }

    fn write(&self, status: &LoaderStatus) -> Result<(), UbootError> {
        let active = self.copies.load(self.size)?;
        let mut environment = active.whole.environment.clone();
        variables::put(&mut environment, status)?;
        self.copies.store(self.size, &active, &environment)
    }

    /// Keeps a person's `fw_setenv` away from the variables while they are read and written. A host
    /// that has no place for its lock, or shows it read-only, is left without: what was written is
    /// read again anyway.
    fn lock_out_tools(&self) -> io::Result<Option<RegionLock>> {
        let Some(path) = &self.tools_lock else { return Ok(None) };
        let file = File::options().create(true).truncate(false).write(true).open(path).ok();
        file.map(RegionLock::on).transpose()
    }
}

fn read_config(path: &Path) -> Result<String, UbootError> {
    let failed = |source| UbootError::Open { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let length = file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(failed)?;
    if length as u64 > MAX_CONFIG {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn place(host_root: &Path, location: &Location) -> Result<Place, UbootError> {
    let path = host_root.join(location.path.trim_start_matches('/'));
    let failed = |source| UbootError::Open { path: path.clone(), source };
    let metadata = fs::metadata(&path).map_err(failed)?;
    let kind = metadata.file_type();
    let on_flash = kind.is_block_device() && rustix::fs::major(metadata.rdev()) == MTD_BLOCK_MAJOR;
    if kind.is_char_device() || on_flash {
        return Err(UbootError::Flash { path });
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(UbootError::NotStorage { path });
    }
    let region = HostRegion::new(&path);
    let size = region.size().map_err(failed)?;
    let offset = match location.offset {
        Offset::FromStart(offset) => Some(offset),
        Offset::FromEnd(before) => size.checked_sub(before),
    };
    let end = offset.and_then(|offset| offset.checked_add(u64::from(location.size)));
    match offset.filter(|_| end.is_some_and(|end| end <= size)) {
        Some(offset) => Ok(Place { region: Arc::new(region), offset }),
        None => Err(UbootError::Beyond { path, size }),
    }
}

fn refuse_overlap([first, second]: &[Place; 2], size: u32) -> Result<(), UbootError> {
    let path = first.region.path();
    let identity = |place: &Place| {
        // Two nodes of one device are one place; two files are if they are the same inode.
        fs::metadata(place.region.path()).map(|found| {
            let is_device = found.file_type().is_block_device();
            if is_device { (0, found.rdev()) } else { (found.dev(), found.ino()) }
        })
    };
    let failed = |source| UbootError::Open { path: path.to_owned(), source };
    let same = identity(first).map_err(failed)? == identity(second).map_err(failed)?;
    if same && first.offset.abs_diff(second.offset) < u64::from(size) {
        return Err(UbootError::Overlap { path: path.to_owned() });
    }
    Ok(())
}

impl BootBackend for UbootEnv {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { max_tries: variables::MAX_TRIES }
    }

    fn status(&self) -> Result<LoaderStatus, BootError> {
        self.read().map_err(|source| BootError::Read { backend: NAME, source: source.into() })
    }

    fn store(&self, change: &Change) -> Result<(), BootError> {
        let locked = |source| BootError::Locked { backend: NAME, source };
        let _lock = self.lock_out_tools().map_err(locked)?;
        self.write(change.status()).map_err(|source| match source {
            UbootError::Damaged { .. } | UbootError::BothDamaged { .. } | UbootError::Variables(_) => {
                BootError::Read { backend: NAME, source: source.into() }
            }
            _ => BootError::Write { backend: NAME, source: source.into() },
        })
    }

    fn is_settled(&self) -> bool {
        !self.copies.differ(self.size)
    }

    fn exclusive(&self) -> Result<RegionLock, BootError> {
        let lock = self.copies.first().region.lock();
        lock.map_err(|source| BootError::Locked { backend: NAME, source })
    }
}
