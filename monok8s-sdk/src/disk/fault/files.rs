//! A directory whose power fails.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::directory::Directory;
use super::super::region::RegionLock;
use super::power::{Change, Content, Inode, Power, Scope, Tree, What};

/// The files of a directory at one moment, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Files(pub BTreeMap<String, Arc<[u8]>>);

impl Files {
    pub(super) fn of(tree: &Tree) -> Self {
        let file = |(name, inode): (&String, &Inode)| {
            (name.clone(), tree.bytes.get(inode).map(Arc::clone).unwrap_or_default())
        };
        Self(tree.names.iter().map(file).collect())
    }
}

/// A directory in memory, on a file system that keeps what was synced and the order of its names,
/// and nothing else: a file that was not synced has any of its sectors, whatever its name is.
#[derive(Debug)]
pub struct FaultDirectory {
    power: Power,
    device: usize,
    path: PathBuf,
}

impl FaultDirectory {
    /// A directory with these files.
    #[must_use]
    pub fn new(power: &Power, path: impl Into<PathBuf>, files: &Files) -> Self {
        let mut tree = Tree::default();
        for (name, bytes) in &files.0 {
            tree.names.insert(name.clone(), tree.next);
            tree.bytes.insert(tree.next, Arc::clone(bytes));
            tree.next += 1;
        }
        Self { power: power.clone(), device: power.attach(Content::Directory(tree)), path: path.into() }
    }

    /// What is in it, on the medium or not.
    #[must_use]
    pub fn files(&self) -> Files {
        self.look(Files::of)
    }

    pub(super) fn device(&self) -> usize {
        self.device
    }

    fn look<T: Default>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        let seen = self.power.read(self.device, |content| match content {
            Content::Directory(tree) => look(tree),
            Content::Disk(_) => T::default(),
        });
        seen.unwrap_or_default()
    }

    fn inode(&self, name: &str) -> Option<Inode> {
        self.look(|tree| tree.names.get(name).copied())
    }

    fn named(&self, name: &str) -> io::Result<Inode> {
        self.inode(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&self, change: Change) {
        self.power.act(self.device, What::Change(change));
    }
}

impl Directory for FaultDirectory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn is_present(&self) -> bool {
        true
    }

    fn create(&self) -> io::Result<()> {
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let bytes = self.look(|tree| tree.names.get(name).and_then(|inode| tree.bytes.get(inode)).cloned());
        Ok(bytes.map(|bytes| bytes.get(..most).unwrap_or(&bytes).to_vec()))
    }

    fn read_back(&self, name: &str) -> io::Result<Box<dyn Read>> {
        let bytes = self.read(name, u64::MAX)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn fill(&self, name: &str, source: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes)?;
        let inode = if let Some(inode) = self.inode(name) {
            self.change(Change::Fill { inode, bytes: Arc::default() });
            inode
        } else {
            let inode = self.look(|tree| tree.next);
            self.change(Change::Create { name: name.to_owned(), inode });
            inode
        };
        self.change(Change::Fill { inode, bytes: bytes.into() });
        self.power.act(self.device, What::Sync(Scope::File(inode)));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.named(from)?;
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.named(name)?;
        self.change(Change::Remove { name: name.to_owned() });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.power.act(self.device, What::Sync(Scope::Names));
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.look(|tree| tree.names.keys().cloned().collect()))
    }

    fn lock(&self) -> io::Result<RegionLock> {
        Ok(RegionLock::of_nothing())
    }
}
