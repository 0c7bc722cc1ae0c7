//! Schemas of the scalar types. The API server refuses what the type could not parse, so that no
//! stored object is unreadable.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::digest::Sha256Digest;
use crate::slot::Slot;
use crate::version::{MAX_VERSION_LEN, OsVersion};

/// An OS version as a regular expression. Numbers end at nine digits, so that each fits its type.
const VERSION_PATTERN: &str = r"^v(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-(0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?(\+r[1-9][0-9]{0,8})?$";
const DIGEST_PATTERN: &str = "^sha256:[0-9a-f]{64}$";

macro_rules! scalar_schema {
    ($type:ident, $schema:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

scalar_schema!(
    OsVersion,
    json_schema!({ "type": "string", "maxLength": MAX_VERSION_LEN, "pattern": VERSION_PATTERN })
);
scalar_schema!(Sha256Digest, json_schema!({ "type": "string", "maxLength": 71, "pattern": DIGEST_PATTERN }));
scalar_schema!(Slot, json_schema!({ "type": "string", "enum": ["A", "B"] }));

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_the_api_server_takes_parses(
            version in VERSION_PATTERN.trim_matches(['^', '$']),
            digest in DIGEST_PATTERN.trim_matches(['^', '$']),
        ) {
            prop_assume!(version.len() <= MAX_VERSION_LEN);
            prop_assert_eq!(version.parse::<OsVersion>().unwrap().to_string(), version);
            prop_assert_eq!(digest.parse::<Sha256Digest>().unwrap().to_string(), digest);
        }
    }
}
