//! Child processes that never outlive us.
//!
//! Three mechanisms, each for one way of ending:
//! - [`Child`] ends its process group when it is dropped: returns, errors, panics;
//! - [`until_interrupted`] drops the work on Ctrl-C, SIGTERM and SIGHUP, so that those drops happen.
//!   Each child has its own process group, so that a terminal's Ctrl-C reaches only us;
//! - when we are killed outright, the kernel kills the children: they are started through
//!   `setpriv --pdeathsig KILL` (util-linux) where that is installed. The kernel means the *thread*
//!   that forked, so every child is forked by one thread that lives as long as the process does.

use std::future::Future;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::Instant;

use crate::host::SETPRIV;

const POLL: Duration = Duration::from_millis(10);
/// How much of a log an error quotes.
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 16 * 1024;

/// A running program, its log, and the duty to end it.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    process: std::process::Child,
}

impl Child {
    /// Starts `command` with both outputs appended to `log` and no input.
    pub fn spawn(name: &str, command: Command, log: &Path) -> Result<Self> {
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log of {name}, {}", log.display()))?;
        let errors = output.try_clone()?;
        // Streams last: a `Command` does not tell what its own are, so wrapping would lose them.
        let mut command = dying_with_parent(command);
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let process = fork(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), process })
    }

    /// What the program is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id; also the id of its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits until it ends by itself; `None` when it still runs after `timeout`.
    pub async fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.exit_status()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end (SIGTERM), and kills it if it still runs after `grace`.
    pub async fn terminate(mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        match self.wait(grace).await? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Kills it (SIGKILL) together with what it started, and waits for the end.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.end()
    }

    /// Fails with the end of its log if it has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.exit_status()? {
            None => Ok(()),
            Some(status) => bail!("{} ended early ({}); {}", self.name, describe(status), self.log_tail()),
        }
    }

    /// The last lines of the log, introduced by where they come from; for error messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        match tail(&self.log) {
            Ok(lines) => format!("last lines of {}:\n{lines}", self.log.display()),
            Err(error) => format!("its log {} cannot be read: {error}", self.log.display()),
        }
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.exit_status()? {
            return Ok(status);
        }
        self.signal(Signal::KILL);
        self.process.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    fn signal(&self, signal: Signal) {
        // The only failure is that the group is gone, which is what every caller wants.
        if let Some(group) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

/// Runs `work` to its end, or drops it at the first Ctrl-C, SIGTERM or SIGHUP and fails with
/// [`Interrupted`].
pub async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(Interrupted.into()),
        _ = terminate.recv() => Err(Interrupted.into()),
        _ = hangup.recv() => Err(Interrupted.into()),
    }
}

/// The work was ended by a signal; everything it held has been cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Runs the program only if we are still its parent: had we died before `setpriv` asked for the
/// signal, it would never come.
const STILL_OURS: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

type Fork = (Command, mpsc::SyncSender<std::io::Result<std::process::Child>>);

/// The thread that forks every child; see the module's description.
static FORKS: LazyLock<std::io::Result<mpsc::Sender<Fork>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Fork>();
    std::thread::Builder::new().name("children".to_owned()).spawn(move || {
        for (mut command, reply) in receiver {
            // The caller waits for the reply; if it is gone, so is the child's owner.
            if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                let _ = orphan.kill();
            }
        }
    })?;
    Ok(sender)
});

fn fork(command: Command) -> Result<std::process::Child> {
    let forks =
        FORKS.as_ref().map_err(|error| anyhow!("cannot start the thread that starts children: {error}"))?;
    let (reply, answer) = mpsc::sync_channel(1);
    forks.send((command, reply))?;
    Ok(answer.recv()??)
}

/// The same program, arguments, environment and directory, started through `setpriv --pdeathsig KILL`.
fn dying_with_parent(command: Command) -> Command {
    let Ok(setpriv) = SETPRIV.locate() else {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            eprintln!(
                "`setpriv` is not installed (apt-get install util-linux): children outlive a killed xtask"
            );
        });
        return command;
    };
    let mut wrapped = Command::new(setpriv);
    wrapped
        .args(["--pdeathsig", "KILL", "--", "sh", "-c", STILL_OURS])
        .arg(std::process::id().to_string())
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped
}

/// `exit status 3` or `killed by signal 9`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn keeps_arguments_environment_and_directory() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut command = shell("echo $GREETING; pwd; echo gone >&2; exit 3");
        command.env("GREETING", "hello world").current_dir(directory.path());
        let mut child = Child::spawn("greeter", command, &log).unwrap();
        let status = child.wait(Duration::from_secs(10)).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(3));
        let expected = format!("hello world\n{}\ngone\n", directory.path().display());
        assert_eq!(std::fs::read_to_string(&log).unwrap(), expected);
        let error = child.expect_running().unwrap_err().to_string();
        assert!(
            error.starts_with("greeter ended early (exit status 3)") && error.ends_with("gone"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_request_to_end_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let stubborn = shell("trap '' TERM; sleep 600 & echo $!; wait; sleep 600");
        let mut child = Child::spawn("stubborn", stubborn, &log).unwrap();
        while std::fs::read_to_string(&log).unwrap().is_empty() {
            child.expect_running().unwrap();
            tokio::time::sleep(POLL).await;
        }
        let grandchild = std::fs::read_to_string(&log).unwrap().trim().to_owned();
        let status = child.terminate(Duration::from_millis(200)).await.unwrap();
        assert_eq!(status.signal(), Some(9));
        let state = || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        let deadline = Instant::now() + Duration::from_secs(10);
        // Gone, or a zombie until whoever inherited it looks.
        while !state().is_empty() && !state().contains(") Z ") {
            assert!(Instant::now() < deadline, "{}", state());
            tokio::time::sleep(POLL).await;
        }
    }

    #[tokio::test]
    async fn dropping_a_child_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let child = Child::spawn("sleeper", shell("exec sleep 600"), &directory.path().join("log")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists());
    }
}
