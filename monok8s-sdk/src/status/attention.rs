//! What needs a person, and the command to type next.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{Cluster, Course, NodeLine, Summary};
use crate::api::{ConditionType, OSUpgrade, UpgradePhase, UpgradeReason, find_condition};
use crate::manifests::PART_OF;
use crate::rollout::Assessment;

/// Something that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attention {
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// How bad it is.
    pub level: Level,
    /// What it does to the upgrade.
    pub impact: String,
    /// What is the matter.
    pub message: String,
    /// What to type to see more of it, or to go on.
    pub command: String,
}

/// How bad something is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// It does not go on without a person.
    Error,
    /// It may not go on without a person.
    Warning,
    /// A person has stopped it, and may have forgotten.
    Info,
}

/// Everything about an upgrade and its nodes that needs a person, the worst first.
pub(super) fn of(
    upgrade: &OSUpgrade,
    summary: &Summary,
    nodes: &[NodeLine],
    cluster: &Cluster,
) -> Vec<Attention> {
    let mut all: Vec<_> = [unseen(upgrade, summary, cluster), catalog(upgrade, summary)]
        .into_iter()
        .flatten()
        .chain(whole(upgrade, summary))
        .chain(of_nodes(nodes, summary))
        .collect();
    all.sort_by(|a, b| (a.level, a.since, &a.message).cmp(&(b.level, b.since, &b.message)));
    all
}

/// An operator that does not answer.
fn unseen(upgrade: &OSUpgrade, summary: &Summary, cluster: &Cluster) -> Option<Attention> {
    let generation = upgrade.metadata.generation.unwrap_or(0);
    let observed = upgrade.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(-1);
    let created = upgrade.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // It is given a moment.
    let fresh = created.is_some_and(|created| cluster.now.duration_since(created).as_secs() < 10);
    (observed < generation && !fresh).then(|| Attention {
        since: created.filter(|_| observed < 0),
        level: Level::Error,
        impact: "nothing is done".to_owned(),
        message: format!("the operator has not seen the newest spec of {}", summary.name),
        command: format!("kubectl get pods -A -l app.kubernetes.io/part-of={PART_OF}"),
    })
}

fn catalog(upgrade: &OSUpgrade, summary: &Summary) -> Option<Attention> {
    let status = upgrade.status.as_ref()?;
    let told = find_condition(&status.conditions, &ConditionType::CatalogReachable)?;
    (told.status == "False" && summary.course != Course::Done).then(|| Attention {
        since: Some(told.last_transition_time.0),
        level: Level::Warning,
        impact: "no new grant is given".to_owned(),
        message: told.message.clone(),
        command: format!("kubectl get osupgrade {} -o yaml", summary.name),
    })
}

/// What is the matter with the upgrade itself.
fn whole(upgrade: &OSUpgrade, summary: &Summary) -> Option<Attention> {
    let status = upgrade.status.as_ref()?;
    let since = |kind| find_condition(&status.conditions, &kind).map(|told| told.last_transition_time.0);
    let name = &summary.name;
    if find_condition(&status.conditions, &ConditionType::Paused)
        .is_some_and(|paused| paused.status == "True")
    {
        return Some(Attention {
            since: since(ConditionType::Paused),
            level: Level::Info,
            impact: "no node is begun".to_owned(),
            message: summary.message.clone(),
            command: match upgrade.spec.paused {
                Some(true) => format!("kubectl edit osupgrade {name}"),
                _ => format!("ctl resume {name}"),
            },
        });
    }
    let stalled = summary.course == Course::Stalled;
    stalled.then(|| Attention {
        since: since(ConditionType::Stalled),
        level: Level::Error,
        impact: match summary.phase {
            UpgradePhase::Rejected => "nothing is done".to_owned(),
            _ => format!("{} of {} nodes do not go on", summary.total - summary.up_to_date, summary.total),
        },
        message: format!("{}: {}", summary.reason, summary.message),
        command: match (&summary.phase, summary.reason.as_str()) {
            (UpgradePhase::Rejected, _) | (_, "NoWindow" | "VersionBlocked") => {
                format!("kubectl edit osupgrade {name}")
            }
            _ => format!("ctl retry {name}"),
        },
    })
}

/// What is the matter with a node, in words for one and for several of which the same is true.
struct Trouble {
    level: Level,
    impact: [&'static str; 2],
    command: [String; 2],
}

/// What is the matter with nodes, each sentence once.
fn of_nodes<'n>(nodes: &'n [NodeLine], summary: &Summary) -> impl Iterator<Item = Attention> + use<'n> {
    let mut same: BTreeMap<_, (Trouble, Vec<&NodeLine>)> = BTreeMap::new();
    for node in nodes {
        let Some(trouble) = trouble(node, summary) else { continue };
        let key = (trouble.level, trouble.impact, node.message.as_str());
        same.entry(key).or_insert_with(|| (trouble, Vec::new())).1.push(node);
    }
    same.into_values().filter_map(|(trouble, nodes)| {
        let Trouble { level, impact: [one, several], command: [of_one, of_several] } = trouble;
        let first = nodes.first()?;
        let (impact, command) = match nodes.len() {
            1 => (format!("{} {one}", first.node), of_one),
            all => (format!("{} and {} more {several}", first.node, all - 1), of_several),
        };
        let since = nodes.iter().filter_map(|node| node.since).min();
        Some(Attention { since, level, impact, message: first.message.clone(), command })
    })
}

fn trouble(node: &NodeLine, summary: &Summary) -> Option<Trouble> {
    let (name, node_name) = (&summary.name, &node.node);
    Some(match (node.assessment, &node.reason) {
        (Assessment::Degraded, _) => Trouble {
            level: Level::Error,
            impact: ["stays as it is", "stay as they are"],
            command: [format!("ctl retry {name} --node {node_name}"), format!("ctl retry {name}")],
        },
        (Assessment::Unavailable, _) => Trouble {
            level: Level::Warning,
            impact: ["is not upgraded", "are not upgraded"],
            command: [format!("kubectl describe node {node_name}"), "kubectl get nodes".to_owned()],
        },
        (_, Some(UpgradeReason::DrainBlocked)) => Trouble {
            level: Level::Warning,
            impact: ["is cordoned, and does not reboot", "are cordoned, and do not reboot"],
            command: [
                format!("kubectl get pods -A --field-selector spec.nodeName={node_name}"),
                format!("ctl explain {name}"),
            ],
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Cluster, Report};

    #[test]
    fn what_is_true_of_several_nodes_is_said_once() {
        let dump = include_bytes!("../../../testdata/status/fell-back.json");
        let report = Report::of(&Cluster::from_dump(dump).unwrap(), "fell-back").unwrap();
        let mut nodes: Vec<_> = report.nodes.iter().filter(|node| node.node == "falls").cloned().collect();
        let told = |nodes: &[NodeLine]| {
            let all = of_nodes(nodes, &report.upgrade);
            all.map(|it| format!("{}; {}", it.impact, it.command)).collect::<Vec<_>>()
        };
        assert_eq!(told(&nodes), ["falls stays as it is; ctl retry fell-back --node falls"]);
        nodes.push(NodeLine { node: "falls-too".to_owned(), ..nodes[0].clone() });
        assert_eq!(told(&nodes), ["falls and 1 more stay as they are; ctl retry fell-back"]);
        nodes.push(NodeLine {
            node: "other".to_owned(),
            message: "otherwise".to_owned(),
            ..nodes[0].clone()
        });
        assert_eq!(told(&nodes).len(), 2);
    }
}
