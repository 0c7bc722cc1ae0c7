//! Carrying out the one action that was decided.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use monok8s_sdk::api::{FailureReason, OSUpgradeProgress};
use monok8s_sdk::boot::{ArmableSlot, AttemptId, Reverter, Tries};
use monok8s_sdk::causes::chain;
use monok8s_sdk::disk::{KnownGoodSlot, VerifiedSlot};
use monok8s_sdk::node_upgrade::{Action, ArmedBy, NodeFacts, Order, Step};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::Instant;

use super::cluster::ClusterError;
use super::commit::Commitment;
use super::error::NodeError;
use super::failure::Failure;
use super::node::{IDLE, Node};
use super::present::{self, Scene};
use super::report::BYTES_INTERVAL;
use super::work::{Job, Outcome, Standing};
#[cfg(feature = "failpoints")]
use crate::failpoints::{self, Point};
use crate::loader::KernelError;
use crate::reboot;

/// How often the health of a trial is looked at.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);
/// How long the API server is left alone after it did not answer.
const AWAY: Duration = Duration::from_secs(2);
/// How long a host that was asked to reboot may take before it is asked again.
const GOING_DOWN: Duration = Duration::from_secs(120);

/// What follows an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Observe again at once.
    Again,
    /// Observe again when something happens, at the latest after this time.
    Rest(Duration),
}

/// What an action is about.
#[derive(Clone, Copy)]
pub(super) struct Deed<'a> {
    pub(super) facts: &'a NodeFacts,
    pub(super) order: Option<&'a Order>,
    /// The object that the order was read from.
    pub(super) object: Option<&'a OSUpgradeProgress>,
}

impl Node {
    /// Carries out `action`. Physical actions may be done twice; what they came to is recorded
    /// before anything else begins.
    pub(super) async fn act(&mut self, deed: Deed<'_>, action: &Action) -> Result<Turn, NodeError> {
        if let Some(job) = Job::of(action) {
            return self.work_on(deed, action, &job).await;
        }
        if interrupts_work(action) {
            self.effort.stop().await;
        }
        #[cfg(feature = "failpoints")]
        failpoints::acts(action);
        match action {
            Action::Wait(_) | Action::Report(_) => return Ok(Turn::Rest(self.report(deed, action).await)),
            Action::AwaitHealth { remaining, .. } => {
                let wait = self.report(deed, action).await.min(TRIAL_INTERVAL).min(*remaining);
                return Ok(Turn::Rest(wait));
            }
            Action::Reboot { into } => {
                // Whatever woke this up, the host goes down at its own pace.
                let since = self.going_down_since.map(|asked| asked.elapsed());
                if let Some(rest) = since.and_then(|since| GOING_DOWN.checked_sub(since)) {
                    return Ok(Turn::Rest(rest));
                }
                tracing::warn!(%into, "rebooting");
                self.reboot().await?;
                self.going_down_since = Some(Instant::now());
                #[cfg(feature = "failpoints")]
                failpoints::reached(Point::RebootAsked);
                return Ok(Turn::Rest(GOING_DOWN));
            }
            Action::Reread => return Ok(self.reread(deed).await),
            Action::Commit { version, slot, resource_version } => {
                return self.commit(deed, version, *slot, resource_version).await;
            }
            Action::Record(step) => self.record(step)?,
            Action::Arm { slot, attempt, tries, by } => self.arm(*slot, *attempt, *tries, *by)?,
            Action::MarkGood { slot } => block_in_place(|| self.loader.backend().mark_good(*slot))?,
            Action::Invalidate { slot } => {
                self.token = None;
                if let Err(error) = block_in_place(|| self.loader.backend().invalidate(*slot)) {
                    self.fail(&Failure::lasting(error.reason(), chain(&error)))?;
                }
            }
            Action::Disarm => block_in_place(|| self.loader.backend().disarm())?,
            Action::Confirm { slot } => {
                tracing::info!(%slot, "the trial holds: confirming");
                block_in_place(|| self.loader.backend().confirm())?;
            }
            Action::RevertTrial { reason } => {
                tracing::warn!(%reason, "the trial does not hold: going back");
                block_in_place(|| self.loader.backend().revert(Reverter::Agent))?;
            }
            Action::Write { .. } | Action::Verify { .. } => {}
        }
        Ok(Turn::Again)
    }

