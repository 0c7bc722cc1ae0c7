//! GRUB's environment block: 1024 bytes of text with a fixed first line.
//!
//! `NAME=value` lines follow it; a backslash escapes itself and a newline; a line that begins with
//! `#` says nothing, and `#` fills what is left. GRUB 2.06, `loadenv` and `grub-editenv`.

use std::fmt;

/// The size of every block in bytes; GRUB's tools make no other.
pub const BLOCK_LEN: usize = 1024;
/// What a medium writes whole or not at all, in bytes.
pub(super) const SECTOR_LEN: usize = 512;
pub(super) const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";
/// Our variables end before this. Everything up to [`OTHERS_FROM`] is then `#`, so that a change of
/// their lengths, ours or GRUB's, moves no other variable across the border of the sectors: any mix
/// of old and new sectors still has all of them.
const OURS_END: usize = SECTOR_LEN - 128;
/// Where the variables of others begin.
const OTHERS_FROM: usize = SECTOR_LEN + 128;

/// Our variables and RAUC's, in the order in which they are written.
pub(super) const OURS: [&str; 9] = [
    "ORDER",
    "A_OK",
    "A_TRY",
    "B_OK",
    "B_TRY",
    "MONOK8S_TRIAL",
    "MONOK8S_COUNTS",
    "MONOK8S_TRIES",
    "MONOK8S_REV",
];

/// Why bytes are no environment block, or variables do not fit one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvBlockError {
    /// Another size.
    #[error("it has {found} bytes, and an environment block has {BLOCK_LEN}")]
    Size {
        /// The size found.
        found: usize,
    },
    /// Another first line.
    #[error("it does not begin with the line \"# GRUB Environment Block\"")]
    Signature,
    /// A line that is neither a variable nor a comment.
    #[error("byte {at} begins no NAME=value line")]
    Line {
        /// Where the line begins.
        at: usize,
    },
    /// A zero byte, which GRUB would take for the end of a value.
    #[error("byte {at} is zero")]
    Zero {
        /// Where.
        at: usize,
    },
    /// A variable twice, with two values.
    #[error("{name} is set twice, and differently")]
    Twice {
        /// The variable.
        name: String,
    },
    /// More than fits.
    #[error(
        "it is full: of {BLOCK_LEN} bytes {OURS_END} are for the variables of the slots, and {} for all others; remove some",
        BLOCK_LEN - OTHERS_FROM
    )]
    Full,
}

/// The variables of an environment block. Those that are not ours are kept, in their order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EnvBlock {
    variables: Vec<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for EnvBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |(name, value): &(Vec<u8>, Vec<u8>)| {
            (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned())
        };
        f.debug_map().entries(self.variables.iter().map(text)).finish()
    }
}

