//! A web server that misbehaves as it is told to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(5);

/// A request as the server saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range_from: Option<usize>,
    /// The last byte of the range, if it names one.
    pub(crate) range_last: Option<usize>,
    pub(crate) if_range: Option<String>,
    pub(crate) accept_encoding: Option<String>,
}

impl Request {
    /// What it asks for, if that is a part.
    pub(crate) fn range(&self) -> Option<Range<usize>> {
        Some(self.range_from?..self.range_last.map_or(usize::MAX, |last| last + 1))
    }

    /// The same for all of the file.
    pub(crate) fn of_all(&self) -> Self {
        Self { range_from: None, range_last: None, if_range: None, ..self.clone() }
    }
}

/// What is sent back: bytes as they go on the wire.
pub(crate) struct Reply {
    pub(crate) wire: Vec<u8>,
    /// Keep the connection open and silent for this long before anything else.
    pub(crate) hang: Duration,
    /// Whether the connection is closed then.
    pub(crate) close: bool,
}

impl Reply {
    /// The connection is kept if the length that is announced is that of the body.
    pub(crate) fn new(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let length = body.len().to_string();
        let close = !headers.contains(&("Content-Length", length.as_str()));
        let mut wire = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in headers.iter().chain(close.then_some(&("Connection", "close"))) {
            wire.extend(format!("{name}: {value}\r\n").bytes());
        }
        wire.extend(b"\r\n");
        wire.extend(body);
        Self { wire, hang: Duration::ZERO, close }
    }

    pub(crate) fn status(status: &str) -> Self {
        Self::new(status, &[("Content-Length", "0")], b"")
    }

    /// `file` as an honest server sends it, ranges and If-Range included.
    pub(crate) fn file(request: &Request, file: &[u8], etag: &str) -> Self {
        let current = request.if_range.as_deref().is_none_or(|if_range| if_range == etag);
        match request.range_from.filter(|_| current) {
            Some(from) if from >= file.len() => Self::status("416 Range Not Satisfiable"),
            Some(from) => {
                let last = request.range_last.unwrap_or(usize::MAX).min(file.len() - 1);
                let range = format!("bytes {from}-{last}/{}", file.len());
                let length = (last + 1 - from).to_string();
                let headers =
                    [("Content-Length", length.as_str()), ("Content-Range", &range), ("ETag", etag)];
                Self::new("206 Partial Content", &headers, &file[from..=last])
            }
            None => {
                let length = file.len().to_string();
                Self::new("200 OK", &[("Content-Length", length.as_str()), ("ETag", etag)], file)
            }
        }
    }

    /// The same, but the connection breaks after `bytes` of the whole reply.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.close |= bytes < self.wire.len();
        self.wire.truncate(bytes);
        self
    }

    /// The same, but the connection is silent for so long behind it.
    pub(crate) fn hang(self, hang: Duration) -> Self {
        Self { hang, ..self }
    }
}

/// Serves on a loopback port until dropped, each connection on a thread of its own.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

type Answering = dyn Fn(usize, &Request) -> Reply + Send + Sync;

struct Shared {
    reply: Box<Answering>,
    requests: Mutex<Vec<Request>>,
    connections: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
    stop: AtomicBool,
}

impl Server {
    /// `reply` is told the number of the request, from 0, and the request.
    pub(crate) fn start(reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            reply: Box::new(reply),
            requests: Mutex::default(),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let connection = connection.unwrap();
                    connection.set_read_timeout(Some(IDLE)).unwrap();
                    connection.set_nodelay(true).unwrap();
                    shared.connections.lock().unwrap().push(connection.try_clone().unwrap());
                    shared.accepted.fetch_add(1, Ordering::SeqCst);
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.serve(&connection));
                }
            })
        };
        Self { address, shared, thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> reqwest::Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, mut connection: &TcpStream) {
        let mut lines = BufReader::new(connection);
        while let Some(request) = read_request(&mut lines) {
            let number = {
                let mut requests = self.requests.lock().unwrap();
                requests.push(request.clone());
                requests.len() - 1
            };
            let reply = (self.reply)(number, &request);
            // The client may hang up first.
            let is_sent = connection.write_all(&reply.wire).is_ok();
            self.wait(reply.hang);
            if reply.close || !is_sent {
                break;
            }
        }
        let _ = connection.shutdown(Shutdown::Both);
    }

    /// Not longer than there is a server.
    fn wait(&self, hang: Duration) {
        let began = Instant::now();
        while began.elapsed() < hang && !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(hang.min(Duration::from_millis(20)));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    let mut next = || {
        line.clear();
        let length = reader.read_line(&mut line).ok()?;
        (length > 0).then(|| line.trim_end().to_owned())
    };
    let path = next()?.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, ..Request::default() };
    loop {
        let line = next()?;
        if line.is_empty() {
            return Some(request);
        }
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (from, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                request.range_from = from.parse().ok();
                request.range_last = last.parse().ok();
            }
            "if-range" => request.if_range = Some(value.to_owned()),
            "accept-encoding" => request.accept_encoding = Some(value.to_owned()),
            _ => {}
        }
    }
}
