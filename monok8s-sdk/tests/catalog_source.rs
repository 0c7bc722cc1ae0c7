//! Catalogs from URLs and `ConfigMaps`, and everything that servers do instead of serving them.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use monok8s_sdk::api::{CatalogSource, UpgradeReason};
use monok8s_sdk::catalog::source::{CatalogFetcher, ConfigMaps, Fault, FetchLimits, Fetched, SourceError};
use monok8s_sdk::http::{HttpOptions, http_client};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const CATALOG: &str = "images: []\n";

fn fetcher() -> CatalogFetcher {
    // A second test of this process finds it installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = FetchLimits { bytes: 100, ..FetchLimits::default() };
    CatalogFetcher { http: http_client(&HttpOptions::default()).unwrap(), config_maps: None, limits }
}

fn url(url: impl Into<String>) -> CatalogSource {
    CatalogSource { url: Some(url.into()), ..CatalogSource::default() }
}

fn config_map(name: &str) -> CatalogSource {
    CatalogSource { config_map: Some(name.to_owned()), ..CatalogSource::default() }
}

async fn serving(response: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(response).mount(&server).await;
    server
}

/// Fetches, and expects a refusal that says this, with `BASE` for where the server is.
#[track_caller]
fn check_refusal(result: Result<Fetched, SourceError>, base: &str, fault: Fault, expected: &str) {
    let error = result.expect_err("a refusal");
    assert_eq!(error.to_string().replace(base, "BASE"), expected);
    assert_eq!(error.fault(), fault, "{error}");
}

/// A server that sends these bytes to whoever connects, and then waits `hold` before it hangs up.
async fn raw_server(bytes: &'static [u8], hold: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes).await;
                tokio::time::sleep(hold).await;
            });
        }
    });
    address.to_string()
}

#[tokio::test]
async fn fetches_once_and_then_asks_whether_it_changed() {
    let server = MockServer::start().await;
    let unchanged = Mock::given(path("/c.yaml")).and(header("if-none-match", "\"seven\""));
    unchanged.respond_with(ResponseTemplate::new(304)).with_priority(1).mount(&server).await;
    let fresh = Mock::given(path("/c.yaml")).and(header("accept-encoding", "identity"));
    let document = ResponseTemplate::new(200).insert_header("etag", "\"seven\"").set_body_string(CATALOG);
    fresh.respond_with(document).mount(&server).await;
    let other = Mock::given(path("/other.yaml"));
    other.respond_with(ResponseTemplate::new(200).set_body_string("images: [a]")).mount(&server).await;

    let source = url(format!("{}/c.yaml", server.uri()));
    let Fetched::Document { bytes, validator } = fetcher().fetch(&source, None).await.unwrap() else {
        panic!("a document was expected");
    };
    assert_eq!(bytes, CATALOG.as_bytes());
    assert!(validator.is_some());
    assert_eq!(fetcher().fetch(&source, validator.as_ref()).await, Ok(Fetched::NotModified));

    // What was seen of one URL says nothing about another.
    let moved = url(format!("{}/other.yaml", server.uri()));
    match fetcher().fetch(&moved, validator.as_ref()).await.unwrap() {
        Fetched::Document { bytes, .. } => assert_eq!(bytes, b"images: [a]"),
        Fetched::NotModified => panic!("another catalog was taken for the one seen before"),
    }
    let asked = server.received_requests().await.unwrap();
    assert!(
        asked
            .iter()
            .all(|request| request.url.path() != "/other.yaml"
                || !request.headers.contains_key("if-none-match"))
    );
}

#[tokio::test]
async fn says_what_the_server_says_instead() {
    for (status, expected) in [
        (404, "GET BASE/c: the server says 404, so there is nothing under this URL; check spec.catalog.url"),
        (403, "GET BASE/c: the server says 403, so it wants credentials; a catalog must be readable without"),
        (500, "GET BASE/c: the server says 500"),
        (204, "GET BASE/c: the server says 204"),
        // Not asked for: there is no document that could be unchanged.
        (304, "GET BASE/c: the server says 304"),
    ] {
        let server = serving(ResponseTemplate::new(status)).await;
        let result = fetcher().fetch(&url(format!("{}/c?token=secret", server.uri())), None).await;
        check_refusal(result, &server.uri(), Fault::Transient, expected);
    }
}

