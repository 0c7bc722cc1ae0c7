//! Whether an HTTP response continues what was received so far. Pure: facts in, verdict out.
//!
//! RFC 9110, sections 13.1.5 (If-Range), 14.2 (Range) and 15.3.7 (206).

/// What a response says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

/// What was received so far, and what this mirror said about the file when it was asked before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) offset: u64,
    /// Where the part ends that is wanted; `None` is the end of the file.
    pub(super) end: Option<u64>,
    pub(super) total: Option<u64>,
    pub(super) known: Option<Identity>,
}

/// How a mirror tells versions of a file apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    etag: Option<String>,
    last_modified: Option<String>,
}

/// A body to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Take {
    /// How many of its first bytes are left out.
    pub(super) skip: u64,
    /// How long the file is, if that is known.
    pub(super) total: Option<u64>,
}

/// Why nothing of a response is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The file is another one than the one that was begun.
    Changed,
    /// The server has a passing problem.
    Busy,
    /// No such file here.
    NotFound,
    /// No permission.
    Forbidden,
    /// Not the part that was asked for, and it would be the same again.
    WrongPart(String),
    /// An answer that cannot be used, and would be the same again.
    Unusable(String),
}

impl Identity {
    pub(super) fn of(answer: &Answer) -> Self {
        Self { etag: answer.etag.clone(), last_modified: answer.last_modified.clone() }
    }

    /// The value for If-Range: a strong `ETag`, else the date. A weak one is not allowed there.
    pub(super) fn if_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.last_modified.as_deref())
    }

    /// Whether both are given for the same thing and differ.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        match (&self.etag, &other.etag, &self.last_modified, &other.last_modified) {
            (Some(left), Some(right), ..) | (_, _, Some(left), Some(right)) => left != right,
            _ => false,
        }
    }
}

impl Received {
    /// Whether a part of the file is asked for, not all of it.
    pub(super) fn is_part(&self) -> bool {
        self.offset > 0 || self.end.is_some()
    }

    /// Whether everything that is wanted is there.
    pub(super) fn is_complete(&self) -> bool {
        self.end.or(self.total).is_some_and(|end| self.offset >= end)
    }
}

/// Judges a response to a request for everything from `received.offset` on.
pub(super) fn judge(received: &Received, answer: &Answer) -> Result<Take, Refused> {
    if let Some(encoding) = answer.content_encoding.as_deref().filter(|encoding| *encoding != "identity") {
        return Err(Refused::Unusable(format!(
            "it is sent with Content-Encoding {encoding}, which was not asked for"
        )));
    }
    let changed = received.offset > 0
        && received.known.as_ref().is_some_and(|known| known.contradicts(&Identity::of(answer)));
    match answer.status {
        200 | 206 if changed => Err(Refused::Changed),
        200 => whole(received, answer),
        206 => part(received, answer),
        416 => beyond_the_end(received),
        404 | 410 => Err(Refused::NotFound),
        401 | 403 => Err(Refused::Forbidden),
        408 | 425 | 429 | 500.. => Err(Refused::Busy),
        status => Err(Refused::Unusable(format!("it answers with status {status}"))),
    }
}

/// The whole file, asked for or not: servers without ranges send it from the start again.
fn whole(received: &Received, answer: &Answer) -> Result<Take, Refused> {
    match (received.total, answer.content_length) {
        (Some(known), Some(length)) if known != length => Err(Refused::Changed),
        (_, Some(length)) if length < received.offset => Err(Refused::Changed),
        (known, length) => Ok(Take { skip: received.offset, total: length.or(known) }),
    }
}

/// There is nothing where the download should go on. With If-Range, another file would have been
/// sent whole, so it is the same one, and shorter than it was said to be.
fn beyond_the_end(received: &Received) -> Result<Take, Refused> {
    if received.known.as_ref().is_some_and(|known| known.if_range().is_some()) {
        return Err(Refused::Unusable(format!(
            "it announced more than the {} bytes that it has",
            received.offset
        )));
    }
    Err(Refused::Changed)
}

fn part(received: &Received, answer: &Answer) -> Result<Take, Refused> {
    if !received.is_part() {
        return Err(Refused::Unusable("it sends a part of the file, but the whole was asked for".to_owned()));
    }
    let range = answer.content_range.as_deref().unwrap_or_default();
    let Some((first, last, total)) = content_range(range) else {
        return Err(Refused::WrongPart(format!("it sends a part with an unusable Content-Range {range:?}")));
    };
    if first != received.offset {
        return Err(Refused::WrongPart(format!(
            "it sends bytes from {first} on, but those from {} on were asked for",
            received.offset
        )));
    }
    if answer.content_length.is_some_and(|length| length != last - first + 1) {
        return Err(Refused::WrongPart("Content-Length and Content-Range contradict each other".to_owned()));
    }
    match (received.total, total) {
        (Some(known), Some(total)) if known != total => Err(Refused::Changed),
        (known, total) => Ok(Take { skip: 0, total: total.or(known) }),
    }
}

