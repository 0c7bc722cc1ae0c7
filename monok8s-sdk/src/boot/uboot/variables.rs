//! The loader's state as variables of a U-Boot environment.
//!
//! `BOOT_ORDER`, `BOOT_A_LEFT` and `BOOT_B_LEFT` are those of RAUC's script and of U-Boot's own RAUC
//! boot method. A slot that is not in the order is bad: their scripts refill the counters of those
//! that are. Counters are hexadecimal, as `setexpr` writes them; U-Boot's `test` reads them as decimal
//! numbers, so none is armed or filled with more than 9. Ours are `MONOK8S_TRIAL`, a [`TrialState`] as
//! text, `MONOK8S_COUNTS`, 1 once a burnt try was seen, and `MONOK8S_TRIES`, what a good slot gets.

use super::environment::Environment;
use crate::boot::{LoaderStatus, SlotHealth, SlotState, TrialState, Tries, TryCounting};
use crate::slot::Slot;

const ORDER: &str = "BOOT_ORDER";
const TRIAL: &str = "MONOK8S_TRIAL";
const COUNTS: &str = "MONOK8S_COUNTS";
const FULL: &str = "MONOK8S_TRIES";

/// The most tries that every script counts alike.
pub(super) const MAX_TRIES: Tries = Tries(9);

/// Why variables are no state of a boot loader. Nothing is assumed in their place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VariableError {
    /// A variable is missing.
    #[error("the U-Boot environment has no {name}: set it with fw_setenv, as the image's installer does")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A variable has a value that means nothing.
    #[error("{name}={value:?} in the U-Boot environment is not {expected}: correct it with fw_setenv")]
    Value {
        /// Its name.
        name: &'static str,
        /// The first bytes of its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// No slot would be left, and scripts would refill the order.
    #[error("no slot would be left in BOOT_ORDER")]
    EmptyOrder,
}

const fn left(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "BOOT_A_LEFT",
        Slot::B => "BOOT_B_LEFT",
    }
}

/// What the variables say.
pub(crate) fn status(environment: &Environment) -> Result<LoaderStatus, VariableError> {
    let order = order(environment)?;
    let slot = |slot: Slot| -> Result<SlotState, VariableError> {
        let tries_left = number(environment, left(slot), 16, "a hexadecimal number up to ff")?;
        match (order.contains(&slot), tries_left) {
            (true, Some(tries_left)) => Ok(SlotState { health: SlotHealth::Good, tries_left }),
            (true, None) => Err(VariableError::Missing { name: left(slot) }),
            (false, tries_left) => {
                Ok(SlotState { health: SlotHealth::Bad, tries_left: tries_left.unwrap_or(Tries::NONE) })
            }
        }
    };
    Ok(LoaderStatus {
        a: slot(Slot::A)?,
        b: slot(Slot::B)?,
        tries_full: full(environment)?,
        counting_seen: counting(environment)?,
        trial: trial(environment)?,
        order,
    })
}

/// Puts the state into the variables, and leaves all others as they are.
pub(crate) fn put(environment: &mut Environment, status: &LoaderStatus) -> Result<(), VariableError> {
    let order: Vec<String> =
        status.order.iter().filter(|slot| status.may_boot(**slot)).map(Slot::to_string).collect();
    if order.is_empty() {
        return Err(VariableError::EmptyOrder);
    }
    environment.set(ORDER, Some(&order.join(" ")));
    for slot in Slot::BOTH {
        environment.set(left(slot), Some(&format!("{:x}", status.slot(slot).tries_left.0)));
    }
    if full(environment) != Ok(status.tries_full) {
        environment.set(FULL, Some(&status.tries_full.0.to_string()));
    }
    environment.set(COUNTS, (status.counting_seen == TryCounting::Proven).then_some("1"));
    environment.set(TRIAL, status.trial.map(|trial| trial.to_string()).as_deref());
    Ok(())
}

fn order(environment: &Environment) -> Result<Vec<Slot>, VariableError> {
    let text = text(environment, ORDER).ok_or(VariableError::Missing { name: ORDER })?;
    let wrong = || wrong(ORDER, &text, "an order of the slots A and B, each at most once");
    let mut order = Vec::new();
    for word in text.split_ascii_whitespace() {
        let slot = Slot::BOTH.into_iter().find(|slot| slot.to_string() == word).ok_or_else(wrong)?;
        if order.contains(&slot) {
            return Err(wrong());
        }
        order.push(slot);
    }
    if order.is_empty() { Err(VariableError::Missing { name: ORDER }) } else { Ok(order) }
}

fn full(environment: &Environment) -> Result<Tries, VariableError> {
    let expected = "a number of tries from 1 to 9";
    match number(environment, FULL, 10, expected)? {
        None => Ok(Tries::DEFAULT_FULL),
        Some(tries) if tries > Tries::NONE && tries <= MAX_TRIES => Ok(tries),
        Some(_) => Err(wrong(FULL, &text(environment, FULL).unwrap_or_default(), expected)),
    }
}

fn counting(environment: &Environment) -> Result<TryCounting, VariableError> {
    match text(environment, COUNTS).as_deref() {
        None | Some("0") => Ok(TryCounting::Unsupported),
        Some("1") => Ok(TryCounting::Proven),
        Some(value) => Err(wrong(COUNTS, value, "0 or 1")),
    }
}

fn trial(environment: &Environment) -> Result<Option<TrialState>, VariableError> {
    let Some(text) = text(environment, TRIAL) else { return Ok(None) };
    let expected = "a trial, such as B:7:1:none";
    text.parse().map(Some).map_err(|_| wrong(TRIAL, &text, expected))
}

fn number(
    environment: &Environment,
    name: &'static str,
    radix: u32,
    expected: &'static str,
) -> Result<Option<Tries>, VariableError> {
    let Some(text) = text(environment, name) else { return Ok(None) };
    let digits = if radix == 16 { text.strip_prefix("0x").unwrap_or(&text) } else { &text };
    // `from_str_radix` takes a sign, too.
    let number = (!digits.starts_with('+')).then(|| u8::from_str_radix(digits, radix).ok()).flatten();
    number.map(|number| Some(Tries(number))).ok_or_else(|| wrong(name, &text, expected))
}

/// A value; what is not text is shown by an error, so it is not lost here.
fn text(environment: &Environment, name: &str) -> Option<String> {
    let value = environment.get(name).filter(|value| !value.is_empty())?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn wrong(name: &'static str, value: &str, expected: &'static str) -> VariableError {
    VariableError::Value { name, value: value.chars().take(64).collect(), expected }
}
