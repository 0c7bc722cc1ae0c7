//! What the host's guard does: the part of a trial that needs neither agent nor API server.
//!
//! The agent is a pod, so in a bad slot it may never start. The guard is a service of the host. It
//! sees that the booted slot is on trial, counts down, and sends it back unless somebody confirmed
//! it. In a confirmed slot it has the loader's evidence kept and the burnt tries refilled, and is
//! done.

use std::time::Duration;

use super::facts::{BootId, TrialHealth};
use super::record::{Attempt, AttemptState, Record};
use super::trial::{Verdict, judge};
use crate::api::FailureReason;
use crate::boot::{LoaderStatus, Reverter, TrialState};
use crate::slot::Slot;

/// How much later than the agent the guard acts, so that the agent's word on why comes first.
pub const GUARD_GRACE: Duration = Duration::from_secs(15);
/// How long whoever sent a trial back may take to reboot before the guard does it.
const GOING_DOWN: Duration = Duration::from_secs(60);

/// What the guard knows.
#[derive(Clone, Copy, Debug)]
pub struct GuardFacts<'a> {
    /// The slot that runs.
    pub booted: Slot,
    /// The loader's state, read now; `None` if it cannot be read.
    pub loader: Option<&'a LoaderStatus>,
    /// What others than the loader say about this boot.
    pub hint: TrialHint,
    /// The record, if the data partition can be read.
    pub record: Option<&'a Record>,
    /// How long this boot has been running, by the monotonic clock.
    pub uptime: Duration,
    /// How long a trial lasts of which no record says it.
    pub default_limit: Duration,
    /// When, in this boot, the trial was first seen to have been sent back; `None` while it was not.
    pub sent_back_at: Option<Duration>,
    /// Whether it had been sent back before this boot began.
    pub came_back: CameBack,
    /// What the guard itself saw of the slot while the API server is away, which would have an agent
    /// started; `None` where it is not away, or nobody looked.
    pub without_api: Option<&'a TrialHealth>,
}

/// What the kernel command line and the record say about this boot, for as long as the loader's
/// state cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialHint {
    /// Nothing.
    None,
    /// It is a trial.
    OnTrial,
}

/// Whether a slot runs whose trial was sent back before this boot began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CameBack {
    /// It does not.
    No,
    /// It does: the loader does not obey its own order.
    InSpiteOfIt,
}

/// What the guard does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardAction {
    /// Refill the tries of the booted, confirmed slot, and keep what a trial left behind.
    MarkGood,
    /// Nothing more in this boot: the booted slot is confirmed, or nobody's trial.
    StandDown,
    /// The booted slot is on trial for so much longer.
    Watch {
        /// How much is left.
        remaining: Duration,
    },
    /// Tell the loader to go back on behalf of this one, then reboot.
    SendBack {
        /// The guard, and for what.
        by: Reverter,
    },
    /// Tell the loader to keep the slot: its upgrade says that what is well locally is enough.
    Confirm,
    /// Reboot without telling the loader: somebody else did and is still here, or nobody can, and
    /// its burnt try has to do.
    Reboot,
    /// Nothing tells whether this is a trial: look again.
    LookAgain,
}

/// What the guard does next. The same facts always give the same action.
#[must_use]
pub fn guard(facts: &GuardFacts<'_>) -> GuardAction {
    let Some(loader) = facts.loader else { return blind(facts) };
    let Some(trial) = loader.trial.filter(|trial| trial.slot == facts.booted) else {
        return if loader.needs_marking(facts.booted) {
            GuardAction::MarkGood
        } else if facts.hint == TrialHint::OnTrial && !loader.is_confirmed(facts.booted) {
            // This is the state of another loader than the one that booted, or an old one.
            blind(facts)
        } else {
            GuardAction::StandDown
        };
    };
    if trial.evidence.is_reverted() {
        // A reboot would come back here, for ever.
        if facts.came_back == CameBack::InSpiteOfIt {
            return GuardAction::StandDown;
        }
        let since = facts.sent_back_at.map_or(Duration::ZERO, |at| facts.uptime.saturating_sub(at));
        let remaining = GOING_DOWN.saturating_sub(since);
        return if remaining.is_zero() { GuardAction::Reboot } else { GuardAction::Watch { remaining } };
    }
    let remaining = guard_deadline(facts).saturating_sub(facts.uptime);
    if remaining.is_zero() { at_the_end(facts) } else { GuardAction::Watch { remaining } }
}

