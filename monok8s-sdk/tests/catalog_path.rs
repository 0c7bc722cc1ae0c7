//! Which way a node goes from one version to another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fmt::Write as _;

use monok8s_sdk::api::DowngradePolicy;
use monok8s_sdk::catalog::{Arch, Catalog, CatalogImage, Limits, hop_candidates, path};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::version::OsVersion;

/// A catalog from words like `v1.35.1`, `v1.35.1@arm64`, `v1.35.1>=v1.34.6` (its `minFrom`),
/// `!v1.35.1` (blocked) and `?v1.35.1` (unusable).
fn catalog(words: &str) -> Catalog {
    let (mut images, mut blocked) = ("images:\n".to_owned(), "blocked:\n".to_owned());
    for word in words.split_whitespace() {
        let image = word.trim_start_matches(['!', '?']);
        let (image, min_from) = image.split_once(">=").unwrap_or((image, "null"));
        let (version, arch) = image.split_once('@').unwrap_or((image, "null"));
        let checksum = Sha256Digest::of(word.as_bytes()).to_string();
        let checksum = if word.starts_with('?') { "sha256:abc" } else { &checksum };
        writeln!(
            images,
            "- {{version: {version}, arch: {arch}, minFrom: {min_from}, checksum: '{checksum}', \
             url: 'https://example.com/{version}-{arch}'}}"
        )
        .unwrap();
        if word.starts_with('!') {
            writeln!(blocked, "- {version}").unwrap();
        }
    }
    Catalog::parse(images + &blocked, &Limits::default()).unwrap()
}

