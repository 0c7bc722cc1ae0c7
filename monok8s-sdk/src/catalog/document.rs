//! The catalog document: what a parsed one holds, and what makes a document no catalog at all.

use std::collections::BTreeMap;

use super::image::{Arch, CatalogImage, Deprecation, Problem};
use super::{lint::Finding, read, yaml};
use crate::digest::Sha256Digest;
use crate::version::OsVersion;

/// How much a catalog may hold. The defaults are far above what a product with years of releases
/// needs, and low enough for a node with little memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the document. Default 1 MiB, as much as a `ConfigMap` can hold.
    pub bytes: usize,
    /// Entries of `images`. Default 2048.
    pub images: usize,
    /// Entries of `channels`, `stable` included. Default 64.
    pub channels: usize,
    /// Entries of `blocked`. Default 1024.
    pub blocked: usize,
    /// Mirrors of one image. Default 7, which with `url` makes eight places.
    pub mirrors: usize,
    /// Bytes of one text: a URL, a reason. Default 1024.
    pub text: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 20, images: 2048, channels: 64, blocked: 1024, mirrors: 7, text: 1024 }
    }
}

/// A catalog that was read, with the mistakes it may contain.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub(super) digest: Sha256Digest,
    pub(super) entries: Vec<Entry>,
    pub(super) channels: BTreeMap<String, Channel>,
    pub(super) blocked: BTreeMap<OsVersion, Block>,
    pub(super) notes: Vec<Finding>,
}

/// One item of `images`: an image, or why it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Line the item starts on, counted from 1.
    pub line: usize,
    /// How to call the entry: its version as written, else its position, such as `images[3]`.
    pub name: String,
    /// Its version, where that can be read, also if the rest cannot.
    pub version: Option<OsVersion>,
    /// Its architecture; `None` is every one.
    pub arch: Option<Arch>,
    /// Set if the image should be left.
    pub deprecated: Option<Deprecation>,
    /// The image, or every mistake that makes it unusable (at least one).
    pub image: Result<CatalogImage, Vec<Problem>>,
}

/// A channel: a name that stands for a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Line it is defined on, counted from 1.
    pub line: usize,
    /// The version it points to, or why that cannot be read.
    pub target: Result<OsVersion, Problem>,
}

/// A version that must not be installed any more. A node that runs it may leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Line it is blocked on, counted from 1.
    pub line: usize,
    /// Why, for people.
    pub reason: Option<String>,
    /// Where to read more.
    pub url: Option<String>,
}

/// Why a document is not a catalog.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// More bytes than [`Limits::bytes`].
    #[error(
        "the catalog has {bytes} bytes, more than the {limit} that are read; remove images that nobody installs any more"
    )]
    TooLarge {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More items than a limit allows.
    #[error("line {line}: the catalog has more than {limit} {what}; remove some")]
    TooMany {
        /// Line where the limit was passed.
        line: usize,
        /// What there is too much of, such as `images`.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Not UTF-8 text.
    #[error("line {line}: the catalog is not UTF-8 text; is it compressed, or an image?")]
    NotUtf8 {
        /// Line of the first byte that is not text.
        line: usize,
    },
    /// Not YAML.
    #[error("line {line}, column {column}: the catalog is not valid YAML: {problem}")]
    Syntax {
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },
    /// More than one YAML document.
    #[error("line {line}: a second YAML document starts here; a catalog is one document")]
    SeveralDocuments {
        /// Line the second one starts on.
        line: usize,
    },
    /// A YAML alias (`*name`).
    #[error("line {line}: YAML aliases are not read in a catalog; write the value out")]
    Alias {
        /// Line of the alias.
        line: usize,
    },
    /// A key that occurs twice in one mapping.
    #[error("line {line}: {key:?} is given a second time (first on line {first_line}); remove one")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Line of the second one.
        line: usize,
        /// Line of the first one.
        first_line: usize,
    },
    /// YAML, but not a catalog.
    #[error("line {line}: this is not a catalog: {problem}")]
    NotACatalog {
        /// Line, counted from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// Two entries for one version and architecture.
    #[error(
        "line {line}: {version} for {} is listed a second time (first on line {first_line}); remove one",
        arch.as_ref().map_or("every architecture", Arch::as_str)
    )]
    DuplicateImage {
        /// The version.
        version: OsVersion,
        /// The architecture; `None` is every one.
        arch: Option<Arch>,
        /// Line of the second entry.
        line: usize,
        /// Line of the first entry.
        first_line: usize,
    },
    /// An item of `blocked` that cannot be read. Passing over it would let through what someone
    /// meant to stop.
    #[error("line {line}: what is blocked here cannot be read: {problem}")]
    UnreadableBlock {
        /// Line of the item.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl Catalog {
    /// Reads a catalog document.
    ///
    /// Mistakes in one image or channel do not fail the document: see [`Entry::image`],
    /// [`Channel::target`] and [`lint`](super::lint()).
    ///
    /// # Errors
    ///
    /// If the document as a whole cannot be trusted to mean one thing: see [`CatalogError`].
    ///
    /// ```
    /// use monok8s_sdk::catalog::{Catalog, Limits};
    ///
    /// let text = "
    /// stable: v1.35.1
    /// images:
    ///   - version: v1.35.1
    ///     url: https://example.com/rootfs.ext4.zst
    ///     checksum: sha256:99af82a263deca44ad91d21d684f0fa944d5d0456a1da540f1c644f8aa59b14b
    /// ";
    /// let catalog = Catalog::parse(text, &Limits::default())?;
    /// let stable = catalog.resolve("stable", None)?;
    /// assert_eq!(stable.version.to_string(), "v1.35.1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(document: impl AsRef<[u8]>, limits: &Limits) -> Result<Self, CatalogError> {
        let bytes = document.as_ref();
        if bytes.len() > limits.bytes {
            return Err(CatalogError::TooLarge { bytes: bytes.len(), limit: limits.bytes });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.iter().take(error.valid_up_to());
            CatalogError::NotUtf8 { line: 1 + before.filter(|byte| **byte == b'\n').count() }
        })?;
        read::catalog(&yaml::parse(text)?, Sha256Digest::of(bytes), limits)
    }

    /// SHA-256 of the document, byte for byte.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }

    /// Every item of `images`, in the order of the document.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The channels by name.
    #[must_use]
    pub fn channels(&self) -> &BTreeMap<String, Channel> {
        &self.channels
    }

    /// What is blocked. An image revision is a version of its own: blocking `v1.35.3` leaves
    /// `v1.35.3+r2` alone.
    #[must_use]
    pub fn blocked(&self) -> &BTreeMap<OsVersion, Block> {
        &self.blocked
    }

    /// The images that may be installed, usable and not blocked, oldest first.
    #[must_use]
    pub fn candidates(&self) -> Vec<CatalogImage> {
        let usable = self.entries.iter().filter_map(|entry| entry.image.as_ref().ok());
        let mut images: Vec<_> =
            usable.filter(|image| !self.blocked.contains_key(&image.version)).cloned().collect();
        images.sort_by(|a, b| (&a.version, &a.arch).cmp(&(&b.version, &b.arch)));
        images
    }
}