/// A kubelet starts no agent while the API server is away, and one that runs may wait for its answers
/// past the deadline. Then the trial is judged as the agent would have judged it.
fn at_the_end(facts: &GuardFacts<'_>) -> GuardAction {
    let verdict = facts.without_api.zip(attempt(facts)).map(|(health, attempt)| {
        let spec = &attempt.trial;
        // One look long after the deadline: no check can still be waited for.
        judge(spec, health, spec.timeout().max(facts.uptime))
    });
    match verdict {
        Some(Verdict::Confirm) => GuardAction::Confirm,
        Some(Verdict::Revert { reason: FailureReason::ApiUnavailable, .. }) => {
            GuardAction::SendBack { by: Reverter::GuardWithoutApi }
        }
        _ => GuardAction::SendBack { by: Reverter::Guard },
    }
}

/// The record's attempt, if it is what is on trial.
fn attempt<'a>(facts: &GuardFacts<'a>) -> Option<&'a Attempt> {
    let attempt = facts.record.and_then(|record| record.attempt.as_ref())?;
    let is_on_trial = match facts.loader.and_then(|loader| loader.trial) {
        Some(trial) => trial.attempt == attempt.id && trial.slot == attempt.slot,
        None => attempt.slot == facts.booted,
    };
    is_on_trial.then_some(attempt)
}

/// Without the loader's state nobody can confirm either, so a trial ends with its time.
fn blind(facts: &GuardFacts<'_>) -> GuardAction {
    if facts.hint == TrialHint::None {
        return GuardAction::LookAgain;
    }
    let remaining = guard_deadline(facts).saturating_sub(facts.uptime);
    if remaining.is_zero() { GuardAction::Reboot } else { GuardAction::Watch { remaining } }
}

/// The trial that the boot script says it has booted: `monok8s.trial=`, and the trial's text.
#[must_use]
pub fn passed_trial(command_line: &str) -> Option<TrialState> {
    let passed = command_line.split_whitespace().filter_map(|word| word.strip_prefix("monok8s.trial="));
    passed.filter_map(|trial| trial.parse().ok()).next_back()
}

/// The uptime at which an unconfirmed trial of the booted slot is sent back.
#[must_use]
pub fn guard_deadline(facts: &GuardFacts<'_>) -> Duration {
    let limit = attempt(facts).map_or(facts.default_limit, |attempt| attempt.trial.timeout());
    limit.saturating_add(GUARD_GRACE)
}

impl CameBack {
    /// At the first look of a boot.
    #[must_use]
    pub fn at_first_look(booted: Slot, loader: &LoaderStatus) -> Self {
        match loader.trial {
            Some(trial) if trial.slot == booted && trial.evidence.is_reverted() => Self::InSpiteOfIt,
            _ => Self::No,
        }
    }
}

