//! What is said about an upgrade: counts, phase and conditions.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;

use super::fleet::{Evaluation, Management, Scheduling, Target};
use super::forecast;
use super::govern::{Stand, Stands};
use super::halt::{Failures, names};
use super::health;
use super::index::{NodeEntry, OrderEntry};
use super::order::State;
use super::outlook::{Outlook, Wait, Waits};
use super::refusals::{Unable, common_reason, explain, unable};
use super::survey::{Campaign, Survey};
use crate::api::{
    ConditionType, LABEL_MANAGED, Mode, NodeCounts, OperatorReport, Truth, UpgradePhase, UpgradeReason,
};
use crate::version::OsVersion;

/// Where an upgrade stands, before it is put into conditions.
struct Verdict {
    phase: UpgradePhase,
    ready: Truth,
    standing: Standing,
    reason: UpgradeReason,
    message: String,
}

/// What an upgrade does next: kstatus reads it from two conditions that are never both true.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing, and nobody has to act.
    AtRest,
    /// Something, by itself.
    Reconciling,
    /// Nothing, until a person acts.
    Stalled,
}

/// Says what is to be reported about an upgrade, of which these nodes wait.
pub(super) fn judge<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    waits: Waits,
) -> Outlook {
    let nodes = counts(campaign, stands);
    let verdict = verdict(survey, campaign, stands, &nodes, &waits);
    let reconciling = verdict.standing == Standing::Reconciling;
    let operator = OperatorReport {
        node_name: survey.fleet.operator_node.clone(),
        max_unavailable: survey.fleet.max_unavailable.clone(),
        api_server: survey.fleet.api_server.clone().filter(|_| survey.control_plane().next().is_none()),
    };
    let ends = reconciling.then(|| forecast::end(survey, campaign, stands, &nodes, &waits)).flatten();
    let resolved_version = match &campaign.view.evaluation {
        Evaluation::Accepted(target) => Some(target.resolved.version.clone()),
        Evaluation::Rejected { resolved, .. } | Evaluation::Pending { resolved, .. } => resolved.clone(),
    };
    let carried_out = !matches!(verdict.phase, UpgradePhase::Rejected | UpgradePhase::Pending);
    let new_run = campaign.next_run.clone().filter(|_| carried_out && campaign.mode() == Mode::Apply);
    Outlook {
        conditions: conditions(campaign, &verdict, &waits),
        phase: verdict.phase,
        new_run,
        resolved_version,
        nodes,
        message: verdict.message,
        waits,
        ends,
        operator: Some(operator).filter(|told| reconciling && *told != OperatorReport::default()),
    }
}

fn conditions(
    campaign: &Campaign<'_>,
    verdict: &Verdict,
    waits: &Waits,
) -> Vec<(ConditionType, Truth, UpgradeReason, String)> {
    let is = |standing| Truth::from(verdict.standing == standing);
    let mut list: Vec<_> = [
        (ConditionType::Ready, verdict.ready),
        (ConditionType::Reconciling, is(Standing::Reconciling)),
        (ConditionType::Stalled, is(Standing::Stalled)),
    ]
    .into_iter()
    .map(|(kind, truth)| (kind, truth, verdict.reason.clone(), verdict.message.clone()))
    .collect();
    let mut other = |kind, truth, reason, message: &str| {
        list.push((kind, truth, reason, message.to_owned()));
    };
    let (truth, reason, message) = match campaign.pause() {
        Some(why) => (Truth::True, UpgradeReason::Paused, why),
        None => (Truth::False, UpgradeReason::NotPaused, "nobody paused the upgrade"),
    };
    other(ConditionType::Paused, truth, reason, message);
    let (truth, reason, message) = match campaign.view.catalog_error.as_deref() {
        Some(error) => (Truth::False, UpgradeReason::CatalogUnavailable, error),
        None => (Truth::True, UpgradeReason::CatalogRead, "the catalog was read"),
    };
    other(ConditionType::CatalogReachable, truth, reason, message);
    for (kind, reason) in [
        (ConditionType::WaitingForWindow, UpgradeReason::WaitingForWindow),
        (ConditionType::DrainBlocked, UpgradeReason::DrainBlocked),
        (ConditionType::HealthGate, UpgradeReason::HealthGate),
    ] {
        if let Some((node, wait)) = waits.iter().find(|(_, wait)| wait.reason == reason) {
            let message = match kind {
                ConditionType::DrainBlocked => format!("{node} {}", wait.message),
                ConditionType::HealthGate => health::without_prefix(&wait.message).to_owned(),
                _ => wait.message.clone(),
            };
            other(kind, Truth::True, reason, &message);
        }
    }
    list
}

