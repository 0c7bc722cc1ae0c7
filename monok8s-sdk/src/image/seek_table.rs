//! The seek table at the end of an artifact: the standard one of zstd's seekable format, so that
//! other tools find the frames too. Decoders skip it.
//!
//! `contrib/seekable_format/zstd_seekable_compression_format.md` of zstd, version 0.1.1.

/// A skippable frame of this kind.
const SKIPPABLE: u32 = 0x184D_2A5E;
/// The last four bytes of the file.
const SEEKABLE: u32 = 0x8F92_EAB1;
const FOOTER: usize = 9;
const ENTRY: usize = 8;
/// Set in the descriptor if every entry carries a checksum of 4 more bytes.
const HAS_CHECKSUMS: u8 = 0x80;
/// Bits of the descriptor that must be 0.
const RESERVED: u8 = 0x7C;

/// Why there is no seek table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeekTableError {
    /// The artifact ends otherwise.
    #[error(
        "the artifact has no seek table: it was not made by `ctl image build` or another tool of the seekable format"
    )]
    Absent,
    /// It contradicts itself.
    #[error("the artifact's seek table is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
}

/// A frame as the table lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeekEntry {
    /// Its length in the artifact, in bytes.
    pub compressed: u32,
    /// How many bytes it expands to.
    pub expanded: u32,
}

/// The table, as the frame that ends an artifact.
pub(super) fn encode(entries: &[SeekEntry]) -> Option<Vec<u8>> {
    let count = u32::try_from(entries.len()).ok()?;
    let length = u32::try_from(entries.len().checked_mul(ENTRY)?.checked_add(FOOTER)?).ok()?;
    let mut table = Vec::new();
    table.extend_from_slice(&SKIPPABLE.to_le_bytes());
    table.extend_from_slice(&length.to_le_bytes());
    for SeekEntry { compressed, expanded } in entries {
        table.extend_from_slice(&compressed.to_le_bytes());
        table.extend_from_slice(&expanded.to_le_bytes());
    }
    table.extend_from_slice(&count.to_le_bytes());
    table.push(0);
    table.extend_from_slice(&SEEKABLE.to_le_bytes());
    Some(table)
}

/// How long the table of so many frames is, without checksums.
pub(super) fn length(entries: usize) -> usize {
    8 + entries * ENTRY + FOOTER
}

/// How long the table of so many frames is that ends with these bytes.
pub(super) fn length_in(tail: &[u8], entries: usize) -> usize {
    let descriptor = tail.len().checked_sub(FOOTER).and_then(|footer| tail.get(footer + 4));
    let has_checksums = descriptor.is_some_and(|descriptor| descriptor & HAS_CHECKSUMS != 0);
    length(entries) + if has_checksums { entries * 4 } else { 0 }
}

/// Reads the table from the end of an artifact. `tail` is as much of the end as there is at hand;
/// 1 MiB is enough for 32 GiB in frames of 256 KiB.
pub fn parse_seek_table(tail: &[u8]) -> Result<Vec<SeekEntry>, SeekTableError> {
    let damaged = |what| SeekTableError::Damaged { what };
    let (rest, footer) = tail.split_last_chunk::<FOOTER>().ok_or(SeekTableError::Absent)?;
    let [a, b, c, d, descriptor, magic @ ..] = *footer;
    if u32::from_le_bytes(magic) != SEEKABLE {
        return Err(SeekTableError::Absent);
    }
    if descriptor & RESERVED != 0 {
        return Err(damaged("its descriptor has bits that do not exist"));
    }
    let entry = ENTRY + if descriptor & HAS_CHECKSUMS == 0 { 0 } else { 4 };
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d]))
        .ok()
        .and_then(|count| count.checked_mul(entry))
        .ok_or(damaged("it has too many entries"))?;
    let (before, entries) = rest
        .split_at_checked(rest.len().checked_sub(length).ok_or(damaged("it is longer than the artifact"))?)
        .ok_or(damaged("it is longer than the artifact"))?;
    let (_, header) = before.split_last_chunk::<8>().ok_or(damaged("it has no header"))?;
    let [kind @ .., _, _, _, _] = *header;
    let [_, _, _, _, said @ ..] = *header;
    if u32::from_le_bytes(kind) != SKIPPABLE
        || u64::from(u32::from_le_bytes(said)) != (length + FOOTER) as u64
    {
        return Err(damaged("its header does not match its footer"));
    }
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(entries
        .chunks_exact(entry)
        .map(|entry| SeekEntry {
            compressed: number(entry),
            expanded: number(entry.get(4..).unwrap_or_default()),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let entries: Vec<SeekEntry> =
            (1..100).map(|n| SeekEntry { compressed: n * 7, expanded: n * 1000 }).collect();
        let table = encode(&entries).unwrap();
        let file = [b"frames before it".as_slice(), &table].concat();
        assert_eq!(parse_seek_table(&file).unwrap(), entries);
        assert_eq!(parse_seek_table(b"something else"), Err(SeekTableError::Absent));
        for at in 0..table.len() {
            let mut damaged = table.clone();
            damaged[at] ^= 0x10;
            // Never a panic; an entry that changed is not the table's to notice.
            if let Ok(read) = parse_seek_table(&damaged) {
                assert_eq!(read.len(), entries.len(), "byte {at}");
            }
        }
        assert!(parse_seek_table(&table[1..]).is_err());
    }
}
