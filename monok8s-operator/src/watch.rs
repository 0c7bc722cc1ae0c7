//! A watch that outlives every outage.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use monok8s_sdk::causes::chain;
use serde::de::DeserializeOwned;

use crate::access::ApiError;
use crate::metrics::Metrics;

/// What a watch tells. It is retried with a backoff, for ever.
pub struct Watch<K> {
    resource: Cow<'static, str>,
    events: BoxStream<'static, Result<Event<K>, watcher::Error>>,
    metrics: Arc<Metrics>,
    told: Option<String>,
}

impl<K> Watch<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Watches what `selected` selects of a resource, named as `plural.group` in what is logged.
    #[must_use]
    pub fn new(
        resource: impl Into<Cow<'static, str>>,
        api: Api<K>,
        selected: watcher::Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        let events = watcher(api, selected).default_backoff().boxed();
        Self { resource: resource.into(), events, metrics, told: None }
    }

    /// The next event.
    pub async fn next(&mut self) -> Event<K> {
        loop {
            if let Ok(event) = self.try_next().await {
                return event;
            }
        }
    }

    /// The next event, or why there is none; it is logged and counted, and tried again.
    ///
    /// # Errors
    ///
    /// What was attempted, and what was answered.
    pub async fn try_next(&mut self) -> Result<Event<K>, String> {
        match self.events.next().await {
            Some(Ok(event)) => {
                self.told = None;
                Ok(event)
            }
            Some(Err(error)) => Err(self.failed(error)),
            // It has no end.
            None => std::future::pending().await,
        }
    }

    fn failed(&mut self, error: watcher::Error) -> String {
        self.metrics.watch_failed(&self.resource);
        let why = words(&self.resource, error);
        // Once per outage.
        if self.told.as_ref() != Some(&why) {
            tracing::warn!("{why}");
            self.told = Some(why.clone());
        }
        why
    }
}

fn words(resource: &str, error: watcher::Error) -> String {
    let of = |verb, error| chain(&ApiError::of(verb, resource.to_owned(), error));
    match error {
        watcher::Error::InitialListFailed(error) => of("list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => of("watch", error),
        watcher::Error::WatchError(status) => of("watch", kube::Error::Api(status)),
        error @ watcher::Error::NoResourceVersion => format!("cannot watch {resource}: {}", chain(&error)),
    }
}
