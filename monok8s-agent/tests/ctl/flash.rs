use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use monok8s_sdk::boot::record_store::RecordStore;
use monok8s_sdk::boot::simulated::SimulatedLoader;
use monok8s_sdk::boot::{AttemptId, BootBackend as _, Tries};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::image::{BuildOptions, build};
use monok8s_sdk::node_upgrade::Record;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};

use super::program::{Machine, Run, ctl, ctl_with_input, spawn};

/// Three MiB that do not compress to nothing, and the artifact they come in.
fn image() -> (Vec<u8>, Vec<u8>) {
    let image: Vec<u8> = (0..3_u32 << 20)
        .map(|index| u8::try_from((index.wrapping_mul(2_654_435_761)) >> 24).unwrap())
        .collect();
    let artifact = zstd::encode_all(&image[..], 1).unwrap();
    (image, artifact)
}

/// The image is no file system, which is said and does no harm.
#[track_caller]
fn written(run: Run) -> String {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.starts_with("warning: the image in slot B"), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "a progress bar is for terminals: {:?}", run.stderr);
    run.stdout
}

#[test]
fn from_standard_input_into_the_slot_that_is_not_booted() {
    let machine = Machine::new();
    machine.files.write(Slot::A, b"what runs").unwrap();
    let before = machine.files.read_all(Slot::A).unwrap();
    let (image, artifact) = image();
    let checksum = format!("--checksum={}", Sha256Digest::of(&artifact));
    let args = machine.args("flash", &["--slot=B", "-", &checksum, "-o", "json"]);

    let output: Value = serde_json::from_str(&written(ctl_with_input(&args, &artifact))).unwrap();

    assert_eq!((&output["slot"], &output["bytes"]), (&json!("B"), &json!(image.len())));
    assert_eq!(output["imageDigest"], Sha256Digest::of(&image).to_string());
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);
    assert!(machine.files.read_all(Slot::A).unwrap() == before);
}

#[test]
fn from_a_file_and_from_a_server() {
    let (image, artifact) = image();
    let machine = Machine::new();
    let file = machine.path("rootfs.ext4.zst");
    fs::write(&file, &artifact).unwrap();
    let text = written(ctl(&machine.args("flash", &["--slot", "b", file.to_str().unwrap()])));
    assert!(text.starts_with("slot B (") && text.contains("3.00 MiB"), "{text}");
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);

    let machine = Machine::new();
    let url = serve_once(artifact);
    written(ctl(&machine.args("flash", &["--slot=B", &url])));
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);
}

/// Answers one GET with `body`.
fn serve_once(body: Vec<u8>) -> String {
    serve(vec![("/rootfs.ext4.zst", body)], 1) + "/rootfs.ext4.zst"
}

/// Answers so many requests, one after the other, with these files or the parts that are asked for.
fn serve(files: Vec<(&'static str, Vec<u8>)>, requests: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests) {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            let request = String::from_utf8(request).unwrap().to_lowercase();
            let path = request.split(' ').nth(1).unwrap();
            let body = &files.iter().find(|(name, _)| *name == path).unwrap().1;
            let range = request.lines().find_map(|line| line.strip_prefix("range: bytes="));
            let (status, part) = match range.and_then(|range| range.split_once('-')) {
                Some((from, to)) => {
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    let status =
                        format!("206 Partial Content\r\nContent-Range: bytes {from}-{to}/{}", body.len());
                    (status, from..to + 1)
                }
                None => ("200 OK".to_owned(), 0..body.len()),
            };
            let length = part.len();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
                .unwrap();
            // Whoever has no use for the rest hangs up.
            let _ = stream.write_all(&body[part]);
        }
    });
    format!("http://{address}")
}

/// 3 MiB of which no two blocks are alike, in frames of 64 KiB, and their index.
fn indexed() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut state = 1_u64;
    let image: Vec<u8> = (0..3 << 20)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    let mut artifact = Vec::new();
    let index = build(&mut &image[..], &mut artifact, BuildOptions { level: 1, frame_log: 16 }).unwrap();
    (image, artifact, index.as_bytes().to_vec())
}

