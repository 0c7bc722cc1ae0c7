//! When nodes may be staged or rebooted.
//!
//! A schedule is read on the wall clock of its time zone; how long a window stays open is real time. A time of day
//! that a change of clocks skips comes when the clock has been set forward, and one that comes twice counts when
//! it comes first, so that a weekly window opens once in every week. One without a fixed hour goes on through the
//! hour that comes twice.

use std::sync::LazyLock;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

use crate::api::{Window, WindowKind, WindowScope};

/// The time zones that come with this library: what a plan is must not depend on the machine that it is made on.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
/// An end that is farther away is not looked for: nothing that is started depends on it.
const FAR: SignedDuration = SignedDuration::from_hours(24);
/// So often something opens or closes before the search for the next opening is given up: more than a year
/// where that happens twice a day.
const EDGES: usize = 1000;

/// The windows of a rollout.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    list: Vec<Entry>,
}

/// Why a window cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The schedule has not five fields.
    #[error(
        "windows: {schedule:?} has {found} fields instead of five: minute, hour, day of month, month, day of week, as in \"0 2 * * sat\"; the time zone goes to timeZone"
    )]
    Fields {
        /// The schedule as given.
        schedule: String,
        /// How many there are.
        found: usize,
    },
    /// The schedule is none.
    #[error("windows: {schedule:?} is not a cron schedule: {problem}")]
    Schedule {
        /// The schedule as given.
        schedule: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The schedule names a day that never comes.
    #[error("windows: {schedule:?} never comes: look at its day and month")]
    Never {
        /// The schedule as given.
        schedule: String,
    },
    /// There is no such time zone.
    #[error("windows: {name:?} is no time zone of the IANA database, such as Europe/Berlin")]
    TimeZone {
        /// The name as given.
        name: String,
    },
    /// The window has no length.
    #[error("windows: {schedule:?} stays open for {minutes} minutes: durationMinutes must be 1 or more")]
    Duration {
        /// The schedule as given.
        schedule: String,
        /// The length as given.
        minutes: i32,
    },
}

/// Whether something may be started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowState {
    /// It may.
    Open {
        /// Until then; `None` if that is a day away, or more.
        closes: Option<Timestamp>,
    },
    /// It may not.
    Closed {
        /// When it may again; `None` if that is more than a year away, or never.
        opens: Option<Timestamp>,
    },
}

#[derive(Clone, Debug)]
struct Entry {
    kind: WindowKind,
    scopes: Vec<WindowScope>,
    cron: Cron,
    zone: TimeZone,
    lasts: SignedDuration,
}

impl Windows {
    /// Understands the windows of a spec.
    ///
    /// # Errors
    /// One of them cannot be obeyed.
    pub fn new(windows: &[Window]) -> Result<Self, WindowError> {
        let list = windows.iter().map(Entry::new).collect::<Result<_, _>>()?;
        Ok(Self { list })
    }

    /// Whether what `scope` names may be started at `now`: inside an Allow window, if there is any for it,
    /// and outside every Deny window.
    #[must_use]
    pub fn state(&self, scope: WindowScope, now: Timestamp) -> WindowState {
        let look = self.look(scope, now);
        if look.open { self.closes(scope, now, look.changes) } else { self.opens(scope, look.may_open) }
    }

    fn closes(&self, scope: WindowScope, now: Timestamp, mut edge: Option<Timestamp>) -> WindowState {
        while let Some(at) = edge.filter(|at| at.duration_since(now) < FAR) {
            let look = self.look(scope, at);
            if !look.open {
                return WindowState::Open { closes: Some(at) };
            }
            edge = look.changes.filter(|next| *next > at);
        }
        WindowState::Open { closes: None }
    }

    fn opens(&self, scope: WindowScope, mut earliest: Option<Timestamp>) -> WindowState {
        for _ in 0..EDGES {
            let Some(at) = earliest else { break };
            let look = self.look(scope, at);
            if look.open {
                return WindowState::Closed { opens: Some(at) };
            }
            earliest = look.may_open;
        }
        WindowState::Closed { opens: None }
    }

    fn look(&self, scope: WindowScope, at: Timestamp) -> Look {
        let (mut restricted, mut allowed) = (false, false);
        let (mut changes, mut denied_until, mut next_allowed) = (None, None, None);
        let sooner = |known: Option<Timestamp>, edge| known.into_iter().chain(edge).min();
        for entry in self.list.iter().filter(|entry| entry.scopes.contains(&scope)) {
            let (inside, edge) = entry.look(at);
            changes = sooner(changes, edge);
            match (entry.kind, inside) {
                (WindowKind::Allow, true) => (restricted, allowed) = (true, true),
                (WindowKind::Allow, false) => (restricted, next_allowed) = (true, sooner(next_allowed, edge)),
                (WindowKind::Deny, true) => denied_until = denied_until.max(edge),
                (WindowKind::Deny, false) => {}
            }
        }
        Look {
            open: (allowed || !restricted) && denied_until.is_none(),
            changes,
            may_open: denied_until.or(next_allowed),
        }
    }
}

