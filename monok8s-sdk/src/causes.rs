//! Errors with all that caused them, as one line for a log or a status.

use std::error::Error;

/// An error and its causes in one line, outermost first. A cause whose words were just said is left
/// out: transparent wrappers repeat what they wrap, and some errors print their own causes.
///
/// ```
/// use monok8s_sdk::causes::chain;
///
/// #[derive(Debug, thiserror::Error)]
/// #[error("cannot read the order")]
/// struct Unread(#[source] std::num::ParseIntError);
///
/// let cause = "x".parse::<u8>().unwrap_err();
/// assert_eq!(chain(&Unread(cause)), "cannot read the order: invalid digit found in string");
/// ```
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !line.contains(&words) {
            line.push_str(": ");
            line.push_str(&words);
        }
        next = cause.source();
    }
    line
}
