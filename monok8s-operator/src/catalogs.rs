//! Reads catalogs beside the planner, so that a slow server holds up nobody.
//!
//! Each URL and each `ConfigMap` in use has one reader, however many upgrades name it. It reads
//! again after the refresh interval, after a failure with a growing, jittered pause, and when it is
//! asked to. An inline catalog is in the spec itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::runtime::watcher::DefaultBackoff;
use kube::{Client, ResourceExt as _};
use monok8s_sdk::api::OSUpgrade;
use monok8s_sdk::catalog::Catalog;
use monok8s_sdk::http::HttpError;
use monok8s_sdk::rollout::frozen_target;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::apply::GrantGate;
use crate::metrics::Metrics;
use crate::resolve::{Failure, Reading};
use crate::wake::Bell;

mod source;

use source::{Place, Source, Sources};

/// All catalogs that upgrades name.
pub struct Catalogs {
    sources: Sources,
    refresh: Duration,
    bell: Bell,
    metrics: Arc<Metrics>,
    /// What each upgrade names, by the upgrade's name.
    uses: BTreeMap<String, Use>,
    readers: BTreeMap<Place, Reader>,
}

/// What one spec of one upgrade names.
struct Use {
    uid: String,
    generation: Option<i64>,
    /// A spec is judged by a reading that began after it was first seen: whoever published a
    /// version and then asked for it must not be told that it is not there.
    since: Instant,
    named: Named,
    asked: Mutex<Asked>,
}

/// What the last plan wanted to grant. A version may be blocked at any time, so a grant needs a
/// reading that began after it was wanted, and a plan that was made with this reading.
#[derive(Debug, Default)]
struct Asked {
    /// Since when a grant is wanted.
    since: Option<Instant>,
    /// Whether the last plan wanted one that was held back.
    held_back: bool,
    /// When the reading that the last plan was made with began, if it succeeded.
    planned_with: Option<Instant>,
}

enum Named {
    Inline(Result<Arc<Catalog>, Failure>),
    At(Place),
}

/// One catalog outside the cluster's specs, and the task that reads it.
struct Reader {
    state: Arc<Mutex<State>>,
    nudge: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// When the last finished attempt began.
    attempted: Option<Instant>,
    /// The newest catalog that could be read.
    catalog: Option<Arc<Catalog>>,
    /// Why the last attempt failed.
    error: Option<Failure>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Catalogs {
    /// No catalogs yet. `ConfigMap` catalogs are looked for in `namespace`.
    ///
    /// # Errors
    ///
    /// If no HTTP client can be made.
    pub fn new(
        client: Client,
        namespace: String,
        refresh: Duration,
        bell: Bell,
        metrics: Arc<Metrics>,
    ) -> Result<Self, HttpError> {
        let sources = Sources::new(client, namespace)?;
        Ok(Self { sources, refresh, bell, metrics, uses: BTreeMap::new(), readers: BTreeMap::new() })
    }

    /// Reads what these upgrades name, and nothing else any more.
    pub fn follow(&mut self, upgrades: &[Arc<OSUpgrade>]) {
        let mut before = std::mem::take(&mut self.uses);
        for upgrade in upgrades {
            let name = upgrade.name_any();
            let known = before.remove(&name).filter(|known| known.is_of(upgrade));
            let used = known.unwrap_or_else(|| Use::of(upgrade));
            if let Named::At(place) = &used.named {
                let open = || Reader::open(self.sources.at(place), self.refresh, &self.bell, &self.metrics);
                self.readers.entry(place.clone()).or_insert_with(open);
            }
            used.asked().forget_what_is_over();
            self.uses.insert(name, used);
        }
        let uses = &self.uses;
        self.readers.retain(|place, _| uses.values().any(|used| used.place() == Some(place)));
    }

    /// What is known of the catalog of an upgrade that is followed, for the plan to be made now.
    #[must_use]
    pub fn reading(&self, upgrade: &OSUpgrade) -> Reading {
        let unknown = Reading::Unknown { error: None };
        let Some(used) = self.uses.get(&upgrade.name_any()) else { return unknown };
        match &used.named {
            Named::Inline(Ok(catalog)) => Reading::Known { catalog: Arc::clone(catalog), error: None },
            Named::Inline(Err(failure)) => Reading::Unknown { error: Some(failure.clone()) },
            Named::At(place) => {
                // A run that is frozen already needs the catalog for what it blocks alone, and the
                // gate sees to it that this is read again in time.
                let since = frozen_target(upgrade).is_none().then_some(used.since);
                let Some(reader) = self.readers.get(place) else { return unknown };
                let (reading, began) = reader.reading(since);
                used.asked().planned_with = began;
                reading
            }
        }
    }
}

impl GrantGate for Catalogs {
    fn may_grant(&self, upgrade: &str) -> bool {
        match self.uses.get(upgrade).map(|used| &used.named) {
            None => false,
            Some(Named::Inline(catalog)) => catalog.is_ok(),
            Some(Named::At(place)) => {
                let (Some(used), Some(reader)) = (self.uses.get(upgrade), self.readers.get(place)) else {
                    return false;
                };
                let may = used.asked().may_grant(Instant::now());
                if !may {
                    reader.nudge.notify_one();
                }
                may
            }
        }
    }
}

impl Asked {
    /// A grant that was given, or is not wanted any more, says nothing about the next one.
    fn forget_what_is_over(&mut self) {
        if !std::mem::take(&mut self.held_back) {
            self.since = None;
        }
    }

