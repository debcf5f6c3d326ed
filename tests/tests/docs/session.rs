//! What a reader does who follows a page in a terminal, in an empty directory, with nothing running. It must not know which
//! page it is.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, eventually};
use regex::Regex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::program;

/// How long one command may take.
const COMMAND: Duration = Duration::from_mins(1);
/// How long the agent may take to be ready, and to end.
const AGENT: Duration = Duration::from_mins(1);

/// A reader's directory, which is also their home, and the agent they have started.
pub(crate) struct Session {
    directory: TempDir,
    binaries: PathBuf,
    agent: Option<Child>,
    manifests: usize,
}

impl Session {
    pub(crate) fn start() -> Result<Self> {
        let binary = program::binary("redis-allocator")?;
        let binaries = binary.parent().context("a binary is in a directory")?.to_owned();
        Ok(Self { directory: TempDir::new()?, binaries, agent: None, manifests: 0 })
    }

    /// Keeps a manifest where its first line says, and validates it.
    pub(crate) async fn manifest(&mut self, text: &str) -> Result<()> {
        let named = text.lines().next().and_then(|line| line.strip_prefix("# ")).filter(|name| name.contains(".yaml"));
        self.manifests += 1;
        let name = named.map_or_else(|| format!("unnamed/{}.yaml", self.manifests), str::to_owned);
        let path = self.directory.path().join(&name);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, text)?;
        let (printed, fine) = self.execute(&format!("redis-allocator validate {name}")).await?;
        ensure!(fine, "the manifest is not valid:\n{printed}");
        Ok(())
    }

    /// Runs lines that must all succeed.
    pub(crate) async fn script(&mut self, text: &str) -> Result<()> {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if line.starts_with("redis-allocator agent ") {
                self.start_agent(line).await?;
                continue;
            }
            let (printed, fine) = self.execute(line).await?;
            ensure!(fine, "{line:?} failed:\n{printed}");
        }
        Ok(())
    }

    /// Runs the lines behind `$`, which must print what is shown.
    pub(crate) async fn console(&mut self, text: &str) -> Result<()> {
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let command = line.strip_prefix("$ ").with_context(|| format!("{line:?} is no command"))?;
            let mut expected = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                expected.push(line);
            }
            let (printed, _) = self.execute(command).await?;
            let found: Vec<_> = printed.lines().collect();
            let same = found.len() == expected.len()
                && found.iter().zip(&expected).all(|(found, shown)| is_like(found, shown));
            ensure!(same, "{command:?} prints\n{}\nnot\n{}", found.join("\n"), expected.join("\n"));
        }
        Ok(())
    }

    /// Ends the agent as a reader would, by Ctrl-C.
    pub(crate) async fn end(mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        let pid = agent.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("the agent has ended by itself")?;
        kill_process(pid, Signal::INT)?;
        let status = timeout(AGENT, agent.wait()).await.context("the agent does not end")??;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.binaries.clone()).chain(std::env::split_paths(&path));
        shell.args(["-c", command]).current_dir(self.directory.path()).env("HOME", self.directory.path());
        shell.env("PATH", std::env::join_paths(path).unwrap_or_default());
        for variable in ["REDIS_URL", "REDIS_ALLOCATOR_STATE_DIR", "XDG_STATE_HOME"] {
            shell.env_remove(variable);
        }
        shell.stdin(Stdio::null()).kill_on_drop(true);
        shell
    }

    /// What a command prints on both outputs, and whether it succeeded.
    async fn execute(&self, command: &str) -> Result<(String, bool)> {
        let output = self.shell(&format!("{{ {command}\n}} 2>&1")).output();
        let output = timeout(COMMAND, output).await.with_context(|| format!("{command:?} does not end"))??;
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success()))
    }

    /// Starts an agent and waits until it is ready. It gets another port than the page says: other tests run beside it.
    async fn start_agent(&mut self, command: &str) -> Result<()> {
        ensure!(self.agent.is_none(), "the page starts a second agent");
        let mut shell = self.shell(&format!("exec {command} --http-bind 127.0.0.1:0"));
        shell.env("REDIS_ALLOCATOR_SERVER", Flavor::Valkey.binary()?);
        let log = self.directory.path().join("agent.log");
        shell.stderr(fs::File::create(&log)?);
        self.agent = Some(shell.spawn()?);
        let state = self.directory.path().join(".local/state/redis-allocator");
        let ready = eventually(AGENT, async || {
            let file = |name| Ok::<Value, anyhow::Error>(serde_json::from_slice(&fs::read(state.join(name))?)?);
            let answer = get(file("agent.json")?["http"].as_str().context("no address")?, "/readyz").await?;
            ensure!(answer.contains("ready, leading"), "{answer}");
            // A moment later, what the agent thinks of the pools can be read, too.
            let status = file("status.json")?;
            let said = status["pools"].as_array().is_some_and(|pools| !pools.is_empty());
            ensure!(said && !status.to_string().contains("Pending"), "{status}");
            Ok(())
        });
        match ready.await {
            Ok(()) => Ok(()),
            Err(error) => bail!("{command:?} is not ready: {error:#}\n{}", fs::read_to_string(&log)?),
        }
    }
}

async fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Whether a printed line is what a page shows, where `…` stands for anything and blanks for any number of them.
fn is_like(found: &str, shown: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let pattern = regex::escape(&words(shown)).replace('…', ".+");
    Regex::new(&format!("^{pattern}$")).is_ok_and(|pattern| pattern.is_match(&words(found)))
}

#[test]
fn a_line_is_like_what_is_shown() {
    assert!(is_like("gpus   gpu-0   Free   -   0s   -", "gpus  gpu-0  Free  -  …  -"));
    assert!(is_like("in 60m", "…"));
    assert!(!is_like("gpus   gpu-1   Free", "gpus   gpu-0   Free"));
    assert!(!is_like("", "…"));
}
