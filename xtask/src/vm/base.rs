//! The Debian root tree that all node images are made of.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use monok8s_sdk::digest::Sha256Digest;

use crate::cache::{lock, target_directory};
use crate::scratch::Scratch;
use crate::vm::recipe;

const RECIPE: &str = include_str!("../../node-image/base.sh");
/// Read by the recipe, and therefore part of what is built.
const INITRAMFS: [&str; 4] = [
    include_str!("../../node-image/root/usr/share/initramfs-tools/conf.d/monok8s"),
    include_str!("../../node-image/root/usr/share/initramfs-tools/hooks/blkid"),
    include_str!("../../node-image/root/usr/share/initramfs-tools/modules.d/monok8s"),
    include_str!("../../node-image/root/usr/share/initramfs-tools/scripts/local-bottom/require-init"),
];

/// A directory with the files of a node that no version differs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseTree {
    root: PathBuf,
}

impl BaseTree {
    /// Builds the tree from Debian's packages (a minute or two), or finds what an earlier call built.
    ///
    /// # Errors
    /// The packages cannot be fetched or unpacked; the recipe's messages are on stderr.
    pub async fn provide() -> Result<Self> {
        let inputs = Sha256Digest::of([&[RECIPE][..], &INITRAMFS].concat().concat().as_bytes()).hex();
        let cache = target_directory().join("vm");
        let root = cache.join(format!("base-{}", inputs.get(..10).unwrap_or(&inputs)));
        std::fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let _lock = lock(&cache.join("lock"), "the base of node images").await?;
        if !root.is_dir() {
            build(&cache, &root).await?;
        }
        Ok(Self { root })
    }

    /// Where it is. Nobody writes there: images are made from a copy.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Builds beside the final place, so that the tree is there complete or not at all.
async fn build(cache: &Path, root: &Path) -> Result<()> {
    eprintln!(
        "building the base of node images with mmdebstrap: not yet in {} (a minute or two)",
        root.display()
    );
    let started = Instant::now();
    let fresh = Scratch::new_in(cache, "base")?;
    let tree = fresh.path().join("root");
    recipe::run("base.sh", &[&tree, &recipe::ours()], &cache.join("base.log")).await?;
    std::fs::rename(&tree, root).with_context(|| format!("cannot keep {}", root.display()))?;
    eprintln!("built it in {} s", started.elapsed().as_secs());
    Ok(())
}
