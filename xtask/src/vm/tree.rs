//! A root tree in the making: hard links to the base where nothing changes, new files where it does.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host::run;

/// A tree that shares its files with another one. Nothing here writes into a file: what changes is
/// replaced, or the other tree would change too.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Links every file of `base` into the new directory `root`, on the same file system.
    pub(super) fn linked(base: &Path, root: &Path) -> Result<Self> {
        copy(base, root, "--link")?;
        Ok(Self { root: root.to_owned() })
    }

    /// A copy of our files, as root's and readable by everyone, whoever has checked them out.
    pub(super) fn adopted(ours: &Path, root: &Path) -> Result<Self> {
        run(Command::new("cp").args(["--recursive", "--no-dereference"]).arg(ours).arg(root))?;
        run(Command::new("chmod").args(["--recursive", "u=rwX,go=rX"]).arg(root))?;
        Ok(Self { root: root.to_owned() })
    }

    /// A new, empty tree.
    pub(super) fn empty(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// Removes the tree; what it shares with others stays there.
    pub(super) fn discard(self) -> Result<()> {
        fs::remove_dir_all(&self.root).with_context(|| format!("cannot remove {}", self.root.display()))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Copies everything below `directory` over the tree.
    pub(super) fn overlay(&self, directory: &Path) -> Result<()> {
        copy(&directory.join("."), &self.root, "--remove-destination")
    }

    /// A file with this text, readable by everyone.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.vacant(path)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?)
    }

    /// A program that is this text.
    pub(super) fn script(&self, path: &str, text: &str) -> Result<()> {
        self.write(path, text)?;
        Ok(fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755))?)
    }

    /// A copy of the file `from`.
    pub(super) fn install(&self, from: &Path, path: &str) -> Result<()> {
        let path = self.vacant(path)?;
        fs::copy(from, &path)
            .with_context(|| format!("cannot copy {} to {}", from.display(), path.display()))?;
        Ok(())
    }

    /// A symbolic link.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<()> {
        let path = self.vacant(path)?;
        symlink(target, &path).with_context(|| format!("cannot make the link {}", path.display()))
    }

    /// Has systemd start a unit that is in the tree.
    pub(super) fn enable(&self, unit: &str, target: &str) -> Result<()> {
        self.link(
            &format!("etc/systemd/system/{target}.wants/{unit}"),
            &format!("/usr/lib/systemd/system/{unit}"),
        )
    }

    /// Has systemd never start a unit.
    pub(super) fn mask(&self, unit: &str) -> Result<()> {
        self.link(&format!("etc/systemd/system/{unit}"), "/dev/null")
    }

    /// Removes a file if it is there.
    pub(super) fn remove(&self, path: &str) -> Result<()> {
        let path = self.root.join(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The place for a file, with nothing in it.
    fn vacant(&self, path: &str) -> Result<PathBuf> {
        self.remove(path)?;
        let path = self.root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        Ok(path)
    }
}

fn copy(from: &Path, to: &Path, how: &str) -> Result<()> {
    run(Command::new("cp").args(["--archive", how]).arg(from).arg(to)).map(drop)
}
