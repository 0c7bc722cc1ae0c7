//! The way down.

use std::process::Stdio;

use tokio::process::Command;

use super::config::RebootCommand;

/// Why the host did not go down.
#[derive(Debug, thiserror::Error)]
pub(super) enum RebootError {
    #[error("cannot run {program}: check --reboot-command")]
    Spawn { program: String, source: std::io::Error },
    #[error("{program} failed ({status}): the host was not rebooted")]
    Command { program: String, status: std::process::ExitStatus },
    #[error("the kernel refused to reboot: the agent needs CAP_SYS_BOOT in the host's namespaces")]
    Kernel { source: std::io::Error },
}

/// Asks the host to reboot. Returns once it was asked: the end comes from outside.
pub(super) async fn reboot(command: Option<&RebootCommand>) -> Result<(), RebootError> {
    let Some(RebootCommand { program, arguments }) = command else {
        return tokio::task::spawn_blocking(by_system_call).await.unwrap_or(Ok(()));
    };
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        // Standard output is for what was asked of the agent, and nothing was.
        .stdout(Stdio::null())
        .status()
        .await
        .map_err(|source| RebootError::Spawn { program: program.clone(), source })?;
    if status.success() { Ok(()) } else { Err(RebootError::Command { program: program.clone(), status }) }
}

fn by_system_call() -> Result<(), RebootError> {
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::Restart)
        .map_err(|errno| RebootError::Kernel { source: errno.into() })
}
