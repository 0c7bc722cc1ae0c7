//! What is flashed: an old image, and two releases of a new one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::tool::{self, script};
use crate::host::{self, MKE2FS, Program};
use crate::rootfs::{Image, RootfsSpec};

const MIB: u64 = 1 << 20;
const DEBIAN: &str = include_str!("debian.sh");
const EDIT: &str = include_str!("edit.sh");
/// One file in this many is edited: seven to ten in a hundred blocks.
const EDIT_EVERY: u32 = 8;
/// Identifiers that a release engineer keeps, so that images differ by their content alone.
const FILE_SYSTEM_UUID: &str = "6b386f73-0000-4000-8000-000000000001";
const HASH_SEED: &str = "6b386f73-0000-4000-8000-000000000002";
const BUILD_TIME: &str = "1750000000";

const PROGRAMS: [Program; 3] = [
    MKE2FS,
    Program { name: "debootstrap", package: "debootstrap" },
    Program { name: "unshare", package: "util-linux" },
];

/// What the images are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Two Debian root trees; images of this size in MiB.
    Debian { mib: u64 },
    /// Small synthetic trees.
    Quick,
}

/// The images.
pub(super) struct Inputs {
    /// What the booted slot holds.
    pub(super) old: Image,
    /// The new release with the layout of the old one.
    pub(super) edited: Image,
    /// The new release as `mke2fs -d` lays it out.
    pub(super) rebuilt: Image,
    /// For the report.
    pub(super) description: String,
    /// Where artifacts are kept between runs.
    pub(super) directory: PathBuf,
}

impl Inputs {
    /// Builds what is not in `cache` yet.
    pub(super) async fn provide(kind: Kind, cache: &Path) -> Result<Self> {
        host::provide(&PROGRAMS)?;
        let name = match kind {
            Kind::Debian { mib } => format!("debian-{mib}"),
            Kind::Quick => "quick".to_owned(),
        };
        let directory = cache.join(name);
        fs::create_dir_all(&directory)?;
        let (old, rebuilt) = (directory.join("old.ext4"), directory.join("rebuilt.ext4"));
        let description = match kind {
            Kind::Debian { mib } => {
                let changes = debian(cache, mib, [&old, &rebuilt]).await?;
                format!(
                    "Debian bookworm (minbase, systemd, containerd, kernel), ext4 of {mib} MiB; the new \
                     release upgrades or adds {}: {}",
                    changes.len(),
                    changes.join(", ")
                )
            }
            Kind::Quick => {
                quick("v1.35.1", &old)?;
                quick("v1.35.4", &rebuilt)?;
                "synthetic trees of 24 MiB, ext4 of 64 MiB; a quarter of the files differs".to_owned()
            }
        };
        let edited = directory.join("edited.ext4");
        if !edited.exists() {
            eprintln!("editing a copy of the old image in place");
            let part = edited.with_extension("part");
            fs::copy(&old, &part)?;
            let arguments = [part.display().to_string(), EDIT_EVERY.to_string()];
            tool::run("the edit in place", script(EDIT, &arguments), &directory).await?;
            fs::rename(part, &edited)?;
        }
        Ok(Self {
            old: Image::at(&old)?,
            edited: Image::at(&edited)?,
            rebuilt: Image::at(&rebuilt)?,
            description,
            directory,
        })
    }
}

/// The packages by which the second image differs.
async fn debian(cache: &Path, mib: u64, [old, new]: [&Path; 2]) -> Result<Vec<String>> {
    let trees = cache.join("trees");
    let (old_tree, new_tree) = (trees.join("old"), trees.join("new"));
    if !old_tree.exists() || !new_tree.exists() {
        eprintln!("making two Debian root trees with debootstrap; this takes some minutes, once");
        fs::create_dir_all(&trees)?;
        let arguments = [old_tree.display().to_string(), new_tree.display().to_string()];
        tool::run("debootstrap", script(DEBIAN, &arguments), &trees).await?;
    }
    for (tree, image) in [(&old_tree, old), (&new_tree, new)] {
        if !image.exists() {
            eprintln!("making {}", image.display());
            make_ext4(tree, image, mib * MIB).await?;
        }
    }
    let changes = trees.join("new.changes");
    let text = fs::read_to_string(&changes).with_context(|| format!("cannot read {}", changes.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

async fn make_ext4(tree: &Path, image: &Path, bytes: u64) -> Result<()> {
    let part = image.with_extension("part");
    fs::File::create(&part)?.set_len(bytes)?;
    let mut command = Command::new(MKE2FS.locate()?);
    command
        .env("E2FSPROGS_FAKE_TIME", BUILD_TIME)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-U", FILE_SYSTEM_UUID])
        .args(["-E", &format!("hash_seed={HASH_SEED},root_owner=0:0"), "-d"])
        .arg(tree)
        .arg(&part);
    tool::run("mke2fs", command, image.parent().unwrap_or(Path::new("."))).await?;
    Ok(fs::rename(part, image)?)
}

fn quick(version: &str, image: &Path) -> Result<()> {
    if image.exists() {
        return Ok(());
    }
    let part = image.with_extension("part");
    RootfsSpec::of(version).sized(64 * MIB, 24 * MIB).build(&part)?;
    Ok(fs::rename(part, image)?)
}
