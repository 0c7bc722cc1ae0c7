//! `ctl image`: artifacts that nodes can fetch in part, made and looked at where images are published.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressBarIter, ProgressFinish};
use monok8s_sdk::api::IndexRef;
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::image::{
    BuildOptions, Index, KnownBlocks, MAX_INDEX_BYTES, Outline, build_after, index_artifact, outline,
    verify_artifact,
};
use monok8s_sdk::version::OsVersion;
use serde::Serialize;

use super::flash::style;
use super::output::Format;
use super::part::{Existing, Part, directory};
use super::{Outcome, output};

const INDEX_MAGIC: &[u8] = b"MK8SIDX\n";

/// What to do with images and artifacts.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compress an image so that nodes can fetch it in part, and print its entry for a catalog.
    Build(Build),
    /// Make the index of an artifact that exists, and print its entry for a catalog.
    Index(MakeIndex),
    /// Check all of an artifact against its index; exit with 1 at the first thing that is wrong.
    Verify(Verify),
    /// Say what an artifact or an index is.
    Inspect(Inspect),
}

/// Writes ROOTFS.ext4.zst and ROOTFS.ext4.idx. Any zstd restores the artifact; nodes that know the index
/// fetch only what they do not have.
#[derive(Debug, Args)]
pub(super) struct Build {
    /// The image, such as rootfs.ext4.
    image: PathBuf,

    /// Image of an earlier release, also several times: what is new since gets frames of its own, so that
    /// nodes with that release fetch it and little else.
    #[arg(long, value_name = "IMAGE")]
    after: Vec<PathBuf>,

    /// Level of zstd, 1 to 22; with --after, what is new is compressed at 19 at least.
    #[arg(long, default_value_t = BuildOptions::default().level, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,

    /// How much of the image a frame holds at most, as a power of two: 16 (64 KiB) to 20 (1 MiB)
    /// [default: 20 with --after, else 18].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(16..=20))]
    frame_log: Option<u8>,

    #[command(flatten)]
    publish: Publish,
}

/// Writes NAME.idx beside NAME.zst. Takes artifacts in independent frames of whole 4 KiB blocks, at most 1 MiB each.
#[derive(Debug, Args)]
pub(super) struct MakeIndex {
    /// The artifact.
    artifact: PathBuf,

    #[command(flatten)]
    publish: Publish,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The artifact.
    artifact: PathBuf,

    /// Its index.
    #[arg(long, value_name = "FILE")]
    index: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// An artifact or an index.
    file: PathBuf,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Where the results go, and how the catalog will call them.
#[derive(Debug, Args)]
struct Publish {
    /// Directory for the results [default: that of the input].
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,

    /// Replace results that exist.
    #[arg(long)]
    force: bool,

    /// Where the results will be served: the entry's URLs begin with it.
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,

    /// Version of the image, for the entry.
    #[arg(long, value_name = "VERSION")]
    version: Option<OsVersion>,

    /// The form of the entry.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// An entry of a catalog.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    version: String,
    url: String,
    checksum: Sha256Digest,
    size: u64,
    image_checksum: Sha256Digest,
    index: IndexRef,
}

/// What a file is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_checksum: Option<Sha256Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_bytes: Option<u64>,
    artifact_bytes: u64,
    checksum: Sha256Digest,
    frames: usize,
    /// What the largest frame expands to.
    #[serde(skip_serializing_if = "Option::is_none")]
    frame_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seek_table_frames: Option<usize>,
    /// Of the index itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    index_checksum: Option<Sha256Digest>,
}

impl Command {
    pub(super) fn run(self) -> Result<Outcome> {
        match self {
            Self::Build(build) => build.run(),
            Self::Index(index) => index.run(),
            Self::Verify(verify) => verify.run(),
            Self::Inspect(inspect) => inspect.run(),
        }
    }
}

impl Build {
    fn run(self) -> Result<Outcome> {
        let name = self.image.file_name().with_context(|| format!("{} is no file", self.image.display()))?;
        let [artifact, index_file] = ["zst", "idx"].map(|end| self.publish.path(&self.image, name, end));
        let mut image = open(&self.image, "compressing")?;
        let (mut into, index_into) = (self.publish.begin(&artifact)?, self.publish.begin(&index_file)?);
        let mut known = KnownBlocks::default();
        for earlier in &self.after {
            known.add(&mut open(earlier, "reading")?).with_context(|| earlier.display().to_string())?;
        }
        // Where what is new has frames of its own, large ones cost nothing.
        let default = if self.after.is_empty() { BuildOptions::default().frame_log } else { 20 };
        let options = BuildOptions { level: self.level, frame_log: self.frame_log.unwrap_or(default) };
        let index = build_after(&known, &mut image, &mut into, options)
            .with_context(|| format!("cannot make an artifact of {}", self.image.display()))?;
        into.finish()?;
        self.publish.finish(index_into, &index, &artifact, &index_file)
    }
}

impl MakeIndex {
    fn run(self) -> Result<Outcome> {
        let artifact = &self.artifact;
        let name = artifact.file_stem().with_context(|| format!("{} is no file", artifact.display()))?;
        ensure!(
            artifact.extension() == Some(OsStr::new("zst")),
            "the artifact is called {}: its name has to end in .zst, so that the index can stand beside it",
            artifact.display()
        );
        let index_file = self.publish.path(artifact, name, "idx");
        let mut bytes = open(artifact, "reading")?;
        let into = self.publish.begin(&index_file)?;
        let index = index_artifact(&mut bytes).with_context(|| artifact.display().to_string())?;
        self.publish.finish(into, &index, artifact, &index_file)
    }
}