/// `bytes 5-9/10` or `bytes 5-9/*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    // `last - first + 1` must be a length.
    let sane = first <= last && last < u64::MAX && total.is_none_or(|total| last < total);
    sane.then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn received(offset: u64) -> Received {
        let known = Identity { etag: Some("\"one\"".into()), last_modified: None };
        Received { offset, end: None, total: Some(100), known: (offset > 0).then_some(known) }
    }

    fn answer(status: u16) -> Answer {
        Answer { status, etag: Some("\"one\"".into()), ..Answer::default() }
    }

    fn ranged(range: &str) -> Answer {
        Answer { content_range: Some(range.into()), ..answer(206) }
    }

    #[test]
    fn resumes_only_where_it_left_off() {
        let take = |skip| Ok(Take { skip, total: Some(100) });
        assert_eq!(judge(&received(40), &ranged("bytes 40-99/100")), take(0));
        assert_eq!(
            judge(&received(40), &ranged("bytes 40-59/100")),
            take(0),
            "a shorter part is followed up"
        );
        assert_eq!(judge(&received(40), &ranged("bytes 40-99/*")), take(0));
        assert_eq!(judge(&received(40), &answer(200)), take(40), "a server without ranges");
        assert_eq!(
            judge(&Received::default(), &Answer { content_length: Some(7), ..answer(200) }),
            Ok(Take { skip: 0, total: Some(7) })
        );
        for wrong in [
            "bytes 0-99/100",
            "bytes 41-99/100",
            "",
            "bytes 40-100/100",
            "bytes 99-40/100",
            "items 40-99/100",
            "bytes 40-18446744073709551615/*",
        ] {
            assert!(matches!(judge(&received(40), &ranged(wrong)), Err(Refused::WrongPart(_))), "{wrong}");
        }
        assert!(matches!(judge(&Received::default(), &ranged("bytes 0-99/100")), Err(Refused::Unusable(_))));
        let start = Received { end: Some(50), total: Some(100), ..Received::default() };
        assert_eq!(judge(&start, &ranged("bytes 0-49/100")), take(0), "the start was asked for");
        assert_eq!(judge(&start, &ranged("bytes 0-49/101")), Err(Refused::Changed));
    }

    #[test]
    fn another_file_is_noticed() {
        let other = |status| Answer { status, etag: Some("\"two\"".into()), ..ranged("bytes 40-99/100") };
        assert_eq!(judge(&received(40), &other(206)), Err(Refused::Changed));
        assert_eq!(judge(&received(40), &other(200)), Err(Refused::Changed));
        assert_eq!(judge(&received(40), &ranged("bytes 40-99/101")), Err(Refused::Changed));
        assert_eq!(
            judge(&received(40), &Answer { content_length: Some(99), ..answer(200) }),
            Err(Refused::Changed)
        );
        assert_eq!(judge(&Received { known: None, ..received(40) }, &answer(416)), Err(Refused::Changed));
    }

    #[test]
    fn a_lie_about_the_length_is_noticed() {
        assert!(matches!(judge(&received(40), &answer(416)), Err(Refused::Unusable(_))));
        let shorter = Answer { content_length: Some(50), ..ranged("bytes 40-99/100") };
        assert!(matches!(judge(&received(40), &shorter), Err(Refused::WrongPart(_))));
    }

    #[test]
    fn final_answers_are_told_from_passing_ones() {
        let verdict = |status| judge(&Received::default(), &answer(status));
        assert_eq!(verdict(404), Err(Refused::NotFound));
        assert_eq!(verdict(410), Err(Refused::NotFound));
        assert_eq!(verdict(403), Err(Refused::Forbidden));
        assert_eq!(verdict(503), Err(Refused::Busy));
        assert_eq!(verdict(429), Err(Refused::Busy));
        assert!(matches!(verdict(304), Err(Refused::Unusable(_))));
        let gzip = Answer { content_encoding: Some("gzip".into()), ..answer(200) };
        assert!(matches!(judge(&Received::default(), &gzip), Err(Refused::Unusable(_))));
    }

    #[test]
    fn a_weak_etag_is_not_sent_as_if_range() {
        let identity = |etag: &str| Identity { etag: Some(etag.into()), last_modified: Some("Mon".into()) };
        assert_eq!(identity("\"x\"").if_range(), Some("\"x\""));
        assert_eq!(identity("W/\"x\"").if_range(), Some("Mon"));
    }

    proptest! {
        /// Whatever a server says, bytes are never taken at a place other than the one asked for.
        #[test]
        fn no_answer_panics_or_misplaces_bytes(offset in 0_u64..200, status in 100_u16..600, range in "bytes [0-9]{1,3}-[0-9]{1,20}/([0-9]{1,20}|\\*)", length in proptest::option::of(0_u64..300)) {
            let answer = Answer { status, content_range: Some(range.clone()), content_length: length, ..Answer::default() };
            if let Ok(Take { skip, .. }) = judge(&Received { offset, ..Received::default() }, &answer) {
                if status == 206 {
                    prop_assert_eq!(skip, 0);
                    let place = format!("bytes {offset}-");
                    prop_assert!(range.starts_with(&place));
                } else {
                    prop_assert_eq!(skip, offset);
                }
            }
        }
    }
}
