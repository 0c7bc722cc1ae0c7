//! Paths in an image with their symbolic links followed.
//!
//! The file system's reader can follow links too, but believes a damaged one that claims to be half
//! a terabyte long, and takes that much memory for it.

use ext4_view::{Ext4, Ext4Error, PathBuf};

/// As many links as Linux follows.
const MAX_LINKS: u32 = 40;
/// The longest link, as on Linux.
const MAX_LINK_LEN: u64 = 4096;

/// The absolute path without links that `path` leads to, whose last part need not exist as a
/// directory.
pub(super) fn followed(image: &Ext4, path: &str) -> Result<PathBuf, Ext4Error> {
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut waiting = parts(path.as_bytes());
    let mut links = 0;
    while let Some(name) = waiting.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ => done.push(name),
        }
        let here = joined(&done)?;
        let metadata = image.symlink_metadata(&here)?;
        if !metadata.is_symlink() {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Ext4Error::TooManySymlinks);
        }
        if metadata.len() > MAX_LINK_LEN {
            return Err(Ext4Error::PathTooLong);
        }
        let target = image.read_link(&here)?;
        done.pop();
        if target.is_absolute() {
            done.clear();
        }
        waiting.extend(parts(target.as_ref()));
    }
    joined(&done)
}

/// The parts of a path, the first one last.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
}

fn joined(names: &[Vec<u8>]) -> Result<PathBuf, Ext4Error> {
    let mut path = vec![b'/'];
    path.extend_from_slice(&names.join(&b'/'));
    PathBuf::try_from(path).map_err(|_| Ext4Error::MalformedPath)
}
