//! One operator acts at a time: a `coordination.k8s.io` Lease.
//!
//! Every write of the Lease carries the resourceVersion it was read at, so of two candidates one
//! always loses. Another holder's expiry is judged by how long *this* process has seen the Lease
//! unchanged, never by comparing clocks of two machines. The holder renews every third of the
//! Lease's duration, and trusts itself for two thirds of it: it stops acting well before anyone
//! may take over.
//!
//! The Lease keeps two operators from working against each other. It is not what keeps a node
//! safe: every write that matters carries a resourceVersion of its own.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use monok8s_sdk::api::OPERATOR_FIELD_MANAGER;
use monok8s_sdk::causes::chain;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::ApiError;

/// The name of the Lease, in the operator's namespace.
pub const LEASE_NAME: &str = "monok8s-operator";

/// Why the Lease is not held any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseLost {
    /// Another operator holds it.
    #[error("lost the Lease {LEASE_NAME} to {holder}: this operator stops, so that only one acts")]
    TakenBy {
        /// Its identity.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error("could not renew the Lease {LEASE_NAME} within {}s: this operator stops before another may take over", within.as_secs())]
    NotRenewed {
        /// The time it may go without renewal.
        within: Duration,
        /// The last error.
        #[source]
        source: Option<ApiError>,
    },
}

/// Whether this process may act, right now.
#[derive(Clone, Debug)]
pub struct Leadership {
    held: Held,
    stop: watch::Receiver<bool>,
}

#[derive(Clone, Debug)]
enum Held {
    Always,
    Until(watch::Receiver<Option<Instant>>),
}

impl Leadership {
    /// For an operator that runs without a Lease.
    #[must_use]
    pub fn unconditional(stop: watch::Receiver<bool>) -> Self {
        Self { held: Held::Always, stop }
    }

    /// Whether the Lease is held, and the process was not asked to stop.
    #[must_use]
    pub fn may_act(&self) -> bool {
        let held = match &self.held {
            Held::Always => true,
            Held::Until(until) => until.borrow().is_some_and(|until| Instant::now() < until),
        };
        held && !*self.stop.borrow()
    }

    /// Waits until the Lease is held. False if the elector ended before that.
    pub async fn acquired(&mut self) -> bool {
        match &mut self.held {
            Held::Always => true,
            Held::Until(until) => until.wait_for(Option::is_some).await.is_ok(),
        }
    }
}

/// What is known of the Lease, as far as the election goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    version: String,
    holder: Option<String>,
    duration: Duration,
    transitions: i32,
}

/// What a candidate does next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Renew { version: String },
    TakeOver { version: String, transitions: i32 },
    Wait { holder: String, until: Instant },
}

/// Judges the Lease by what this process itself has seen of it.
#[derive(Debug, Default)]
struct Observer {
    last: Option<(String, Instant)>,
}

impl Observer {
    fn step(&mut self, me: &str, lease: Option<&Seen>, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let since = match &self.last {
            Some((version, since)) if *version == lease.version => *since,
            _ => now,
        };
        self.last = Some((lease.version.clone(), since));
        let take_over = Step::TakeOver { version: lease.version.clone(), transitions: lease.transitions };
        match &lease.holder {
            None => take_over,
            Some(holder) if holder == me => Step::Renew { version: lease.version.clone() },
            Some(_) if now >= since + lease.duration => take_over,
            Some(holder) => Step::Wait { holder: holder.clone(), until: since + lease.duration },
        }
    }
}

/// Holds the Lease for as long as it runs.
pub struct Elector {
    api: Api<Lease>,
    identity: String,
    duration: Duration,
    observer: Observer,
    held_until: watch::Sender<Option<Instant>>,
}

/// One attempt's outcome.
enum Attempt {
    Held,
    Other { holder: String, until: Instant },
    Raced,
}

