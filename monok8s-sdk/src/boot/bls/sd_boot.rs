//! What systemd-boot does with the entries at power-on, for tests.
//!
//! The tests of `xtask` run the real one and compare.

use std::io;

use super::entry::{Counter, EntryName, EntryText};
use crate::disk::Directory;
use crate::slot::Slot;

/// One power-on: the entry that is taken, if there is one, after its counter was changed. Nothing is
/// flushed.
pub fn power_on(entries: &dyn Directory) -> io::Result<Option<Slot>> {
    let mut found = Vec::new();
    for name in entries.names()? {
        let Ok(Some(EntryName::Entry { slot, counter })) = EntryName::parse(&name) else { continue };
        let content = entries.read(&name, u64::MAX)?.unwrap_or_default();
        let key = EntryText::parse(&content).ok().and_then(|text| text.key);
        // Those without a try left come last, those without a key after those with one.
        let is_used_up = counter.is_some_and(|counter| counter.left == 0);
        found.push(((is_used_up, key.is_none(), key), name, slot, counter));
    }
    found.sort();
    let Some((_, name, slot, counter)) = found.into_iter().next() else { return Ok(None) };
    if let Some(Counter { left, done }) = counter {
        let counter = Some(Counter { left: left.saturating_sub(1), done: done + 1 });
        entries.rename(&name, &EntryName::Entry { slot, counter }.to_string())?;
    }
    Ok(Some(slot))
}
