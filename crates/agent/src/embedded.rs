//! A private Redis or Valkey server that lives and dies with the agent, reached by a unix socket.
//!
//! It keeps nothing on disk: it is for trying things out and for tests, where its data may go when the agent goes. It
//! dies even when the agent is killed without a chance to say so: its keeper, a small shell, waits for the end of a pipe
//! that only the agent holds open.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    process::{Child, ChildStdin, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// Names the server's binary.
const ENV: &str = "REDIS_ALLOCATOR_SERVER";
const NAMES: [&str; 2] = ["redis-server", "valkey-server"];
/// Longest path that a socket may have (`sun_path`), its closing NUL included.
const MAX_SOCKET_PATH: usize = 108;
/// How long the server may take until it listens.
const START: Duration = Duration::from_secs(15);
/// How long it may take to end before it is killed.
const END: Duration = Duration::from_secs(3);

/// Runs the server (all arguments behind the socket) until standard input or the server ends, and clears up. It keeps
/// nothing on disk, so there is nothing that killing it could harm.
const KEEPER: &str = r#"
socket=$1
shift
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{ read -r _ <&3; kill -KILL "$server"; } 2>/dev/null &
watcher=$!
wait "$server" 2>/dev/null
status=$?
kill "$watcher" 2>/dev/null
rm -f "$socket"
rmdir "${socket%/*}" 2>/dev/null
exit "$status"
"#;

/// A running server.
#[derive(Debug)]
pub(crate) struct Embedded {
    binary: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    keeper: Child,
    /// The keeper's standard input, and the server's life. Apart from `keeper`, which closes it when it is waited for.
    hold: Option<ChildStdin>,
    pid: Option<u32>,
    /// Where the socket is, if the state directory's path is too long for one.
    _short: Option<TempDir>,
}

impl Embedded {
    /// Starts a server that logs to the state directory, and waits until it listens.
    pub(crate) async fn start(state_dir: &Path) -> Result<Self> {
        let binary = find(std::env::var_os(ENV).map(PathBuf::from))?;
        let (socket, short) = socket_path(state_dir)?;
        let log = state_dir.join("server.log");
        // Each agent begins it anew; what a server said before it ended is still there when it is started again.
        fs::File::create(&log).with_context(|| format!("creating {} failed", log.display()))?;
        let mut keeper = spawn(&binary, &socket, &log)?;
        let hold = keeper.stdin.take();
        let mut embedded = Self { binary, socket, log, keeper, hold, pid: None, _short: short };
        embedded.listening().await?;
        Ok(embedded)
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The server's process, if it said which.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    async fn listening(&mut self) -> Result<()> {
        let give_up = Instant::now() + START;
        loop {
            // It listens first, and then says who it is.
            self.pid = fs::read_to_string(pid_file(&self.log)).ok().and_then(|pid| pid.trim().parse().ok());
            if self.pid.is_some() && UnixStream::connect(&self.socket).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.keeper.try_wait()? {
                bail!("{} ended with {status} before it listened: see {}", self.binary.display(), self.log.display());
            }
            if Instant::now() > give_up {
                bail!("{} did not listen within {START:?}: see {}", self.binary.display(), self.log.display());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the server again whenever it ends, until told to stop; then ends it. `pids` hears of each new process.
    pub(crate) async fn keep(mut self, pids: watch::Sender<Option<u32>>, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let status = tokio::select! {
                () = stop.cancelled() => return self.end().await,
                status = self.keeper.wait() => status,
            };
            if started.elapsed() > START {
                backoff.forget();
            }
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::error!(%status, log = %self.log.display(), "the embedded server ended, and with it all leases; starting it again");
            loop {
                if stop.run_until_cancelled(sleep(backoff.next())).await.is_none() {
                    return;
                }
                match self.restart().await {
                    Ok(()) => break,
                    Err(error) => tracing::error!("starting the embedded server failed: {error:#}"),
                }
            }
            pids.send_replace(self.pid());
        }
    }

    async fn restart(&mut self) -> Result<()> {
        self.keeper = spawn(&self.binary, &self.socket, &self.log)?;
        self.hold = self.keeper.stdin.take();
        self.listening().await
    }

    async fn end(mut self) {
        drop(self.hold.take());
        if timeout(END, self.keeper.wait()).await.is_err() {
            tracing::warn!("the embedded server did not end in time and is killed");
            let _ = self.keeper.kill().await;
        }
        let _ = fs::remove_file(pid_file(&self.log));
    }
}

fn pid_file(log: &Path) -> PathBuf {
    log.with_file_name("server.pid")
}

fn spawn(binary: &Path, socket: &Path, log: &Path) -> Result<Child> {
    let dir = log.parent().unwrap_or(Path::new("."));
    // A server that was killed leaves its socket behind, and the next one could not listen.
    let _ = fs::remove_file(socket);
    if let Some(dir) = socket.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let pid_file = pid_file(log);
    let _ = fs::remove_file(&pid_file);
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {} failed", log.display()))?;
    Command::new("/bin/sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(socket)
        .arg(binary)
        .args(["--port", "0", "--unixsocketperm", "700", "--unixsocket"])
        .arg(socket)
        .args(["--maxmemory-policy", "noeviction", "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
        .arg(dir)
        .arg("--pidfile")
        .arg(pid_file)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Out of reach of the terminal's Ctrl-C, which is the agent's: it ends the server when it is done with it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {} failed", binary.display()))
}

fn find(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(given) = given.filter(|given| !given.as_os_str().is_empty()) {
        if !given.is_file() {
            bail!(
                "{ENV}: found {}, which is no file; allowed is the path of redis-server or valkey-server",
                given.display()
            );
        }
        return std::path::absolute(&given).with_context(|| format!("{ENV}: {}", given.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = NAMES.iter().flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)));
    candidates.into_iter().find(|candidate| candidate.is_file()).with_context(|| {
        format!(
            "--embedded needs a server: found neither {} on PATH; install one, or set {ENV} to its path",
            NAMES.join(" nor ")
        )
    })
}

/// A path for the socket, in the state directory if that is short enough.
fn socket_path(state_dir: &Path) -> Result<(PathBuf, Option<TempDir>)> {
    let dir = std::path::absolute(state_dir)?;
    let socket = dir.join("redis.sock");
    // The URL is text, and a path that has to be escaped in it is as good as one that is too long.
    let is_plain =
        socket.to_str().is_some_and(|path| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)));
    if is_plain && socket.as_os_str().len() < MAX_SOCKET_PATH {
        return Ok((socket, None));
    }
    let short = tempfile::Builder::new()
        .prefix("redis-allocator-")
        .tempdir()
        .context("creating a directory for the socket failed")?;
    let socket = short.path().join("redis.sock");
    if socket.as_os_str().len() >= MAX_SOCKET_PATH {
        bail!("{} is too long a path for a socket: set TMPDIR to a shorter one", socket.display());
    }
    Ok((socket, Some(short)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_or_strange_state_directory_gets_its_socket_elsewhere() {
        let (socket, short) = socket_path(Path::new("/run/x")).unwrap();
        assert_eq!((socket.to_str().unwrap(), short.is_none()), ("/run/x/redis.sock", true));
        for dir in [format!("/{}", "x".repeat(120)), "/run/a b?".to_owned()] {
            let (socket, short) = socket_path(Path::new(&dir)).unwrap();
            assert!(socket.starts_with(short.unwrap().path()));
        }
    }

    #[test]
    fn a_binary_that_is_not_there_says_what_to_do() {
        let error = find(Some("/nowhere/redis-server".into())).unwrap_err();
        assert!(error.to_string().contains(ENV), "{error}");
    }
}
