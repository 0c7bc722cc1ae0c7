//! Several mirrors, some of which are down, wrong, slow or without ranges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::machine::Machine;
use common::release::{FRAME, Release, asked, image};
use common::{LIMITS, Reply, Request, Server, download};
use monok8s_sdk::api::FailureReason;
use monok8s_sdk::image::{Cancel, Delivery, DownloadLimits, ImageError, Progress, Retry, Source, WriteError};
use reqwest::Url;

const PATH: &str = "/rootfs.ext4.zst";
/// Requests that a download has in flight: what one mirror is like is found out by so many at most.
const IN_FLIGHT: usize = 8;
/// Patience for everything but silence, so that nothing but the deadline ends a download.
const PATIENT: DownloadLimits =
    DownloadLimits { attempts: u32::MAX, stall: Duration::from_millis(400), ..LIMITS };

/// A release of this many frames that do not compress, and a machine that lacks all of them or, so that
/// each is asked for by itself, every other one.
struct Scene {
    release: Release,
    machine: Machine,
    index: Server,
}

impl Scene {
    fn with(frames: usize, in_place: impl Fn(usize) -> bool) -> Self {
        let blocks = frames as u64 * (FRAME / 4096) as u64;
        let release = Release::of(image(1..=blocks));
        let mut slot = vec![0; release.image.len()];
        for number in (0..frames).filter(|number| in_place(*number)) {
            let bytes = number * FRAME..(number + 1) * FRAME;
            slot[bytes.clone()].copy_from_slice(&release.image[bytes]);
        }
        Self { machine: Machine::new(&[], &slot), index: release.serve(), release }
    }

    fn empty(frames: usize) -> Self {
        Self::with(frames, |_| false)
    }

    fn scattered(frames: usize) -> Self {
        Self::with(frames, |number| number % 2 == 1)
    }

    fn honest(&self) -> Server {
        let artifact = self.release.artifact.clone();
        Server::start(move |_, request| Reply::file(request, &artifact, "\"honest\""))
    }

    fn without_ranges(&self) -> Server {
        let artifact = self.release.artifact.clone();
        Server::start(move |_, request| Reply::file(&request.of_all(), &artifact, "\"whole\""))
    }

    /// Sends the artifact with a bit of this frame flipped.
    fn flipping(&self, frame: usize) -> Server {
        let artifact = self.flipped(frame);
        Server::start(move |_, request| Reply::file(request, &artifact, "\"flipped\""))
    }

    fn flipped(&self, frame: usize) -> Vec<u8> {
        let mut artifact = self.release.artifact.clone();
        artifact[self.release.frames()[frame].start + 1000] ^= 4;
        artifact
    }

    fn source(&self, mirrors: impl IntoIterator<Item = Url>, limits: DownloadLimits) -> Source {
        let artifact = download(mirrors).with_limits(limits);
        let index = download([self.index.url("/index")]).with_limits(limits);
        self.machine.indexed(artifact, index, self.release.checksum())
    }

    async fn flash(&self, mirrors: &[&Server]) -> Result<Delivery, ImageError> {
        self.flash_from(mirrors.iter().map(|mirror| mirror.url(PATH)), PATIENT).await
    }

    /// What is in the slot then is the image.
    async fn flash_from(
        &self,
        mirrors: impl IntoIterator<Item = Url>,
        limits: DownloadLimits,
    ) -> Result<Delivery, ImageError> {
        let done = self.machine.flash(self.source(mirrors, limits), self.release.expected()).await?;
        self.machine.holds(&self.release.image);
        Ok(done.delivery)
    }

    /// How often each frame was asked for.
    fn times_asked(&self, mirrors: &[&Server]) -> Vec<usize> {
        let ranges: Vec<Range<usize>> = mirrors.iter().flat_map(|mirror| asked(mirror)).collect();
        let times = |frame: Range<usize>| {
            ranges.iter().filter(|range| range.start < frame.end && frame.start < range.end).count()
        };
        self.release.frames().into_iter().map(times).collect()
    }
}

/// Where nobody listens.
fn down() -> Url {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{free}{PATH}").parse().unwrap()
}

fn silent() -> Server {
    Server::start(|_, _| Reply::new("200 OK", &[], b"").cut(0).hang(Duration::from_secs(60)))
}

