//! One server on 127.0.0.1: its life, its data on disk, its configuration. It must not know what a test stores in it.

mod builder;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use redis::{AsyncConnectionConfig, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, Value};
use tempfile::TempDir;

pub use self::builder::Builder;
use crate::{
    Flavor,
    life::Life,
    process::Process,
    stats::{self, CommandStats, SlowCommand},
    wait::eventually,
};

/// How long a server may take to answer after it was started, loading of its data included.
const START: Duration = Duration::from_mins(1);
/// How long an administrative command may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A running server, or one that was killed and can be restarted on the same port with the same directory.
///
/// Unless told otherwise it is empty, keeps nothing on disk, and never evicts. It ends when this value is dropped, or
/// with the test process.
#[derive(Debug)]
pub struct Server {
    flavor: Flavor,
    port: u16,
    sentinel: bool,
    /// Before the directory, which goes last.
    life: Life,
    directory: TempDir,
}

/// A copy of what a server held, as an RDB file.
#[derive(Debug)]
pub struct Snapshot {
    directory: TempDir,
}

impl Snapshot {
    /// The RDB file, removed when this value is dropped.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(RDB)
    }
}

const RDB: &str = "dump.rdb";
const CONFIG: &str = "server.conf";
const LOG: &str = "server.log";
const SOCKET: &str = "server.sock";

impl Server {
    /// Starts an empty server on a free port.
    ///
    /// # Errors
    /// When the binary is missing or the server does not answer; then with the end of its log.
    pub async fn start(flavor: Flavor) -> Result<Self> {
        Self::builder(flavor).start().await
    }

    /// A server with settings of its own.
    pub fn builder(flavor: Flavor) -> Builder {
        Builder::new(flavor)
    }

    /// Which server this is.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// The TCP port, the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// `unix://<path>` of its socket, if it was [built](Builder::unix_socket) with one.
    pub fn unix_url(&self) -> Option<String> {
        let socket = self.directory.path().join(SOCKET);
        socket.exists().then(|| format!("unix://{}", socket.display()))
    }

