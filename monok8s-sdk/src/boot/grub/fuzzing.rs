//! GRUB's environment, as it is found on a disk.
#![allow(clippy::missing_panics_doc, reason = "a panic is how a target reports")]

use super::env_block::{BLOCK_LEN, EnvBlock};
use super::variables;

/// An environment block. A longer or shorter input is cut, or filled with `#`, to a block's length;
/// whatever is accepted must be written and read again unchanged.
pub fn grub_env(bytes: &[u8]) {
    // As found, where only the length can be wrong.
    let _ = EnvBlock::parse(bytes);
    let mut whole = bytes.to_vec();
    whole.resize(BLOCK_LEN, b'#');
    let Ok(block) = EnvBlock::parse(&whole) else { return };
    if let Ok(encoded) = block.encode() {
        let again = EnvBlock::parse(&encoded);
        assert!(again.is_ok_and(|again| again.encode() == Ok(encoded)), "a block changes by itself");
    }
    if let Ok(revision) = variables::revision(&block) {
        assert!(revision <= variables::MAX_REVISION, "GRUB cannot compare that revision");
    }
    let Ok(status) = variables::status(&block) else { return };
    let mut written = block.clone();
    let set = variables::set_status(&mut written, &status);
    assert!(set.is_ok(), "what was read cannot be written: {set:?}");
    assert_eq!(variables::status(&written), Ok(status), "what was written reads differently");
}
