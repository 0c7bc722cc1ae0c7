//! What a client asked.

use anyhow::{Result, bail};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// More than any client of ours sends.
const HEAD_LIMIT: u64 = 16 * 1024;

/// A request, as the log keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path with its query, as sent.
    pub path: String,
    /// Value of `Range`.
    pub range: Option<String>,
    /// Value of `If-Range`.
    pub if_range: Option<String>,
    /// Value of `If-None-Match`.
    pub if_none_match: Option<String>,
    /// Value of `Accept-Encoding`; a client that hashes what it receives must not send one.
    pub accept_encoding: Option<String>,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the body handed to the network so far.
    pub bytes_sent: u64,
    pub(super) last: bool,
}

/// Reads the head of the next request; `None` when the client closed in between. Bodies are not read:
/// nothing here takes one.
pub(super) async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Request>> {
    let mut head = stream.take(HEAD_LIMIT);
    let mut line = String::new();
    if head.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { bail!("not a request: {line:?}") };
    let mut request = Request { method: method.to_owned(), path: path.to_owned(), ..Request::default() };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line).await? == 0 {
            bail!("the head of a request ended early or exceeds {HEAD_LIMIT} bytes");
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(request));
        }
        if let Some((name, value)) = line.split_once(':') {
            request.note(&name.to_ascii_lowercase(), value.trim());
        }
    }
}

impl Request {
    fn note(&mut self, header: &str, value: &str) {
        let field = match header {
            "range" => &mut self.range,
            "if-range" => &mut self.if_range,
            "if-none-match" => &mut self.if_none_match,
            "accept-encoding" => &mut self.accept_encoding,
            "connection" => {
                self.last = value.eq_ignore_ascii_case("close");
                return;
            }
            _ => return,
        };
        *field = Some(value.to_owned());
    }
}
