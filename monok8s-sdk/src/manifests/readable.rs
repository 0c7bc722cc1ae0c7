//! Kinds that an installation may read besides its own.

use std::fmt;
use std::str::FromStr;

use kube::core::{ApiResource, GroupVersionKind};

/// A kind that the operator may read, for health checks: `apps/Deployment`, or `Pod` in the core group.
///
/// ```
/// use monok8s_sdk::manifests::Readable;
///
/// let deployments: Readable = "apps/Deployment".parse()?;
/// assert_eq!(deployments.to_string(), "deployments.apps");
/// # Ok::<(), monok8s_sdk::manifests::ReadableError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Readable {
    group: String,
    resource: String,
}

/// The text names no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no kind: write it like apps/Deployment, or Pod for one of the core group")]
pub struct ReadableError(String);

impl Readable {
    /// The API group; empty for the core group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The plural that RBAC rules name.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }
}

impl FromStr for Readable {
    type Err = ReadableError;

    /// A word that begins with a small letter is taken as the plural itself, for kinds with an unusual one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (group, kind) = text.split_once('/').unwrap_or(("", text));
        let is_group = |group: &str| {
            group
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte))
        };
        let is_kind = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let has_group = !text.starts_with('/') && is_group(group);
        if !is_kind || !has_group {
            return Err(ReadableError(text.to_owned()));
        }
        let is_plural = kind.starts_with(|first: char| first.is_ascii_lowercase());
        let resource = if is_plural {
            kind.to_owned()
        } else {
            ApiResource::from_gvk(&GroupVersionKind::gvk(group, "", kind)).plural
        };
        Ok(Self { group: group.to_owned(), resource })
    }
}

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.resource),
            group => write!(f, "{}.{group}", self.resource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_people_write_them() {
        for (text, expected) in [
            ("apps/Deployment", "deployments.apps"),
            ("Pod", "pods"),
            ("networking.k8s.io/NetworkPolicy", "networkpolicies.networking.k8s.io"),
            ("ceph.rook.io/CephCluster", "cephclusters.ceph.rook.io"),
            ("example.com/weather", "weather.example.com"),
        ] {
            assert_eq!(text.parse::<Readable>().unwrap().to_string(), expected);
        }
        for text in ["", "/Pod", "apps/", "apps/v1/Deployment", "Apps/Deployment", "*", "apps/*"] {
            assert!(text.parse::<Readable>().is_err(), "{text}");
        }
    }
}
