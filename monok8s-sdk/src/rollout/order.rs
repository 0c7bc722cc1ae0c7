//! One progress object, and where the node stands in it.

use std::cmp::Ordering;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::action::ObjectRef;
use super::drain;
use super::fleet::{Readiness, UpgradeView};
use super::halt::Failed;
use super::index::{NodeEntry, OrderEntry};
use super::survey::Campaign;
use crate::api::{
    BootGrant, ConditionType, ImageRef, OSUpgradeProgressStatus, OrderSpec, ProgressPhase, RolloutSpec,
    condition_is_true, find_condition,
};
use crate::version::OsVersion;

/// How long a boot grant may be used. Long enough for an agent to read the slot back once more,
/// short enough that a grant nobody saw does not stand for hours.
pub(super) const GRANT_LIFETIME: SignedDuration = SignedDuration::from_mins(10);

/// How long a Node object may contradict a node's `Completed`, from when the operator first saw it:
/// the clock of the node may be hours off. The two are read by different watches, and the younger
/// word may arrive first.
const SETTLING_TIME: SignedDuration = SignedDuration::from_secs(30);

/// Where a node stands in an order that is meant for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State<'f> {
    /// Nobody says yet what it runs.
    Blind,
    /// It may not be staged yet.
    Unstaged(&'f ImageRef),
    /// It has leave to stage, and has not done so.
    Staging(&'f OsVersion),
    /// The version is in the other slot, and may be booted with leave.
    Staged(&'f OsVersion),
    /// It has committed to a reboot, or says something only a newer release understands.
    Committed,
    /// It says that it is done; its Node object does not say so yet.
    Settling,
    /// It is done, and everything agrees.
    Done,
    /// It failed before any reboot, or took too long to get there.
    Failed,
    /// It went back to the old slot after a commit.
    RolledBack,
    /// It committed, and did not come back in time.
    Lost,
    /// It said that it was done, and something else says otherwise.
    Unexplained,
    /// A person sent it back to its other slot on purpose; it stays there for this run.
    SentBack,
    /// The upgrade let go of it.
    LetGo,
}

impl State<'_> {
    /// When the node failed, if it did.
    pub(super) fn failed(&self) -> Option<Failed> {
        match self {
            Self::Failed => Some(Failed::BeforeReboot),
            Self::RolledBack | Self::Lost | Self::Unexplained => Some(Failed::AfterCommit),
            _ => None,
        }
    }
}

/// Whether a node that is back soaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Soak {
    /// It need not.
    Never,
    /// It does, since then.
    Since(Timestamp),
    /// It did for long enough.
    Over,
}

