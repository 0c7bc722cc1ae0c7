//! Every parser of outside bytes, on what once broke it, on good input, and on mutations of that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use monok8s_sdk::boot::uboot::{EnvConfig, Environment, Layout};
use monok8s_sdk::catalog::{Catalog, Limits};
use monok8s_sdk::disk::gpt;
use monok8s_sdk::fuzzing::{TARGETS, drive};
use monok8s_sdk::image::{Index, parse_seek_table};

/// The inputs of a target in a directory of `fuzz/`, in the order of their names.
fn inputs(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target);
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Replays what was found, then mutates good input for a second.
fn holds(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    for (path, input) in inputs("regressions", name) {
        println!("{}", path.display());
        target(&input);
    }
    let seeds: Vec<_> = inputs("corpus", name).into_iter().map(|(_, seed)| seed).collect();
    assert!(!seeds.is_empty(), "fuzz/corpus/{name} is empty");
    let second = Duration::from_secs(1);
    if let Err(found) = drive(target, seeds, 0x6D6F_6E6F, second, second * 30) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-found"));
        fs::write(&path, found.input()).unwrap();
        panic!("{name} does not survive {}: keep it in fuzz/regressions/{name}/", path.display());
    }
}

/// Mutations of what is refused at the first byte would show little.
#[test]
fn the_seeds_are_good_input() {
    for (path, seed) in inputs("corpus", "catalog") {
        assert!(Catalog::parse(&seed, &Limits::default()).is_ok(), "{}", path.display());
    }
    for (path, seed) in inputs("corpus", "index") {
        assert!(Index::parse(seed).is_ok(), "{}", path.display());
    }
    for (path, seed) in inputs("corpus", "seek_table") {
        assert!(parse_seek_table(&seed).is_ok_and(|entries| !entries.is_empty()), "{}", path.display());
    }
    for (path, seed) in inputs("corpus", "uboot_config") {
        assert!(String::from_utf8(seed).unwrap().parse::<EnvConfig>().is_ok(), "{}", path.display());
    }
    for (path, seed) in inputs("corpus", "uboot_env") {
        let second = 3 + usize::from(u16::from_le_bytes([seed[1], seed[2]]));
        for copy in [&seed[3..second], &seed[second..]] {
            assert!(Environment::decode(copy, Layout::Redundant).is_ok(), "{}", path.display());
        }
    }
    for (path, seed) in inputs("corpus", "gpt_edit") {
        let table = gpt::parse(&seed[4..]).unwrap();
        let has_partition = table.partitions.iter().any(|partition| partition.index == u32::from(seed[1]));
        assert!(has_partition && table.copy == gpt::TableCopy::Primary, "{}", path.display());
    }
    let (path, seed) = &inputs("corpus", "gpt")[0];
    assert_eq!(gpt::parse(&seed[1..]).unwrap().partitions.len(), 2, "{}", path.display());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_target_is_run_here_and_by_libfuzzer() {
            let here = [$(stringify!($name)),*];
            assert_eq!(here.to_vec(), TARGETS.map(|(name, _)| name));
            for name in here {
                let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join(format!("../fuzz/fuzz_targets/{name}.rs"));
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.contains(&format!("fuzzing::{name}(")), "{}", path.display());
            }
        }
    };
}

targets!(answer bls catalog gpt gpt_edit grub_env index inspect objects os_release record seek_table uboot_config uboot_env write);
