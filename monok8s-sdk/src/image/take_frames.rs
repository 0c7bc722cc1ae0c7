//! Frames as they come from the network, into the slot: each is checked before it is written, and one
//! that is wrong is told of.

use std::io;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use tokio::sync::mpsc;
use zstd::bulk::Decompressor;

use super::assemble::holds;
use super::delta::Delta;
use super::fetch_frames::{Fetched, Packed, Said};
use super::slot_writer::Halt;
use super::write_error::WriteError;

const DECODERS: usize = 2;

/// Takes frames as they come, and puts them into the slot. Blocks until the last one.
pub(super) fn take_frames(
    delta: &Delta<'_>,
    mut fetched: mpsc::Receiver<Fetched>,
    say: &mpsc::UnboundedSender<Said>,
) -> Result<(), Halt> {
    thread::scope(|scope| {
        let (frames, waiting) = bounded(1);
        let decoders: Vec<_> = (0..DECODERS)
            .map(|_| {
                let waiting = waiting.clone();
                scope.spawn(move || {
                    // Nothing more need come when one of them fails.
                    expand(delta, &waiting, say).inspect_err(|_| delta.cancel.cancel())
                })
            })
            .collect();
        drop(waiting);
        let mut ended = Err(broke_off(delta));
        while let Some(next) = fetched.blocking_recv() {
            match next {
                Fetched::Frame(frame) => {
                    if frames.send(frame).is_err() {
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

/// One of the threads that expand frames.
fn expand(
    delta: &Delta<'_>,
    frames: &Receiver<Packed>,
    say: &mpsc::UnboundedSender<Said>,
) -> Result<(), Halt> {
    let received = || delta.progress.snapshot().bytes_done;
    let corrupt = |source| Halt::Because(WriteError::Corrupt { received: received(), source });
    let mut decompressor = Decompressor::new().map_err(corrupt)?;
    for packed in frames {
        let Some(frame) = delta.index.frame(packed.number) else { continue };
        let mut piece = delta.pool.take();
        piece.truncate(frame.len());
        let expanded = decompressor.decompress_to_buffer(&packed.bytes, &mut piece[..]);
        let is_right = expanded.is_ok_and(|length| length == frame.len()) && holds(&frame, &piece);
        let verdict = if is_right {
            delta.put(&frame, piece)?;
            Said::Right
        } else {
            Said::Wrong { number: packed.number, mirror: packed.mirror }
        };
        // A network that has ended says why itself.
        let _ = say.send(verdict);
    }
    Ok(())
}
