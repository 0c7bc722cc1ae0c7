//! What a version or channel stands for in a catalog.

use std::fmt::Write as _;

use super::document::{Catalog, Entry};
use super::image::{Arch, CatalogImage, Deprecation, Problem};
use crate::api::UpgradeReason;
use crate::version::{OsVersion, VersionError};

/// What was asked for, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The version to install.
    pub version: OsVersion,
    /// The channel that led to it, if one was asked for.
    pub channel: Option<String>,
    /// The image of that version for the architecture that was asked for.
    pub image: CatalogImage,
    /// Set if the image should be left.
    pub deprecated: Option<Deprecation>,
}

/// A version near the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// The version; listed and not blocked.
    pub version: OsVersion,
    /// Why its entry is unusable, if it is.
    pub problem: Option<Problem>,
}

/// Why a version or channel cannot be installed from a catalog.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Neither a channel nor a version, though it looks like one.
    #[error("{error}")]
    InvalidVersion {
        /// What is wrong with it.
        error: VersionError,
    },
    /// No entry has this version.
    #[error("{wanted} is not in the catalog{}", nearest_words(below.as_ref(), above.as_ref()))]
    VersionNotInCatalog {
        /// The version asked for.
        wanted: OsVersion,
        /// The newest one that is listed, not blocked, and older.
        below: Option<Nearest>,
        /// The oldest one that is listed, not blocked, and newer.
        above: Option<Nearest>,
    },
    /// The entry of this version has mistakes.
    #[error("{version} is in the catalog, but its entry cannot be used: {problem}")]
    ImageUnusable {
        /// The version asked for.
        version: OsVersion,
        /// The first mistake.
        problem: Problem,
    },
    /// The catalog says that this version must not be installed.
    #[error("{version} is blocked by the catalog{}", block_words(reason.as_deref(), url.as_deref()))]
    VersionBlocked {
        /// The version asked for.
        version: OsVersion,
        /// Why, if the catalog says.
        reason: Option<String>,
        /// Where to read more, if the catalog says.
        url: Option<String>,
    },
    /// The catalog has no such channel.
    #[error("the catalog has no channel {channel:?}; {}", channel_words(known))]
    UnknownChannel {
        /// The channel asked for.
        channel: String,
        /// The channels there are, in alphabetical order.
        known: Vec<String>,
    },
    /// The channel is there, but what it points to cannot be read.
    #[error("channel {channel} of the catalog cannot be used: {problem}")]
    ChannelUnusable {
        /// The channel asked for.
        channel: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The channel points to a version that cannot be installed.
    #[error("channel {channel} points to {version}: {why}")]
    ChannelTarget {
        /// The channel asked for.
        channel: String,
        /// The version it points to.
        version: OsVersion,
        /// Why that version cannot be installed.
        why: Box<ResolveError>,
    },
    /// There are images of this version, but none for the architecture.
    #[error("{version} has no image for {arch}, only for {}", list(available))]
    NoImageForArch {
        /// The version asked for.
        version: OsVersion,
        /// The architecture asked for.
        arch: Arch,
        /// The architectures there are usable images for.
        available: Vec<Arch>,
    },
}

impl ResolveError {
    /// The reason as conditions tell it.
    #[must_use]
    pub fn reason(&self) -> UpgradeReason {
        match self {
            Self::InvalidVersion { .. } => UpgradeReason::InvalidVersion,
            Self::VersionNotInCatalog { .. } => UpgradeReason::VersionNotInCatalog,
            Self::ImageUnusable { .. } => UpgradeReason::ImageUnusable,
            Self::VersionBlocked { .. } => UpgradeReason::VersionBlocked,
            Self::UnknownChannel { .. } => UpgradeReason::UnknownChannel,
            Self::ChannelUnusable { .. } => UpgradeReason::ChannelUnusable,
            Self::ChannelTarget { why, .. } => why.reason(),
            Self::NoImageForArch { .. } => UpgradeReason::NoImageForArch,
        }
    }

    /// The version that was meant, as far as that is known.
    #[must_use]
    pub fn version(&self) -> Option<&OsVersion> {
        match self {
            Self::InvalidVersion { .. } | Self::UnknownChannel { .. } | Self::ChannelUnusable { .. } => None,
            Self::VersionNotInCatalog { wanted: version, .. }
            | Self::ImageUnusable { version, .. }
            | Self::VersionBlocked { version, .. }
            | Self::ChannelTarget { version, .. }
            | Self::NoImageForArch { version, .. } => Some(version),
        }
    }
}

impl Catalog {
    /// What `wanted`, a version such as `v1.35.3` or a channel such as `stable`, stands for on a
    /// node of architecture `arch`. Where a version has an image for that architecture and one for
    /// every architecture, the former is taken. `None` takes any image of the version: a fleet
    /// with several architectures resolves the version once and images per node.
    ///
    /// # Errors
    ///
    /// If there is nothing to install: see [`ResolveError`].
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
    ///   - {version: v1.35.4, url: 'https://example.com/v1.35.4.img.zst', checksum: 'sha256:abc'}
    /// ";
    /// let catalog = Catalog::parse(text, &Limits::default())?;
    /// assert_eq!(catalog.resolve("stable", None)?.version.to_string(), "v1.35.1");
    ///
    /// let error = catalog.resolve("v1.35.3", None).unwrap_err();
    /// assert_eq!(error.reason().as_str(), "VersionNotInCatalog");
    /// assert_eq!(
    ///     error.to_string(),
    ///     "v1.35.3 is not in the catalog; the nearest are v1.35.1 and v1.35.4 (its entry is unusable)"
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resolve(&self, wanted: &str, arch: Option<&Arch>) -> Result<Resolution, ResolveError> {
        let looks_like_version =
            wanted.strip_prefix('v').unwrap_or(wanted).starts_with(|first: char| first.is_ascii_digit());
        match (wanted.parse(), self.channels.get(wanted)) {
            (Ok(version), _) => self.resolve_version(version, arch),
            (Err(error), None) if looks_like_version => Err(ResolveError::InvalidVersion { error }),
            (Err(_), _) => self.resolve_channel(wanted, arch),
        }
    }

