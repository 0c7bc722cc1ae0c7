//! SHA-256 of files and streams too large for memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result};
use monok8s_sdk::digest::Sha256Digest;
use sha2::{Digest as _, Sha256};

const CHUNK: usize = 1 << 20;

/// Of everything that can be read.
pub fn of_reader(mut reader: impl Read) -> std::io::Result<Sha256Digest> {
    let mut state = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = reader.read(&mut chunk)?;
        match chunk.get(..read) {
            Some([]) | None => return Ok(<[u8; 32]>::from(state.finalize()).into()),
            Some(bytes) => state.update(bytes),
        }
    }
}

/// Of a file.
pub fn of_file(path: &Path) -> Result<Sha256Digest> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    of_reader(file).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_several_chunks_has_the_digest_of_its_bytes() {
        let bytes = vec![7; 2 * CHUNK + 1];
        assert_eq!(of_reader(bytes.as_slice()).unwrap(), Sha256Digest::of(&bytes));
    }
}
