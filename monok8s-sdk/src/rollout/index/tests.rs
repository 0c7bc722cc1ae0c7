//! An index that follows a fleet is as one that is made of it.

use super::*;
use crate::api::{OSUpgradeProgressSpec, OrderSpec, SourceRef};
use crate::rollout::fixtures::{image, node};

fn order(name: &str, node: &str) -> Arc<OSUpgradeProgress> {
    let order = OrderSpec {
        node_uid: format!("{node}-uid"),
        run: 1,
        hops: vec![image("v1.35.4")],
        stage: None,
        stage_granted_at: None,
        boot: None,
        trial: None,
    };
    let spec = OSUpgradeProgressSpec {
        source_ref: SourceRef { name: "up".to_owned() },
        node_name: node.to_owned(),
        retry_nonce: None,
        rollback_nonce: None,
        order: Some(order),
    };
    let mut progress = OSUpgradeProgress::new(name, spec);
    progress.metadata.uid = Some(format!("{name}-uid"));
    Arc::new(progress)
}

fn changed(
    progress: &Arc<OSUpgradeProgress>,
    change: impl FnOnce(&mut OSUpgradeProgress),
) -> Arc<OSUpgradeProgress> {
    let mut progress = progress.as_ref().clone();
    change(&mut progress);
    Arc::new(progress)
}

type Change = (&'static str, fn(&mut Fleet));

/// Everything but what is shared.
fn facts(index: &Index) -> String {
    let Index { nodes, orders, by_node, node_places, order_places, shared: _ } = index;
    format!("{nodes:?} {orders:?} {by_node:?} {node_places:?} {order_places:?}")
}

#[test]
fn an_index_that_follows_a_fleet_is_as_one_that_is_made_of_it() {
    let mut fleet = Fleet {
        nodes: ["b", "a", "c"].map(|name| Arc::new(node(name).view())).into(),
        progresses: vec![order("2", "a"), order("1", "a"), order("3", "gone"), order("4", "c")],
        ..Fleet::default()
    };
    let mut index = Index::default();
    let changes: [Change; 10] = [
        ("nothing was there", |_| {}),
        ("nothing changed", |_| {}),
        ("a node was cordoned", |fleet| fleet.nodes[0] = Arc::new(node("b").cordoned_for("x").view())),
        ("a node says more", |fleet| {
            let staged = |order: &mut OSUpgradeProgress| {
                order.status.get_or_insert_default().phase = Some(ProgressPhase::Staged);
            };
            fleet.progresses[3] = changed(&fleet.progresses[3], staged);
        }),
        ("a node was made again", |fleet| {
            fleet.nodes[2] =
                Arc::new(node("c").made_again("c-2", "2026-11-24T12:00:00Z".parse().unwrap()).view());
        }),
        ("the fleet is told in another order", |fleet| {
            fleet.nodes.reverse();
            fleet.progresses.reverse();
        }),
        ("one node came and one went", |fleet| fleet.nodes[1] = Arc::new(node("gone").view())),
        ("one node more", |fleet| fleet.nodes.push(Arc::new(node("d").view()))),
        ("an order was made again under its name", |fleet| {
            let again = |order: &mut OSUpgradeProgress| order.metadata.uid = Some("other".to_owned());
            fleet.progresses[0] = changed(&fleet.progresses[0], again);
        }),
        ("an order became one by hand, without a UID", |fleet| {
            let by_hand = |order: &mut OSUpgradeProgress| {
                (order.spec.order, order.metadata.uid) = (None, None);
            };
            fleet.progresses[0] = changed(&fleet.progresses[0], by_hand);
        }),
    ];
    for (what, change) in changes {
        change(&mut fleet);
        index.follow(&fleet);
        assert_eq!(facts(&index), facts(&Index::new(&fleet)), "{what}");
    }
}

#[test]
fn orders_are_found_by_their_nodes() {
    let fleet = Fleet {
        nodes: ["b", "a"].map(|name| Arc::new(node(name).view())).into(),
        progresses: vec![order("2", "a"), order("1", "a"), order("3", "gone")],
        ..Fleet::default()
    };
    let index = Index::new(&fleet);
    let of = |name: &str| -> Vec<&str> {
        let node = index.node_named(name).unwrap();
        index.orders_of(node).map(super::OrderEntry::name).collect()
    };
    assert_eq!((of("a"), of("b")), (vec!["1", "2"], vec![]));
    let nodes: Vec<_> = index.orders().map(|order| index.node_of(order).map(NodeEntry::name)).collect();
    assert_eq!(nodes, [None, Some("a"), Some("a")]);
}

#[test]
fn what_is_shared_is_bounded_and_nothing_is_lost() {
    let mut shared = Shared::default();
    for number in 0..3 * MOST {
        let text = number.to_string();
        assert_eq!(*shared.text(&text), *text);
        assert!(Arc::ptr_eq(&shared.text(&text), &shared.text(&text)));
    }
    let long = "x".repeat(1000);
    assert_eq!(*shared.text(&long), *long);
    assert!(shared.texts.len() <= MOST && shared.texts.iter().all(|text| text.len() < 1000));
}
