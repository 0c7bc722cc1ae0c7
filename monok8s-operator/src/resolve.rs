//! Stage two: what each upgrade's spec and catalog come to. Pure; [`crate::catalogs`] does the reading.

use std::collections::BTreeSet;
use std::sync::Arc;

use monok8s_sdk::api::{
    ChannelPolicy, ConditionType, ImageRef, OSUpgrade, Resolved, UpgradeReason, find_condition,
};
use monok8s_sdk::catalog::{Catalog, ResolveError, hop_candidates};
use monok8s_sdk::rollout::{Evaluation, Target, UpgradeView, frozen_target};
use monok8s_sdk::version::OsVersion;

/// What is known of the catalog of one upgrade.
#[derive(Clone, Debug)]
pub enum Reading {
    /// It was read. An error says why a later attempt to read it again failed.
    Known {
        /// The last one that could be read.
        catalog: Arc<Catalog>,
        /// Why the newest attempt failed.
        error: Option<Failure>,
    },
    /// It was never read by this process.
    Unknown {
        /// Why not; `None` while the first attempt is under way.
        error: Option<Failure>,
    },
}

/// Why a catalog could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason as conditions tell it.
    pub reason: UpgradeReason,
    /// What was attempted, what was found, what to do.
    pub message: String,
    /// Whether trying again may help.
    pub remedy: Remedy,
}

/// What would help against a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Trying again: a network, a server, or a rule that somebody may add.
    Retry,
    /// Another document: this one is no catalog.
    OtherDocument,
}

/// What the spec of an upgrade and its catalog come to. `running` are the versions of the fleet's
/// managed nodes, which say which images a path may need; `problem` is what is wrong with its health checks.
#[must_use]
pub fn view(
    upgrade: &OSUpgrade,
    reading: &Reading,
    running: &BTreeSet<OsVersion>,
    problem: Option<String>,
) -> UpgradeView {
    let catalog_error = match reading {
        Reading::Known { error, .. } | Reading::Unknown { error: error @ Some(_) } => {
            error.as_ref().map(|error| error.message.clone())
        }
        Reading::Unknown { error: None } => told_error(upgrade),
    };
    let evaluation = match not_understood(upgrade, problem) {
        None => evaluate(upgrade, reading, running),
        Some((reason, message)) => {
            Evaluation::Rejected { reason, message, resolved: upgrade.spec.version.parse().ok() }
        }
    };
    UpgradeView { upgrade: upgrade.clone(), evaluation, catalog_error, health: Vec::new() }
}

/// What in a spec cannot be understood, whatever the catalog says.
fn not_understood(upgrade: &OSUpgrade, problem: Option<String>) -> Option<(UpgradeReason, String)> {
    if let Err(error) = upgrade.selector() {
        return Some((UpgradeReason::InvalidNodeSelector, error.to_string()));
    }
    problem.map(|problem| (UpgradeReason::InvalidHealthCheck, problem))
}

/// What was last told about the catalog stands until it was tried again: a restart is no news.
fn told_error(upgrade: &OSUpgrade) -> Option<String> {
    let status = upgrade.status.as_ref()?;
    let told = find_condition(&status.conditions, &ConditionType::CatalogReachable)?;
    (told.status == "False").then(|| told.message.clone())
}

fn evaluate(upgrade: &OSUpgrade, reading: &Reading, running: &BTreeSet<OsVersion>) -> Evaluation {
    let follows = upgrade.spec.channel_policy == Some(ChannelPolicy::Follow);
    match (reading, frozen_target(upgrade)) {
        (Reading::Known { catalog, error: None }, frozen) if follows || frozen.is_none() => {
            resolved(upgrade, catalog, frozen, running)
        }
        (Reading::Known { catalog, .. }, Some(frozen)) => accepted(frozen.clone(), catalog),
        (Reading::Known { error, .. } | Reading::Unknown { error }, None) => unread(upgrade, error.as_ref()),
        // The run goes on with what it is frozen to. What is blocked by now is not known, which is
        // why no grant is given before the catalog was read.
        (Reading::Unknown { .. }, Some(frozen)) => {
            Evaluation::Accepted(Target { resolved: frozen.clone(), blocked: BTreeSet::new() })
        }
    }
}