impl Verify {
    fn run(self) -> Result<Outcome> {
        let raw = read_index(File::open(&self.index).with_context(|| self.index.display().to_string())?)?;
        let index = Index::parse(raw).with_context(|| self.index.display().to_string())?;
        verify_artifact(&mut open(&self.artifact, "checking")?, &index)
            .with_context(|| self.artifact.display().to_string())?;
        output::print(&format!(
            "{}: {} frames, {} for an image of {}; all of it is what {} says\n",
            self.artifact.display(),
            index.frame_count(),
            HumanBytes(index.artifact_length()),
            HumanBytes(index.image_length()),
            self.index.display()
        ))?;
        Ok(Outcome::Good)
    }
}

impl Inspect {
    fn run(self) -> Result<Outcome> {
        let name = || self.file.display().to_string();
        let mut file = open(&self.file, "reading")?;
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(INDEX_MAGIC.len() as u64).read_to_end(&mut start).with_context(name)?;
        file.rewind().with_context(name)?;
        let facts = if start == INDEX_MAGIC {
            Facts::of_index(&Index::parse(read_index(file)?).with_context(name)?)
        } else {
            Facts::of_artifact(&outline(&mut file).with_context(name)?)
        };
        self.output.print(&facts, || facts.text())?;
        Ok(Outcome::Good)
    }
}

impl Publish {
    /// Where a result goes.
    fn path(&self, input: &Path, name: &OsStr, end: &str) -> PathBuf {
        let mut name = name.to_owned();
        name.push(".");
        name.push(end);
        self.out.as_deref().unwrap_or(directory(input)).join(name)
    }

    fn begin(&self, path: &Path) -> Result<Part> {
        Part::begin(path, if self.force { Existing::Replace } else { Existing::Keep })
    }

    /// Writes the index and prints the entry.
    fn finish(&self, mut into: Part, index: &Index, artifact: &Path, index_file: &Path) -> Result<Outcome> {
        into.write_all(index.as_bytes()).with_context(|| format!("cannot write {}", index_file.display()))?;
        into.finish()?;
        let url = |path: &Path| {
            let base = self.base_url.as_deref().unwrap_or("URL").trim_end_matches('/');
            format!("{base}/{}", path.file_name().unwrap_or_default().to_string_lossy())
        };
        let entry = Entry {
            version: self.version.as_ref().map_or("VERSION".to_owned(), ToString::to_string),
            url: url(artifact),
            checksum: index.artifact(),
            size: index.image_length(),
            image_checksum: index.image(),
            index: IndexRef { url: url(index_file), checksum: Sha256Digest::of(index.as_bytes()) },
        };
        match self.output {
            // An item, as it stands under `images`.
            Format::Text | Format::Yaml => output::print(&serde_yaml::to_string(&[entry])?)?,
            Format::Json => self.output.print(&entry, String::new)?,
        }
        Ok(Outcome::Good)
    }
}

impl Facts {
    fn of_index(index: &Index) -> Self {
        Self {
            kind: "index",
            image_bytes: Some(index.image_length()),
            image_checksum: Some(index.image()),
            zero_bytes: Some(index.zero_bytes()),
            artifact_bytes: index.artifact_length(),
            checksum: index.artifact(),
            frames: index.frame_count(),
            frame_bytes: Some(index.frame_size() as u64),
            seek_table_frames: None,
            index_checksum: Some(Sha256Digest::of(index.as_bytes())),
        }
    }

    fn of_artifact(outline: &Outline) -> Self {
        Self {
            kind: "artifact",
            image_bytes: outline.expanded,
            image_checksum: None,
            zero_bytes: None,
            artifact_bytes: outline.length,
            checksum: outline.digest,
            frames: outline.frames,
            frame_bytes: outline.largest_frame,
            seek_table_frames: outline.seek_table,
            index_checksum: None,
        }
    }

    fn text(&self) -> String {
        let bytes = |bytes: u64| format!("{bytes} bytes");
        let zeroes = self.zero_bytes.zip(self.image_bytes).map(|(zeroes, all)| {
            format!("{zeroes} bytes, {} % of the image", zeroes.saturating_mul(100) / all.max(1))
        });
        let table = (self.kind == "artifact")
            .then(|| self.seek_table_frames.map_or("none".to_owned(), |frames| format!("{frames} frames")));
        let rows = [
            ("Kind:", Some(self.kind.to_owned())),
            ("Image:", self.image_bytes.map(bytes)),
            ("Image checksum:", self.image_checksum.map(|digest| digest.to_string())),
            ("Zeroes:", zeroes),
            ("Artifact:", Some(bytes(self.artifact_bytes))),
            ("Checksum:", Some(self.checksum.to_string())),
            ("Frames:", Some(self.frames.to_string())),
            ("Largest frame:", self.frame_bytes.map(bytes)),
            ("Seek table:", table),
            ("Index checksum:", self.index_checksum.map(|digest| digest.to_string())),
        ];
        let rows: Vec<_> =
            rows.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), value?])).collect();
        output::table(&rows)
    }
}

/// Reads an index, and never more than an index may have.
fn read_index(file: impl Read) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut raw).context("cannot read the index")?;
    Ok(raw)
}

/// Opens a file to be read from its first byte to its last, which shows on a terminal.
fn open(path: &Path, verb: &'static str) -> Result<ProgressBarIter<File>> {
    let named = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(named)?;
    let metadata = file.metadata().with_context(named)?;
    ensure!(metadata.is_file(), "{} is not a file", path.display());
    let bar =
        if io::stderr().is_terminal() { ProgressBar::new(metadata.len()) } else { ProgressBar::hidden() };
    bar.set_style(style(true));
    bar.set_message(verb);
    Ok(bar.with_finish(ProgressFinish::AndClear).wrap_read(file))
}
