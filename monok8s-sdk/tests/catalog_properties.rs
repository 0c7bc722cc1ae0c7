//! What holds for every catalog, tried on random ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fmt::Write as _;

use monok8s_sdk::api::DowngradePolicy;
use monok8s_sdk::catalog::{Arch, Catalog, CatalogImage, Limits, PathError, hop_candidates, lint, path};
use monok8s_sdk::digest::Sha256Digest;
use monok8s_sdk::version::OsVersion;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

/// Every version that occurs: few enough that random catalogs are dense.
fn versions() -> Vec<OsVersion> {
    let mut all = Vec::new();
    for minor in 31..=36 {
        for rest in ["0-rc.1", "0", "1", "1+r2", "4"] {
            all.push(format!("v1.{minor}.{rest}").parse().unwrap());
        }
    }
    all
}

fn version() -> impl Strategy<Value = OsVersion> {
    proptest::sample::select(versions())
}

fn arch() -> impl Strategy<Value = Option<Arch>> {
    proptest::option::of(
        proptest::sample::select(vec!["amd64", "arm64"]).prop_map(|name| name.parse().unwrap()),
    )
}

#[derive(Debug, Clone)]
struct Written {
    version: OsVersion,
    arch: Option<Arch>,
    min_from: Option<OsVersion>,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Usable,
    Unusable,
    Blocked,
}

fn parse(text: &str) -> Catalog {
    Catalog::parse(text, &Limits::default()).unwrap()
}

/// A catalog in which most versions are there, some with a `minFrom` a little older than themselves.
fn document() -> impl Strategy<Value = String> {
    let all = versions();
    let count = all.len();
    let fates = prop_oneof![8 => Just(Fate::Usable), 1 => Just(Fate::Unusable), 1 => Just(Fate::Blocked)];
    let extra = (arch(), proptest::option::weighted(0.4, any::<Index>()), fates);
    let entries = proptest::collection::vec((subsequence(all.clone(), 0..=count), extra), 1..40);
    entries.prop_map(move |raw| {
        let mut written: Vec<Written> = Vec::new();
        for (chosen, (arch, older_by, fate)) in raw {
            for version in chosen.into_iter().step_by(3) {
                if written.iter().any(|other| other.version == version && other.arch == arch) {
                    continue;
                }
                let at = all.iter().position(|other| *other == version).unwrap();
                let min_from = older_by.map(|by| all[at.saturating_sub(by.index(8))].clone());
                written.push(Written { version, arch: arch.clone(), min_from, fate });
            }
        }
        text_of(&written)
    })
}

fn text_of(entries: &[Written]) -> String {
    let mut text = "images:\n".to_owned();
    for Written { version, arch, min_from, fate } in entries {
        let arch = arch.as_ref().map_or("null", Arch::as_str);
        let checksum = match fate {
            Fate::Unusable => "sha256:abc".to_owned(),
            _ => Sha256Digest::of(format!("{version} {arch}").as_bytes()).to_string(),
        };
        let min_from = min_from.as_ref().map_or("null".to_owned(), ToString::to_string);
        writeln!(
            text,
            "- {{version: {version}, arch: {arch}, url: 'https://example.com/{version}', \
             checksum: '{checksum}', minFrom: {min_from}}}"
        )
        .unwrap();
    }
    text.push_str("blocked:\n");
    for entry in entries.iter().filter(|entry| entry.fate == Fate::Blocked) {
        writeln!(text, "- {}", entry.version).unwrap();
    }
    text
}