fn resolved(
    upgrade: &OSUpgrade,
    catalog: &Catalog,
    frozen: Option<&Resolved>,
    running: &BTreeSet<OsVersion>,
) -> Evaluation {
    let found = match catalog.resolve(&upgrade.spec.version, None) {
        Ok(found) => found,
        Err(error) => return rejected(&error),
    };
    if let Some(frozen) = frozen.filter(|frozen| frozen.version == found.version) {
        return accepted(frozen.clone(), catalog);
    }
    match hop_candidates(catalog, running, &found.version) {
        Ok(images) => {
            let images = images.into_iter().map(ImageRef::from).collect();
            let resolved = Resolved { version: found.version, catalog_digest: catalog.digest(), images };
            accepted(resolved, catalog)
        }
        Err(error) => Evaluation::Rejected {
            reason: error.reason(),
            message: error.to_string(),
            resolved: Some(found.version),
        },
    }
}

fn accepted(resolved: Resolved, catalog: &Catalog) -> Evaluation {
    let blocked = catalog.blocked().keys().cloned().collect();
    Evaluation::Accepted(Target { resolved, blocked })
}

fn rejected(error: &ResolveError) -> Evaluation {
    Evaluation::Rejected {
        reason: error.reason(),
        message: error.to_string(),
        resolved: error.version().cloned(),
    }
}

