//! Missing frames from servers, several requests in flight. A frame that came wrong is ordered again
//! at once, from another mirror.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

use super::fetch::{Outlet, Taken};
use super::fetch_error::FetchError;
use super::index::Index;
use super::progress::{Cancel, Progress};
use super::spans::spans;
use super::transfer::{Missed, Session};

/// Frames that wait for a decoder, at most.
pub(super) const WAITING_FRAMES: usize = 64;
/// How many bytes of frames there are in memory as they come, from the first byte of each until it is
/// expanded. A frame has little more than 1 MiB.
const PACKED: usize = 4 << 20;

/// What the writing side says.
pub(super) enum Said {
    /// These frames, in order, are missing.
    Missing(Vec<usize>),
    /// No others are.
    Nothing,
    /// A frame that came is right.
    Right,
    /// A frame is wrong as this mirror sent it.
    Wrong {
        /// The frame.
        number: usize,
        /// The mirror.
        mirror: usize,
    },
}

/// What the network hands to the writing side.
pub(super) enum Fetched {
    Frame(Packed),
    /// Every frame came and was found right. A channel that closes without this broke off.
    Everything,
}

/// A frame as it is in the artifact.
pub(super) struct Packed {
    pub(super) number: usize,
    pub(super) bytes: Vec<u8>,
    /// All of its bytes are from there.
    pub(super) mirror: usize,
    _memory: OwnedSemaphorePermit,
}

/// Why frames did not come.
pub(super) enum NoFrames {
    /// Every mirror that is left sent this frame wrong.
    Wrong(usize),
    Fetch(FetchError),
}

/// Frames to ask for by one request.
struct Order {
    frames: Range<usize>,
    /// Mirrors that sent them wrong.
    except: Vec<usize>,
}

/// What is ordered and not begun yet. What came wrong goes first: it may show that no mirror is left.
struct Orders {
    again: mpsc::UnboundedReceiver<Order>,
    first: mpsc::UnboundedReceiver<Order>,
}

impl Orders {
    /// `None` once nobody orders any more.
    async fn next(&mut self) -> Option<Order> {
        tokio::select! {
            biased;
            Some(order) = self.again.recv() => Some(order),
            Some(order) = self.first.recv() => Some(order),
            else => None,
        }
    }
}

/// Downloads frames as they are asked for, until all of them were found right.
pub(super) async fn fetch_frames(
    session: &Session,
    index: &Index,
    said: mpsc::UnboundedReceiver<Said>,
    frames: mpsc::Sender<Fetched>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(), NoFrames> {
    let (order_first, first) = mpsc::unbounded_channel();
    let (order_again, again) = mpsc::unbounded_channel();
    let orders = Mutex::new(Orders { again, first });
    let memory = Arc::new(Semaphore::new(PACKED));
    let request = || async {
        loop {
            let Some(order) = orders.lock().await.next().await else { return Ok(()) };
            let number = order.frames.start;
            let Some(bytes) = bytes_of(index, &order.frames) else { continue };
            let cutter = Cutter::new(index, order.frames, frames.clone(), Arc::clone(&memory), progress);
            let total = index.artifact_length();
            match session.part(bytes, total, &order.except, cutter, cancel).await {
                Ok(Taken::Whole) => {}
                Ok(Taken::Abandoned) => return Ok(()),
                Err(Missed::NobodyLeft(_)) if !order.except.is_empty() => {
                    return Err(NoFrames::Wrong(number));
                }
                Err(missed) => return Err(NoFrames::Fetch(missed.into())),
            }
        }
    };
    // Eight in flight, since many are small, and each waits for the network once. They use connections
    // again.
    let four = || async { tokio::try_join!(request(), request(), request(), request()) };
    let requests = async { tokio::try_join!(four(), four()) };
    let ordering = async {
        order(session, index, said, order_first, order_again, progress).await;
        Ok(())
    };
    let everything = async {
        tokio::try_join!(requests, ordering)?;
        let _ = frames.send(Fetched::Everything).await;
        Ok(())
    };
    tokio::select! {
        biased;
        // Also while nothing is asked for.
        () = cancel.cancelled() => Err(NoFrames::Fetch(FetchError::Cancelled)),
        ended = everything => ended,
    }
}

/// Turns what the writing side says into orders, until everything came right or that side is gone.
async fn order(
    session: &Session,
    index: &Index,
    mut said: mpsc::UnboundedReceiver<Said>,
    first: mpsc::UnboundedSender<Order>,
    again: mpsc::UnboundedSender<Order>,
    progress: &Progress,
) {
    let (mut open, mut unjudged) = (true, 0);
    let mut wrong: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    while open || unjudged > 0 {
        let order = |to: &mpsc::UnboundedSender<Order>, order: Order| {
            let bytes = bytes_of(index, &order.frames).unwrap_or_default();
            progress.add_total(bytes.end - bytes.start);
            // Requests that have ended say why themselves.
            let _ = to.send(order);
        };
        match said.recv().await {
            Some(Said::Missing(missing)) => {
                for frames in spans(&missing) {
                    unjudged += frames.len();
                    order(&first, Order { frames, except: Vec::new() });
                }
            }
            Some(Said::Nothing) => open = false,
            Some(Said::Right) => unjudged -= 1,
            Some(Said::Wrong { number, mirror }) => {
                session.sent_wrong_bytes(mirror);
                let mirrors = wrong.entry(number).or_default();
                mirrors.push(mirror);
                order(&again, Order { frames: number..number + 1, except: mirrors.clone() });
            }
            None => return,
        }
    }
}

/// Where frames that follow each other are in the artifact; `None` if there are no such frames.
fn bytes_of(index: &Index, frames: &Range<usize>) -> Option<Range<u64>> {
    let last = index.frame(frames.end.checked_sub(1)?)?;
    Some(index.frame(frames.start)?.artifact.start..last.artifact.end)
}

/// Cuts what arrives into frames.
struct Cutter<'a> {
    index: &'a Index,
    left: Range<usize>,
    frames: mpsc::Sender<Fetched>,
    memory: Arc<Semaphore>,
    progress: &'a Progress,
    mirror: usize,
    /// The first of those left, as far as it came.
    begun: Option<Begun>,
}

