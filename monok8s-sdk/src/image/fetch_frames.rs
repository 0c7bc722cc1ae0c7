//! Missing frames from a server, several requests in flight, each frame checked before it is
//! written.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::thread;

use bytes::{Buf as _, Bytes};
use crossbeam_channel::{Receiver, bounded};
use tokio::sync::{Mutex, mpsc};
use zstd::bulk::Decompressor;

use super::assemble::holds;
use super::delta::Delta;
use super::fetch::{Download, Outlet, Part, Taken};
use super::fetch_error::FetchError;
use super::index::Index;
use super::progress::{Cancel, Progress};
use super::slot_writer::Halt;
use super::spans::{Span, spans};
use super::write_error::WriteError;

/// Requests in flight.
const REQUESTS: usize = 4;
/// Frames that wait for a decoder.
pub(super) const WAITING_FRAMES: usize = 8;
const DECODERS: usize = 2;

/// What the network hands to the writing side.
pub(super) enum Fetched {
    /// A frame as it is in the artifact.
    Frame(usize, Vec<u8>),
    /// Every frame was sent. A channel that closes without this broke off.
    Everything,
}

/// What is asked for and not begun yet.
struct Orders {
    batches: mpsc::UnboundedReceiver<Vec<usize>>,
    spans: VecDeque<Span>,
}

/// Downloads frames, batch by batch as they are asked for.
pub(super) async fn fetch_frames(
    download: &Download,
    index: &Index,
    batches: mpsc::UnboundedReceiver<Vec<usize>>,
    frames: mpsc::Sender<Fetched>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(), FetchError> {
    let orders = Mutex::new(Orders { batches, spans: VecDeque::new() });
    let request = || async {
        while let Some(span) = next_span(&orders, index, progress).await {
            let cutter = Cutter::new(index, &span, frames.clone(), progress);
            let part = Part::Of { bytes: span.bytes.clone(), total: index.artifact_length() };
            if download.run(part, cutter, progress, cancel).await? == Taken::Abandoned {
                return Ok(());
            }
        }
        Ok(())
    };
    let [a, b, c, d] = [(); REQUESTS].map(|()| request());
    tokio::try_join!(a, b, c, d)?;
    let _ = frames.send(Fetched::Everything).await;
    Ok(())
}

async fn next_span(orders: &Mutex<Orders>, index: &Index, progress: &Progress) -> Option<Span> {
    let mut orders = orders.lock().await;
    loop {
        if let Some(span) = orders.spans.pop_front() {
            return Some(span);
        }
        let batch = orders.batches.recv().await?;
        let spans = spans(index, &batch);
        progress.add_total(spans.iter().map(|span| span.bytes.end - span.bytes.start).sum());
        orders.spans.extend(spans);
    }
}

/// Cuts what arrives into frames.
struct Cutter<'a> {
    index: &'a Index,
    progress: &'a Progress,
    frames: mpsc::Sender<Fetched>,
    /// The frames that are wanted.
    wanted: VecDeque<usize>,
    number: usize,
    /// What arrived of the frame `number`, and how much it still lacks.
    begun: Vec<u8>,
    lacking: usize,
}

impl<'a> Cutter<'a> {
    fn new(index: &'a Index, span: &Span, frames: mpsc::Sender<Fetched>, progress: &'a Progress) -> Self {
        let wanted: VecDeque<usize> = span.frames.iter().copied().collect();
        let number = wanted.front().copied().unwrap_or_default();
        let lacking = packed(index, number);
        Self { index, progress, frames, wanted, number, begun: Vec::new(), lacking }
    }
}

/// A frame's length in the artifact.
fn packed(index: &Index, number: usize) -> usize {
    let length = index.frame(number).map_or(0, |frame| frame.artifact.end - frame.artifact.start);
    usize::try_from(length).unwrap_or(usize::MAX)
}

impl Outlet for Cutter<'_> {
    async fn take(&mut self, mut bytes: Bytes) -> ControlFlow<()> {
        self.progress.add_done(bytes.len() as u64);
        while !bytes.is_empty() {
            let part = bytes.len().min(self.lacking);
            if self.wanted.front() == Some(&self.number) {
                self.begun.extend_from_slice(bytes.get(..part).unwrap_or_default());
            }
            bytes.advance(part);
            self.lacking -= part;
            if self.lacking > 0 {
                continue;
            }
            if self.wanted.front() == Some(&self.number) {
                self.wanted.pop_front();
                let frame = std::mem::take(&mut self.begun);
                if self.frames.send(Fetched::Frame(self.number, frame)).await.is_err() {
                    return ControlFlow::Break(());
                }
            }
            self.number += 1;
            self.lacking = packed(self.index, self.number);
            if self.lacking == 0 {
                // Behind the last frame there is only the seek table, which is not asked for.
                break;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Takes frames as they come, and puts them into the slot. Blocks until the last one.
pub(super) fn take_frames(delta: &Delta<'_>, mut fetched: mpsc::Receiver<Fetched>) -> Result<(), Halt> {
    thread::scope(|scope| {
        let (frames, waiting) = bounded(1);
        let decoders: Vec<_> = (0..DECODERS)
            .map(|_| {
                let waiting = waiting.clone();
                scope.spawn(move || expand(delta, &waiting))
            })
            .collect();
        drop(waiting);
        let mut ended = Err(broke_off(delta));
        while let Some(next) = fetched.blocking_recv() {
            match next {
                Fetched::Frame(number, packed) => {
                    if frames.send((number, packed)).is_err() {
                        break;
                    }
                }
                Fetched::Everything => {
                    ended = Ok(());
                    break;
                }
            }
        }
        drop((frames, fetched));
        for decoder in decoders {
            decoder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        ended
    })
}

fn broke_off(delta: &Delta<'_>) -> Halt {
    let received = delta.progress.snapshot().bytes_done;
    let source = io::Error::new(io::ErrorKind::BrokenPipe, "the download broke off");
    WriteError::Source { received, source }.into()
}

fn expand(delta: &Delta<'_>, frames: &Receiver<(usize, Vec<u8>)>) -> Result<(), Halt> {
    let received = || delta.progress.snapshot().bytes_done;
    let corrupt = |source| Halt::Because(WriteError::Corrupt { received: received(), source });
    let mut decompressor = Decompressor::new().map_err(corrupt)?;
    for (number, packed) in frames {
        let Some(frame) = delta.index.frame(number) else { continue };
        let mut piece = delta.pool.take();
        piece.truncate(frame.len());
        let expanded = decompressor.decompress_to_buffer(&packed, &mut piece[..]);
        if !expanded.is_ok_and(|length| length == frame.len() && holds(&frame, &piece)) {
            return Err(WriteError::OtherFrame { frame: number, offset: frame.artifact.start }.into());
        }
        delta.put(&frame, piece)?;
    }
    Ok(())
}
