//! Names and the few facts that are read from a Node's metadata.

use k8s_openapi::api::core::v1::Node;
use sha2::{Digest as _, Sha256};

use super::{ANNOTATION_EXCLUDE, LABEL_MANAGED, OSUpgradeProgress, annotation_is_on};

/// The name of the progress object for one upgrade, run and node: `osupgrade-` and ten hex digits.
///
/// Derived, not generated, so that an operator that was stopped between a write and its record of
/// it makes the same object again instead of a second one.
#[must_use]
pub fn progress_name(upgrade_uid: &str, run: i64, node_uid: &str) -> String {
    let mut hasher = Sha256::new();
    // Lengths keep ("ab", "c") and ("a", "bc") apart.
    for part in [upgrade_uid, &run.to_string(), node_uid] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let hex = crate::digest::Sha256Digest::from(digest).hex();
    format!("osupgrade-{}", hex.chars().take(10).collect::<String>())
}

/// The name of the upgrade a progress object belongs to.
#[must_use]
pub fn upgrade_name_of(progress: &OSUpgradeProgress) -> &str {
    &progress.spec.source_ref.name
}

/// Whether upgrades apply to this Node: labelled as managed, and not excluded by its annotation.
#[must_use]
pub fn managed(node: &Node) -> bool {
    let labelled = node.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_MANAGED));
    labelled.is_some_and(|value| value == "true")
        && !annotation_is_on(node.metadata.annotations.as_ref(), ANNOTATION_EXCLUDE)
}

#[cfg(test)]
mod tests {
    use super::progress_name;

    #[test]
    fn names_are_stable_and_apart() {
        let name = progress_name("u-1", 2, "n-1");
        assert_eq!(name, progress_name("u-1", 2, "n-1"));
        assert_eq!(name.len(), "osupgrade-".len() + 10);
        for other in
            [progress_name("u-1", 3, "n-1"), progress_name("u-12", 2, "n-1"), progress_name("u-1", 2, "n-2")]
        {
            assert_ne!(name, other);
        }
    }
}
