//! How the library reaches Redis: one server, Sentinel or Cluster behind one [`Connection`], and the promise that no
//! call which may have been executed is repeated unless it says it may be. It knows no pool and no key: a caller brings
//! the script and its keys, and reads the reply.
//!
//! | file | idea |
//! |---|---|
//! | `endpoint` | what a URL says |
//! | `link` | one server: its connection, made anew when it is lost |
//! | `sentinel`, `cluster` | which server is the right one |
//! | `refusal` | what an error reply proves |
//! | `call` | the rules of repeating |
//! | `subscribe` | hearing what is published, on a connection of its own |

mod call;
mod cluster;
mod endpoint;
mod link;
mod refusal;
mod sentinel;
mod subscribe;

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Value};

pub(crate) use self::subscribe::Heard;
use self::{
    call::Call,
    cluster::Cluster,
    endpoint::{Endpoint, Kind, at},
    link::{Link, Target, Trouble, Wire},
    sentinel::Sentinels,
};
use crate::{
    error::{Error, Result},
    script::{Repeat, Script},
};

/// How long [`Connection::run_patiently`] waits for a reply, from the call on.
const LATE: Duration = Duration::from_mins(1);

/// The two limits a caller sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Of one attempt to connect: name lookup, TCP, TLS, login.
    pub(crate) connect_timeout: Duration,
    /// Of one call, whatever it has to wait for and repeat.
    pub(crate) timeout: Duration,
}

/// A way to a Redis deployment, shared by many tasks: a clone is the same connection.
///
/// # Guarantees
/// - A request leaves at most once, unless a reply proves that it was not executed, or its script is [`Repeat::Safe`]
///   or read-only.
/// - A lost connection is made anew by the next call that needs it; one that has been silent for a whole timeout with
///   a call pending is given up. Replies that still come in on it reach whoever still waits for them.
/// - A call's future may be dropped at any point: others are unaffected, and the request may or may not be executed.
///
/// # Assumptions
/// - Redis 7 or later: earlier versions hide the code of an error that a script ran into, such as READONLY.
/// - A script that meets a server without the right to write (READONLY, MASTERDOWN, NOREPLICAS) has written nothing,
///   since that state can't change while a script runs.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    options: Options,
    description: String,
}

/// Which server a call goes to.
enum Router {
    One(Arc<Link>),
    Cluster(Arc<Cluster>),
}

impl Connection {
    /// Connects, once: an agent that waits for its server calls it again.
    ///
    /// A plain `redis://` URL whose server belongs to a Cluster leads to the whole Cluster.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL that can't be used, [`Error::Unavailable`] when nobody answers, [`Error::Server`]
    /// when the server refuses the login.
    pub(crate) async fn open(url: &str, options: Options) -> Result<Self> {
        let Endpoint { kind, description } = Endpoint::parse(url)?;
        install_crypto_provider();
        let refused = |trouble: Trouble| trouble.into_error("connect", &description);
        let router = match kind {
            Kind::Server(server) => {
                let link = Arc::new(Link::new(Target::Server(server.clone()), options.connect_timeout));
                link.wire().await.map_err(refused)?;
                if link.is_cluster_node(options.timeout).await {
                    Router::Cluster(Cluster::open(vec![server], options.connect_timeout).await.map_err(refused)?)
                } else {
                    Router::One(link)
                }
            }
            Kind::Cluster(seeds) => {
                Router::Cluster(Cluster::open(seeds, options.connect_timeout).await.map_err(refused)?)
            }
            Kind::Sentinel { sentinels, master, server } => {
                let sentinels = Sentinels::new(sentinels, master, server, options.connect_timeout);
                let link = Arc::new(Link::new(Target::Sentinel(sentinels), options.connect_timeout));
                link.wire().await.map_err(refused)?;
                sentinel::watch(&link);
                Router::One(link)
            }
        };
        Ok(Self { inner: Arc::new(Inner { router, options, description }) })
    }

    /// Runs a script, whose keys must all be in one slot, and returns its reply. It gives up after
    /// [`Options::timeout`]. `subject` is for errors: the pool's name.
    ///
    /// # Errors
    /// - [`Error::Unavailable`]: not executed, and the server did not take it in time.
    /// - [`Error::Timeout`]: a read-only script was not answered in time.
    /// - [`Error::OutcomeUnknown`]: it was sent and its reply did not come.
    /// - [`Error::Server`]: the server or the script itself replied with an error that waiting does not mend.
    pub(crate) async fn run<K, A>(&self, script: &Script, subject: &str, keys: &[K], args: &[A]) -> Result<Value>
    where
        K: AsRef<[u8]>,
        A: AsRef<[u8]>,
    {
        self.run_until(script, subject, keys, args, Duration::ZERO).await
    }

