//! QEMU's guest agent: commands inside a machine, as from a console. Lines of JSON over a virtual
//! serial line; `qemu-ga-ref(7)` has the commands.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

const ANSWER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// A connection to the agent in one machine. It ends with the boot.
#[derive(Debug)]
pub struct GuestAgent {
    stream: BufReader<UnixStream>,
}

/// How a command in the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestOutput {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i64>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl GuestAgent {
    /// Connects, and waits a moment for the agent to answer.
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("cannot connect to the guest agent's line")?;
        let mut agent = Self { stream: BufReader::new(stream) };
        // What was asked and never read by others before us is answered first.
        let mark = mark();
        agent.send(&json!({"execute": "guest-sync", "arguments": {"id": mark}})).await?;
        loop {
            if agent.receive(ANSWER).await?.get("return").and_then(Value::as_u64) == Some(mark) {
                return Ok(agent);
            }
        }
    }

    /// Runs a shell command as root and waits for its end.
    pub async fn run(&mut self, command: &str, limit: Duration) -> Result<GuestOutput> {
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", command], "capture-output": true});
        let started = self.ask("guest-exec", &arguments).await?;
        let pid = started.get("pid").cloned().context("guest-exec gave no pid")?;
        let deadline = Instant::now() + limit;
        loop {
            let status = self.ask("guest-exec-status", &json!({"pid": pid})).await?;
            if status.get("exited").and_then(Value::as_bool) == Some(true) {
                let text = |key: &str| -> Result<String> {
                    let Some(encoded) = status.get(key) else { return Ok(String::new()) };
                    let ByteString(bytes) = serde_json::from_value(encoded.clone())?;
                    Ok(String::from_utf8_lossy(&bytes).into_owned())
                };
                return Ok(GuestOutput {
                    code: status.get("exitcode").and_then(Value::as_i64),
                    stdout: text("out-data")?,
                    stderr: text("err-data")?,
                });
            }
            ensure!(Instant::now() < deadline, "`{command}` did not end in {limit:?} in the machine");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The same, and fails unless it exits with 0; returns what it printed.
    pub async fn succeed(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run(command, limit).await?;
        if output.code != Some(0) {
            bail!(
                "`{command}` failed in the machine ({:?}): {}{}",
                output.code,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Starts a command that may take the machine down, and does not wait.
    pub async fn start(&mut self, command: &str) -> Result<()> {
        self.ask("guest-exec", &json!({"path": "/bin/sh", "arg": ["-c", command]})).await.map(drop)
    }

    async fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.send(&json!({"execute": command, "arguments": arguments})).await?;
        let answer = self.receive(ANSWER * 4).await?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("the guest agent refused {command}: {answer}"),
        }
    }

    async fn send(&mut self, message: &Value) -> Result<()> {
        Ok(self.stream.get_mut().write_all(format!("{message}\n").as_bytes()).await?)
    }

    async fn receive(&mut self, limit: Duration) -> Result<Value> {
        let mut line = String::new();
        let read =
            timeout(limit, self.stream.read_line(&mut line)).await.context("the guest agent is silent")??;
        ensure!(read > 0, "the machine closed the guest agent's line");
        serde_json::from_str(&line).with_context(|| format!("the guest agent said {line:?}"))
    }
}

/// Differs from one connection to the next.
fn mark() -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(nanos.subsec_nanos()) + nanos.as_secs() % 1000 * 1_000_000_000
}
