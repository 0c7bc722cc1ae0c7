//! What a written image says it is, read in user space: an image is never mounted to be judged.

use std::error::Error;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::links::followed;
use crate::api::FailureReason;
use crate::disk::{DiskError, SlotReader, VerifiedSlot};
use crate::os_release::{MAX_OS_RELEASE_LEN, OS_RELEASE_PATHS, OsRelease, OsReleaseError};
use crate::slot::Slot;
use crate::version::OsVersion;

/// Where an image has the guard, which sends a trial boot back that was not confirmed. A program that
/// nothing starts guards nothing, so both are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardFiles {
    /// Absolute paths of the program, of which one is enough.
    pub programs: Vec<String>,
    /// Absolute paths of what makes the host's init start it, of which one is enough. Empty: that is
    /// not looked for.
    pub services: Vec<String>,
}

/// As `deploy/host/` installs it, for systemd and for `OpenRC`.
impl Default for GuardFiles {
    fn default() -> Self {
        let wanted = |of: &str| {
            ["sysinit", "basic", "multi-user"]
                .map(|target| format!("/{of}/systemd/system/{target}.target.wants/monok8s-guard.service"))
        };
        let runlevels =
            ["sysinit", "boot", "default"].map(|level| format!("/etc/runlevels/{level}/monok8s-guard"));
        Self {
            programs: vec!["/usr/bin/monok8s-agent".to_owned()],
            services: [wanted("etc"), wanted("usr/lib"), runlevels].concat(),
        }
    }
}

/// What an image has of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuardFound {
    /// Its program, and what starts it.
    Enabled {
        /// The path of the program.
        program: String,
    },
    /// Its program only.
    NotEnabled {
        /// The path of the program.
        program: String,
    },
    /// Nothing.
    Missing,
}

/// The largest ext4 block, as a power of two above 1 KiB: 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;
/// The fewest blocks of a group; mke2fs refuses less.
const MIN_BLOCKS_PER_GROUP: u32 = 256;
/// The most block groups that are read: an image of 512 GiB with the usual 128 MiB groups.
const MAX_GROUPS: u64 = 4096;

/// What an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The version in its os-release; `None` if that states none.
    pub version: Option<OsVersion>,
    /// What it has of the guard.
    pub guard: GuardFound,
}

/// Why an image must not be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The slot cannot be read.
    #[error("cannot read the image in slot {slot}")]
    Read {
        /// The slot.
        slot: Slot,
        /// Why.
        source: DiskError,
    },
    /// It is no ext4 file system, or a damaged one.
    #[error(
        "the image in slot {slot} is not a readable ext4 file system: build it with mke2fs -t ext4 and check it with e2fsck"
    )]
    NotReadable {
        /// The slot.
        slot: Slot,
        /// What the file system's reader says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its size fields pass a limit.
    #[error(
        "the image in slot {slot} claims an impossible ext4 geometry ({what}): build it with mke2fs -t ext4 and check it with e2fsck"
    )]
    Geometry {
        /// The slot.
        slot: Slot,
        /// Which field.
        what: &'static str,
    },
    /// There is no os-release.
    #[error(
        "the image in slot {slot} has neither /etc/os-release nor /usr/lib/os-release: it is no root file system of a node"
    )]
    NoOsRelease {
        /// The slot.
        slot: Slot,
    },
    /// The os-release cannot be used.
    #[error("the os-release of the image in slot {slot} is not usable")]
    OsRelease {
        /// The slot.
        slot: Slot,
        /// Why.
        source: OsReleaseError,
    },
    /// It is another version than was ordered.
    #[error(
        "the image in slot {slot} is {found}, but {expected} was ordered: the catalog's entry for {expected} leads to another image"
    )]
    WrongVersion {
        /// The slot.
        slot: Slot,
        /// The version ordered.
        expected: OsVersion,
        /// The version inside.
        found: OsVersion,
    },
    /// It would boot without a guard, and could not fall back by itself.
    #[error("the image in slot {slot} has no guard (looked for {}): install monok8s-agent in the image, a node could not fall back without it", looked_for.join(", "))]
    GuardMissing {
        /// The slot.
        slot: Slot,
        /// The paths that were looked for.
        looked_for: Vec<String>,
    },
    /// The guard is there, but nothing starts it.
    #[error("the image in slot {slot} has the guard {program}, but no service that starts it at boot (looked for {}): enable monok8s-guard in the image, a node could not fall back without it", looked_for.join(", "))]
    GuardNotEnabled {
        /// The slot.
        slot: Slot,
        /// The guard's program.
        program: String,
        /// The paths that were looked for.
        looked_for: Vec<String>,
    },
}

impl InspectError {
    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Read { source, .. } => source.reason(),
            Self::NotReadable { .. } | Self::Geometry { .. } => FailureReason::UnreadableImage,
            Self::NoOsRelease { .. } | Self::OsRelease { .. } => FailureReason::InvalidOsRelease,
            Self::WrongVersion { .. } => FailureReason::WrongVersion,
            Self::GuardMissing { .. } | Self::GuardNotEnabled { .. } => FailureReason::GuardMissing,
        }
    }
}

/// Reads the image in a verified slot, looking for these files of the guard. Blocks on the disk.
pub fn inspect(slot: &VerifiedSlot, guard: &GuardFiles) -> Result<Inspection, InspectError> {
    let at = slot.slot();
    let unreadable = |error| unreadable(at, error);
    let image = load(slot)?;
    let os_release = read_first(&image, &OS_RELEASE_PATHS)
        .map_err(unreadable)?
        .ok_or(InspectError::NoOsRelease { slot: at })?;
    let version = OsRelease::parse(&os_release)
        .and_then(|os_release| os_release.version())
        .map_err(|source| InspectError::OsRelease { slot: at, source })?;
    let guard = look_for(guard, &image).map_err(unreadable)?;
    Ok(Inspection { version, guard })
}