impl TrialHint {
    /// What is known of the boot `boot_id` of slot `booted`: by the command line, and by a record
    /// of a commit to this slot that was made under another boot.
    #[must_use]
    pub fn of(command_line: &str, record: Option<&Record>, booted: Slot, boot_id: &BootId) -> Self {
        let passed = passed_trial(command_line);
        let by_loader = passed.is_some_and(|trial| trial.slot == booted && !trial.evidence.is_reverted());
        let attempt = record.and_then(|record| record.attempt.as_ref());
        let by_record = attempt.is_some_and(|attempt| {
            attempt.slot == booted
                && matches!(attempt.state, AttemptState::Committed | AttemptState::Reverting)
                && attempt.boot_id.as_ref() != Some(boot_id)
        });
        if by_loader || by_record { Self::OnTrial } else { Self::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiUnavailable, TrialSpec};
    use crate::boot::{AttemptId, Tries};
    use crate::digest::Sha256Digest;
    use crate::node_upgrade::{Check, NodeView, ObjectIdentity, Step};

    const SEND_BACK: GuardAction = GuardAction::SendBack { by: Reverter::Guard };
    const HOUR: Duration = Duration::from_secs(3600);

    fn on_trial() -> LoaderStatus {
        let mut status = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
        status.boot_once();
        let mut status = status.marked_good(Slot::A).armed(Slot::B, AttemptId(1), Tries::TRIAL);
        assert_eq!(status.boot_once(), Some(Slot::B));
        status
    }

    fn record(timeout_seconds: i32) -> Record {
        Record::default().after(&Step::Begun {
            object: ObjectIdentity::new("one", "u-1"),
            version: "v1.35.4".parse().unwrap(),
            checksum: Sha256Digest::of(b"artifact"),
            slot: Slot::B,
            trial: TrialSpec { timeout_seconds: Some(timeout_seconds), ..TrialSpec::default() },
        })
    }

    fn facts<'a>(loader: &'a LoaderStatus, record: Option<&'a Record>, uptime: u64) -> GuardFacts<'a> {
        GuardFacts {
            booted: Slot::B,
            loader: Some(loader),
            hint: TrialHint::None,
            record,
            uptime: Duration::from_secs(uptime),
            default_limit: HOUR,
            sent_back_at: None,
            came_back: CameBack::No,
            without_api: None,
        }
    }

    #[test]
    fn a_trial_is_sent_back_at_the_deadline_that_its_record_gives() {
        let (loader, record) = (on_trial(), record(60));
        let watch = |seconds| GuardAction::Watch { remaining: Duration::from_secs(seconds) };
        assert_eq!(guard(&facts(&loader, Some(&record), 10)), watch(65));
        assert_eq!(guard(&facts(&loader, Some(&record), 74)), watch(1));
        assert_eq!(guard(&facts(&loader, Some(&record), 75)), SEND_BACK);
    }

    #[test]
    fn without_a_record_of_this_trial_the_default_holds() {
        let loader = on_trial();
        let mut other = record(60);
        other.attempt.as_mut().unwrap().id = AttemptId(2);
        for record in [None, Some(&other)] {
            assert!(matches!(guard(&facts(&loader, record, 100)), GuardAction::Watch { .. }));
            assert_eq!(guard(&facts(&loader, record, 3700)), SEND_BACK);
        }
    }

    #[test]
    fn a_slot_without_an_agent_because_the_api_server_is_away_is_judged_by_its_upgrade() {
        let loader = on_trial();
        let well = TrialHealth {
            version: Check::Holds,
            kubelet: Check::Holds,
            control_plane: Check::NotNeeded,
            configured: Vec::new(),
            node: NodeView::ApiUnreachable,
        };
        let unwell = TrialHealth { kubelet: Check::Fails("it is silent".to_owned()), ..well.clone() };
        let without_api = GuardAction::SendBack { by: Reverter::GuardWithoutApi };
        for (policy, health, expected) in [
            (ApiUnavailable::Revert, &well, without_api),
            (ApiUnavailable::ConfirmLocally, &well, GuardAction::Confirm),
            (ApiUnavailable::Revert, &unwell, SEND_BACK),
            (ApiUnavailable::ConfirmLocally, &unwell, SEND_BACK),
        ] {
            let mut record = record(60);
            record.attempt.as_mut().unwrap().trial.api_unavailable = Some(policy);
            let facts = GuardFacts { without_api: Some(health), ..facts(&loader, Some(&record), 75) };
            assert_eq!(guard(&facts), expected, "{policy:?} {health:?}");
            let early = GuardFacts { uptime: Duration::from_secs(70), ..facts };
            assert!(matches!(guard(&early), GuardAction::Watch { .. }), "not before the deadline");
            // Without the record nobody knows what the upgrade says.
            assert_eq!(guard(&GuardFacts { record: None, uptime: 2 * HOUR, ..facts }), SEND_BACK);
        }
    }

    #[test]
    fn without_the_loaders_state_a_trial_ends_with_its_time() {
        let (loader, record) = (on_trial(), record(60));
        let blind = |hint, uptime| GuardFacts { loader: None, hint, ..facts(&loader, Some(&record), uptime) };
        assert_eq!(guard(&blind(TrialHint::None, 9999)), GuardAction::LookAgain);
        assert!(matches!(guard(&blind(TrialHint::OnTrial, 70)), GuardAction::Watch { .. }));
        assert_eq!(guard(&blind(TrialHint::OnTrial, 75)), GuardAction::Reboot);
    }

    #[test]
    fn the_command_line_and_the_record_tell_of_a_trial() {
        let (here, there) = (BootId("b-2".to_owned()), BootId("b-1".to_owned()));
        let of = |line: &str, record: Option<&Record>| TrialHint::of(line, record, Slot::B, &here);
        assert_eq!(of("ro root=PARTLABEL=rootfs-b monok8s.trial=B:1:1:none", None), TrialHint::OnTrial);
        for other in ["", "monok8s.trial=", "monok8s.trial=A:1:1:none", "monok8s.trial=B:1:1:guard"] {
            assert_eq!(of(other, None), TrialHint::None, "{other}");
        }
        let committed = |boot_id: &BootId| record(60).after(&Step::Committed { boot_id: boot_id.clone() });
        assert_eq!(of("", Some(&committed(&there))), TrialHint::OnTrial);
        assert_eq!(of("", Some(&committed(&here))), TrialHint::None, "still the boot that committed");
        assert_eq!(of("", Some(&record(60))), TrialHint::None);
    }

    #[test]
    fn a_confirmed_slot_is_marked_good_once_and_left_alone() {
        let loader = on_trial().confirmed();
        assert_eq!(guard(&facts(&loader, None, 9999)), GuardAction::StandDown, "its tries are full");
        let mut booted_again = loader;
        booted_again.boot_once();
        assert_eq!(guard(&facts(&booted_again, None, 9999)), GuardAction::MarkGood);
        let marked = booted_again.marked_good(Slot::B);
        assert_eq!(guard(&facts(&marked, None, 9999)), GuardAction::StandDown);
    }

    #[test]
    fn a_slot_that_nobody_armed_is_left_alone() {
        let loader = on_trial();
        let by_hand = GuardFacts { booted: Slot::A, ..facts(&loader, None, 9999) };
        // The other slot's trial was tried: its evidence is kept, whoever chose this slot.
        assert_eq!(guard(&by_hand), GuardAction::MarkGood);
        let unknown = loader.invalidated(Slot::B);
        assert_eq!(guard(&facts(&unknown, None, 9999)), GuardAction::StandDown);
    }

    #[test]
    fn the_state_of_another_loader_than_the_one_that_booted_a_trial_does_not_end_it() {
        let another = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
        let facts = GuardFacts { hint: TrialHint::OnTrial, ..facts(&another, None, 100) };
        assert!(matches!(guard(&facts), GuardAction::Watch { .. }));
        assert_eq!(guard(&GuardFacts { uptime: 2 * HOUR, ..facts }), GuardAction::Reboot);
        let confirmed = LoaderStatus::installed(Slot::B, Tries::DEFAULT_FULL);
        assert_eq!(guard(&GuardFacts { loader: Some(&confirmed), ..facts }), GuardAction::StandDown);
    }

    #[test]
    fn who_sent_it_back_is_helped_down_but_not_twice() {
        let loader = on_trial().reverted(Reverter::Agent);
        let seen = GuardFacts { sent_back_at: Some(Duration::from_secs(30)), ..facts(&loader, None, 40) };
        assert_eq!(guard(&seen), GuardAction::Watch { remaining: Duration::from_secs(50) });
        let late = GuardFacts { uptime: Duration::from_secs(90), ..seen };
        assert_eq!(guard(&late), GuardAction::Reboot);
        let came_back = CameBack::at_first_look(Slot::B, &loader);
        assert_eq!(came_back, CameBack::InSpiteOfIt);
        assert_eq!(guard(&GuardFacts { came_back, ..late }), GuardAction::StandDown);
        assert_eq!(CameBack::at_first_look(Slot::A, &loader), CameBack::No);
    }
}
