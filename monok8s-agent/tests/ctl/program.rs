use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use monok8s_sdk::disk::fixture::FileMachine;

/// What a run of `ctl` left.
pub(super) struct Run {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Run {
    /// Its output, if it succeeded without a word on stderr.
    #[track_caller]
    pub(super) fn good(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// Its error, if it ended with `code` and printed nothing on stdout.
    #[track_caller]
    pub(super) fn bad(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        self.stderr
    }
}

/// Starts `ctl` with pipes to everything.
pub(super) fn spawn<S: AsRef<str>>(args: &[S]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctl"));
    // The variables of a pod that the tests happen to run in say nothing about the test's machine.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MONOK8S_")) {
        command.env_remove(name);
    }
    command
        .args(args.iter().map(AsRef::as_ref))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs `ctl` with `input` on its standard input.
pub(super) fn ctl_with_input<S: AsRef<str>>(args: &[S], input: &[u8]) -> Run {
    let mut child = spawn(args);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || {
        // A refusal comes before the input was read.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `ctl` with nothing on its standard input.
pub(super) fn ctl<S: AsRef<str>>(args: &[S]) -> Run {
    ctl_with_input(args, b"")
}

/// A file below the repository's `testdata`.
pub(super) fn testdata(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("testdata").join(path).display().to_string()
}

/// A machine in a directory of its own: slots of 4 MiB in a disk image, A booted.
pub(super) struct Machine {
    pub(super) files: FileMachine,
    directory: tempfile::TempDir,
}

impl Machine {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = FileMachine::create(directory.path(), 4 << 20).unwrap();
        std::fs::create_dir(directory.path().join("data")).unwrap();
        Self { files, directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `command` with the flags that say where this machine is, and `more`.
    pub(super) fn args(&self, command: &str, more: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let place = [
            command.to_owned(),
            format!("--host-root={}", path("host")),
            format!("--disk={}", path("disk.img")),
            format!("--data-dir={}", path("data")),
        ];
        place.into_iter().chain(more.iter().map(ToString::to_string)).collect()
    }
}
