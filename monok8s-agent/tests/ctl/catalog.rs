use serde_json::{Value, json};

use super::program::{ctl, ctl_with_input, testdata};

const CLEAN: &[u8] = b"images:
  - version: v1.35.1
    url: https://example.com/rootfs.ext4.zst
    checksum: sha256:99af82a263deca44ad91d21d684f0fa944d5d0456a1da540f1c644f8aa59b14b
";

#[test]
fn lint_prints_each_mistake_with_its_line_and_fails() {
    let run = ctl(&["catalog", "lint", &testdata("catalogs/seed.yaml")]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""));
    assert!(run.stdout.lines().count() >= 4, "{}", run.stdout);
    assert!(run.stdout.contains("sha256:abc"), "{}", run.stdout);
    assert!(run.stdout.lines().all(|line| line.starts_with("line ")), "{}", run.stdout);

    let run = ctl(&["catalog", "lint", "-o", "json", &testdata("catalogs/seed.yaml")]);
    let findings: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(run.code, Some(1));
    assert_eq!(findings[0]["severity"], "error");
    assert!(findings[0]["line"].is_u64());
}

#[test]
fn lint_of_a_good_catalog_is_silent() {
    assert_eq!(ctl_with_input(&["catalog", "lint", "-"], CLEAN).good(), "");
    assert_eq!(ctl_with_input(&["catalog", "lint", "-", "-ojson"], CLEAN).good(), "[]\n");
}

#[test]
fn warnings_alone_do_not_fail() {
    let odd = [CLEAN, b"surprise: 1\n"].concat();
    let output = ctl_with_input(&["catalog", "lint", "-"], &odd).good();
    assert!(output.contains("warning") && output.contains("surprise"), "{output}");
}

#[test]
fn what_is_no_catalog_is_an_error_that_is_printed_once() {
    let twice = [CLEAN, CLEAN].concat();
    for (document, said) in [(&twice[..], "images"), (b"\xff\xfe", "UTF-8"), (b"- a\n", "catalog")] {
        for command in [&["catalog", "lint", "-"][..], &["catalog", "resolve", "-", "stable"]] {
            let error = ctl_with_input(command, document).bad(1);
            assert!(
                error.starts_with("error: - is not a usable catalog: ") && error.contains(said),
                "{error}"
            );
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    let error = ctl(&["catalog", "lint", "/no/such/file"]).bad(1);
    assert!(error.contains("/no/such/file"), "{error}");
    let endless = vec![b'#'; 3 << 20];
    let error = ctl_with_input(&["catalog", "lint", "-"], &endless).bad(1);
    assert!(error.contains("more than the 1048576 that are read"), "{error}");
}

#[test]
fn resolve_shows_the_image_and_the_path() {
    let full = testdata("catalogs/full.yaml");
    let args = ["catalog", "resolve", &full, "stable", "--arch=x86_64", "--from=v1.34.2"];
    let text = ctl(&args).good();
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!(value("Version"), "v1.35.4");
    assert_eq!(value("Channel"), "stable");
    assert_eq!(value("URL"), "https://images.example.com/v1.35.4-amd64.img.zst");
    assert!(value("Path").ends_with("v1.35.4"), "{text}");

    let found: Value = serde_json::from_str(&ctl(&[&args[..], &["-o", "json"]].concat()).good()).unwrap();
    assert_eq!((&found["version"], &found["channel"]), (&json!("v1.35.4"), &json!("stable")));
    assert_eq!(found["image"]["arch"], "amd64");
    assert_eq!(found["path"].as_array().unwrap().last().unwrap()["version"], "v1.35.4");
    let yaml = ctl(&[&args[..], &["-o", "yaml"]].concat()).good();
    assert_eq!(serde_yaml::from_str::<Value>(&yaml).unwrap(), found);
}

#[test]
fn resolve_says_why_not_and_what_is_near() {
    let full = testdata("catalogs/full.yaml");
    let seed = testdata("catalogs/seed.yaml");
    for (args, words) in [
        (&[&seed[..], "v1.35.3"][..], &["v1.35.3 is not in the catalog", "v1.35.1", "v1.35.4"][..]),
        (&[&full[..], "fast"], &["no channel", "candidate"]),
        (&[&full[..], "v1.34.6", "--from=v1.35.1"], &["is older than v1.35.1"]),
        (&[&full[..], "v1.34.2"], &["blocked by the catalog", "loses disks"]),
    ] {
        let error = ctl(&[&["catalog", "resolve"], args].concat()).bad(1);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let down = ["catalog", "resolve", &full, "v1.34.6", "--from=v1.35.1", "--allow-downgrade"];
    assert!(ctl(&down).good().contains("v1.34.6"));
    ctl(&["catalog", "resolve", &full, "stable", "--from=yesterday"]).bad(2);
}