fn counts(campaign: &Campaign<'_>, stands: &Stands<'_>) -> NodeCounts {
    let mut counts = NodeCounts::default();
    for (node, stand) in stands.of(campaign) {
        counts.total += 1;
        let counter = match stand {
            // Whoever waits for the upgrade may count on the node: our cordon comes off first.
            Stand::UpToDate | Stand::Ordered(_, State::Done) if node.cordoned_for.is_some() => {
                &mut counts.rebooting
            }
            Stand::UpToDate | Stand::Ordered(_, State::Done) => &mut counts.up_to_date,
            Stand::MovedOn(_) => &mut counts.superseded,
            Stand::Refused(..) | Stand::Ordered(_, State::SentBack) => &mut counts.refused,
            Stand::Excluded(..) => &mut counts.excluded,
            Stand::Unknown
            | Stand::Finishing(_)
            | Stand::Unordered(_)
            | Stand::Ordered(_, State::Blind | State::Unstaged(_) | State::LetGo) => &mut counts.pending,
            Stand::Ordered(_, State::Staging(_)) => &mut counts.staging,
            Stand::Ordered(order, State::Staged(_)) if has_turn(order, node) => &mut counts.draining,
            Stand::Ordered(_, State::Staged(_)) => &mut counts.staged,
            Stand::Ordered(_, State::Committed | State::Settling) => &mut counts.rebooting,
            Stand::Ordered(_, state) => {
                debug_assert!(state.failed().is_some());
                if counts.failed_names.len() < 10 {
                    counts.failed_names.push(node.name().to_owned());
                }
                &mut counts.failed
            }
        };
        *counter += 1;
    }
    counts
}

fn has_turn(order: &OrderEntry, node: &NodeEntry) -> bool {
    let cordoned = node.scheduling == Scheduling::Cordoned;
    order.has_boot || (cordoned && node.cordoned_for.as_deref() == Some(order.uid()))
}

fn verdict<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    nodes: &NodeCounts,
    waits: &Waits,
) -> Verdict {
    let target = match &campaign.view.evaluation {
        Evaluation::Pending { reason, message, .. } => return pending(reason.clone(), message.clone()),
        Evaluation::Rejected { reason, message, .. } => return rejected(reason.clone(), message.clone()),
        Evaluation::Accepted(target) => target,
    };
    if let Err(error) = &campaign.selected {
        return rejected(UpgradeReason::InvalidNodeSelector, error.to_string());
    }
    if let Some(error) = campaign.windows.as_ref().err().filter(|_| !was_completed(campaign)) {
        return rejected(UpgradeReason::InvalidWindow, error.to_string());
    }
    if nodes.total == 0 {
        return nobody(survey, campaign);
    }
    let unable = unable(campaign, stands);
    if nodes.total == nodes.refused + nodes.excluded && campaign.run.is_none() {
        return rejected(common_reason(&unable), explain(&unable));
    }
    if campaign.mode() == Mode::Plan {
        return planned(survey, campaign, stands, target, &unable);
    }
    running(survey, campaign, stands, nodes, waits, target, &unable)
}

/// A run that is under way, or begins.
fn running<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    nodes: &NodeCounts,
    waits: &Waits,
    target: &Target,
    unable: &[Unable<'_>],
) -> Verdict {
    let version = &target.resolved.version;
    let own = nodes.total - nodes.superseded;
    let open = own - nodes.up_to_date - nodes.failed - nodes.refused - nodes.excluded;
    let phase = if was_completed(campaign) { UpgradePhase::Completed } else { UpgradePhase::Accepted };
    let stalled = |phase, reason, message| Verdict {
        phase,
        ready: Truth::False,
        standing: Standing::Stalled,
        reason,
        message,
    };
    if own == 0 {
        return superseded(campaign, stands, phase);
    }
    if own == nodes.up_to_date {
        return up_to_date(nodes, version);
    }
    if let Some(halt) = Failures::of(survey, campaign, stands).halt() {
        return stalled(UpgradePhase::Failed, halt.reason, halt.message);
    }
    if open == 0 {
        return match nodes.failed {
            0 => stalled(phase, common_reason(unable), explain(unable)),
            _ => stalled(
                phase,
                UpgradeReason::NodesFailed,
                left_behind(survey, campaign, stands, version, unable),
            ),
        };
    }
    if let Some(why) = campaign.pause() {
        let moving = nodes.rebooting > 0;
        return Verdict {
            phase,
            ready: Truth::Unknown,
            standing: if moving { Standing::Reconciling } else { Standing::AtRest },
            reason: UpgradeReason::Paused,
            message: format!("paused with {} of {own} nodes on {version}: {why}", nodes.up_to_date),
        };
    }
    rolling_out(campaign, nodes, waits, version, (own, open), phase)
}

