//! Catalogs that are not inline.

use monok8s_sdk::api::UpgradePhase::{Accepted, Pending};
use monok8s_sdk::api::{ConditionType, find_condition};
use serde_json::json;
use xtask::http::{Fault, Times};
use xtask::testbed::Testbed;

use super::guide::{apply, catalog, upgrade};
use super::look::{get, kstatus, phase};
use super::requests::{forget, waits_for_its_catalog};

pub(super) async fn one_that_cannot_be_reached_is_waited_for(testbed: &Testbed) {
    // Port 1 of the loopback interface: nobody listens there.
    let url = "http://127.0.0.1:1/images.yaml";
    apply(testbed, &upgrade("nobody-there", "v1.35.1", &json!({}), &json!({"url": url}))).await;
    let message = waits_for_its_catalog(testbed, "nobody-there").await;
    assert!(message.contains(url), "{message}");
    let status = phase(testbed, "nobody-there", &Pending).await;
    let reachable = find_condition(&status.conditions, &ConditionType::CatalogReachable).unwrap();
    assert_eq!(reachable.status, "False");
    assert_eq!(kstatus(&status), ["False", "True", "False"]);
    assert_eq!(get(testbed, "osupgrades").await.row("nobody-there"), ["v1.35.1", "v1.35.1", "Pending"]);
}

/// The guide's catalog under a URL, first from a server in trouble.
pub(super) async fn a_url_is_read(testbed: &Testbed) {
    let server = testbed.server();
    server.serve_bytes("/images.yaml", catalog().into_bytes());
    server.inject("/images.yaml", Fault::Status(503), Times::Always);
    let source = json!({"url": server.url("/images.yaml")});
    apply(testbed, &upgrade("by-url", "stable", &json!({}), &source)).await;
    let message = waits_for_its_catalog(testbed, "by-url").await;
    assert!(message.contains("503"), "{message}");
    assert_eq!(get(testbed, "osupgrades").await.row("by-url"), ["stable", "", "Pending"]);

    server.heal("/images.yaml");
    let status = phase(testbed, "by-url", &Accepted).await;
    let reachable = find_condition(&status.conditions, &ConditionType::CatalogReachable).unwrap();
    assert_eq!(reachable.status, "True");
    assert_eq!(get(testbed, "osupgrades").await.row("by-url"), ["stable", "v1.35.1", "Accepted"]);
    forget(testbed, "by-url").await;
}

/// "This permission is not enabled by default. To use a `ConfigMap` catalog, edit the relevant
/// `ClusterRole` and allow get on configmaps."
pub(super) async fn a_config_map_takes_one_more_rule(testbed: &Testbed) {
    let file = testbed.directory().join("catalog.yaml");
    std::fs::write(&file, catalog()).unwrap();
    let from = format!("--from-file={}", file.display());
    let kubectl = testbed.kubectl();
    kubectl.succeed(&["create", "configmap", "images-cm", "-n", "mono-system", &from]).await.unwrap();
    apply(testbed, &upgrade("by-config-map", "stable", &json!({}), &json!({"configMap": "images-cm"}))).await;
    let message = waits_for_its_catalog(testbed, "by-config-map").await;
    for word in ["mono-system/images-cm", "forbidden", "configmaps", "get"] {
        assert!(message.contains(word), "{word}: {message}");
    }

    let rule = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/configmap-catalogs.yaml");
    kubectl.succeed(&["apply", "-f", rule]).await.unwrap();
    phase(testbed, "by-config-map", &Accepted).await;
    assert_eq!(get(testbed, "osupgrades").await.row("by-config-map"), ["stable", "v1.35.1", "Accepted"]);
    forget(testbed, "by-config-map").await;
}