    /// Like [`Connection::run`], but once sent, it waits for its reply for 60 s or until the connection ends, whichever
    /// comes first. For a task that must undo what a late reply brings when its caller has long gone; it still starts
    /// nothing new after [`Options::timeout`].
    pub(crate) async fn run_patiently<K, A>(
        &self,
        script: &Script,
        subject: &str,
        keys: &[K],
        args: &[A],
    ) -> Result<Value>
    where
        K: AsRef<[u8]>,
        A: AsRef<[u8]>,
    {
        self.run_until(script, subject, keys, args, LATE).await
    }

    async fn run_until<K, A>(
        &self,
        script: &Script,
        subject: &str,
        keys: &[K],
        args: &[A],
        patience: Duration,
    ) -> Result<Value>
    where
        K: AsRef<[u8]>,
        A: AsRef<[u8]>,
    {
        let call = Call {
            operation: script.operation,
            subject,
            script: Some(script),
            key: keys.first().map(AsRef::as_ref),
            read_only: script.read_only,
            repeatable: script.read_only || script.repeat == Repeat::Safe,
            timeout: self.inner.options.timeout,
            patience,
        };
        call.make(&self.inner.router, &evalsha(script, keys, args)).await
    }

    /// Sends a plain command to the server that owns `key`, or to any when there is none. It is repeated only if it is
    /// `read_only`.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub(crate) async fn command(
        &self,
        key: Option<&[u8]>,
        read_only: bool,
        operation: &'static str,
        command: Cmd,
    ) -> Result<Value> {
        let call = Call {
            operation,
            subject: &self.inner.description,
            script: None,
            key,
            read_only,
            repeatable: read_only,
            timeout: self.inner.options.timeout,
            patience: Duration::ZERO,
        };
        call.make(&self.inner.router, &command).await
    }

    /// A way to each single server that may be written to: one, or those of a Cluster.
    pub(crate) fn servers(&self) -> Vec<Self> {
        match &self.inner.router {
            Router::One(link) => vec![self.only(Arc::clone(link))],
            Router::Cluster(cluster) => cluster.owners().into_iter().map(|link| self.only(link)).collect(),
        }
    }

    /// A way to another server of the same deployment, with the same login.
    pub(crate) fn beside(&self, host: &str, port: u16) -> Self {
        let limit = self.inner.options.connect_timeout;
        let login = match &self.inner.router {
            Router::Cluster(cluster) => cluster.server(),
            Router::One(link) => match link.target() {
                Target::Server(server) => server,
                Target::Sentinel(sentinels) => sentinels.server(),
            },
        };
        self.only(Arc::new(Link::new(Target::Server(at(login, host, port)), limit)))
    }

    fn only(&self, link: Arc<Link>) -> Self {
        let description = link.name().to_owned();
        Self { inner: Arc::new(Inner { router: Router::One(link), options: self.inner.options, description }) }
    }

    /// The URL without user, password and options, for logs.
    pub(crate) fn describe(&self) -> &str {
        &self.inner.description
    }
}

impl Router {
    /// The server that owns `key` and the connection to it, if both are at hand.
    fn at_hand(&self, key: Option<&[u8]>) -> Option<(Arc<Link>, Wire)> {
        let link = self.route(key)?;
        let wire = link.current()?;
        Some((link, wire))
    }

    /// The server that owns `key`, as far as is known.
    fn route(&self, key: Option<&[u8]>) -> Option<Arc<Link>> {
        match self {
            Self::One(link) => Some(Arc::clone(link)),
            Self::Cluster(cluster) => cluster.known(key),
        }
    }

    /// A call met a server that is not there, or not what it was: look again who is who.
    fn doubt(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.refresh_soon();
        }
    }
}

/// The command, built with one allocation for its bytes and one for its offsets.
fn evalsha<K: AsRef<[u8]>, A: AsRef<[u8]>>(script: &Script, keys: &[K], args: &[A]) -> Cmd {
    const NAME: &str = "EVALSHA";
    /// Digits of the largest number of keys that Redis takes.
    const DIGITS: usize = 7;
    let bytes = NAME.len()
        + script.sha.len()
        + DIGITS
        + keys.iter().map(|key| key.as_ref().len()).sum::<usize>()
        + args.iter().map(|arg| arg.as_ref().len()).sum::<usize>();
    let mut command = Cmd::with_capacity(3 + keys.len() + args.len(), bytes);
    command.arg(NAME).arg(&script.sha).arg(keys.len());
    for key in keys {
        command.arg(key.as_ref());
    }
    for arg in args {
        command.arg(arg.as_ref());
    }
    command
}

/// TLS needs a provider of cryptography for the process: ring, unless the program has chosen one.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // It fails only if another thread was quicker, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

impl Trouble {
    /// What a caller sees who gave up on it.
    fn into_error(self, operation: &'static str, subject: &str) -> Error {
        if self.hopeless {
            Error::Server { operation, subject: subject.to_owned(), message: self.message }
        } else {
            Error::Unavailable { message: self.message, source: self.source }
        }
    }
}
