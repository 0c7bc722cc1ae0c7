//! Fetching the catalog document from where an upgrade says it is.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, IF_NONE_MATCH};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use crate::api::{CatalogSource, UpgradeReason};
use crate::http::{root_cause, shown_url};

/// The key of a `ConfigMap` that holds the document, if it has several.
pub const CONFIG_MAP_KEY: &str = "catalog.yaml";
/// Keys that end like this hold the signature of another key.
const SIGNATURE_SUFFIX: &str = ".minisig";
/// A longer entity tag is not sent back.
const MAX_ETAG_LEN: usize = 512;

/// How much a fetch may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// Bytes of the document. Default 1 MiB, like [`Limits::bytes`](super::Limits::bytes).
    pub bytes: usize,
    /// Time for all of it. Default 60 s.
    pub total: Duration,
    /// Time to the answer, and from one piece of the body to the next. Default 15 s.
    pub stall: Duration,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { bytes: 1 << 20, total: Duration::from_secs(60), stall: Duration::from_secs(15) }
    }
}

/// Fetches catalog documents.
///
/// ```no_run
/// use monok8s_sdk::api::CatalogSource;
/// use monok8s_sdk::catalog::source::{CatalogFetcher, FetchLimits, Fetched};
/// use monok8s_sdk::catalog::{Catalog, Limits};
/// use monok8s_sdk::http::{HttpOptions, http_client};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let fetcher = CatalogFetcher {
///     http: http_client(&HttpOptions::default())?,
///     config_maps: None,
///     limits: FetchLimits::default(),
/// };
/// let url = Some("https://example.com/images.yaml".to_owned());
/// let source = CatalogSource { url, ..CatalogSource::default() };
/// if let Fetched::Document { bytes, .. } = fetcher.fetch(&source, None).await? {
///     let catalog = Catalog::parse(bytes, &Limits::default())?;
///     println!("{} images", catalog.entries().len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CatalogFetcher {
    /// For URLs; best made by [`http_client`](crate::http::http_client).
    pub http: reqwest::Client,
    /// For `ConfigMaps`; `None` where there is no cluster.
    pub config_maps: Option<ConfigMaps>,
    /// How much a fetch may take.
    pub limits: FetchLimits,
}

/// Where `ConfigMaps` are read.
#[derive(Clone)]
pub struct ConfigMaps {
    /// The cluster, as the identity that needs the right to read them.
    pub client: kube::Client,
    /// Their namespace: the controller's own.
    pub namespace: String,
}

/// What a fetch brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The document, and a token to ask later whether it changed.
    Document {
        /// The document as it was served; not judged yet.
        bytes: Vec<u8>,
        /// For the next fetch; `None` if the source has no such thing.
        validator: Option<Validator>,
    },
    /// The document is still the one that the validator came with.
    NotModified,
}

/// Names one state of one source. It means nothing to any other source, which ignores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    place: String,
    tag: String,
}

