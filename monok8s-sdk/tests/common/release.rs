//! Images, their artifacts and indexes, and what of them was asked for.

use std::ops::Range;

use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::image::{BuildOptions, Expected, Index, Source, build, parse_seek_table};

use super::machine::Machine;
use super::server::{Reply, Request, Server};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const FRAME: usize = 64 * 1024;

/// An image in whole blocks: those of `numbers`, each with bytes of its own; 0 is zeroes.
pub(crate) fn image(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(block).collect()
}

pub(crate) fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..BLOCK).map(|_| step()).collect()
}

/// An artifact and its index.
pub(crate) struct Release {
    pub(crate) image: Vec<u8>,
    pub(crate) artifact: Vec<u8>,
    pub(crate) index: Index,
}

impl Release {
    pub(crate) fn of(image: Vec<u8>) -> Self {
        let mut artifact = Vec::new();
        let options = BuildOptions { frame_log: 16, level: 1 };
        let index = build(&mut image.as_slice(), &mut artifact, options).unwrap();
        Self { image, artifact, index }
    }

    pub(crate) fn expected(&self) -> Expected {
        Expected {
            checksum: Some(Sha256Digest::of(&self.artifact)),
            size: Some(self.image.len() as u64),
            image_checksum: Some(Sha256Digest::of(&self.image)),
        }
    }

    /// An honest server of both.
    pub(crate) fn serve(&self) -> Server {
        let (artifact, index) = (self.artifact.clone(), self.index.as_bytes().to_vec());
        Server::start(move |_, request| match request.path.as_str() {
            "/index" => Reply::file(request, &index, "\"i\""),
            _ => Reply::file(request, &artifact, "\"a\""),
        })
    }

    /// The sha256 of the index.
    pub(crate) fn checksum(&self) -> Sha256Digest {
        Sha256Digest::of(self.index.as_bytes())
    }

    /// From one server, for a machine.
    pub(crate) fn source(&self, machine: &Machine, server: &Server) -> Source {
        machine.source(server, self.checksum())
    }

    /// Where each frame is in the artifact.
    pub(crate) fn frames(&self) -> Vec<Range<usize>> {
        let table = parse_seek_table(&self.artifact).unwrap();
        let frames = table.iter().scan(0, |end, entry| {
            let start = *end;
            *end += entry.compressed as usize;
            Some(start..*end)
        });
        frames.collect()
    }
}

/// The bytes of the artifact that were asked for.
pub(crate) fn asked(server: &Server) -> Vec<Range<usize>> {
    let artifact = |request: &Request| request.path != "/index";
    let range = |request: &Request| request.range().unwrap_or(0..usize::MAX);
    server.requests().iter().filter(|request| artifact(request)).map(range).collect()
}

pub(crate) fn bytes(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(ExactSizeIterator::len).sum()
}
