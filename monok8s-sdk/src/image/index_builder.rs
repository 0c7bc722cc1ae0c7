//! A block index in the making.

use sha2::Digest as _;

use super::index::{BLOCK, BLOCK_LOG, HEADER, Index, IndexError, MAGIC, VERSION, Whole, block_hash};

/// Puts an index together while an artifact is made.
pub(super) struct IndexBuilder {
    image: (u64, sha2::Sha256),
    count: u32,
    frames: Vec<u8>,
    zeroes: Vec<u8>,
    blocks: u64,
    hashes: Vec<u8>,
}

impl IndexBuilder {
    pub(super) fn new() -> Self {
        Self {
            image: (0, sha2::Sha256::new()),
            count: 0,
            frames: Vec::new(),
            zeroes: Vec::new(),
            blocks: 0,
            hashes: Vec::new(),
        }
    }

    /// Takes in the next frame: what it holds, and how long it is in the artifact.
    pub(super) fn add(&mut self, content: &[u8], length: u32) {
        self.count = self.count.saturating_add(1);
        self.frames.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.image.0 += content.len() as u64;
        self.image.1.update(content);
        self.frames.extend_from_slice(&length.to_le_bytes());
        self.frames.extend_from_slice(&sha2::Sha256::digest(content));
        for block in content.chunks(BLOCK) {
            if self.blocks.is_multiple_of(8) {
                self.zeroes.push(0);
            }
            if crate::disk::is_zero(block) {
                if let Some(byte) = self.zeroes.last_mut() {
                    *byte |= 1 << (self.blocks % 8);
                }
            } else {
                self.hashes.extend_from_slice(&block_hash(block));
            }
            self.blocks += 1;
        }
    }

    /// The index of an artifact of this length and digest.
    pub(super) fn finish(self, artifact: Whole) -> Result<Index, IndexError> {
        let mut raw = Vec::with_capacity(HEADER + self.frames.len() + self.zeroes.len() + self.hashes.len());
        raw.extend_from_slice(MAGIC);
        raw.extend_from_slice(&VERSION.to_le_bytes());
        raw.extend_from_slice(&BLOCK_LOG.to_le_bytes());
        raw.extend_from_slice(&self.count.to_le_bytes());
        raw.extend_from_slice(&self.image.0.to_le_bytes());
        raw.extend_from_slice(&artifact.length.to_le_bytes());
        raw.extend_from_slice(&self.image.1.finalize());
        raw.extend_from_slice(artifact.digest.as_bytes());
        for part in [&self.frames, &self.zeroes, &self.hashes] {
            raw.extend_from_slice(part);
        }
        Index::parse(raw)
    }
}
