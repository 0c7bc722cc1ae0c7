use std::fs;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, header, redirect};
use xtask::controlplane::install_tls_provider;
use xtask::http::{Fault, FileServer, Times};

const LENGTH: usize = 300_000;

fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

async fn server() -> (FileServer, Client) {
    install_tls_provider();
    let server = FileServer::start().await.unwrap();
    server.serve_bytes("/f", content());
    (server, Client::builder().redirect(redirect::Policy::none()).build().unwrap())
}

async fn get(client: &Client, server: &FileServer, range: Option<&str>) -> Response {
    let mut request = client.get(server.url("/f"));
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    request.send().await.unwrap()
}

/// The bytes that arrive before the body ends or fails, and whether it failed.
async fn drain(mut response: Response) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, false),
            Err(_) => return (bytes, true),
        }
    }
}

#[tokio::test]
async fn an_honest_server_serves_ranges_and_logs_them() {
    let (server, client) = server().await;
    let whole = get(&client, &server, None).await;
    let etag = whole.headers()[header::ETAG].clone();
    assert_eq!(whole.content_length(), Some(LENGTH as u64));
    assert_eq!(drain(whole).await, (content(), false));

    let part = get(&client, &server, Some("bytes=1000-")).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()[header::ETAG], etag);
    assert_eq!(drain(part).await, (content()[1000..].to_vec(), false));

    let middle = get(&client, &server, Some("bytes=1000-1999")).await;
    assert_eq!(middle.headers()[header::CONTENT_RANGE], format!("bytes 1000-1999/{LENGTH}"));
    assert_eq!(middle.content_length(), Some(1000));
    assert_eq!(drain(middle).await, (content()[1000..2000].to_vec(), false));

    let unchanged = client.get(server.url("/f")).header(header::IF_NONE_MATCH, etag).send().await.unwrap();
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
    let head = client.head(server.url("/f")).send().await.unwrap();
    assert_eq!(head.headers()[header::CONTENT_LENGTH], LENGTH.to_string());
    assert_eq!(client.get(server.url("/g")).send().await.unwrap().status(), StatusCode::NOT_FOUND);

    let log = server.requests();
    let statuses: Vec<u16> = log.iter().map(|request| request.status).collect();
    assert_eq!(statuses, [200, 206, 206, 304, 200, 404]);
    assert_eq!(log[1].range.as_deref(), Some("bytes=1000-"));
    assert_eq!(server.bytes_served("/f"), (2 * LENGTH) as u64);
}

#[tokio::test]
async fn a_file_is_served_as_it_is_now() {
    let (server, client) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "before").unwrap();
    server.serve_file("/f", &path);
    let before = get(&client, &server, None).await.headers()[header::ETAG].clone();
    fs::write(&path, "and after").unwrap();
    let after = get(&client, &server, None).await;
    assert_ne!(after.headers()[header::ETAG], before);
    assert_eq!(after.text().await.unwrap(), "and after");
}

#[tokio::test]
async fn bodies_that_end_early_or_never() {
    let (server, client) = server().await;
    server.inject("/f", Fault::CutAfter { bytes: 100_000 }, Times::First(1));
    let (bytes, failed) = drain(get(&client, &server, None).await).await;
    assert!(failed);
    assert_eq!(bytes, content()[..100_000]);
    assert_eq!(drain(get(&client, &server, None).await).await, (content(), false), "the fault is used up");

    server.inject("/f", Fault::WrongLength { off_by: 10 }, Times::First(1));
    let longer = get(&client, &server, None).await;
    assert_eq!(longer.content_length(), Some(LENGTH as u64 + 10));
    assert_eq!(drain(longer).await, (content(), true));
    server.inject("/f", Fault::WrongLength { off_by: -10 }, Times::First(1));
    let (shorter, failed) = drain(get(&client, &server, None).await).await;
    assert_eq!((shorter.len(), failed), (LENGTH - 10, false));

    server.inject("/f", Fault::StallAfter { bytes: 50_000 }, Times::Always);
    let stalled =
        tokio::time::timeout(Duration::from_millis(500), drain(get(&client, &server, None).await)).await;
    assert!(stalled.is_err(), "no end");
    assert_eq!(server.requests().last().unwrap().bytes_sent, 50_000);
    server.heal("/f");
    server.inject("/f", Fault::Throttle { bytes_per_second: 1_000_000 }, Times::Always);
    let started = std::time::Instant::now();
    assert_eq!(drain(get(&client, &server, None).await).await, (content(), false));
    assert!(started.elapsed() > Duration::from_millis(200), "{:?}", started.elapsed());
    server.heal("/f");
    server.inject("/f", Fault::Throttle { bytes_per_second: 10_000_000 }, Times::Always);
    assert_eq!(drain(get(&client, &server, None).await).await, (content(), false), "a fast one");
}

#[tokio::test]
async fn answers_about_the_wrong_thing() {
    let (server, client) = server().await;
    for _ in 0..2 {
        server.inject("/f", Fault::Status(500), Times::First(1));
    }
    server.inject("/f", Fault::Status(503), Times::First(2));
    assert_eq!(get(&client, &server, None).await.status(), 500);
    assert_eq!(get(&client, &server, None).await.status(), 503);
    assert_eq!(get(&client, &server, None).await.status(), 200);

    server.inject("/f", Fault::IgnoreRange, Times::First(1));
    let ignored = get(&client, &server, Some("bytes=5-")).await;
    assert_eq!((ignored.status(), ignored.content_length()), (StatusCode::OK, Some(LENGTH as u64)));
    server.inject("/f", Fault::ShiftRange { by: 7 }, Times::First(1));
    let shifted = get(&client, &server, Some("bytes=5-")).await;
    assert_eq!(shifted.headers()[header::CONTENT_RANGE], format!("bytes 12-{}/{LENGTH}", LENGTH - 1));
    assert_eq!(drain(shifted).await.0, content()[12..]);

    server.inject("/f", Fault::ChangeEtag, Times::Always);
    let etag = get(&client, &server, None).await.headers()[header::ETAG].clone();
    let resumed =
        client.get(server.url("/f")).header(header::RANGE, "bytes=5-").header(header::IF_RANGE, etag);
    assert_eq!(resumed.send().await.unwrap().status(), StatusCode::OK, "the file has changed");
    server.heal("/f");

    server.serve_bytes("/other", "other".as_bytes());
    server.inject("/f", Fault::ServeInstead { path: "/other".to_owned() }, Times::First(1));
    assert_eq!(get(&client, &server, None).await.text().await.unwrap(), "other");
    server.inject("/f", Fault::Redirect { to: server.url("/other") }, Times::First(1));
    let redirected = get(&client, &server, None).await;
    assert_eq!(redirected.status(), StatusCode::FOUND);
    assert_eq!(redirected.headers()[header::LOCATION], server.url("/other"));
}
