//! Block devices and plain files, opened so that reads and writes reach the medium.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};
use rustix::io::Errno;

use super::aligned::{ALIGNMENT, AlignedBuf, is_aligned};
use super::target::{Action, BlockTarget, DeviceNumber, DiskError};

/// The largest single transfer, in bytes; also the size of the buffer that unaligned ones use.
const STEP: usize = 1 << 20;

/// How reads get past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CacheBypass {
    /// Direct I/O: the page cache is not involved.
    Direct,
    /// The file system refuses direct I/O: the file is synced and its cached pages are dropped
    /// before reads. The kernel takes that as advice, so a read may still come from memory.
    DroppedPages,
}

/// A block device (a loop device is one), a plain file, or a window of a plain file.
pub struct DirectTarget {
    file: File,
    /// For a plain file: a second handle through the page cache, for bytes that do not fill an
    /// alignment unit. A direct write there would have to rewrite its neighbours, which may belong
    /// to another slot. The kernel keeps the two handles coherent.
    edges: Option<File>,
    base: u64,
    size: u64,
    alignment: u64,
    bypass: CacheBypass,
    path: PathBuf,
    name: String,
    zeroing: AtomicBool,
    /// Held while a unit is read, changed and written back.
    edge: Mutex<()>,
    failed: OnceLock<Action>,
}

