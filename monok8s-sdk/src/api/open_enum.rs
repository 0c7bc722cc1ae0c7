//! Enums as they are on the wire: open strings in what programs report, closed sets in what people ask for.

/// Declares an enum whose wire form is a string that may grow: every variant prints as its own
/// name, and any other text is kept in `Unknown`, so that an object written by a newer release
/// survives a round trip through an older one.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $name {
            $( $(#[$variant_meta])* $variant, )+
            /// A word of a newer release.
            Unknown(String),
        }

        impl $name {
            /// Every word this release knows.
            pub const KNOWN: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The word on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $( Self::$variant => stringify!($variant), )+
                    Self::Unknown(word) => word,
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $( stringify!($variant) => Self::$variant, )+
                    _ => Self::Unknown(word),
                }
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.as_str().to_owned()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "maxLength": 64 })
            }
        }
    };
}

/// Declares an enum whose wire form is one of a closed set of words, which the API server enforces.
///
/// The schema has no description of its own: where a field is optional, a derived one would take the
/// place of the field's.
macro_rules! closed_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name { $( $(#[$variant_meta])* $variant, )+ }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": [ $( stringify!($variant), )+ ] })
            }
        }
    };
}

pub(crate) use {closed_enum, open_enum};

#[cfg(test)]
mod tests {
    use crate::api::ProgressPhase;

    #[test]
    fn a_word_of_a_newer_release_survives_the_round_trip() {
        let phase: ProgressPhase = serde_json::from_str("\"Defragmenting\"").unwrap();
        assert_eq!(phase, ProgressPhase::Unknown("Defragmenting".to_owned()));
        assert_eq!(serde_json::to_string(&phase).unwrap(), "\"Defragmenting\"");
        assert_eq!(serde_json::from_str::<ProgressPhase>("\"Staged\"").unwrap(), ProgressPhase::Staged);
    }
}
