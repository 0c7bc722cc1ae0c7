//! What a request is answered with. No I/O: the same request, file and faults give the same answer.

use super::{Fault, Request};

/// The file that a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) length: u64,
    /// With its quotes.
    pub(super) etag: String,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// An answer, ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Status line and headers.
    pub(super) head: String,
    /// What of the file is sent as the body.
    pub(super) body: Span,
    /// The connection stays open and silent after the body.
    pub(super) stalls: bool,
    pub(super) bytes_per_second: Option<u64>,
    closes: bool,
}

impl Answer {
    pub(super) fn to(request: &Request, subject: Option<&Subject>, faults: &[Fault]) -> Self {
        let (status, headers, span) = honest(request, subject, faults);
        let mut answer = Self {
            status,
            head: String::new(),
            body: span,
            stalls: false,
            bytes_per_second: None,
            closes: request.last,
        };
        let mut declared = span.length;
        for fault in faults {
            match fault {
                Fault::CutAfter { bytes } if *bytes < answer.body.length => {
                    answer.body.length = *bytes;
                    answer.closes = true;
                }
                Fault::StallAfter { bytes } if *bytes < answer.body.length => {
                    answer.body.length = *bytes;
                    answer.stalls = true;
                }
                Fault::Throttle { bytes_per_second } => answer.bytes_per_second = Some(*bytes_per_second),
                Fault::WrongLength { off_by } => {
                    declared = declared.saturating_add_signed(*off_by);
                    answer.closes = true;
                }
                _ => {}
            }
        }
        if request.method == "HEAD" {
            answer.body = Span::default();
        }
        answer.head = head(status, declared, answer.closes, &headers);
        answer
    }

    /// Whether the connection ends with this answer.
    pub(super) fn closes(&self) -> bool {
        self.closes
    }
}

type Header = (&'static str, String);

/// Status, headers and body before anything lies about them.
fn honest(request: &Request, subject: Option<&Subject>, faults: &[Fault]) -> (u16, Vec<Header>, Span) {
    for fault in faults {
        match fault {
            Fault::Status(status) => return (*status, vec![], Span::default()),
            Fault::Redirect { to } => return (302, vec![("Location", to.clone())], Span::default()),
            _ => {}
        }
    }
    if request.method != "GET" && request.method != "HEAD" {
        return (405, vec![], Span::default());
    }
    let Some(Subject { length, etag }) = subject else { return (404, vec![], Span::default()) };
    let mut headers = vec![("ETag", etag.clone()), ("Accept-Ranges", "bytes".to_owned())];
    if request.if_none_match.as_deref().is_some_and(|known| known == "*" || known == etag) {
        return (304, headers, Span::default());
    }
    let whole = Span { offset: 0, length: *length };
    let is_current = request.if_range.as_ref().is_none_or(|known| known == etag);
    let range = request.range.as_deref().filter(|_| is_current && !faults.contains(&Fault::IgnoreRange));
    match range.map_or(Range::Whole, |range| parse(range, *length)) {
        Range::Whole => (200, headers, whole),
        Range::Part(part) => {
            let part = shifted(part, faults);
            let last = (part.offset + part.length).saturating_sub(1);
            headers.push(("Content-Range", format!("bytes {}-{last}/{length}", part.offset)));
            (206, headers, part)
        }
        Range::Unsatisfiable => {
            headers.push(("Content-Range", format!("bytes */{length}")));
            (416, headers, Span::default())
        }
    }
}

fn shifted(part: Span, faults: &[Fault]) -> Span {
    faults.iter().fold(part, |part, fault| match fault {
        Fault::ShiftRange { by } => {
            let by = (*by).min(part.length.saturating_sub(1));
            Span { offset: part.offset + by, length: part.length - by }
        }
        _ => part,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Whole,
    Part(Span),
    Unsatisfiable,
}

/// One range of bytes. Several ranges, or another unit, are answered with the whole, as RFC 9110
/// section 14.2 allows.
fn parse(header: &str, length: u64) -> Range {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let end = length.saturating_sub(1);
    let (offset, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(end)),
        (Ok(first), Err(_)) if last.is_empty() => (first, end),
        (Err(_), Ok(suffix)) if first.is_empty() && suffix > 0 => (length.saturating_sub(suffix), end),
        _ => return Range::Whole,
    };
    if offset >= length {
        return Range::Unsatisfiable;
    }
    Range::Part(Span { offset, length: last - offset + 1 })
}

fn head(status: u16, length: u64, closes: bool, headers: &[Header]) -> String {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut lines = vec![format!("HTTP/1.1 {status} {}", reason.unwrap_or("Unknown"))];
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    // A 304 has no body, and a length there would be that of the file.
    if status != 304 {
        lines.push(format!("Content-Length: {length}"));
    }
    if closes {
        lines.push("Connection: close".to_owned());
    }
    lines.join("\r\n") + "\r\n\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(range: Option<&str>) -> Request {
        Request {
            method: "GET".into(),
            path: "/f".into(),
            range: range.map(Into::into),
            ..Request::default()
        }
    }

    fn file() -> Subject {
        Subject { length: 100, etag: "\"one\"".into() }
    }

    fn answer(request: &Request, faults: &[Fault]) -> Answer {
        Answer::to(request, Some(&file()), faults)
    }

    #[test]
    fn ranges() {
        for (range, status, offset, length) in [
            ("bytes=0-9", 206, 0, 10),
            ("bytes=90-", 206, 90, 10),
            ("bytes=-5", 206, 95, 5),
            ("bytes=-500", 206, 0, 100),
            ("bytes=50-5000", 206, 50, 50),
            ("bytes=100-", 416, 0, 0),
            ("bytes=9-3", 200, 0, 100),
            ("bytes=0-1,5-6", 200, 0, 100),
            ("lines=0-1", 200, 0, 100),
        ] {
            let answer = answer(&get(Some(range)), &[]);
            assert_eq!((answer.status, answer.body), (status, Span { offset, length }), "{range}");
        }
        let part = answer(&get(Some("bytes=10-19")), &[]);
        assert!(
            part.head.contains("Content-Range: bytes 10-19/100\r\nContent-Length: 10\r\n"),
            "{}",
            part.head
        );
    }

    #[test]
    fn validators() {
        let with = |if_range: Option<&str>, if_none_match: Option<&str>| {
            let mut request = get(Some("bytes=10-"));
            request.if_range = if_range.map(Into::into);
            request.if_none_match = if_none_match.map(Into::into);
            answer(&request, &[]).status
        };
        assert_eq!(with(Some("\"one\""), None), 206);
        assert_eq!(with(Some("\"two\""), None), 200);
        assert_eq!(with(None, Some("\"one\"")), 304);
        assert_eq!(with(None, Some("\"two\"")), 206);
    }

    #[test]
    fn a_head_has_the_headers_of_a_get_and_no_body() {
        let head = Request { method: "HEAD".into(), ..get(None) };
        assert_eq!(answer(&head, &[]).head, answer(&get(None), &[]).head);
        assert_eq!(answer(&head, &[]).body.length, 0);
    }

    #[test]
    fn lies_about_length_end_the_connection() {
        for (off_by, declared) in [(7, 107), (-7, 93)] {
            let answer = answer(&get(None), &[Fault::WrongLength { off_by }]);
            assert!(answer.head.contains(&format!("Content-Length: {declared}\r\n")), "{}", answer.head);
            assert_eq!(answer.body.length, 100);
            assert!(answer.closes());
        }
    }
}
