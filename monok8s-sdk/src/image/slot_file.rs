//! A file of a written image, read without mounting it: what a boot loader cannot read for itself.

use std::io::{self, Read};

use ext4_view::File;

use super::inspect::{InspectError, is_absent, load, unreadable};
use super::links::followed;
use crate::disk::VerifiedSlot;

/// A file in a verified slot.
///
/// ```no_run
/// # fn f(slot: &monok8s_sdk::disk::VerifiedSlot) -> Result<(), Box<dyn std::error::Error>> {
/// use monok8s_sdk::image::SlotFile;
///
/// if let Some(kernel) = SlotFile::open(slot, "/boot/vmlinuz")? {
///     println!("its kernel has {} bytes", kernel.length());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SlotFile(File);

impl SlotFile {
    /// Opens a file by its absolute path in the image, with symbolic links followed; `None` if there
    /// is none. Blocks on the disk.
    pub fn open(slot: &VerifiedSlot, path: &str) -> Result<Option<Self>, InspectError> {
        let image = load(slot)?;
        match followed(&image, path).and_then(|path| image.open(&path)) {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(unreadable(slot.slot(), error)),
        }
    }

    /// Its length in bytes, as the file system says.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0.metadata().len()
    }
}

impl Read for SlotFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_bytes(buf).map_err(io::Error::other)
    }
}
