//! `fw_env.config`: where a U-Boot environment is.
//!
//! Format: `fw_env.config(5)` of U-Boot's tools and of libubootenv. One line for each copy: a device or
//! a file, the offset (decimal, `0x` hexadecimal or, with a leading 0, octal; negative: from the end),
//! and the size in bytes of the copy, which is hexadecimal also without `0x`. Flash adds the size of
//! a sector, the number of sectors and whether they are locked; a block device has no use for these.
//! What those tools would skip in silence is refused here: half a configuration would be a single copy.

use std::str::FromStr;

/// The largest file that is read, in bytes.
pub const MAX_CONFIG: u64 = 64 * 1024;
/// The largest copy of an environment, in bytes.
pub const MAX_SIZE: u32 = 1 << 20;
/// The smallest: a checksum, flags, and an end.
const MIN_SIZE: u32 = 16;

/// Where a copy begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// So many bytes from the start.
    FromStart(u64),
    /// So many bytes before the end.
    FromEnd(u64),
}

/// One copy of an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The device or file, as the host names it.
    pub path: String,
    /// Where the copy begins.
    pub offset: Offset,
    /// The size of the copy in bytes, with its checksum and flags.
    pub size: u32,
}

/// Where an environment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvConfig {
    /// In one place: an interrupted write loses it.
    Single(Location),
    /// In two places, of which U-Boot takes the newer one that is whole.
    Redundant([Location; 2]),
}

/// Why a configuration is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A line is not what the format has.
    #[error(
        "line {line} is no copy of an environment ({why}): write DEVICE OFFSET SIZE, such as /dev/disk/by-partlabel/uboot-env 0x4000 0x4000"
    )]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No line, or more than two.
    #[error("{found} copies of the environment are named: name one line for each of the two")]
    Copies {
        /// How many lines were found.
        found: usize,
    },
    /// The copies have different sizes.
    #[error(
        "the copies of the environment have {first} and {second} bytes: give both the size that U-Boot was built with"
    )]
    Sizes {
        /// The first copy's size in bytes.
        first: u32,
        /// The second's.
        second: u32,
    },
}

impl FromStr for EnvConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut copies = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                copies.push(location(line).map_err(|why| ConfigError::Line { line: number, why })?);
            }
        }
        match <[Location; 2]>::try_from(copies) {
            Ok([first, second]) if first.size != second.size => {
                Err(ConfigError::Sizes { first: first.size, second: second.size })
            }
            Ok(both) => Ok(Self::Redundant(both)),
            Err(mut copies) => match (copies.pop(), copies.len()) {
                (Some(only), 0) => Ok(Self::Single(only)),
                (last, others) => Err(ConfigError::Copies { found: others + usize::from(last.is_some()) }),
            },
        }
    }
}

fn location(line: &str) -> Result<Location, &'static str> {
    let mut words = line.split_whitespace();
    let path = words.next().unwrap_or_default().to_owned();
    let offset = words.next().and_then(offset).ok_or("the offset is no number")?;
    let size = words.next().and_then(hexadecimal).ok_or("the size is no hexadecimal number")?;
    for word in words.take_while(|word| !word.starts_with('#')) {
        hexadecimal(word).ok_or("something follows that is no number")?;
    }
    let size = u32::try_from(size).ok().filter(|size| (MIN_SIZE..=MAX_SIZE).contains(size));
    Ok(Location { path, offset, size: size.ok_or("the size is not between 16 bytes and 1 MiB")? })
}

fn offset(word: &str) -> Option<Offset> {
    let (kind, digits): (fn(u64) -> Offset, _) = match word.strip_prefix('-') {
        Some(digits) => (Offset::FromEnd, digits),
        None => (Offset::FromStart, word),
    };
    let octal = || digits.strip_prefix('0').filter(|rest| !rest.is_empty());
    let number = match (hex_digits(digits), octal()) {
        (Some(hex), _) => number(hex, 16)?,
        (None, Some(octal)) => number(octal, 8)?,
        (None, None) => number(digits, 10)?,
    };
    // A host's own limit for the position in a file.
    i64::try_from(number).ok().map(|_| kind(number))
}

fn hexadecimal(word: &str) -> Option<u64> {
    number(hex_digits(word).unwrap_or(word), 16)
}

fn hex_digits(word: &str) -> Option<&str> {
    word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"))
}

fn number(digits: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` takes a sign, too.
    digits.bytes().all(|digit| digit.is_ascii_alphanumeric()).then_some(())?;
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str, offset: Offset, size: u32) -> Location {
        Location { path: path.to_owned(), offset, size }
    }

    #[test]
    fn every_form_of_a_line_is_read_as_the_tools_read_it() {
        use Offset::{FromEnd, FromStart};
        for (line, offset, size) in [
            ("/dev/mmcblk0 0x3f8000 0x8000", FromStart(0x3f_8000), 0x8000),
            ("/dev/mmcblk0\t4194304  8000 # MMC", FromStart(0x40_0000), 0x8000),
            ("  /boot/uboot.env 0 4000", FromStart(0), 0x4000),
            ("/dev/sda -0x4000 0X4000", FromEnd(0x4000), 0x4000),
            ("/dev/sda -16384 0x4000 0x200 0x20 1", FromEnd(0x4000), 0x4000),
            ("/dev/sda 010 0x4000", FromStart(8), 0x4000),
        ] {
            let expected = at(line.split_whitespace().next().unwrap(), offset, size);
            assert_eq!(line.parse(), Ok(EnvConfig::Single(expected)), "{line}");
        }
    }

    #[test]
    fn two_lines_are_two_copies() {
        let text = "# MTD device\n\n/dev/a 0 0x4000\n/dev/a 0x4000 0x4000\n# end";
        let [first, second] = [0, 0x4000].map(|offset| at("/dev/a", Offset::FromStart(offset), 0x4000));
        assert_eq!(text.parse(), Ok(EnvConfig::Redundant([first, second])));
    }

    #[test]
    fn what_the_tools_would_skip_is_refused() {
        for (text, line) in [
            ("/dev/a 0x0", 1),
            ("/dev/a 0 0x4000\n/dev/b zero 0x4000", 2),
            ("/dev/a 0 0", 1),
            ("/dev/a 0 0x40000000", 1),
            ("/dev/a 08 0x4000", 1),
            ("/dev/a +1 0x4000", 1),
            ("/dev/a --1 0x4000", 1),
            ("/dev/a 0 -4000", 1),
            ("/dev/a 0x8000000000000000 0x4000", 1),
            ("/dev/a 0 0x4000 many", 1),
            ("uboot:\n  size: 0x4000", 1),
        ] {
            let refused = text.parse::<EnvConfig>();
            assert!(
                matches!(refused, Err(ConfigError::Line { line: at, .. }) if at == line),
                "{text}: {refused:?}"
            );
        }
        assert_eq!("# nothing\n".parse::<EnvConfig>(), Err(ConfigError::Copies { found: 0 }));
        let three = "/dev/a 0 0x4000\n".repeat(3);
        assert_eq!(three.parse::<EnvConfig>(), Err(ConfigError::Copies { found: 3 }));
        let unequal = "/dev/a 0 0x4000\n/dev/b 0 0x8000".parse::<EnvConfig>();
        assert_eq!(unequal, Err(ConfigError::Sizes { first: 0x4000, second: 0x8000 }));
    }
}