/// Why no document was fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// None or several of the possible sources.
    #[error("spec.catalog names {found} sources; give exactly one of inline, url and configMap")]
    NotOneSource {
        /// How many there are.
        found: usize,
    },
    /// A `ConfigMap` where there is no cluster to read it from.
    #[error("ConfigMap {name} cannot be read without a cluster; give a url or an inline catalog")]
    NoCluster {
        /// The name of the `ConfigMap`.
        name: String,
    },
    /// The server did not answer with the document.
    #[error("GET {url}: the server says {status}{}", status_hint(*status))]
    Status {
        /// The URL, without secrets.
        url: String,
        /// The status code.
        status: u16,
    },
    /// No connection, no trust, or a body that broke off.
    #[error("GET {url}: {cause}")]
    Unreachable {
        /// The URL, without secrets.
        url: String,
        /// What happened, such as `invalid peer certificate: UnknownIssuer`.
        cause: String,
    },
    /// No answer in time.
    #[error("reading {place}: no answer, or no more of it, within {} s", after.as_secs_f32())]
    TimedOut {
        /// The URL without secrets, or the `ConfigMap`.
        place: String,
        /// The time that was given.
        after: Duration,
    },
    /// A document over the limit.
    #[error("{place} is larger than the {limit} bytes that a catalog may have; is it an image?")]
    TooLarge {
        /// The URL without secrets, or the `ConfigMap`.
        place: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A body that is compressed although that was not asked for.
    #[error("GET {url}: the server sends it with content encoding {encoding:?}; serve it as it is")]
    Encoded {
        /// The URL, without secrets.
        url: String,
        /// The encoding.
        encoding: String,
    },
    /// The right to read the `ConfigMap` is missing.
    #[error(
        "reading ConfigMap {namespace}/{name} is forbidden{}: add to its ClusterRole or Role the rule \
         {{apiGroups: [\"\"], resources: [\"configmaps\"], verbs: [\"get\"]}}",
        account.as_ref().map_or(String::new(), |account| format!(" to ServiceAccount {account}"))
    )]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// Who was refused, as `namespace/name`, if the API server says.
        account: Option<String>,
    },
    /// There is no such `ConfigMap`.
    #[error("there is no ConfigMap {namespace}/{name}; create it in this namespace, the controller's")]
    NotFound {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// Which key of the `ConfigMap` holds the document is not clear.
    #[error(
        "ConfigMap {namespace}/{name} has {}; put the catalog under {CONFIG_MAP_KEY}",
        if keys.is_empty() { "no text".to_owned() } else { format!("the keys {}", keys.join(", ")) }
    )]
    Keys {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The keys there are; at most eight.
        keys: Vec<String>,
    },
    /// The API server did not answer as it should.
    #[error("reading ConfigMap {namespace}/{name}: {cause}")]
    Cluster {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// What happened.
        cause: String,
    },
}

/// Whom a failed fetch is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The way to the document: trying again later may help.
    Transient,
    /// The document, or the spec that names it: only a change helps.
    Document,
}

impl SourceError {
    /// Whether to try again, or to wait for a change.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotOneSource { .. }
            | Self::NoCluster { .. }
            | Self::TooLarge { .. }
            | Self::Encoded { .. }
            | Self::Keys { .. } => Fault::Document,
            // A missing file or right included: whoever adds it does not touch the upgrade.
            Self::Status { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Cluster { .. } => Fault::Transient,
        }
    }

    /// The reason as conditions tell it.
    #[must_use]
    pub fn reason(&self) -> UpgradeReason {
        match self.fault() {
            Fault::Transient => UpgradeReason::CatalogUnavailable,
            Fault::Document => UpgradeReason::InvalidCatalog,
        }
    }
}

impl CatalogFetcher {
    /// Fetches the document of `source`, once; whoever calls repeats it with a backoff where
    /// [`SourceError::fault`] says that this may help. `seen` is what came with the document that
    /// the caller still has.
    ///
    /// # Errors
    ///
    /// If there is no document to be had: see [`SourceError`].
    pub async fn fetch(
        &self,
        source: &CatalogSource,
        seen: Option<&Validator>,
    ) -> Result<Fetched, SourceError> {
        match (&source.inline, &source.url, &source.config_map) {
            (Some(text), None, None) => self.inline(text),
            (None, Some(url), None) => {
                let timed_out = |_| SourceError::TimedOut { place: shown_url(url), after: self.limits.total };
                timeout(self.limits.total, self.get(url, seen)).await.map_err(timed_out)?
            }
            (None, None, Some(name)) => self.config_map(name, seen).await,
            (inline, url, config_map) => {
                let found = [inline, url, config_map].into_iter().flatten().count();
                Err(SourceError::NotOneSource { found })
            }
        }
    }

    fn inline(&self, text: &str) -> Result<Fetched, SourceError> {
        self.check_size(text.len(), || "the inline catalog".to_owned())?;
        Ok(Fetched::Document { bytes: text.as_bytes().to_vec(), validator: None })
    }

