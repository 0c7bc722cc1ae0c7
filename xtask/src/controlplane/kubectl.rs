//! The pinned `kubectl`, run as people run it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::process::describe;

/// `kubectl` with a kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Kubectl {
    pub(super) fn new(program: &Path, kubeconfig: &Path, cache: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned(), cache: cache.to_owned() }
    }

    /// The same program for another user.
    #[must_use]
    pub fn with_kubeconfig(&self, kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), ..self.clone() }
    }

    /// The command itself, for whoever streams its output or keeps it running.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            // The preferences of whoever runs this are not part of what is tested.
            .env("KUBERC", "off")
            .env_remove("KUBECTL_EXTERNAL_DIFF")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end, whatever that is.
    pub async fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        self.run_with_stdin(args, "").await
    }

    /// Runs it with `input` on its standard input, as in `kubectl apply -f -`.
    pub async fn run_with_stdin<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> Result<Output> {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command that does not read its input closes it early; its status tells the rest.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output?;
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// It failed; the message has the command and what it said.
    pub async fn succeed<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        self.succeed_with_stdin(args, "").await
    }

    /// Waits until the API server serves every kind that was applied.
    ///
    /// # Errors
    /// It does not within a minute.
    pub async fn wait_for_crds(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
        loop {
            match self.succeed(&wait).await {
                Ok(_) => return Ok(()),
                // kubectl stumbles over one that is so new that it has no conditions at all.
                Err(error) if error.to_string().contains("accessor error") && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// [`Kubectl::succeed`] with `input` on its standard input.
    pub async fn succeed_with_stdin<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> Result<String> {
        let output = self.run_with_stdin(args, input).await?;
        if !output.status.success() {
            let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            bail!(
                "`kubectl {}` failed ({}): {}",
                args.join(" "),
                describe(output.status),
                output.stderr.trim()
            );
        }
        Ok(output.stdout)
    }
}
