//! A node and an order in one line, for tests.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::facts::{ApiView, BootId, Booted, Check, HeldToken, NodeFacts, NodeView, TrialHealth};
use super::order::{Freshness, Order, Pace, Reported, Standing, TimeLimit};
use super::record::{ObjectIdentity, Record};
use super::step::Step;
use crate::api::{
    ApiUnavailable, BootGrant, FailureReason, ImageRef, ProgressPhase, RollbackEvidence, RolledBackBy,
    TrialSpec,
};
use crate::boot::{AttemptId, LoaderStatus, Reverter, Tries};
use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::OsVersion;

/// Of a trial of the new version in slot B.
pub(super) fn evidence() -> Box<RollbackEvidence> {
    Box::new(RollbackEvidence {
        by: RolledBackBy::Loader,
        version: version(NEW),
        checksum: Some(image(NEW).checksum),
        slot: Slot::B,
        tries_armed: 1,
        tries_left: 0,
        armed_boot_id: Some(boot("b-1").0),
        trial_boot_id: None,
        returned_boot_id: boot("b-2").0,
        at: Time(now()),
    })
}

pub(super) fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

pub(super) fn version(text: &str) -> OsVersion {
    text.parse().unwrap()
}

pub(super) fn image(text: &str) -> ImageRef {
    ImageRef {
        version: version(text),
        arch: None,
        urls: vec![format!("https://images.example.com/{text}.zst")],
        checksum: Sha256Digest::of(text.as_bytes()),
        size: None,
        image_checksum: None,
        index: None,
        min_from: None,
    }
}

/// The digest of the expanded image, which is not the artifact's.
pub(super) fn expanded(text: &str) -> Sha256Digest {
    Sha256Digest::of(format!("expanded {text}").as_bytes())
}

pub(super) const OLD: &str = "v1.34.6";
pub(super) const NEW: &str = "v1.35.3";
pub(super) const THEN: &str = "v1.36.1";
pub(super) const BOOT: &str = "boot-1";
pub(super) const LATER_BOOT: &str = "boot-2";

pub(super) fn boot(id: &str) -> BootId {
    BootId(id.to_owned())
}

pub(super) fn grant(text: &str, not_after: &str) -> BootGrant {
    BootGrant { version: version(text), not_after: Time(not_after.parse().unwrap()) }
}

/// An order of the operator for one hop, nothing granted.
pub(super) fn order() -> Order {
    Order {
        object: ObjectIdentity::new("osupgrade-1", "uid-1"),
        generation: 3,
        resource_version: "100".to_owned(),
        freshness: Freshness::Cached,
        standing: Standing::Current,
        time_limit: TimeLimit::Open,
        hops: vec![image(NEW)],
        pace: Pace::Granted { stage: None, boot: None },
        retry_nonce: None,
        rollback_nonce: None,
        trial: TrialSpec::default(),
        reported: Reported {
            phase: ProgressPhase::Pending,
            boot_id: None,
            retry_nonce: None,
            rollback_nonce: None,
        },
    }
}

impl Order {
    pub(super) fn may_stage(mut self) -> Self {
        let stage = self.next_hop(&version(OLD)).map(|hop| hop.version.clone());
        self.pace = Pace::Granted { stage, boot: None };
        self
    }

    pub(super) fn may_boot(mut self, until: &str) -> Self {
        self.pace = Pace::Granted { stage: Some(version(NEW)), boot: Some(grant(NEW, until)) };
        self
    }

    pub(super) fn by_hand(mut self) -> Self {
        self.pace = Pace::Own;
        self
    }

    pub(super) fn is(mut self, standing: Standing) -> Self {
        self.standing = standing;
        self
    }

    pub(super) fn given_up(mut self) -> Self {
        self.time_limit = TimeLimit::Passed;
        self
    }

    pub(super) fn says(mut self, phase: ProgressPhase, boot_id: &str) -> Self {
        self.reported.phase = phase;
        self.reported.boot_id = Some(boot(boot_id));
        self
    }

    pub(super) fn retry(mut self, nonce: &str) -> Self {
        self.retry_nonce = Some(nonce.to_owned());
        self
    }

    pub(super) fn rollback(mut self, nonce: &str) -> Self {
        self.rollback_nonce = Some(nonce.to_owned());
        self
    }

    pub(super) fn hops(mut self, hops: &[&str]) -> Self {
        self.hops = hops.iter().map(|hop| image(hop)).collect();
        self
    }

    pub(super) fn seen_as(mut self, freshness: Freshness, generation: i64) -> Self {
        self.freshness = freshness;
        self.generation = generation;
        self
    }
}

pub(super) const SOON: &str = "2026-03-01T12:10:00Z";
pub(super) const PAST: &str = "2026-03-01T11:59:59Z";

