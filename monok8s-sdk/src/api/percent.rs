//! A count given as a number or as a percentage.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How fractions of a node become whole nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Down, but never below one node: for budgets, where 10% of 5 nodes must not stop a rollout.
    DownAtLeastOne,
    /// Up: for thresholds.
    Up,
}

/// A number of nodes, or a percentage of the selected nodes such as `25%`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    /// That many nodes.
    Int(i32),
    /// `0%` to `100%` of the selected nodes.
    Percent(String),
}

impl IntOrPercent {
    /// The number of nodes, of `total` selected ones. What the schema would have refused counts as
    /// the least permissive number.
    #[must_use]
    pub fn of(&self, total: usize, rounding: Rounding) -> usize {
        let absolute = match self {
            Self::Int(count) => usize::try_from(*count).unwrap_or(0),
            Self::Percent(text) => {
                let percent =
                    text.strip_suffix('%').and_then(|digits| digits.parse::<usize>().ok()).unwrap_or(0);
                match rounding {
                    Rounding::DownAtLeastOne => total * percent.min(100) / 100,
                    Rounding::Up => (total * percent.min(100)).div_ceil(100),
                }
            }
        };
        match rounding {
            Rounding::DownAtLeastOne => absolute.max(1),
            Rounding::Up => absolute,
        }
    }
}

impl JsonSchema for IntOrPercent {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "IntOrPercent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 0,
            "maximum": 100_000,
            "maxLength": 4,
            "pattern": "^(100|[1-9]?[0-9])%$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{IntOrPercent, Rounding};

    #[test]
    fn counts_nodes() {
        let percent = |text: &str| IntOrPercent::Percent(text.to_owned());
        for (value, total, budget, threshold) in [
            (IntOrPercent::Int(3), 10, 3, 3),
            (IntOrPercent::Int(0), 10, 1, 0),
            (percent("25%"), 10, 2, 3),
            (percent("10%"), 5, 1, 1),
            (percent("100%"), 7, 7, 7),
            (percent("nonsense"), 7, 1, 0),
        ] {
            assert_eq!(value.of(total, Rounding::DownAtLeastOne), budget, "{value:?} of {total}");
            assert_eq!(value.of(total, Rounding::Up), threshold, "{value:?} of {total}");
        }
    }
}
