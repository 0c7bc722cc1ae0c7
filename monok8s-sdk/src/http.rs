//! The HTTP client that catalogs and images are fetched with.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Url};

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Time for name look-up, TCP and TLS. Default 15 s.
    pub connect_timeout: Duration,
    /// How many redirects are followed in a row. Default 5.
    pub max_redirects: usize,
    /// The `User-Agent` header. Default `monok8s/` and the version of this library.
    pub user_agent: String,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            max_redirects: 5,
            user_agent: concat!("monok8s/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Why there is no HTTP client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The program chose no TLS implementation, which this library leaves to it.
    #[error(
        "no TLS provider is installed; a program calls \
         `rustls::crypto::ring::default_provider().install_default()`, or that of another provider, \
         before it makes HTTP clients"
    )]
    NoTlsProvider,
    /// The client could not be made.
    #[error("cannot make an HTTP client: {cause}")]
    Client {
        /// What the HTTP library says.
        cause: String,
    },
}

/// A client that follows a bounded number of redirects, never from `https` to `http`, and hands on
/// bodies as they were sent. Trust comes from the system's certificates, or from the files that
/// `SSL_CERT_FILE` or `SSL_CERT_DIR` name. It sets no overall timeout: whoever reads a body does.
///
/// # Errors
///
/// [`HttpError::NoTlsProvider`] if the program has not installed a rustls provider yet.
///
/// ```
/// use monok8s_sdk::http::{HttpOptions, http_client};
///
/// rustls::crypto::ring::default_provider().install_default().expect("the first statement of a program");
/// let client = http_client(&HttpOptions::default())?;
/// # drop(client);
/// # Ok::<(), monok8s_sdk::http::HttpError>(())
/// ```
pub fn http_client(options: &HttpOptions) -> Result<Client, HttpError> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // The HTTP library would panic.
        return Err(HttpError::NoTlsProvider);
    }
    let max_redirects = options.max_redirects;
    let redirects = Policy::custom(move |attempt| {
        match refuse_redirect(attempt.previous(), attempt.url(), max_redirects) {
            Some(refusal) => attempt.error(refusal),
            None => attempt.follow(),
        }
    });
    Client::builder()
        .connect_timeout(options.connect_timeout)
        .redirect(redirects)
        .user_agent(&options.user_agent)
        .build()
        .map_err(|error| HttpError::Client { cause: root_cause(&error) })
}

/// Why a redirect is not followed, if it is not. `previous` are the URLs so far.
fn refuse_redirect(previous: &[Url], next: &Url, max: usize) -> Option<String> {
    if previous.len() > max {
        return Some(format!("more than {max} redirects"));
    }
    let was_secure = previous.iter().any(|url| url.scheme() == "https");
    let host = next.host_str().unwrap_or_default();
    (was_secure && next.scheme() != "https")
        .then(|| format!("redirected from https to {}://{host}", next.scheme()))
}

/// The innermost error: the one that says what went wrong, such as `invalid peer certificate:
/// UnknownIssuer`. The layers around it only say which layer they are.
#[must_use]
pub fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    // An error of reqwest's own has no source, and its text has the URL with its secrets.
    match cause.downcast_ref::<reqwest::Error>() {
        Some(own) => kind(own).to_owned(),
        None => cause.to_string(),
    }
}

fn kind(error: &reqwest::Error) -> &'static str {
    match () {
        () if error.is_timeout() => "timed out",
        () if error.is_connect() => "cannot connect",
        () if error.is_redirect() => "too many redirects",
        () if error.is_builder() => "not a URL that can be requested",
        () if error.is_body() || error.is_decode() => "the body broke off",
        () => "the request failed",
    }
}

/// A URL as it may be shown: without user, password and query, where secrets are.
#[must_use]
pub fn shown_url(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else {
        return url.chars().take_while(|letter| !matches!(letter, '?' | '@')).take(200).collect();
    };
    // These fail only for URLs that cannot have a user.
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    parsed.set_query(None);
    parsed.set_fragment(None);
    parsed.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_follows_from_https_to_http_nor_without_end() {
        let urls = |texts: &[&str]| texts.iter().map(|text| Url::parse(text).unwrap()).collect::<Vec<_>>();
        let refusal =
            |previous: &[&str], next: &str| refuse_redirect(&urls(previous), &Url::parse(next).unwrap(), 2);
        assert_eq!(refusal(&["http://a/"], "http://b/"), None);
        assert_eq!(refusal(&["http://a/"], "https://b/"), None);
        assert_eq!(refusal(&["https://a/"], "https://b/"), None);
        let downgrade = Some("redirected from https to http://b".to_owned());
        assert_eq!(refusal(&["https://a/"], "http://b/?token=1"), downgrade);
        assert_eq!(refusal(&["http://z/", "https://a/"], "http://b/"), downgrade);
        assert_eq!(refusal(&["http://a/", "http://b/"], "http://c/"), None);
        let endless = Some("more than 2 redirects".to_owned());
        assert_eq!(refusal(&["http://a/", "http://b/", "http://c/"], "http://d/"), endless);
    }

    #[test]
    fn shows_no_secrets() {
        assert_eq!(shown_url("https://me:pw@example.com/a/b?sig=x#y"), "https://example.com/a/b");
        assert_eq!(shown_url("not a url?sig=x"), "not a url");
    }
}
