//! One server and the connection to it, made anew when it is lost. It sends what it is given, once; whether to send it
//! again is decided in `call`.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, InfoDict, PushInfo, PushKind, RedisError,
    ServerErrorKind, Value, aio::MultiplexedConnection, from_redis_value,
};
use tokio::{task::JoinError, time};

use super::{endpoint::host_and_port, sentinel::Sentinels};

/// Hears what a server says unasked, and that the connection has ended. It is called by the task that reads, so it must
/// not block.
pub(super) type Ear = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Requests that may queue up before the writer. Beyond it callers wait for room.
const QUEUE: usize = 1024;
/// Bytes gathered before the writer must flush them.
const WRITE_BUFFER: usize = 64 * 1024;

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// In a sentence, naming the server.
    pub(super) message: String,
    /// Waiting does not help: the server refuses the login, or does not have the database.
    pub(super) hopeless: bool,
    pub(super) source: Option<Arc<RedisError>>,
}

impl Trouble {
    pub(super) fn passing(message: String) -> Self {
        Self { message, hopeless: false, source: None }
    }

    pub(super) fn of(server: &str, error: RedisError) -> Self {
        let hopeless = match error.kind() {
            ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::RESP3NotSupported
            | ErrorKind::Server(ServerErrorKind::NoPerm) => true,
            // redis-rs files every failed SELECT here, a busy server's too.
            ErrorKind::Server(ServerErrorKind::ResponseError) => error.detail().is_some_and(|detail| {
                detail.contains("DB index is out of range") || detail.contains("not allowed in cluster mode")
            }),
            ErrorKind::Extension => matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "DENIED")),
            _ => false,
        };
        Self { message: format!("{server}: {error}"), hopeless, source: Some(Arc::new(error)) }
    }
}

/// Where a link leads.
pub(super) enum Target {
    Server(ConnectionInfo),
    Sentinel(Sentinels),
}

/// A server, connected or not.
pub(super) struct Link {
    target: Target,
    /// For errors and logs.
    name: String,
    connect_timeout: Duration,
    /// A std mutex: it is held for a clone, never across an await.
    wire: Mutex<Option<Wire>>,
    /// Held while connecting; keeps what the last attempt failed with.
    dialing: tokio::sync::Mutex<Option<Trouble>>,
    attempts: AtomicU64,
}

/// A connection as it is now. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub(super) struct Wire {
    inner: Arc<WireInner>,
}

struct WireInner {
    connection: MultiplexedConnection,
    pulse: Arc<Pulse>,
}

/// The signs of life of a connection.
#[derive(Debug, Default)]
struct Pulse {
    closed: AtomicBool,
    replies: AtomicU64,
}

impl Wire {
    /// Logs in at a server. It takes as long as it takes: the caller sets the limit.
    pub(super) async fn connect(server: &ConnectionInfo, ear: Option<Ear>) -> Result<Self, RedisError> {
        let pulse = Arc::new(Pulse::default());
        let mut config = AsyncConnectionConfig::new()
            // Both are limited here, where it is known what a passed limit means.
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_write_backpressure_boundary(WRITE_BUFFER);
        if server.redis_settings().protocol().supports_resp3() {
            let pulse = Arc::clone(&pulse);
            config = config.set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    pulse.closed.store(true, Ordering::Release);
                }
                if let Some(ear) = &ear {
                    ear(push);
                }
                Ok::<(), ()>(())
            });
        }
        let client = Client::open(server.clone())?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Self { inner: Arc::new(WireInner { connection, pulse }) })
    }

    /// Sends a command and waits for its reply, which may be an error reply. An `Err` means that the connection ended
    /// meanwhile: the command may have been executed.
    pub(super) async fn send(&self, command: &Cmd, asking: bool) -> Result<Value, RedisError> {
        let mut connection = self.inner.connection.clone();
        let reply = if asking {
            let mut pair = redis::pipe();
            pair.cmd("ASKING").add_command(command.clone());
            let mut replies = connection.send_packed_commands(&pair, 0, 2).await?;
            replies.pop().unwrap_or(Value::Nil)
        } else {
            connection.send_packed_command(command).await?
        };
        self.inner.pulse.replies.fetch_add(1, Ordering::Relaxed);
        Ok(reply)
    }

    /// How many replies have come in on it.
    pub(super) fn replies(&self) -> u64 {
        self.inner.pulse.replies.load(Ordering::Relaxed)
    }
}

impl Link {
    pub(super) fn new(target: Target, connect_timeout: Duration) -> Self {
        let name = match &target {
            Target::Server(server) => server.addr().to_string(),
            Target::Sentinel(sentinels) => sentinels.describe(),
        };
        Self {
            target,
            name,
            connect_timeout,
            wire: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            attempts: AtomicU64::default(),
        }
    }

