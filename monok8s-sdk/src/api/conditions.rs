//! Conditions in the shape of `meta/v1 Condition`, compared without their times.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::MAX_MESSAGE_LEN;
use super::open_enum::open_enum;

open_enum! {
    /// The condition types of all kinds. One definition each; the user guide uses the same words.
    pub enum ConditionType {
        /// The object is where its spec wants it, and was observed there.
        Ready,
        /// Something is still being done, and will go on by itself.
        Reconciling,
        /// Nothing more will happen until a person acts.
        Stalled,
        /// The upgrade is paused by its spec or by the hold annotation.
        Paused,
        /// The last attempt to read the catalog succeeded.
        CatalogReachable,
        /// A drain waits for a disruption budget or a pod that cannot be evicted.
        DrainBlocked,
        /// The next step waits for a maintenance window.
        WaitingForWindow,
        /// A health check holds nodes back.
        HealthGate,
        /// The operator allows the node to commit to the reboot, and the node has not done so for a while.
        BootGranted,
        /// What had to leave the node before its reboot has left it.
        Drained,
        /// The node is back, and the next one waits until it has been for long enough.
        Soaking,
        /// The node did not finish a step in the time its upgrade allows.
        TimedOut,
        /// Another upgrade governs the node, or the upgrade wants something else by now.
        Superseded,
        /// The node says it is done, and its Node object or its report says otherwise.
        Degraded,
    }
}

/// The conditions that kstatus reads. In an `OSUpgradeProgress` they are the agent's.
pub const KSTATUS: [ConditionType; 3] =
    [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled];

/// Whether kstatus reads this condition.
#[must_use]
pub fn is_of_kstatus(condition: &Condition) -> bool {
    KSTATUS.iter().any(|kind| kind.as_str() == condition.type_)
}

/// The truth of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Truth {
    /// `True`
    True,
    /// `False`
    False,
    /// `Unknown`
    Unknown,
}

impl Truth {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Self::True } else { Self::False }
    }
}

/// A list of conditions under construction: each type once, transition times kept from the list
/// that was there before.
///
/// ```
/// use k8s_openapi::jiff::Timestamp;
/// use monok8s_sdk::api::{ConditionType, Conditions, Truth};
///
/// let first = Conditions::new(&[], 1, Timestamp::UNIX_EPOCH)
///     .with(ConditionType::Ready, Truth::True, "UpToDate", "all nodes run v1.35.3")
///     .into_vec();
/// let later = Conditions::new(&first, 2, Timestamp::now())
///     .with(ConditionType::Ready, Truth::True, "UpToDate", "all nodes run v1.35.4")
///     .into_vec();
/// assert_eq!(later[0].last_transition_time, first[0].last_transition_time);
/// assert_eq!(later[0].observed_generation, Some(2));
/// ```
#[derive(Clone, Debug)]
pub struct Conditions<'a> {
    previous: &'a [Condition],
    generation: i64,
    now: Timestamp,
    list: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts a list that is stamped with `generation`; `previous` gives the transition times.
    #[must_use]
    pub fn new(previous: &'a [Condition], generation: i64, now: Timestamp) -> Self {
        Self { previous, generation, now, list: Vec::new() }
    }

    /// Adds or replaces one condition. An overlong message is cut, and says so with an ellipsis.
    #[must_use]
    pub fn with(
        mut self,
        kind: ConditionType,
        truth: Truth,
        reason: impl AsRef<str>,
        message: impl Into<String>,
    ) -> Self {
        let before = find(self.previous, &kind);
        let since = before
            .filter(|before| before.status == truth.as_str())
            .map(|before| before.last_transition_time.clone());
        self.list.retain(|condition| condition.type_ != kind.as_str());
        self.list.push(Condition {
            type_: kind.into(),
            status: truth.as_str().to_owned(),
            reason: reason.as_ref().to_owned(),
            message: shorten(message.into()),
            last_transition_time: since.unwrap_or(Time(self.now)),
            observed_generation: Some(self.generation),
        });
        self
    }

    /// The list, in the order in which the types were added.
    #[must_use]
    pub fn into_vec(self) -> Vec<Condition> {
        self.list
    }
}

/// The condition of a type, if it is there.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &ConditionType) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether the condition of a type is there and `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Cuts a message to what a status may hold, at a character boundary.
#[must_use]
pub fn shorten(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_LEN {
        let end = (0..=MAX_MESSAGE_LEN - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_truth_gets_a_new_time() {
        let first = Conditions::new(&[], 1, Timestamp::UNIX_EPOCH)
            .with(ConditionType::Ready, Truth::False, "A", "")
            .into_vec();
        let now = Timestamp::now();
        let then =
            Conditions::new(&first, 1, now).with(ConditionType::Ready, Truth::True, "B", "").into_vec();
        assert_eq!(then.len(), 1);
        assert_eq!(then[0].last_transition_time, Time(now));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let cut = shorten("é".repeat(MAX_MESSAGE_LEN));
        assert!(cut.len() <= MAX_MESSAGE_LEN && cut.ends_with('…'));
    }
}
