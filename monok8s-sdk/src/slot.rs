//! The two root partitions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the two root partitions of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// The first root partition.
    A,
    /// The second root partition.
    B,
}

/// A text that names no slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a slot; the slots are A and B")]
pub struct SlotError {
    text: String,
}

impl Slot {
    /// Both slots, in order.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other root partition.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

impl FromStr for Slot {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        match text {
            "A" | "a" => Ok(Self::A),
            "B" | "b" => Ok(Self::B),
            _ => Err(SlotError { text: text.chars().take(32).collect() }),
        }
    }
}
