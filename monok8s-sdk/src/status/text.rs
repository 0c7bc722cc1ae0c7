//! Reports as people read them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Attention, Course, NodeLine, Report, Summary, Window};
use crate::rollout::Assessment;

impl Report {
    /// The whole report: the upgrade, what needs a person, and a table of its nodes in which equal lines are one.
    #[must_use]
    pub fn text(&self) -> String {
        self.drawn(Bars::Hidden)
    }

    /// The same for a terminal, with bars for the run and for downloads.
    #[must_use]
    pub fn text_with_bars(&self) -> String {
        self.drawn(Bars::Shown)
    }

    /// What is new since `before`, one line for each upgrade or node that changed; all that there is without one.
    #[must_use]
    pub fn news_since(&self, before: Option<&Self>) -> Vec<String> {
        let mut news = Vec::new();
        let said = |upgrade: &Summary| {
            format!("{}, {:?}, {}: {}", upgrade.phase, upgrade.course, upgrade.reason, upgrade.message)
        };
        let now = said(&self.upgrade);
        if before.is_none_or(|before| said(&before.upgrade) != now) {
            news.push(format!("{}: {now}", self.upgrade.name));
        }
        let known = before.map(|before| &before.nodes).into_iter().flatten();
        let known: BTreeMap<&str, _> = known.map(|node| (node.node.as_str(), node.kind())).collect();
        for node in &self.nodes {
            let kind = node.kind();
            if known.get(node.node.as_str()) != Some(&kind) {
                let (assessment, _, _, phase, message) = kind;
                let phase = if phase.is_empty() { phase } else { format!(", {phase}") };
                news.push(format!("{}: {assessment}{phase}: {message}", node.node));
            }
        }
        news
    }

    fn drawn(&self, bars: Bars) -> String {
        let mut text = self.upgrade.text(self.now, bars);
        if !self.attention.is_empty() {
            text.push('\n');
            text.push_str(&table(&self.attention_rows()));
        }
        if !self.nodes.is_empty() {
            text.push('\n');
            text.push_str(&table(&self.node_rows(bars)));
        }
        text
    }

    /// Why the upgrade is where it is, and each of its nodes, in sentences.
    #[must_use]
    pub fn explanation(&self) -> String {
        let upgrade = &self.upgrade;
        let what = match upgrade.course {
            Course::Done => "is where it should be",
            Course::Progressing => "goes on",
            Course::Waiting => "waits",
            Course::Stalled => "does not go on until somebody acts",
        };
        let mut text = format!("{} {what}.\n  {}: {}\n", upgrade.name, upgrade.reason, upgrade.message);
        if let Some(at) = upgrade.next_event.filter(|_| upgrade.course != Course::Done) {
            line(
                &mut text,
                &format!(
                    "  The next time that the controller waits for, here or in another upgrade: {}.",
                    moment(at, self.now)
                ),
            );
        }
        for Attention { message, impact, command, .. } in &self.attention {
            line(&mut text, &format!("\n{impact}: {message}\n  Next: {command}"));
        }
        for node in &self.nodes {
            text.push('\n');
            text.push_str(&node.explanation(self.now));
        }
        text
    }

    /// The same about one node; `None` if the upgrade does not select it.
    #[must_use]
    pub fn explanation_of(&self, node: &str) -> Option<String> {
        self.nodes.iter().find(|line| line.node == node).map(|line| line.explanation(self.now))
    }

    fn attention_rows(&self) -> Vec<Vec<String>> {
        let heading = ["SINCE", "LEVEL", "IMPACT", "MESSAGE"].map(str::to_owned).to_vec();
        let mut rows = vec![heading];
        for Attention { since, level, impact, message, command } in &self.attention {
            let since = since.map_or_else(String::new, |since| age(since, self.now));
            rows.push(vec![since, format!("{level:?}"), impact.clone(), message.clone()]);
            rows.push(vec![String::new(), String::new(), String::new(), format!("next: {command}")]);
        }
        rows
    }

    fn node_rows(&self, bars: Bars) -> Vec<Vec<String>> {
        let heading = ["NODE", "SLOT", "VERSION", "ASSESSMENT", "PHASE", "SINCE", "EST", "MESSAGE"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let mut kinds: BTreeMap<_, usize> = BTreeMap::new();
        let mut lines: Vec<Vec<&NodeLine>> = Vec::new();
        for node in &self.nodes {
            let at = *kinds.entry(node.kind()).or_insert(lines.len());
            match lines.get_mut(at) {
                Some(line) => line.push(node),
                None => lines.push(vec![node]),
            }
        }
        rows.extend(lines.iter().filter_map(|equal| Some(equal.first()?.row(equal, self.now, bars))));
        rows
    }
}

impl Summary {
    fn text(&self, now: Timestamp, bars: Bars) -> String {
        let mut text = String::new();
        let mut field =
            |name: &str, value: &str| line(&mut text, &format!("{:11}{value}", format!("{name}:")));
        field("Upgrade", &self.name);
        let version = self.version.as_deref().unwrap_or("not known yet");
        let desired = if self.desired == version { String::new() } else { format!(" ({})", self.desired) };
        let digest = self.catalog_digest.map(|digest| format!(", {digest}")).unwrap_or_default();
        field("Target", &format!("{version}{desired} from {}{digest}", self.catalog));
        field("State", &format!("{}, {:?}, {}: {}", self.phase, self.course, self.reason, self.message));
        if bars == Bars::Shown && self.total > 0 {
            let done = bar(percent(self.up_to_date, self.total));
            field("Progress", &format!("{done} {} of {} nodes", self.up_to_date, self.total));
        }
        if let (Some(started), Some(run)) = (self.started_at, self.run) {
            field("Started", &format!("{} (run {run})", moment(started, now)));
        }
        if let Some(ends) = self.ends.filter(|_| self.course != Course::Done) {
            field("Estimate", &format!("done {}", moment(ends, now)));
        }
        if let Some(window) = self.window {
            field("Window", &window.text(now));
        }
        text
    }
}

impl Window {
    fn text(self, now: Timestamp) -> String {
        match self {
            Self::OpenUntil(at) => format!("open for reboots, closes {}", moment(at, now)),
            Self::Open => "open for reboots".to_owned(),
            Self::OpensAt(at) => format!("closed for reboots, opens {}", moment(at, now)),
            Self::NeverOpens => "closed for reboots, and opens at no time within a year".to_owned(),
        }
    }
}

impl NodeLine {
    /// What makes two lines equal: all but the names and times.
    fn kind(&self) -> (Assessment, String, String, String, String) {
        let slot = self.slot.map(|slot| slot.to_string()).unwrap_or_default();
        let version = self.version.as_ref().map(ToString::to_string).unwrap_or_default();
        let phase = self.phase.as_ref().map(ToString::to_string).unwrap_or_default();
        (self.assessment, slot, version, phase, self.message.clone())
    }

