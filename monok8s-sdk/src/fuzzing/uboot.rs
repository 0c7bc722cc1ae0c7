//! U-Boot's environment and its configuration, as they are found on a node.

use crate::boot::uboot::{self, EnvConfig, Environment, Flaw, Layout, Location, MAX_SIZE};
use crate::boot::{AttemptId, Tries};
use crate::slot::Slot;

/// `fw_env.config`.
pub fn uboot_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let copies = match text.parse() {
        Ok(EnvConfig::Single(only)) => vec![only],
        Ok(EnvConfig::Redundant([first, second])) => {
            assert_eq!(first.size, second.size, "the copies have one size");
            vec![first, second]
        }
        Err(error) => {
            assert!(error.to_string().len() < 400, "an error quotes too much");
            return;
        }
    };
    for Location { path, size, .. } in copies {
        assert!(!path.is_empty() && !path.starts_with('#') && size <= MAX_SIZE, "no place");
    }
}

/// Two copies of an environment. The first byte tells which checksums are made right (bits 0 and 1)
/// and whether the second copy could be read (bit 2); the next two are the length of the first.
pub fn uboot_env(bytes: &[u8]) {
    let [mode, low, high, copies @ ..] = bytes else { return };
    let split = usize::from(u16::from_le_bytes([*low, *high])).min(copies.len());
    let (first, second) = copies.split_at(split);
    let (mut first, mut second) = (first.to_vec(), second.to_vec());
    for (bit, copy) in [(1, &mut first), (2, &mut second)] {
        if let Some((header, data)) = copy.split_at_mut_checked(5).filter(|_| mode & bit != 0) {
            let crc = crc32fast::hash(data).to_le_bytes();
            header.iter_mut().zip(crc).for_each(|(place, byte)| *place = byte);
        }
    }
    let second = if mode & 4 == 0 { Ok(second.as_slice()) } else { Err(Flaw::Unreadable) };
    let Ok((is_second, whole)) = uboot::choose([Ok(&first), second]) else { return };
    let size = if is_second { second.map_or(0, <[u8]>::len) } else { first.len() };
    let again = whole.environment.encode(size, Layout::Redundant, whole.serial).ok();
    assert_eq!(
        again.as_deref().and_then(decoded).as_ref(),
        Some(&whole.environment),
        "a round changes nothing"
    );
    let Ok(status) = uboot::status(&whole.environment) else { return };
    let armed = status.armed(Slot::B, AttemptId(7), Tries(1));
    let mut changed = whole.environment;
    assert_eq!(uboot::put(&mut changed, &armed), Ok(()), "there is a slot in the order");
    let bytes = changed.encode(size + 200, Layout::Redundant, 0).ok();
    let read = bytes.as_deref().and_then(decoded).map(|environment| uboot::status(&environment));
    assert_eq!(read, Some(Ok(armed)), "a state is read as it was written");
}

fn decoded(bytes: &[u8]) -> Option<Environment> {
    Some(Environment::decode(bytes, Layout::Redundant).ok()?.environment)
}