    /// Long work goes on beside the loop; here it is started, looked at, and taken in.
    async fn work_on(&mut self, deed: Deed<'_>, action: &Action, job: &Job) -> Result<Turn, NodeError> {
        // The slot is opened anew, and a token holds it.
        self.token = None;
        if let Action::Write { slot, .. } = action
            && !self.effort.is_on(job)
        {
            // Also if the loader's state says so already: an old copy of it may say otherwise.
            block_in_place(|| self.loader.backend().invalidate(*slot))?;
        }
        match self.effort.drive(&self.workshop, job).await {
            Standing::Ended(outcome) => self.take_in(outcome).await.map(|()| Turn::Again),
            Standing::UnderWay => Ok(Turn::Rest(self.report(deed, action).await.min(BYTES_INTERVAL))),
            Standing::Paused(wait) => Ok(Turn::Rest(self.report(deed, action).await.min(wait))),
        }
    }

    async fn take_in(&mut self, outcome: Outcome) -> Result<(), NodeError> {
        match outcome {
            Outcome::Written(body) => {
                let (image_digest, image_len) = (body.image(), body.length());
                // First what the slot must read back as, then the bytes that make it bootable: a
                // cut in between is judged by reading back.
                self.record(&Step::Written { image_digest, image_len })?;
                match spawn_blocking(move || body.finish()).await {
                    Ok(Err(error)) => self.fail(&Failure::of(&error.into())),
                    Ok(Ok(written)) => {
                        self.effort.keep(written);
                        Ok(())
                    }
                    Err(_) => Ok(()),
                }
            }
            Outcome::Verified(token) => {
                self.token = Some(token);
                self.record(&Step::Verified)
            }
            Outcome::NotAsRecorded(slot, message) => {
                tracing::warn!(message, "the slot does not hold what was recorded: it is written again");
                self.record(&Step::SlotForgotten { slot })
            }
            Outcome::ReadBackDiffers(message) => {
                tracing::error!(message, "the slot does not read back as it was written");
                self.record(&Step::ReadBackDiffers)
            }
            Outcome::Failed(failure) => self.fail(&failure),
            Outcome::Cancelled => Ok(()),
        }
    }

    /// Asks the host's init; and the kernel, if that was asked before and the machine is still here.
    async fn reboot(&mut self) -> Result<(), NodeError> {
        let (host, command) = (self.workshop.host.clone(), self.reboot_command.clone());
        let in_vain = std::mem::replace(&mut self.reboot_asked, true) && command.is_none();
        let ask = move || {
            if in_vain { reboot::by_system_call() } else { reboot::reboot(&host, command.as_ref()) }
        };
        Ok(spawn_blocking(ask).await.unwrap_or(Ok(()))?)
    }

    fn fail(&mut self, failure: &Failure) -> Result<(), NodeError> {
        let (reason, message) = (failure.reason.clone(), failure.message.clone());
        tracing::error!(%reason, message, "the attempt failed");
        self.record(&Step::Failed { reason, message })
    }

    fn arm(&mut self, slot: Slot, attempt: AttemptId, tries: Tries, by: ArmedBy) -> Result<(), NodeError> {
        let token: ArmableSlot = match by {
            // Decided because the token is held; without it the next turn verifies again.
            ArmedBy::Verified => match self.token.take_if(|token| token.slot() == slot) {
                Some(token) => {
                    if let Err(error) = self.stage_kernel(&token) {
                        return self.fail(&Failure::lasting(FailureReason::LoaderError, chain(&error)));
                    }
                    token.into()
                }
                None => return Ok(()),
            },
            ArmedBy::KnownGood => match self.record.slots.get(slot) {
                Some(content) => {
                    let version = content.version.clone();
                    KnownGoodSlot::from_confirm_record(slot, version, content.image_digest).into()
                }
                None => return Ok(()),
            },
        };
        if let Err(error) = block_in_place(|| self.loader.backend().arm_trial(token, attempt, tries)) {
            return self.fail(&Failure::lasting(error.reason(), chain(&error)));
        }
        tracing::info!(%slot, %attempt, "armed");
        Ok(())
    }