impl Elector {
    /// An elector for the Lease in the API's namespace, and the view others have of it.
    /// `identity` must be unique to this process. From `stop` on nothing may be done any more,
    /// though the Lease is still kept from others until [`Elector::run`] is told to let go.
    #[must_use]
    pub fn new(
        api: Api<Lease>,
        identity: String,
        duration: Duration,
        stop: watch::Receiver<bool>,
    ) -> (Self, Leadership) {
        let (held_until, held) = watch::channel(None);
        let elector = Self { api, identity, duration, observer: Observer::default(), held_until };
        (elector, Leadership { held: Held::Until(held), stop })
    }

    /// Tries to get the Lease, then keeps it. Ends with `Ok` after `release`, when the Lease was given
    /// up for others to take at once; with an error when it was lost.
    pub async fn run(mut self, mut release: watch::Receiver<bool>) -> Result<(), Arc<LeaseLost>> {
        let mut holder_seen = None;
        loop {
            let wait = self.turn(&mut holder_seen).await.map_err(Arc::new)?;
            let released = async { release.wait_for(|release| *release).await.is_ok() };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = released => {
                    self.vacate().await;
                    return Ok(());
                }
            }
        }
    }

    /// One attempt, and how long to wait before the next one.
    async fn turn(&mut self, holder_seen: &mut Option<String>) -> Result<Duration, LeaseLost> {
        let started = Instant::now();
        let outcome = tokio::time::timeout(self.renew_every(), self.attempt(started)).await;
        let held_until = *self.held_until.borrow();
        let error = match outcome {
            Ok(Ok(Attempt::Held)) => {
                if held_until.is_none() {
                    tracing::info!(identity = self.identity, "holding the Lease {LEASE_NAME}");
                }
                self.held_until.send_replace(Some(started + self.trusted_for()));
                return Ok(self.renew_every());
            }
            Ok(Ok(Attempt::Other { holder, .. })) if held_until.is_some() => {
                self.held_until.send_replace(None);
                return Err(LeaseLost::TakenBy { holder });
            }
            Ok(Ok(Attempt::Other { holder, until })) => {
                if holder_seen.as_ref() != Some(&holder) {
                    tracing::info!(holder, "another operator holds the Lease {LEASE_NAME}; standing by");
                    *holder_seen = Some(holder);
                }
                return Ok(until.duration_since(started).clamp(self.retry_every(), self.renew_every()));
            }
            Ok(Err(error)) => Some(error),
            Ok(Ok(Attempt::Raced)) | Err(_) => None,
        };
        if held_until.is_some_and(|until| Instant::now() >= until) {
            self.held_until.send_replace(None);
            return Err(LeaseLost::NotRenewed { within: self.trusted_for(), source: error });
        }
        if let Some(error) = error {
            tracing::warn!(error = chain(&error), "the Lease {LEASE_NAME} cannot be read or written");
        }
        Ok(self.retry_every())
    }

    async fn attempt(&mut self, now: Instant) -> Result<Attempt, ApiError> {
        let lease = self.api.get_opt(LEASE_NAME).await.map_err(|error| lease_error("get", error))?;
        let seen = lease.as_ref().map(seen);
        let written = match self.observer.step(&self.identity, seen.as_ref(), now) {
            Step::Wait { holder, until } => return Ok(Attempt::Other { holder, until }),
            Step::Create => self.api.create(&PostParams::default(), &self.fresh()).await,
            Step::Renew { version } => self.write(&version, json!({ "renewTime": micro_now() })).await,
            Step::TakeOver { version, transitions } => {
                let spec = self.claim(transitions.saturating_add(1));
                self.write(&version, json!(spec)).await
            }
        };
        match written {
            Ok(_) => Ok(Attempt::Held),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(Attempt::Raced)
            }
            Err(error) => Err(lease_error("write", error)),
        }
    }

    /// Gives the Lease up, so that the next operator need not wait for its expiry. Best effort.
    async fn vacate(&mut self) {
        if self.held_until.send_replace(None).is_none() {
            return;
        }
        let give_up = async {
            let lease = self.api.get_opt(LEASE_NAME).await?;
            if let Some(seen) = lease.as_ref().map(seen)
                && seen.holder.as_deref() == Some(&self.identity)
            {
                self.write(&seen.version, json!({ "holderIdentity": null })).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(self.renew_every(), give_up).await {
            Ok(Ok(())) => tracing::info!("gave up the Lease {LEASE_NAME}"),
            Ok(Err(error)) => tracing::warn!(%error, "could not give up the Lease {LEASE_NAME}; it expires"),
            Err(_) => tracing::warn!("could not give up the Lease {LEASE_NAME} in time; it expires"),
        }
    }

    async fn write(&self, version: &str, spec: serde_json::Value) -> Result<Lease, kube::Error> {
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": spec });
        let params =
            PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.api.patch(LEASE_NAME, &params, &Patch::Merge(patch)).await
    }

    fn fresh(&self) -> Lease {
        let metadata = ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() };
        Lease { metadata, spec: Some(self.claim(0)) }
    }

    fn claim(&self, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(micro_now()),
            renew_time: Some(micro_now()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    fn renew_every(&self) -> Duration {
        self.duration / 3
    }

    fn retry_every(&self) -> Duration {
        self.duration / 10
    }

    fn trusted_for(&self) -> Duration {
        self.duration * 2 / 3
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(15);
    Seen {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(seconds),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

fn micro_now() -> MicroTime {
    MicroTime(Timestamp::now())
}

fn lease_error(verb: &'static str, error: kube::Error) -> ApiError {
    ApiError::of(verb, "leases.coordination.k8s.io", error)
}

/// A name for this process that no other has: the pod's, and a random part, since a restarted
/// container keeps the pod's name.
#[must_use]
pub fn identity() -> String {
    let named = ["POD_NAME", "HOSTNAME"].iter().find_map(|name| std::env::var(name).ok());
    let host = named.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
    let unique =
        random.unwrap_or_else(|_| format!("{}-{}", std::process::id(), Timestamp::now().as_nanosecond()));
    format!("{}_{}", host.as_deref().unwrap_or("operator").trim(), unique.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(version: &str, holder: Option<&str>) -> Seen {
        let duration = Duration::from_secs(15);
        Seen { version: version.to_owned(), holder: holder.map(str::to_owned), duration, transitions: 4 }
    }

    #[test]
    fn an_absent_lease_is_made_and_a_free_one_is_taken() {
        let now = Instant::now();
        assert_eq!(Observer::default().step("me", None, now), Step::Create);
        let taken = Step::TakeOver { version: "7".to_owned(), transitions: 4 };
        assert_eq!(Observer::default().step("me", Some(&lease("7", None)), now), taken);
    }

    #[test]
    fn another_holder_expires_only_by_what_was_seen_here() {
        let mut observer = Observer::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let waits = |until| Step::Wait { holder: "other".to_owned(), until };
        assert_eq!(observer.step("me", Some(&lease("7", Some("other"))), start), waits(after(15)));
        assert_eq!(observer.step("me", Some(&lease("7", Some("other"))), after(14)), waits(after(15)));
        // It renewed: the clock starts again.
        assert_eq!(observer.step("me", Some(&lease("8", Some("other"))), after(14)), waits(after(29)));
        let taken = Step::TakeOver { version: "8".to_owned(), transitions: 4 };
        assert_eq!(observer.step("me", Some(&lease("8", Some("other"))), after(29)), taken);
    }

    #[test]
    fn ones_own_lease_is_renewed() {
        let renewed = Step::Renew { version: "7".to_owned() };
        assert_eq!(Observer::default().step("me", Some(&lease("7", Some("me"))), Instant::now()), renewed);
    }

    #[test]
    fn two_processes_of_one_pod_have_two_names() {
        assert_ne!(identity(), identity());
    }

    #[tokio::test(start_paused = true)]
    async fn leadership_ends_by_itself() {
        let (sender, receiver) = watch::channel(None);
        let (stopper, stop) = watch::channel(false);
        let leadership = Leadership { held: Held::Until(receiver), stop };
        assert!(!leadership.may_act());
        sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
        assert!(leadership.may_act());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!leadership.may_act());
        sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
        stopper.send_replace(true);
        assert!(!leadership.may_act());
    }
}
