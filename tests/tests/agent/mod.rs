//! A running agent, as a test sees it: manifests it reads from a directory or a cluster, a process that is stopped or
//! killed, the log, `/readyz` and `/metrics`. It must not know what the manifests say.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::program;

/// How long an agent may take for something that it does at once, on a machine that has no time for it: less than the
/// minute after which it looks at each pool again, whether or not something happened.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A directory of manifests and a state directory.
pub(crate) struct Site {
    dir: TempDir,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let site = Self { dir: TempDir::new()? };
        fs::create_dir(site.pools())?;
        Ok(site)
    }

    pub(crate) fn pools(&self) -> PathBuf {
        self.dir.path().join("pools")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.pools().join(file), text)?)
    }

    /// Starts an agent on these directories.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        Agent::start(Declared::Files(&self.pools()), &self.state(), arguments, None)
    }

    /// Starts an agent with a private server of this binary.
    pub(crate) fn embedded_agent(&self, server: &Path) -> Result<Agent> {
        self.embedded_agent_at(server, &self.state())
    }

    /// The same, with another state directory.
    pub(crate) fn embedded_agent_at(&self, server: &Path, state: &Path) -> Result<Agent> {
        Agent::start(Declared::Files(&self.pools()), state, &["--embedded"], Some(server))
    }

    /// Starts an agent that reads the same manifests and has a state directory of its own.
    pub(crate) fn another_agent(&self, arguments: &[&str]) -> Result<Agent> {
        Agent::start(Declared::Files(&self.pools()), &self.dir.path().join("other-state"), arguments, None)
    }
}

/// Where an agent finds what is declared.
#[derive(Clone, Copy)]
enum Declared<'a> {
    /// In a directory.
    Files(&'a Path),
    /// In the cluster of a kubeconfig.
    Kubernetes(&'a Path),
}

pub(crate) struct Agent {
    child: Child,
    state: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent on the cluster of a kubeconfig.
    pub(crate) fn in_kubernetes(kubeconfig: &Path, state: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start(Declared::Kubernetes(kubeconfig), state, arguments, None)
    }

    fn start(declared: Declared, state: &Path, arguments: &[&str], server: Option<&Path>) -> Result<Self> {
        fs::create_dir_all(state)?;
        let log = state.join("agent.log");
        let mut command = program::redis_allocator()?;
        command.arg("agent");
        match declared {
            Declared::Files(pools) => command.arg("--config").arg(pools),
            Declared::Kubernetes(kubeconfig) => command.arg("--kubernetes").env("KUBECONFIG", kubeconfig),
        };
        let child = command
            .arg("--state-dir")
            .arg(state)
            .args(["--http-bind", "127.0.0.1:0", "--log-format", "json"])
            .args(arguments)
            .envs(server.map(|server| ("REDIS_ALLOCATOR_SERVER", server)))
            .stdin(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(&log)?)
            .spawn()?;
        Ok(Self { child, state: state.to_owned(), log })
    }

    /// What the agent has logged up to now.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `agent.json` of this very process.
    pub(crate) fn file(&self) -> Result<Value> {
        let file: Value = serde_json::from_str(&fs::read_to_string(self.state.join("agent.json"))?)?;
        ensure!(file["pid"] == self.child.id(), "agent.json is another agent's: {file}");
        Ok(file)
    }

    /// Status and body of a page that the agent serves.
    pub(crate) fn page(&self, path: &str) -> Result<(u16, String)> {
        let file = self.file()?;
        let mut stream = TcpStream::connect(file["http"].as_str().context("no address")?)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// The value of a metric's line: a gauge or a count.
    pub(crate) fn metric(&self, line: &str) -> Result<u64> {
        let (_, text) = self.page("/metrics")?;
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no metric {line} in:\n{text}"))?.parse()?)
    }

    /// Waits until a metric's line has this value.
    pub(crate) async fn has_metric(&mut self, line: &str, value: u64) -> Result<()> {
        self.eventually(SOON, |agent| {
            let found = agent.metric(line)?;
            ensure!(found == value, "{line} is {found}");
            Ok(())
        })
        .await
    }

    /// Waits until the agent is ready; what it then says.
    pub(crate) async fn ready(&mut self) -> Result<String> {
        self.eventually(SOON, |agent| {
            let (status, body) = agent.page("/readyz")?;
            ensure!(status == 200, "not ready: {body}");
            Ok(body.trim().to_owned())
        })
        .await
    }

    /// Waits until the agent is ready in this role: `leading` or `following`.
    pub(crate) async fn ready_and(&mut self, role: &str) -> Result<()> {
        self.eventually(SOON, |agent| {
            let (status, body) = agent.page("/readyz")?;
            ensure!(status == 200 && body.trim() == format!("ready, {role}"), "{status}: {body}");
            Ok(())
        })
        .await
    }

    /// Waits until the agent says that it is not ready, and that this is why: at first it has not looked yet.
    pub(crate) async fn not_ready_because(&mut self, words: &str) -> Result<()> {
        self.eventually(SOON, |agent| {
            let (status, body) = agent.page("/readyz")?;
            ensure!(status == 503 && body.contains(words), "{status}: {body}");
            Ok(())
        })
        .await
    }

    pub(crate) async fn logged(&mut self, words: &str) -> Result<()> {
        self.eventually(SOON, |agent| {
            ensure!(agent.log().contains(words), "not logged: {words}");
            Ok(())
        })
        .await
    }

    /// Waits for a condition while the agent lives; a failure shows its log.
    pub(crate) async fn eventually<T>(
        &mut self,
        within: Duration,
        mut condition: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        let result = eventually(within, async || condition(self)).await;
        result.with_context(|| format!("the agent's log:\n{}", self.log()))
    }

    /// The condition of a pool in `status.json`: its status and its reason.
    pub(crate) fn condition(&self, pool: &str, type_: &str) -> Result<(String, String)> {
        let status: Value = serde_json::from_str(&fs::read_to_string(self.state.join("status.json"))?)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for list in ["pools", "bindings"] {
            let found = status[list].as_array().into_iter().flatten().find(|it| it["name"] == pool);
            let conditions = found.and_then(|it| it["status"]["conditions"].as_array());
            if let Some(condition) = conditions.into_iter().flatten().find(|it| it["type"] == type_) {
                return Ok((text(&condition["status"]), text(&condition["reason"])));
            }
        }
        bail!("no condition {type_} of {pool} in {status}")
    }

    pub(crate) async fn has_condition(&mut self, pool: &str, type_: &str, status: &str, reason: &str) -> Result<()> {
        self.eventually(SOON, |agent| {
            let found = agent.condition(pool, type_)?;
            ensure!(found == (status.to_owned(), reason.to_owned()), "{type_} of {pool} is {found:?}");
            Ok(())
        })
        .await
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// SIGTERM; how it ends.
    pub(crate) async fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        eventually(SOON, async || child.try_wait()?.context("the agent still runs")).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pool's manifest.
pub(crate) fn pool(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

/// A pool of so many resources, `r0`, `r1`, ….
pub(crate) fn pool_of(name: &str, resources: usize) -> String {
    let list: Vec<_> = (0..resources).map(|index| format!("{{name: r{index}}}")).collect();
    pool(name, &format!("{{resources: [{}], maxShrinkPercent: 100}}", list.join(", ")))
}
