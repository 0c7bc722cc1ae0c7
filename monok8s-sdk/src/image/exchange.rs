//! One request for a file or a part of it, and what the answer says about itself.

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Response, Url};
use tokio::time::timeout;

use super::fetch::Download;
use super::fetch_error::Interruption;
use super::resume::{Answer, Identity, Received};
use crate::http::root_cause;

/// Why there is no answer.
pub(super) enum Refusal {
    /// It may pass.
    Interrupted(Interruption),
    /// It would be the same again.
    Unusable(String),
}

/// Asks for everything that was not received yet.
pub(super) async fn request(
    download: &Download,
    url: &Url,
    received: &Received,
) -> Result<Response, Refusal> {
    let mut request = download.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
    if received.is_part() {
        let last = received.end.map_or(String::new(), |end| (end - 1).to_string());
        request = request.header(header::RANGE, format!("bytes={}-{last}", received.offset));
        if let Some(value) = received.known.as_ref().and_then(Identity::if_range) {
            request = request.header(header::IF_RANGE, value);
        }
    }
    let stall = download.limits.stall;
    let response = match timeout(stall, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) if error.is_redirect() || error.is_builder() => {
            return Err(Refusal::Unusable(root_cause(&error)));
        }
        Ok(Err(error)) => return Err(Refusal::Interrupted(Interruption::Network(error.without_url()))),
        Err(_) => return Err(Refusal::Interrupted(Interruption::Stalled { after: stall })),
    };
    // For clients that were built without our redirect policy.
    if url.scheme() == "https" && response.url().scheme() != "https" {
        return Err(Refusal::Unusable("it redirects from https to an unprotected URL".to_owned()));
    }
    Ok(response)
}

/// What a response says about itself.
pub(super) fn answer(response: &Response) -> Answer {
    let text = |name: HeaderName| header_text(response.headers(), &name);
    Answer {
        status: response.status().as_u16(),
        content_length: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        content_range: text(header::CONTENT_RANGE),
        content_encoding: text(header::CONTENT_ENCODING),
        etag: text(header::ETAG),
        last_modified: text(header::LAST_MODIFIED),
    }
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