fn whole_requests(server: &Server) -> usize {
    server.requests().iter().filter(|request| request.range().is_none()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mirror_is_found_out_once_and_not_by_every_range() {
    let scene = Scene::scattered(128);
    let (silent, gone) = (silent(), Server::start(|_, _| Reply::status("404 Not Found")));
    let honest = scene.honest();
    assert_eq!(scene.flash(&[&silent, &gone, &honest]).await.unwrap(), Delivery::Indexed);
    assert!(silent.requests().len() <= IN_FLIGHT, "{}", silent.requests().len());
    assert!(gone.requests().len() <= IN_FLIGHT, "{}", gone.requests().len());
    let frames = scene.times_asked(&[&honest]);
    assert!(frames.iter().enumerate().all(|(number, times)| *times == 1 - number % 2), "{frames:?}");
    // 64 ranges, and connections that are used again. Now and then one is opened that is not needed,
    // because another one came free meanwhile.
    assert!(honest.connections() <= 3 * IN_FLIGHT, "{} connections", honest.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_may_have_ranges_but_is_down_is_not_waited_for() {
    for hangs in [false, true] {
        let scene = Scene::scattered(32);
        let (silent, whole) = (silent(), scene.without_ranges());
        let first = if hangs { silent.url(PATH) } else { down() };
        let began = Instant::now();
        let Delivery::WholeInstead { reason } =
            scene.flash_from([first, whole.url(PATH)], PATIENT).await.unwrap()
        else {
            panic!("it was not fetched whole");
        };
        assert!(reason.contains(PATH) && reason.contains("the whole file when a part of it"), "{reason}");
        // Much less than the 60 s that everything has.
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert_eq!(whole_requests(&whole), 1);
        assert!(asked(&whole).len() <= IN_FLIGHT + 1, "{}", asked(&whole).len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mirror_gives_the_ranges_that_the_first_does_not() {
    let scene = Scene::scattered(32);
    let (whole, honest) = (scene.without_ranges(), scene.honest());
    assert_eq!(scene.flash(&[&whole, &honest]).await.unwrap(), Delivery::Indexed);
    assert_eq!(whole_requests(&whole), 0);
    assert!(whole.requests().len() <= IN_FLIGHT, "{}", whole.requests().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_frame_is_fetched_again_from_another_mirror_and_nothing_else_is() {
    const FLIPPED: usize = 12;
    for (name, scene) in [("one range", Scene::empty(32)), ("many ranges", Scene::scattered(32))] {
        let (flipping, honest) = (scene.flipping(FLIPPED), scene.honest());
        assert_eq!(scene.flash(&[&flipping, &honest]).await.unwrap(), Delivery::Indexed, "{name}");
        let times = scene.times_asked(&[&flipping, &honest]);
        println!("{name}: {times:?}");
        assert_eq!(times[FLIPPED], 2, "{name}");
        for (number, times) in times.into_iter().enumerate().filter(|(number, _)| *number != FLIPPED) {
            let is_missing = name == "one range" || number % 2 == 0;
            assert_eq!(times, usize::from(is_missing), "{name}: frame {number}");
        }
        assert_eq!(scene.times_asked(&[&honest])[FLIPPED], 1, "{name}: not from the one that flips it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_frame_is_ordered_again_before_all_others_came() {
    let scene = Scene::scattered(128);
    let is_ordered_again = Arc::new(AtomicBool::new(false));
    let flipping = {
        let (artifact, ordered) = (scene.flipped(0), Arc::clone(&is_ordered_again));
        let last_quarter = scene.release.frames()[96].start;
        Server::start(move |_, request| {
            // The last frames wait for it, and the others take so long that it can be noticed.
            let began = Instant::now();
            std::thread::sleep(Duration::from_millis(100));
            while request.range_from >= Some(last_quarter)
                && !ordered.load(Ordering::SeqCst)
                && began.elapsed() < Duration::from_secs(25)
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Reply::file(request, &artifact, "\"flipped\"")
        })
    };
    let honest = {
        let (artifact, ordered) = (scene.release.artifact.clone(), Arc::clone(&is_ordered_again));
        Server::start(move |_, request| {
            ordered.fetch_or(request.range_from == Some(0), Ordering::SeqCst);
            Reply::file(request, &artifact, "\"honest\"")
        })
    };
    let began = Instant::now();
    let limits = DownloadLimits { stall: Duration::from_secs(30), ..PATIENT };
    let mirrors = [flipping.url(PATH), honest.url(PATH)];
    assert_eq!(scene.flash_from(mirrors, limits).await.unwrap(), Delivery::Indexed);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // From then on the mirror that had it wrong is left alone: at most what was under way came from it.
    assert!(flipping.requests().len() <= 48 + IN_FLIGHT, "{}", flipping.requests().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_is_never_made_up_of_two_mirrors() {
    const FLIPPED: usize = 4;
    let scene = Scene::scattered(32);
    let (artifact, frame) = (scene.flipped(FLIPPED), scene.release.frames()[FLIPPED].clone());
    let is_broken = AtomicBool::new(false);
    let flipping = Server::start(move |_, request| {
        let reply = Reply::file(request, &artifact, "\"flipped\"");
        // What is wrong in it came before it breaks, for good.
        if is_broken.fetch_or(request.range_from == Some(frame.start), Ordering::SeqCst) {
            Reply::status("503 Service Unavailable")
        } else if request.range_from == Some(frame.start) {
            reply.cut(20_000)
        } else {
            reply
        }
    });
    let honest = scene.honest();
    let mirrors = [flipping.url(PATH), honest.url(PATH)];
    let limits = DownloadLimits { total: Duration::from_secs(20), ..PATIENT };
    assert_eq!(scene.flash_from(mirrors, limits).await.unwrap(), Delivery::Indexed);
    let frame = scene.release.frames()[FLIPPED].clone();
    assert!(asked(&honest).contains(&frame), "{:?}", asked(&honest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_every_mirror_has_wrong_is_named() {
    const FLIPPED: usize = 6;
    let scene = Scene::scattered(32);
    let (one, other) = (scene.flipping(FLIPPED), scene.flipping(FLIPPED));
    let gone = Server::start(|_, _| Reply::status("410 Gone"));
    let error = scene.flash(&[&one, &gone, &other]).await.unwrap_err();
    let place = scene.release.frames()[FLIPPED].start as u64;
    assert!(
        matches!(error, ImageError::Write(WriteError::OtherFrame { frame: FLIPPED, offset }) if offset == place),
        "{error:?}"
    );
    assert_eq!((error.reason(), error.retry()), (FailureReason::ChecksumMismatch, Retry::Never));
    assert_eq!(scene.times_asked(&[&one])[FLIPPED], 1);
    assert_eq!(scene.times_asked(&[&other])[FLIPPED], 1);
    scene.machine.cannot_boot();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_that_have_different_frames_wrong_complete_each_other() {
    let scene = Scene::scattered(32);
    let (one, other) = (scene.flipping(4), scene.flipping(8));
    assert_eq!(scene.flash(&[&one, &other]).await.unwrap(), Delivery::Indexed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_only_a_mirror_without_ranges_has_right_brings_the_whole() {
    let scene = Scene::scattered(32);
    let (flipping, whole) = (scene.flipping(4), scene.without_ranges());
    let done = scene.flash(&[&flipping, &whole]).await.unwrap();
    assert!(matches!(done, Delivery::WholeInstead { .. }), "{done:?}");
    assert_eq!((whole_requests(&flipping), whole_requests(&whole)), (0, 1), "nothing is mixed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_halfway_is_left_for_another_mirror() {
    let scene = Scene::scattered(64);
    let (old, new) = (scene.release.artifact.clone(), scene.flipped(63));
    let replaced = Server::start(move |number, request| match number {
        0..8 => Reply::file(request, &old, "\"old\""),
        _ => Reply::file(request, &new, "\"new\""),
    });
    let honest = scene.honest();
    assert_eq!(scene.flash(&[&replaced, &honest]).await.unwrap(), Delivery::Indexed);
    assert!(replaced.requests().len() <= 8 + IN_FLIGHT, "{}", replaced.requests().len());
    assert!(honest.requests().len() >= 32 - 8 - IN_FLIGHT, "{}", honest.requests().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_for_servers_that_tag_the_same_file_differently_is_enough() {
    let scene = Scene::scattered(32);
    let artifact = scene.release.artifact.clone();
    let balanced = Server::start(move |number, request| {
        let reply = Reply::file(request, &artifact, ["\"one\"", "\"two\"", "\"three\""][number % 3]);
        // Some break, and are resumed.
        if number % 4 == 1 { reply.cut(10_000) } else { reply }
    });
    assert_eq!(scene.flash(&[&balanced]).await.unwrap(), Delivery::Indexed);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_length_rules_a_mirror_out() {
    let scene = Scene::scattered(32);
    let longer = [&scene.release.artifact[..], b"more"].concat();
    let longer = Server::start(move |_, request| Reply::file(request, &longer, "\"longer\""));
    let honest = scene.honest();
    assert_eq!(scene.flash(&[&longer, &honest]).await.unwrap(), Delivery::Indexed);
    assert!(longer.requests().len() <= IN_FLIGHT, "{}", longer.requests().len());
    let alone = Scene::scattered(32);
    let error = alone.flash(&[&longer]).await.unwrap_err();
    assert_eq!(error.reason(), FailureReason::UnusableAnswer, "{error}");
    assert!(error.to_string().contains("another file than the index describes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_the_wrong_place_are_no_parts() {
    let scene = Scene::scattered(32);
    let artifact = scene.release.artifact.clone();
    let shifting = Server::start(move |_, request| {
        let shifted = Request { range_from: request.range_from.map(|from| from + 7), ..request.clone() };
        Reply::file(&shifted, &artifact, "\"shifted\"")
    });
    let honest = scene.honest();
    assert_eq!(scene.flash(&[&shifting, &honest]).await.unwrap(), Delivery::Indexed);
    assert!(shifting.requests().len() <= IN_FLIGHT, "{}", shifting.requests().len());
    // By itself it can still send all of the file.
    let alone = Scene::scattered(32);
    let Delivery::WholeInstead { reason } = alone.flash(&[&shifting]).await.unwrap() else {
        panic!("it was not fetched whole");
    };
    assert!(reason.contains("bytes from"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ranges_have_one_deadline() {
    let scene = Scene::scattered(384);
    let artifact = scene.release.artifact.clone();
    // 192 ranges, 8 at a time, take 6 s.
    let slow = Server::start(move |_, request| {
        std::thread::sleep(Duration::from_millis(250));
        Reply::file(request, &artifact, "\"slow\"")
    });
    let limits = DownloadLimits { total: Duration::from_secs(2), stall: Duration::from_secs(1), ..PATIENT };
    let began = Instant::now();
    let error = scene.flash_from([slow.url(PATH)], limits).await.unwrap_err();
    assert_eq!((error.reason(), error.retry()), (FailureReason::DownloadTimedOut, Retry::Later), "{error}");
    assert!(began.elapsed() >= limits.total, "{:?}", began.elapsed());
    assert!(slow.requests().len() < 192, "{} ranges", slow.requests().len());
    scene.machine.cannot_boot();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_never_comes_leaves_time_for_the_artifact() {
    let scene = Scene::empty(8);
    let (silent, honest) = (silent(), scene.honest());
    let limits = DownloadLimits { total: Duration::from_secs(8), stall: Duration::from_secs(30), ..PATIENT };
    let (artifact, index) = (download([honest.url(PATH)]), download([silent.url("/index")]));
    let (artifact, index) = (artifact.with_limits(limits), index.with_limits(limits));
    let source = scene.machine.indexed(artifact, index, scene.release.checksum());
    let done = scene.machine.flash(source, scene.release.expected()).await.unwrap();
    assert!(matches!(done.delivery, Delivery::WholeInstead { .. }), "{:?}", done.delivery);
    scene.machine.holds(&scene.release.image);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_sees_nothing_go_back() {
    // Wrong frames, then the whole after all; connections that break in the middle of frames.
    let scene = Scene::scattered(64);
    let breaks = AtomicUsize::new(0);
    let artifact = scene.flipped(20);
    let flipping = Server::start(move |_, request| {
        let reply = Reply::file(request, &artifact, "\"flipped\"");
        if breaks.fetch_add(1, Ordering::SeqCst) % 3 == 1 { reply.cut(30_000) } else { reply }
    });
    let whole = scene.without_ranges();
    let (progress, cancel) = (Progress::default(), Cancel::default());
    let source = scene.source([flipping.url(PATH), whole.url(PATH)], PATIENT);
    let flashing = scene.machine.flash_until(source, scene.release.expected(), &progress, &cancel);
    let mut seen = Vec::new();
    let done = progress.watch(Duration::from_micros(300), flashing, |now| seen.push(now)).await.unwrap();
    assert!(matches!(done.delivery, Delivery::WholeInstead { .. }), "{:?}", done.delivery);
    for pair in seen.windows(2) {
        let [before, now] = pair else { unreachable!() };
        assert!(now.bytes_done >= before.bytes_done && now.bytes_total >= before.bytes_total, "{pair:#?}");
        let is_new = now.begun_again > before.begun_again;
        assert!(now.begun_again >= before.begun_again, "{pair:#?}");
        let slot = [
            (before.bytes_written, now.bytes_written),
            (before.bytes_reused, now.bytes_reused),
            (before.bytes_verified, now.bytes_verified),
        ];
        assert!(is_new || slot.iter().all(|(before, now)| before <= now), "{pair:#?}");
    }
    let last = seen.last().unwrap();
    let length = scene.release.image.len() as u64;
    assert_eq!((last.begun_again, last.bytes_verified), (1, length), "{last:?}");
    assert_eq!(last.bytes_written + last.bytes_reused, length, "{last:?}");
    assert_eq!(last.bytes_total, Some(last.bytes_done), "{last:?}");
}
