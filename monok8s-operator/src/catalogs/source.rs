//! Where catalogs are, and how one is read.

use std::sync::Arc;

use kube::Client;
use monok8s_sdk::api::{CatalogSource, UpgradeReason};
use monok8s_sdk::catalog::source::{
    CatalogFetcher, ConfigMaps, Fault, FetchLimits, Fetched, SourceError, Validator,
};
use monok8s_sdk::catalog::{Catalog, CatalogError, Limits};
use monok8s_sdk::http::{HttpError, HttpOptions, http_client};

use crate::resolve::{Failure, Remedy};

/// Where a catalog is that is not inline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// An address.
    Url(String),
    /// A `ConfigMap` in the operator's namespace.
    ConfigMap(String),
}

impl Place {
    /// The place that a spec names; `None` if the catalog is inline.
    pub(super) fn of(catalog: &CatalogSource) -> Option<Self> {
        let url = catalog.url.clone().map(Self::Url);
        url.or_else(|| catalog.config_map.clone().map(Self::ConfigMap))
    }

    fn spec(&self) -> CatalogSource {
        match self {
            Self::Url(url) => CatalogSource { url: Some(url.clone()), ..CatalogSource::default() },
            Self::ConfigMap(name) => {
                CatalogSource { config_map: Some(name.clone()), ..CatalogSource::default() }
            }
        }
    }
}

/// Makes sources.
pub(super) struct Sources(CatalogFetcher);

impl Sources {
    pub(super) fn new(client: Client, namespace: String) -> Result<Self, HttpError> {
        let http = http_client(&HttpOptions::default())?;
        let config_maps = Some(ConfigMaps { client, namespace });
        Ok(Self(CatalogFetcher { http, config_maps, limits: FetchLimits::default() }))
    }

    pub(super) fn at(&self, place: &Place) -> Source {
        Source { fetcher: self.0.clone(), place: place.clone(), last: None }
    }
}

/// One place, and what was last read there.
pub(super) struct Source {
    fetcher: CatalogFetcher,
    place: Place,
    last: Option<(Validator, Arc<Catalog>)>,
}

impl Source {
    /// What a metric calls it.
    pub(super) fn kind(&self) -> &'static str {
        match self.place {
            Place::Url(_) => "url",
            Place::ConfigMap(_) => "configmap",
        }
    }

    /// Reads it, or learns that it is what it was.
    pub(super) async fn read(&mut self) -> Result<Arc<Catalog>, Failure> {
        let seen = self.last.as_ref().map(|(validator, _)| validator);
        let fetched = self.fetcher.fetch(&self.place.spec(), seen).await.map_err(|error| unread(&error))?;
        match (fetched, &self.last) {
            (Fetched::NotModified, Some((_, catalog))) => Ok(Arc::clone(catalog)),
            (Fetched::NotModified, None) => Err(Failure {
                reason: UpgradeReason::CatalogUnavailable,
                message: "the server says that the catalog has not changed, though it was never read"
                    .to_owned(),
                remedy: Remedy::Retry,
            }),
            (Fetched::Document { bytes, validator }, _) => {
                self.last = None;
                let catalog = Arc::new(parse(&bytes)?);
                self.last = validator.map(|validator| (validator, Arc::clone(&catalog)));
                Ok(catalog)
            }
        }
    }
}

/// The catalog in a spec.
pub(super) fn inline(catalog: &CatalogSource) -> Result<Catalog, Failure> {
    parse(catalog.inline.as_deref().unwrap_or_default().as_bytes())
}

fn parse(document: &[u8]) -> Result<Catalog, Failure> {
    Catalog::parse(document, &Limits::default()).map_err(|error: CatalogError| Failure {
        reason: UpgradeReason::InvalidCatalog,
        message: error.to_string(),
        remedy: Remedy::OtherDocument,
    })
}

fn unread(error: &SourceError) -> Failure {
    let remedy = match error.fault() {
        Fault::Transient => Remedy::Retry,
        Fault::Document => Remedy::OtherDocument,
    };
    Failure { reason: error.reason(), message: error.to_string(), remedy }
}
