//! The variables in which the slots' state is kept, and what they mean.
//!
//! | variable | meaning |
//! |---|---|
//! | `ORDER` | the slots that may boot, the preferred one first: `A B` |
//! | `A_OK`, `B_OK` | 1 if the slot is good, 0 if it must not boot |
//! | `A_TRY`, `B_TRY` | boots of the slot since it was last marked good; the script counts them up |
//! | `MONOK8S_TRIES` | how many of them the script allows; absent: 1, as RAUC's own script |
//! | `MONOK8S_TRIAL` | the trial, [`TrialState`]'s text; absent or empty: none |
//! | `MONOK8S_COUNTS` | 1 once a burnt try was seen |
//! | `MONOK8S_REV` | counted up by every change of ours; only where there are two files |

use std::str::FromStr;

use super::env_block::EnvBlock;
use crate::boot::{LoaderStatus, SlotHealth, SlotState, TrialState, Tries, TryCounting};
use crate::slot::Slot;

/// The most that a script can count to.
pub const MAX_TRIES: Tries = Tries(9);
/// The last revision: GRUB compares numbers in 32 bits with a sign.
pub const MAX_REVISION: u32 = i32::MAX.unsigned_abs();

/// Why variables say nothing about slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VariableError {
    /// It is not there.
    #[error(
        "the variable {name} is not set: set up the slots once, as in `grub-editenv FILE set ORDER=A A_OK=1 A_TRY=0 B_OK=0 B_TRY=0`"
    )]
    Missing {
        /// The variable.
        name: &'static str,
    },
    /// It does not say what it should.
    #[error("the variable {name} is {value:?}, and should be {expected}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What it is, or the beginning of it.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A change that the script would not follow.
    #[error("the script counts {script} tries, which only the variable MONOK8S_TRIES can change")]
    Tries {
        /// What the script counts to.
        script: u8,
    },
    /// There is no higher revision.
    #[error("MONOK8S_REV is {MAX_REVISION}, the highest: set it to 1 in both files at once")]
    Revisions,
}

/// The revision of a block of two.
pub(super) fn revision(block: &EnvBlock) -> Result<u32, VariableError> {
    let expected = "a number without leading zeros, below 2147483648";
    number("MONOK8S_REV", required(block, "MONOK8S_REV")?, expected).and_then(|revision| {
        if revision > MAX_REVISION { wrong(block, "MONOK8S_REV", expected) } else { Ok(revision) }
    })
}

/// What a block says about the slots.
pub(super) fn status(block: &EnvBlock) -> Result<LoaderStatus, VariableError> {
    let tries_full = tries_full(block)?;
    let slot = |ok: &'static str, burnt: &'static str| {
        let health = match required(block, ok)? {
            b"1" => SlotHealth::Good,
            b"0" => SlotHealth::Bad,
            _ => return wrong(block, ok, "1 or 0"),
        };
        let burnt: u8 = number(burnt, required(block, burnt)?, "a number from 0 to 255")?;
        Ok(SlotState { health, tries_left: Tries(tries_full.0.saturating_sub(burnt)) })
    };
    Ok(LoaderStatus {
        order: order(block)?,
        a: slot("A_OK", "A_TRY")?,
        b: slot("B_OK", "B_TRY")?,
        tries_full,
        counting_seen: match block.get("MONOK8S_COUNTS") {
            Some(b"1") => TryCounting::Proven,
            None | Some(b"" | b"0") => TryCounting::Unsupported,
            Some(_) => return wrong(block, "MONOK8S_COUNTS", "1, 0 or empty"),
        },
        trial: trial(block)?,
    })
}

/// How many boots a good slot has, by the script that is installed.
pub(super) fn tries_full(block: &EnvBlock) -> Result<Tries, VariableError> {
    let Some(value) = block.get("MONOK8S_TRIES") else { return Ok(Tries(1)) };
    let expected = "a number from 1 to 9";
    match number("MONOK8S_TRIES", value, expected)? {
        0 => wrong(block, "MONOK8S_TRIES", expected),
        tries if tries > MAX_TRIES.0 => wrong(block, "MONOK8S_TRIES", expected),
        tries => Ok(Tries(tries)),
    }
}

fn order(block: &EnvBlock) -> Result<Vec<Slot>, VariableError> {
    Ok(match required(block, "ORDER")? {
        b"" => vec![],
        b"A" => vec![Slot::A],
        b"B" => vec![Slot::B],
        b"A B" => vec![Slot::A, Slot::B],
        b"B A" => vec![Slot::B, Slot::A],
        _ => return wrong(block, "ORDER", "\"A B\", \"B A\", \"A\", \"B\" or empty"),
    })
}

fn trial(block: &EnvBlock) -> Result<Option<TrialState>, VariableError> {
    match block.get("MONOK8S_TRIAL") {
        None | Some(b"") => Ok(None),
        Some(value) => match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
            Some(trial) => Ok(Some(trial)),
            None => wrong(block, "MONOK8S_TRIAL", "empty, or a trial such as B:7:1:none"),
        },
    }
}

/// Changes a block so that it says this.
pub(super) fn set_status(block: &mut EnvBlock, status: &LoaderStatus) -> Result<(), VariableError> {
    let LoaderStatus { order, a, b, tries_full: full, counting_seen, trial } = status;
    let script = tries_full(block)?;
    if *full != script || a.tries_left > script || b.tries_left > script {
        return Err(VariableError::Tries { script: script.0 });
    }
    let order: Vec<_> = order.iter().map(Slot::to_string).collect();
    block.set("ORDER", &order.join(" "));
    for (state, ok, burnt) in [(a, "A_OK", "A_TRY"), (b, "B_OK", "B_TRY")] {
        block.set(ok, if state.health == SlotHealth::Good { "1" } else { "0" });
        block.set(burnt, &(script.0 - state.tries_left.0).to_string());
    }
    block.set("MONOK8S_TRIAL", &trial.map(|trial| trial.to_string()).unwrap_or_default());
    block.set("MONOK8S_COUNTS", if *counting_seen == TryCounting::Proven { "1" } else { "0" });
    Ok(())
}

fn required<'a>(block: &'a EnvBlock, name: &'static str) -> Result<&'a [u8], VariableError> {
    block.get(name).ok_or(VariableError::Missing { name })
}

fn wrong<T>(block: &EnvBlock, name: &'static str, expected: &'static str) -> Result<T, VariableError> {
    let value: String =
        String::from_utf8_lossy(block.get(name).unwrap_or_default()).chars().take(64).collect();
    Err(VariableError::Value { name, value, expected })
}

/// A number as we and GRUB write it: GRUB takes a leading zero for octal.
fn number<T: FromStr>(name: &'static str, value: &[u8], expected: &'static str) -> Result<T, VariableError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = (digits && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten();
    parsed.ok_or_else(|| VariableError::Value { name, value: text.chars().take(64).collect(), expected })
}