/// Without a catalog an explicit version is still what is meant; a channel may stand for anything.
fn unread(upgrade: &OSUpgrade, error: Option<&Failure>) -> Evaluation {
    let resolved = upgrade.spec.version.parse().ok();
    match error {
        None => Evaluation::Pending {
            reason: UpgradeReason::ResolvingCatalog,
            message: "the catalog is being read".to_owned(),
            resolved,
        },
        Some(Failure { reason, message, remedy: Remedy::Retry }) => {
            Evaluation::Pending { reason: reason.clone(), message: message.clone(), resolved }
        }
        Some(Failure { reason, message, remedy: Remedy::OtherDocument }) => {
            Evaluation::Rejected { reason: reason.clone(), message: message.clone(), resolved }
        }
    }
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::api::{Canary, CatalogSource, NodeSelector, OSUpgradeSpec, OSUpgradeStatus};
    use monok8s_sdk::catalog::Limits;
    use monok8s_sdk::digest::Sha256Digest;
    use monok8s_sdk::rollout::run_digest;

    use super::*;

    fn catalog(stable: &str, images: &[&str], blocked: &[&str]) -> Arc<Catalog> {
        let image = |version: &&str| {
            let checksum = Sha256Digest::of(version.as_bytes());
            format!(
                "  - {{version: {version}, url: 'https://example.com/{version}', checksum: '{checksum}'}}\n"
            )
        };
        let images: String = images.iter().map(image).collect();
        let text = format!("stable: {stable}\nimages:\n{images}blocked: [{}]\n", blocked.join(", "));
        Arc::new(Catalog::parse(text, &Limits::default()).unwrap())
    }

    fn known(catalog: Arc<Catalog>) -> Reading {
        Reading::Known { catalog, error: None }
    }

    fn failure(remedy: Remedy) -> Failure {
        Failure { reason: UpgradeReason::Unknown("Why".to_owned()), message: "what to do".to_owned(), remedy }
    }

    fn upgrade(version: &str) -> OSUpgrade {
        let spec = OSUpgradeSpec {
            version: version.to_owned(),
            node_selector: NodeSelector::default(),
            catalog: CatalogSource::default(),
            channel_policy: None,
            paused: None,
            mode: None,
            downgrade_policy: None,
            allow_empty: None,
            retry_nonce: None,
            rollout: None,
        };
        OSUpgrade::new("up", spec)
    }

    /// The upgrade, in a run that was begun with what it comes to now.
    fn begun(mut upgrade: OSUpgrade, reading: &Reading) -> OSUpgrade {
        let Evaluation::Accepted(target) = view(&upgrade, reading, &running(), None).evaluation else {
            panic!("not accepted")
        };
        upgrade.status = Some(OSUpgradeStatus {
            run: Some(1),
            run_digest: Some(run_digest(&upgrade.spec, &target.resolved.version)),
            resolved: Some(target.resolved),
            ..OSUpgradeStatus::default()
        });
        upgrade
    }

    fn running() -> BTreeSet<OsVersion> {
        ["v1.34.1".parse().unwrap()].into()
    }

    /// What an evaluation comes to, in one line.
    fn words(upgrade: &OSUpgrade, reading: &Reading) -> String {
        match view(upgrade, reading, &running(), None).evaluation {
            Evaluation::Accepted(Target { resolved, blocked }) => {
                let images: Vec<_> = resolved.images.iter().map(|image| image.version.to_string()).collect();
                let blocked: Vec<_> = blocked.iter().map(ToString::to_string).collect();
                format!("{} by [{}] without [{}]", resolved.version, images.join(" "), blocked.join(" "))
            }
            Evaluation::Rejected { reason, resolved, .. } => {
                format!("rejected {reason} {}", resolved.map_or(String::new(), |v| v.to_string()))
            }
            Evaluation::Pending { reason, resolved, .. } => {
                format!("pending {reason} {}", resolved.map_or(String::new(), |v| v.to_string()))
            }
        }
    }

    #[test]
    fn a_spec_comes_to_what_its_catalog_says() {
        let reading = known(catalog("v1.35.1", &["v1.34.6", "v1.35.1", "v1.35.4"], &["v1.34.0"]));
        for (version, expected) in [
            ("v1.35.4", "v1.35.4 by [v1.34.6 v1.35.1 v1.35.4] without [v1.34.0]"),
            ("stable", "v1.35.1 by [v1.34.6 v1.35.1] without [v1.34.0]"),
            ("v1.35.3", "rejected VersionNotInCatalog v1.35.3"),
            ("v1.34.0", "rejected VersionBlocked v1.34.0"),
            ("edge", "rejected UnknownChannel "),
        ] {
            assert_eq!(words(&upgrade(version), &reading), expected, "{version}");
        }
    }

    #[test]
    fn without_a_catalog_it_waits_or_is_refused_as_the_failure_says() {
        let unknown = |error| Reading::Unknown { error };
        assert_eq!(words(&upgrade("v1.35.1"), &unknown(None)), "pending ResolvingCatalog v1.35.1");
        assert_eq!(words(&upgrade("stable"), &unknown(Some(failure(Remedy::Retry)))), "pending Why ");
        let refused = words(&upgrade("v1.35.1"), &unknown(Some(failure(Remedy::OtherDocument))));
        assert_eq!(refused, "rejected Why v1.35.1");
    }

    #[test]
    fn a_run_keeps_its_artifacts_whatever_becomes_of_the_catalog() {
        let before = known(catalog("v1.35.1", &["v1.34.6", "v1.35.1"], &[]));
        let run = begun(upgrade("v1.35.1"), &before);
        let frozen = "v1.35.1 by [v1.34.6 v1.35.1] without []";
        let other = known(catalog("v1.35.4", &["v1.34.7", "v1.35.1", "v1.35.4"], &["v1.34.6"]));
        assert_eq!(words(&run, &other), "v1.35.1 by [v1.34.6 v1.35.1] without [v1.34.6]");
        let emptied = known(catalog("v1.35.4", &["v1.35.4"], &[]));
        assert_eq!(words(&run, &emptied), frozen);
        assert_eq!(words(&run, &Reading::Unknown { error: Some(failure(Remedy::OtherDocument)) }), frozen);
    }

    #[test]
    fn a_channel_is_pinned_for_the_run_unless_it_is_followed() {
        let before = known(catalog("v1.35.1", &["v1.35.1"], &[]));
        let after = known(catalog("v1.35.4", &["v1.35.1", "v1.35.4"], &[]));
        assert!(words(&begun(upgrade("stable"), &before), &after).starts_with("v1.35.1 "));
        let mut following = upgrade("stable");
        following.spec.channel_policy = Some(ChannelPolicy::Follow);
        let following = begun(following, &before);
        assert!(words(&following, &after).starts_with("v1.35.4 "));
        assert!(words(&following, &Reading::Unknown { error: None }).starts_with("v1.35.1 "));
    }

    #[test]
    fn a_catalog_that_went_bad_refuses_new_runs_only() {
        let good = catalog("v1.35.1", &["v1.35.1"], &["v1.34.9"]);
        let run = begun(upgrade("v1.35.1"), &known(Arc::clone(&good)));
        let bad = Reading::Known { catalog: good, error: Some(failure(Remedy::OtherDocument)) };
        assert_eq!(words(&run, &bad), "v1.35.1 by [v1.35.1] without [v1.34.9]");
        assert_eq!(view(&run, &bad, &running(), None).catalog_error.as_deref(), Some("what to do"));
        assert_eq!(words(&upgrade("v1.35.1"), &bad), "rejected Why v1.35.1");
    }

    #[test]
    fn a_selector_that_is_not_understood_is_refused_before_anything_is_read() {
        let selector: NodeSelector =
            serde_json::from_str(r#"{"disktype": "ssd", "matchLabels": {}}"#).unwrap();
        let (mut mixed, mut canary) = (upgrade("v1.35.1"), upgrade("v1.35.1"));
        mixed.spec.node_selector = selector.clone();
        canary.spec.rollout.get_or_insert_default().canary =
            Some(Canary { node_selector: selector, soak_seconds: None });
        for upgrade in [mixed, canary] {
            let words = words(&upgrade, &Reading::Unknown { error: None });
            assert_eq!(words, "rejected InvalidNodeSelector v1.35.1");
        }
    }
}
