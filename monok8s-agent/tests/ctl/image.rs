use std::fs;
use std::path::PathBuf;
use std::process::Command;

use monok8s_sdk::catalog::{Catalog, Limits};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::image::Index;
use monok8s_sdk::slot::Slot;
use serde_json::{Value, json};

use super::program::{Machine, ctl};

/// An image in a directory of its own: 3 MiB and a bit, a third of it zero.
struct Site {
    directory: tempfile::TempDir,
    image: Vec<u8>,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut image: Vec<u8> = (0..3_u32 << 20)
            .map(|at| u8::try_from((at.wrapping_mul(2_654_435_761)) >> 24).unwrap())
            .collect();
        image[1 << 20..2 << 20].fill(0);
        image.extend([7; 1001]);
        fs::write(directory.path().join("rootfs.ext4"), &image).unwrap();
        Self { directory, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn build(&self, more: &[&str]) -> String {
        let image = self.text("rootfs.ext4");
        ctl(&[&["image", "build", &image], more].concat()).good()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn after_an_earlier_release_what_is_new_has_frames_of_its_own() {
    let site = Site::new();
    site.build(&[]);
    let plain = Index::parse(site.read("rootfs.ext4.idx")).unwrap();
    let mut earlier = site.image.clone();
    earlier[2 << 20..(2 << 20) + 4096].fill(3);
    fs::write(site.path("earlier.ext4"), earlier).unwrap();
    site.build(&["--force", "--after", &site.text("earlier.ext4"), "--frame-log=18"]);
    let index = Index::parse(site.read("rootfs.ext4.idx")).unwrap();
    // One block differs, at the start of a frame; and the image's end is no whole block.
    assert_eq!(index.frame_count(), plain.frame_count() + 1);
    assert_eq!(zstd::decode_all(site.read("rootfs.ext4.zst").as_slice()).unwrap(), site.image);
}

#[test]
fn what_is_built_can_be_listed_verified_and_looked_at() {
    let site = Site::new();
    let flags = ["--base-url=http://images.invalid/os/", "--version=v1.35.4", "--frame-log=16"];
    let entry = site.build(&flags);
    let (artifact, index) = (site.read("rootfs.ext4.zst"), site.read("rootfs.ext4.idx"));
    assert_eq!(site.names(), ["rootfs.ext4", "rootfs.ext4.idx", "rootfs.ext4.zst"]);

    let catalog = Catalog::parse(format!("images:\n{entry}").as_bytes(), &Limits::default()).unwrap();
    let image = catalog.resolve("v1.35.4", None).unwrap().image;
    assert_eq!(image.urls, ["http://images.invalid/os/rootfs.ext4.zst"]);
    assert_eq!((image.checksum, image.size), (Sha256Digest::of(&artifact), Some(site.image.len() as u64)));
    assert_eq!(image.image_checksum, Some(Sha256Digest::of(&site.image)));
    let listed = image.index.unwrap();
    assert_eq!(listed.url, "http://images.invalid/os/rootfs.ext4.idx");
    assert_eq!(listed.checksum, Sha256Digest::of(&index));

    let (artifact_path, index_path) = (site.text("rootfs.ext4.zst"), site.text("rootfs.ext4.idx"));
    let said = ctl(&["image", "verify", &artifact_path, "--index", &index_path]).good();
    assert!(said.contains("49 frames"), "{said}");
    let facts: Value =
        serde_json::from_str(&ctl(&["image", "inspect", &index_path, "-o", "json"]).good()).unwrap();
    assert_eq!(facts["kind"], "index");
    assert_eq!(facts["imageChecksum"], Sha256Digest::of(&site.image).to_string());
    assert_eq!((&facts["frames"], &facts["zeroBytes"]), (&json!(49), &json!(1 << 20)));
    let text = ctl(&["image", "inspect", &artifact_path]).good();
    for said in ["artifact", "3146729 bytes", "49 frames", &Sha256Digest::of(&artifact).to_string()] {
        assert!(text.contains(said), "{said}: {text}");
    }

    // The index of what exists is the same one.
    fs::remove_file(site.path("rootfs.ext4.idx")).unwrap();
    let again = ctl(&["image", "index", &artifact_path, flags[0], flags[1]]).good();
    assert_eq!(again, entry);
    assert!(site.read("rootfs.ext4.idx") == index);
}

#[test]
fn nothing_is_overwritten_and_nothing_half_stays() {
    let site = Site::new();
    let out = site.path("out");
    fs::create_dir(&out).unwrap();
    let out_flag = format!("--out={}", out.display());
    let entry: Value = serde_json::from_str(&site.build(&[&out_flag, "-o", "json"])).unwrap();
    assert_eq!((&entry["url"], &entry["version"]), (&json!("URL/rootfs.ext4.zst"), &json!("VERSION")));
    let before = fs::read(out.join("rootfs.ext4.zst")).unwrap();

    let image = site.text("rootfs.ext4");
    let error = ctl(&["image", "build", &image, &out_flag, "--level=19"]).bad(1);
    assert!(error.contains("exists already") && error.contains("--force"), "{error}");
    assert!(fs::read(out.join("rootfs.ext4.zst")).unwrap() == before);
    site.build(&[&out_flag, "--level=19", "--force"]);
    assert!(fs::read(out.join("rootfs.ext4.zst")).unwrap() != before);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "no temporary file stays");

    fs::write(site.path("empty.ext4"), b"").unwrap();
    ctl(&["image", "build", &site.text("empty.ext4")]).bad(1);
    assert_eq!(site.names(), ["empty.ext4", "out", "rootfs.ext4"]);
    ctl(&["image", "build", &image, "--frame-log=21"]).bad(2);
    ctl(&["image", "build", &image, "--level=0"]).bad(2);
    ctl(&["image", "build", &site.text("absent.ext4")]).bad(1);
}

#[test]
fn what_does_not_fit_is_named() {
    let site = Site::new();
    site.build(&["--frame-log=16"]);
    let (artifact, index) = (site.text("rootfs.ext4.zst"), site.text("rootfs.ext4.idx"));
    let verify = || ctl(&["image", "verify", &artifact, "--index", &index]).bad(1);
    let good = site.read("rootfs.ext4.zst");
    let mut damaged = good.clone();
    damaged[good.len() / 4] ^= 1;
    fs::write(&artifact, &damaged).unwrap();
    let error = verify();
    assert!(error.contains("frame ") && error.contains("is not what the index says"), "{error}");
    fs::write(&artifact, &good[..good.len() - 9]).unwrap();
    assert!(verify().contains("belong to different builds"));
    fs::write(&artifact, &good).unwrap();
    fs::write(&index, b"something else").unwrap();
    assert!(verify().contains("this is not a block index"));

    let stock = zstd::encode_all(&site.image[..], 3).unwrap();
    fs::write(site.path("stock.zst"), stock).unwrap();
    let error = ctl(&["image", "index", &site.text("stock.zst")]).bad(1);
    assert!(error.contains("cannot have an index") && error.contains("`ctl image build`"), "{error}");
    assert!(!site.path("stock.idx").exists() && !site.path("stock.idx.part").exists());
}

/// What the host's zstd prints; `None` if the host has none.
fn zstd_program(arguments: &[&str]) -> Option<String> {
    match Command::new("zstd").args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            println!("SKIP: zstd cannot be run ({error}): run `apt-get install zstd` as root");
            None
        }
    }
}

#[test]
fn the_zstd_program_and_ctl_understand_each_other() {
    let site = Site::new();
    site.build(&[]);
    let (artifact, restored) = (site.text("rootfs.ext4.zst"), site.text("restored"));
    if zstd_program(&["-q", "-d", &artifact, "-o", &restored]).is_none() {
        return;
    }
    assert!(fs::read(&restored).unwrap() == site.image, "bit for bit");
    let list = zstd_program(&["-l", &artifact]).unwrap();
    // 13 frames of data and the table, which it skips.
    assert!(list.lines().any(|line| line.split_whitespace().take(2).eq(["14", "1"])), "{list}");
    let details = zstd_program(&["-lv", &artifact]).unwrap();
    assert!(details.contains("3146729 B"), "{details}");

    let stock = site.text("stock.zst");
    zstd_program(&["-q", "-3", &site.text("rootfs.ext4"), "-o", &stock]).unwrap();
    let machine = Machine::new();
    for source in [&stock, &artifact] {
        let run = ctl(&machine.args("flash", &["--slot=B", source]));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(machine.files.read(Slot::B, site.image.len()).unwrap() == site.image);
    }
}
