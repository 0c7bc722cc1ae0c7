//! Reports about clusters that really were in that state, as `kubectl get -o json` dumped them. The files in
//! `testdata/status` are named after their upgrade; the text beside each is what `ctl status` and `ctl explain` say.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use monok8s_sdk::status::{Cluster, DumpError, Report};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dumps() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("testdata/status")).unwrap();
    let mut dumps: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    dumps.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    dumps.sort();
    dumps
}

fn report(dump: &Path) -> Report {
    let cluster = Cluster::from_dump(&fs::read(dump).unwrap()).unwrap();
    Report::of(&cluster, dump.file_stem().unwrap().to_str().unwrap()).unwrap()
}

#[test]
fn each_dump_is_told_as_expected() {
    let dumps = dumps();
    assert!(dumps.len() >= 20, "{dumps:?}");
    for dump in dumps {
        let report = report(&dump);
        let told = format!("{}\n{}", report.text(), report.explanation());
        let expected = fs::read_to_string(dump.with_extension("txt")).unwrap();
        assert_eq!(told, expected, "{}", dump.display());
    }
}

#[test]
fn the_guide_shows_a_report_as_it_is() {
    let guide = fs::read_to_string(root().join("docs/os-upgrades.md")).unwrap();
    let told = report(&root().join("testdata/status/fell-back.json")).text();
    assert!(guide.contains(&told), "the guide shows something else than:\n{told}");
}

#[test]
fn what_is_no_dump_is_refused_in_words() {
    let refused = |dump: &str| Cluster::from_dump(dump.as_bytes()).unwrap_err();
    assert!(matches!(refused("nodes: []"), DumpError::NotJson(_)));
    assert!(matches!(refused("{}"), DumpError::NotAList));
    let node = r#"{"items": [{"kind": "Node", "metadata": {"name": "a"}, "status": {"conditions": 1}}]}"#;
    assert_eq!(refused(node).to_string(), "Node a in the dump cannot be read");
}
