//! What no compiler checks: the promises of ARCHITECTURE.md and the shape of the tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::host::workspace_root;

/// A file that is longer than this is no longer read in one sitting.
const MAX_LINES: usize = 500;

fn tracked(suffix: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", &format!("*{suffix}")])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<_> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| workspace_root().join(line))
        .filter(|path| path.exists())
        .collect();
    assert!(!files.is_empty(), "no {suffix} files");
    files
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace_root()).unwrap().display().to_string()
}

fn packages_of(arguments: &[&str]) -> Vec<String> {
    let output = Command::new("cargo")
        .args(["tree", "--package", "monok8s-sdk", "--edges", "normal", "--prefix", "none"])
        .args(arguments)
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_default_sdk_has_no_runtime_and_no_tls() {
    let packages = packages_of(&[]);
    assert!(packages.iter().any(|package| package == "kube-core"), "{packages:?}");
    for heavy in ["tokio", "hyper", "rustls", "ring", "aws-lc-rs", "openssl", "native-tls", "reqwest"] {
        assert!(!packages.iter().any(|package| package == heavy), "{heavy} is in the default tree");
    }
}

#[test]
fn the_sdk_chooses_no_tls_provider() {
    for features in [["--features", "client"], ["--features", "image"], ["--features", "boot"]] {
        let packages = packages_of(&features);
        for provider in ["ring", "aws-lc-rs", "aws-lc-sys"] {
            assert!(!packages.iter().any(|package| package == provider), "{features:?} brings {provider}");
        }
    }
}

#[test]
fn files_are_read_in_one_sitting() {
    let long: Vec<_> = tracked(".rs")
        .into_iter()
        .map(|path| (std::fs::read_to_string(&path).unwrap().lines().count(), shown(&path)))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Written apart, so that this file does not find itself.
    let words = [
        "to".to_owned() + "do!(",
        "unimpl".to_owned() + "emented!(",
        "#[ig".to_owned() + "nore",
        "FIX".to_owned() + "ME",
    ];
    for path in tracked(".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in &words {
            assert!(!text.contains(word.as_str()), "{} contains {word}", shown(&path));
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for path in tracked(".md") {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let target = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{} links to {link}, which does not exist", shown(&path));
        }
    }
}

/// The documented variants of an enum, as its source has them.
fn documented(source: &str, name: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(workspace_root().join("monok8s-sdk/src/api").join(source)).unwrap();
    let body = text.split(&format!("pub enum {name} {{")).nth(1).unwrap().split("\n    }").next().unwrap();
    let (mut found, mut doc) = (Vec::new(), Vec::new());
    for line in body.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            doc.push(words.trim());
        } else if let Some(variant) = line.strip_suffix(',') {
            found.push((variant.to_owned(), doc.join(" ")));
            doc.clear();
        }
    }
    assert!(!found.is_empty(), "{name} was not found in {source}");
    found
}

#[test]
fn the_guide_defines_each_word_as_the_code_does() {
    let guide = std::fs::read_to_string(workspace_root().join("docs/os-upgrades.md")).unwrap();
    for (source, name) in [
        ("osupgrade_status.rs", "UpgradePhase"),
        ("progress.rs", "ProgressPhase"),
        ("conditions.rs", "ConditionType"),
        ("progress.rs", "FailureReason"),
        ("upgrade_reason.rs", "UpgradeReason"),
    ] {
        for (word, meaning) in documented(source, name) {
            let row = format!("| `{word}` | {meaning} |");
            assert!(guide.contains(&row), "docs/os-upgrades.md lacks the row of {name}: {row}");
        }
    }
}
