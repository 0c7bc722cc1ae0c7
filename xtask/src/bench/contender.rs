//! Who takes part, what each needs, and the command that an operator would type.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::image::{BuildOptions, KnownBlocks, build_after};

use super::rig::Rig;
use super::tool;
use super::{casync, rauc};
use crate::digest;
use crate::host::Program;
use crate::rootfs::Image;

/// An updater.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// `ctl flash` of a stock artifact.
    OursWhole,
    /// The same by a block index, from what the slots hold and the frames that are missing.
    OursIndexed,
    /// The same of an artifact of independent frames.
    OursFramed,
    /// The pipe that many scripts are.
    Pipe,
    /// A script with the guarantees of `ctl flash`, and the program that it hashes with.
    Shell(Hasher),
    /// RAUC with a block hash index.
    Rauc,
    /// casync with the booted slot as its seed.
    Casync,
}

/// A program that prints SHA-256 sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hasher {
    /// From coreutils, which in Debian 12 does not use the processor's instructions for SHA.
    Sha256sum,
    /// From OpenSSL, which does.
    OpenSsl,
}

/// A file to fetch, and the image that comes of it.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) image: Image,
    pub(super) artifact: PathBuf,
    digest: Option<Sha256Digest>,
    /// Digest of its block index.
    index: Option<Sha256Digest>,
}

/// Where a run finds things.
pub(super) struct Place<'a> {
    pub(super) rig: &'a Rig,
    /// Address of the directory with the artifacts, with a slash at its end.
    pub(super) base: &'a str,
    /// The directory of the artifacts.
    pub(super) artifacts: &'a Path,
    /// A directory for what the updater keeps, empty before the first run.
    pub(super) state: &'a Path,
    /// `ctl`, built for release.
    pub(super) ctl: &'a Path,
    /// What both slots hold, if they hold a release.
    pub(super) old: Option<&'a Image>,
}

impl Contender {
    pub(super) const ALL: [Self; 8] = [
        Self::OursIndexed,
        Self::OursFramed,
        Self::OursWhole,
        Self::Pipe,
        Self::Shell(Hasher::OpenSsl),
        Self::Shell(Hasher::Sha256sum),
        Self::Rauc,
        Self::Casync,
    ];