/// A node that runs the old version from A, whose loader counts, and that has seen the order.
pub(super) fn node() -> NodeFacts {
    let mut loader = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
    loader.boot_once();
    NodeFacts {
        booted: Booted { slot: Slot::A, version: version(OLD), boot_id: boot(BOOT) },
        loader: loader.marked_good(Slot::A),
        record: Record::default().after(&Step::Accepted {
            object: order().object,
            generation: 3,
            retry_nonce: None,
            rollback_nonce: None,
        }),
        token: None,
        health: TrialHealth::unknown(),
        time_in_trial: Duration::from_secs(60),
        api: ApiView::Read,
    }
}

impl NodeFacts {
    pub(super) fn after(mut self, step: &Step) -> Self {
        self.record = self.record.after(step);
        self
    }

    pub(super) fn begun(self) -> Self {
        self.begun_for("uid-1")
    }

    pub(super) fn begun_for(self, uid: &str) -> Self {
        self.after(&Step::Begun {
            object: ObjectIdentity::new("osupgrade-1", uid),
            version: version(NEW),
            checksum: image(NEW).checksum,
            slot: Slot::B,
            trial: TrialSpec::default(),
        })
    }

    pub(super) fn written(self) -> Self {
        self.begun().after(&Step::Written { image_digest: expanded(NEW), image_len: 4096 })
    }

    pub(super) fn verified(self) -> Self {
        self.written().after(&Step::Verified)
    }

    pub(super) fn holds(mut self, text: &str) -> Self {
        self.token = Some(HeldToken { slot: Slot::B, digest: expanded(text) });
        self
    }

    pub(super) fn intended(self) -> Self {
        let booted = self.booted.clone();
        self.verified().holds(NEW).after(&Step::Intended { booted, leave: None })
    }

    pub(super) fn committed(self) -> Self {
        self.intended().after(&Step::Committed { boot_id: boot(BOOT) })
    }

    pub(super) fn armed(mut self) -> Self {
        self = self.committed();
        self.loader = self.loader.armed(Slot::B, AttemptId(1), Tries::TRIAL);
        self.token = None;
        self
    }

    /// After a power cut in the old slot: another boot, and what the process held is gone.
    pub(super) fn power_cut(mut self) -> Self {
        self.booted.boot_id = boot(LATER_BOOT);
        self.token = None;
        self.loader = self.loader.marked_good(Slot::A);
        self
    }

    pub(super) fn agent_restarted(mut self) -> Self {
        self.token = None;
        self
    }

    /// The armed slot came up.
    pub(super) fn in_trial(self) -> Self {
        self.in_trial_running(NEW)
    }

    pub(super) fn in_trial_running(mut self, text: &str) -> Self {
        self = self.armed();
        assert_eq!(self.loader.boot_once(), Some(Slot::B));
        self.booted = Booted { slot: Slot::B, version: version(text), boot_id: boot(LATER_BOOT) };
        self
    }

    /// The loader took the old slot again.
    pub(super) fn fell_back(mut self) -> Self {
        assert_eq!(self.loader.boot_once(), Some(Slot::A));
        self.booted = Booted { slot: Slot::A, version: version(OLD), boot_id: boot("boot-3") };
        self
    }

    pub(super) fn marked(mut self) -> Self {
        self.loader = self.loader.marked_good(self.booted.slot);
        self
    }

    pub(super) fn disarmed(mut self) -> Self {
        self.loader = self.loader.disarmed();
        self
    }

    pub(super) fn confirmed(mut self) -> Self {
        self.loader = self.loader.confirmed();
        self
    }

    pub(super) fn healthy(mut self) -> Self {
        self.health = TrialHealth {
            version: Check::Holds,
            kubelet: Check::Holds,
            control_plane: Check::NotNeeded,
            configured: Vec::new(),
            node: NodeView::ReadyInThisBoot,
        };
        self
    }

    pub(super) fn without_api(mut self) -> Self {
        self = self.healthy();
        self.health.node = NodeView::ApiUnreachable;
        self
    }

    pub(super) fn of_unknown_version(mut self) -> Self {
        self.health.version = Check::Fails("the version is not known yet".to_owned());
        self
    }

    pub(super) fn at(mut self, seconds: u64) -> Self {
        self.time_in_trial = Duration::from_secs(seconds);
        self
    }

    pub(super) fn confirm_locally(mut self) -> Self {
        if let Some(attempt) = &mut self.record.attempt {
            attempt.trial.api_unavailable = Some(ApiUnavailable::ConfirmLocally);
        }
        self
    }

    pub(super) fn unread(mut self) -> Self {
        self.api = ApiView::NotRead;
        self
    }

    pub(super) fn failed(self, reason: FailureReason) -> Self {
        self.begun().after(&Step::Failed { reason, message: "why".to_owned() })
    }

    pub(super) fn rolled_back(self) -> Self {
        self.in_trial().fell_back().marked().after(&Step::RolledBack {
            reason: FailureReason::FellBack,
            message: "why".to_owned(),
            evidence: evidence(),
        })
    }

    /// The upgrade is done, and the old version is known to be good in A.
    pub(super) fn completed(self) -> Self {
        self.in_trial().confirmed().after(&Step::Confirmed)
    }

