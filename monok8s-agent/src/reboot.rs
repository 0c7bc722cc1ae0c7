//! The way down: the host's init is asked first, and the kernel if that does not help.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use monok8s_sdk::disk::HostView;

use crate::on_host;

/// How long who is asked for a reboot may take to say that it is on its way.
const ANSWER: Duration = Duration::from_secs(20);
/// How long files are flushed for. What is on a disk that does not answer is not worth a machine.
const FLUSH: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Why the host did not go down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RebootError {
    #[error("cannot run {program}: check --reboot-command")]
    Spawn { program: String, source: std::io::Error },
    #[error("{program} failed ({status}): the host was not rebooted")]
    Command { program: String, status: ExitStatus },
    #[error("{program} has not ended in {} s: the host's init does not answer", ANSWER.as_secs())]
    Silent { program: String },
    #[error("the kernel refused to reboot: the agent needs CAP_SYS_BOOT in the host's namespaces")]
    Kernel { source: std::io::Error },
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebootCommand {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A command without a word in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command is empty")]
pub struct EmptyCommand;

impl FromStr for RebootCommand {
    type Err = EmptyCommand;

    /// Split at blanks, as no shell runs it.
    fn from_str(text: &str) -> Result<Self, EmptyCommand> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let program = words.next().ok_or(EmptyCommand)?;
        Ok(Self { program, arguments: words.collect() })
    }
}

/// Asks the host to reboot: with the command that was configured, else in the way of its init.
/// Returns once it was asked; the end comes from outside. An init that cannot be asked is passed over.
pub(crate) fn reboot(host: &HostView, configured: Option<&RebootCommand>) -> Result<(), RebootError> {
    if let Some(RebootCommand { program, arguments }) = configured {
        return run(Command::new(program).args(arguments));
    }
    let init = Init::of(host);
    let [program, arguments @ ..] = init.reboot_command() else { return by_system_call() };
    match run(&mut on_host::command(host, program, arguments)) {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, ?init, "the host's init does not take a reboot: the kernel is asked");
            by_system_call()
        }
    }
}

/// Reboots now, without asking anyone but the kernel. Files are flushed first, for a moment at most.
pub(crate) fn by_system_call() -> Result<(), RebootError> {
    let (done, flushed) = mpsc::sync_channel(1);
    thread::spawn(move || {
        rustix::fs::sync();
        done.send(())
    });
    let _ = flushed.recv_timeout(FLUSH);
    rustix::system::reboot(rustix::system::RebootCommand::Restart)
        .map_err(|errno| RebootError::Kernel { source: errno.into() })
}

fn run(command: &mut Command) -> Result<(), RebootError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| RebootError::Spawn { program: program.clone(), source };
    // Standard output is for what was asked of the program, and nothing was.
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(failed)?;
    let asked = Instant::now();
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            // It is left alone: it may yet do it.
            None if asked.elapsed() > ANSWER => return Err(RebootError::Silent { program }),
            None => thread::sleep(POLL),
        }
    };
    if status.success() { Ok(()) } else { Err(RebootError::Command { program, status }) }
}

/// What the first process of a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Systemd,
    OpenRc,
    /// busybox, sysvinit, or one that brings a `reboot` like theirs.
    Other,
}

impl Init {
    fn of(host: &HostView) -> Self {
        // sd_booted(3): the directory is there if, and only if, systemd runs the machine.
        if host.path("run/systemd/system").is_dir() {
            return Self::Systemd;
        }
        let name = std::fs::read_to_string(host.path("proc/1/comm")).unwrap_or_default();
        if name.trim() == "openrc-init" { Self::OpenRc } else { Self::Other }
    }

    fn reboot_command(self) -> &'static [&'static str] {
        match self {
            Self::Systemd => &["systemctl", "--no-wall", "reboot"],
            Self::OpenRc => &["openrc-shutdown", "--reboot", "now"],
            Self::Other => &["reboot"],
        }
    }
}

/// Keeps the host's init from shutting down on behalf of others while something is written.
///
/// Only systemd knows such a thing; elsewhere nothing is kept. It ends with this value, or with this
/// process.
#[derive(Debug)]
pub(crate) struct Inhibitor(std::process::Child);

impl Inhibitor {
    /// Takes one, if the host's init gives any.
    pub(crate) fn take(host: &HostView, why: &str) -> Option<Self> {
        if Init::of(host) != Init::Systemd || !knows_inhibitors(host) {
            return None;
        }
        let why = format!("--why={why}");
        let arguments = ["--what=shutdown", "--mode=block", "--who=monok8s-agent", &why, "cat"];
        let mut command = on_host::command(host, "systemd-inhibit", &arguments);
        // It lasts as long as `cat` does, and that as long as this end of the pipe.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                tracing::warn!(%error, "cannot ask the host not to shut down meanwhile");
                None
            }
        }
    }
}

fn knows_inhibitors(host: &HostView) -> bool {
    ["usr/bin/systemd-inhibit", "bin/systemd-inhibit"]
        .iter()
        .any(|path| host.path(Path::new(path)).symlink_metadata().is_ok())
}

impl Drop for Inhibitor {
    fn drop(&mut self) {
        // `cat` ends with its input. Whatever systemd-inhibit waits for, it is not waited for here.
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        if let Err(error) = self.0.wait() {
            tracing::warn!(%error, "cannot wait for systemd-inhibit");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(paths: &[&str], comm: &str) -> (tempfile::TempDir, HostView) {
        let root = tempfile::tempdir().unwrap();
        for path in paths {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        std::fs::create_dir_all(root.path().join("proc/1")).unwrap();
        std::fs::write(root.path().join("proc/1/comm"), comm).unwrap();
        let view = HostView::new(root.path());
        (root, view)
    }

    #[test]
    fn each_init_is_asked_in_its_own_way() {
        let init = |paths: &[&str], comm| Init::of(&host(paths, comm).1).reboot_command();
        assert_eq!(init(&["run/systemd/system"], "systemd\n")[0], "systemctl");
        assert_eq!(init(&[], "openrc-init\n")[0], "openrc-shutdown");
        assert_eq!(init(&["run/openrc"], "init\n"), ["reboot"], "OpenRC under busybox's init");
    }

    #[test]
    fn a_command_of_ones_own_is_run_as_it_is() {
        let (root, view) = host(&[], "");
        let mark = root.path().join("asked");
        let command: RebootCommand = format!("touch  {}", mark.display()).parse().unwrap();
        reboot(&view, Some(&command)).unwrap();
        assert!(mark.exists());
        let fails = "false".parse().unwrap();
        assert!(matches!(reboot(&view, Some(&fails)), Err(RebootError::Command { .. })));
        assert_eq!(" ".parse::<RebootCommand>(), Err(EmptyCommand));
    }

    #[test]
    fn without_systemd_nothing_is_inhibited() {
        let (_root, view) = host(&["run/openrc"], "init\n");
        assert!(Inhibitor::take(&view, "test").is_none());
    }
}