    /// The server, for errors and logs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The host that stands for an empty one in what the server says about its Cluster.
    pub(super) fn host(&self) -> String {
        match &self.target {
            Target::Server(server) => host_and_port(server.addr()).0,
            Target::Sentinel(_) => String::new(),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.current().is_some()
    }

    /// The connection; a new one if there is none.
    pub(super) async fn wire(self: &Arc<Self>) -> Result<Wire, Trouble> {
        if let Some(wire) = self.current() {
            return Ok(wire);
        }
        // A task of its own, so that callers who give up early don't make every attempt start from the beginning.
        let (link, seen) = (Arc::clone(self), self.attempts.load(Ordering::Acquire));
        let attempt = tokio::spawn(async move { link.dial(seen).await });
        let gone = |error: JoinError| Err(Trouble::passing(format!("connecting to {} failed: {error}", self.name)));
        attempt.await.unwrap_or_else(gone)
    }

    /// Connects, or shares the outcome of an attempt that has ended since `seen` attempts were counted.
    async fn dial(&self, seen: u64) -> Result<Wire, Trouble> {
        let mut failure = self.dialing.lock().await;
        if let Some(wire) = self.current() {
            return Ok(wire);
        }
        if self.attempts.load(Ordering::Acquire) != seen
            && let Some(trouble) = &*failure
        {
            return Err(trouble.clone());
        }
        let outcome = match &self.target {
            Target::Server(server) => self.limited(self.log_in(server, None)).await,
            Target::Sentinel(sentinels) => self.limited(sentinels.connect(None)).await.map(|(wire, address)| {
                sentinels.follow(address);
                wire
            }),
        };
        match &outcome {
            Ok(wire) => {
                tracing::info!(server = self.name, "connected to Redis");
                *self.slot() = Some(wire.clone());
                *failure = None;
            }
            Err(trouble) => {
                tracing::debug!(server = self.name, error = trouble.message, "can't connect to Redis");
                *failure = Some(trouble.clone());
            }
        }
        self.attempts.fetch_add(1, Ordering::Release);
        outcome
    }

    /// A connection of its own beside the shared one, made once; and where it leads, if that is a Sentinel's word.
    pub(super) async fn another(&self, ear: Ear) -> Result<(Wire, Option<(String, u16)>), Trouble> {
        match &self.target {
            Target::Server(server) => self.limited(self.log_in(server, Some(ear))).await.map(|wire| (wire, None)),
            Target::Sentinel(sentinels) => {
                let (wire, address) = self.limited(sentinels.connect(Some(ear))).await?;
                Ok((wire, Some(address)))
            }
        }
    }

    async fn log_in(&self, server: &ConnectionInfo, ear: Option<Ear>) -> Result<Wire, Trouble> {
        let trouble = |error| Trouble::of(&format!("can't connect to {}", self.name), error);
        Wire::connect(server, ear).await.map_err(trouble)
    }

    async fn limited<T>(&self, connect: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        time::timeout(self.connect_timeout, connect).await.unwrap_or_else(|_| {
            let limit = self.connect_timeout.as_millis();
            Err(Trouble::passing(format!("can't connect to {}: no answer within {limit} ms", self.name)))
        })
    }

    /// Gives a connection up: the next call makes a new one. Who still waits for replies on it may get them.
    pub(super) fn retire(&self, wire: &Wire) {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(&current.inner, &wire.inner)) {
            tracing::info!(server = self.name, "gave a connection to Redis up");
            *slot = None;
        }
    }

    /// Gives up whatever connection there is.
    pub(super) fn retire_any(&self) {
        let wire = self.current();
        if let Some(wire) = wire {
            self.retire(&wire);
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// The connection, if there is one.
    pub(super) fn current(&self) -> Option<Wire> {
        self.slot().as_ref().filter(|wire| !wire.inner.pulse.closed.load(Ordering::Acquire)).cloned()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Wire>> {
        // What it guards is replaced whole: a panic elsewhere can't have left it half-way.
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whether the server belongs to a Cluster. A server that does not tell (a user without the right to INFO, a
    /// proxy) is taken as one that stands alone.
    pub(super) async fn is_cluster_node(self: &Arc<Self>, limit: Duration) -> bool {
        let mut info = redis::cmd("INFO");
        info.arg("cluster");
        let ask = async {
            let reply = self.wire().await.ok()?.send(&info, false).await.ok()?;
            from_redis_value::<InfoDict>(reply).ok()?.get::<u8>("cluster_enabled")
        };
        matches!(time::timeout(limit, ask).await, Ok(Some(1)))
    }
}
