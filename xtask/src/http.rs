//! A file server for tests and the demo that can misbehave: HTTP/1.1 with ranges and validators
//! (RFC 9110, sections 13 and 14), a log of what was asked, and faults by path.

mod answer;
mod request;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use monok8s_sdk::digest::Sha256Digest;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub use request::Request;

use answer::{Answer, Span, Subject};

const CHUNK: usize = 64 * 1024;
const SENDFILE_STEP: usize = 1 << 20;
/// How often a throttled answer may send, and how much at most.
const TICK: Duration = Duration::from_millis(20);
const LARGEST_CHUNK: usize = 1 << 20;

/// A way for an answer to go wrong. Several on one path combine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes after this much of the body.
    CutAfter {
        /// Bytes of the body that are still sent.
        bytes: u64,
    },
    /// After this much of the body nothing more comes, and the connection stays open.
    StallAfter {
        /// Bytes of the body that are still sent.
        bytes: u64,
    },
    /// The body comes slowly.
    Throttle {
        /// Speed.
        bytes_per_second: u64,
    },
    /// `Content-Length` is off by this much; the body is sent whole, then the connection closes.
    WrongLength {
        /// Added to the true length.
        off_by: i64,
    },
    /// No file, only this status: 404, 500, 503 and the like.
    Status(u16),
    /// `Range` is ignored: 200 and the whole file.
    IgnoreRange,
    /// A 206 that starts this much later than it was asked to, and says so in `Content-Range`.
    ShiftRange {
        /// Bytes left out.
        by: u64,
    },
    /// The validator is another one for each answer, as if the file were replaced all the time.
    ChangeEtag,
    /// 302 to this address.
    Redirect {
        /// Value of `Location`.
        to: String,
    },
    /// The bytes of another path, under this one's name.
    ServeInstead {
        /// Path whose content is sent.
        path: String,
    },
}

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Until [`FileServer::heal`].
    Always,
    /// For this many requests.
    First(u32),
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Arc<[u8]>),
    File(PathBuf),
}

#[derive(Debug, Default)]
struct State {
    contents: BTreeMap<String, Content>,
    directories: BTreeMap<String, PathBuf>,
    faults: BTreeMap<String, Vec<(Fault, Times)>>,
    log: Vec<Request>,
}

/// The server. Dropping it closes every connection.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl FileServer {
    /// Listens on a free port of the loopback interface.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, accepting })
    }

    /// The address of a path, which starts with `/`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The same for those who know the loopback interface as `host`.
    #[must_use]
    pub fn url_at(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.address.port())
    }

    /// Serves a file, as it is at the time of each request.
    pub fn serve_file(&self, path: &str, file: &Path) {
        self.state().contents.insert(path.to_owned(), Content::File(file.to_owned()));
    }

    /// Serves every file below `directory`, at `prefix` (which ends with `/`) and its path in there.
    pub fn serve_directory(&self, prefix: &str, directory: &Path) {
        self.state().directories.insert(prefix.to_owned(), directory.to_owned());
    }

    /// Serves bytes; replaces what was there.
    pub fn serve_bytes(&self, path: &str, bytes: impl Into<Arc<[u8]>>) {
        self.state().contents.insert(path.to_owned(), Content::Bytes(bytes.into()));
    }

    /// Makes requests of a path go wrong, in addition to the faults it has already.
    pub fn inject(&self, path: &str, fault: Fault, times: Times) {
        self.state().faults.entry(path.to_owned()).or_default().push((fault, times));
    }

    /// Takes every fault from a path.
    pub fn heal(&self, path: &str) {
        self.state().faults.remove(path);
    }

    /// Every request so far, in the order in which the answers began.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state().log.clone()
    }

    /// Bytes of bodies sent for a path so far, also in answers under way.
    #[must_use]
    pub fn bytes_served(&self, path: &str) -> u64 {
        self.state().log.iter().filter(|request| request.path == path).map(|request| request.bytes_sent).sum()
    }

    /// How many requests there were so far, and how many bytes of bodies were sent for all of them.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let state = self.state();
        (state.log.len() as u64, state.log.iter().map(|request| request.bytes_sent).sum())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Every critical section leaves the state whole, so a panic elsewhere does not matter here.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Connections end with this task: the set aborts them when it is dropped.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // A client that goes away is its own affair; it shows in the log as bytes not sent.
            let _ = converse(stream, &state).await;
        });
    }
}

/// Answers requests until the client closes or an answer ends the connection.
async fn converse(stream: TcpStream, state: &Mutex<State>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(request) = request::read(&mut stream).await? {
        let (answer, content, entry) = lock(state).answer(request)?;
        send(stream.get_mut(), &answer, content, |sent| {
            if let Some(request) = lock(state).log.get_mut(entry) {
                request.bytes_sent += sent;
            }
        })
        .await?;
        if answer.closes() {
            break;
        }
    }
    Ok(stream.get_mut().shutdown().await?)
}

