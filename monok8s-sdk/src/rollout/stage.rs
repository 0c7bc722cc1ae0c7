//! New orders, and leave to stage.

use super::action::{Action, NewProgress};
use super::draft::Draft;
use super::fleet::{NodeReport, NodeView};
use super::gates::{self, STAGING_LIMIT};
use super::govern::{Stand, Stands};
use super::halt::{Failures, forbidden, unread_catalog};
use super::index::OrderEntry;
use super::line::Place;
use super::order::State;
use super::outlook::Wait;
use super::pace;
use super::survey::{Campaign, Survey};
use super::windows::WindowState;
use crate::api::{ImageRef, Mode, OSUpgradeProgressSpec, OrderSpec, SourceRef, UpgradeReason, progress_name};

/// Creates the orders that are missing, and grants staging as far as the upgrades allow.
pub(super) fn stage<'f>(survey: &Survey<'f>, stands: &Stands<'f>, draft: &mut Draft<'f>) {
    for campaign in &survey.campaigns {
        let Some(run) = campaign.run.filter(|_| campaign.mode() == Mode::Apply) else { continue };
        if campaign.windows.is_err() {
            continue;
        }
        if let Some(why) = campaign.pause() {
            let wait = Wait { reason: UpgradeReason::Paused, message: why.to_owned() };
            wait_all(campaign, stands, &wait, draft);
            continue;
        }
        let halt = Failures::of(survey, campaign, stands).halt();
        if let Some(halt) = &halt {
            wait_all(campaign, stands, halt, draft);
        }
        if halt.is_none() {
            create(survey, campaign, run, stands, draft);
        }
        grant(survey, campaign, stands, halt.as_ref(), draft);
    }
}

fn wait_all<'f>(campaign: &Campaign<'f>, stands: &Stands<'f>, wait: &Wait, draft: &mut Draft<'f>) {
    for (node, stand) in stands.of(campaign) {
        if matches!(stand, Stand::Unordered(_) | Stand::Ordered(_, State::Unstaged(_))) {
            draft.waits(campaign, node, wait.clone());
        }
    }
}

fn create<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    run: i64,
    stands: &Stands<'f>,
    draft: &mut Draft<'f>,
) {
    for (node, stand) in stands.of(campaign) {
        match stand {
            Stand::Unordered(hops) if survey.index.orders_of(node).any(OrderEntry::has_grants_in_use) => {
                let target = hops.last().map(|hop| hop.version.to_string()).unwrap_or_default();
                let message =
                    format!("waits for an earlier order to be taken back before {target} is ordered");
                draft.waits(campaign, node, Wait { reason: UpgradeReason::WaitingForUpgrade, message });
            }
            Stand::Unordered(hops) => {
                draft.push(Action::CreateProgress(Box::new(new_progress(campaign, run, node.view(), hops))));
            }
            Stand::Finishing(other) => {
                let message = format!("{} has the node in a reboot", other.name());
                draft.waits(campaign, node, Wait { reason: UpgradeReason::WaitingForUpgrade, message });
            }
            Stand::Ordered(order, State::LetGo) if order.is_going => {
                let message = format!("waits for {} to be gone: its finalizers keep it", order.name());
                draft.waits(campaign, node, Wait { reason: UpgradeReason::WaitingForUpgrade, message });
            }
            // It was let go, and is governed again: an order that was taken back is made anew.
            Stand::Ordered(order, State::LetGo) if !order.has_grants() => {
                draft.push(Action::DeleteProgress { progress: order.object() });
            }
            _ => {}
        }
    }
}

fn new_progress(campaign: &Campaign<'_>, run: i64, node: &NodeView, hops: &[ImageRef]) -> NewProgress {
    let upgrade = campaign.view;
    let order = OrderSpec {
        node_uid: node.uid.clone(),
        run,
        hops: hops.to_vec(),
        stage: None,
        stage_granted_at: None,
        boot: None,
        trial: campaign.rollout.trial.clone(),
    };
    NewProgress {
        name: progress_name(upgrade.uid(), run, &node.uid),
        upgrade_name: upgrade.name().to_owned(),
        upgrade_uid: upgrade.uid().to_owned(),
        spec: OSUpgradeProgressSpec {
            source_ref: SourceRef { name: upgrade.name().to_owned() },
            node_name: node.name.clone(),
            retry_nonce: answered_failure(campaign, node, hops),
            rollback_nonce: None,
            order: Some(order),
        },
    }
}

/// The upgrade's nonce, where the node needs it to take an artifact that failed there before.
fn answered_failure(campaign: &Campaign<'_>, node: &NodeView, hops: &[ImageRef]) -> Option<String> {
    let NodeReport::Present(report) = &node.report else { return None };
    // What failed since the run began is not answered by the nonce that began it.
    let answered = |at| campaign.run_started_at().is_some_and(|began| at < began);
    let mut failed_here = report.failed_images.iter().filter(|failed| answered(failed.at.0));
    let failed_here = failed_here.any(|failed| hops.iter().any(|hop| hop.checksum == failed.checksum));
    let nonce = campaign.view.upgrade.spec.retry_nonce();
    (failed_here && !nonce.is_empty()).then(|| nonce.to_owned())
}

fn grant<'f>(
    survey: &Survey<'f>,
    campaign: &Campaign<'f>,
    stands: &Stands<'f>,
    halt: Option<&Wait>,
    draft: &mut Draft<'f>,
) {
    let limit = campaign.rollout.max_parallel_staging(campaign.selected().len());
    let (mut free, mut unstaged) = (limit, Vec::new());
    for (node, stand) in stands.of(campaign) {
        match stand {
            Stand::Ordered(order, State::Unstaged(image)) => unstaged.push((node, *order, *image)),
            Stand::Ordered(_, State::Staging(_)) => free = free.saturating_sub(1),
            _ => {}
        }
    }
    unstaged.sort_by_cached_key(|(node, ..)| Place::of(node, campaign, survey));
    for (node, order, image) in unstaged {
        let retried = order.is_retried(campaign.view);
        let forbidden = forbidden(survey, campaign, image);
        let forbidden = forbidden.filter(|wait| !retried || wait.reason != UpgradeReason::VersionQuarantined);
        let closed = match campaign.stage_window {
            WindowState::Closed { opens } => Some(pace::closed("stage", opens)),
            WindowState::Open { .. } => None,
        };
        let wait = halt
            .filter(|_| !retried)
            .cloned()
            .or(forbidden)
            .or_else(|| unread_catalog(campaign))
            .or(closed)
            .or_else(|| {
                (free == 0 && gates::stands(STAGING_LIMIT)).then(|| Wait {
                    reason: UpgradeReason::WaitingToStage,
                    message: format!("maxParallelStaging lets {limit} nodes stage at once"),
                })
            });
        match wait {
            Some(wait) => draft.waits(campaign, node, wait),
            // What is left of the hop before is taken back first.
            None if order.has_boot => {}
            None => {
                free = free.saturating_sub(1);
                let version = image.version.clone();
                draft.push(Action::GrantStage { progress: order.object(), version, at: survey.now });
            }
        }
    }
}
