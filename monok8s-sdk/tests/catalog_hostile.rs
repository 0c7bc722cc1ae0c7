//! Documents that are no catalog, by mistake or on purpose: each is refused, with a line, in time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::{Duration, Instant};

use monok8s_sdk::catalog::{Catalog, CatalogError, Limits, lint};

fn refusal(text: &str) -> String {
    Catalog::parse(text, &Limits::default()).unwrap_err().to_string()
}

#[test]
fn refuses_what_is_not_a_catalog() {
    for (text, expected) in [
        ("", "line 1: this is not a catalog: found nothing where a mapping with `images` belongs"),
        (
            "<html><body>Not Found</body></html>",
            "line 1: this is not a catalog: found plain text where a mapping with `images` belongs",
        ),
        ("{\"message\": \"not found\"}", "line 1: this is not a catalog: it has no `images`"),
        (
            "stable: v1.35.1\nimage: []",
            "line 1: this is not a catalog: it has no `images`; did you mean it by \"image\"?",
        ),
        (
            "images: v1.35.1",
            "line 1: this is not a catalog: found plain text where the list `images` belongs",
        ),
        (
            "images: []\nchannels: [a]",
            "line 2: this is not a catalog: \
             found a list where the mapping `channels` of names to versions belongs",
        ),
        (
            "images: []\nblocked: v1.34.0",
            "line 2: this is not a catalog: found plain text where the list `blocked` belongs",
        ),
        (
            "images: []\n---\nimages: []",
            "line 2: a second YAML document starts here; a catalog is one document",
        ),
    ] {
        assert_eq!(refusal(text), expected, "{text}");
    }
}

#[test]
fn refuses_to_choose_between_two_values() {
    let image = |rest: &str| format!("images:\n- version: v1.35.1\n{rest}");
    for (text, expected) in [
        ("images: []\nimages: []", "line 2: \"images\" is given a second time (first on line 1); remove one"),
        (
            &image("  url: a\n  url: b\n"),
            "line 4: \"url\" is given a second time (first on line 3); remove one",
        ),
        (
            "images: []\nx:\n- k: 1\n  k: 2",
            "line 4: \"k\" is given a second time (first on line 3); remove one",
        ),
        (
            "images: []\nstable: v1.35.1\nchannels:\n  stable: v1.35.1",
            "line 4: \"stable\" is given a second time (first on line 2); remove one",
        ),
        (
            &image("- {version: v1.35.1, arch: arm64}\n- {version: v1.35.1}\n"),
            "line 4: v1.35.1 for every architecture is listed a second time (first on line 2); remove one",
        ),
        (
            &image("  arch: x86_64\n- {version: v1.35.1, arch: amd64}\n"),
            "line 4: v1.35.1 for amd64 is listed a second time (first on line 2); remove one",
        ),
    ] {
        assert_eq!(refusal(text), expected, "{text}");
    }
}

#[test]
fn a_block_that_cannot_be_read_blocks_everything() {
    let not_a_version = "line 3: what is blocked here cannot be read: \"1.34.0\" is not an OS version: \
                         the leading v is missing; write it like v1.35.3 or v1.35.3+r2";
    assert_eq!(refusal("images: []\nblocked:\n- 1.34.0"), not_a_version);
    assert_eq!(refusal("images: []\nblocked:\n- version: 1.34.0"), not_a_version);
    assert_eq!(
        refusal("images: []\nblocked:\n- {reason: bad}"),
        "line 3: what is blocked here cannot be read: `version` is missing"
    );
}

#[test]
fn refuses_aliases_and_sheer_size() {
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nimages: []\n";
    assert_eq!(refusal(bomb), "line 2: YAML aliases are not read in a catalog; write the value out");
    let many = format!("images: []\nother: [{}]", "1,".repeat(70_000));
    assert_eq!(refusal(&many), "line 2: the catalog has more than 65536 values; remove some");
    let nested = format!("images: []\nother: {}1{}", "[".repeat(40), "]".repeat(40));
    assert_eq!(refusal(&nested), "line 2: the catalog has more than 32 levels; remove some");
}

#[test]
fn says_where_the_yaml_is_broken() {
    for (text, line) in [
        ("images: [", 1),
        ("images: []\n  bad: indent", 2),
        ("images: []\n? [a]\n: b", 2),
        ("images: []\n? {}\n: 1", 2),
        ("images:\n\t- a", 2),
    ] {
        match Catalog::parse(text, &Limits::default()) {
            Err(CatalogError::Syntax { line: found, .. }) => assert_eq!(found, line, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let error = Catalog::parse(b"images:\n- \xff", &Limits::default()).unwrap_err();
    assert_eq!(error, CatalogError::NotUtf8 { line: 2 });
}

#[test]
fn limits_hold_exactly() {
    let limits = Limits { bytes: 200, images: 2, channels: 2, blocked: 2, mirrors: 1, text: 40 };
    let parse = |text: &str| Catalog::parse(text, &limits).map(|_| ()).map_err(|error| error.to_string());
    let filled = |bytes: usize| format!("images: []\n#{}", "x".repeat(bytes - 12));
    for allowed in [
        filled(200).as_str(),
        "images: [a, b]",
        "images: []\nstable: a\nchannels: {b: c}",
        "images: []\nblocked: [v1.1.1, v1.1.2]",
    ] {
        assert_eq!(parse(allowed), Ok(()));
    }
    for (text, expected) in [
        (filled(201).as_str(), "has 201 bytes, more than the 200"),
        ("images: [a, b, c]", "more than 2 images"),
        ("images: []\nstable: a\nchannels: {b: c, d: e}", "more than 2 channels"),
        ("images: []\nblocked: [v1.1.1, v1.1.2, v1.1.3]", "more than 2 blocked"),
    ] {
        assert!(parse(text).unwrap_err().contains(expected), "{text}");
    }
    for (text, expected) in [
        (format!("images:\n- url: https://{}\n", "x".repeat(33)), "`url`: longer than 40 bytes"),
        ("images:\n- mirrors: [https://a, https://b]\n".to_owned(), "`mirrors`: more than 1 of them"),
    ] {
        let findings = lint(&Catalog::parse(&text, &limits).unwrap());
        assert!(findings.iter().any(|finding| finding.message.starts_with(expected)), "{findings:?}");
    }
}

/// A document of the largest size, made to be slow, takes a debug build a second or two.
#[test]
fn pathological_documents_take_bounded_time() {
    for part in [
        "[",
        "{",
        "- ",
        "? ",
        "a: ",
        "\"",
        "'",
        "&a ",
        "*a ",
        "!!",
        "#",
        "%",
        "|",
        "\n",
        "- [",
        "? - ",
        "{a: ",
        "&a",
        "\u{feff}",
        "[,",
        "{,",
        "a\n",
        "a: b\n",
        "- a\n",
        "!<",
        "\"\n",
        "---\n",
        "[a: ",
        "%TAG ! a\n",
    ] {
        for start in ["", "images: ", "images: [", "\""] {
            let limits = Limits::default();
            let text = start.to_owned() + &part.repeat((limits.bytes - start.len()) / part.len());
            let started = Instant::now();
            let _ = Catalog::parse(&text, &limits);
            let took = started.elapsed();
            assert!(took < Duration::from_secs(10), "{start}{part:?} took {took:?}");
        }
    }
}
