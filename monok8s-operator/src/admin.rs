//! `/healthz`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// The planner looks at the fleet at least every minute; after this long without a look it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(300);
/// How long a client may take to send its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the probes are told.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    readiness: Readiness,
    last_look: Option<Instant>,
}

/// Whether the operator does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It would, if it held the Lease.
    StandingBy,
    /// Not yet, and why.
    Waiting(String),
}

impl Default for Health {
    fn default() -> Self {
        let readiness = Readiness::Waiting("starting".to_owned());
        Self { state: Mutex::new(State { readiness, last_look: None }) }
    }
}

impl Health {
    /// Sets what `/readyz` says.
    pub fn set(&self, readiness: Readiness) {
        self.lock().readiness = readiness;
    }

    /// The planner has looked at the fleet.
    pub fn looked(&self) {
        self.lock().last_look = Some(Instant::now());
    }

    fn live(&self) -> Result<String, String> {
        match self.lock().last_look {
            Some(at) if at.elapsed() > HANGS_AFTER => {
                Err(format!("the planner last looked at the fleet {}s ago", at.elapsed().as_secs()))
            }
            _ => Ok("ok".to_owned()),
        }
    }

    fn ready(&self) -> Result<String, String> {
        match &self.lock().readiness {
            Readiness::Ready => Ok("ok".to_owned()),
            Readiness::StandingBy => Ok("standing by for the Lease".to_owned()),
            Readiness::Waiting(why) => Err(why.clone()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the admin server cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for /healthz, /readyz and /metrics: choose another --metrics-addr")]
pub struct AdminError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// The bound, not yet serving admin server.
pub struct Admin {
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Admin {
    /// Binds the address, so that a taken port is told at the start.
    pub async fn bind(
        address: SocketAddr,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address).await.map_err(|source| AdminError { address, source })?;
        Ok(Self { listener, health, metrics })
    }

    /// Where it listens; the real port if port 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped.
    pub async fn serve(self) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of file descriptors, most likely; spinning would not give any back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (health, metrics) = (Arc::clone(&self.health), Arc::clone(&self.metrics));
            tokio::spawn(async move {
                let answer = |request: Request<Incoming>| {
                    let response = answer(request.method(), request.uri().path(), &health, &metrics);
                    async { Ok::<_, Infallible>(response) }
                };
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the admin server broke");
                }
            });
        }
    }
}

fn answer(method: &Method, path: &str, health: &Health, metrics: &Metrics) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only".to_owned());
    }
    match path {
        "/healthz" => probe(health.live()),
        "/readyz" => probe(health.ready()),
        "/metrics" => match metrics.text() {
            Ok(body) => {
                let mut response = text(StatusCode::OK, body);
                let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format));
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => text(StatusCode::NOT_FOUND, "/healthz, /readyz and /metrics are served".to_owned()),
    }
}

fn probe(result: Result<String, String>) -> Response<Full<Bytes>> {
    match result {
        Ok(words) => text(StatusCode::OK, words),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let url = format!("http://{address}{path}");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let response = reqwest::get(url).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    #[tokio::test]
    async fn probes_and_metrics_are_served() {
        let health = Arc::new(Health::default());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::bind(loopback, Arc::clone(&health), Arc::default()).await.unwrap();
        let address = admin.address().unwrap();
        let server = tokio::spawn(admin.serve());

        assert_eq!(get(address, "/healthz").await, (200, "ok".to_owned()));
        health.set(Readiness::Waiting("waiting for the CRDs".to_owned()));
        assert_eq!(get(address, "/readyz").await, (503, "waiting for the CRDs".to_owned()));
        health.set(Readiness::StandingBy);
        assert_eq!(get(address, "/readyz").await.0, 200);
        let (status, body) = get(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("monok8s_operator_leading 0") && body.ends_with("# EOF\n"), "{body}");
        assert_eq!(get(address, "/").await.0, 404);
        server.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_planner_that_hangs_is_not_alive() {
        let health = Health::default();
        tokio::time::advance(HANGS_AFTER * 2).await;
        assert!(health.live().is_ok(), "a standby never looks");
        health.looked();
        assert!(health.live().is_ok());
        tokio::time::advance(HANGS_AFTER + Duration::from_secs(1)).await;
        assert!(health.live().is_err());
    }
}
