//! Requests that the API server did not grant, in words that name the rule to add.

use std::borrow::Cow;
use std::time::Duration;

use kube::core::Status;

/// A request to the API server that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// RBAC does not allow it.
    #[error(
        "the API server forbids the operator to {verb} {resource}: allow it in the ClusterRole of the operator's ServiceAccount ({answer})"
    )]
    Forbidden {
        /// What was attempted.
        verb: &'static str,
        /// On which resource, as `plural.group`.
        resource: Cow<'static, str>,
        /// The server's own words.
        answer: String,
    },
    /// The API server declined it for another reason.
    #[error("cannot {verb} {resource}: the API server answered {}: {}", status.code, status.message)]
    Declined {
        /// What was attempted.
        verb: &'static str,
        /// On which resource, as `plural.group`.
        resource: Cow<'static, str>,
        /// The whole answer.
        status: Box<Status>,
    },
    /// There was no answer in time; whether it was carried out is not known.
    #[error("cannot {verb} {resource}: no answer within {}s", after.as_secs())]
    TimedOut {
        /// What was attempted.
        verb: &'static str,
        /// On which resource, as `plural.group`.
        resource: Cow<'static, str>,
        /// The time that was given.
        after: Duration,
    },
    /// There was no answer, or none that could be read.
    #[error("cannot {verb} {resource}")]
    Failed {
        /// What was attempted.
        verb: &'static str,
        /// On which resource, as `plural.group`.
        resource: Cow<'static, str>,
        /// What happened.
        #[source]
        source: Box<kube::Error>,
    },
}

impl ApiError {
    /// The error of a request to `verb` a `resource` (as `plural.group`).
    #[must_use]
    pub fn of(verb: &'static str, resource: impl Into<Cow<'static, str>>, error: kube::Error) -> Self {
        let resource = resource.into();
        match error {
            kube::Error::Api(status) if status.is_forbidden() => {
                Self::Forbidden { verb, resource, answer: status.message.clone() }
            }
            kube::Error::Api(status) => Self::Declined { verb, resource, status },
            other => Self::Failed { verb, resource, source: Box::new(other) },
        }
    }

    /// Whether the object had changed since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.is_conflict() || status.is_already_exists())
    }

    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    /// Whether the object of that name is another one than was meant: the server does not let a UID
    /// change, and says so.
    #[must_use]
    pub fn is_other_uid(&self) -> bool {
        let causes = |status: &Status| {
            status.details.iter().flat_map(|details| details.causes.clone()).collect::<Vec<_>>()
        };
        self.status().is_some_and(|status| {
            status.is_invalid() && causes(status).iter().any(|cause| cause.field == "metadata.uid")
        })
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Self::Declined { status, .. } => Some(status),
            Self::Forbidden { .. } | Self::TimedOut { .. } | Self::Failed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use monok8s_sdk::causes::chain;

    use super::*;

    fn answered(code: u16, reason: &str) -> ApiError {
        let status = Status::failure("nodes is forbidden: no", reason).with_code(code).boxed();
        ApiError::of("list", "nodes", kube::Error::Api(status))
    }

    #[test]
    fn a_denied_request_names_what_to_allow() {
        let words = chain(&answered(403, "Forbidden"));
        assert!(words.contains("list nodes") && words.contains("ClusterRole"), "{words}");
        assert_eq!(words.matches("is forbidden").count(), 1, "{words}");
    }

    #[test]
    fn lost_races_are_told_from_failures() {
        assert!(answered(409, "Conflict").is_conflict());
        assert!(answered(409, "AlreadyExists").is_conflict());
        assert!(answered(404, "NotFound").is_not_found());
        assert!(!answered(403, "Forbidden").is_conflict());
    }

    #[test]
    fn a_cause_is_said_once() {
        let words = chain(&answered(500, "InternalError"));
        assert_eq!(words.matches("nodes is forbidden: no").count(), 1, "{words}");
    }
}