#[tokio::test]
async fn the_size_limit_is_exact_and_needs_no_announcement() {
    let exact = serving(ResponseTemplate::new(200).set_body_string("x".repeat(100))).await;
    assert!(fetcher().fetch(&url(exact.uri()), None).await.is_ok());

    let expected = "BASE/ is larger than the 100 bytes that a catalog may have; is it an image?";
    let larger = serving(ResponseTemplate::new(200).set_body_string("x".repeat(101))).await;
    let result = fetcher().fetch(&url(larger.uri()), None).await;
    check_refusal(result, &larger.uri(), Fault::Document, expected);

    let endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\n\
        0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n40\r\n\
        0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n";
    let base = format!("http://{}", raw_server(endless, Duration::from_secs(10)).await);
    check_refusal(fetcher().fetch(&url(&base), None).await, &base, Fault::Document, expected);
}

#[tokio::test]
async fn waits_only_so_long() {
    let mut impatient = fetcher();
    impatient.limits.stall = Duration::from_millis(400);
    let expected = "reading BASE/: no answer, or no more of it, within 0.4 s";
    let slow = serving(ResponseTemplate::new(200).set_delay(Duration::from_secs(20))).await;
    check_refusal(impatient.fetch(&url(slow.uri()), None).await, &slow.uri(), Fault::Transient, expected);

    let stuck = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nimages";
    let base = format!("http://{}", raw_server(stuck, Duration::from_secs(20)).await);
    check_refusal(impatient.fetch(&url(&base), None).await, &base, Fault::Transient, expected);

    let mut hurried = fetcher();
    hurried.limits.total = Duration::from_millis(200);
    let expected = "reading BASE/: no answer, or no more of it, within 0.2 s";
    check_refusal(hurried.fetch(&url(&base), None).await, &base, Fault::Transient, expected);
}

#[tokio::test]
async fn half_a_document_is_no_document() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nimages: []\n";
    let base = format!("http://{}", raw_server(cut, Duration::ZERO).await);
    let error = fetcher().fetch(&url(&base), None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.reason(), UpgradeReason::CatalogUnavailable);
}

#[tokio::test]
async fn an_encoded_body_is_not_the_document() {
    let gzip = ResponseTemplate::new(200).insert_header("content-encoding", "gzip").set_body_string(CATALOG);
    let server = serving(gzip).await;
    let result = fetcher().fetch(&url(server.uri()), None).await;
    let expected = "GET BASE/: the server sends it with content encoding \"gzip\"; serve it as it is";
    check_refusal(result, &server.uri(), Fault::Document, expected);
}

#[tokio::test]
async fn follows_a_few_redirects() {
    let server = MockServer::start().await;
    for (from, to) in [("/a", "/b"), ("/b", "/c"), ("/loop", "/loop")] {
        let redirect = ResponseTemplate::new(302).insert_header("location", to);
        Mock::given(path(from)).respond_with(redirect).mount(&server).await;
    }
    let document = ResponseTemplate::new(200).set_body_string(CATALOG);
    Mock::given(path("/c")).respond_with(document).mount(&server).await;

    let found = fetcher().fetch(&url(format!("{}/a", server.uri())), None).await.unwrap();
    assert!(matches!(found, Fetched::Document { bytes, .. } if bytes == CATALOG.as_bytes()));
    let endless = fetcher().fetch(&url(format!("{}/loop", server.uri())), None).await;
    check_refusal(endless, &server.uri(), Fault::Transient, "GET BASE/loop: more than 5 redirects");
}

#[tokio::test]
async fn says_why_there_is_no_connection() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let base = format!("http://{free}");
    let result = fetcher().fetch(&url(&base), None).await;
    check_refusal(result, &base, Fault::Transient, "GET BASE/: Connection refused (os error 111)");

    let plain = raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n", Duration::ZERO).await;
    let base = format!("https://{plain}");
    let result = fetcher().fetch(&url(&base), None).await;
    let expected = "GET BASE/: received corrupt message of type InvalidContentType";
    check_refusal(result, &base, Fault::Transient, expected);
}

#[tokio::test]
async fn takes_an_inline_catalog_as_it_is() {
    let inline = |text: String| CatalogSource { inline: Some(text), ..CatalogSource::default() };
    let expected = Fetched::Document { bytes: CATALOG.into(), validator: None };
    assert_eq!(fetcher().fetch(&inline(CATALOG.to_owned()), None).await, Ok(expected));
    let result = fetcher().fetch(&inline("x".repeat(101)), None).await;
    let expected = "the inline catalog is larger than the 100 bytes that a catalog may have; is it an image?";
    check_refusal(result, "no base", Fault::Document, expected);

    let both = CatalogSource { inline: Some(CATALOG.to_owned()), ..url("https://example.com") };
    for (source, found) in [(both, 2), (CatalogSource::default(), 0)] {
        let result = fetcher().fetch(&source, None).await;
        let expected =
            format!("spec.catalog names {found} sources; give exactly one of inline, url and configMap");
        check_refusal(result, "no base", Fault::Document, &expected);
    }
}

