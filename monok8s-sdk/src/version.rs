//! OS versions: what a node runs is a Kubernetes version, plus an image revision.
//!
//! The grammar is `vMAJOR.MINOR.PATCH[-PRE][+rN]`. Everything up to `+` is semver 2.0 with the
//! leading `v` that Kubernetes uses; `+rN` (N from 1) counts rebuilt images of the same
//! Kubernetes, for example a kernel fix. Unlike semver build metadata it takes part in ordering.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest version text that is accepted, in bytes.
pub const MAX_VERSION_LEN: usize = 64;

/// A version of the node OS, such as `v1.35.3` or `v1.35.3+r2`.
///
/// Ordered by semver precedence, then by image revision. Two equal values print the same text.
///
/// ```
/// use monok8s_sdk::version::OsVersion;
///
/// let fixed: OsVersion = "v1.35.3+r2".parse()?;
/// let first: OsVersion = "v1.35.3".parse()?;
/// assert!(fixed > first);
/// assert_eq!(fixed.minor().to_string(), "v1.35");
/// # Ok::<(), monok8s_sdk::version::VersionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OsVersion {
    // `build` is always empty: the revision is kept beside it, so that `Eq` and `Ord` agree.
    semver: semver::Version,
    revision: u32,
}

/// A Kubernetes minor release, such as `v1.35`: the unit of version skew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minor {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
}

/// Why a text is not an OS version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// The text does not follow the grammar.
    #[error("{text:?} is not an OS version: {reason}; write it like v1.35.3 or v1.35.3+r2")]
    Malformed {
        /// The text as given, shortened if it is overlong.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl OsVersion {
    /// The minor release this version belongs to.
    #[must_use]
    pub fn minor(&self) -> Minor {
        Minor { major: self.semver.major, minor: self.semver.minor }
    }

    /// The image revision: 0 for the first image of a version, N for `+rN`.
    #[must_use]
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Whether this is a pre-release such as `v1.36.0-rc.1`.
    #[must_use]
    pub fn is_prerelease(&self) -> bool {
        !self.semver.pre.is_empty()
    }

    /// The version that a kubelet reports (`status.nodeInfo.kubeletVersion`), without the suffixes of
    /// distributions. `None` if there is no version at its start.
    ///
    /// ```
    /// use monok8s_sdk::version::OsVersion;
    ///
    /// let reported = OsVersion::of_kubelet("v1.35.3+dist.1");
    /// assert_eq!(reported, Some("v1.35.3".parse()?));
    /// # Ok::<(), monok8s_sdk::version::VersionError>(())
    /// ```
    #[must_use]
    pub fn of_kubelet(text: &str) -> Option<Self> {
        let core = text.split(['+', '-']).next().unwrap_or(text);
        // A pre-release is kept where the text as a whole is a version.
        text.parse::<Self>().or_else(|_| core.parse()).ok().map(|version| version.kubernetes())
    }

    /// The Kubernetes version without the image revision, as a kubelet reports it.
    #[must_use]
    pub fn kubernetes(&self) -> Self {
        Self { semver: self.semver.clone(), revision: 0 }
    }
}

impl Minor {
    /// The next minor release of the same major one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { minor: self.minor.saturating_add(1), ..self }
    }

    /// The previous minor release, or `None` for `.0`: no path crosses a major release.
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        self.minor.checked_sub(1).map(|minor| Self { minor, ..self })
    }
}

impl Ord for OsVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.semver.cmp_precedence(&other.semver).then(self.revision.cmp(&other.revision))
    }
}

impl PartialOrd for OsVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for OsVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let malformed = |reason: &str| VersionError::Malformed {
            text: text.chars().take(MAX_VERSION_LEN).collect(),
            reason: reason.to_owned(),
        };
        if text.len() > MAX_VERSION_LEN {
            return Err(malformed("it is longer than 64 bytes"));
        }
        let rest = text.strip_prefix('v').ok_or_else(|| malformed("the leading v is missing"))?;
        let (core, revision) = match rest.split_once('+') {
            None => (rest, 0),
            Some((core, build)) => (
                core,
                parse_revision(build).ok_or_else(|| malformed("after + only rN is known, with N from 1"))?,
            ),
        };
        let semver = semver::Version::parse(core).map_err(|error| malformed(&error.to_string()))?;
        Ok(Self { semver, revision })
    }
}

fn parse_revision(build: &str) -> Option<u32> {
    let digits = build.strip_prefix('r')?;
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    canonical.then(|| digits.parse().ok())?
}

impl fmt::Display for OsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.semver)?;
        if self.revision > 0 {
            write!(f, "+r{}", self.revision)?;
        }
        Ok(())
    }
}

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.major, self.minor)
    }
}

impl TryFrom<String> for OsVersion {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl From<OsVersion> for String {
    fn from(version: OsVersion) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> OsVersion {
        text.parse().unwrap()
    }

    #[test]
    fn orders_by_precedence_then_revision() {
        let ascending = [
            "v1.34.6",
            "v1.35.0-alpha.1",
            "v1.35.0-rc.1",
            "v1.35.0",
            "v1.35.0+r1",
            "v1.35.0+r2",
            "v1.35.0+r10",
            "v1.35.1",
            "v1.100.0",
        ];
        for pair in ascending.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn refuses_what_is_not_a_version() {
        for text in [
            "",
            "1.35.3",
            "v1.35",
            "v1.35.3.1",
            "v01.35.3",
            "v1.35.3+r0",
            "v1.35.3+r01",
            "v1.35.3+2",
            "v1.35.3+r",
            "v1.35.3+build",
            "v1.35.3 ",
            "stable",
            "v1.35.3+r99999999999",
        ] {
            assert!(text.parse::<OsVersion>().is_err(), "{text:?}");
        }
        assert!(format!("v1.35.3-{}", "a".repeat(80)).parse::<OsVersion>().is_err());
    }

    #[test]
    fn kubernetes_part_drops_the_revision() {
        assert_eq!(version("v1.35.3-rc.1+r2").kubernetes(), version("v1.35.3-rc.1"));
    }

    proptest! {
        #[test]
        fn prints_what_it_parsed(major in 0u64..3, minor in 0u64..200, patch in 0u64..50, pre in "(-(alpha|rc)\\.[1-9])?", revision in 0u32..5) {
            let text = format!("v{major}.{minor}.{patch}{pre}{}", if revision == 0 { String::new() } else { format!("+r{revision}") });
            prop_assert_eq!(version(&text).to_string(), text);
        }

        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = text.parse::<OsVersion>();
        }
    }
}
