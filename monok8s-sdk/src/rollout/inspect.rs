//! Where each node of an upgrade stands, in words for people. It is the planner's own view: what it would do now
//! says what a node waits for.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::fleet::{Evaluation, Fleet, NodeView, Readiness};
use super::forecast::forecast;
use super::govern::{Member, Stand, Stands};
use super::index::{Index, OrderEntry};
use super::judge::judge;
use super::order::State;
use super::outlook::{Outlook, Wait};
use super::plan::draft;
use super::survey::{Campaign, Survey};
use crate::api::{ConditionType, ImageRef, ProgressPhase, UpgradeReason, find_condition};
use crate::version::OsVersion;

/// An upgrade, and where each of its nodes stands.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What is reported about the upgrade.
    pub outlook: Outlook,
    /// Its nodes, by name.
    pub nodes: Vec<Standing>,
    /// When a window opens or closes next, or another wait or deadline is over, in this upgrade or another one.
    pub next_event: Option<Timestamp>,
}

/// Where one node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub node: String,
    /// What it runs, as far as anyone says.
    pub version: Option<OsVersion>,
    /// The name of its progress object, if it has one in the run under way.
    pub progress: Option<String>,
    /// The versions that it has yet to boot, the last one being the target; none if it does not move.
    pub hops: Vec<OsVersion>,
    /// What that comes to for a person.
    pub assessment: Assessment,
    /// One word for why it does not go on, or did not.
    pub reason: Option<UpgradeReason>,
    /// One sentence.
    pub message: String,
    /// When it is expected to be done, if nothing holds it up that nobody can foresee.
    pub ends: Option<Timestamp>,
}

/// What a node's state comes to for a person, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Assessment {
    /// It failed, or fell back, and stays where it is until somebody acts.
    Degraded,
    /// It does not answer.
    Unavailable,
    /// It goes on when something else has happened.
    Waiting,
    /// It is being upgraded.
    Progressing,
    /// This upgrade does nothing with it.
    Excluded,
    /// It runs the target.
    Completed,
}

impl std::fmt::Display for Assessment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // As it is serialized.
        std::fmt::Debug::fmt(self, f)
    }
}

/// Where all upgrades and their nodes stand, by the UID of the upgrade. Pure, as [`super::plan`] is.
#[must_use]
pub fn inspect(fleet: &Fleet, now: Timestamp) -> BTreeMap<String, Inspection> {
    let index = Index::new(fleet);
    let survey = Survey::new(fleet, &index, now);
    let stands = Stands::new(&survey);
    let mut draft = draft(&survey, &stands);
    let inspections = survey.campaigns.iter().map(|campaign| {
        let outlook = judge(&survey, campaign, &stands, draft.take_waits(campaign));
        let waits: BTreeMap<&str, Wait> = stands
            .members(campaign)
            .iter()
            .filter_map(|Member { node, order, .. }| {
                let wait = outlook.waits.get(node.name())?;
                Some((node.name(), told(wait, *order)))
            })
            .collect();
        let ends = forecast(&survey, campaign, &stands, waits.values());
        let ends: BTreeMap<&str, Timestamp> =
            ends.into_iter().map(|(node, end)| (node.name(), end)).collect();
        let standing = |Member { node, order, stand, .. }: &Member<'_>| {
            let wait = waits.get(node.name());
            let (assessment, reason, message) = assess(campaign, node.view(), stand, wait);
            Standing {
                node: node.name().to_owned(),
                version: node.version().cloned(),
                progress: order.map(|order| order.name().to_owned()),
                hops: hops(node.view(), stand),
                assessment,
                reason,
                message,
                ends: ends.get(node.name()).copied(),
            }
        };
        let nodes = stands.members(campaign).iter().map(standing).collect();
        let next_event = draft.next_event();
        (campaign.view.uid().to_owned(), Inspection { outlook, nodes, next_event })
    });
    inspections.collect()
}

