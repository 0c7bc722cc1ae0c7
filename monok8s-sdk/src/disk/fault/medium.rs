//! What storage holds, as pages that copies share until they differ.

use std::sync::{Arc, OnceLock};

/// The unit that copies share, in bytes.
const PAGE: usize = 4096;
/// What a device writes whole or not at all, in bytes.
pub(super) const SECTOR: usize = 512;

/// The bytes of a disk at one moment. A copy costs a pointer per 4 KiB.
#[derive(Clone)]
pub struct Medium {
    pages: Vec<Arc<[u8]>>,
    size: usize,
}

impl std::fmt::Debug for Medium {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Medium({} bytes)", self.size)
    }
}

impl PartialEq for Medium {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, two): (&Arc<[u8]>, &Arc<[u8]>)| Arc::ptr_eq(one, two) || one == two;
        self.size == other.size && self.pages.iter().zip(&other.pages).all(same)
    }
}

impl Eq for Medium {}

/// A part of a write that lies within one page.
#[derive(Clone)]
pub(super) struct Piece {
    page: usize,
    start: usize,
    bytes: Arc<[u8]>,
}

fn zero_page() -> Arc<[u8]> {
    static ZEROES: OnceLock<Arc<[u8]>> = OnceLock::new();
    Arc::clone(ZEROES.get_or_init(|| Arc::from([0; PAGE])))
}

impl Medium {
    /// `size` bytes of `byte`.
    #[must_use]
    pub fn filled(size: usize, byte: u8) -> Self {
        let page = if byte == 0 { zero_page() } else { Arc::from([byte; PAGE]) };
        Self { pages: vec![page; size.div_ceil(PAGE)], size }
    }

    /// These bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut medium = Self::filled(bytes.len(), 0);
        for piece in Piece::cut(0, bytes) {
            medium.put(&piece);
        }
        medium
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// All of its bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        self.read_at(0, &mut bytes);
        bytes
    }

    /// Copies bytes from `offset` on; those behind its end stay as they are.
    pub fn read_at(&self, offset: usize, buf: &mut [u8]) {
        let mut rest = buf;
        for part in self.parts(offset, rest.len()) {
            let (now, later) = rest.split_at_mut(part.len().min(rest.len()));
            now.copy_from_slice(part);
            rest = later;
        }
    }

    /// Whether it holds exactly `bytes` at `offset`.
    #[must_use]
    pub fn holds(&self, offset: usize, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for part in self.parts(offset, bytes.len()) {
            match rest.strip_prefix(part) {
                Some(behind) => rest = behind,
                None => return false,
            }
        }
        rest.is_empty()
    }

    /// Whether `len` bytes from `offset` are zero.
    #[must_use]
    pub fn is_zero(&self, offset: usize, len: usize) -> bool {
        let zeroes = zero_page();
        let is_zero = |part: &[u8]| {
            std::ptr::eq(part.as_ptr(), zeroes.as_ptr()) || zeroes.get(..part.len()) == Some(part)
        };
        self.parts(offset, len).all(is_zero)
    }

    /// The bytes of a range, page by page.
    fn parts(&self, offset: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        let end = offset.saturating_add(len).min(self.size);
        (offset / PAGE..end.div_ceil(PAGE)).filter_map(move |at| {
            let first = offset.max(at * PAGE) - at * PAGE;
            let last = end.min((at + 1) * PAGE) - at * PAGE;
            self.pages.get(at)?.get(first..last)
        })
    }

    pub(super) fn put(&mut self, piece: &Piece) {
        let Some(page) = self.pages.get_mut(piece.page) else { return };
        if piece.bytes.len() == PAGE {
            *page = Arc::clone(&piece.bytes);
        } else {
            change(page, |bytes| copy(bytes, piece.start, &piece.bytes));
        }
    }

    /// The sectors of `piece` that `kept` says, by their number on the disk.
    pub(super) fn put_sectors(&mut self, piece: &Piece, kept: impl Fn(usize) -> bool) {
        let Some(page) = self.pages.get_mut(piece.page) else { return };
        change(page, |bytes| {
            let mut start = piece.start;
            let mut rest = &*piece.bytes;
            while !rest.is_empty() {
                let (now, later) = rest.split_at((SECTOR - start % SECTOR).min(rest.len()));
                if kept((piece.page * PAGE + start) / SECTOR) {
                    copy(bytes, start, now);
                }
                start += now.len();
                rest = later;
            }
        });
    }
}

fn change(page: &mut Arc<[u8]>, how: impl FnOnce(&mut [u8])) {
    let mut bytes = page.to_vec();
    how(&mut bytes);
    *page = bytes.into();
}

fn copy(bytes: &mut [u8], start: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(start..start + new.len()) {
        place.copy_from_slice(new);
    }
}

impl Piece {
    /// Cuts a write at the borders of pages.
    pub(super) fn cut(offset: usize, bytes: &[u8]) -> Vec<Self> {
        Self::cut_with(offset, bytes.len(), |from, len| {
            bytes.get(from..from + len).unwrap_or_default().into()
        })
    }

    /// Cuts a zeroing at the borders of pages.
    pub(super) fn cut_zeroes(offset: usize, len: usize) -> Vec<Self> {
        Self::cut_with(offset, len, |_, len| if len == PAGE { zero_page() } else { vec![0; len].into() })
    }

    fn cut_with(offset: usize, len: usize, bytes: impl Fn(usize, usize) -> Arc<[u8]>) -> Vec<Self> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < len {
            let (page, start) = ((offset + done) / PAGE, (offset + done) % PAGE);
            let part = (PAGE - start).min(len - done);
            pieces.push(Self { page, start, bytes: bytes(done, part) });
            done += part;
        }
        pieces
    }
}