impl OrderEntry {
    pub(super) fn uid(&self) -> &str {
        self.progress().metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn name(&self) -> &str {
        self.progress().metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef {
            name: self.name().to_owned(),
            uid: self.uid().to_owned(),
            resource_version: self.progress().metadata.resource_version.clone().unwrap_or_default(),
        }
    }

    /// The order; `None` for a hand-made object.
    fn order(&self) -> Option<&OrderSpec> {
        self.progress().spec.order.as_ref()
    }

    pub(super) fn boot(&self) -> Option<&BootGrant> {
        if self.has_boot { self.order()?.boot.as_ref() } else { None }
    }

    pub(super) fn conditions(&self) -> &[Condition] {
        // Most have none: the flag spares a look at the object.
        if self.has_conditions { self.progress().conditions() } else { &[] }
    }

    fn status(&self) -> Option<&OSUpgradeProgressStatus> {
        self.progress().status.as_ref()
    }

    pub(super) fn has_grants(&self) -> bool {
        self.stage().is_some() || self.has_boot
    }

    /// Whether the node says that it is done.
    pub(super) fn is_done(&self) -> bool {
        self.phase == ProgressPhase::Completed
    }

    /// Whether an agent could still act on a grant.
    pub(super) fn has_grants_in_use(&self) -> bool {
        self.has_leave_in_use() || (self.has_grants() && !self.is_done())
    }

    /// Whether an agent could still act on leave to reboot. On an order that is done it is a memory, as no agent takes it
    /// twice; where a person asks for another attempt it is taken back all the same.
    pub(super) fn has_leave_in_use(&self) -> bool {
        let is_asked = self.rollback_is_wanted || self.retry_is_pending;
        self.has_boot && (!self.is_done() || is_asked)
    }

    pub(super) fn says(&self, condition: &ConditionType) -> bool {
        condition_is_true(self.conditions(), condition)
    }

    /// Whether the node may be past the point where a grant can be taken back. A phase of a newer
    /// release counts: to treat a running reboot as a download would uncordon it.
    pub(super) fn is_committed(&self) -> bool {
        self.phase.is_committed() || matches!(self.phase, ProgressPhase::Unknown(_))
    }

    /// Whether there is a grant that could still be used.
    pub(super) fn may_yet_commit(&self) -> bool {
        self.has_leave_in_use() && !self.is_committed()
    }

    /// Whether a person asks for another attempt on this very node, or got one. The nonce of the
    /// upgrade, which a new order may carry, is meant for the run and not for the node.
    pub(super) fn is_retried(&self, upgrade: &UpgradeView) -> bool {
        let failed = matches!(self.phase, ProgressPhase::Failed | ProgressPhase::RolledBack);
        let asked =
            self.has_retry_nonce && self.progress().retry_nonce() != upgrade.upgrade.spec.retry_nonce();
        asked && (!failed || self.retry_is_pending)
    }

    /// Where the last hop leads.
    pub(super) fn target(&self) -> Option<&OsVersion> {
        self.hops().last().map(|hop| &hop.version)
    }

    fn phase_began(&self, phase: &ProgressPhase) -> Option<Timestamp> {
        self.progress().phase_began(phase)
    }

    /// The hop to take from `running`: the first one that lies ahead, as the agent counts too.
    pub(super) fn next_hop(&self, running: &OsVersion) -> Option<&ImageRef> {
        let direction = self.target()?.cmp(running);
        match self.hops() {
            _ if direction == Ordering::Equal => None,
            [only] => Some(only),
            hops => hops.iter().find(|hop| hop.version.cmp(running) == direction),
        }
    }

    /// When the node committed, as far as its clock can be trusted: inside the grant.
    pub(super) fn committed_at(&self) -> Option<Timestamp> {
        let said = self.phase_began(&ProgressPhase::Rebooting);
        match self.boot() {
            Some(grant) => {
                let latest = grant.not_after.0;
                Some(said.unwrap_or(latest).clamp(later(latest, -GRANT_LIFETIME), latest))
            }
            None => said,
        }
    }

    /// Whether the node soaks, once it is back: since the operator saw it, which its condition remembers.
    pub(super) fn soak(&self, campaign: &Campaign<'_>, node: &NodeEntry, now: Timestamp) -> Soak {
        let lasts = campaign.soaks(node);
        if lasts.is_zero() || !self.is_done() {
            return Soak::Never;
        }
        let seen = find_condition(self.conditions(), &ConditionType::Soaking);
        match seen.filter(|seen| seen.last_transition_time.0 <= now) {
            Some(seen) if seen.status == "True" => {
                let since = seen.last_transition_time.0;
                if later(since, lasts) > now { Soak::Since(since) } else { Soak::Over }
            }
            Some(_) => Soak::Over,
            // It begins now, unless the node was back for as long already before anybody wanted it to soak: by its own
            // clock, and it committed before its leave ended.
            None => {
                let leave_ended = self.boot().map(|grant| grant.not_after.0);
                let said = self.phase_began(&ProgressPhase::Completed).filter(|said| *said <= now);
                let latest = leave_ended.max(said);
                let is_long_ago = |at| later(later(at, campaign.reboot_timeout()), lasts) <= now;
                if latest.is_none_or(is_long_ago) { Soak::Never } else { Soak::Since(now) }
            }
        }
    }

    /// Whether it is said of the node that it soaks, or has soaked.
    pub(super) fn soaks_already(&self) -> bool {
        find_condition(self.conditions(), &ConditionType::Soaking).is_some()
    }

    /// When the attempt that is under way began: the later of the operator's word and the node's
    /// own, which is not believed about the future.
    pub(super) fn staging_began(&self, now: Timestamp) -> Option<Timestamp> {
        let stamp = self.stamp().filter(|stamp| stamp.status == "False");
        let stamp = stamp.map(|stamp| stamp.last_transition_time.0).or_else(|| self.stage_granted_at(now))?;
        let said = self.phase_began(&ProgressPhase::Downloading).filter(|said| *said <= now);
        Some(said.map_or(stamp, |said| said.max(stamp)))
    }

    /// Whether the time of an attempt to stage has to be stamped: where the grant does not tell when it began.
    pub(super) fn needs_stamp(&self, now: Timestamp) -> bool {
        self.stamp().is_some() || self.stage_granted_at(now).is_none()
    }

    /// The condition `TimedOut`: True once the attempt was given up; False while its time runs, where the grant does not
    /// tell when that began.
    fn stamp(&self) -> Option<&Condition> {
        find_condition(self.conditions(), &ConditionType::TimedOut)
    }

    /// What is said of an attempt that was given up for its time.
    pub(super) fn gave_up(&self) -> Option<&Condition> {
        self.stamp().filter(|timed_out| timed_out.status == "True")
    }

    /// When the grant to stage was given, where it was for the attempt under way: the first one, and before the node
    /// was staged. A grant of the future is of another clock, and its time might never be over.
    fn stage_granted_at(&self, now: Timestamp) -> Option<Timestamp> {
        let granted = self.order()?.stage_granted_at.as_ref()?.0;
        let is_first = !self.has_retry_nonce && !self.has_been_staged();
        (is_first && granted <= now).then_some(granted)
    }

    /// Whether the node was staged before for the grant that it has. A timeline tells hops where there are several.
    fn has_been_staged(&self) -> bool {
        let timeline = self.status().map_or(&[][..], |status| status.timeline.as_slice());
        timeline.iter().any(|entry| {
            matches!(entry.phase, ProgressPhase::Staged | ProgressPhase::Draining)
                && entry.hop.as_deref().is_none_or(|hop| self.stage().is_some_and(|stage| names(hop, stage)))
        })
    }

    /// The deadline that a node in this state is under, if any: of its reboot, its commit or its staging.
    pub(super) fn deadline(
        &self,
        state: &State<'_>,
        rollout: &RolloutSpec,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let reboot = SignedDuration::from_secs(rollout.reboot_timeout_seconds().into());
        let staging = SignedDuration::from_secs(rollout.staging_timeout_seconds().into());
        match state {
            State::Committed => self.committed_at().map(|at| later(at, reboot)),
            State::Staging(_) => self.staging_began(now).map(|at| later(at, staging)),
            State::Staged(_) if !self.has_boot => drain::deadline_to_abort(self, rollout),
            State::Staged(_) => {
                let granted = find_condition(self.conditions(), &ConditionType::BootGranted)?;
                (granted.status == "True").then(|| later(granted.last_transition_time.0, reboot))
            }
            State::Settling => {
                let seen = find_condition(self.conditions(), &ConditionType::Degraded)?;
                Some(later(seen.last_transition_time.0, SETTLING_TIME))
            }
            _ => None,
        }
    }

    /// Where the node stands, deadlines included.
    pub(super) fn state<'f>(
        &'f self,
        node: &'f NodeEntry,
        rollout: &RolloutSpec,
        now: Timestamp,
    ) -> State<'f> {
        let state = self.plain_state(node);
        let over = self.deadline(&state, rollout, now).is_some_and(|deadline| deadline <= now);
        match state {
            State::Committed if over => State::Lost,
            State::Settling
                if self.is_contradicted(node) && (over || self.says(&ConditionType::Degraded)) =>
            {
                State::Unexplained
            }
            State::Staging(_) | State::Staged(_) if over || self.timed_out_before(now) => State::Failed,
            state => state,
        }
    }

    /// When the node failed, by the order alone: its Node is gone, or nobody's any more. One that committed and is gone
    /// has failed once its time to come back is over.
    pub(super) fn failed(&self, rollout: &RolloutSpec, now: Timestamp) -> Option<Failed> {
        let is_late =
            || self.deadline(&State::Committed, rollout, now).is_some_and(|deadline| deadline <= now);
        match self.phase {
            _ if self.retry_is_pending || self.has_rollback_nonce => None,
            _ if self.is_committed() => is_late().then_some(Failed::AfterCommit),
            ProgressPhase::RolledBack => Some(Failed::AfterCommit),
            ProgressPhase::Failed => Some(Failed::BeforeReboot),
            ProgressPhase::Completed => self.says(&ConditionType::Degraded).then_some(Failed::AfterCommit),
            _ => self.gave_up().map(|_| Failed::BeforeReboot),
        }
    }

    /// Whether something says that the node does not run the target. One that is merely not ready
    /// yet has not gone back.
    pub(super) fn is_contradicted(&self, node: &NodeEntry) -> bool {
        let installed = self.installed();
        self.target().is_none_or(|target| {
            node.contradicts(target) || installed.is_some_and(|installed| installed != target)
        })
    }

    /// Whether this attempt was given up for its time. A new attempt starts with a clean slate: one that was asked for
    /// since. The nonce that an order was made with is no new one, however long the node leaves it unanswered.
    fn timed_out_before(&self, now: Timestamp) -> bool {
        let Some(timed_out) = self.gave_up() else { return false };
        let asked_since = timed_out.observed_generation < self.progress().metadata.generation;
        if self.retry_is_pending && (asked_since || self.phase.is_final()) {
            return false;
        }
        let began = self.phase_began(&ProgressPhase::Downloading).filter(|at| *at <= now);
        began.is_none_or(|began| began <= timed_out.last_transition_time.0)
    }

    /// Where the node stands by what is written, whatever the time.
    fn plain_state<'f>(&'f self, node: &'f NodeEntry) -> State<'f> {
        if self.is_committed() {
            return State::Committed;
        }
        if self.phase == ProgressPhase::Superseded
            || (self.says(&ConditionType::Superseded) && !self.is_done())
        {
            return State::LetGo;
        }
        // Of two nonces the node answers this one first.
        if self.rollback_is_wanted || self.has_rollback_nonce && !self.retry_is_pending {
            return self.sent_back(node);
        }
        match self.phase {
            ProgressPhase::Completed => self.completed(node),
            ProgressPhase::Failed if !self.retry_is_pending => State::Failed,
            ProgressPhase::RolledBack if !self.retry_is_pending => State::RolledBack,
            _ => self.under_way(node),
        }
    }

    fn completed<'f>(&self, node: &NodeEntry) -> State<'f> {
        match (self.is_contradicted(node), node.readiness) {
            (false, Readiness::Ready) => State::Done,
            _ => State::Settling,
        }
    }

    fn under_way<'f>(&'f self, node: &NodeEntry) -> State<'f> {
        let Some(running) = node.version().filter(|_| self.run.is_some()) else { return State::Blind };
        let Some(next) = self.next_hop(running) else {
            // On the target already, by other means: the node's own word will follow.
            return State::Done;
        };
        let staged = matches!(self.phase, ProgressPhase::Staged | ProgressPhase::Draining)
            && self.hop.as_deref().is_none_or(|hop| names(hop, &next.version));
        match self.stage() {
            Some(stage) if *stage == next.version && staged => State::Staged(stage),
            Some(stage) if *stage == next.version => State::Staging(stage),
            _ => State::Unstaged(next),
        }
    }

    /// A node that goes to its other slot has nothing to stage: what is there is known to be good.
    fn sent_back<'f>(&self, node: &'f NodeEntry) -> State<'f> {
        match node.goes_back_to() {
            Some(version) if self.rollback_is_wanted => State::Staged(version),
            _ => State::SentBack,
        }
    }
}

/// Whether a text of a node's is that version.
fn names(text: &str, version: &OsVersion) -> bool {
    text.parse().is_ok_and(|named: OsVersion| named == *version)
}

/// `at` and `more`, as far as times go: what is written in an object may be at their end.
pub(super) fn later(at: Timestamp, more: SignedDuration) -> Timestamp {
    let end = if more.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(more).unwrap_or(end)
}
