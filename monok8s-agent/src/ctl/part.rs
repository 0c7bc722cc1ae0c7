//! Files that exist whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Whether a file that exists is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Keep,
    Replace,
}

/// A file that is being written, under the name `NAME.part` beside its own. It is removed on errors;
/// what a kill leaves is replaced by the next run.
pub(super) struct Part {
    path: PathBuf,
    unfinished: PathBuf,
    file: BufWriter<File>,
}

impl Part {
    pub(super) fn begin(path: &Path, existing: Existing) -> Result<Self> {
        if existing == Existing::Keep && path.symlink_metadata().is_ok() {
            bail!("{} exists already: give --force to replace it", path.display());
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".part");
        let unfinished = PathBuf::from(unfinished);
        let file =
            File::create(&unfinished).with_context(|| format!("cannot create {}", unfinished.display()))?;
        Ok(Self { path: path.to_owned(), unfinished, file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Gives the file its name, once its bytes are on the medium.
    pub(super) fn finish(mut self) -> Result<()> {
        let done = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.unfinished, &self.path))
            .and_then(|()| File::open(directory(&self.path))?.sync_all());
        done.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing under this name.
        let _ = fs::remove_file(&self.unfinished);
    }
}

/// The directory that a file is in.
pub(super) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