    fn row(&self, equal: &[&Self], now: Timestamp, bars: Bars) -> Vec<String> {
        let (assessment, slot, version, mut phase, message) = self.kind();
        if let Some(percent) =
            equal.iter().filter_map(|node| node.percent).min().filter(|_| bars == Bars::Shown)
        {
            // Of several the one that has the least.
            phase = format!("{phase} {} {percent}%", bar(percent));
        }
        let name = match equal.len() {
            0 | 1 => self.node.clone(),
            more => format!("{} and {} more", self.node, more - 1),
        };
        let done = self.assessment == Assessment::Completed;
        let since = equal.iter().filter_map(|node| node.since).min();
        let ends = equal.iter().filter_map(|node| node.ends).max().filter(|_| !done);
        vec![
            name,
            or_dash(slot),
            or_dash(version),
            assessment.to_string(),
            or_dash(phase),
            or_dash(since.map(|since| age(since, now)).unwrap_or_default()),
            or_dash(ends.map(|ends| length(ends.duration_since(now))).unwrap_or_default()),
            message,
        ]
    }

    fn explanation(&self, now: Timestamp) -> String {
        let (assessment, slot, version, phase, message) = self.kind();
        let mut facts = Vec::new();
        facts.extend((!version.is_empty()).then(|| format!("runs {version}")));
        facts.extend((!slot.is_empty()).then(|| format!("slot {slot}")));
        let since = self.since.map(|since| format!(" for {}", age(since, now))).unwrap_or_default();
        facts.extend((!phase.is_empty()).then(|| format!("{phase}{since}")));
        let mut text = format!("{} ({}): {assessment}\n", self.node, facts.join(", "));
        let reason = self.reason.as_ref().map(|reason| format!("{reason}: ")).unwrap_or_default();
        line(&mut text, &format!("  {reason}{message}"));
        if let Some(ends) = self.ends.filter(|_| self.assessment != Assessment::Completed) {
            line(&mut text, &format!("  It should be done {}.", moment(ends, now)));
        }
        text
    }
}

/// Whether there is a terminal to draw bars on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bars {
    Shown,
    Hidden,
}

/// A bar of ten.
fn bar(percent: u8) -> String {
    let full = usize::from(percent.min(100) / 10);
    format!("[{}{}]", "#".repeat(full), ".".repeat(10 - full))
}

/// The share of `done` in `total`; of nothing it is 0.
fn percent(done: usize, total: usize) -> u8 {
    done.saturating_mul(100)
        .checked_div(total)
        .map_or(0, |percent| u8::try_from(percent).unwrap_or(100).min(100))
}

pub(super) fn line(text: &mut String, words: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{words}");
}

pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn age(since: Timestamp, now: Timestamp) -> String {
    length(now.duration_since(since))
}

/// As kubectl shortens times: the two largest units that matter.
fn length(length: SignedDuration) -> String {
    let seconds = length.as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, seconds / 3600, seconds / 60) {
        (3.., ..) | (1.., _, _) if hours == 0 || days > 7 => format!("{days}d"),
        (1.., ..) => format!("{days}d{hours}h"),
        (0, 1.., _) if minutes == 0 => format!("{hours}h"),
        (0, 1.., _) => format!("{hours}h{minutes}m"),
        (0, 0, 5..) => format!("{minutes}m"),
        (0, 0, 1..) if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        (0, 0, 1..) => format!("{minutes}m"),
        _ => format!("{seconds}s"),
    }
}

pub(super) fn moment(at: Timestamp, now: Timestamp) -> String {
    let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
    if at > now {
        format!("in {} ({at})", length(at.duration_since(now)))
    } else {
        format!("{} ago ({at})", length(now.duration_since(at)))
    }
}

/// Aligned columns, as kubectl prints them: three blanks apart, none at the end of a line.
///
/// ```
/// let rows = [["A", "LONG", "C"], ["bcd", "e", ""]].map(|row| row.map(str::to_owned).to_vec());
/// assert_eq!(monok8s_sdk::status::table(&rows), "A     LONG   C\nbcd   e\n");
/// ```
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    rows.iter().fold(String::new(), |mut text, row| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(&mut text, cells.join("   ").trim_end());
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, expected) in [
            (-5, "0s"),
            (42, "42s"),
            (60, "1m"),
            (150, "2m30s"),
            (600, "10m"),
            (3600, "1h"),
            (5400, "1h30m"),
            (90_000, "1d1h"),
            (864_000, "10d"),
        ] {
            assert_eq!(length(SignedDuration::from_secs(seconds)), expected);
        }
    }
}
