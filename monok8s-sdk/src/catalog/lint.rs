//! Everything that is wrong with a catalog, in the order of its lines.

use std::fmt;

use serde::Serialize;

use super::document::{Catalog, Channel, Entry};
use super::resolve::ResolveError;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a look; everything works.
    Warning,
    /// An image or channel that cannot be used.
    Error,
}

/// One finding about one thing in a catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Line in the document, counted from 1.
    pub line: usize,
    /// What it is about: a version, a channel, a part of the document.
    pub subject: String,
    /// What is wrong and what belongs there.
    pub message: String,
}

impl Finding {
    pub(super) fn new(severity: Severity, line: usize, subject: &str, message: String) -> Self {
        Self { severity, line, subject: subject.to_owned(), message }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, line, subject, message } = self;
        write!(f, "line {line}: {severity}: {subject}: {message}")
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Everything that is wrong with a catalog, or about to surprise someone, in the order of its lines.
///
/// ```
/// use monok8s_sdk::catalog::{Catalog, Limits, Severity, lint};
///
/// let text = "
/// images:
///   - version: v1.35.1
///     url: https://example.com/rootfs.ext4.zst
///     chekcsum: sha256:99af82a263deca44ad91d21d684f0fa944d5d0456a1da540f1c644f8aa59b14b
/// ";
/// let findings = lint(&Catalog::parse(text, &Limits::default())?);
/// let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
/// assert_eq!(lines, [
///     "line 3: error: v1.35.1: `checksum` is missing",
///     r#"line 5: warning: v1.35.1: "chekcsum" is not a key that is known, and has no effect; did you mean "checksum"?"#,
/// ]);
/// # Ok::<(), monok8s_sdk::catalog::CatalogError>(())
/// ```
#[must_use]
pub fn lint(catalog: &Catalog) -> Vec<Finding> {
    let mut findings = catalog.notes.clone();
    for entry in &catalog.entries {
        lint_entry(catalog, entry, &mut findings);
    }
    for (name, channel) in &catalog.channels {
        findings.extend(lint_channel(catalog, name, channel));
    }
    if catalog.entries.is_empty() {
        let message = "it lists no images, so nothing can be installed from it".to_owned();
        findings.push(Finding::new(Severity::Warning, 1, "the catalog", message));
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

fn lint_entry(catalog: &Catalog, entry: &Entry, findings: &mut Vec<Finding>) {
    if let Err(problems) = &entry.image {
        findings.extend(problems.iter().map(|problem| {
            Finding::new(Severity::Error, problem.line, &entry.name, problem.message.clone())
        }));
    }
    let mut warn = |message| findings.push(Finding::new(Severity::Warning, entry.line, &entry.name, message));
    let urls = entry.image.as_ref().map_or(&[][..], |image| &image.urls);
    if urls.iter().any(|url| has_userinfo(url)) {
        warn(
            "a URL carries a user name or password, which everyone who may read the upgrade will see"
                .to_owned(),
        );
    }
    let replacement = entry.deprecated.as_ref().and_then(|deprecated| deprecated.replacement.as_ref());
    if let Some(replacement) = replacement
        && !catalog.entries.iter().any(|other| other.version.as_ref() == Some(replacement))
    {
        warn(format!("its replacement {replacement} is not in the catalog"));
    }
}

/// A channel is worth what a person gets who asks for it.
fn lint_channel(catalog: &Catalog, name: &str, channel: &Channel) -> Option<Finding> {
    let subject = format!("channel {name}");
    let finding = |severity, message| Some(Finding::new(severity, channel.line, &subject, message));
    if let Err(problem) = &channel.target {
        return Some(Finding::new(Severity::Error, problem.line, &subject, problem.message.clone()));
    }
    match catalog.resolve(name, None) {
        Ok(resolved) => match resolved.deprecated {
            Some(_) => {
                finding(Severity::Warning, format!("it points to {}, which is deprecated", resolved.version))
            }
            None => None,
        },
        Err(ResolveError::ChannelTarget { why, .. }) => finding(Severity::Error, why.to_string()),
        Err(other) => finding(Severity::Error, other.to_string()),
    }
}

/// Whether the authority of a URL has the form `user@host`.
fn has_userinfo(url: &str) -> bool {
    url.parse::<http::Uri>()
        .is_ok_and(|uri| uri.authority().is_some_and(|authority| authority.as_str().contains('@')))
}