fn hops(node: &NodeView, stand: &Stand<'_>) -> Vec<OsVersion> {
    let versions = |hops: &[ImageRef]| hops.iter().map(|hop| hop.version.clone()).collect();
    match stand {
        Stand::Unordered(hops) => versions(hops),
        Stand::Ordered(order, State::Unstaged(_) | State::Staging(_) | State::Staged(_)) => {
            let ahead = || {
                let hops = order.hops();
                let next = order.next_hop(node.version.as_ref()?)?;
                hops.get(hops.iter().position(|hop| hop.version == next.version)?..)
            };
            ahead().map(versions).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// What a drain waits for is the operator's to know, which watches the pods, and to write down.
fn told(wait: &Wait, order: Option<&OrderEntry>) -> Wait {
    let drains = matches!(wait.reason, UpgradeReason::Draining | UpgradeReason::DrainBlocked);
    let drained = order.filter(|_| drains).and_then(|order| {
        find_condition(order.conditions(), &ConditionType::Drained)
            .filter(|drained| drained.status == "False")
    });
    match drained {
        Some(drained) if drained.reason == super::DRAIN_BLOCKED => {
            Wait { reason: UpgradeReason::DrainBlocked, message: drained.message.clone() }
        }
        Some(drained) => Wait { reason: UpgradeReason::Draining, message: drained.message.clone() },
        None if drains => {
            let message = "is cordoned, and about to be drained".to_owned();
            Wait { reason: UpgradeReason::Draining, message }
        }
        None => wait.clone(),
    }
}

type Verdict = (Assessment, Option<UpgradeReason>, String);

fn assess(campaign: &Campaign<'_>, node: &NodeView, stand: &Stand<'_>, wait: Option<&Wait>) -> Verdict {
    let verdict = by_stand(campaign, node, stand, wait);
    let rebooting = matches!(stand, Stand::Ordered(_, State::Committed));
    let hopeful = matches!(verdict.0, Assessment::Waiting | Assessment::Progressing | Assessment::Completed);
    if node.readiness == Readiness::NotReady && hopeful && !rebooting {
        return (
            Assessment::Unavailable,
            Some(UpgradeReason::NodeUnreachable),
            format!("is not Ready; {}", verdict.2),
        );
    }
    verdict
}

fn by_stand(campaign: &Campaign<'_>, node: &NodeView, stand: &Stand<'_>, wait: Option<&Wait>) -> Verdict {
    let waits = |otherwise: &str| waiting(wait, otherwise);
    let runs = || match &node.version {
        Some(version) => format!("runs {version}"),
        None => "runs the target".to_owned(),
    };
    match &campaign.view.evaluation {
        Evaluation::Accepted(_) => {}
        Evaluation::Rejected { reason, message, .. } => {
            return (Assessment::Excluded, Some(reason.clone()), message.clone());
        }
        Evaluation::Pending { reason, message, .. } => {
            return (Assessment::Waiting, Some(reason.clone()), message.clone());
        }
    }
    match stand {
        Stand::UpToDate => (Assessment::Completed, None, runs()),
        Stand::MovedOn(Some(by)) => {
            (Assessment::Excluded, Some(UpgradeReason::Superseded), format!("is governed by {by}"))
        }
        Stand::MovedOn(None) => (
            Assessment::Excluded,
            Some(UpgradeReason::Superseded),
            "was moved on by something else".to_owned(),
        ),
        Stand::Refused(reason, message) | Stand::Excluded(reason, message) => {
            (Assessment::Excluded, Some(reason.clone()), message.clone())
        }
        Stand::Unknown => waits("waits until it says what it runs"),
        Stand::Finishing(order) => waits(&format!("{} has it in a reboot", order.name())),
        Stand::Unordered(_) => waits("waits for its order"),
        Stand::Ordered(order, state) => ordered(campaign, (node, *order), state, wait, &runs()),
    }
}

fn waiting(wait: Option<&Wait>, otherwise: &str) -> Verdict {
    let Some(Wait { reason, message }) = wait else {
        return (Assessment::Waiting, None, otherwise.to_owned());
    };
    // A drain is work, as long as nothing is in its way.
    let assessment = match reason {
        UpgradeReason::Draining => Assessment::Progressing,
        _ => Assessment::Waiting,
    };
    (assessment, Some(reason.clone()), message.clone())
}

fn ordered(
    campaign: &Campaign<'_>,
    (node, order): (&NodeView, &OrderEntry),
    state: &State<'_>,
    wait: Option<&Wait>,
    runs: &str,
) -> Verdict {
    let degraded = |words: String| (Assessment::Degraded, None, words);
    let progressing = |words: String| (Assessment::Progressing, None, words);
    let waits = |otherwise: &str| waiting(wait, otherwise);
    match state {
        State::Blind => waits("waits until it says what it runs"),
        State::Unstaged(_) => waits("may stage next"),
        State::Staging(version) => progressing(match order.phase {
            ProgressPhase::Downloading => format!("downloads {version}"),
            ProgressPhase::Verifying => format!("reads {version} back"),
            _ => format!("is about to download {version}"),
        }),
        State::Staged(version) if order.has_boot => {
            progressing(format!("has leave to reboot into {version}"))
        }
        State::Staged(version) if wait.is_none() && node.cordoned_for.as_deref() == Some(order.uid()) => {
            progressing(format!("is cordoned, and about to get leave to reboot into {version}"))
        }
        State::Staged(version) => waits(&format!("has {version} in its other slot, and is next")),
        State::Committed => {
            let confirming = order.phase == ProgressPhase::Confirming;
            progressing(if confirming { "is on trial".to_owned() } else { "reboots".to_owned() })
        }
        State::Settling => progressing("is back, and its Node object is yet to say so".to_owned()),
        State::Done => (Assessment::Completed, None, runs.to_owned()),
        State::Failed => degraded(why(order, "failed before any reboot")),
        State::RolledBack => degraded(why(order, "went back to its old slot")),
        State::Lost => (
            Assessment::Degraded,
            Some(UpgradeReason::NodeUnreachable),
            format!(
                "committed to a reboot and did not come back within {} minutes",
                campaign.reboot_timeout().as_mins()
            ),
        ),
        State::Unexplained => degraded(
            find_condition(order.conditions(), &ConditionType::Degraded)
                .map_or("is not what it says".to_owned(), |seen| seen.message.clone()),
        ),
        State::SentBack => {
            (Assessment::Excluded, Some(UpgradeReason::SentBack), "a person sent it back".to_owned())
        }
        State::LetGo => (Assessment::Excluded, Some(UpgradeReason::Superseded), "was let go".to_owned()),
    }
}

/// Why a node failed: by its own word, or by that of the operator, which gave it up.
fn why(order: &OrderEntry, otherwise: &str) -> String {
    if let Some(timed_out) = order.gave_up() {
        return timed_out.message.clone();
    }
    let status = order.progress().status.as_ref();
    let said = |word: Option<&String>| word.filter(|word| !word.is_empty()).cloned();
    let reason = said(status.and_then(|status| status.failure_reason.as_ref()));
    let message = said(status.and_then(|status| status.message.as_ref()));
    match (reason, message) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (Some(word), None) | (None, Some(word)) => word,
        (None, None) => otherwise.to_owned(),
    }
}
