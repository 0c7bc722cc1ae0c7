//! Names and contents of boot entries.
//!
//! An entry is `monok8s-a.conf` or `monok8s-b.conf`, with a counter while the loader counts:
//! `monok8s-b+1.conf` has one try left, and becomes `monok8s-b+0-1.conf` when that is burnt (UAPI
//! Boot Loader Specification, "Boot counting"). What is left of a trial that ended is
//! `monok8s-b.ended-WORD`, which no loader takes for an entry.

use std::fmt;

use super::BlsError;
use crate::boot::{AttemptId, TrialEvidence, TrialState, Tries};
use crate::slot::Slot;

/// The largest entry that is read, in bytes.
pub const MAX_ENTRY_LEN: usize = 16 * 1024;
const TRIAL: &str = "# monok8s-trial ";
const TRIAL_OPTION: &str = "monok8s.trial=";
const SORT_KEY: &str = "sort-key";
const SORT_KEY_PREFIX: &str = "monok8s-";
const SORT_KEY_DIGITS: usize = 9;

/// A counter in a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// How many tries are left.
    pub left: u32,
    /// How many were burnt.
    pub done: u32,
}

/// What the name of a file says, if it is one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryName {
    /// A boot entry.
    Entry {
        /// The slot it boots.
        slot: Slot,
        /// The loader's counter, if it counts.
        counter: Option<Counter>,
    },
    /// What is left of a trial.
    Ended {
        /// The slot that was on trial.
        slot: Slot,
        /// How it ended.
        evidence: TrialEvidence,
    },
}

/// What the names of a slot's files begin with.
fn stem(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "monok8s-a",
        Slot::B => "monok8s-b",
    }
}

impl EntryName {
    /// Reads a name; `None` if it is none of ours. One that looks like ours and cannot be read is an
    /// error: the loader would boot it, and count it otherwise than we believe.
    pub fn parse(name: &str) -> Result<Option<Self>, BlsError> {
        // FAT keeps the case of a name, and finds it in any.
        let lower = name.to_ascii_lowercase();
        let found = Slot::BOTH.into_iter().find_map(|slot| Some((slot, lower.strip_prefix(stem(slot))?)));
        let Some((slot, rest)) = found else { return Ok(None) };
        let unreadable = || BlsError::Name { name: name.chars().take(80).collect() };
        if let Some(word) = rest.strip_prefix(".ended-") {
            let trial: TrialState = format!("{slot}:0:0:{word}").parse().map_err(|_| unreadable())?;
            return Ok(Some(Self::Ended { slot, evidence: trial.evidence }));
        }
        let Some(counter) = rest.strip_suffix(".conf") else { return Ok(None) };
        if counter.is_empty() {
            return Ok(Some(Self::Entry { slot, counter: None }));
        }
        let Some(counter) = counter.strip_prefix('+') else {
            // Such as monok8s-backup.conf.
            return Ok(None);
        };
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        let number = |text: &str| {
            let canonical = !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_digit())
                && (text == "0" || !text.starts_with('0'));
            canonical.then(|| text.parse().ok()).flatten().ok_or_else(unreadable)
        };
        let counter = Counter { left: number(left)?, done: number(done)? };
        Ok(Some(Self::Entry { slot, counter: Some(counter) }))
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Entry { slot, counter: None } => write!(f, "{}.conf", stem(slot)),
            Self::Entry { slot, counter: Some(Counter { left, done: 0 }) } => {
                write!(f, "{}+{left}.conf", stem(slot))
            }
            Self::Entry { slot, counter: Some(Counter { left, done }) } => {
                write!(f, "{}+{left}-{done}.conf", stem(slot))
            }
            Self::Ended { slot, evidence } => write!(f, "{}.ended-{evidence}", stem(slot)),
        }
    }
}

/// Where an entry stands among the others: the lower, the earlier the loader takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SortKey(pub u32);

impl SortKey {
    /// That of the first entry of a node.
    pub const FIRST: Self = Self(500_000_000);

    /// The one that is taken before this.
    pub(super) fn before(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl fmt::Display for SortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SORT_KEY_PREFIX}{:0SORT_KEY_DIGITS$}", self.0)
    }
}

/// An entry's lines: what boots, where it stands, and the trial that it was armed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryText {
    /// The lines that only the loader and people read.
    lines: Vec<String>,
    /// Where it stands, if it says so.
    pub key: Option<SortKey>,
    /// The attempt that armed it, and with how many tries. Means nothing in an entry without counter.
    pub trial: Option<(AttemptId, Tries)>,
}

