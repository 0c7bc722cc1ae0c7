//! Boot entries, as they are found on an EFI system partition.
#![allow(clippy::missing_panics_doc, reason = "a panic is how a target reports")]

use super::entry::{EntryName, EntryText};
use super::state::Entries;
use crate::boot::{LoaderStatus, Reverter};
use crate::slot::Slot;

/// A directory: for each file the length of its name and of its content (1 byte each), then both.
/// Whatever state is read, another one is reached by the changes that are planned for it.
pub fn bls(bytes: &[u8]) {
    let mut files = Vec::new();
    let mut rest = bytes;
    while let [name, content, behind @ ..] = rest {
        let (name, content) = (usize::from(*name), usize::from(*content));
        let Some((name, behind)) = behind.split_at_checked(name) else { break };
        let Some((content, behind)) = behind.split_at_checked(content) else { break };
        rest = behind;
        if let Ok(name) = std::str::from_utf8(name) {
            files.push((name.to_owned(), content.to_vec()));
        }
    }
    for (name, content) in &files {
        if let Ok(Some(parsed)) = EntryName::parse(name) {
            let again = EntryName::parse(&parsed.to_string());
            assert!(matches!(again, Ok(Some(again)) if again == parsed), "a name changes by itself");
        }
        if let Ok(text) = EntryText::parse(content) {
            let written = text.to_string();
            let fits = written.len() <= super::entry::MAX_ENTRY_LEN;
            assert!(!fits || EntryText::parse(written.as_bytes()) == Ok(text), "an entry changes by itself");
        }
    }
    let Some(status) = read(&files).map(|entries| entries.status()) else { return };
    let runs = status.trial.is_some_and(|trial| status.order.contains(&trial.slot));
    for target in [
        status.invalidated(Slot::B),
        if runs { status.confirmed() } else { status.clone() },
        status.reverted(Reverter::Guard),
        status.marked_good(Slot::A),
        status.disarmed(),
    ] {
        reaches(&files, &target);
    }
}

fn read(files: &[(String, Vec<u8>)]) -> Option<Entries> {
    let mut entries = Entries::default();
    for (name, content) in files {
        entries.take(name, content).ok()?;
    }
    entries.check().ok()?;
    Some(entries)
}

fn reaches(files: &[(String, Vec<u8>)], target: &LoaderStatus) {
    use super::state::Change;
    let changes = read(files).and_then(|entries| entries.changes(target, |_| None).ok());
    let (Some(changes), false) = (changes, target.order.is_empty()) else { return };
    let mut files = files.to_vec();
    for change in changes {
        match change {
            Change::Place { name, content } => {
                files.retain(|(known, _)| *known != name);
                files.push((name, content.into_bytes()));
            }
            Change::Rename { from, to } => {
                files.retain(|(name, _)| *name != to);
                for (name, _) in files.iter_mut().filter(|(name, _)| *name == from) {
                    name.clone_from(&to);
                }
            }
            Change::Remove { name } => files.retain(|(known, _)| *known != name),
        }
    }
    let reached = read(&files).map(|entries| entries.status());
    assert_eq!(reached.as_ref(), Some(target), "the planned changes lead elsewhere");
}