    fn resolve_channel(&self, name: &str, arch: Option<&Arch>) -> Result<Resolution, ResolveError> {
        let channel = super::read::shorten(name, 64);
        let Some(found) = self.channels.get(name) else {
            let known = self.channels.keys().cloned().collect();
            return Err(ResolveError::UnknownChannel { channel, known });
        };
        let version = match &found.target {
            Ok(version) => version.clone(),
            Err(problem) => {
                return Err(ResolveError::ChannelUnusable { channel, problem: problem.clone() });
            }
        };
        match self.resolve_version(version.clone(), arch) {
            Ok(resolved) => Ok(Resolution { channel: Some(channel), ..resolved }),
            Err(why) => Err(ResolveError::ChannelTarget { channel, version, why: Box::new(why) }),
        }
    }

    fn resolve_version(&self, version: OsVersion, arch: Option<&Arch>) -> Result<Resolution, ResolveError> {
        if let Some(block) = self.blocked.get(&version) {
            let (reason, url) = (block.reason.clone(), block.url.clone());
            return Err(ResolveError::VersionBlocked { version, reason, url });
        }
        let listed: Vec<&Entry> =
            self.entries.iter().filter(|entry| entry.version.as_ref() == Some(&version)).collect();
        let fitting = listed.iter().filter_map(|entry| entry.image.as_ref().ok().zip(Some(entry)));
        // An image for one architecture before the one for all of them.
        let best = fitting
            .filter(|(image, _)| arch.is_none() || image.fits(arch))
            .max_by_key(|(image, _)| image.arch.as_ref().map(std::cmp::Reverse));
        match best {
            Some((image, entry)) => Ok(Resolution {
                version,
                channel: None,
                image: image.clone(),
                deprecated: entry.deprecated.clone(),
            }),
            None => Err(self.no_image(version, arch, &listed)),
        }
    }

    fn no_image(&self, version: OsVersion, arch: Option<&Arch>, listed: &[&Entry]) -> ResolveError {
        let meant = |entry: &&&Entry| match (&entry.arch, arch) {
            (Some(own), Some(wanted)) => own == wanted,
            _ => true,
        };
        let problem = listed.iter().filter(meant).find_map(|entry| entry.image.as_ref().err()?.first());
        let mut available: Vec<Arch> = listed
            .iter()
            .filter(|entry| entry.image.is_ok())
            .filter_map(|entry| entry.arch.clone())
            .collect();
        available.sort();
        match (problem, arch) {
            (Some(problem), _) => ResolveError::ImageUnusable { version, problem: problem.clone() },
            (None, Some(arch)) if !listed.is_empty() => {
                ResolveError::NoImageForArch { version, arch: arch.clone(), available }
            }
            _ => {
                let (below, above) = self.nearest(&version);
                ResolveError::VersionNotInCatalog { wanted: version, below, above }
            }
        }
    }

    /// The listed, unblocked versions next to `wanted`, with the mistakes of their entries: those
    /// that cannot be used are named too, since the one wanted may be a typo for one of them.
    fn nearest(&self, wanted: &OsVersion) -> (Option<Nearest>, Option<Nearest>) {
        let listed = || {
            let versions = self.entries.iter().filter_map(|entry| entry.version.as_ref());
            versions.filter(|version| !self.blocked.contains_key(version))
        };
        let below = listed().filter(|version| *version < wanted).max();
        let above = listed().filter(|version| *version > wanted).min();
        (below.map(|version| self.near(version)), above.map(|version| self.near(version)))
    }

    fn near(&self, version: &OsVersion) -> Nearest {
        let entries = || self.entries.iter().filter(|entry| entry.version.as_ref() == Some(version));
        let usable = entries().any(|entry| entry.image.is_ok());
        let first_problem = || entries().find_map(|entry| entry.image.as_ref().err()?.first().cloned());
        Nearest { version: version.clone(), problem: if usable { None } else { first_problem() } }
    }
}

fn nearest_words(below: Option<&Nearest>, above: Option<&Nearest>) -> String {
    let name = |near: &Nearest| match near.problem {
        None => near.version.to_string(),
        Some(_) => format!("{} (its entry is unusable)", near.version),
    };
    match (below.map(name), above.map(name)) {
        (Some(below), Some(above)) => format!("; the nearest are {below} and {above}"),
        (Some(only), None) => format!("; the newest is {only}"),
        (None, Some(only)) => format!("; the oldest is {only}"),
        (None, None) => ", which lists no version that could be installed".to_owned(),
    }
}

fn block_words(reason: Option<&str>, url: Option<&str>) -> String {
    let mut words = reason.map_or(String::new(), |reason| format!(": {reason}"));
    if let Some(url) = url {
        // Writing to a String cannot fail.
        let _ = write!(words, " (see {url})");
    }
    words + "; choose another version"
}

fn channel_words(known: &[String]) -> String {
    if known.is_empty() {
        return "it defines none: name a version such as v1.35.3".to_owned();
    }
    format!("it has {}, or name a version such as v1.35.3", known.join(", "))
}

fn list(archs: &[Arch]) -> String {
    archs.iter().map(Arch::as_str).collect::<Vec<_>>().join(", ")
}
