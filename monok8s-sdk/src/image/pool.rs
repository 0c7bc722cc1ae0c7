//! Aligned buffers that go round between threads. Their number bounds the memory of a write.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::disk::AlignedBuf;

/// A fixed number of buffers of one size.
pub(super) struct Pool {
    free: Receiver<AlignedBuf>,
    back: Sender<AlignedBuf>,
}

impl Pool {
    pub(super) fn new(buffers: usize, size: usize) -> Self {
        let (back, free) = bounded(buffers);
        for _ in 0..buffers {
            // There is room for every buffer there is, here and whenever one comes back.
            let _ = back.try_send(AlignedBuf::zeroed(size));
        }
        Self { free, back }
    }

    /// Waits for a buffer that nobody uses. Its bytes are those of its last use.
    pub(super) fn take(&self) -> Buffer {
        // The pool keeps a sender, so that the channel cannot close.
        let buf = self.free.recv().unwrap_or_else(|_| AlignedBuf::zeroed(0));
        let length = buf.len();
        Buffer { buf: Some(buf), length, back: self.back.clone() }
    }
}

/// A buffer of a [`Pool`]; dropping it gives it back.
pub(super) struct Buffer {
    buf: Option<AlignedBuf>,
    length: usize,
    back: Sender<AlignedBuf>,
}

impl Buffer {
    /// Counts only the first `length` bytes from now on.
    pub(super) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buf.as_deref().and_then(|buf| buf.get(..self.length)).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let length = self.length;
        self.buf.as_deref_mut().and_then(|buf| buf.get_mut(..length)).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            let _ = self.back.try_send(buf);
        }
    }
}
