//! The agent, as anybody would start it: its process, its state directory, its HTTP endpoints, its end.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::tell::until;

/// How long the agent may take to start its server, and to end.
const PATIENCE: Duration = Duration::from_secs(15);
const LOG: &str = "agent.log";

/// A running agent. It is ended when this value is dropped.
pub(crate) struct Agent {
    process: Child,
    file: AgentFile,
}

/// What the agent says of itself in its state directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentFile {
    pid: u32,
    redis_url: Option<String>,
    server_pid: Option<u32>,
    http: String,
}

impl Agent {
    /// Starts it on `directory/pools`, with a server of its own, and waits until it says where that is.
    pub(crate) async fn start(binary: &Path, directory: &Path) -> Result<Self> {
        let log = File::create(directory.join(LOG)).context("making the agent's log failed")?;
        let state = directory.join("state");
        let process = Command::new(binary)
            .args(["agent", "--embedded", "--http-bind", "127.0.0.1:0", "--log-format", "json"])
            .args(["--config".as_ref(), directory.join("pools").as_os_str()])
            .args(["--state-dir".as_ref(), state.as_os_str()])
            .env_remove("REDIS_URL")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C ends the demo, which then ends the agent in order: the agent itself must not hear it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {} failed", binary.display()))?;
        // From here on, leaving early ends the process.
        let pid = process.id();
        let mut agent =
            Self { process, file: AgentFile { pid, redis_url: None, server_pid: None, http: String::new() } };
        let path = state.join("agent.json");
        agent.file = until("the agent to say where its server is", PATIENCE, async || {
            if let Some(status) = agent.process.try_wait()? {
                bail!("the agent ended at once ({status})");
            }
            let read = fs::read(&path).map_err(|error| error.to_string());
            Ok(read.and_then(|text| {
                let file: AgentFile = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
                if file.pid == pid && file.redis_url.is_some() { Ok(file) } else { Err(format!("{file:?}")) }
            }))
        })
        .await?;
        Ok(agent)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.file.pid
    }

    /// Where its embedded server listens.
    pub(crate) fn redis_url(&self) -> &str {
        self.file.redis_url.as_deref().unwrap_or_default()
    }

    /// The process of its embedded server.
    pub(crate) fn server_pid(&self) -> Option<u32> {
        self.file.server_pid
    }

    /// `host:port` of its endpoints.
    pub(crate) fn http(&self) -> &str {
        &self.file.http
    }

    /// Waits until `/readyz` says yes.
    pub(crate) async fn ready(&self) -> Result<()> {
        until("the agent to be ready", PATIENCE, async || {
            Ok(match self.get("/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((code, body)) => Err(format!("{code} {}", body.trim())),
                Err(error) => Err(format!("{error:#}")),
            })
        })
        .await
    }

    /// What `/metrics` says now.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let (code, body) = self.get("/metrics").await?;
        ensure!(code == 200, "/metrics answered {code}: {}", body.trim());
        Ok(body)
    }

    /// What the command line prints when it finds the server by the agent's state directory.
    pub(crate) async fn ask(&self, binary: &Path, directory: &Path, command: &[&str]) -> Result<String> {
        let mut asked = tokio::process::Command::new(binary);
        asked.args(command).arg("--state-dir").arg(directory.join("state")).kill_on_drop(true);
        let output = timeout(PATIENCE, asked.output()).await.with_context(|| format!("{command:?} does not end"))??;
        ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.file.http).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.file.http);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(PATIENCE, exchange).await.with_context(|| format!("{path} does not answer"))??;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not an HTTP status")?;
        Ok((code, body.to_owned()))
    }

    /// Asks it to end (SIGTERM), and looks whether it took its server with it.
    pub(crate) async fn stop(mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        let status: ExitStatus = until("the agent to end after SIGTERM", PATIENCE, async || {
            Ok(self.process.try_wait()?.ok_or_else(|| "it still runs".to_owned()))
        })
        .await?;
        ensure!(status.success(), "the agent failed: {status}");
        if let Some(server) = self.file.server_pid {
            until("the embedded server to end with its agent", PATIENCE, async || {
                Ok(if runs(server) { Err(format!("process {server} still runs")) } else { Ok(()) })
            })
            .await?;
        }
        if let Some(socket) = self.redis_url().strip_prefix("unix://") {
            let socket = PathBuf::from(socket.split('?').next().unwrap_or(socket));
            ensure!(!socket.exists(), "the embedded server's socket {} was left behind", socket.display());
        }
        Ok(begun.elapsed())
    }

    fn signal(&self, signal: Signal) {
        // Only fails when it has ended.
        let _ = kill_process(Pid::from_child(&self.process), signal);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let ended = |process: &mut Child| !matches!(process.try_wait(), Ok(None));
        if ended(&mut self.process) {
            return;
        }
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while !ended(&mut self.process) {
            if begun.elapsed() > PATIENCE {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether a process exists.
fn runs(pid: u32) -> bool {
    i32::try_from(pid).ok().and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Shows how the agent's log ends, for whoever must find out why something did not happen.
pub(crate) fn print_end_of_log(directory: &Path) {
    let log = fs::read_to_string(directory.join(LOG)).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    if !lines.is_empty() {
        eprintln!("the agent's log ends:");
        for line in &lines[lines.len().saturating_sub(15)..] {
            eprintln!("  {line}");
        }
    }
}
