//! Running a program of the host, from the agent's pod or on the host itself.
//!
//! The agent is a pod: the host's init, its shell and its sockets are in other namespaces. A program
//! of the host is therefore started by a second process of the agent, which moves into the
//! namespaces of the host's first process and then becomes that program. It has one thread when it
//! does, as the kernel demands of a process that changes its mount namespace (setns(2)).

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use monok8s_sdk::disk::HostView;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// In this order: the mount namespace is the last one in which `/proc` still is the caller's.
const NAMESPACES: [(&str, LinkNameSpaceType); 4] = [
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("net", LinkNameSpaceType::Network),
    ("mnt", LinkNameSpaceType::Mount),
];

/// Where programs of a host are: the path of a container would be that of its image.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes a program of the host. Not for people: the agent calls itself like this.
#[derive(Debug, clap::Args)]
pub(crate) struct OnHostArgs {
    /// Directory of the namespaces to move into, such as /proc/1/ns.
    namespaces: PathBuf,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Why a program of the host was not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnHostError {
    #[error("cannot enter the host's {namespace} namespace at {}: the agent needs a privileged pod", path.display())]
    Enter { namespace: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot run {program} of the host")]
    Run { program: String, source: io::Error },
    #[error("no program was named")]
    Nothing,
}

impl OnHostArgs {
    /// Becomes the program; returns only if that is not possible.
    pub(crate) fn run(self) -> OnHostError {
        if let Err(error) = enter(&self.namespaces) {
            return error;
        }
        let Some((program, arguments)) = self.command.split_first() else { return OnHostError::Nothing };
        let source = Command::new(program).args(arguments).env("PATH", PATH).current_dir("/").exec();
        OnHostError::Run { program: program.clone(), source }
    }
}

fn enter(namespaces: &Path) -> Result<(), OnHostError> {
    let mut opened = Vec::new();
    for (namespace, kind) in NAMESPACES {
        let path = namespaces.join(namespace);
        match File::open(&path) {
            Ok(link) => opened.push((namespace, path, kind, link)),
            Err(source) => return Err(OnHostError::Enter { namespace, path, source }),
        }
    }
    for (namespace, path, kind, link) in opened {
        move_into_link_name_space(link.as_fd(), Some(kind)).map_err(|errno| OnHostError::Enter {
            namespace,
            path,
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// The command that runs a program of `host`, with the host's files around it.
pub(crate) fn command(host: &HostView, program: &str, arguments: &[&str]) -> Command {
    let namespaces = host.path("proc/1/ns");
    if host.path("").as_path() == Path::new("/") {
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", PATH).current_dir("/");
        return command;
    }
    // The file this process runs from, also after it was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg("on-host").arg(namespaces).arg(program).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_host_itself_a_program_is_simply_run() {
        let command = command(&HostView::new("/"), "systemctl", &["reboot"]);
        assert_eq!(command.get_program(), "systemctl");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["reboot"]);
    }

    #[test]
    fn from_a_pod_it_is_run_in_the_namespaces_of_the_first_process() {
        let command = command(&HostView::new("/host"), "systemctl", &["reboot"]);
        assert_eq!(command.get_program(), "/proc/self/exe");
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["on-host", "/host/proc/1/ns", "systemctl", "reboot"]);
    }

    #[test]
    fn namespaces_that_are_not_there_are_named() {
        let message = enter(Path::new("/nonexistent/ns")).unwrap_err().to_string();
        assert!(message.contains("/nonexistent/ns/ipc"), "{message}");
    }
}