    pub(super) fn rolling_back(self) -> Self {
        self.completed().after(&Step::RollbackBegun {
            object: order().object,
            nonce: "back".to_owned(),
            version: version(OLD),
            checksum: None,
            slot: Slot::A,
            trial: TrialSpec::default(),
        })
    }
}

pub(super) fn retry_begun(nonce: &str) -> Step {
    Step::RetryBegun { uid: "uid-1".to_owned(), nonce: nonce.to_owned() }
}

pub(super) fn failed(reason: FailureReason) -> Step {
    Step::Failed { reason, message: String::new() }
}

pub(super) fn reverting(reason: FailureReason) -> Step {
    Step::Reverting { reason, message: String::new(), boot_id: boot(LATER_BOOT) }
}

pub(super) fn rollback_into_nothing() -> Step {
    Step::RollbackBegun {
        object: order().object,
        nonce: "back".to_owned(),
        version: version(OLD),
        checksum: None,
        slot: Slot::B,
        trial: TrialSpec::default(),
    }
}

impl NodeFacts {
    pub(super) fn confirmed_in_b(mut self) -> Self {
        self.loader = LoaderStatus::installed(Slot::B, Tries::DEFAULT_FULL);
        self
    }

    pub(super) fn armed_by_attempt(mut self, id: u64) -> Self {
        self.loader = self.loader.armed(Slot::B, AttemptId(id), Tries::TRIAL);
        self
    }

    pub(super) fn not_counting(mut self) -> Self {
        self.loader = LoaderStatus::installed(Slot::A, Tries::DEFAULT_FULL);
        self
    }

    pub(super) fn booted_slot_bad(mut self) -> Self {
        self.loader.order = vec![Slot::B];
        self
    }

    pub(super) fn burnt(mut self) -> Self {
        self.loader.boot_once();
        self
    }

    pub(super) fn holding_other(mut self) -> Self {
        self = self.verified();
        if let Some(content) = &mut self.record.slots.b {
            content.version = version(THEN);
        }
        self
    }

    pub(super) fn forgotten(mut self) -> Self {
        self.record = Record::default();
        self
    }

    pub(super) fn record_lost(self) -> Self {
        self.forgotten()
    }

    pub(super) fn quarantined(self) -> Self {
        let mut facts = self.begun().after(&Step::RolledBack {
            reason: FailureReason::FellBack,
            message: String::new(),
            evidence: evidence(),
        });
        facts.record.attempt = None;
        if let Some(seen) = facts.record.seen.first_mut() {
            seen.attempts = 0;
        }
        facts.record.next_attempt = AttemptId(1);
        if let Some(failed) = facts.record.failed.first_mut() {
            failed.attempt = AttemptId(0);
        }
        facts
    }

    pub(super) fn other_slot_in_order(mut self) -> Self {
        self.loader.order.push(Slot::B);
        self
    }

    pub(super) fn sent_back(mut self) -> Self {
        self.loader = self.loader.reverted(Reverter::Guard);
        self
    }

    pub(super) fn rebooted(mut self, id: &str) -> Self {
        self.booted.boot_id = boot(id);
        self
    }

    pub(super) fn begun_next(self) -> Self {
        self.after(&Step::Begun {
            object: order().object,
            version: version(THEN),
            checksum: image(THEN).checksum,
            slot: Slot::A,
            trial: TrialSpec::default(),
        })
    }

    pub(super) fn after_many_steps(mut self) -> Self {
        for _ in 0..600 {
            self = self.after(&Step::IntentDropped);
        }
        self
    }

    pub(super) fn armed_again(self) -> Self {
        let boot_id = self.booted.boot_id.clone();
        let mut facts = self.begun().after(&Step::Committed { boot_id });
        let id = facts.record.attempt.as_ref().unwrap().id;
        facts.loader = facts.loader.armed(Slot::B, id, Tries::TRIAL);
        facts
    }

    pub(super) fn commit_here(self) -> Self {
        let boot_id = self.booted.boot_id.clone();
        self.after(&Step::Committed { boot_id })
    }

    pub(super) fn arrived_in_a(mut self) -> Self {
        self = self.commit_here().after(&Step::Confirmed);
        self.booted.slot = Slot::A;
        self.booted.version = version(OLD);
        self
    }

    pub(super) fn armed_and_failed(self) -> Self {
        self.armed().power_cut().after(&failed(FailureReason::Interrupted))
    }

    pub(super) fn tried_late(mut self) -> Self {
        assert_eq!(self.loader.boot_once(), Some(Slot::B));
        self.booted = Booted { slot: Slot::B, version: version(NEW), boot_id: boot("boot-9") };
        self
    }

    pub(super) fn back_in_a(mut self) -> Self {
        self.booted = Booted { slot: Slot::A, version: version(OLD), boot_id: boot("boot-9") };
        self
    }

    pub(super) fn out_of_order(mut self) -> Self {
        self.loader = self.loader.invalidated(self.booted.slot.other());
        self
    }
}
