//! Power cuts around the reboot, with the real operator: whatever a node forgot or finds again, it is
//! cordoned once, boots the new slot once, and is set free once.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result};
use monok8s_sdk::api::UpgradePhase;
use monok8s_sdk::slot::Slot;
use serde_json::json;
use xtask::kubelet::NodeSpec;

use super::{LONG, NEW, OLD, apply, booted_slots, ends, fleet, holds, no_cordon_is_left};

/// A node, where its agent ends itself, and its boots from then on.
const CUTS: [(&str, &str, &[Slot]); 4] = [
    ("node-1", "committed", &[Slot::A, Slot::A, Slot::B]),
    ("node-2", "armed", &[Slot::A, Slot::B]),
    ("node-3", "reboot-asked", &[Slot::A, Slot::B]),
    ("node-4", "confirmed", &[Slot::A, Slot::B, Slot::B]),
];

#[tokio::test(flavor = "multi_thread")]
async fn nodes_cut_off_around_their_reboot_are_cordoned_once_and_set_free_once() -> Result<()> {
    let workers = CUTS.map(|(node, ..)| NodeSpec::worker(node, OLD));
    let testbed = fleet(&workers).await?;
    for (node, point, _) in CUTS {
        testbed.machine(node)?.stop_at(point).await?;
    }
    let mark = testbed.control_plane().audit().mark()?;
    let all_at_once = json!({ "rollout": { "maxUnavailable": "100%" } });
    apply(&testbed, "up", NEW, all_at_once).await?;
    for (node, ..) in CUTS {
        let what = format!("the agent of {node} to end itself");
        let machine = testbed.machine(node)?;
        let status = testbed.wait_for(&what, LONG, || async { Ok(machine.stopped()) }).await?;
        assert_eq!(status.signal(), Some(9), "{node}");
    }
    for (node, ..) in CUTS {
        testbed.machine(node)?.power_cut().await?;
    }
    let upgrade = ends(&testbed, "up", UpgradePhase::Completed).await?;
    no_cordon_is_left(&testbed).await?;
    let counts = upgrade.status.context("no status")?.nodes.context("no counts")?;
    assert_eq!((counts.total, counts.up_to_date, counts.failed), (4, 4, 0));
    let writes = testbed.control_plane().audit().writes_since(mark)?;
    for (node, point, boots) in CUTS {
        assert_eq!(booted_slots(&testbed, node), boots, "{node}, cut at {point}");
        holds(&testbed, node, Slot::A, OLD)?;
        holds(&testbed, node, Slot::B, NEW)?;
        // Refused ones are those whose Node had changed meanwhile.
        let of_node = writes.iter().filter(|write| {
            (write.resource.as_str(), write.code) == ("nodes", 200)
                && write.name.as_deref() == Some(node)
                && write.user.starts_with("system:serviceaccount:mono-system:")
        });
        let of_node: Vec<_> = of_node.collect();
        assert_eq!(of_node.len(), 2, "{node}, cut at {point}: a cordon and its end, not {of_node:#?}");
    }
    Ok(())
}
