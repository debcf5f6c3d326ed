//! The yardstick: scripts that do nothing, sent with as many keys and arguments as a grant and its return have. It uses
//! redis-rs directly, since it measures what Redis and a bare client cost.

use std::sync::Arc;

use anyhow::{Context, Result};
use redis::{AsyncConnectionConfig, Cmd, aio::MultiplexedConnection};

/// Names as long as those of a pool's keys.
const PARTS: [&str; 20] = [
    "meta",
    "items",
    "free",
    "leases",
    "holders",
    "quarantine",
    "marks",
    "reserved",
    "binds",
    "bind-expiry",
    "origins",
    "by-label",
    "missing",
    "shares",
    "waiters",
    "wants",
    "waiting",
    "alive",
    "sessions",
    "session-leases",
];
/// As long as what a grant is asked with.
const MALLOC: [&str; 4] = ["0", "", r#"{"owner":"build-host-7:12345"}"#, ""];
/// As long as what a grant is returned with.
const FREE: [&str; 2] = ["10.0.0.17:8000", "1763600000123456"];

/// A connection that sends pairs of no-op scripts. Clones share it.
#[derive(Clone)]
pub(crate) struct Noop {
    connection: MultiplexedConnection,
    pair: Arc<[Cmd; 2]>,
}

impl Noop {
    /// Connects, and loads the script that does nothing.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = redis::Client::open(url)?;
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let sha: String = redis::cmd("SCRIPT").arg("LOAD").arg("#!lua\nreturn 1").query_async(&mut connection).await?;
        let keys = PARTS.map(|part| format!("ra:{{default/bench}}:{part}"));
        let evalsha = |arguments: &[&str]| {
            let mut command = redis::cmd("EVALSHA");
            command.arg(&sha).arg(keys.len()).arg(&keys[..]).arg(arguments);
            command
        };
        Ok(Self { connection, pair: Arc::new([evalsha(&MALLOC), evalsha(&FREE)]) })
    }

    /// One after the other, as a caller does who needs the first reply for the second call.
    ///
    /// # Errors
    /// When the connection ends.
    pub(crate) async fn pair(&self) -> Result<()> {
        let mut connection = self.connection.clone();
        for command in &*self.pair {
            connection.send_packed_command(command).await.context("a no-op failed")?;
        }
        Ok(())
    }
}