fn rolling_out(
    campaign: &Campaign<'_>,
    nodes: &NodeCounts,
    waits: &Waits,
    version: &OsVersion,
    (own, open): (i32, i32),
    phase: UpgradePhase,
) -> Verdict {
    let moving = nodes.staging + nodes.draining + nodes.rebooting > 0;
    let groups = campaign.missing_group().map(|label| {
        format!("; none of them has the label {label} of rollout.groupBy, so all are one group")
    });
    let progress = format!("{} of {own} nodes run {version}{}", nodes.up_to_date, groups.unwrap_or_default());
    let for_a_person = |wait: &Arc<Wait>| {
        matches!(
            wait.reason,
            UpgradeReason::VersionBlocked
                | UpgradeReason::VersionQuarantined
                | UpgradeReason::CanaryFailed
                | UpgradeReason::NoWindow
        )
    };
    let forbidden = waits.values().filter(|wait| for_a_person(wait));
    let stuck = i32::try_from(forbidden.clone().count()).unwrap_or(i32::MAX) >= open;
    if let Some(wait) = forbidden.clone().next().filter(|_| stuck && !moving) {
        return Verdict {
            phase: if wait.reason == UpgradeReason::VersionQuarantined {
                UpgradePhase::Failed
            } else {
                phase
            },
            ready: Truth::False,
            standing: Standing::Stalled,
            reason: wait.reason.clone(),
            message: wait.message.clone(),
        };
    }
    let blocked = waits.iter().find(|(_, wait)| wait.reason == UpgradeReason::DrainBlocked);
    let (reason, message) = match blocked.or_else(|| waits.iter().next().filter(|_| !moving)) {
        Some((node, wait)) => (wait.reason.clone(), format!("{progress}; {node}: {}", wait.message)),
        None => (UpgradeReason::RollingOut, progress),
    };
    Verdict { phase, ready: Truth::Unknown, standing: Standing::Reconciling, reason, message }
}

fn pending(reason: UpgradeReason, message: String) -> Verdict {
    Verdict {
        phase: UpgradePhase::Pending,
        ready: Truth::False,
        standing: Standing::Reconciling,
        reason,
        message,
    }
}

fn rejected(reason: UpgradeReason, message: String) -> Verdict {
    Verdict {
        phase: UpgradePhase::Rejected,
        ready: Truth::False,
        standing: Standing::Stalled,
        reason,
        message,
    }
}

fn up_to_date(nodes: &NodeCounts, version: &OsVersion) -> Verdict {
    let others = match nodes.superseded {
        0 => String::new(),
        some => format!("; {some} more are governed by other upgrades"),
    };
    let message = match nodes.up_to_date {
        1 => format!("the node runs {version}{others}"),
        all => format!("all {all} nodes run {version}{others}"),
    };
    done(UpgradePhase::Completed, UpgradeReason::UpToDate, message)
}

fn done(phase: UpgradePhase, reason: UpgradeReason, message: String) -> Verdict {
    Verdict { phase, ready: Truth::True, standing: Standing::AtRest, reason, message }
}

fn superseded<'f>(campaign: &Campaign<'f>, stands: &Stands<'f>, phase: UpgradePhase) -> Verdict {
    if phase == UpgradePhase::Completed {
        return done(
            phase,
            UpgradeReason::UpToDate,
            "completed, and its nodes were moved on since".to_owned(),
        );
    }
    let governors = stands.of(campaign).filter_map(|(_, stand)| match stand {
        Stand::MovedOn(by) => *by,
        _ => None,
    });
    let governors: BTreeSet<&str> = governors.collect();
    let governors: Vec<_> = governors.into_iter().collect();
    let message = if governors.is_empty() {
        "its nodes were moved on to other versions".to_owned()
    } else {
        format!("all its nodes are governed by {}", names(&governors))
    };
    done(UpgradePhase::Superseded, UpgradeReason::Superseded, message)
}

