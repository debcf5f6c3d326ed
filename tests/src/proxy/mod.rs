//! A TCP proxy between clients and one server, whose faults a test switches on and off. It must not know who talks
//! through it, nor what the commands mean.

mod connection;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// A running proxy; it ends, with all its connections, when this value is dropped.
///
/// It needs the tokio runtime it was started on. It understands RESP2 and RESP3, but not `MONITOR`, `CLIENT REPLY`, nor
/// ordinary commands on a RESP2 connection that has subscribed: there, replies cannot be told from messages.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _listening: AbortOnDropHandle<()>,
}

/// What becomes of a connection whose reply was swallowed. Later replies on it could not be told apart from the
/// missing one, so the connection never delivers anything again either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is closed, at once: the client sees a broken connection.
    Close,
    /// It stays open, and silent: the client sees nothing. Its requests still reach the server.
    Silence,
}

/// A request and the reply that the server gave to it.
#[derive(Debug)]
pub struct Exchange<'a> {
    request: &'a [Vec<u8>],
    reply: &'a [u8],
}

impl Exchange<'_> {
    /// The arguments of the request, the command's name first.
    pub fn request(&self) -> &[Vec<u8>] {
        self.request
    }

    /// The reply as it was sent (RESP).
    pub fn reply(&self) -> &[u8] {
        self.reply
    }

    /// Whether the command has this name, in any case.
    pub fn is(&self, command: &str) -> bool {
        self.request.first().is_some_and(|name| name.eq_ignore_ascii_case(command.as_bytes()))
    }

    /// Whether the server answered with an error, so that probably nothing was executed.
    pub fn is_error(&self) -> bool {
        matches!(self.reply.first(), Some(b'-' | b'!'))
    }
}

/// Whether bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Pass,
    /// Requests reach the server; its replies wait here.
    HoldReplies,
    /// Nothing passes in either direction; connections stay open.
    Hold,
    /// New connections are closed as soon as they are accepted.
    Refuse,
}

type Selects = Box<dyn Fn(&Exchange<'_>) -> bool + Send>;

struct Rule {
    remaining: u64,
    fate: Fate,
    selects: Selects,
}

struct Shared {
    upstream: SocketAddr,
    /// Raw streams are passed on as they come: replies are neither counted nor swallowed.
    raw: bool,
    flow: watch::Sender<Flow>,
    delay: watch::Sender<Duration>,
    /// Raised to close every connection that is older.
    cut: watch::Sender<u64>,
    rule: Mutex<Option<Rule>>,
    replies: AtomicU64,
    dropped: AtomicU64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and connects each client to `server`'s port there, which may be down.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: u16) -> Result<Self> {
        Self::listen(server, false).await
    }

    /// A proxy for a stream that is not made of requests and replies, such as replication.
    /// [`drop_replies`](Self::drop_replies) must not be used on it.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start_raw(server: u16) -> Result<Self> {
        Self::listen(server, true).await
    }

    async fn listen(server: u16, raw: bool) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: (Ipv4Addr::LOCALHOST, server).into(),
            raw,
            flow: watch::Sender::new(Flow::Pass),
            delay: watch::Sender::new(Duration::ZERO),
            cut: watch::Sender::new(0),
            rule: Mutex::new(None),
            replies: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let listening = AbortOnDropHandle::new(tokio::spawn(accept(listener, Arc::clone(&shared))));
        Ok(Self { port, shared, _listening: listening })
    }

    /// The port that clients connect to.
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

    /// Ends every fault. What was held flows on; a connection that was silenced stays so.
    pub fn pass(&self) {
        *self.rule() = None;
        self.shared.delay.send_replace(Duration::ZERO);
        self.shared.flow.send_replace(Flow::Pass);
    }

    /// Swallows the next `count` replies, each *after* the server executed the command, and gives their connections
    /// up as `fate` says. Replaces an earlier rule.
    ///
    /// The commands that a client sends to set a connection up count, too: use
    /// [`drop_replies_where`](Self::drop_replies_where) to spare them.
    pub fn drop_replies(&self, count: u64, fate: Fate) {
        self.drop_replies_where(count, fate, |_| true);
    }

    /// Swallows the next `count` replies that `selects` picks, for instance `|exchange| exchange.is("EVALSHA")`.
    ///
    /// # Panics
    /// On a proxy that was started raw, where it could never have an effect.
    pub fn drop_replies_where(&self, count: u64, fate: Fate, selects: impl Fn(&Exchange<'_>) -> bool + Send + 'static) {
        assert!(!self.shared.raw, "a raw proxy knows no replies, so it cannot drop any");
        *self.rule() = Some(Rule { remaining: count, fate, selects: Box::new(selects) });
    }

    /// Lets nothing pass in either direction, as a partitioned network does. Connections stay open, new ones seem to
    /// succeed; what is sent arrives after [`pass`](Self::pass).
    pub fn hold(&self) {
        self.shared.flow.send_replace(Flow::Hold);
    }

    /// Lets requests reach the server and keeps its replies back until [`pass`](Self::pass).
    pub fn hold_replies(&self) {
        self.shared.flow.send_replace(Flow::HoldReplies);
    }

    /// Closes all connections; new ones are served.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|generation| *generation += 1);
    }

    /// Closes all connections, and each new one as soon as it is accepted, until [`pass`](Self::pass).
    pub fn refuse(&self) {
        self.shared.flow.send_replace(Flow::Refuse);
        self.cut();
    }

    /// Delivers every reply this much later, without slowing down those behind it.
    pub fn delay(&self, latency: Duration) {
        self.shared.delay.send_replace(latency);
    }

    /// How many replies the server gave so far, delivered or not.
    pub fn replies(&self) -> u64 {
        self.shared.replies.load(Ordering::Relaxed)
    }

    /// How many replies a rule swallowed so far.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    fn rule(&self) -> std::sync::MutexGuard<'_, Option<Rule>> {
        self.shared.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Counts a reply, and decides whether it is swallowed.
    fn judge(&self, request: &[Vec<u8>], reply: &[u8]) -> Option<Fate> {
        self.replies.fetch_add(1, Ordering::Relaxed);
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rule.as_mut().filter(|rule| rule.remaining > 0)?;
        if !(rule.selects)(&Exchange { request, reply }) {
            return None;
        }
        rule.remaining -= 1;
        self.dropped.fetch_add(1, Ordering::Relaxed);
        Some(rule.fate)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Owned here, so that every connection ends with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if *shared.flow.borrow() == Flow::Refuse {
            continue;
        }
        let cut = shared.cut.subscribe();
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A server that is down looks to the client like a connection that is closed at once.
            if let Ok(server) = TcpStream::connect(shared.upstream).await {
                connection::relay(client, server, &shared, cut).await;
            }
        });
    }
}
