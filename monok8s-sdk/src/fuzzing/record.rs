//! The node's record, as it is found after a power cut.

use super::objects::survives;
use crate::boot::record_store::{encode, newest};
use crate::node_upgrade::Record;
use crate::slot::Slot;

/// Two copies of the record. The first byte tells which are made whole (bits 0 and 1) and whether
/// there is a second one (bit 2); then come their revisions (1 byte each) and the length of the
/// first (2 bytes).
pub fn record(bytes: &[u8]) {
    let [mode, first_revision, second_revision, low, high, copies @ ..] = bytes else { return };
    let split = usize::from(u16::from_le_bytes([*low, *high])).min(copies.len());
    let (first, second) = copies.split_at(split);
    let copy = |bit: u8, revision: &u8, payload: &[u8]| {
        if mode & bit == 0 { payload.to_vec() } else { encode(u64::from(*revision), payload) }
    };
    let first = copy(1, first_revision, first);
    let second = (mode & 4 != 0).then(|| copy(2, second_revision, second));
    let found = newest([Some(first.as_slice()), second.as_deref()]);
    if mode & 1 == 1 {
        let found = found.as_ref().map(|found| found.revision);
        assert!(found >= Some(u64::from(*first_revision)), "a whole copy is passed over");
    }
    let Some(Ok(record)) = found.map(|found| serde_json::from_slice::<Record>(found.payload)) else { return };
    let _ = (record.slots.get(Slot::A), record.slots.get(Slot::B));
    for seen in &record.seen {
        let _ = record.pinned(&seen.uid);
        for failed in record.failed.iter().take(4) {
            let _ = record.quarantine(&failed.checksum, &seen.uid);
        }
    }
    survives(&record);
}
