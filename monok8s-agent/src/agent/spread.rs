//! Keeping the agents of a fleet apart: those that wait for the same thing, or were cut off by the same outage, do not
//! all come at once.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// A time at random in the upper half of `whole`.
pub(super) fn spread(whole: Duration) -> Duration {
    // The system's randomness seeds the first one of a thread, and each further one is another.
    let thousandths = u32::try_from(RandomState::new().hash_one(0) % 1001).unwrap_or(0);
    whole / 2 + whole / 2000 * thousandths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_agents_wait_for_the_same_time_and_none_for_long() {
        let whole = Duration::from_secs(300);
        let times: std::collections::BTreeSet<_> = (0..100).map(|_| spread(whole)).collect();
        assert!(times.len() > 50, "{times:?}");
        assert!(times.iter().all(|time| (whole / 2..=whole).contains(time)), "{times:?}");
    }
}
