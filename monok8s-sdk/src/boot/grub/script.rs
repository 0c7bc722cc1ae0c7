//! What `deploy/host/grub/grub.cfg` does at power-on, and GRUB's `save_env` with it, for tests.
//!
//! The tests of `xtask` run the script in a real GRUB and compare what that leaves in the files
//! with this, byte by byte.

use std::io;

use super::env_block::{BLOCK_LEN, EnvBlock, OURS, SIGNATURE};
use super::variables;
use crate::boot::SlotHealth;
use crate::disk::Region;
use crate::slot::Slot;

/// What came of a power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel of this slot was entered.
    Entered(Slot),
    /// The menu: no slot that may boot has a kernel.
    NothingStarted,
    /// The menu: no slot may boot.
    NothingMayBoot,
    /// The menu: no environment can be read.
    NoEnvironment,
}

/// One power-on with the files that there are: `grubenv`, or `grubenv.0` and `grubenv.1`.
pub fn power_on(files: &[&dyn Region], mut has_kernel: impl FnMut(Slot) -> bool) -> io::Result<Outcome> {
    let Some((at, mut block)) = choose(files) else { return Ok(Outcome::NoEnvironment) };
    // Chosen blocks are readable.
    let Ok(status) = variables::status(&block) else { return Ok(Outcome::NoEnvironment) };
    let full = status.tries_full.0;
    let on_trial = |slot| status.trial.is_some_and(|trial| trial.slot == slot);
    let mut tried = false;
    for refilled in [false, true] {
        for slot in status.order.iter().copied() {
            let may_start_again = refilled && !on_trial(slot);
            let burnt = if may_start_again { 0 } else { full - status.slot(slot).tries_left.0 };
            if status.slot(slot).health == SlotHealth::Bad || burnt >= full {
                continue;
            }
            tried = true;
            block.set(counter(slot), &(burnt + 1).to_string());
            save(files, at, &block)?;
            if has_kernel(slot) {
                return Ok(Outcome::Entered(slot));
            }
        }
        if tried {
            return Ok(Outcome::NothingStarted);
        }
        for slot in status.order.iter().filter(|slot| !on_trial(**slot)) {
            block.set(counter(*slot), "0");
        }
    }
    Ok(Outcome::NothingMayBoot)
}

fn counter(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "A_TRY",
        Slot::B => "B_TRY",
    }
}

/// The file that counts, and what it holds.
fn choose(files: &[&dyn Region]) -> Option<(usize, EnvBlock)> {
    let mut chosen: Option<(u32, usize, EnvBlock)> = None;
    for (at, file) in files.iter().enumerate() {
        let Some(block) = file.read(0, BLOCK_LEN).ok().and_then(|bytes| EnvBlock::parse(&bytes).ok()) else {
            continue;
        };
        let revision = if files.len() == 1 { Ok(0) } else { variables::revision(&block) };
        if let (Ok(revision), Ok(_)) = (revision, variables::status(&block))
            && chosen.as_ref().is_none_or(|(other, ..)| revision > *other)
        {
            chosen = Some((revision, at, block));
        }
    }
    chosen.map(|(_, at, block)| (at, block))
}

/// The counters into the file that counts, then everything into the other one if it is a block.
fn save(files: &[&dyn Region], at: usize, block: &EnvBlock) -> io::Result<()> {
    let (read, others): (Vec<_>, Vec<_>) = files.iter().enumerate().partition(|(file, _)| *file == at);
    for (file, names) in read
        .into_iter()
        .map(|(_, file)| (file, &["A_TRY", "B_TRY"][..]))
        .chain(others.into_iter().map(|(_, file)| (file, &OURS[..])))
    {
        let Ok(mut bytes) = file.read(0, BLOCK_LEN) else { continue };
        if bytes.starts_with(SIGNATURE) {
            for name in names {
                set(&mut bytes, name, block.get(name));
            }
            file.write(0, &bytes)?;
        }
    }
    Ok(())
}

/// Sets a variable where it stands, or behind all others; removes it if it has no value.
fn set(bytes: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    let length = bytes.len();
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'#').count();
    let free = length - padding;
    let (start, end) = find(bytes, name).unwrap_or((free, free));
    let mut line = Vec::new();
    if let Some(value) = value {
        line.extend_from_slice(name.as_bytes());
        line.push(b'=');
        for byte in value {
            if matches!(byte, b'\\' | b'\n') {
                line.push(b'\\');
            }
            line.push(*byte);
        }
        line.push(b'\n');
    }
    bytes.splice(start..end, line);
    bytes.resize(length, b'#');
}

/// Where the line of a variable begins, and where the next line does.
fn find(bytes: &[u8], name: &str) -> Option<(usize, usize)> {
    let mut start = 0;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += if *byte == b'\\' { 2 } else { 1 };
        if *byte == b'\n' {
            let line = bytes.get(start..at)?;
            if line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")) {
                return Some((start, at));
            }
            start = at;
        }
    }
    None
}
