//! One copy of a U-Boot environment, as bytes.
//!
//! Format: U-Boot's `include/env_internal.h` and `env/common.c`. The CRC-32 of everything behind the
//! header, little-endian on every machine that runs MonoK8s; with two copies, one byte of flags,
//! which is a serial number; then `name=value`, each ended by a zero byte, and one more zero byte.
//! What lies behind is padding of any kind, and part of the checksum.

/// Whether a copy stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Checksum, then data.
    Single,
    /// Checksum, serial number, then data.
    Redundant,
}

impl Layout {
    const fn header(self) -> usize {
        match self {
            Self::Single => 4,
            Self::Redundant => 5,
        }
    }
}

/// The variables of an environment. Those that nobody asks for are kept byte for byte, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `name=value`, without the zero byte.
    entries: Vec<Vec<u8>>,
}

/// What is wrong with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// The place could not be read.
    #[error("unreadable")]
    Unreadable,
    /// It has no room for a header.
    #[error("too short")]
    TooShort,
    /// The checksum does not fit the data, or the size is not that of the environment.
    #[error("wrong checksum, or not this size")]
    Checksum,
    /// The data goes on to the end of the copy.
    #[error("no end of the variables")]
    NoEnd,
}

/// More than a copy has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the variables take {needed} bytes, the environment has room for {room}: remove some, or make it larger in U-Boot and in fw_env.config"
)]
pub struct TooLarge {
    needed: usize,
    room: usize,
}

/// A copy that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The serial number; 0 for a copy that stands alone.
    pub serial: u8,
    /// The variables.
    pub environment: Environment,
}

impl Environment {
    /// Reads a copy. `bytes` is all of it.
    pub fn decode(bytes: &[u8], layout: Layout) -> Result<Whole, Flaw> {
        let (header, data) = bytes.split_at_checked(layout.header()).ok_or(Flaw::TooShort)?;
        let (crc, flags) = header.split_first_chunk::<4>().ok_or(Flaw::TooShort)?;
        if crc32fast::hash(data) != u32::from_le_bytes(*crc) {
            return Err(Flaw::Checksum);
        }
        let mut entries = Vec::new();
        let mut rest = data;
        loop {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(Flaw::NoEnd)?;
            let (entry, behind) = rest.split_at(end);
            if entry.is_empty() {
                break;
            }
            entries.push(entry.to_vec());
            rest = behind.get(1..).unwrap_or_default();
        }
        Ok(Whole { serial: flags.first().copied().unwrap_or(0), environment: Self { entries } })
    }

    /// The bytes of a copy of `size` bytes.
    pub fn encode(&self, size: usize, layout: Layout, serial: u8) -> Result<Vec<u8>, TooLarge> {
        let room = size.saturating_sub(layout.header());
        let mut data = Vec::with_capacity(room);
        for entry in &self.entries {
            data.extend_from_slice(entry);
            data.push(0);
        }
        let needed = data.len() + 1;
        if needed > room {
            return Err(TooLarge { needed, room });
        }
        data.resize(room, 0);
        let mut bytes = crc32fast::hash(&data).to_le_bytes().to_vec();
        if layout == Layout::Redundant {
            bytes.push(serial);
        }
        bytes.append(&mut data);
        Ok(bytes)
    }

    /// A variable's value. Of several with one name U-Boot takes the last.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries.iter().rev().find_map(|entry| value_of(entry, name))
    }

    /// Sets a variable, at its place if it is there already. `None` removes it, as an empty value does
    /// in U-Boot.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        let place = self.entries.iter().position(|entry| value_of(entry, name).is_some());
        self.entries.retain(|entry| value_of(entry, name).is_none());
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let place = place.unwrap_or(self.entries.len());
            self.entries.insert(place, format!("{name}={value}").into_bytes());
        }
    }
}

fn value_of<'a>(entry: &'a [u8], name: &str) -> Option<&'a [u8]> {
    entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}