#[test]
fn by_an_index_only_what_is_in_neither_slot_is_fetched() {
    let (image, artifact, index) = indexed();
    let machine = Machine::new();
    // Slot A has all but two frames, 64 KiB of which slot B has.
    let mut old = image.clone();
    old[1 << 20..(1 << 20) + (128 << 10)].fill(0x55);
    machine.files.write(Slot::A, &old).unwrap();
    let mut other = vec![0; 2 << 20];
    other[1 << 20..(1 << 20) + (64 << 10)].copy_from_slice(&image[1 << 20..(1 << 20) + (64 << 10)]);
    machine.files.write(Slot::B, &other).unwrap();

    let checksum = format!("--index-checksum={}", Sha256Digest::of(&index));
    let (index_length, of_artifact) = (index.len(), format!("--checksum={}", Sha256Digest::of(&artifact)));
    let server = serve(vec![("/a", artifact), ("/i", index)], 2);
    let (artifact_url, index_url) = (format!("{server}/a"), format!("--index={server}/i"));
    let args = ["--slot=B", &artifact_url, &index_url, &checksum, &of_artifact, "-o", "json"];
    let output: Value = serde_json::from_str(&written(ctl(&machine.args("flash", &args)))).unwrap();
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);
    assert_eq!((&output["delivery"], &output["deliveryReason"]), (&json!("Indexed"), &Value::Null));
    // Noise does not compress: a frame of it has 64 KiB and a few bytes.
    let fetched = output["bytesFetched"].as_u64().unwrap() - index_length as u64;
    assert!((64 << 10..66 << 10).contains(&fetched), "{output}");
    assert_eq!(output["bytesReused"].as_u64().unwrap() + output["bytesWritten"].as_u64().unwrap(), 3 << 20);
    assert_eq!(output["bytesVerified"], 3 << 20);
}

#[test]
fn an_index_that_is_of_no_use_costs_a_whole_download_and_nothing_else() {
    let (image, artifact, index) = indexed();
    let machine = Machine::new();
    let checksum = format!("--index-checksum={}", Sha256Digest::of(b"another"));
    let server = serve(vec![("/a", artifact), ("/i", index)], 2);
    let (artifact_url, index_url) = (format!("{server}/a"), format!("--index={server}/i"));
    let text = written(ctl(&machine.args("flash", &["--slot=B", &artifact_url, &index_url, &checksum])));
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);
    let said = text.lines().nth(1).unwrap();
    assert!(said.contains("fetched whole") && said.contains("the index's checksum is sha256:"), "{text}");

    ctl(&machine.args("flash", &["--slot=B", &artifact_url, &index_url])).bad(2);
    ctl(&machine.args("flash", &["--slot=B", &artifact_url, &checksum])).bad(2);
    let file = machine.path("disk.img");
    let error =
        ctl(&machine.args("flash", &["--slot=B", file.to_str().unwrap(), &index_url, &checksum])).bad(1);
    assert!(error.contains("give the artifact's URL"), "{error}");
}

#[test]
fn the_version_in_a_real_file_system_is_shown() {
    let machine = Machine::new();
    let tree = machine.path("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/os-release"), "NAME=MonoK8s\nMONOK8S_VERSION=v1.35.4+r2\n").unwrap();
    let image = machine.path("rootfs.ext4");
    make_ext4(&tree, &image);
    let artifact = zstd::encode_all(&fs::read(&image).unwrap()[..], 1).unwrap();
    let run = ctl_with_input(&machine.args("flash", &["--slot=B"]), &artifact);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("holds v1.35.4+r2"), "{}", run.stdout);
    assert!(run.stderr.starts_with("warning: the image has no guard"), "{}", run.stderr);
}

fn make_ext4(tree: &Path, image: &Path) {
    let path = std::env::var("PATH").unwrap_or_default();
    let status = Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-t", "ext4", "-d"])
        .args([tree, image])
        .arg("3M")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("mke2fs is missing: run `apt-get install e2fsprogs` as root");
    assert!(status.success());
}

#[test]
fn the_booted_slot_is_refused_and_untouched() {
    let machine = Machine::new();
    machine.files.write(Slot::A, b"what runs").unwrap();
    let before = machine.files.read_all(Slot::A).unwrap();
    let (_, artifact) = image();
    let error = ctl_with_input(&machine.args("flash", &["--slot=A"]), &artifact).bad(1);
    assert!(error.contains("slot A") && error.contains("booted"), "{error}");
    assert!(machine.files.read_all(Slot::A).unwrap() == before);

    machine.files.boot(Slot::B).unwrap();
    let error = ctl_with_input(&machine.args("flash", &["--slot=B"]), &artifact).bad(1);
    assert!(error.contains("slot B") && error.contains("booted"), "{error}");
}