/// What the windows say of a moment.
struct Look {
    /// Whether it is open.
    open: bool,
    /// When the next window opens or closes after that.
    changes: Option<Timestamp>,
    /// Before that it stays shut, if it is: the Deny windows last as long, or no Allow window begins.
    may_open: Option<Timestamp>,
}

impl Entry {
    fn new(window: &Window) -> Result<Self, WindowError> {
        let schedule = window.schedule.clone();
        let found = schedule.split_whitespace().count();
        if found != 5 {
            return Err(WindowError::Fields { schedule, found });
        }
        let minutes = window.duration_minutes;
        if minutes < 1 {
            return Err(WindowError::Duration { schedule, minutes });
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(&schedule).map_err(|error| WindowError::Schedule {
            schedule: schedule.clone(),
            problem: error.to_string(),
        })?;
        let name = window.time_zone.as_deref().unwrap_or("UTC");
        let zone = ZONES.get(name).map_err(|_| WindowError::TimeZone { name: name.to_owned() })?;
        if cron.find_next_occurrence(&Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC), true).is_err() {
            return Err(WindowError::Never { schedule });
        }
        let scopes = match window.applies_to.as_slice() {
            [] => vec![WindowScope::Reboot],
            scopes => scopes.to_vec(),
        };
        let lasts = SignedDuration::from_mins(minutes.into());
        Ok(Self { kind: window.kind, scopes, cron, zone, lasts })
    }

