//! os-release files: which version a root file system states.
//!
//! The format is that of os-release(5): `NAME=value` lines, values quoted as a shell would.

use std::collections::BTreeMap;

use crate::version::{OsVersion, VersionError};

/// The largest os-release that is read, in bytes. Real ones have a few hundred.
pub const MAX_OS_RELEASE_LEN: usize = 64 * 1024;

/// Where an os-release is, relative to the root, in the order of preference.
pub const OS_RELEASE_PATHS: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// The fields of an os-release file.
///
/// ```
/// use monok8s_sdk::os_release::OsRelease;
///
/// let host = OsRelease::parse(b"ID=monok8s\nMONOK8S_VERSION=\"v1.35.3+r2\"\n")?;
/// assert_eq!(host.version()?.map(|version| version.to_string()).as_deref(), Some("v1.35.3+r2"));
/// # Ok::<(), monok8s_sdk::os_release::OsReleaseError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    fields: BTreeMap<String, String>,
}

/// Why an os-release states no usable version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OsReleaseError {
    /// Longer than [`MAX_OS_RELEASE_LEN`].
    #[error("os-release has {length} bytes, more than the {MAX_OS_RELEASE_LEN} that are read: shorten it")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Not text.
    #[error("os-release is not UTF-8 text: write it as os-release(5) says")]
    NotText,
    /// `MONOK8S_VERSION` is there, and is not a version.
    #[error("MONOK8S_VERSION in os-release is not usable")]
    Version(#[source] VersionError),
}

impl OsRelease {
    /// Reads a file's bytes. Lines that are not assignments are ignored, the last assignment of a
    /// name counts, both as a shell would do.
    pub fn parse(bytes: &[u8]) -> Result<Self, OsReleaseError> {
        if bytes.len() > MAX_OS_RELEASE_LEN {
            return Err(OsReleaseError::TooLong { length: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| OsReleaseError::NotText)?;
        let fields = text
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .filter(|(name, _)| is_name(name))
            .map(|(name, value)| (name.to_owned(), unquote(value)))
            .collect();
        Ok(Self { fields })
    }

    /// The value of a field, quotes removed.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The OS version: `MONOK8S_VERSION`, else `VERSION_ID`.
    ///
    /// `None` when neither states one. A `VERSION_ID` in another form (`12`, `3.22.1`) belongs to
    /// the distribution that the image was built from and says nothing here.
    ///
    /// # Errors
    /// A `MONOK8S_VERSION` that is not a version.
    pub fn version(&self) -> Result<Option<OsVersion>, OsReleaseError> {
        if let Some(text) = self.get("MONOK8S_VERSION") {
            return text.parse().map(Some).map_err(OsReleaseError::Version);
        }
        Ok(self.get("VERSION_ID").and_then(|text| text.parse().ok()))
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Removes shell quotes: single ones keep all, double ones and bare text know the backslash.
fn unquote(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut quote = None;
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if character == open => quote = None,
            (None, '\\') => plain.extend(characters.next()),
            (Some('"'), '\\') => match characters.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => plain.push(escaped),
                Some(other) => plain.extend(['\\', other]),
                None => {}
            },
            // An unquoted blank ends the word, and with it the assignment.
            (None, ' ' | '\t') => break,
            _ => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Option<String> {
        OsRelease::parse(text.as_bytes()).unwrap().version().unwrap().map(|version| version.to_string())
    }

    #[test]
    fn version_comes_from_our_field_first() {
        assert_eq!(version("VERSION_ID=v1.35.1\n").as_deref(), Some("v1.35.1"));
        assert_eq!(version("VERSION_ID='v1.35.1'\nMONOK8S_VERSION=\"v1.35.2\"").as_deref(), Some("v1.35.2"));
        assert_eq!(version("VERSION_ID=\"12\"\nNAME=Debian\n"), None);
        assert_eq!(version("VERSION_ID=3.22.1\n"), None);
        assert_eq!(version("# VERSION_ID=v1.35.1\nX VERSION_ID=v1.35.1\n"), None);
        assert_eq!(version("VERSION_ID=v1.35.1\nVERSION_ID=v1.35.2 # newer\n").as_deref(), Some("v1.35.2"));
        let broken = OsRelease::parse(b"VERSION_ID=v1.35.1\nMONOK8S_VERSION=next\n").unwrap();
        assert!(matches!(broken.version(), Err(OsReleaseError::Version(_))));
    }

    #[test]
    fn quotes_are_a_shells() {
        for (quoted, plain) in [
            (r#""two words""#, "two words"),
            ("'two words'", "two words"),
            (r#""a \"b\" \$c \d""#, r#"a "b" $c \d"#),
            (r"a\ b", "a b"),
            (r#""unclosed"#, "unclosed"),
            (r#"a"b"'c'"#, "abc"),
        ] {
            assert_eq!(unquote(quoted), plain, "{quoted}");
        }
    }

    #[test]
    fn oversized_and_binary_files_are_refused() {
        let long = vec![b'a'; MAX_OS_RELEASE_LEN + 1];
        assert!(matches!(OsRelease::parse(&long), Err(OsReleaseError::TooLong { .. })));
        assert_eq!(OsRelease::parse(&[0xff, b'=']), Err(OsReleaseError::NotText));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = OsRelease::parse(&bytes).map(|parsed| parsed.version());
        }

        #[test]
        fn a_quoted_value_is_read_back(value in "[ -~]{0,40}") {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('$', "\\$").replace('`', "\\`");
            let parsed = OsRelease::parse(format!("A=\"{escaped}\"").as_bytes()).unwrap();
            prop_assert_eq!(parsed.get("A"), Some(value.as_str()));
        }
    }
}