    /// Lets a loader that cannot read slots have the kernel of this one.
    fn stage_kernel(&self, slot: &VerifiedSlot) -> Result<(), KernelError> {
        let Some(attempt) = &self.record.attempt else { return Ok(()) };
        let Some(slots) = &self.slots else { return Ok(()) };
        let root = format!("PARTUUID={}", slots.get(slot.slot()).partition.guid);
        block_in_place(|| self.loader.stage(slot, &attempt.version, &root))
    }

    /// The point of no return: a write that fails if anything in the object changed since the grant
    /// was read.
    async fn commit(
        &mut self,
        deed: Deed<'_>,
        version: &OsVersion,
        slot: Slot,
        resource_version: &str,
    ) -> Result<Turn, NodeError> {
        let (Some(object), Some(scene)) = (deed.object, self.scene(deed)) else { return Ok(Turn::Again) };
        if object.metadata.resource_version.as_deref() != Some(resource_version) {
            return Ok(Turn::Again);
        }
        let Scene { object, order, facts, work, now } = scene;
        // Its story goes on from what was not written yet.
        let object = &OSUpgradeProgress { status: Some(self.reporter.told(object)), ..object.clone() };
        let commitment = Commitment { object, order, facts, version, slot, progress: work.progress };
        match commitment.announce(&self.cluster, now).await {
            Ok(written) => {
                #[cfg(feature = "failpoints")]
                failpoints::reached(Point::CommitTaken);
                self.reporter.wrote(object);
                self.known.learn(written);
                self.record(&Step::Committed { boot_id: deed.facts.booted.boot_id.clone() })?;
                Ok(Turn::Again)
            }
            // Also when no answer came: the write may have been taken, and the object tells.
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the commit was not taken");
                let reread = self.reread(deed).await;
                Ok(after_refusal(&error, reread))
            }
        }
    }

    async fn reread(&mut self, deed: Deed<'_>) -> Turn {
        let Some(object) = deed.object else { return Turn::Again };
        match self.cluster.progress(object.metadata.name.as_deref().unwrap_or_default()).await {
            Ok(read) => {
                if read.metadata.uid != object.metadata.uid {
                    self.known.miss(object);
                }
                self.known.learn(read);
                Turn::Again
            }
            Err(ClusterError::Absent { .. }) => {
                self.known.miss(object);
                Turn::Again
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot read the order again");
                Turn::Rest(AWAY)
            }
        }
    }

    /// Makes the object say what `action` means for it.
    async fn report(&mut self, deed: Deed<'_>, action: &Action) -> Duration {
        let report = self.scene(deed).and_then(|scene| present::report(&scene, action));
        match (report, deed.object) {
            (Some(report), Some(object)) => self.say(object, &report).await,
            _ => IDLE,
        }
    }

    fn scene<'a>(&self, deed: Deed<'a>) -> Option<Scene<'a>> {
        let Deed { facts, order, object } = deed;
        Some(Scene { object: object?, order: order?, facts, work: self.effort.view(), now: Timestamp::now() })
    }
}

/// What follows a commit that was not taken, once the object was read again. Only a change of the
/// object explains the refusal; whatever else declined it would do so again at once.
fn after_refusal(refusal: &ClusterError, reread: Turn) -> Turn {
    match refusal {
        ClusterError::Conflict { .. } | ClusterError::Absent { .. } => reread,
        ClusterError::Refused { .. } | ClusterError::Unreachable { .. } => Turn::Rest(AWAY),
    }
}

/// Whether long work must not go on beside this action. Taking note of an object does not change
/// what is wanted; if it does, the next decision says so.
fn interrupts_work(action: &Action) -> bool {
    !matches!(action, Action::Record(Step::Accepted { .. }) | Action::Reread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_declined_is_not_sent_again_at_once() {
        let what = || "OSUpgradeProgress x".to_owned();
        let declined = ClusterError::Unreachable { what: what(), source: None };
        assert_eq!(after_refusal(&declined, Turn::Again), Turn::Rest(AWAY));
        let lost = ClusterError::Conflict { what: what() };
        assert_eq!(after_refusal(&lost, Turn::Again), Turn::Again);
        assert_eq!(after_refusal(&ClusterError::Absent { what: what() }, Turn::Rest(AWAY)), Turn::Rest(AWAY));
    }
}