fn words(images: &[CatalogImage]) -> String {
    let word = |image: &CatalogImage| match &image.arch {
        Some(arch) => format!("{}@{arch}", image.version),
        None => image.version.to_string(),
    };
    images.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The hops of `question`, which is `FROM to TO`, `FROM down to TO` (downgrades allowed), with
/// ` on ARCH` where that matters; or reason and message.
#[track_caller]
fn check(catalog_words: &str, question: &str, expected: &str) {
    let (route, arch) = question
        .split_once(" on ")
        .map_or((question, None), |(route, arch)| (route, Some(arch.parse::<Arch>().unwrap())));
    let (from, to) = route.split_once(" to ").unwrap();
    let policy = if from.ends_with(" down") { DowngradePolicy::Allow } else { DowngradePolicy::Refuse };
    let from: OsVersion = from.trim_end_matches(" down").parse().unwrap();
    let to = to.parse().unwrap();
    let answer = match path(&from, &to, &catalog(catalog_words).candidates(), arch.as_ref(), policy) {
        Ok(hops) => words(&hops),
        Err(error) => format!("{}: {error}", error.reason()),
    };
    assert_eq!(answer, expected, "{question} with {catalog_words}");
}

const PLAIN: &str = "v1.33.2 v1.34.1 v1.34.6 v1.35.0 v1.35.1 v1.35.4 v1.36.0-rc.1 v1.36.0 v1.36.3";

#[test]
fn goes_up_through_the_newest_patch_of_each_minor() {
    check(PLAIN, "v1.35.0 to v1.35.4", "v1.35.4");
    check(PLAIN, "v1.34.1 to v1.35.1", "v1.35.1");
    check(PLAIN, "v1.34.1 to v1.36.3", "v1.35.4 v1.36.3");
    check(PLAIN, "v1.33.0 to v1.36.0", "v1.34.6 v1.35.4 v1.36.0");
    check(PLAIN, "v1.35.4 to v1.35.4", "");
    check("v1.34.6 v1.34.6+r2 v1.35.0", "v1.33.1 to v1.35.0", "v1.34.6+r2 v1.35.0");
    check("v1.35.3 v1.35.3+r2", "v1.35.3 to v1.35.3+r2", "v1.35.3+r2");
}

#[test]
fn goes_down_only_when_allowed() {
    let refused = "is older than v1.35.4, which is running; set downgradePolicy: Allow if that is meant";
    check(PLAIN, "v1.35.4 to v1.35.1", &format!("DowngradeRefused: v1.35.1 {refused}"));
    check(PLAIN, "v1.35.4 to v1.33.2", &format!("DowngradeRefused: v1.33.2 {refused}"));
    check(PLAIN, "v1.35.4 down to v1.35.1", "v1.35.1");
    check(PLAIN, "v1.36.3 down to v1.33.2", "v1.35.4 v1.34.6 v1.33.2");
    check("v1.35.3 v1.35.3+r2", "v1.35.3+r2 down to v1.35.3", "v1.35.3");
}

#[test]
fn a_blocked_or_unusable_version_is_left_but_never_taken() {
    check("v1.34.1 !v1.34.6 v1.35.1", "v1.33.1 to v1.35.1", "v1.34.1 v1.35.1");
    check("v1.34.1 ?v1.34.6 v1.35.1", "v1.33.1 to v1.35.1", "v1.34.1 v1.35.1");
    check("!v1.34.6 v1.35.1", "v1.34.6 to v1.35.1", "v1.35.1");
    let missing = "no usable, unblocked release of v1.34; add one to the catalog";
    check(
        "!v1.34.6 v1.35.1",
        "v1.33.1 to v1.35.1",
        &format!("NoUpgradePath: no path from v1.33.1 to v1.35.1: {missing}"),
    );
    check(
        "v1.34.6 !v1.35.1",
        "v1.34.6 to v1.35.1",
        "VersionNotInCatalog: no path from v1.34.6 to v1.35.1: \
         there is no usable, unblocked image of v1.35.1",
    );
}

#[test]
fn names_every_minor_that_is_missing() {
    check(
        PLAIN,
        "v1.30.1 to v1.34.1",
        "NoUpgradePath: no path from v1.30.1 to v1.34.1: \
         no usable, unblocked release of v1.31, v1.32; add one to the catalog",
    );
    check(
        "v1.999999999999.0",
        "v1.30.1 to v1.999999999999.0",
        "NoUpgradePath: no path from v1.30.1 to v1.999999999999.0: no usable, unblocked release of \
         v1.31, v1.32, v1.33, v1.34, v1.35, v1.36, v1.37, v1.38; add one to the catalog",
    );
    check(
        "v2.0.0",
        "v1.36.3 to v2.0.0",
        "NoUpgradePath: no path from v1.36.3 to v2.0.0: nothing leads across a major release",
    );
}

#[test]
fn min_from_costs_another_hop_where_needed() {
    check("v1.35.1 v1.35.4>=v1.35.1", "v1.34.6 to v1.35.4", "v1.35.1 v1.35.4");
    check("v1.34.6 v1.35.4>=v1.34.6", "v1.34.1 to v1.35.4", "v1.34.6 v1.35.4");
    check("v1.34.6 v1.35.4>=v1.34.6", "v1.34.6 to v1.35.4", "v1.35.4");
    // The newest v1.35 is out of reach, an older one is not.
    check("v1.35.1 v1.35.4>=v1.34.6 v1.36.0", "v1.34.1 to v1.36.0", "v1.35.1 v1.36.0");
    check(
        "v1.34.6 v1.35.1 v1.35.4>=v1.34.6 v1.36.0>=v1.35.2",
        "v1.34.1 to v1.36.0",
        "v1.35.1 v1.35.4 v1.36.0",
    );
    check("v1.35.4>=v1.34.6", "v1.36.1 down to v1.35.4", "v1.35.4");
    check(
        "v1.34.5 v1.35.4>=v1.34.6",
        "v1.34.1 to v1.35.4",
        "NoUpgradePath: no path from v1.34.1 to v1.35.4: v1.35.4 may be installed from v1.34.6 on, \
         and nothing leads there; add a release of v1.34 that does",
    );
}

#[test]
fn a_pre_release_is_a_target_but_never_a_hop() {
    check(PLAIN, "v1.35.4 to v1.36.0-rc.1", "v1.36.0-rc.1");
    check(PLAIN, "v1.36.0-rc.1 to v1.36.0", "v1.36.0");
    check(PLAIN, "v1.34.1 to v1.36.0-rc.1", "v1.35.4 v1.36.0-rc.1");
    check(
        "v1.35.0-rc.1 v1.36.0",
        "v1.34.1 to v1.36.0",
        "NoUpgradePath: no path from v1.34.1 to v1.36.0: \
         no usable, unblocked release of v1.35; add one to the catalog",
    );
}

#[test]
fn an_image_for_the_architecture_comes_first() {
    let mixed = "v1.34.6 v1.34.6@arm64 v1.35.1@amd64 v1.35.1@arm64";
    check(mixed, "v1.33.1 to v1.35.1 on arm64", "v1.34.6@arm64 v1.35.1@arm64");
    check(mixed, "v1.33.1 to v1.35.1 on amd64", "v1.34.6 v1.35.1@amd64");
    for (question, wanted) in
        [("v1.34.6 to v1.35.1 on riscv64", "riscv64"), ("v1.34.6 to v1.35.1", "every architecture")]
    {
        let expected = format!(
            "NoImageForArch: no path from v1.34.6 to v1.35.1: \
             there is no usable, unblocked image of v1.35.1 for {wanted}, only for amd64, arm64"
        );
        check(mixed, question, &expected);
    }
}

#[test]
fn freezes_what_a_path_can_take_and_nothing_else() {
    let freeze = |catalog_words: &str, currents: &[&str], target: &str| {
        let currents: Vec<OsVersion> = currents.iter().map(|text| text.parse().unwrap()).collect();
        match hop_candidates(&catalog(catalog_words), &currents, &target.parse().unwrap()) {
            Ok(hops) => words(&hops),
            Err(error) => format!("{}: {error}", error.reason()),
        }
    };
    assert_eq!(freeze(PLAIN, &["v1.34.1", "v1.35.0"], "v1.36.0"), "v1.34.6 v1.35.4 v1.36.0");
    assert_eq!(freeze(PLAIN, &["v1.36.3"], "v1.34.1"), "v1.34.1 v1.35.4 v1.36.3");
    assert_eq!(
        freeze("v1.34.6 v1.35.1 v1.35.2 v1.35.4>=v1.34.6 v1.36.0", &["v1.34.1"], "v1.36.0"),
        "v1.34.6 v1.35.2 v1.35.4 v1.36.0"
    );
    let long = (1..=70).map(|minor| format!("v1.{minor}.0")).collect::<Vec<_>>().join(" ");
    assert_eq!(freeze(&long, &["v1.7.0"], "v1.70.0").split(' ').count(), 64);
    assert_eq!(
        freeze(&long, &["v1.6.0"], "v1.70.0"),
        "NoUpgradePath: 65 images could be hops on the way to v1.70.0, more than the 64 that are kept; \
         choose a nearer version first"
    );
}
