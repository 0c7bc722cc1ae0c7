//! What a slot is written through, and how it fails.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::api::FailureReason;

/// Storage that an image is written to and read back from: a device, a file, or a test's fake.
///
/// Offsets and lengths are in bytes and may have any alignment; multiples of 4096 in an
/// [`AlignedBuf`](super::AlignedBuf) avoid a copy.
/// Every call transfers all the bytes asked for or fails. After a failed write, zeroing or flush
/// the target refuses all further work with [`DiskError::Poisoned`]: what the medium holds is
/// unknown, and a later success would hide that.
pub trait BlockTarget: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`, from the medium and not from the page cache.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError>;

    /// Writes all of `bytes` at `offset`. Durable only after [`flush`](Self::flush).
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Makes `len` bytes from `offset` read as zero: with a guarantee of the device where it gives
    /// one, else by writing zeroes. Never a discard. Durable only after [`flush`](Self::flush).
    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Returns once everything written is on the medium, past the device's own cache.
    fn flush(&self) -> Result<(), DiskError>;

    /// What an operator would call it, such as `/dev/sda3`.
    fn description(&self) -> &str;
}

/// Why storage could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The path cannot be opened.
    #[error("cannot open {}: check that it exists and that this process may use it", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another user holds the device: a mount, swap, device mapper, or another writer.
    #[error("{} is in use by something that holds it exclusively (a mount, swap, a device mapper volume or another writer): release it first", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A device was expected.
    #[error("{} is not a block device: a slot's device node was expected there", path.display())]
    NotABlockDevice {
        /// What was opened.
        path: PathBuf,
    },
    /// A plain file was expected.
    #[error("{} is not a plain file: a disk image was expected there", path.display())]
    NotAPlainFile {
        /// What was opened.
        path: PathBuf,
    },
    /// The device node leads to another device than the one that was examined.
    #[error("{} is device {found}, but {expected} was examined: devices changed meanwhile, look again", path.display())]
    WrongDevice {
        /// The device node.
        path: PathBuf,
        /// The device that was examined.
        expected: DeviceNumber,
        /// The device that was opened.
        found: DeviceNumber,
    },
    /// The bytes asked for do not lie inside the target.
    #[error("{length} bytes at offset {offset} do not lie inside {target}, which has {size}")]
    OutOfBounds {
        /// The target's name.
        target: String,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// The target's size in bytes.
        size: u64,
    },
    /// What backs the target is full.
    #[error("no space left to {action} {target} at byte {offset}: free space on what backs it, then retry")]
    NoSpace {
        /// What was attempted.
        action: Action,
        /// The target's name.
        target: String,
        /// Where, in bytes.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The device is gone.
    #[error(
        "{target} vanished during an attempt to {action} it at byte {offset}: check the disk and its connection"
    )]
    Vanished {
        /// What was attempted.
        action: Action,
        /// The target's name.
        target: String,
        /// Where, in bytes.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// Any other I/O error.
    #[error(
        "cannot {action} {target} at byte {offset}: the medium or its connection may be failing, see the kernel log"
    )]
    Io {
        /// What was attempted.
        action: Action,
        /// The target's name.
        target: String,
        /// Where, in bytes.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// An earlier operation failed, so nothing more is done.
    #[error("{target} refuses further work because an earlier {action} failed: open it again to start over")]
    Poisoned {
        /// The target's name.
        target: String,
        /// What failed first.
        action: Action,
    },
}

/// An operation on a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Zeroing.
    Zero,
    /// Flushing.
    Flush,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Flush => "flush",
        })
    }
}

impl DiskError {
    /// Sorts an error of the system by what an operator must do about it.
    pub(crate) fn from_io(action: Action, target: &str, offset: u64, source: io::Error) -> Self {
        use rustix::io::Errno;
        let target = target.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { action, target, offset, source },
            Some(Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM) => {
                Self::Vanished { action, target, offset, source }
            }
            _ => Self::Io { action, target, offset, source },
        }
    }

    /// The word for `failureReason`.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Busy { .. } => FailureReason::SlotInUse,
            Self::NoSpace { .. } => FailureReason::NoSpaceLeft,
            Self::Open { .. } | Self::Vanished { .. } => FailureReason::DeviceVanished,
            Self::NotABlockDevice { .. } | Self::NotAPlainFile { .. } | Self::WrongDevice { .. } => {
                FailureReason::UnexpectedDevice
            }
            Self::Io { action: Action::Read, .. } => FailureReason::DiskReadFailed,
            Self::OutOfBounds { .. } | Self::Io { .. } | Self::Poisoned { .. } => {
                FailureReason::DiskWriteFailed
            }
        }
    }
}

/// Major and minor number of a device, printed as the kernel does (`8:3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The driver's number; 0 for file systems without a device.
    pub major: u32,
    /// The device's number within its driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// Reads `8:3`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    pub(super) fn from_raw(raw: u64) -> Self {
        Self { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Bytes for people: `412 MiB`, `2.0 GiB`; exact where no unit fits.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let Some((unit, name)) = units.into_iter().find(|(unit, _)| self.0 >= *unit) else {
            return write!(f, "{} bytes", self.0);
        };
        // Rounded down to tenths in integers: a size must not look larger than it is.
        let (whole, tenth) = (self.0 / unit, self.0 % unit * 10 / unit);
        if whole >= 10 { write!(f, "{whole} {name}") } else { write!(f, "{whole}.{tenth} {name}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_like_an_operator_writes_them() {
        for (bytes, text) in
            [(17, "17 bytes"), (2 << 30, "2.0 GiB"), (412 << 20, "412 MiB"), (u64::MAX, "16777215 TiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn errors_are_sorted_by_what_to_do() {
        let reason =
            |errno| DiskError::from_io(Action::Write, "x", 0, io::Error::from_raw_os_error(errno)).reason();
        assert_eq!(reason(28), FailureReason::NoSpaceLeft);
        assert_eq!(reason(19), FailureReason::DeviceVanished);
        assert_eq!(reason(5), FailureReason::DiskWriteFailed);
    }
}
