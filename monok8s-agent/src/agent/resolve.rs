//! What a hand-made object asks for, resolved as the operator would.

use monok8s_sdk::api::{FailureReason, ImageRef, OSUpgradeSpec};
use monok8s_sdk::catalog::source::{CatalogFetcher, Fault, Fetched};
use monok8s_sdk::catalog::{self, Arch, Catalog, Limits};
use monok8s_sdk::version::OsVersion;

/// Resolves upgrades for the architecture that this program runs on.
pub(super) struct Resolver {
    pub(super) fetcher: CatalogFetcher,
    pub(super) arch: Option<Arch>,
}

/// Why there is nothing to go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// A network, a server or a rule is in the way: tried again.
    Later(String),
    /// The same would come out again: waits for a new nonce.
    Never { reason: FailureReason, message: String },
}

impl Resolver {
    /// The images to go through from `booted`, by the upgrade's catalog as it is now.
    pub(super) async fn resolve(
        &self,
        spec: &OSUpgradeSpec,
        booted: &OsVersion,
    ) -> Result<Vec<ImageRef>, Unresolved> {
        let broken = |message: String| Unresolved::Never { reason: FailureReason::CatalogError, message };
        let document = match self.fetcher.fetch(&spec.catalog, None).await {
            Ok(Fetched::Document { bytes, .. }) => bytes,
            Ok(Fetched::NotModified) => return Err(Unresolved::Later("the catalog was not sent".to_owned())),
            Err(error) => {
                return Err(match error.fault() {
                    Fault::Transient => Unresolved::Later(error.to_string()),
                    Fault::Document => broken(error.to_string()),
                });
            }
        };
        let catalog =
            Catalog::parse(document, &Limits::default()).map_err(|error| broken(error.to_string()))?;
        hops(spec, &catalog, booted, self.arch.as_ref())
    }
}

/// The images to go through from `booted`, the next one first. Pure.
///
/// On the target already, that is the target's image: the order is then done at once.
fn hops(
    spec: &OSUpgradeSpec,
    catalog: &Catalog,
    booted: &OsVersion,
    arch: Option<&Arch>,
) -> Result<Vec<ImageRef>, Unresolved> {
    let never = |message: String| Unresolved::Never { reason: FailureReason::NotResolvable, message };
    let target = catalog.resolve(&spec.version, arch).map_err(|error| never(error.to_string()))?;
    let policy = spec.downgrade_policy.unwrap_or_default();
    let path = catalog::path(booted, &target.version, &catalog.candidates(), arch, policy)
        .map_err(|error| never(error.to_string()))?;
    let images = if path.is_empty() { vec![target.image] } else { path };
    Ok(images.into_iter().map(ImageRef::from).collect())
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::catalog::Limits;
    use serde_json::json;

    use super::*;

    fn catalog() -> Catalog {
        let image = |version: &str, arch: &str| {
            let checksum = monok8s_sdk::digest::Sha256Digest::of(version.as_bytes());
            format!(
                "  - {{version: {version}, arch: {arch}, url: 'http://x/{version}', checksum: '{checksum}', size: 4096}}\n"
            )
        };
        let images = [
            image("v1.34.6", "amd64"),
            image("v1.35.1", "amd64"),
            image("v1.35.4", "amd64"),
            image("v1.35.4", "arm64"),
        ];
        let text = format!("stable: v1.35.4\nimages:\n{}blocked: [v1.35.1]\n", images.concat());
        Catalog::parse(text, &Limits::default()).unwrap()
    }

    fn resolve(version: &str, booted: &str, policy: &str) -> Result<Vec<String>, Unresolved> {
        let spec: OSUpgradeSpec = serde_json::from_value(json!({
            "version": version, "nodeSelector": {}, "catalog": {"inline": "-"}, "downgradePolicy": policy,
        }))
        .unwrap();
        let arch = "amd64".parse().unwrap();
        let hops = hops(&spec, &catalog(), &booted.parse().unwrap(), Some(&arch))?;
        assert!(hops.iter().all(|hop| hop.size == Some(4096) && hop.arch.as_deref() == Some("amd64")));
        Ok(hops.iter().map(|hop| hop.version.to_string()).collect())
    }

    #[test]
    fn a_path_leads_over_every_minor_and_around_what_is_blocked() {
        assert_eq!(resolve("stable", "v1.33.9", "Refuse").unwrap(), ["v1.34.6", "v1.35.4"]);
        assert_eq!(resolve("v1.35.4", "v1.35.4", "Refuse").unwrap(), ["v1.35.4"], "done at once");
        assert_eq!(resolve("v1.34.6", "v1.35.4", "Allow").unwrap(), ["v1.34.6"]);
    }

    #[test]
    fn what_cannot_be_reached_is_refused_with_the_catalogs_words() {
        for (version, booted, words) in [
            ("v1.35.3", "v1.35.1", "v1.35.3 is not in the catalog"),
            ("v1.35.1", "v1.34.6", "blocked"),
            ("v1.34.6", "v1.35.4", "downgradePolicy"),
            ("beta", "v1.35.1", "no channel"),
        ] {
            let refusal = resolve(version, booted, "Refuse").unwrap_err();
            let Unresolved::Never { reason: FailureReason::NotResolvable, message } = &refusal else {
                panic!("{refusal:?}")
            };
            assert!(message.contains(words), "{message}");
        }
    }
}
