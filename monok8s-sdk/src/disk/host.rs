//! What the running kernel says about its devices, below a directory that may be a test's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::target::DeviceNumber;

/// The largest file of /proc or /sys that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A host's `/proc`, `/sys` and `/dev` below some root: `/` on the host itself, `/host` in a pod
/// that mounts the host's root there, a temporary directory in a test.
#[derive(Clone, Debug)]
pub struct HostView {
    root: PathBuf,
}

/// A file of the host that exists and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: slots are not touched without it, check that the host's root is mounted", path.display())]
pub struct HostError {
    path: PathBuf,
    source: io::Error,
}

/// A block device as sysfs shows it. Sizes and offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name, such as `sda3`.
    pub name: String,
    /// Its number, the identity that `/proc` uses too.
    pub number: DeviceNumber,
    /// Its size.
    pub size: u64,
    /// For a partition: the disk's name and where the partition starts on it.
    pub partition_of: Option<(String, u64)>,
    /// Names of devices built on this one, such as `dm-0`.
    pub holders: Vec<String>,
    /// For a loop device in use: what it shows.
    pub backing: Option<LoopBacking>,
}

/// The part of a file that a loop device shows. Sizes and offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopBacking {
    /// The file.
    pub file: PathBuf,
    /// Where it starts.
    pub offset: u64,
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) number: DeviceNumber,
    pub(super) mount_point: String,
}

impl HostView {
    /// The host whose root directory is `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a path of the host, given relative to its root, is for this process.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The kernel command line, `None` if the host shows none.
    pub fn kernel_command_line(&self) -> Result<Option<String>, HostError> {
        self.read("proc/cmdline")
    }

    /// The mounts of the host's first process, else of this one; `None` if neither can be seen.
    pub(super) fn mounts(&self) -> Result<Option<Vec<Mount>>, HostError> {
        let text = match self.read("proc/1/mountinfo")? {
            Some(text) => Some(text),
            None => self.read("proc/self/mountinfo")?,
        };
        Ok(text.map(|text| parse_mounts(&text)))
    }

    /// The paths in use as swap.
    pub(super) fn swaps(&self) -> Result<Vec<String>, HostError> {
        let text = self.read("proc/swaps")?.unwrap_or_default();
        Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect())
    }

    /// Every block device, in the order of names. Empty if the host shows no sysfs.
    pub fn block_devices(&self) -> Result<Vec<BlockDevice>, HostError> {
        let mut names = self.names("sys/class/block")?;
        names.sort_unstable();
        let disks: Vec<&String> = names
            .iter()
            .filter(|name| !self.path(format!("sys/class/block/{name}/partition")).exists())
            .collect();
        let mut devices = Vec::new();
        for name in &names {
            let at = format!("sys/class/block/{name}");
            // A device may disappear while it is looked at.
            let number = self.read(format!("{at}/dev"))?.and_then(|text| DeviceNumber::parse(&text));
            let Some(number) = number else { continue };
            let disk = disks
                .iter()
                .find(|disk| self.path(format!("sys/class/block/{disk}/{name}/partition")).exists());
            let start = self.number(format!("{at}/start"))?.unwrap_or(0);
            let file = self.read(format!("{at}/loop/backing_file"))?;
            let offset = self.number(format!("{at}/loop/offset"))?.unwrap_or(0);
            devices.push(BlockDevice {
                name: name.clone(),
                number,
                // sysfs counts 512-byte units, whatever the sector size.
                size: self.number(format!("{at}/size"))?.unwrap_or(0).saturating_mul(512),
                partition_of: disk.map(|disk| ((*disk).clone(), start.saturating_mul(512))),
                holders: self.names(format!("{at}/holders"))?,
                backing: file
                    .map(|file| LoopBacking { file: PathBuf::from(file.trim_end_matches('\n')), offset }),
            });
        }
        Ok(devices)
    }

    fn number(&self, relative: impl AsRef<Path>) -> Result<Option<u64>, HostError> {
        Ok(self.read(relative)?.and_then(|text| text.trim().parse().ok()))
    }

    fn names(&self, relative: impl AsRef<Path>) -> Result<Vec<String>, HostError> {
        let path = self.path(relative);
        let failed = |source| HostError { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// A small file's text; `None` if it does not exist. Anything else that goes wrong is an
    /// error: a guard must not pass because it could not look.
    fn read(&self, relative: impl AsRef<Path>) -> Result<Option<String>, HostError> {
        use std::io::Read as _;
        let path = self.path(relative);
        let mut bytes = Vec::new();
        let read = fs::File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        match read {
            Ok(read) if read as u64 == MAX_FILE => {
                Err(HostError { path, source: io::ErrorKind::FileTooLarge.into() })
            }
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(HostError { path, source }),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    // ENODEV and ENXIO: sysfs answers so for attributes of a device that is just going away.
    let gone = [rustix::io::Errno::NODEV, rustix::io::Errno::NXIO];
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || rustix::io::Errno::from_io_error(error).is_some_and(|errno| gone.contains(&errno))
}

/// proc(5): `36 35 98:0 /mnt1 /mnt2 rw,noatime ...`.
fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let number = DeviceNumber::parse(fields.nth(2)?)?;
            Some(Mount { number, mount_point: unescape(fields.nth(1)?) })
        })
        .collect()
}

/// Blanks in /proc's tables are written as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_blanks_are_read() {
        let mounts = parse_mounts(
            "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\nbroken\n\
             23 22 0:5 / /dev rw - devtmpfs x rw\n24 22 8:3 / /mnt/two\\040words rw - ext4 /dev/sda3 rw\n",
        );
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[2].mount_point, "/mnt/two words");
        assert_eq!(mounts[2].number.to_string(), "8:3");
        assert_eq!(unescape("a\\04"), "a\\04");
    }

    #[test]
    fn this_machine_can_be_seen() {
        let host = HostView::new("/");
        assert!(host.kernel_command_line().unwrap().is_some());
        assert!(host.mounts().unwrap().unwrap().iter().any(|mount| mount.mount_point == "/"));
        for device in host.block_devices().unwrap() {
            assert!(device.number.major > 0, "{device:?}");
        }
        assert_eq!(HostView::new("/nonexistent").block_devices().unwrap(), []);
    }
}