/// No node matches: most often a misspelt label, so the labels that would match are named.
fn nobody(survey: &Survey<'_>, campaign: &Campaign<'_>) -> Verdict {
    if campaign.view.upgrade.spec.allow_empty == Some(true) {
        return done(
            UpgradePhase::Completed,
            UpgradeReason::NoMatchingNodes,
            "no managed node matches, as allowEmpty permits".to_owned(),
        );
    }
    let managed: Vec<_> =
        survey.fleet.nodes.iter().filter(|node| node.management == Management::Managed).collect();
    if managed.is_empty() {
        let message = format!("no node carries the label {LABEL_MANAGED}=true");
        return pending(UpgradeReason::NoMatchingNodes, message);
    }
    let labels: BTreeSet<String> = managed
        .iter()
        .flat_map(|node| node.labels.iter())
        .filter(|(key, _)| !matches!(key.as_str(), LABEL_MANAGED | "kubernetes.io/hostname"))
        .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}={value}") })
        .collect();
    let shown: Vec<&str> = labels.iter().take(20).map(String::as_str).collect();
    let more = labels.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = if shown.is_empty() {
        "no managed node matches the nodeSelector; none carries another label".to_owned()
    } else {
        format!("no managed node matches the nodeSelector; managed nodes carry {}{more}", shown.join(", "))
    };
    pending(UpgradeReason::NoMatchingNodes, message)
}

fn left_behind<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    version: &OsVersion,
    unable: &[Unable<'_>],
) -> String {
    let failures = Failures::of(survey, campaign, stands);
    let failed: BTreeSet<&str> =
        failures.before_reboot.iter().chain(&failures.after_commit).copied().collect();
    let failed: Vec<_> = failed.into_iter().collect();
    let mut message =
        format!("{} did not get to {version}; correct the cause, then set a new retryNonce", names(&failed));
    if !unable.is_empty() {
        message.push_str("; ");
        message.push_str(&explain(unable));
    }
    message
}

/// Whether the run under way was complete before: nodes that join later do not undo that.
fn was_completed(campaign: &Campaign<'_>) -> bool {
    let phase = campaign.view.upgrade.status.as_ref().and_then(|status| status.phase.as_ref());
    campaign.run.is_some() && phase == Some(&UpgradePhase::Completed)
}

fn planned<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    target: &Target,
    unable: &[Unable<'_>],
) -> Verdict {
    let moves = stands.of(campaign).filter_map(|(node, stand)| match stand {
        Stand::Unordered(hops) => {
            let from = node.version().map(ToString::to_string).unwrap_or_default();
            let hops: Vec<String> = hops.iter().map(|hop| hop.version.to_string()).collect();
            Some(format!("{} ({from} to {})", node.name(), hops.join(", then ")))
        }
        _ => None,
    });
    let moves: Vec<String> = moves.collect();
    let moves: Vec<&str> = moves.iter().map(String::as_str).collect();
    let mut message = match moves.as_slice() {
        [] => format!("no node would move: all that can run {}", target.resolved.version),
        moves => format!("would move {}{}", names(moves), would_take(survey, campaign, stands)),
    };
    if !unable.is_empty() {
        message.push_str("; would not move ");
        message.push_str(&explain(unable));
    }
    done(UpgradePhase::Planned, UpgradeReason::Planned, message)
}

/// How long that would take, roughly: the sentence is to be the same at every look, so windows are left out, and what
/// nodes of other upgrades took since the last one makes no difference.
fn would_take<'f>(survey: &Survey<'f>, campaign: &Campaign<'f>, stands: &Stands<'f>) -> String {
    let Some(takes) = forecast::duration(survey, campaign, stands) else { return String::new() };
    let quarters = (takes.as_mins().max(1) + 14) / 15;
    let takes = match quarters {
        ..8 => SignedDuration::from_mins(quarters * 15),
        _ => SignedDuration::from_hours((quarters + 3) / 4),
    };
    let within = if campaign.rollout.windows.is_empty() { "" } else { ", within its windows" };
    format!("; that would take about {takes:#}{within}")
}