impl std::fmt::Debug for DirectTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectTarget")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl DirectTarget {
    /// Opens a device for writing, exclusively: the kernel then refuses mounts, swap and other
    /// exclusive users of it, as it refuses this call while there are any. Never creates or
    /// truncates. With `expected`, any other device behind the same path is refused.
    pub fn open_device(path: &Path, expected: Option<DeviceNumber>) -> Result<Self, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Self::device(path, expected, &mut options, OFlags::EXCL)
    }

    /// Opens a device for reading beside its other users, for instance for its partition table.
    pub fn open_device_to_read(path: &Path) -> Result<Self, DiskError> {
        Self::device(path, None, OpenOptions::new().read(true), OFlags::empty())
    }

    fn device(
        path: &Path,
        expected: Option<DeviceNumber>,
        options: &mut OpenOptions,
        exclusive: OFlags,
    ) -> Result<Self, DiskError> {
        // O_NONBLOCK: a path that turns out to be a FIFO must be refused, not waited for.
        let file = options
            .custom_flags(flags(OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK | exclusive))
            .open(path)
            .map_err(|source| open_error(path, source))?;
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.file_type().is_block_device() {
            return Err(DiskError::NotABlockDevice { path: path.to_owned() });
        }
        let found = DeviceNumber::from_raw(metadata.rdev());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(DiskError::WrongDevice { path: path.to_owned(), expected, found });
        }
        let sector = rustix::fs::ioctl_blksszget(&file).map_err(|errno| failed(errno.into()))?;
        let size =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| failed(errno.into()))?;
        Ok(Self::new(file, None, 0, size, u64::from(sector), CacheBypass::Direct, path))
    }

    /// Opens a whole plain file for writing. Never creates, truncates or extends it.
    ///
    /// Where its file system has no direct I/O, reads follow a sync and a request to drop the
    /// file's pages, which the kernel may ignore: a read-back may then come from memory. That of a
    /// device never does.
    pub fn open_file(path: &Path) -> Result<Self, DiskError> {
        Self::file(path, None)
    }

    /// Opens `length` bytes from `offset` of a plain file, as a partition in a disk image.
    pub fn open_file_window(path: &Path, offset: u64, length: u64) -> Result<Self, DiskError> {
        let mut window = Self::file(path, Some((offset, length)))?;
        window.name = format!("{} at byte {offset}", path.display());
        Ok(window)
    }

    fn file(path: &Path, window: Option<(u64, u64)>) -> Result<Self, DiskError> {
        let open = |extra: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags(OFlags::CLOEXEC | OFlags::NONBLOCK | extra))
                .open(path)
        };
        let edges = open(OFlags::empty()).map_err(|source| open_error(path, source))?;
        let metadata = edges.metadata().map_err(|source| open_error(path, source))?;
        if !metadata.is_file() {
            return Err(DiskError::NotAPlainFile { path: path.to_owned() });
        }
        let (base, size) = window.unwrap_or((0, metadata.len()));
        if base.checked_add(size).is_none_or(|end| end > metadata.len()) {
            return Err(DiskError::OutOfBounds {
                target: path.display().to_string(),
                offset: base,
                length: size,
                size: metadata.len(),
            });
        }
        let (file, bypass) = match open(OFlags::DIRECT) {
            Ok(file) => (file, CacheBypass::Direct),
            Err(refused) if Errno::from_io_error(&refused) == Some(Errno::INVAL) => {
                let again = edges.try_clone().map_err(|source| open_error(path, source))?;
                (again, CacheBypass::DroppedPages)
            }
            Err(source) => return Err(open_error(path, source)),
        };
        Ok(Self::new(file, Some(edges), base, size, ALIGNMENT as u64, bypass, path))
    }

    fn new(
        file: File,
        edges: Option<File>,
        base: u64,
        size: u64,
        alignment: u64,
        bypass: CacheBypass,
        path: &Path,
    ) -> Self {
        Self {
            file,
            edges,
            base,
            size,
            alignment,
            bypass,
            path: path.to_owned(),
            name: path.display().to_string(),
            zeroing: AtomicBool::new(true),
            edge: Mutex::new(()),
            failed: OnceLock::new(),
        }
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if let Some(action) = self.failed.get() {
            return Err(DiskError::Poisoned { target: self.name.clone(), action: *action });
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let (target, size) = (self.name.clone(), self.size);
            return Err(DiskError::OutOfBounds { target, offset, length, size });
        }
        Ok(())
    }

    /// Remembers a failure that leaves the medium in an unknown state.
    fn poison(&self, action: Action, offset: u64, source: io::Error) -> DiskError {
        let _ = self.failed.set(action);
        self.failure(action, offset, source)
    }

    /// What an error of the system means for this target. To a device that went away the kernel
    /// answers as if it were full, or at its end: that advice would send people the wrong way.
    fn failure(&self, action: Action, offset: u64, source: io::Error) -> DiskError {
        if !self.is_gone() {
            return DiskError::from_io(action, &self.name, offset, source);
        }
        let found = format!("it is gone, or smaller than when it was opened; the kernel's answer: {source}");
        let source = io::Error::new(source.kind(), found);
        DiskError::Vanished { action, target: self.name.clone(), offset, source }
    }

    /// Whether what was opened is not there any more, or not all of it. A disk that goes away loses
    /// its size; a partition of it keeps that, but cannot be opened again.
    fn is_gone(&self) -> bool {
        let gone = |errno| [Errno::NOENT, Errno::NODEV, Errno::NXIO, Errno::NOMEDIUM].contains(&errno);
        let size = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0));
        if size.map_or_else(gone, |size| size < self.base + self.size) {
            return true;
        }
        let is_device = self.edges.is_none();
        let again = || OpenOptions::new().read(true).custom_flags(flags(OFlags::NONBLOCK)).open(&self.path);
        is_device && again().is_err_and(|error| Errno::from_io_error(&error).is_some_and(gone))
    }

    /// Reads `buf` from absolute position `at`.
    fn read_absolute(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        if self.bypass == CacheBypass::DroppedPages {
            self.file.sync_data()?;
            let length = std::num::NonZeroU64::new(buf.len() as u64);
            fadvise(&self.file, at, length, Advice::DontNeed)?;
            return self.file.read_exact_at(buf, at);
        }
        if is_aligned(buf) && self.is_unit(at) && self.is_unit(buf.len() as u64) {
            return self.file.read_exact_at(buf, at);
        }
        let bounce = buf.len().saturating_add(2 * to_usize(self.alignment)?).min(STEP);
        let mut bounce = AlignedBuf::zeroed(bounce.next_multiple_of(to_usize(self.alignment)?));
        while !buf.is_empty() {
            let start = at - at % self.alignment;
            let skip = to_usize(at - start)?;
            let wanted = buf.len().min(bounce.len() - skip);
            let units = (skip + wanted).next_multiple_of(to_usize(self.alignment)?);
            let read = read_up_to(&self.file, slice_mut(&mut bounce, 0, units)?, start)?;
            if read < skip + wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, later) = buf.split_at_mut(wanted);
            now.copy_from_slice(bounce.get(skip..skip + wanted).unwrap_or_default());
            buf = later;
            at += wanted as u64;
        }
        Ok(())
    }

    /// Writes `bytes` at absolute position `at`.
    fn write_absolute(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let lead = to_usize(at.next_multiple_of(self.alignment) - at)?.min(bytes.len());
        let (head, rest) = bytes.split_at(lead);
        let (body, tail) = rest.split_at(rest.len() - rest.len() % to_usize(self.alignment)?);
        self.write_edge(at, head)?;
        self.write_units(at + lead as u64, body)?;
        self.write_edge(at + (lead + body.len()) as u64, tail)
    }

    /// Writes whole alignment units.
    fn write_units(&self, mut at: u64, bytes: &[u8]) -> io::Result<()> {
        if is_aligned(bytes) || bytes.is_empty() {
            return self.file.write_all_at(bytes, at);
        }
        let mut bounce = AlignedBuf::zeroed(STEP.min(bytes.len()));
        for part in bytes.chunks(STEP) {
            let copy = slice_mut(&mut bounce, 0, part.len())?;
            copy.copy_from_slice(part);
            self.file.write_all_at(copy, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes bytes that do not fill an alignment unit.
    fn write_edge(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(edges) = &self.edges {
            return edges.write_all_at(bytes, at);
        }
        // Whoever writes the rest of the unit at the same time would undo this, or be undone.
        let _alone = self.edge.lock().unwrap_or_else(PoisonError::into_inner);
        let start = at - at % self.alignment;
        let mut unit = AlignedBuf::zeroed(to_usize(self.alignment)?);
        self.file.read_exact_at(&mut unit, start)?;
        slice_mut(&mut unit, to_usize(at - start)?, bytes.len())?.copy_from_slice(bytes);
        self.file.write_all_at(&unit, start)
    }

    fn zero_absolute(&self, at: u64, length: u64) -> io::Result<()> {
        // Only what fills no unit at either end is written.
        let body = at.next_multiple_of(self.alignment);
        let end = at + length;
        let body_end = end - end % self.alignment;
        if body >= body_end {
            return self.write_zeroes(at, length);
        }
        self.write_zeroes(at, body - at)?;
        self.zero_units(body, body_end - body)?;
        self.write_zeroes(body_end, end - body_end)
    }

    /// Zeroes whole alignment units.
    fn zero_units(&self, at: u64, length: u64) -> io::Result<()> {
        if self.zeroing.load(Ordering::Relaxed) {
            // On a device the kernel turns this into an operation that guarantees zeroes, or
            // refuses; a discard, which guarantees nothing, is another call.
            match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.zeroing.store(false, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        self.write_zeroes(at, length)
    }

    fn write_zeroes(&self, at: u64, length: u64) -> io::Result<()> {
        let zeroes = AlignedBuf::zeroed(to_usize(length.min(STEP as u64))?);
        let mut done = 0;
        while done < length {
            let part = to_usize((length - done).min(STEP as u64))?;
            self.write_absolute(at + done, zeroes.get(..part).unwrap_or_default())?;
            done += part as u64;
        }
        Ok(())
    }

    fn is_unit(&self, bytes: u64) -> bool {
        bytes.is_multiple_of(self.alignment)
    }
}

impl BlockTarget for DirectTarget {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.check(offset, buf.len() as u64)?;
        // A failed read leaves the medium as it was, so it does not poison.
        self.read_absolute(self.base + offset, buf)
            .map_err(|source| self.failure(Action::Read, offset, source))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.check(offset, bytes.len() as u64)?;
        self.write_absolute(self.base + offset, bytes)
            .map_err(|source| self.poison(Action::Write, offset, source))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.zero_absolute(self.base + offset, len)
            .map_err(|source| self.poison(Action::Zero, offset, source))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check(0, 0)?;
        self.file.sync_all().map_err(|source| self.poison(Action::Flush, 0, source))
    }

    fn description(&self) -> &str {
        &self.name
    }
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

fn open_error(path: &Path, source: io::Error) -> DiskError {
    let path = PathBuf::from(path);
    match Errno::from_io_error(&source) {
        Some(Errno::BUSY) => DiskError::Busy { path, source },
        _ => DiskError::Open { path, source },
    }
}

fn to_usize(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(io::Error::other)
}

fn slice_mut(buf: &mut [u8], start: usize, len: usize) -> io::Result<&mut [u8]> {
    buf.get_mut(start..start + len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Fills `buf` as far as the file goes.
fn read_up_to(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        // Direct reads end short only at the end of the file; going on there would be unaligned.
        if !done.is_multiple_of(512) {
            break;
        }
    }
    Ok(done)
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
