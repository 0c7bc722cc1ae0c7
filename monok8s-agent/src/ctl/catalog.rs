//! `ctl catalog`: what a catalog says, before a cluster is told to believe it.

// Doc comments here are the help text, where backticks would be shown.
#![allow(clippy::doc_markdown)]

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use monok8s_sdk::api::DowngradePolicy;
use monok8s_sdk::catalog::{Arch, Catalog, CatalogImage, Limits, Severity, lint, path};
use monok8s_sdk::version::OsVersion;
use serde::Serialize;

use super::output::Format;
use super::{Outcome, output};

/// What to do with a catalog.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List everything that is wrong with a catalog; exit with 1 if something cannot be used.
    Lint(Lint),
    /// Say what a version or channel stands for, and the path to it.
    Resolve(Resolve),
}

#[derive(Debug, Args)]
pub(super) struct Lint {
    /// The catalog, or - for standard input.
    file: PathBuf,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// The catalog, or - for standard input.
    file: PathBuf,

    /// A version such as v1.35.3, or a channel such as stable.
    version: String,

    /// Architecture of the node, as in its label kubernetes.io/arch [default: any, as long as the image is for all].
    #[arg(long)]
    arch: Option<Arch>,

    /// Version the node runs: the images on the way are listed too.
    #[arg(long, value_name = "VERSION")]
    from: Option<OsVersion>,

    /// Let the path lead to an older version.
    #[arg(long, requires = "from")]
    allow_downgrade: bool,

    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What `resolve` found.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    version: OsVersion,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deprecated: Option<String>,
    image: CatalogImage,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Vec<CatalogImage>>,
}

impl Command {
    pub(super) fn run(self) -> Result<Outcome> {
        match self {
            Self::Lint(lint) => lint.run(),
            Self::Resolve(resolve) => resolve.run(),
        }
    }
}

impl Lint {
    fn run(self) -> Result<Outcome> {
        let findings = lint(&read(&self.file)?);
        self.output.print(&findings, || output::lines(&findings))?;
        let errors = findings.iter().any(|finding| finding.severity == Severity::Error);
        Ok(if errors { Outcome::Bad } else { Outcome::Good })
    }
}

impl Resolve {
    fn run(self) -> Result<Outcome> {
        let catalog = read(&self.file)?;
        let arch = self.arch.as_ref();
        let resolved = catalog.resolve(&self.version, arch)?;
        let policy = if self.allow_downgrade { DowngradePolicy::Allow } else { DowngradePolicy::Refuse };
        let hops = self
            .from
            .as_ref()
            .map(|from| path(from, &resolved.version, &catalog.candidates(), arch, policy))
            .transpose()?;
        let deprecated = resolved.deprecated.map(|note| {
            let message = note.message.unwrap_or_else(|| "deprecated".to_owned());
            note.replacement.map_or(message.clone(), |version| format!("{message}; use {version}"))
        });
        let found = Found {
            version: resolved.version,
            channel: resolved.channel,
            deprecated,
            image: resolved.image,
            path: hops,
        };
        self.output.print(&found, || found.text())?;
        Ok(Outcome::Good)
    }
}

impl Found {
    fn text(&self) -> String {
        let Self { version, channel, deprecated, image, path } = self;
        let mut facts = vec![("Version:", version.to_string())];
        facts.extend(channel.clone().map(|channel| ("Channel:", channel)));
        facts.extend(deprecated.clone().map(|note| ("Deprecated:", note)));
        facts.extend(image.urls.iter().map(|url| ("URL:", url.clone())));
        facts.push(("Checksum:", image.checksum.to_string()));
        facts.extend(image.size.map(|size| ("Size:", format!("{size} bytes"))));
        let hops: Option<Vec<_>> =
            path.as_ref().map(|hops| hops.iter().map(|hop| hop.version.to_string()).collect());
        facts.extend(hops.map(|hops| {
            ("Path:", if hops.is_empty() { "already there".to_owned() } else { hops.join(", then ") })
        }));
        let rows: Vec<_> = facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        output::table(&rows)
    }
}

/// Reads a catalog, and never more of a file than a catalog may have.
fn read(file: &Path) -> Result<Catalog> {
    let limits = Limits::default();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).with_context(|| format!("cannot open {}", file.display()))?)
    };
    let mut document = Vec::new();
    let most = u64::try_from(limits.bytes)?.saturating_add(1);
    source
        .take(most)
        .read_to_end(&mut document)
        .with_context(|| format!("cannot read {}", file.display()))?;
    Catalog::parse(&document, &limits).with_context(|| format!("{} is not a usable catalog", file.display()))
}
