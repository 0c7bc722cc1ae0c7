//! One OS image of a catalog.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api::{ImageRef, IndexRef};
use crate::digest::Sha256Digest;
use crate::version::OsVersion;

/// A processor architecture, named as the node label `kubernetes.io/arch` names it: `amd64`.
///
/// The kernel's names `x86_64` and `aarch64` are read as `amd64` and `arm64`.
///
/// ```
/// use monok8s_sdk::catalog::Arch;
///
/// assert_eq!("aarch64".parse::<Arch>()?.to_string(), "arm64");
/// # Ok::<(), monok8s_sdk::catalog::ArchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Arch(String);

/// Why a text is not an architecture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchError {
    /// Empty, longer than 16 bytes, or with something else than lower-case letters, digits and `_`.
    #[error(
        "{text:?} is not an architecture; write it as the node label kubernetes.io/arch does, like amd64"
    )]
    Malformed {
        /// The text as given, shortened if it is overlong.
        text: String,
    },
}

/// Why an image in an API object is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageRefError {
    /// Its architecture cannot be read.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// It names no place to fetch it from.
    #[error("the image of {version} has no URL; it has to have one")]
    NoUrl {
        /// The image's version.
        version: OsVersion,
    },
    /// Its size is negative or zero.
    #[error(
        "the image of {version} has a size that is not positive; leave it out, or give the expanded bytes"
    )]
    NoSize {
        /// The image's version.
        version: OsVersion,
    },
}

/// An image that can be installed: everything a node needs to fetch and check it.
///
/// Serializes with the field names of the API objects that carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CatalogImage {
    /// The version that a node runs after it booted this image.
    pub version: OsVersion,
    /// The architecture it is for; `None` is every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<Arch>,
    /// Where the artifact is served: `url` first, then the mirrors. Never empty.
    pub urls: Vec<String>,
    /// SHA-256 of the artifact as served (compressed).
    pub checksum: Sha256Digest,
    /// Size of the expanded image in bytes; at most `i64::MAX`, which is what the API can carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// SHA-256 of the expanded image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_checksum: Option<Sha256Digest>,
    /// The block index of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRef>,
    /// The oldest version that may install this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<OsVersion>,
}

/// A note that an image should be left, which does not keep anyone from installing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecation {
    /// Why.
    pub message: Option<String>,
    /// What to use instead.
    pub replacement: Option<OsVersion>,
}

/// Something wrong in a document, and the line (from 1) it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the document, counted from 1.
    pub line: usize,
    /// What is wrong and what belongs there.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl CatalogImage {
    /// Whether a node of this architecture can run the image. Of a node whose architecture is not
    /// known (`None`) that is only certain for images for every architecture.
    #[must_use]
    pub fn fits(&self, arch: Option<&Arch>) -> bool {
        self.arch.is_none() || self.arch.as_ref() == arch
    }
}

/// What the API carries of an image.
impl From<CatalogImage> for ImageRef {
    fn from(image: CatalogImage) -> Self {
        let CatalogImage { version, arch, urls, checksum, size, image_checksum, index, min_from } = image;
        // A catalog's sizes fit; see [`CatalogImage::size`].
        let size = size.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        Self { version, arch: arch.map(String::from), urls, checksum, size, image_checksum, index, min_from }
    }
}

/// Back from the API; fails only on an object that was not written by us.
impl TryFrom<ImageRef> for CatalogImage {
    type Error = ImageRefError;

    fn try_from(image: ImageRef) -> Result<Self, ImageRefError> {
        let ImageRef { version, arch, urls, checksum, size, image_checksum, index, min_from } = image;
        if urls.is_empty() {
            return Err(ImageRefError::NoUrl { version });
        }
        let arch = arch.map(Arch::try_from).transpose()?;
        let size = match size.map(u64::try_from) {
            None => None,
            Some(Ok(bytes)) if bytes > 0 => Some(bytes),
            Some(_) => return Err(ImageRefError::NoSize { version }),
        };
        Ok(Self { version, arch, urls, checksum, size, image_checksum, index, min_from })
    }
}

impl Arch {
    /// The name, such as `amd64`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Arch {
    type Err = ArchError;

    fn from_str(text: &str) -> Result<Self, ArchError> {
        let known = match text {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=16).contains(&known.len()) && known.bytes().all(plain) {
            return Ok(Self(known.to_owned()));
        }
        Err(ArchError::Malformed { text: text.chars().take(32).collect() })
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Arch {
    type Error = ArchError;

    fn try_from(text: String) -> Result<Self, ArchError> {
        text.parse()
    }
}

impl From<Arch> for String {
    fn from(arch: Arch) -> Self {
        arch.0
    }
}