    /// The server's working directory, kept over restarts.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process's id.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn pid(&self) -> Result<u32> {
        self.life.id()
    }

    /// Ends the server at once, as a crash would (SIGKILL). Killing a dead server is no error.
    pub fn kill(&self) {
        self.life.kill();
    }

    /// Stops the server without ending it (SIGSTOP): connections stay open, nothing is answered.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn pause(&self) -> Result<()> {
        self.life.pause()
    }

    /// Lets a paused server go on (SIGCONT); it then executes what it was sent meanwhile.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn resume(&self) -> Result<()> {
        self.life.resume()
    }

    /// Kills the server if it runs and starts it again on its port, with its configuration as last written and the
    /// data it last saved: none, if it never saved.
    ///
    /// # Errors
    /// When it does not answer again; then with the end of its log.
    pub async fn restart(&self) -> Result<()> {
        self.kill();
        self.life.begin(launch(self.flavor, self.directory.path(), self.sentinel)?);
        self.wait_until_it_answers().await
    }

    /// Writes the data set to disk (SAVE), where [`restart`](Self::restart) finds it, and returns a copy of it.
    ///
    /// # Errors
    /// When the server refuses or the file cannot be copied.
    pub async fn save(&self) -> Result<Snapshot> {
        // The child that has fed a new replica is noticed to have ended a moment after that, and no one may save until then.
        eventually(START, async || {
            let saving = self.info("persistence", "rdb_bgsave_in_progress").await?;
            ensure!(saving == "0", "{self} is still saving in the background");
            Ok(())
        })
        .await?;
        self.cmd::<()>(&["SAVE"]).await?;
        let snapshot = Snapshot { directory: TempDir::new()? };
        fs::copy(self.directory.path().join(RDB), snapshot.path()).context("cannot copy the saved data")?;
        Ok(snapshot)
    }

    /// Kills the server and starts it with the data of `snapshot`, on the same port: a restore of an old backup.
    ///
    /// # Errors
    /// When the file cannot be copied or the server does not answer again.
    pub async fn restart_from(&self, snapshot: &Snapshot) -> Result<()> {
        self.kill();
        fs::copy(snapshot.path(), self.directory.path().join(RDB)).context("cannot put the saved data in place")?;
        self.restart().await
    }

    /// Runs one command on a connection of its own, which sends nothing else.
    ///
    /// # Errors
    /// What the server answered, or that it does not answer within half a minute.
    pub async fn cmd<T: FromRedisValue>(&self, command: &[&str]) -> Result<T> {
        let (name, arguments) = command.split_first().context("a command needs a name")?;
        let mut connection = self.connection().await?;
        redis::cmd(name)
            .arg(arguments)
            .query_async(&mut connection)
            .await
            .with_context(|| format!("{name} failed on {self}"))
    }

    /// A connection for commands that [`cmd`](Self::cmd) cannot say. It announces no library name, so that it adds
    /// nothing to the command statistics, and waits up to half a minute for an answer.
    ///
    /// # Errors
    /// When nothing listens.
    pub async fn connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        let info = ConnectionAddr::Tcp("127.0.0.1".into(), self.port)
            .into_connection_info()?
            .set_redis_settings(RedisConnectionInfo::default().set_skip_set_lib_name());
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(ANSWER)).set_response_timeout(Some(ANSWER));
        redis::Client::open(info)?
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .with_context(|| format!("cannot connect to {self}"))
    }

    /// Changes a setting at run time (CONFIG SET); a restart forgets it.
    ///
    /// # Errors
    /// When the server refuses the setting.
    pub async fn config_set(&self, name: &str, value: &str) -> Result<()> {
        self.cmd(&["CONFIG", "SET", name, value]).await
    }

    /// Deletes everything.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn flushall(&self) -> Result<()> {
        self.cmd(&["FLUSHALL"]).await
    }

    /// One field of `INFO <section>`, as the server prints it.
    ///
    /// # Errors
    /// When the section has no such field.
    pub async fn info(&self, section: &str, field: &str) -> Result<String> {
        let info: String = self.cmd(&["INFO", section]).await?;
        stats::info_field(&info, field)
            .map(str::to_owned)
            .with_context(|| format!("INFO {section} of {self} has no field {field}"))
    }

    /// Calls per command so far.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn command_stats(&self) -> Result<CommandStats> {
        CommandStats::parse(&self.cmd::<String>(&["INFO", "commandstats"]).await?)
    }

    /// Processor time the server has used so far, user and system.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn cpu_time(&self) -> Result<Duration> {
        stats::cpu_time(&self.cmd::<String>(&["INFO", "cpu"]).await?)
    }

    /// Empties the slow log and has it record every command that takes at least `threshold` (whole microseconds),
    /// keeping the last `entries`.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn watch_slow_commands(&self, threshold: Duration, entries: u32) -> Result<()> {
        self.config_set("slowlog-max-len", &entries.to_string()).await?;
        self.config_set("slowlog-log-slower-than", &threshold.as_micros().to_string()).await?;
        self.cmd(&["SLOWLOG", "RESET"]).await
    }

    /// The slow log, newest first; see [`watch_slow_commands`](Self::watch_slow_commands).
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn slow_commands(&self) -> Result<Vec<SlowCommand>> {
        let entries: Vec<Value> = self.cmd(&["SLOWLOG", "GET", "-1"]).await?;
        entries.into_iter().map(SlowCommand::parse).collect()
    }

    /// What the server logged so far, over all its restarts.
    pub fn log(&self) -> String {
        self.life.log()
    }

    async fn wait_until_it_answers(&self) -> Result<()> {
        let ready = self.life.ready(START, async |id| {
            self.cmd::<()>(&["PING"]).await?;
            // Another process may have been faster to take the port.
            let found = self.info("server", "process_id").await?;
            ensure!(found == id.to_string(), "process {found} answers on {self} instead of {id}");
            Ok(())
        });
        ready.await
    }
}

/// Starts the binary with the configuration file in its directory.
fn launch(flavor: Flavor, directory: &Path, sentinel: bool) -> Result<Process> {
    let arguments = std::iter::once(CONFIG).chain(sentinel.then_some("--sentinel"));
    Process::start(&flavor.binary()?, directory, LOG, arguments)
}

impl std::fmt::Display for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.life.fmt(formatter)
    }
}
