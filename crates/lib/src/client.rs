//! A connection to a server and what all pools on it share: the key prefix, who this process is, the one timer that
//! keeps its leases alive, the one heartbeat of its sessions, and the one subscription that wakes its waiters.

mod examine;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::Value;

pub use self::examine::{ClockReading, Permissions, ServerFacts};
use crate::{
    connection::{Connection, Options},
    error::{Error, Result},
    keep_alive::KeepAlive,
    keys::Keyspace,
    lease::KeyGrants,
    names::PoolName,
    pool::{Pool, WeakPool},
    reply::Reply,
    script::{Script, Scripted},
    session::Beats,
    wake::Wake,
};

/// A handle to the Redis (or Valkey) deployment that holds the pools. Cheap to clone; clones share one connection.
///
/// ```no_run
/// # async fn example() -> Result<(), redis_allocator::Error> {
/// use redis_allocator::Client;
///
/// let client = Client::connect("redis://127.0.0.1:6379").await?;
/// let pool = client.pool("default/gpus")?;
/// if let Some(lease) = pool.malloc().await? {
///     println!("using {} under token {}", lease.key(), lease.fencing_token());
///     lease.free().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) connection: Connection,
    keyspace: Keyspace,
    owner: String,
    pub(crate) timeout: Duration,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) beats: Beats,
    /// How its waiters hear that they may look now.
    pub(crate) wake: Wake,
    /// Handles that are in use: all to one pool are one, so that their callers meet.
    pools: Mutex<HashMap<PoolName, WeakPool>>,
    /// Tokens of what [`Pool::malloc_key`] granted, so that [`Pool::free_keys`] frees nothing else.
    pub(crate) key_grants: Mutex<KeyGrants>,
    #[cfg(feature = "test-clock")]
    clock: Option<crate::test_clock::TestClock>,
}