    async fn get(&self, url: &str, seen: Option<&Validator>) -> Result<Fetched, SourceError> {
        // Checksums and signatures are of the document, not of some encoding of it.
        let mut request = self.http.get(url).header(ACCEPT_ENCODING, "identity");
        let seen = seen.filter(|seen| seen.place == url);
        if let Some(seen) = seen {
            request = request.header(IF_NONE_MATCH, &seen.tag);
        }
        let response = self.in_time(url, request.send()).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED if seen.is_some() => return Ok(Fetched::NotModified),
            StatusCode::OK => {}
            other => return Err(SourceError::Status { url: shown_url(url), status: other.as_u16() }),
        }
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.filter(|tag| tag.len() <= MAX_ETAG_LEN);
        let validator = tag.map(|tag| Validator { place: url.to_owned(), tag: tag.to_owned() });
        Ok(Fetched::Document { bytes: self.body(url, response).await?, validator })
    }

    async fn body(&self, url: &str, mut response: Response) -> Result<Vec<u8>, SourceError> {
        let encoding = response.headers().get(CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
            let encoding = encoding.to_str().unwrap_or("?").chars().take(32).collect();
            return Err(SourceError::Encoded { url: shown_url(url), encoding });
        }
        let place = || shown_url(url);
        if let Some(announced) = response.content_length() {
            self.check_size(usize::try_from(announced).unwrap_or(usize::MAX), place)?;
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.in_time(url, response.chunk()).await? {
            self.check_size(bytes.len().saturating_add(chunk.len()), place)?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// One step of a transfer, given the time for one step.
    async fn in_time<T>(
        &self,
        url: &str,
        step: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, SourceError> {
        let after = self.limits.stall;
        match timeout(after, step).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(SourceError::Unreachable { url: shown_url(url), cause: root_cause(&error) })
            }
            Err(_) => Err(SourceError::TimedOut { place: shown_url(url), after }),
        }
    }

    async fn config_map(&self, name: &str, seen: Option<&Validator>) -> Result<Fetched, SourceError> {
        let Some(ConfigMaps { client, namespace }) = &self.config_maps else {
            return Err(SourceError::NoCluster { name: name.to_owned() });
        };
        let (place, after) = (format!("ConfigMap {namespace}/{name}"), self.limits.total);
        let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        let found = match timeout(after, api.get(name)).await {
            Ok(answer) => answer.map_err(|error| cluster_error(namespace, name, &error))?,
            Err(_) => return Err(SourceError::TimedOut { place, after }),
        };
        let validator =
            found.metadata.resource_version.clone().map(|tag| Validator { place: place.clone(), tag });
        if validator.is_some() && validator.as_ref() == seen {
            return Ok(Fetched::NotModified);
        }
        let bytes = document_of(found, namespace, name)?.into_bytes();
        self.check_size(bytes.len(), || place)?;
        Ok(Fetched::Document { bytes, validator })
    }

    fn check_size(&self, bytes: usize, place: impl FnOnce() -> String) -> Result<(), SourceError> {
        let limit = self.limits.bytes;
        if bytes > limit { Err(SourceError::TooLarge { place: place(), limit }) } else { Ok(()) }
    }
}

/// The text under [`CONFIG_MAP_KEY`], or the only one beside signatures.
fn document_of(found: ConfigMap, namespace: &str, name: &str) -> Result<String, SourceError> {
    let mut texts = found.data.unwrap_or_default();
    if let Some(text) = texts.remove(CONFIG_MAP_KEY) {
        return Ok(text);
    }
    texts.retain(|key, _| !key.ends_with(SIGNATURE_SUFFIX));
    let keys = texts.keys().take(8).cloned().collect();
    let only = texts.pop_first().filter(|_| texts.is_empty());
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    only.map(|(_, text)| text).ok_or(SourceError::Keys { namespace, name, keys })
}

fn cluster_error(namespace: &str, name: &str, error: &kube::Error) -> SourceError {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            SourceError::Forbidden { namespace, name, account: refused_account(&status.message) }
        }
        kube::Error::Api(status) if status.code == 404 => SourceError::NotFound { namespace, name },
        kube::Error::Api(status) => SourceError::Cluster { namespace, name, cause: status.message.clone() },
        other => SourceError::Cluster { namespace, name, cause: other.to_string() },
    }
}

/// `namespace/name` of the account in an API server's refusal: `User
/// "system:serviceaccount:NAMESPACE:NAME" cannot get resource …`.
fn refused_account(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("\"system:serviceaccount:")?;
    let (account, _) = rest.split_once('"')?;
    Some(account.replacen(':', "/", 1))
}

fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ", so it wants credentials; a catalog must be readable without",
        404 | 410 => ", so there is nothing under this URL; check spec.catalog.url",
        _ => "",
    }
}