    /// Short, for `--only` and file names.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::OursIndexed => "ours-indexed",
            Self::OursFramed => "ours-framed",
            Self::OursWhole => "ours-whole",
            Self::Pipe => "pipe",
            Self::Shell(Hasher::OpenSsl) => "shell-openssl",
            Self::Shell(Hasher::Sha256sum) => "shell-sha256sum",
            Self::Rauc => "rauc",
            Self::Casync => "casync",
        }
    }

    /// For people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::OursIndexed => "ours, indexed",
            Self::OursFramed => "ours, framed artifact",
            Self::OursWhole => "ours, stock artifact",
            Self::Pipe => "`curl \\| zstd -dc \\| dd bs=1M conv=fsync`",
            Self::Shell(Hasher::OpenSsl) => "shell, verified (openssl)",
            Self::Shell(Hasher::Sha256sum) => "shell, verified (sha256sum)",
            Self::Rauc => "RAUC, local bundle",
            Self::Casync => "casync",
        }
    }

    /// What a reader must know of its figures.
    pub(super) fn note(self) -> &'static str {
        match self {
            Self::OursIndexed => {
                "`ctl flash --index`: takes blocks from both slots, fetches the frames that are missing, checks each \
                 before it is written, writes with O_DIRECT, reads back. The index is part of what is fetched. The \
                 artifact is made as `ctl image build --after` makes it. Where the slots hold a release, its data \
                 directory has what a node that was upgraded to it by an index has: the index of the booted slot."
            }
            Self::OursFramed => {
                "The same of the artifact that the index is of, read whole: independent frames, which are expanded \
                 in parallel."
            }
            Self::OursWhole => {
                "`ctl flash --checksum --size` of a single zstd frame: checks the artifact, writes with O_DIRECT, \
                 reads back."
            }
            Self::Pipe => "Verifies nothing. Writes through the page cache.",
            Self::Shell(Hasher::OpenSsl) => {
                "The guarantees of ours in shell: hashes the artifact while it streams, writes with O_DIRECT, reads \
                 back with O_DIRECT, hashes that."
            }
            Self::Shell(Hasher::Sha256sum) => "The same with coreutils' `sha256sum`.",
            Self::Rauc => {
                "`curl` of the bundle (squashfs with zstd, so that decoding is not what is measured), then `rauc \
                 install` with `adaptive=block-hash-index` and the indexes of both slots in its data directory. \
                 The bundle is format `plain`: `verity` and streaming need device-mapper and NBD, which not every \
                 kernel has. Reads nothing back. Writes through the page cache."
            }
            Self::Casync => {
                "`casync extract --seed` over HTTP from a chunk store, then `sync`. Checks chunks as they come, \
                 reads nothing back. Writes through the page cache."
            }
        }
    }

    /// How much a run read back past the page cache and found right, in bytes: ours say so themselves,
    /// and the script compares the digest of all of it.
    pub(super) fn verified(self, log: &str, image: &Image) -> Result<u64> {
        match self {
            Self::OursIndexed | Self::OursFramed | Self::OursWhole => {
                let said = log.find('{').and_then(|start| log.get(start..)).unwrap_or_default();
                let said: serde_json::Value = serde_json::from_str(said).context("ctl says no JSON")?;
                said.get("bytesVerified").and_then(serde_json::Value::as_u64).context("ctl verified nothing")
            }
            Self::Shell(_) => Ok(image.bytes),
            Self::Pipe | Self::Rauc | Self::Casync => Ok(0),
        }
    }

    /// What must be installed.
    pub(super) fn programs(self) -> Vec<Program> {
        let curl = Program { name: "curl", package: "curl" };
        let zstd = Program { name: "zstd", package: "zstd" };
        match self {
            Self::OursIndexed | Self::OursFramed => vec![],
            Self::OursWhole => vec![zstd],
            Self::Pipe | Self::Shell(Hasher::Sha256sum) => vec![curl, zstd],
            Self::Shell(Hasher::OpenSsl) => {
                vec![curl, zstd, Program { name: "openssl", package: "openssl" }]
            }
            Self::Rauc => rauc::PROGRAMS.into_iter().chain([curl]).collect(),
            Self::Casync => vec![casync::CASYNC],
        }
    }

    /// Makes what it fetches of `image`, next to the image, unless that was done before. `old` is the
    /// release before it, which artifacts of ours are made after.
    pub(super) async fn release(self, image: &Image, old: &Image) -> Result<Release> {
        let artifact = match self {
            Self::OursIndexed | Self::OursFramed => framed(image, Some(old)).await?,
            Self::OursWhole | Self::Pipe | Self::Shell(_) => stock(image).await?,
            Self::Rauc => rauc::bundle(image).await?,
            Self::Casync => casync::index(image).await?,
        };
        let digest = match self {
            Self::OursIndexed | Self::OursFramed | Self::OursWhole | Self::Shell(_) => {
                Some(digest::of_file(&artifact)?)
            }
            Self::Pipe | Self::Rauc | Self::Casync => None,
        };
        let index = (self == Self::OursIndexed).then(|| digest::of_file(&index_of(image))).transpose()?;
        Ok(Release { image: image.clone(), artifact, digest, index })
    }

    /// Makes the index of what the slots hold, for those who keep one.
    pub(super) async fn know(self, old: &Image) -> Result<()> {
        match self {
            Self::OursIndexed => framed(old, None).await.map(drop),
            Self::Rauc => rauc::bundle(old).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Everything that it may fetch.
    pub(super) fn served(self, release: &Release) -> Result<Vec<PathBuf>> {
        match self {
            Self::Casync => casync::served(release),
            Self::OursIndexed => Ok(vec![release.artifact.clone(), index_of(&release.image)]),
            _ => Ok(vec![release.artifact.clone()]),
        }
    }

    /// Prepares its state before the first run of a case.
    pub(super) async fn prepare(self, place: &Place<'_>) -> Result<()> {
        match self {
            Self::Rauc => rauc::prepare(place).await,
            Self::OursIndexed => keep_index(place).await,
            _ => Ok(()),
        }
    }

    /// The commands, for `bash -euo pipefail`.
    pub(super) fn script(self) -> String {
        match self {
            Self::OursIndexed => {
                format!("{OURS} --index=\"$INDEX_URL\" --index-checksum=\"sha256:$INDEX_SHA256\"")
            }
            Self::OursFramed | Self::OursWhole => OURS.to_owned(),
            Self::Pipe => {
                "curl -sSf \"$URL\" | zstd -dcq | dd of=\"$TARGET\" bs=1M conv=fsync status=none".to_owned()
            }
            Self::Shell(hasher) => verified(hasher),
            Self::Rauc => rauc::SCRIPT.to_owned(),
            Self::Casync => casync::SCRIPT.to_owned(),
        }
    }

    /// The variables of its script.
    pub(super) fn variables(release: &Release, place: &Place<'_>) -> Vec<(&'static str, String)> {
        let url = |path: &Path| format!("{}{}", place.base, path.file_name().unwrap_or_default().display());
        let hex = |digest: Option<Sha256Digest>| digest.map_or(String::new(), |digest| digest.hex());
        let shown = |path: &Path| path.display().to_string();
        vec![
            ("URL", url(&release.artifact)),
            ("INDEX_URL", url(&index_of(&release.image))),
            ("INDEX_SHA256", hex(release.index)),
            ("BASE", place.base.to_owned()),
            ("ARTIFACT_SHA256", hex(release.digest)),
            ("IMAGE_SHA256", release.image.digest.hex()),
            ("IMAGE_BYTES", release.image.bytes.to_string()),
            ("TARGET", shown(place.rig.target())),
            ("SOURCE", shown(place.rig.source())),
            ("DISK", shown(place.rig.disk())),
            ("HOST", shown(&place.rig.host)),
            ("STATE", shown(place.state)),
            ("CTL", shown(place.ctl)),
        ]
    }
}

/// What all of ours begin with. There is no loader to be told, and a data directory only where one was
/// prepared.
const OURS: &str = r#"exec "$CTL" flash --slot=B --host-root="$HOST" --disk="$DISK" --data-dir="$STATE/data" \
    --checksum="sha256:$ARTIFACT_SHA256" --size="$IMAGE_BYTES" --output=json "$URL""#;

/// The script that gives the guarantees of ours.
fn verified(hasher: Hasher) -> String {
    let sum = match hasher {
        Hasher::Sha256sum => "sha256sum",
        Hasher::OpenSsl => "openssl dgst -sha256 -r",
    };
    format!(
        r#"
rm -f "$STATE/pipe"
mkfifo "$STATE/pipe"
{sum} < "$STATE/pipe" > "$STATE/artifact" &
curl -sSf "$URL" | tee "$STATE/pipe" | zstd -dcq |
    dd of="$TARGET" bs=4M iflag=fullblock oflag=direct conv=fsync status=none
wait $!
dd if="$TARGET" bs=4M iflag=direct,count_bytes count="$IMAGE_BYTES" status=none | {sum} > "$STATE/image"
[ "$(cut -c1-64 "$STATE/artifact")" = "$ARTIFACT_SHA256" ]
[ "$(cut -c1-64 "$STATE/image")" = "$IMAGE_SHA256" ]
"#
    )
}

/// Makes the data directory of a node that was upgraded by an index to the release that it runs.
async fn keep_index(place: &Place<'_>) -> Result<()> {
    let directory = place.state.join("data");
    fs::create_dir_all(&directory)?;
    let Some(old) = place.old else { return Ok(()) };
    framed(old, None).await?;
    let (index, kept) = (index_of(old), directory.join("slot-a.index"));
    fs::copy(&index, kept).with_context(|| format!("cannot copy {}", index.display()))?;
    Ok(())
}

/// One zstd frame, as anybody makes it.
pub(super) async fn stock(image: &Image) -> Result<PathBuf> {
    made(image, "ext4.zst", |part| {
        let mut command = Command::new("zstd");
        command.args(["-3", "-q", "-f", "-o"]).arg(part).arg(&image.path);
        command
    })
    .await
}

/// Independent frames and their index, as `ctl image build` makes them, with `--after` if there is an
/// older release.
async fn framed(image: &Image, old: Option<&Image>) -> Result<PathBuf> {
    let artifact = image.path.with_extension("frames.zst");
    if artifact.exists() {
        return Ok(artifact);
    }
    eprintln!("making {}", artifact.display());
    let (from, before) = (image.path.clone(), old.map(|old| old.path.clone()));
    let (to, index_path) = (artifact.clone(), index_of(image));
    tokio::task::spawn_blocking(move || -> Result<()> {
        let part = to.with_extension("part");
        let mut known = KnownBlocks::default();
        if let Some(before) = before {
            known.add(&mut File::open(before)?)?;
        }
        let mut source = io::BufReader::new(File::open(from)?);
        let mut target = io::BufWriter::new(File::create(&part)?);
        let options = BuildOptions { frame_log: 20, ..BuildOptions::default() };
        let index = build_after(&known, &mut source, &mut target, options)?;
        target.into_inner()?.sync_all()?;
        fs::write(index_path, index.as_bytes())?;
        Ok(fs::rename(part, to)?)
    })
    .await??;
    Ok(artifact)
}

/// Where [`framed`] puts the index.
fn index_of(image: &Image) -> PathBuf {
    image.path.with_extension("frames.idx")
}

/// The file beside `image` with this extension; `command` makes it where it is told to, once.
pub(super) async fn made(
    image: &Image,
    extension: &str,
    command: impl FnOnce(&Path) -> Command,
) -> Result<PathBuf> {
    let path = image.path.with_extension(extension);
    if path.exists() {
        return Ok(path);
    }
    eprintln!("making {}", path.display());
    let directory = image.path.parent().unwrap_or(Path::new("."));
    // Some programs go by the end of the name.
    let part = directory.join(format!("part.{extension}"));
    let _ = fs::remove_file(&part);
    tool::run("making an artifact", command(&part), directory).await?;
    ensure!(part.exists(), "{} was not made", part.display());
    fs::rename(&part, &path)?;
    Ok(path)
}
