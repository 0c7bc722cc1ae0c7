//! Catalog documents as people write them: what is found in them, and what is said about mistakes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use monok8s_sdk::api::ImageRef;
use monok8s_sdk::catalog::{Arch, Catalog, CatalogImage, Limits, lint};
use monok8s_sdk::digest::Sha256Digest;

fn document(name: &str) -> String {
    let path = format!("{}/../testdata/catalogs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn catalog(name: &str) -> Catalog {
    Catalog::parse(document(name), &Limits::default()).unwrap()
}

fn lint_lines(catalog: &Catalog) -> Vec<String> {
    lint(catalog).iter().map(ToString::to_string).collect()
}

/// What a person asks for (`version` or `version on arch`), and what the answer says.
#[track_caller]
fn check_resolve(catalog_name: &str, cases: &[(&str, &str)]) {
    let catalog = catalog(catalog_name);
    for (question, expected) in cases {
        let (wanted, arch) = match question.split_once(" on ") {
            Some((wanted, arch)) => (wanted, Some(arch.parse::<Arch>().unwrap())),
            None => (*question, None),
        };
        let answer = match catalog.resolve(wanted, arch.as_ref()) {
            Ok(found) => format!("{} from {}", found.version, found.image.urls[0]),
            Err(error) => format!("{}: {error}", error.reason()),
        };
        assert_eq!(answer, *expected, "{catalog_name}: {question}");
    }
}

#[test]
fn resolves_in_the_seed_catalog() {
    check_resolve(
        "seed.yaml",
        &[
            ("stable", "v1.35.1 from http://localhost:8000/rootfs.ext4.zst"),
            ("v1.35.1", "v1.35.1 from http://localhost:8000/rootfs.ext4.zst"),
            ("v1.35.1 on arm64", "v1.35.1 from http://localhost:8000/rootfs.ext4.zst"),
            (
                "v1.35.3",
                "VersionNotInCatalog: v1.35.3 is not in the catalog; \
                 the nearest are v1.35.1 and v1.35.4 (its entry is unusable)",
            ),
            (
                "v1.36.0",
                "VersionNotInCatalog: v1.36.0 is not in the catalog; \
                 the newest is v1.35.4 (its entry is unusable)",
            ),
            (
                "v1.33.2",
                "VersionNotInCatalog: v1.33.2 is not in the catalog; \
                 the oldest is v1.34.1 (its entry is unusable)",
            ),
            (
                "v1.34.6",
                "ImageUnusable: v1.34.6 is in the catalog, but its entry cannot be used: line 5: `checksum`: \
                 checksum \"sha256:abc\" is not sha256: and 64 hex digits; \
                 take what sha256sum prints for the file",
            ),
            ("v1.34.0", "VersionBlocked: v1.34.0 is blocked by the catalog; choose another version"),
            (
                "beta",
                "UnknownChannel: the catalog has no channel \"beta\"; \
                 it has stable, or name a version such as v1.35.3",
            ),
            (
                "1.35.1",
                "InvalidVersion: \"1.35.1\" is not an OS version: the leading v is missing; \
                 write it like v1.35.3 or v1.35.3+r2",
            ),
        ],
    );
}

#[test]
fn resolves_channels_architectures_and_blocks() {
    check_resolve(
        "full.yaml",
        &[
            ("stable on amd64", "v1.35.4 from https://images.example.com/v1.35.4-amd64.img.zst"),
            ("stable on arm64", "v1.35.4 from https://images.example.com/v1.35.4-arm64.img.zst"),
            ("stable", "v1.35.4 from https://images.example.com/v1.35.4-amd64.img.zst"),
            (
                "stable on riscv64",
                "NoImageForArch: channel stable points to v1.35.4: \
                 v1.35.4 has no image for riscv64, only for amd64, arm64",
            ),
            ("candidate", "v1.36.0-rc.1 from https://images.example.com/rc.zst"),
            ("next-35", "v1.35.4+r2 from https://images.example.com/v1.35.4-r2.img.zst"),
            ("lts on riscv64", "v1.34.6 from https://images.example.com/v1.34.6.img.zst"),
            (
                "old",
                "VersionBlocked: channel old points to v1.34.2: v1.34.2 is blocked by the catalog: \
                 loses disks (see https://example.com/advisories/7); choose another version",
            ),
            (
                "gone",
                "VersionNotInCatalog: channel gone points to v1.33.9: \
                 v1.33.9 is not in the catalog; the oldest is v1.34.6",
            ),
            (
                "broken",
                "ChannelUnusable: channel broken of the catalog cannot be used: line 8: \
                 \"1.35.4\" is not an OS version: the leading v is missing; \
                 write it like v1.35.3 or v1.35.3+r2",
            ),
        ],
    );
    let worn = catalog("full.yaml").resolve("worn", None).unwrap();
    assert_eq!(worn.channel.as_deref(), Some("worn"));
    let deprecated = worn.deprecated.unwrap();
    assert_eq!(deprecated.message.as_deref(), Some("leaks memory"));
    assert_eq!(deprecated.replacement.unwrap().to_string(), "v1.35.4");
}

#[test]
fn reads_every_field_into_its_place() {
    let resolved = catalog("full.yaml").resolve("v1.35.4", Some(&"amd64".parse().unwrap())).unwrap();
    let expected = serde_json::json!({
        "version": "v1.35.4",
        "arch": "amd64",
        "urls": [
            "https://images.example.com/v1.35.4-amd64.img.zst",
            "https://eu.mirror.example.com/v1.35.4-amd64.img.zst",
            "http://10.0.0.7:8080/v1.35.4-amd64.img.zst",
        ],
        "checksum": Sha256Digest::of(b"v1.35.4-amd64.zst"),
        "size": 1_350_400_002_u64,
        "imageChecksum": Sha256Digest::of(b"v1.35.4-amd64"),
        "index": {
            "url": "https://images.example.com/v1.35.4-amd64.index",
            "checksum": format!("sha256:{}", "e".repeat(64)),
        },
        "minFrom": "v1.34.6",
    });
    assert_eq!(serde_json::to_value(&resolved.image).unwrap(), expected);
    assert_eq!(serde_json::from_value::<CatalogImage>(expected.clone()).unwrap(), resolved.image);

    let in_the_api = ImageRef::from(resolved.image.clone());
    assert_eq!(serde_json::to_value(&in_the_api).unwrap(), expected);
    assert_eq!(CatalogImage::try_from(in_the_api).unwrap(), resolved.image);
}

#[test]
fn lints_the_seed_catalog() {
    let finding = |line: usize, version: &str, checksum: &str| {
        format!(
            "line {line}: error: {version}: `checksum`: checksum {checksum:?} is not sha256: \
             and 64 hex digits; take what sha256sum prints for the file"
        )
    };
    assert_eq!(
        lint_lines(&catalog("seed.yaml")),
        [
            finding(5, "v1.34.6", "sha256:abc"),
            finding(8, "v1.34.1", "sha256:abc"),
            finding(11, "v1.35.0", "sha256:ghi"),
            finding(14, "v1.35.4", "sha256:jkl"),
        ]
    );
}

#[test]
fn lints_channels() {
    let found: Vec<_> =
        lint(&catalog("full.yaml")).into_iter().map(|finding| (finding.line, finding.subject)).collect();
    let expected = [
        (6, "channel old"),
        (7, "channel gone"),
        (8, "channel broken"),
        (9, "channel worn"),
        (11, "channel v1.35"),
    ];
    assert_eq!(found, expected.map(|(line, subject)| (line, subject.to_owned())));
}

#[test]
fn one_mistake_never_hides_a_good_image() {
    let catalog = catalog("mistakes.yaml");
    let expected = document("mistakes.findings");
    assert_eq!(lint_lines(&catalog), expected.lines().collect::<Vec<_>>());
    let usable: Vec<_> = catalog.candidates().iter().map(|image| image.version.to_string()).collect();
    assert_eq!(usable, ["v1.34.12"]);
}

#[test]
fn the_digest_is_of_the_bytes() {
    let text = document("seed.yaml");
    let digest = Catalog::parse(&text, &Limits::default()).unwrap().digest();
    assert_eq!(digest, Sha256Digest::of(text.as_bytes()));
    let other = Catalog::parse(text + "# a comment\n", &Limits::default()).unwrap().digest();
    assert_ne!(digest, other);
}
