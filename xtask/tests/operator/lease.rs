//! Only one operator acts.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use super::fixture::{Cluster, NAMESPACE, catalog, manifest};

const QUICK: &[&str] = &["--lease-duration-seconds", "3"];

async fn holder(cluster: &Cluster) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), NAMESPACE);
    leases.get_opt("monok8s-operator").await.unwrap()?.spec?.holder_identity
}

#[tokio::test]
async fn a_second_replica_stands_by_until_the_first_one_leaves_or_dies() {
    let cluster = Cluster::start().await;
    let mut first = cluster.operator("first", &[]);
    first.wait_ready("ok").await;
    let by_first = holder(&cluster).await;
    assert!(by_first.is_some());
    let mut second = cluster.operator("second", QUICK);
    second.wait_ready("standing by").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    second.wait_ready("standing by").await;
    assert!(second.get("/metrics").await.unwrap().1.contains("monok8s_operator_leading 0"));
    assert_eq!(holder(&cluster).await, by_first);

    // Asked to end, the first one lets go: the second one need not wait for the expiry.
    let asked = Instant::now();
    assert_eq!(first.stop().await.code(), Some(0));
    second.wait_ready("ok").await;
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());

    // Killed, it lets go of nothing, and the Lease expires.
    let mut third = cluster.operator("third", QUICK);
    third.wait_ready("standing by").await;
    second.kill();
    third.wait_ready("ok").await;
    cluster.apply(&manifest("up", "v1.35.1", &catalog("v1.35.1", &["v1.35.1"], &[]), "")).await;
    cluster.wait_for("up", "Pending", "NoMatchingNodes", &mut third).await;
}

#[tokio::test]
async fn an_operator_that_lost_its_lease_ends() {
    let cluster = Cluster::start().await;
    let mut operator = cluster.operator("operator", QUICK);
    operator.wait_ready("ok").await;
    let usurp = [
        "patch",
        "lease",
        "monok8s-operator",
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        r#"{"spec": {"holderIdentity": "somebody-else"}}"#,
    ];
    cluster.control_plane.kubectl().succeed(&usurp).await.unwrap();
    let status = operator.child.wait(Duration::from_secs(10)).await.unwrap().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let log = operator.child.log_tail();
    assert!(log.contains("somebody-else"), "{log}");
}