    /// Whether the window is open at `at`, and when it closes or opens next.
    fn look(&self, at: Timestamp) -> (bool, Option<Timestamp>) {
        let here = at.to_zoned(self.zone.clone());
        let opened = self.cron.find_previous_occurrence(&here, true).ok();
        let closes = opened.and_then(|opened| opened.timestamp().checked_add(self.lasts).ok());
        if let Some(closes) = closes.filter(|closes| *closes > at) {
            return (true, Some(closes));
        }
        let opens = self.cron.find_next_occurrence(&here, false).ok();
        (false, opens.map(|opens| opens.timestamp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kind: WindowKind, schedule: &str, minutes: i32, zone: Option<&str>) -> Window {
        Window {
            kind,
            schedule: schedule.to_owned(),
            duration_minutes: minutes,
            time_zone: zone.map(str::to_owned),
            applies_to: vec![],
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn open(closes: &str) -> WindowState {
        WindowState::Open { closes: Some(at(closes)) }
    }

    fn closed(opens: &str) -> WindowState {
        WindowState::Closed { opens: Some(at(opens)) }
    }

    fn reboot(windows: &[Window], now: &str) -> WindowState {
        Windows::new(windows).unwrap().state(WindowScope::Reboot, at(now))
    }

    #[test]
    fn without_windows_everything_is_open() {
        assert_eq!(reboot(&[], "2026-11-29T12:00:00Z"), WindowState::Open { closes: None });
        // One for staging says nothing of reboots.
        let staging = Window {
            applies_to: vec![WindowScope::Stage],
            ..window(WindowKind::Allow, "0 2 * * *", 60, None)
        };
        assert_eq!(reboot(&[staging], "2026-11-29T12:00:00Z"), WindowState::Open { closes: None });
    }

    #[test]
    fn the_guides_window_opens_on_saturday_night() {
        let saturday = [window(WindowKind::Allow, "0 2 * * sat", 180, Some("Europe/Berlin"))];
        for (now, expected) in [
            ("2026-11-29T12:00:00Z", closed("2026-12-05T01:00:00Z")),
            ("2026-12-05T00:59:59Z", closed("2026-12-05T01:00:00Z")),
            ("2026-12-05T01:00:00Z", open("2026-12-05T04:00:00Z")),
            ("2026-12-05T03:59:59Z", open("2026-12-05T04:00:00Z")),
            ("2026-12-05T04:00:00Z", closed("2026-12-12T01:00:00Z")),
        ] {
            assert_eq!(reboot(&saturday, now), expected, "{now}");
        }
    }

    #[test]
    fn a_window_opens_once_in_the_nights_in_which_clocks_change() {
        let sunday = [window(WindowKind::Allow, "30 2 * * sun", 60, Some("Europe/Berlin"))];
        // 02:30 does not come on 2026-03-29: at 02:00 it is 03:00.
        assert_eq!(reboot(&sunday, "2026-03-28T12:00:00Z"), closed("2026-03-29T01:00:00Z"));
        assert_eq!(reboot(&sunday, "2026-03-29T01:59:59Z"), open("2026-03-29T02:00:00Z"));
        assert_eq!(reboot(&sunday, "2026-03-29T02:00:00Z"), closed("2026-04-05T00:30:00Z"));
        // 02:30 comes twice on 2026-10-25.
        assert_eq!(reboot(&sunday, "2026-10-24T12:00:00Z"), closed("2026-10-25T00:30:00Z"));
        assert_eq!(reboot(&sunday, "2026-10-25T01:00:00Z"), open("2026-10-25T01:30:00Z"));
        assert_eq!(reboot(&sunday, "2026-10-25T01:30:00Z"), closed("2026-11-01T01:30:00Z"));
    }

    #[test]
    fn a_deny_window_wins() {
        let both = [
            window(WindowKind::Allow, "0 * * * *", 60, None),
            window(WindowKind::Deny, "0 8 * * mon-fri", 600, None),
        ];
        assert_eq!(reboot(&both, "2026-11-30T07:30:00Z"), open("2026-11-30T08:00:00Z"));
        assert_eq!(reboot(&both, "2026-11-30T08:00:00Z"), closed("2026-11-30T18:00:00Z"));
        let freeze = [window(WindowKind::Deny, "0 0 20 12 *", 10_080, None)];
        assert_eq!(reboot(&freeze, "2026-12-21T00:00:00Z"), closed("2026-12-27T00:00:00Z"));
    }

    #[test]
    fn windows_that_follow_on_each_other_are_one() {
        let halves = [
            window(WindowKind::Allow, "0 22 * * *", 120, None),
            window(WindowKind::Allow, "0 0 * * *", 120, None),
        ];
        assert_eq!(reboot(&halves, "2026-11-30T23:00:00Z"), open("2026-12-01T02:00:00Z"));
    }

    #[test]
    fn an_hourly_window_is_open_in_the_hour_that_comes_twice() {
        let hourly = [window(WindowKind::Allow, "0 * * * *", 30, Some("Europe/Berlin"))];
        for now in ["2026-10-25T00:10:00Z", "2026-10-25T01:10:00Z", "2026-10-25T02:10:00Z"] {
            assert!(matches!(reboot(&hourly, now), WindowState::Open { .. }), "{now}");
        }
    }

    #[test]
    fn one_that_is_always_open_says_so() {
        let always = [window(WindowKind::Allow, "* * * * *", 1, None)];
        assert_eq!(reboot(&always, "2026-11-29T12:00:30Z"), WindowState::Open { closes: None });
        let freeze = window(WindowKind::Deny, "0 20 29 11 *", 60, None);
        assert_eq!(
            reboot(&[always[0].clone(), freeze], "2026-11-29T12:00:30Z"),
            open("2026-11-29T20:00:00Z")
        );
    }

    #[test]
    fn the_last_day_of_a_month_is_one() {
        let last = [window(WindowKind::Deny, "0 0 L * *", 1440, None)];
        assert_eq!(reboot(&last, "2026-12-31T12:00:00Z"), closed("2027-01-01T00:00:00Z"));
    }

    #[test]
    fn a_freeze_over_windows_of_every_minute_is_looked_past() {
        let every_minute = window(WindowKind::Allow, "* * * * *", 1, None);
        let weekend = window(WindowKind::Deny, "0 0 * * sat", 2880, None);
        let december = window(WindowKind::Deny, "0 0 1 12 *", 31 * 1440, None);
        let windows = [every_minute, weekend, december];
        assert_eq!(reboot(&windows, "2026-11-28T00:00:00Z"), closed("2026-11-30T00:00:00Z"));
        // Of two that overlap the later end counts: the second of January is a Saturday.
        assert_eq!(reboot(&windows, "2026-12-10T00:00:00Z"), closed("2027-01-01T00:00:00Z"));
        assert_eq!(reboot(&windows, "2027-01-02T00:00:30Z"), closed("2027-01-04T00:00:00Z"));
    }

    #[test]
    fn a_window_that_is_never_open_says_so() {
        let never = [
            window(WindowKind::Allow, "0 2 * * *", 60, None),
            window(WindowKind::Deny, "0 0 * * *", 1440, None),
        ];
        assert_eq!(reboot(&never, "2026-11-30T02:30:00Z"), WindowState::Closed { opens: None });
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_in_words() {
        let refused = |schedule: &str, zone: Option<&str>| {
            Windows::new(&[window(WindowKind::Allow, schedule, 60, zone)]).unwrap_err()
        };
        assert!(matches!(refused("0 2 * *", None), WindowError::Fields { found: 4, .. }));
        assert!(matches!(refused("0 2 * * sat Europe/Berlin", None), WindowError::Fields { found: 6, .. }));
        assert!(matches!(refused("0 25 * * sat", None), WindowError::Schedule { .. }));
        assert!(matches!(refused("0 0 31 2 *", None), WindowError::Never { .. }));
        assert!(matches!(refused("0 2 * * sat", Some("Mars/Olympus")), WindowError::TimeZone { .. }));
        let text = refused("0 2 * * saturnday", None).to_string();
        assert!(text.starts_with("windows: \"0 2 * * saturnday\" is not a cron schedule: "), "{text}");
    }
}