/// An API server that answers for one `ConfigMap`, and a fetcher that asks it.
async fn cluster(status: u16, body: serde_json::Value) -> (MockServer, CatalogFetcher) {
    let mut fetcher = fetcher();
    let server = MockServer::start().await;
    let get = Mock::given(method("GET")).and(path("/api/v1/namespaces/mono-system/configmaps/images-cm"));
    get.respond_with(ResponseTemplate::new(status).set_body_json(body)).mount(&server).await;
    let config = kube::Config::new(server.uri().parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    fetcher.config_maps = Some(ConfigMaps { client, namespace: "mono-system".to_owned() });
    (server, fetcher)
}

fn config_map_with(data: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": "images-cm", "namespace": "mono-system", "resourceVersion": "41"},
    })
}

#[tokio::test]
async fn reads_the_one_document_of_a_config_map() {
    for data in [
        json!({"catalog.yaml": CATALOG}),
        json!({"images.yaml": CATALOG}),
        json!({"catalog.yaml": CATALOG, "notes": "none"}),
        json!({"images.yaml": CATALOG, "images.yaml.minisig": "signature"}),
    ] {
        let (_server, fetcher) = cluster(200, config_map_with(&data)).await;
        let Fetched::Document { bytes, validator } =
            fetcher.fetch(&config_map("images-cm"), None).await.unwrap()
        else {
            panic!("a document was expected");
        };
        assert_eq!(bytes, CATALOG.as_bytes(), "{data}");
        let again = fetcher.fetch(&config_map("images-cm"), validator.as_ref()).await;
        assert_eq!(again, Ok(Fetched::NotModified));
    }
}

#[tokio::test]
async fn a_config_map_that_is_not_clear_is_refused() {
    for (data, has) in [
        (json!({"a.yaml": CATALOG, "b.yaml": CATALOG}), "the keys a.yaml, b.yaml"),
        (json!({}), "no text"),
        (json!({"catalog.yaml.minisig": "signature"}), "no text"),
    ] {
        let (_server, fetcher) = cluster(200, config_map_with(&data)).await;
        let result = fetcher.fetch(&config_map("images-cm"), None).await;
        let expected =
            format!("ConfigMap mono-system/images-cm has {has}; put the catalog under catalog.yaml");
        check_refusal(result, "no base", Fault::Document, &expected);
    }
    let (_server, fetcher) = cluster(200, config_map_with(&json!({"catalog.yaml": "x".repeat(101)}))).await;
    let result = fetcher.fetch(&config_map("images-cm"), None).await;
    let expected = "ConfigMap mono-system/images-cm is larger than the 100 bytes that a catalog may have; \
                    is it an image?";
    check_refusal(result, "no base", Fault::Document, expected);
}

#[tokio::test]
async fn a_config_map_that_cannot_be_read_says_what_to_do() {
    let status = |code: u16, reason: &str, message: &str| {
        json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure",
            "code": code, "reason": reason, "message": message,
        })
    };
    for (code, reason, message, expected) in [
        (
            403,
            "Forbidden",
            "configmaps \"images-cm\" is forbidden: User \"system:serviceaccount:mono-system:controller\" \
             cannot get resource \"configmaps\" in API group \"\" in the namespace \"mono-system\"",
            "reading ConfigMap mono-system/images-cm is forbidden to ServiceAccount mono-system/controller: \
             add to its ClusterRole or Role the rule \
             {apiGroups: [\"\"], resources: [\"configmaps\"], verbs: [\"get\"]}",
        ),
        (
            403,
            "Forbidden",
            "no",
            "reading ConfigMap mono-system/images-cm is forbidden: add to its ClusterRole or Role the rule \
             {apiGroups: [\"\"], resources: [\"configmaps\"], verbs: [\"get\"]}",
        ),
        (
            404,
            "NotFound",
            "configmaps \"images-cm\" not found",
            "there is no ConfigMap mono-system/images-cm; create it in this namespace, the controller's",
        ),
        (500, "InternalError", "etcd is away", "reading ConfigMap mono-system/images-cm: etcd is away"),
    ] {
        let (_server, fetcher) = cluster(code, status(code, reason, message)).await;
        let result = fetcher.fetch(&config_map("images-cm"), None).await;
        check_refusal(result, "no base", Fault::Transient, expected);
    }
    let result = fetcher().fetch(&config_map("images-cm"), None).await;
    let expected = "ConfigMap images-cm cannot be read without a cluster; give a url or an inline catalog";
    check_refusal(result, "no base", Fault::Document, expected);
}