#[test]
fn what_is_not_as_promised_fails_and_cannot_boot() {
    let (image, artifact) = image();
    let wrong = Sha256Digest::of(b"something else");
    let cases: [(&[&str], &[u8], &str); 6] = [
        (&[&format!("--checksum={wrong}")], &artifact, "sha256"),
        (&[&format!("--image-checksum={wrong}")], &artifact, "sha256"),
        (&["--size=1000000"], &artifact, "1000000"),
        (&["--size=4000000"], &artifact, "4000000"),
        (&[], &artifact[..artifact.len() - 1000], "ends"),
        (&[], &image, "zstd"),
    ];
    for (flags, input, said) in cases {
        let machine = Machine::new();
        machine.files.write(Slot::B, &vec![0xEE; 128 * 1024]).unwrap();
        let args = machine.args("flash", &[&["--slot=B"], flags].concat());
        let error = ctl_with_input(&args, input).bad(1);
        assert!(error.starts_with("error: cannot flash slot B ("), "{error}");
        assert!(error.contains(said), "{flags:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        // What was refused before its first byte left the slot as it was; everything else is without its head.
        let head = machine.files.read(Slot::B, 64 * 1024).unwrap();
        let untouched = head.iter().all(|byte| *byte == 0xEE);
        assert!(untouched || head.iter().all(|byte| *byte == 0), "{flags:?}");
    }
}

#[test]
fn an_image_larger_than_the_slot_is_refused() {
    let machine = Machine::new();
    let artifact = zstd::encode_all(&vec![7; 5 << 20][..], 1).unwrap();
    let error = ctl_with_input(&machine.args("flash", &["--slot=B"]), &artifact).bad(1);
    assert!(error.contains("more than slot B holds (4194304 bytes)"), "{error}");
}

#[test]
fn neither_loader_nor_record_trusts_the_slot_any_more() {
    let machine = Machine::new();
    let path = machine.path("loader");
    let loader = SimulatedLoader::install(&path, Slot::A, Tries(3)).unwrap();
    let store = RecordStore::in_dir(machine.path("data"));
    let record: Record = serde_json::from_value(json!({
        "format": 1,
        "nextAttempt": 7,
        "slots": { "B": { "version": "v1.34.1", "state": "KnownGood" } },
    }))
    .unwrap();
    store.save(&record).unwrap();
    loader.arm_trial(known_good("v1.34.1").into(), AttemptId(3), Tries(2)).unwrap();
    loader.boot(|_| true).unwrap();
    loader.confirm().unwrap();
    loader.mark_good(Slot::B).unwrap();
    machine.files.boot(Slot::B).unwrap();
    assert!(loader.status().unwrap().may_boot(Slot::A));

    // B runs and is confirmed; A is what is flashed.
    let backend = format!("--boot-backend=simulated:{}", path.display());
    let (_, artifact) = image();
    let run = ctl_with_input(&machine.args("flash", &["--slot=A", &backend]), &artifact);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let status = loader.status().unwrap();
    assert!(!status.may_boot(Slot::A) && status.is_confirmed(Slot::B), "{status:?}");
    assert_eq!(store.load().unwrap(), record, "the record of B stays");

    machine.files.boot(Slot::A).unwrap();
    written(ctl_with_input(&machine.args("flash", &["--slot=B"]), &artifact));
    assert_eq!(store.load().unwrap().slots.get(Slot::B), None);
    assert_eq!(store.load().unwrap().next_attempt, AttemptId(7), "the rest of the record stays");
}

fn known_good(version: &str) -> KnownGoodSlot {
    KnownGoodSlot::from_confirm_record(Slot::B, version.parse().unwrap(), None)
}

#[test]
fn a_slot_that_an_upgrade_needs_is_left_alone() {
    let machine = Machine::new();
    let before = machine.files.read_all(Slot::B).unwrap();
    let (_, artifact) = image();
    let path = machine.path("loader");
    let loader = SimulatedLoader::install(&path, Slot::A, Tries(3)).unwrap();
    loader.arm_trial(known_good("v1.34.1").into(), AttemptId(3), Tries(2)).unwrap();
    let backend = format!("--boot-backend=simulated:{}", path.display());
    let error = ctl_with_input(&machine.args("flash", &["--slot=B", &backend]), &artifact).bad(1);
    assert!(error.contains("a trial is armed"), "{error}");

    let store = RecordStore::in_dir(machine.path("data"));
    let record = json!({
        "format": 1,
        "nextAttempt": 5,
        "attempt": {
            "id": 4, "number": 1, "kind": "Upgrade", "version": "v1.35.4", "slot": "B", "state": "Staging",
            "object": { "name": "osupgrade-abc123f", "uid": "u-1" },
        },
    });
    store.save(&serde_json::from_value(record).unwrap()).unwrap();
    let error = ctl_with_input(&machine.args("flash", &["--slot=B"]), &artifact).bad(1);
    assert!(
        error.contains("an upgrade to v1.35.4 is going on") && error.contains("osupgrade-abc123f"),
        "{error}"
    );
    assert!(machine.files.read_all(Slot::B).unwrap() == before);
}

#[test]
fn one_at_a_time_and_the_lock_goes_with_its_process() {
    let machine = Machine::new();
    let store = RecordStore::in_dir(machine.path("data"));
    let (_, artifact) = image();
    let held = store.lock("monok8s-agent (process 7)").unwrap();
    let error = ctl_with_input(&machine.args("flash", &["--slot=B"]), &artifact).bad(1);
    assert!(error.contains("in use by monok8s-agent (process 7): wait until"), "{error}");
    ctl(&machine.args("slots", &[])).good();
    drop(held);

    let mut child = spawn(&machine.args("flash", &["--slot=B"]));
    let deadline = Instant::now() + Duration::from_secs(30);
    // It waits for its standard input, and holds the lock meanwhile.
    let holder = format!("ctl flash (process {})", child.id());
    while !store.lock("a test").is_err_and(|refused| refused.to_string().contains(&holder)) {
        assert!(Instant::now() < deadline, "ctl flash takes no lock");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(store.lock("a test").unwrap());
}

#[test]
fn a_command_line_that_makes_no_sense_touches_nothing() {
    let machine = Machine::new();
    ctl(&machine.args("flash", &[])).bad(2);
    ctl(&machine.args("flash", &["--slot=C"])).bad(2);
    ctl(&machine.args("flash", &["--slot=B", "--checksum=sha256:abc"])).bad(2);
    ctl(&machine.args("flash", &["--slot=B", "--boot-backend=lilo"])).bad(2);
    let error = ctl(&machine.args("flash", &["--slot=B", "/no/such/image"])).bad(1);
    assert!(error.contains("/no/such/image is not a file"), "{error}");
}

/// How long a flash of 3 MiB takes.
fn time(machine: &Machine, more: &[&str]) -> Duration {
    let (image, artifact, _) = indexed();
    let url = serve_once(artifact);
    let began = Instant::now();
    written(ctl(&machine.args("flash", &[&["--slot=B", &url], more].concat())));
    let took = began.elapsed();
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);
    took
}

#[test]
fn rates_of_the_network_and_of_the_disk_are_kept() {
    let took = time(&Machine::new(), &["--download-rate=2MiB"]);
    assert!(took >= Duration::from_millis(1300), "3 MiB downloaded at 2 MiB/s took {took:?}");
    // Written and read back.
    let took = time(&Machine::new(), &["--disk-rate=3MiB"]);
    assert!(took >= Duration::from_millis(1500), "6 MiB at 3 MiB/s took {took:?}");
}

#[test]
fn what_is_read_to_be_used_again_is_kept_to_the_disks_rate_too() {
    let (image, artifact, index) = indexed();
    let machine = Machine::new();
    machine.files.write(Slot::A, &image).unwrap();
    let checksum = format!("--index-checksum={}", Sha256Digest::of(&index));
    let server = serve(vec![("/a", artifact), ("/i", index)], 2);
    let (artifact_url, index_url) = (format!("{server}/a"), format!("--index={server}/i"));
    let args = ["--slot=B", &artifact_url, &index_url, &checksum, "--disk-rate=6MiB", "-o", "json"];
    let began = Instant::now();
    let output: Value = serde_json::from_str(&written(ctl(&machine.args("flash", &args)))).unwrap();
    let took = began.elapsed();
    assert_eq!(output["delivery"], "Indexed", "{output}");
    // Without the 4 MiB of each slot that are looked through, and the 3 MiB of slot A that are taken, it
    // would take half as long.
    assert!(took >= Duration::from_millis(2400), "20 MiB at 6 MiB/s took {took:?}");
}

#[test]
fn a_kernel_that_tells_no_pressure_is_warned_of_when_that_was_asked_for() {
    let machine = Machine::new();
    let (_, artifact) = image();
    let run = ctl_with_input(&machine.args("flash", &["--slot=B", "--io-pressure=30"]), &artifact);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("/proc/pressure/io says nothing"), "{}", run.stderr);
}

#[test]
fn a_rate_that_makes_no_sense_is_refused_in_a_sentence() {
    let machine = Machine::new();
    for (flag, said) in [
        ("--download-rate=20Mbit", "\"20Mbit\" is not a rate: write whole bytes a second, such as 20MiB"),
        ("--download-rate=20", "20 a second is too slow: 64KiB a second is the least"),
        ("--disk-rate=500KiB", "500KiB a second is too slow: 1MiB a second is the least"),
        ("--io-pressure=120", "write a percentage from 1 to 99, or none"),
        ("--io-floor=none", "\"none\" is not a rate"),
    ] {
        let error = ctl(&machine.args("flash", &["--slot=B", flag])).bad(2);
        assert!(error.contains(said), "{flag}: {error}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (image, artifact, _) = indexed();
    let machine = Machine::new();
    let (url, index) = (serve_once(artifact), format!("--index={nobody}/i"));
    let checksum = format!("--index-checksum={}", Sha256Digest::of(b"index"));
    let said = written(ctl(&machine.args("flash", &["--slot=B", &url, &index, &checksum])));
    assert!(said.contains("fetched whole") && said.contains("5 attempts"), "{said}");
    assert!(machine.files.read(Slot::B, image.len()).unwrap() == image);
}
