//! A web server that misbehaves as it is told to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use monok8s_sdk::http::{HttpOptions, http_client};
use monok8s_sdk::image::{Download, DownloadLimits};

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

/// What is sent back: bytes as they go on the wire, after which the connection is closed.
pub(crate) struct Reply {
    pub(crate) wire: Vec<u8>,
    /// Keep the connection open and silent for this long before closing it.
    pub(crate) hang: Duration,
}

impl Reply {
    pub(crate) fn new(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut wire = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
        for (name, value) in headers {
            wire.extend(format!("{name}: {value}\r\n").bytes());
        }
        wire.extend(b"\r\n");
        wire.extend(body);
        Self { wire, hang: Duration::ZERO }
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
        self.wire.truncate(bytes);
        self
    }
}

/// Serves on a loopback port until dropped.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `reply` is told the number of the request, from 0, and the request.
    pub(crate) fn start(reply: impl Fn(usize, &Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (requests, stop) = (Arc::clone(&requests), Arc::clone(&stop));
            std::thread::spawn(move || {
                for connection in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let mut connection = connection.unwrap();
                    let Some(request) = read_request(&connection) else { continue };
                    let number = {
                        let mut requests = requests.lock().unwrap();
                        requests.push(request.clone());
                        requests.len() - 1
                    };
                    let reply = reply(number, &request);
                    // The client may hang up first.
                    let _ = connection.write_all(&reply.wire);
                    std::thread::sleep(reply.hang);
                    let _ = connection.shutdown(Shutdown::Both);
                }
            })
        };
        Self { address, requests, stop, thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> reqwest::Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_request(connection: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(connection).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, ..Request::default() };
    for line in lines {
        let line = line.ok()?;
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
    None
}

/// A download from any of `urls` that is soon out of patience.
pub(crate) fn download(urls: impl IntoIterator<Item = reqwest::Url>) -> Download {
    // Several tests may come here first; one of them installs the provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = DownloadLimits {
        total: Duration::from_secs(60),
        stall: Duration::from_millis(1500),
        attempts: 4,
        first_backoff: Duration::from_millis(5),
        longest_backoff: Duration::from_millis(20),
        rate: None,
    };
    Download::new(http_client(&HttpOptions::default()).unwrap(), urls).with_limits(limits)
}
