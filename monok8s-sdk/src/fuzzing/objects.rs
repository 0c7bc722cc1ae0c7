//! Documents that people and API servers give us.

use std::collections::BTreeMap;

use crate::api::DowngradePolicy;
use crate::api::{NodeSelector, OSNode, OSUpgrade, OSUpgradeProgress, TrialSpec};
use crate::catalog::{Catalog, Limits, lint, path};
use crate::node_upgrade::{Freshness, Order};
use crate::os_release::OsRelease;

/// Catalog documents: read, linted, and everything in them resolved and led to.
pub fn catalog(bytes: &[u8]) {
    let Ok(catalog) = Catalog::parse(bytes, &Limits::default()) else { return };
    for finding in lint(&catalog) {
        assert!(!finding.message.is_empty() && finding.line > 0);
    }
    let candidates = catalog.candidates();
    let versions = catalog.entries().iter().filter_map(|entry| entry.version.as_ref());
    let wanted = catalog.channels().keys().cloned().chain(versions.map(ToString::to_string)).take(64);
    for wanted in wanted.chain(["v1.35.3".to_owned(), "stable".to_owned()]) {
        let Ok(resolved) = catalog.resolve(&wanted, None) else { continue };
        assert!(!catalog.blocked().contains_key(&resolved.version), "{wanted} is blocked");
        for from in candidates.iter().take(8) {
            let found = path(&from.version, &resolved.version, &candidates, None, DowngradePolicy::Allow);
            let end = found.as_deref().ok().and_then(<[_]>::last);
            assert!(end.is_none_or(|end| end.version == resolved.version), "the path ends elsewhere");
        }
    }
}

/// os-release files.
pub fn os_release(bytes: &[u8]) {
    let Ok(os_release) = OsRelease::parse(bytes) else { return };
    let _ = os_release.version();
    assert!(os_release.get("ID").is_none_or(|id| id.len() <= bytes.len()));
}

/// Node selectors and the three kinds, as JSON.
pub fn objects(bytes: &[u8]) {
    let labels = BTreeMap::from([("disktype".to_owned(), "ssd".to_owned())]);
    if let Ok(selector) = serde_json::from_slice::<NodeSelector>(bytes).map(|selector| selector.parse()) {
        let _ = selector.map(|selector| selector.matches(&labels));
    }
    if let Ok(upgrade) = serde_json::from_slice::<OSUpgrade>(bytes) {
        let _ = upgrade.selector().map(|selector| selector.matches(&labels));
        let _ = (upgrade.spec.rollout(), upgrade.spec.retry_nonce().len());
        survives(&upgrade);
    }
    if let Ok(progress) = serde_json::from_slice::<OSUpgradeProgress>(bytes) {
        let node = progress.spec.order.as_ref().map(|order| order.node_uid.clone()).unwrap_or_default();
        if let Ok(order) = Order::read(&progress, &node, Freshness::Quorum, &[], &TrialSpec::default()) {
            let booted = order.hops.first().map(|image| &image.version);
            let _ = booted.and_then(|booted| order.next_hop(booted));
        }
        survives(&progress);
    }
    if let Ok(node) = serde_json::from_slice::<OSNode>(bytes) {
        survives(&node);
    }
}

/// What was read can be written, and reads as the same.
pub(super) fn survives<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) {
    let written = serde_json::to_value(value);
    assert!(written.is_ok(), "cannot be written: {written:?}");
    let again = written.as_ref().ok().and_then(|json| serde_json::from_value::<T>(json.clone()).ok());
    assert!(again.is_some(), "what was written cannot be read: {written:?}");
    let again = again.and_then(|again| serde_json::to_value(again).ok());
    assert_eq!(written.ok(), again, "what was written reads as something else");
}
