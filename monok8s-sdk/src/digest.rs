//! SHA-256 digests, written `sha256:<64 hex digits>` as container tools do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A SHA-256 digest. Parsed and printed as `sha256:` and 64 lower-case hex digits.
///
/// ```
/// use monok8s_sdk::digest::Sha256Digest;
///
/// let digest = Sha256Digest::of(b"");
/// assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
/// assert_eq!(digest.to_string().parse(), Ok(digest));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// The text does not start with `sha256:`.
    #[error("checksum {text:?} does not start with sha256:, the only algorithm known")]
    UnknownAlgorithm {
        /// The text as given, shortened if it is overlong.
        text: String,
    },
    /// Not 64 hex digits after the colon.
    #[error("checksum {text:?} is not sha256: and 64 hex digits; take what sha256sum prints for the file")]
    Malformed {
        /// The text as given, shortened if it is overlong.
        text: String,
    },
}

impl Sha256Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hex digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
            text
        })
    }
}

impl From<[u8; 32]> for Sha256Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Sha256Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let shown = || text.chars().take(80).collect::<String>();
        let hex =
            text.strip_prefix("sha256:").ok_or_else(|| DigestError::UnknownAlgorithm { text: shown() })?;
        let malformed = || DigestError::Malformed { text: shown() };
        if hex.len() != 64 {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| malformed())?;
            // from_str_radix accepts a sign; a digest has none.
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_a_digest() {
        let upper = format!("sha256:{}", "AB".repeat(32));
        assert_eq!(upper.parse::<Sha256Digest>().unwrap().hex(), "ab".repeat(32));
        for text in [
            "",
            "sha256:abc",
            "md5:abc",
            &"0".repeat(64),
            &format!("sha256:{}", "0".repeat(65)),
            &format!("sha256:{}", "+1".repeat(32)),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(text.parse::<Sha256Digest>().is_err(), "{text:?}");
        }
    }
}