impl EnvBlock {
    /// Reads a block. A variable that is there twice with one value counts once: a write that was
    /// cut short between two sectors leaves such.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvBlockError> {
        if bytes.len() != BLOCK_LEN {
            return Err(EnvBlockError::Size { found: bytes.len() });
        }
        let mut rest = bytes.strip_prefix(SIGNATURE).ok_or(EnvBlockError::Signature)?;
        if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
            return Err(EnvBlockError::Zero { at });
        }
        let mut block = Self::default();
        while let Some(first) = rest.first() {
            let at = BLOCK_LEN - rest.len();
            if *first == b'#' {
                // The padding has no newline behind it.
                let end = rest.iter().position(|byte| *byte == b'\n');
                rest = end.and_then(|end| rest.get(end + 1..)).unwrap_or_default();
                continue;
            }
            let (name, value, behind) = variable(rest).ok_or(EnvBlockError::Line { at })?;
            block.insert(name, value)?;
            rest = behind;
        }
        Ok(block)
    }

    fn insert(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), EnvBlockError> {
        match self.variables.iter().find(|(known, _)| known == name) {
            None => self.variables.push((name.to_vec(), value)),
            Some((_, known)) if *known == value => {}
            Some(_) => {
                return Err(EnvBlockError::Twice { name: String::from_utf8_lossy(name).into_owned() });
            }
        }
        Ok(())
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.variables.iter().find(|(known, _)| known == name.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }

    /// Sets a variable. A name that is no name is refused by [`encode`](Self::encode).
    pub fn set(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(known, _)| known == name.as_bytes()) {
            Some((_, known)) => *known = value.as_bytes().to_vec(),
            None => self.variables.push((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
        }
    }

    /// The block: our variables in the first sector, all others in the second.
    pub fn encode(&self) -> Result<[u8; BLOCK_LEN], EnvBlockError> {
        let mut bytes = SIGNATURE.to_vec();
        for name in OURS {
            if let Some(value) = self.get(name) {
                line(&mut bytes, name.as_bytes(), value)?;
            }
        }
        if bytes.len() > OURS_END {
            return Err(EnvBlockError::Full);
        }
        let others = self.variables.iter().filter(|(name, _)| !OURS.iter().any(|our| our.as_bytes() == name));
        let mut others = others.peekable();
        if others.peek().is_some() {
            bytes.resize(OTHERS_FROM - 1, b'#');
            bytes.push(b'\n');
        }
        for (name, value) in others {
            line(&mut bytes, name, value)?;
        }
        if bytes.len() > BLOCK_LEN {
            return Err(EnvBlockError::Full);
        }
        bytes.resize(BLOCK_LEN, b'#');
        bytes.try_into().map_err(|_| EnvBlockError::Full)
    }
}

/// The variable that `bytes` begin with, and what is behind its line.
fn variable(bytes: &[u8]) -> Option<(&[u8], Vec<u8>, &[u8])> {
    let end = bytes.iter().position(|byte| matches!(byte, b'=' | b'\n'))?;
    let (name, rest) = bytes.split_at(end);
    let rest = rest.strip_prefix(b"=").filter(|_| !name.is_empty())?;
    let mut value = Vec::new();
    let mut left = rest.iter();
    loop {
        match left.next()? {
            b'\n' => return Some((name, value, left.as_slice())),
            b'\\' => value.push(*left.next()?),
            byte => value.push(*byte),
        }
    }
}

fn line(bytes: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), EnvBlockError> {
    let at = bytes.len();
    if name.is_empty() || name.starts_with(b"#") || name.iter().any(|byte| matches!(byte, b'=' | b'\n')) {
        return Err(EnvBlockError::Line { at });
    }
    if name.contains(&0) || value.contains(&0) {
        return Err(EnvBlockError::Zero { at });
    }
    bytes.extend_from_slice(name);
    bytes.push(b'=');
    for byte in value {
        if matches!(byte, b'\\' | b'\n') {
            bytes.push(b'\\');
        }
        bytes.push(*byte);
    }
    bytes.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(lines: &str) -> Vec<u8> {
        let mut bytes = [SIGNATURE, lines.as_bytes()].concat();
        bytes.resize(BLOCK_LEN, b'#');
        bytes
    }

    #[test]
    fn variables_of_others_are_kept_in_their_order_and_behind_ours() {
        let read =
            EnvBlock::parse(&block("saved_entry=a\\\\b\n# said nothing\nB_TRY=1\nz=\nORDER=B A\na=\\\nb\n"));
        let mut read = read.unwrap();
        assert_eq!(read.get("saved_entry"), Some(&b"a\\b"[..]));
        assert_eq!(read.get("a"), Some(&b"\nb"[..]));
        read.set("B_TRY", "0");
        let bytes = read.encode().unwrap();
        let ours = "# GRUB Environment Block\nORDER=B A\nB_TRY=0\n";
        let others = "\nsaved_entry=a\\\\b\nz=\na=\\\nb\n";
        let band = OTHERS_FROM - 1 - ours.len();
        let rest = BLOCK_LEN - OTHERS_FROM + 1 - others.len();
        let expected = format!("{ours}{}{others}{}", "#".repeat(band), "#".repeat(rest));
        assert_eq!(String::from_utf8(bytes.to_vec()).unwrap(), expected);
        assert_eq!(EnvBlock::parse(&bytes).unwrap().encode().unwrap(), bytes);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        use EnvBlockError::{Line, Signature, Size, Twice, Zero};
        let good = block("ORDER=A\n");
        assert!(EnvBlock::parse(&good).is_ok());
        assert!(EnvBlock::parse(&block("x=1\nx=1\n")).is_ok());
        for (bytes, why) in [
            (good[..1023].to_vec(), Size { found: 1023 }),
            ([good.as_slice(), b"#"].concat(), Size { found: 1025 }),
            (Vec::new(), Size { found: 0 }),
            (vec![0; BLOCK_LEN], Signature),
            (vec![b'#'; BLOCK_LEN], Signature),
            (block("x=1\nx=2\n"), Twice { name: "x".into() }),
            (block("x\n"), Line { at: 25 }),
            (block("=1\n"), Line { at: 25 }),
            (block("\nx=1\n"), Line { at: 25 }),
            (block("x=1"), Line { at: 25 }),
            (block("x=\0\n"), Zero { at: 27 }),
        ] {
            assert_eq!(EnvBlock::parse(&bytes), Err(why));
        }
        // Cut within an escape.
        let mut cut = block(&format!("x={}", "y".repeat(BLOCK_LEN)));
        cut[BLOCK_LEN - 1] = b'\\';
        assert_eq!(EnvBlock::parse(&cut[..BLOCK_LEN]), Err(Line { at: 25 }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let with = |name: &str, length: usize| {
            let mut block = EnvBlock::default();
            block.set("ORDER", "A B");
            block.set(name, &"x".repeat(length));
            block.encode()
        };
        let others = BLOCK_LEN - OTHERS_FROM - "x=\n".len();
        assert!(with("x", others).is_ok());
        assert_eq!(with("x", others + 1), Err(EnvBlockError::Full));
        assert_eq!(with("MONOK8S_TRIAL", OURS_END), Err(EnvBlockError::Full));
        for name in ["", "#x", "a=b", "a\nb", "a\0"] {
            assert!(with(name, 1).is_err(), "{name:?}");
        }
    }

    proptest! {
        /// Whatever two states follow each other, any mix of their sectors has all variables of
        /// others, and each of ours from one of the two.
        #[test]
        fn a_torn_block_loses_nothing(
            old in prop::collection::vec("[ -~\n]{0,12}", 9),
            new in prop::collection::vec("[ -~\n]{0,12}", 9),
            others in prop::collection::btree_map("[a-z]{1,9}", "[ -~\n]{0,20}", 0..8),
        ) {
            let state = |values: &[String]| {
                let mut block = EnvBlock::default();
                for (name, value) in OURS.iter().zip(values) {
                    block.set(name, value);
                }
                for (name, value) in &others {
                    block.set(name, value);
                }
                block
            };
            let (old, new) = (state(&old), state(&new));
            let (before, after) = (old.encode().unwrap(), new.encode().unwrap());
            prop_assert_eq!(&EnvBlock::parse(&before).unwrap(), &old);
            let torn = [&after[..SECTOR_LEN], &before[SECTOR_LEN..]].concat();
            prop_assert_eq!(&EnvBlock::parse(&torn).unwrap(), &new);
            let torn = [&before[..SECTOR_LEN], &after[SECTOR_LEN..]].concat();
            prop_assert_eq!(&EnvBlock::parse(&torn).unwrap(), &old);
        }
    }
}