    fn may_grant(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let may = self.planned_with.is_some_and(|began| began > since);
        self.held_back |= !may;
        may
    }
}

impl Use {
    fn of(upgrade: &OSUpgrade) -> Self {
        Self {
            uid: upgrade.uid().unwrap_or_default(),
            generation: upgrade.metadata.generation,
            since: Instant::now(),
            asked: Mutex::default(),
            named: match Place::of(&upgrade.spec.catalog) {
                Some(place) => Named::At(place),
                None => Named::Inline(source::inline(&upgrade.spec.catalog).map(Arc::new)),
            },
        }
    }

    fn is_of(&self, upgrade: &OSUpgrade) -> bool {
        Some(&self.uid) == upgrade.metadata.uid.as_ref() && self.generation == upgrade.metadata.generation
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Option<&Place> {
        match &self.named {
            Named::Inline(_) => None,
            Named::At(place) => Some(place),
        }
    }
}

impl Reader {
    fn open(source: Source, refresh: Duration, bell: &Bell, metrics: &Arc<Metrics>) -> Self {
        let (state, nudge) = (Arc::default(), Arc::new(Notify::new()));
        let (bell, metrics) = (bell.clone(), Arc::clone(metrics));
        let task = tokio::spawn(keep_reading(
            source,
            refresh,
            Arc::clone(&state),
            Arc::clone(&nudge),
            bell,
            metrics,
        ));
        Self { state, nudge, task }
    }

    /// What is known, by attempts that began after `since` if that is given; and when the last
    /// attempt began, if it succeeded.
    fn reading(&self, since: Option<Instant>) -> (Reading, Option<Instant>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some_and(|since| state.attempted.is_none_or(|attempted| attempted < since)) {
            self.nudge.notify_one();
            return (Reading::Unknown { error: None }, None);
        }
        let error = state.error.clone();
        match &state.catalog {
            Some(catalog) => {
                let began = state.attempted.filter(|_| error.is_none());
                (Reading::Known { catalog: Arc::clone(catalog), error }, began)
            }
            None => (Reading::Unknown { error }, None),
        }
    }
}

async fn keep_reading(
    mut source: Source,
    refresh: Duration,
    state: Arc<Mutex<State>>,
    nudge: Arc<Notify>,
    bell: Bell,
    metrics: Arc<Metrics>,
) {
    let mut backoff = DefaultBackoff::default();
    loop {
        let began = Instant::now();
        let read = source.read().await;
        metrics.read_catalog(source.kind(), if read.is_ok() { "ok" } else { "error" });
        let pause = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.attempted = Some(began);
            match read {
                Ok(catalog) => {
                    state.catalog = Some(catalog);
                    state.error = None;
                    backoff = DefaultBackoff::default();
                    None
                }
                Err(failure) => {
                    if state.error.as_ref() != Some(&failure) {
                        tracing::warn!(reason = %failure.reason, "{}", failure.message);
                    }
                    state.error = Some(failure);
                    backoff.next()
                }
            }
        };
        bell.ring();
        match pause {
            // A server in trouble is not asked more often because somebody waits for it.
            Some(pause) => tokio::time::sleep(pause).await,
            None => {
                let _ = tokio::time::timeout(refresh, nudge.notified()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_needs_a_plan_made_with_a_reading_that_began_after_it_was_wanted() {
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let mut asked = Asked { planned_with: Some(at(10)), ..Asked::default() };
        assert!(!asked.may_grant(at(20)), "read before it was wanted");
        asked.forget_what_is_over();
        assert!(!asked.may_grant(at(21)), "still the old reading");
        asked.forget_what_is_over();
        asked.planned_with = Some(at(22));
        assert!(asked.may_grant(at(23)));
        assert!(asked.may_grant(at(23)), "another grant of the same plan");
        asked.forget_what_is_over();
        assert!(!asked.may_grant(at(30)), "the next plan's grant needs a reading of its own");
    }

    #[test]
    fn a_want_that_was_given_up_does_not_vouch_for_a_later_one() {
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let mut asked = Asked::default();
        assert!(!asked.may_grant(at(1)));
        asked.forget_what_is_over();
        // A plan that wants nothing.
        asked.planned_with = Some(at(2));
        asked.forget_what_is_over();
        assert!(!asked.may_grant(at(100)));
    }
}
