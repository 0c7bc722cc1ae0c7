//! GRUB's own tool for environment blocks, on ours; and we on what it writes.

use std::fs;
use std::path::Path;
use std::process::Command;

use monok8s_sdk::boot::grub::env_block::EnvBlock;
use monok8s_sdk::boot::grub::{FILE, FILES, GrubEnv};
use monok8s_sdk::boot::{ArmableSlot, AttemptId, BootBackend as _, Tries, TryCounting};
use monok8s_sdk::disk::KnownGoodSlot;
use monok8s_sdk::slot::Slot;
use xtask::grub::{GRUB_EDITENV, INSTALLED, MODULES};

fn editenv(file: &Path, arguments: &[&str]) -> Option<String> {
    let program = match GRUB_EDITENV.locate() {
        Ok(program) => program,
        Err(missing) => {
            println!("SKIP: {missing}");
            return None;
        }
    };
    let output = Command::new(program).arg(file).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "grub-editenv {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A block that `grub-editenv` made; `None` if there is no such program.
pub(super) fn block(variables: &[&str]) -> Option<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    editenv(file.path(), &["create"])?;
    editenv(file.path(), &[&["set"], variables].concat())?;
    Some(fs::read(file.path()).unwrap())
}

fn token(slot: Slot) -> ArmableSlot {
    KnownGoodSlot::from_confirm_record(slot, "v1.35.3".parse().unwrap(), None).into()
}

const ODD: &str = "kept=back\\slash and = and # and ä";

#[test]
fn what_the_tool_wrote_is_read_and_what_we_write_it_reads() {
    let variables = ["saved_entry=x", "B_TRY=0", "ORDER=A", "A_OK=1", "A_TRY=1", ODD, "B_OK=0", "empty="];
    let Some(made) = block(&variables) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    fs::write(&file, &made).unwrap();
    let loader = GrubEnv::in_directory(dir.path());
    assert_eq!(loader.canary().unwrap(), TryCounting::Proven);

    loader.arm_trial(token(Slot::B), AttemptId(7), Tries(1)).unwrap();
    let expected = "ORDER=B A\nA_OK=1\nA_TRY=1\nB_OK=1\nB_TRY=0\nMONOK8S_TRIAL=B:7:1:none\n\
                    MONOK8S_COUNTS=1\nsaved_entry=x\n";
    let listed = editenv(&file, &["list"]).unwrap();
    assert_eq!(listed, format!("{expected}{ODD}\nempty=\n"));

    // What others set, longer, shorter, new or gone, changes nothing else.
    editenv(&file, &["set", "saved_entry=a much longer one", "B_TRY=1", "new=1"]).unwrap();
    editenv(&file, &["unset", "empty"]).unwrap();
    loader.mark_good(Slot::A).unwrap();
    let listed = editenv(&file, &["list"]).unwrap();
    for line in [
        "ORDER=A",
        "A_TRY=0",
        "B_OK=0",
        "MONOK8S_TRIAL=B:7:1:fell-back",
        "saved_entry=a much longer one",
        "new=1",
    ] {
        assert!(listed.lines().any(|listed| listed == line), "{line} is not in {listed}");
    }
    assert!(!listed.contains("empty"), "{listed}");
    assert_eq!(fs::read(&file).unwrap().len(), 1024);
}

#[test]
fn the_readme_has_the_modules_and_the_first_state_that_are_tested() {
    let dir = tempfile::tempdir().unwrap();
    let readme = fs::read_to_string(xtask::host::workspace_root().join("deploy/host/README.md")).unwrap();
    let behind = |start: &str| -> Vec<_> {
        let line = readme.lines().find_map(|line| line.trim().strip_prefix(start)).unwrap();
        line.trim_end_matches('"').split_whitespace().collect()
    };
    assert_eq!(behind("modules=\""), MODULES);
    let variables = behind("grub-editenv \"$file\" set ");
    assert_eq!(variables, INSTALLED);
    for name in FILES {
        let Some(made) = block(&variables) else { return };
        fs::write(dir.path().join(name), made).unwrap();
    }
    let status = GrubEnv::detect(dir.path()).unwrap().status().unwrap();
    assert_eq!((status.next_boot(), status.tries_full), (Some(Slot::A), Tries(3)));
    assert!(!status.may_boot(Slot::B));
}

#[test]
fn both_agree_on_what_the_block_says() {
    for odd in ["plain", "a\\", "\\\\", "#", "=", "tab\tand\u{7f}", "ä ö", "new\nline"] {
        let Some(made) = block(&[&format!("x={odd}"), "y=behind"]) else { return };
        let read = EnvBlock::parse(&made).unwrap();
        assert_eq!(read.get("x"), Some(odd.as_bytes()));
        assert_eq!(read.get("y"), Some(&b"behind"[..]));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), read.encode().unwrap()).unwrap();
        let theirs = tempfile::NamedTempFile::new().unwrap();
        fs::write(theirs.path(), &made).unwrap();
        assert_eq!(editenv(file.path(), &["list"]), editenv(theirs.path(), &["list"]));
    }
}
