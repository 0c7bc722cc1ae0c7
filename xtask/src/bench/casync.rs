//! casync, from Debian's package.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::contender::{Release, made};
use crate::host::Program;
use crate::rootfs::Image;

pub(super) const CASYNC: Program = Program { name: "casync", package: "casync" };

/// Chunks of all images are in one store, as on a server.
const STORE: &str = "casync";

/// casync leaves its writes in the page cache.
pub(super) const SCRIPT: &str = r#"
casync extract --store="${BASE}casync" --seed="$SOURCE" "$URL" "$TARGET" > /dev/null
sync "$TARGET"
"#;

/// The chunk index of an image; the chunks go to the store beside it.
pub(super) async fn index(image: &Image) -> Result<PathBuf> {
    let store = image.path.with_file_name(STORE);
    made(image, "caibx", |part| {
        let mut command = Command::new("casync");
        command.arg("make").arg(format!("--store={}", store.display())).arg(part).arg(&image.path);
        command
    })
    .await
}

/// The index and the whole store.
pub(super) fn served(release: &Release) -> Result<Vec<PathBuf>> {
    let store = release.artifact.with_file_name(STORE);
    let mut files = vec![release.artifact.clone()];
    let cannot = || format!("cannot read {}", store.display());
    for directory in std::fs::read_dir(&store).with_context(cannot)? {
        for chunk in std::fs::read_dir(directory?.path()).with_context(cannot)? {
            files.push(chunk?.path());
        }
    }
    Ok(files)
}