/// The fewest hops of any path, by trying all of them.
fn fewest_hops(
    from: &OsVersion,
    to: &OsVersion,
    images: &[CatalogImage],
    arch: Option<&Arch>,
) -> Option<usize> {
    let for_this_arch = |image: &&CatalogImage| {
        let exact = images.iter().any(|other| other.version == image.version && other.arch.as_ref() == arch);
        image.arch.as_ref() == arch || (image.arch.is_none() && !exact)
    };
    let mut reached = vec![from.clone()];
    for hops in 1..40 {
        let mut next = Vec::new();
        for image in images.iter().filter(for_this_arch) {
            let between = if from < to { *from < image.version } else { *from > image.version };
            let takeable = reached.iter().any(|here| {
                let forward = if from < to { *here < image.version } else { *here > image.version };
                forward
                    && here.minor().minor.abs_diff(image.version.minor().minor) <= 1
                    && image.min_from.as_ref().is_none_or(|min_from| here >= min_from)
            });
            if between && takeable && (image.version == *to || !image.version.is_prerelease()) {
                next.push(image.version.clone());
            }
        }
        if next.contains(to) {
            return Some(hops);
        }
        reached.extend(next);
        reached.sort();
        reached.dedup();
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_path_keeps_every_promise(text in document(), from in version(), to in version(), arch in arch()) {
        let catalog = parse(&text);
        let candidates = catalog.candidates();
        let expected = fewest_hops(&from, &to, &candidates, arch.as_ref());
        match path(&from, &to, &candidates, arch.as_ref(), DowngradePolicy::Allow) {
            Ok(hops) if from == to => prop_assert!(hops.is_empty()),
            Ok(hops) => {
                prop_assert_eq!(Some(hops.len()), expected);
                prop_assert_eq!(&hops[hops.len() - 1].version, &to);
                let mut here = &from;
                for hop in &hops {
                    let next = &hop.version;
                    prop_assert!(here.minor().minor.abs_diff(next.minor().minor) <= 1, "{here} to {next}");
                    prop_assert_eq!(here < next, from < to, "never turns back");
                    prop_assert!(hop.min_from.as_ref().is_none_or(|min_from| here >= min_from));
                    prop_assert!(!catalog.blocked().contains_key(next));
                    prop_assert!(hop.fits(arch.as_ref()));
                    prop_assert!(*next == to || !next.is_prerelease());
                    here = next;
                }
            }
            Err(error) => {
                prop_assert_eq!(expected, None, "{}", error);
                prop_assert!(!error.to_string().contains(" of ;"), "names what is missing: {}", error);
            }
        }
    }

    #[test]
    fn refusing_downgrades_refuses_only_those(text in document(), from in version(), to in version()) {
        let catalog = parse(&text);
        let candidates = catalog.candidates();
        let refuse = path(&from, &to, &candidates, None, DowngradePolicy::Refuse);
        if to < from {
            prop_assert_eq!(refuse, Err(PathError::DowngradeRefused { from, to }));
        } else {
            prop_assert_eq!(refuse, path(&from, &to, &candidates, None, DowngradePolicy::Allow));
        }
    }

    #[test]
    fn frozen_candidates_answer_like_the_catalog(
        text in document(),
        currents in proptest::collection::vec(version(), 1..4),
        to in version(),
        arch in arch(),
    ) {
        let catalog = parse(&text);
        let frozen = match hop_candidates(&catalog, &currents, &to) {
            Ok(frozen) => frozen,
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let all = catalog.candidates();
        prop_assert!(frozen.len() <= 64);
        prop_assert!(frozen.iter().all(|image| all.contains(image)));
        prop_assert!(frozen.is_sorted_by(|a, b| (&a.version, &a.arch) <= (&b.version, &b.arch)));
        let minors: Vec<_> = currents.iter().map(OsVersion::minor).chain([to.minor()]).collect();
        let (low, high) = (minors.iter().min().unwrap(), minors.iter().max().unwrap());
        for from in versions().into_iter().filter(|from| (*low..=*high).contains(&from.minor())) {
            let ours = path(&from, &to, &frozen, arch.as_ref(), DowngradePolicy::Allow);
            let whole = path(&from, &to, &all, arch.as_ref(), DowngradePolicy::Allow);
            match (ours, whole) {
                (Ok(ours), Ok(whole)) => prop_assert_eq!(ours, whole, "from {}", from),
                (Err(ours), Err(whole)) => prop_assert_eq!(ours.reason(), whole.reason()),
                (ours, whole) => prop_assert!(false, "from {}: {:?} but {:?}", from, ours, whole),
            }
        }
    }

    #[test]
    fn resolves_only_to_what_may_be_installed(text in document(), wanted in version(), arch in arch()) {
        let catalog = parse(&text);
        let asked = wanted.to_string();
        let answer = catalog.resolve(&asked, arch.as_ref());
        prop_assert_eq!(&answer, &catalog.resolve(&asked, arch.as_ref()));
        let installable = catalog.candidates().iter().any(|image| {
            image.version == wanted && (arch.is_none() || image.fits(arch.as_ref()))
        });
        prop_assert_eq!(answer.is_ok(), installable);
        if let Ok(found) = answer {
            prop_assert_eq!(&found.image.version, &wanted);
            prop_assert!(!catalog.blocked().contains_key(&found.version));
        }
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Catalog::parse(text, &Limits::default());
        let _ = Catalog::parse(bytes, &Limits::default());
    }

    /// Scraps of real documents in any order reach deeper than noise does.
    #[test]
    fn reading_never_panics(scraps in proptest::collection::vec(proptest::sample::select(SCRAPS), 0..40)) {
        let text = "images:\n".to_owned() + &scraps.concat();
        if let Ok(catalog) = Catalog::parse(&text, &Limits::default()) {
            let lines = text.lines().count();
            for finding in lint(&catalog) {
                prop_assert!((1..=lines).contains(&finding.line), "{}", finding);
            }
            let _ = catalog.resolve("stable", None);
        }
    }
}

const SCRAPS: &[&str] = &[
    "- ",
    "  ",
    "\n",
    "version: ",
    "v1.35.1",
    "url: ",
    "https://a.b/c",
    "checksum: ",
    "sha256:abc",
    "size: ",
    "-1",
    "9223372036854775808",
    "arch: ",
    "mirrors: ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "deprecated: ",
    "message: ",
    "replacement: ",
    "minFrom: ",
    "blocked:\n",
    "stable: ",
    "channels:\n",
    "null",
    "~",
    "\"",
    "'",
    "&a ",
    "*a",
    "# ",
    "|\n",
    "é",
    "index: ",
    "sha256:99af82a263deca44ad91d21d684f0fa944d5d0456a1da540f1c644f8aa59b14b",
    "imageChecksum: ",
    "reason: ",
    "\t",
    "---\n",
];