fn look_for(guard: &GuardFiles, image: &Ext4) -> Result<GuardFound, Ext4Error> {
    let mut program = None;
    for path in &guard.programs {
        if program.is_none() && is_program(image, path)? {
            program = Some(path.clone());
        }
    }
    let Some(program) = program else { return Ok(GuardFound::Missing) };
    let mut is_enabled = guard.services.is_empty();
    for path in &guard.services {
        is_enabled = is_enabled || is_entry(image, path)?;
    }
    Ok(if is_enabled { GuardFound::Enabled { program } } else { GuardFound::NotEnabled { program } })
}

/// The file system in a verified slot, after a look at its sizes.
pub(super) fn load(slot: &VerifiedSlot) -> Result<Ext4, InspectError> {
    check_geometry(slot)?;
    Ext4::load(Box::new(Image(slot.reader()))).map_err(|error| unreadable(slot.slot(), error))
}

pub(super) fn unreadable(slot: Slot, error: Ext4Error) -> InspectError {
    match error {
        Ext4Error::Io(source) => match source.downcast::<DiskError>() {
            Ok(source) => InspectError::Read { slot, source: *source },
            Err(source) => InspectError::NotReadable { slot, source },
        },
        error => InspectError::NotReadable { slot, source: Box::new(error) },
    }
}

impl Inspection {
    /// Refuses an image that states another version than `expected`, or has no guard that is started.
    /// An image that states no version passes: it is judged after its boot.
    pub fn require(&self, slot: Slot, expected: &OsVersion, guard: &GuardFiles) -> Result<(), InspectError> {
        if let Some(found) = self.version.as_ref().filter(|found| *found != expected) {
            let (expected, found) = (expected.clone(), found.clone());
            return Err(InspectError::WrongVersion { slot, expected, found });
        }
        match &self.guard {
            GuardFound::Enabled { .. } => Ok(()),
            GuardFound::NotEnabled { program } => {
                let (program, looked_for) = (program.clone(), guard.services.clone());
                Err(InspectError::GuardNotEnabled { slot, program, looked_for })
            }
            GuardFound::Missing => {
                Err(InspectError::GuardMissing { slot, looked_for: guard.programs.clone() })
            }
        }
    }
}

/// The superblock's sizes decide how much memory the reader takes, so they are bounded first.
/// Layout: linux/fs/ext4/ext4.h, `struct ext4_super_block`.
fn check_geometry(slot: &VerifiedSlot) -> Result<(), InspectError> {
    let at = slot.slot();
    let refuse = |what| InspectError::Geometry { slot: at, what };
    let mut block = [0; 1024];
    if slot.length() < 2048 {
        return Err(refuse("shorter than a superblock"));
    }
    slot.read_at(1024, &mut block).map_err(|source| InspectError::Read { slot: at, source })?;
    let field = |offset: usize| {
        let bytes = block.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let is_64bit = field(0x60) & 0x80 != 0;
    let high = if is_64bit { field(0x150) } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(field(0x04));
    let (log_block_size, per_group) = (field(0x18), field(0x20));
    if block.get(0x38..0x3A) != Some(&[0x53, 0xEF]) {
        return Err(refuse("no ext4 signature"));
    }
    if log_block_size > MAX_LOG_BLOCK_SIZE {
        return Err(refuse("block size"));
    }
    // The reader takes the high half whether or not the feature is on.
    if field(0x150) != high
        || blocks.checked_mul(1024 << log_block_size).is_none_or(|size| size > slot.length())
    {
        return Err(refuse("more blocks than the image has"));
    }
    if per_group < MIN_BLOCKS_PER_GROUP || blocks / u64::from(per_group) > MAX_GROUPS {
        return Err(refuse("blocks per group"));
    }
    Ok(())
}

struct Image(SlotReader);

impl Ext4Read for Image {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(start, into)?)
    }
}

/// The first of the files that is there, if it is not oversized. An oversized one is returned cut,
/// one byte above the limit, which the parser refuses.
fn read_first(image: &Ext4, paths: &[&str]) -> Result<Option<Vec<u8>>, Ext4Error> {
    for path in paths {
        let mut file = match followed(image, path).and_then(|path| image.open(&path)) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; MAX_OS_RELEASE_LEN + 1];
        let mut length = 0;
        while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read_bytes(rest)? {
                0 => break,
                read => length += read,
            }
        }
        bytes.truncate(length);
        return Ok(Some(bytes));
    }
    Ok(None)
}

/// Whether there is a file that someone may execute.
fn is_program(image: &Ext4, path: &str) -> Result<bool, Ext4Error> {
    match followed(image, path).and_then(|path| image.symlink_metadata(&path)) {
        Ok(metadata) => Ok(!metadata.is_dir()
            && !metadata.is_symlink()
            && metadata.mode() & 0o111 != 0
            && metadata.len() > 0),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether there is anything by this name, be it a link that leads nowhere: a service is enabled by its
/// name in a directory.
fn is_entry(image: &Ext4, path: &str) -> Result<bool, Ext4Error> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let found = followed(image, directory).and_then(|directory| {
        let entry = directory.join(name);
        image.symlink_metadata(&entry)
    });
    match found {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn is_absent(error: &Ext4Error) -> bool {
    matches!(error, Ext4Error::NotFound | Ext4Error::NotADirectory)
}
