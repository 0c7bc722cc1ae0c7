//! The outline of zstd frames: where one ends and what it says of itself, without expanding it.
//!
//! RFC 8878, section 3.1.

/// The longest header: magic number, descriptor, window, dictionary ID, content size.
pub(super) const LONGEST_HEADER: usize = 4 + 1 + 1 + 4 + 8;
/// The length of a block's header.
pub(super) const BLOCK_HEADER: usize = 3;

const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// What begins at some place of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// A frame of data.
    Frame(FrameHeader),
    /// A frame that decoders skip: this many bytes, its header included.
    Skippable(u64),
    /// No frame of zstd.
    Foreign,
    /// The bytes end within a header.
    Short,
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// The header's length in bytes.
    pub(super) length: usize,
    /// How many bytes it expands to, if it says so.
    pub(super) content: Option<u64>,
    /// Whether a checksum of 4 bytes follows the last block.
    pub(super) trailer: usize,
    /// The dictionary it needs; 0 is none.
    pub(super) dictionary: u32,
}

/// A block within a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// How many bytes follow its header.
    pub(super) length: usize,
    /// Whether the frame ends with it.
    pub(super) last: bool,
}

/// Reads the start of a frame from at most [`LONGEST_HEADER`] bytes.
pub(super) fn start(bytes: &[u8]) -> Start {
    let Some((magic, rest)) = bytes.split_at_checked(4) else { return Start::Short };
    if let [0x50..=0x5F, 0x2A, 0x4D, 0x18] = magic {
        let length = rest.first_chunk().map(|length| u64::from(u32::from_le_bytes(*length)) + 8);
        return length.map_or(Start::Short, Start::Skippable);
    }
    if magic != MAGIC {
        return Start::Foreign;
    }
    header(rest).map_or(Start::Short, Start::Frame)
}

fn header(bytes: &[u8]) -> Option<FrameHeader> {
    let (descriptor, rest) = bytes.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    let window = usize::from(!single_segment);
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 0x03)).copied()?;
    let content = match (descriptor >> 6, single_segment) {
        (0, false) => 0,
        (0, true) => 1,
        (1, _) => 2,
        (2, _) => 4,
        _ => 8,
    };
    let rest = rest.get(window..)?;
    let (id, rest) = rest.split_at_checked(dictionary)?;
    let (size, _) = rest.split_at_checked(content)?;
    let size = match content {
        0 => None,
        // The two-byte form begins at 256.
        2 => Some(number(size) + 256),
        _ => Some(number(size)),
    };
    Some(FrameHeader {
        length: 5 + window + dictionary + content,
        content: size,
        trailer: if descriptor & 0x04 == 0 { 0 } else { 4 },
        dictionary: u32::try_from(number(id)).unwrap_or(u32::MAX),
    })
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Reads a block's header; `None` for the kind that does not exist.
pub(super) fn block(header: [u8; BLOCK_HEADER]) -> Option<Block> {
    let [low, middle, high] = header.map(usize::from);
    let bits = low | middle << 8 | high << 16;
    let length = match (bits >> 1) & 3 {
        // One byte, repeated.
        1 => 1,
        0 | 2 => bits >> 3,
        _ => return None,
    };
    Some(Block { length, last: bits & 1 == 1 })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn frame(len: usize, sized: bool, checksum: bool) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at * at % 251).unwrap()).collect();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_contentsize(sized).unwrap();
        encoder.include_checksum(checksum).unwrap();
        encoder.set_pledged_src_size(sized.then_some(len as u64)).unwrap();
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn frames_end_where_the_encoder_ended_them() {
        for (len, sized, checksum) in [
            (0, true, false),
            (200, true, true),
            (300, true, false),
            (70_000, true, true),
            (900_000, false, true),
        ] {
            let bytes = frame(len, sized, checksum);
            let Start::Frame(header) = start(&bytes[..LONGEST_HEADER.min(bytes.len())]) else {
                panic!("{len}: no frame")
            };
            assert_eq!(header.content, sized.then_some(len as u64), "{len}");
            assert_eq!(header.dictionary, 0);
            let mut at = header.length;
            loop {
                let block = block(bytes[at..at + BLOCK_HEADER].try_into().unwrap()).unwrap();
                at += BLOCK_HEADER + block.length;
                if block.last {
                    break;
                }
            }
            assert_eq!(at + header.trailer, bytes.len(), "{len}");
        }
    }

    #[test]
    fn what_is_no_frame_is_told_apart() {
        assert_eq!(start(b"<!DOCTYPE"), Start::Foreign);
        assert_eq!(start(&[0x28, 0xB5, 0x2F]), Start::Short);
        assert_eq!(start(&[0x28, 0xB5, 0x2F, 0xFD]), Start::Short);
        assert_eq!(start(&[0x5E, 0x2A, 0x4D, 0x18, 9, 0, 0, 0]), Start::Skippable(17));
        assert_eq!(block([0xFF, 0xFF, 0xFF]), None);
        // A dictionary ID of one byte, 7.
        let Start::Frame(header) = start(&[0x28, 0xB5, 0x2F, 0xFD, 0x01, 0x50, 0x07, 0, 0]) else { panic!() };
        assert_eq!(header.dictionary, 7);
    }
}