impl State {
    /// Decides the answer, notes the request, and gives the entry's place in the log.
    fn answer(&mut self, mut request: Request) -> Result<(Answer, Option<Content>, usize)> {
        let faults = self.take_faults(&request.path);
        let source = faults.iter().find_map(|fault| match fault {
            Fault::ServeInstead { path } => Some(path.as_str()),
            _ => None,
        });
        let content = self.content(source.unwrap_or(&request.path));
        let subject = content.as_ref().map(|content| content.subject(self.log.len(), &faults)).transpose()?;
        let answer = Answer::to(&request, subject.as_ref(), &faults);
        request.status = answer.status;
        self.log.push(request);
        Ok((answer, content, self.log.len() - 1))
    }

    fn content(&self, path: &str) -> Option<Content> {
        let in_directory = || {
            let (prefix, directory) =
                self.directories.iter().find(|(prefix, _)| path.starts_with(prefix.as_str()))?;
            let relative = Path::new(path.get(prefix.len()..)?);
            let inside = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            let file = directory.join(relative);
            (inside && file.is_file()).then_some(Content::File(file))
        };
        self.contents.get(path).cloned().or_else(in_directory)
    }

    /// The faults of one request; those that are for a number of requests are used up by it.
    fn take_faults(&mut self, path: &str) -> Vec<Fault> {
        let Some(faults) = self.faults.get_mut(path) else { return Vec::new() };
        let taken = faults.iter().map(|(fault, _)| fault.clone()).collect();
        faults.retain_mut(|(_, times)| match times {
            Times::Always => true,
            Times::First(left) => {
                *left = left.saturating_sub(1);
                *left > 0
            }
        });
        taken
    }
}

impl Content {
    /// Length and validator. A file's follow from its size and time, as usual for static files.
    fn subject(&self, request: usize, faults: &[Fault]) -> Result<Subject> {
        let (length, mut tag) = match self {
            Self::Bytes(bytes) => (u64::try_from(bytes.len())?, Sha256Digest::of(bytes).hex()),
            Self::File(path) => {
                let found =
                    std::fs::metadata(path).with_context(|| format!("cannot serve {}", path.display()))?;
                let modified = found.modified()?.duration_since(std::time::UNIX_EPOCH)?;
                (found.len(), format!("{:x}-{:x}", found.len(), modified.as_nanos()))
            }
        };
        if faults.contains(&Fault::ChangeEtag) {
            tag = format!("{tag}-{request}");
        }
        Ok(Subject { length, etag: format!("\"{tag}\"") })
    }

    fn reader(&self, offset: u64) -> io::Result<Box<dyn io::Read + Send>> {
        match self {
            Self::Bytes(bytes) => {
                let mut cursor = io::Cursor::new(Arc::clone(bytes));
                cursor.set_position(offset);
                Ok(Box::new(cursor))
            }
            Self::File(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok(Box::new(file))
            }
        }
    }
}

/// Sends a part of a file without a copy of it in this process: an updater that is measured must not
/// wait for its server.
async fn send_file(stream: &TcpStream, file: &File, span: Span, sent: impl Fn(u64)) -> Result<()> {
    let (mut offset, end) = (span.offset, span.offset + span.length);
    while offset < end {
        let step = usize::try_from(end - offset)?.min(SENDFILE_STEP);
        stream.writable().await?;
        let sending = stream.try_io(tokio::io::Interest::WRITABLE, || {
            Ok(rustix::fs::sendfile(stream, file, Some(&mut offset), step)?)
        });
        match sending {
            // The file became shorter.
            Ok(0) => break,
            Ok(bytes) => sent(u64::try_from(bytes)?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn send(
    stream: &mut TcpStream,
    answer: &Answer,
    content: Option<Content>,
    sent: impl Fn(u64),
) -> Result<()> {
    stream.write_all(answer.head.as_bytes()).await?;
    let Some(content) = content.filter(|_| answer.body.length > 0) else { return Ok(()) };
    if let (Content::File(path), None, false) = (&content, answer.bytes_per_second, answer.stalls) {
        return send_file(stream, &File::open(path)?, answer.body, sent).await;
    }
    let mut reader = content.reader(answer.body.offset)?.take(answer.body.length);
    let pace = answer
        .bytes_per_second
        .map(|speed| usize::try_from(speed / 50).unwrap_or(CHUNK).clamp(1, LARGEST_CHUNK));
    let mut chunk = vec![0; pace.unwrap_or(CHUNK)];
    loop {
        let read = reader.read(&mut chunk)?;
        let bytes = chunk.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        stream.write_all(bytes).await?;
        sent(u64::try_from(read)?);
        if pace.is_some() {
            tokio::time::sleep(TICK).await;
        }
    }
    if answer.stalls {
        std::future::pending::<()>().await;
    }
    Ok(())
}