impl EntryText {
    /// Reads an entry.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_ENTRY_LEN {
            return Err("it is longer than 16 KiB");
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
        let mut entry = Self { lines: Vec::new(), key: None, trial: None };
        // systemd-boot ends a line at either, and skips empty ones.
        for line in text.split(['\n', '\r']).filter(|line| !line.is_empty()) {
            if line.contains('\0') {
                return Err("it contains a zero byte");
            }
            if let Some(trial) = line.strip_prefix(TRIAL) {
                let trial = parse_trial(trial).ok_or("its line \"# monok8s-trial\" is not ATTEMPT TRIES")?;
                if entry.trial.replace(trial).is_some() {
                    return Err("it has two lines \"# monok8s-trial\"");
                }
            } else if let Some(key) = value(line, SORT_KEY) {
                let key = parse_key(key).ok_or("its sort-key is not monok8s- and nine digits")?;
                if entry.key.replace(key).is_some() {
                    return Err("it has two sort-keys");
                }
            } else {
                entry.lines.push(line.to_owned());
            }
        }
        Ok(entry)
    }

    /// An entry that is nothing but these lines.
    pub(super) fn of(lines: Vec<String>) -> Self {
        Self { lines, key: None, trial: None }
    }

    /// Tells the kernel of a trial, or of none: what the guard goes by where it cannot read the entries.
    pub(super) fn tell(&mut self, trial: Option<TrialState>) {
        for line in &mut self.lines {
            let Some(options) = value(line, "options") else { continue };
            let known = options.split_whitespace().filter(|word| !word.starts_with(TRIAL_OPTION));
            let told = trial.map(|trial| format!("{TRIAL_OPTION}{trial}"));
            let words: Vec<_> = known.map(str::to_owned).chain(told).collect();
            *line = format!("options {}", words.join(" "));
        }
    }

    /// What is left without its place and its trial: what the slot boots.
    pub(super) fn plain(&self) -> Self {
        let mut plain = Self::of(self.lines.clone());
        plain.tell(None);
        plain
    }

    /// Whether it tells the kernel of a trial.
    pub(super) fn tells(&self) -> bool {
        self.get("options").is_some_and(|options| options.contains(TRIAL_OPTION))
    }

    /// The value of the first line with this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| value(line, key))
    }
}

impl fmt::Display for EntryText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        if let Some(key) = self.key {
            writeln!(f, "{SORT_KEY} {key}")?;
        }
        if let Some((attempt, tries)) = self.trial {
            writeln!(f, "{TRIAL}{attempt} {}", tries.0)?;
        }
        Ok(())
    }
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix(key)?;
    let value = rest.trim();
    (value.len() < rest.len() || rest.is_empty()).then_some(value)
}

fn parse_trial(text: &str) -> Option<(AttemptId, Tries)> {
    let (attempt, tries) = text.split_once(' ')?;
    Some((AttemptId(attempt.parse().ok()?), Tries(tries.parse().ok()?)))
}

fn parse_key(text: &str) -> Option<SortKey> {
    let digits = text.strip_prefix(SORT_KEY_PREFIX)?;
    let whole = digits.len() == SORT_KEY_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    whole.then(|| digits.parse().ok().map(SortKey)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_loader_reads_them() {
        let counter = |left, done| Some(Counter { left, done });
        for (name, slot, expected) in [
            ("monok8s-a.conf", Slot::A, None),
            ("monok8s-b+1.conf", Slot::B, counter(1, 0)),
            ("monok8s-b+0-1.conf", Slot::B, counter(0, 1)),
            ("monok8s-a+2-300.conf", Slot::A, counter(2, 300)),
        ] {
            let read = EntryName::parse(name).unwrap().unwrap();
            assert_eq!(read, EntryName::Entry { slot, counter: expected });
            assert_eq!(read.to_string(), name);
        }
        let ended = EntryName::parse("monok8s-b.ended-guard").unwrap().unwrap();
        assert_eq!(ended, EntryName::Ended { slot: Slot::B, evidence: TrialEvidence::RevertedByGuard });
        assert_eq!(ended.to_string(), "monok8s-b.ended-guard");
        for other in
            ["rescue.conf", "monok8s-backup.conf", "monok8s-b.new", "monok8s-a", "monok8s-counts", ""]
        {
            assert_eq!(EntryName::parse(other).unwrap(), None, "{other}");
        }
        for wrong in [
            "monok8s-a+.conf",
            "monok8s-a+x.conf",
            "monok8s-a+1-.conf",
            "monok8s-a+-1.conf",
            "monok8s-a+1-2-3.conf",
            "monok8s-a+01.conf",
            "monok8s-a+99999999999.conf",
            "monok8s-b.ended-",
        ] {
            assert!(EntryName::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lines_of_others_stay_and_ours_are_written_behind_them() {
        let text = "# by hand\ntitle  MonoK8s\nsort-key monok8s-000000007\noptions root=x  ro\n# monok8s-trial 9 1\n";
        let read = EntryText::parse(text.as_bytes()).unwrap();
        assert_eq!((read.key, read.trial), (Some(SortKey(7)), Some((AttemptId(9), Tries(1)))));
        assert_eq!(read.get("options"), Some("root=x  ro"));
        assert_eq!(read.get("opt"), None);
        let written = read.to_string();
        assert_eq!(
            written,
            "# by hand\ntitle  MonoK8s\noptions root=x  ro\nsort-key monok8s-000000007\n# monok8s-trial 9 1\n"
        );
        assert_eq!(EntryText::parse(written.as_bytes()), Ok(read));
        for wrong in [
            "sort-key monok8s-7\n",
            "sort-key debian\n",
            "sort-key monok8s-000000007\nsort-key monok8s-000000008\n",
            "# monok8s-trial 9\n",
            "# monok8s-trial x 1\n",
            "title \0\n",
            "title \u{fffd}",
        ] {
            let bytes = wrong.replace('\u{fffd}', "\u{1}").into_bytes();
            let bytes = if wrong.contains('\u{fffd}') { [bytes, vec![0xFF]].concat() } else { bytes };
            assert!(EntryText::parse(&bytes).is_err(), "{wrong:?}");
        }
        assert!(EntryText::parse(&vec![b'x'; MAX_ENTRY_LEN + 1]).is_err());
    }
}