struct Begun {
    bytes: Vec<u8>,
    lacking: usize,
    memory: OwnedSemaphorePermit,
}

impl<'a> Cutter<'a> {
    fn new(
        index: &'a Index,
        left: Range<usize>,
        frames: mpsc::Sender<Fetched>,
        memory: Arc<Semaphore>,
        progress: &'a Progress,
    ) -> Self {
        Self { index, left, frames, memory, progress, mirror: 0, begun: None }
    }

    /// Makes room for the next frame; `None` if there is none.
    async fn room(&self) -> Option<Begun> {
        let bytes = bytes_of(self.index, &(self.left.start..self.left.start + 1))?;
        let lacking = usize::try_from(bytes.end - bytes.start).ok()?;
        let permits = u32::try_from(lacking.min(PACKED)).ok()?;
        let memory = Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()?;
        Some(Begun { bytes: Vec::with_capacity(lacking), lacking, memory })
    }
}

impl Outlet for Cutter<'_> {
    /// A frame is from one mirror, so that it is known which one sent it wrong.
    fn begin(&mut self, mirror: usize, offset: u64) -> u64 {
        let is_other = std::mem::replace(&mut self.mirror, mirror) != mirror;
        let Some(begun) = self.begun.take_if(|_| is_other) else { return offset };
        let fetched_again = begun.bytes.len() as u64;
        self.progress.add_total(fetched_again);
        offset - fetched_again
    }

    async fn take(&mut self, mut bytes: Bytes) -> ControlFlow<()> {
        self.progress.add_done(bytes.len() as u64);
        while !bytes.is_empty() && !self.left.is_empty() {
            let mut begun = match self.begun.take() {
                Some(begun) => begun,
                None => match self.room().await {
                    Some(room) => room,
                    None => return ControlFlow::Break(()),
                },
            };
            let part = bytes.len().min(begun.lacking);
            begun.bytes.extend_from_slice(bytes.get(..part).unwrap_or_default());
            begun.lacking -= part;
            bytes.advance(part);
            if begun.lacking > 0 {
                self.begun = Some(begun);
                continue;
            }
            let Begun { bytes, memory, .. } = begun;
            let frame = Packed { number: self.left.start, bytes, mirror: self.mirror, _memory: memory };
            self.left.start += 1;
            if self.frames.send(Fetched::Frame(frame)).await.is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}