/// How to connect; made by [`Client::builder`].
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    url: String,
    key_prefix: String,
    connect_timeout: Duration,
    timeout: Duration,
    owner: Option<String>,
    allow_eviction: bool,
    #[cfg(feature = "test-clock")]
    clock: Option<crate::test_clock::TestClock>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis` or `valkey`.
    pub flavor: String,
    /// Such as `7.0.15`.
    pub version: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub mode: String,
    /// What happens when its memory is full, where it says so; only `noeviction` keeps leases safe.
    pub maxmemory_policy: Option<String>,
}

impl Client {
    /// Connects with the defaults of [`ClientBuilder`]. Must be called within a Tokio runtime.
    ///
    /// The URL is one of `redis://[user:password@]host[:port][/db]`, `rediss://…` (TLS), `unix:///path[?db=1]`,
    /// `redis+cluster://host:port,host:port`, `rediss+cluster://…`, and
    /// `redis+sentinel://host:port,host:port/master-name[/db]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL of another form, [`Error::Unavailable`] when no server answers, [`Error::Evicting`]
    /// when the server's `maxmemory-policy` may evict leases.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect().await
    }

    /// Begins a connection with settings of its own.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            key_prefix: "ra".to_owned(),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            owner: None,
            allow_eviction: false,
            #[cfg(feature = "test-clock")]
            clock: None,
        }
    }

    /// A handle to a pool, `<namespace>/<name>`, or `<name>` in namespace `default`. Asks the server nothing: whether
    /// the pool exists shows at the first call.
    ///
    /// # Errors
    /// [`Error::InvalidName`] unless both parts are DNS-1123 labels.
    pub fn pool(&self, name: impl AsRef<str>) -> Result<Pool> {
        let name: PoolName = name.as_ref().parse()?;
        let mut pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&name).and_then(WeakPool::upgrade) {
            return Ok(pool);
        }
        if pools.len() == pools.capacity() {
            pools.retain(|_, pool| pool.upgrade().is_some());
        }
        let pool = Pool::new(self.clone(), name.clone(), self.inner.keyspace.pool(&name));
        pools.insert(name, pool.downgrade());
        Ok(pool)
    }

    /// Who leases of this client are granted to unless they say otherwise: `$POD_NAMESPACE/$POD_NAME`, or `host:pid`.
    pub fn owner(&self) -> &str {
        &self.inner.owner
    }

    /// The server's address without user, password and options, for logs.
    pub fn address(&self) -> &str {
        self.inner.connection.describe()
    }

    /// Namespaces that ever had a pool, sorted.
    pub async fn namespaces(&self) -> Result<Vec<String>> {
        let key = self.inner.keyspace.namespaces();
        let mut command = redis::cmd("SMEMBERS");
        command.arg(&key);
        let value = self.inner.connection.command(Some(key.as_bytes()), true, "list namespaces", command).await?;
        let mut names = strings("list namespaces", value)?;
        names.sort_unstable();
        Ok(names)
    }

    /// The pools of a namespace, sorted.
    ///
    /// A name may be listed for a moment before its pool exists, and after it is gone.
    pub async fn pools(&self, namespace: &str) -> Result<Vec<PoolName>> {
        let key = self.inner.keyspace.registry(PoolName::new(namespace, "x")?.namespace());
        let mut command = redis::cmd("HKEYS");
        command.arg(&key);
        let value = self.inner.connection.command(Some(key.as_bytes()), true, "list pools", command).await?;
        let mut names = strings("list pools", value)?
            .into_iter()
            .map(|name| PoolName::new(namespace, &name))
            .collect::<Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Asks the server who it is: one round trip, fit for a health check.
    pub async fn server_info(&self) -> Result<ServerInfo> {
        let mut command = redis::cmd("INFO");
        command.arg("server").arg("memory");
        let value = self.inner.connection.command(None, true, "INFO", command).await?;
        let text = match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::VerbatimString { text, .. } => text,
            other => {
                return Err(Error::Server {
                    operation: "INFO",
                    subject: "its reply".to_owned(),
                    message: format!("expected a text, found {other:?}"),
                });
            }
        };
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|v| v.trim().to_owned())
        };
        let valkey = field("valkey_version");
        Ok(ServerInfo {
            flavor: if valkey.is_some() { "valkey" } else { "redis" }.to_owned(),
            mode: field("redis_mode").or_else(|| field("server_mode")).unwrap_or_else(|| "standalone".to_owned()),
            version: valkey.or_else(|| field("redis_version")).unwrap_or_default(),
            maxmemory_policy: field("maxmemory_policy"),
        })
    }

    #[cfg_attr(not(feature = "test-clock"), expect(clippy::unused_self, reason = "a test's clock is the client's"))]
    pub(crate) fn form(&self, script: &'static Scripted) -> &'static Script {
        #[cfg(feature = "test-clock")]
        if self.inner.clock.is_some() {
            return script.clocked();
        }
        script.plain()
    }

    /// Runs a script on a pool's keys. `patiently`: wait for a late reply, to undo what it brings.
    pub(crate) async fn run(
        &self,
        script: &'static Script,
        subject: &str,
        keys: &[String],
        args: &[Cow<'_, [u8]>],
        patiently: bool,
    ) -> Result<Reply> {
        #[cfg(feature = "test-clock")]
        let timed;
        #[cfg(feature = "test-clock")]
        let args = if let Some(clock) = &self.inner.clock {
            timed = clock.before(args);
            &timed[..]
        } else {
            args
        };
        let connection = &self.inner.connection;
        let value = if patiently {
            connection.run_patiently(script, subject, keys, args).await?
        } else {
            connection.run(script, subject, keys, args).await?
        };
        Reply::new(script.operation, value)
    }

    /// The incarnation that the registry knows of a pool.
    pub(crate) async fn registered(&self, pool: &PoolName) -> Result<Option<String>> {
        let key = self.inner.keyspace.registry(pool.namespace());
        let mut command = redis::cmd("HGET");
        command.arg(&key).arg(pool.name());
        let value = self.inner.connection.command(Some(key.as_bytes()), true, "look up a pool", command).await?;
        Reply::new("look up a pool", Value::Array(vec![value]))?.optional_text()
    }

    pub(crate) async fn register(&self, pool: &PoolName, incarnation: &str) -> Result<()> {
        let key = self.inner.keyspace.namespaces();
        let mut command = redis::cmd("SADD");
        command.arg(&key).arg(pool.namespace());
        self.inner.connection.command(Some(key.as_bytes()), false, "register a namespace", command).await?;
        let key = self.inner.keyspace.registry(pool.namespace());
        let mut command = redis::cmd("HSET");
        command.arg(&key).arg(pool.name()).arg(incarnation);
        self.inner.connection.command(Some(key.as_bytes()), false, "register a pool", command).await?;
        Ok(())
    }

    /// Removes a pool from the registry, unless it has been created anew since.
    pub(crate) async fn unregister(&self, pool: &PoolName, incarnation: &str) -> Result<()> {
        const COMPARE_AND_DELETE: &str = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end \
             return 0";
        let key = self.inner.keyspace.registry(pool.namespace());
        let mut command = redis::cmd("EVAL");
        command.arg(COMPARE_AND_DELETE).arg(1).arg(&key).arg(pool.name()).arg(incarnation);
        self.inner.connection.command(Some(key.as_bytes()), false, "unregister a pool", command).await?;
        Ok(())
    }
}

impl ClientBuilder {
    /// What all keys begin with. Default `ra`; clients of one pool must agree on it.
    #[must_use]
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.key_prefix = prefix.into();
        self
    }

    /// How long one attempt to connect may take. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one call may take, with all it must wait for and repeat. Default 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Who leases are granted to unless they say otherwise. Default `$POD_NAMESPACE/$POD_NAME`, else `host:pid`.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Accepts a server whose `maxmemory-policy` may evict keys, and with them leases: two holders may then have one
    /// resource. Default: refuse it.
    #[must_use]
    pub fn allow_eviction(mut self, allow: bool) -> Self {
        self.allow_eviction = allow;
        self
    }

    /// Makes scripts see this clock instead of Redis' own: tests alone.
    #[cfg(feature = "test-clock")]
    #[doc(hidden)]
    #[must_use]
    pub fn test_clock(mut self, clock: crate::test_clock::TestClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Connects. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// As [`Client::connect`]; and [`Error::InvalidName`] for a key prefix with braces.
    pub async fn connect(self) -> Result<Client> {
        let keyspace = Keyspace::new(&self.key_prefix)?;
        let owner = match self.owner {
            Some(owner) => crate::names::check_owner(owner)?,
            None => default_owner(),
        };
        let wake = Wake::new(&keyspace)?;
        let options = Options { connect_timeout: self.connect_timeout, timeout: self.timeout };
        let client = Client {
            inner: Arc::new(Inner {
                connection: Connection::open(&self.url, options).await?,
                keyspace,
                owner,
                timeout: self.timeout,
                runtime: tokio::runtime::Handle::current(),
                keep_alive: KeepAlive::default(),
                beats: Beats::default(),
                wake,
                pools: Mutex::new(HashMap::new()),
                key_grants: Mutex::new(HashMap::new()),
                #[cfg(feature = "test-clock")]
                clock: self.clock,
            }),
        };
        // A server that does not say (an ACL without INFO, a managed service) is believed to be set up well.
        match client.server_info().await.map(|server| server.maxmemory_policy) {
            Ok(Some(policy)) if policy != "noeviction" => {
                if !self.allow_eviction {
                    return Err(Error::Evicting { policy });
                }
                tracing::warn!(%policy, "the Redis server may evict leases when its memory is full");
            }
            Ok(Some(_)) => {}
            Ok(None) => tracing::warn!("the Redis server does not tell its maxmemory-policy; it must be noeviction"),
            Err(Error::Server { message, .. }) => {
                tracing::warn!(%message, "can't see the server's maxmemory-policy; it must be noeviction");
            }
            Err(error) => return Err(error),
        }
        Ok(client)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address()).finish_non_exhaustive()
    }
}

fn default_owner() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(namespace), Some(name)) = (variable("POD_NAMESPACE"), variable("POD_NAME")) {
        return format!("{namespace}/{name}");
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}

fn strings(operation: &'static str, value: Value) -> Result<Vec<String>> {
    let value = match value {
        Value::Set(values) => Value::Array(values),
        other => other,
    };
    Reply::new(operation, Value::Array(vec![value]))?.texts()
}
