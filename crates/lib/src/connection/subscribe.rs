//! Hearing what is published on a channel, for as long as somebody listens. It knows neither who listens nor what a
//! message means, and promises no message: what is published while there is no subscription is never heard.
//!
//! A subscription has a connection of its own. On the one that calls share it would cost nothing, but a server closes a
//! subscriber that reads too slowly, and all calls with it.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use redis::{PushInfo, PushKind, Value};
use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use super::{
    Connection, Router,
    cluster::Cluster,
    link::{Ear, Link, Target, Trouble, Wire},
    refusal::{Refusal, words},
    sentinel::WATCH,
};

/// How often a silent server is asked whether it is still there. TCP keepalive would notice a dead host only after half
/// a minute, and a server that hangs, or a proxy that has forgotten the connection, not at all.
const PING: Duration = Duration::from_secs(5);
/// How long an answer may take. Slow scripts hold it up, too, and a needless new connection does little harm.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest pause between two attempts.
const PAUSE: Duration = Duration::from_secs(2);
/// The pause after the server has refused to let this user subscribe: only an operator can mend that.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// What a listener hears.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Heard<'a> {
    /// From now on messages come; those that were published before are lost.
    Standing,
    /// A message's payload.
    Message(&'a [u8]),
    /// The server does not let this user subscribe, in its words.
    Refused(&'a str),
}

/// A listener, called by the task that reads: it must not block.
pub(crate) type Listener = Arc<dyn Fn(Heard<'_>) + Send + Sync>;

/// The connection of a subscription.
struct Line<'a> {
    wire: Wire,
    /// The server, for logs.
    name: String,
    home: Home<'a>,
}

/// What the server must remain, for its messages to be the right ones.
enum Home<'a> {
    /// Whatever is there.
    Any,
    /// The master, according to the Sentinels.
    Master(&'a Link, (String, u16)),
    /// An owner of slots: one that has left the Cluster hears nothing of it any more.
    Owner(&'a Cluster),
}

impl Connection {
    /// Listens to a channel until it is dropped. A subscription that is lost, silent, or at a server that is no longer
    /// the right one is made anew.
    pub(crate) async fn subscribe(&self, channel: &str, listener: Listener) -> Infallible {
        let mut delays = backoff();
        // In a Cluster each attempt goes to another server. Clients begin anywhere, to share the servers.
        let mut turn = getrandom::u32().unwrap_or_default() as usize;
        loop {
            let started = Instant::now();
            let trouble = self.listen(channel, turn, &listener).await;
            turn = turn.wrapping_add(1);
            if trouble.hopeless {
                listener(Heard::Refused(&trouble.message));
                time::sleep(REFUSED_PAUSE).await;
                continue;
            }
            tracing::debug!(channel, error = trouble.message, "a subscription has ended");
            if started.elapsed() > PAUSE {
                delays = backoff();
            }
            time::sleep(delays.next().unwrap_or(PAUSE)).await;
        }
    }

    /// Subscribes once and listens, until something ends it.
    async fn listen(&self, channel: &str, turn: usize, listener: &Listener) -> Trouble {
        let closed = Arc::new(Notify::new());
        let ear = ear(Arc::clone(listener), Arc::clone(&closed));
        let line = match self.dial(turn, ear).await {
            Ok(line) => line,
            Err(trouble) => {
                self.inner.router.doubt();
                return trouble;
            }
        };
        let name = &line.name;
        let mut command = redis::cmd("SUBSCRIBE");
        command.arg(channel);
        match time::timeout(ANSWER, line.wire.send(&command, false)).await {
            Ok(Ok(Value::ServerError(error))) => {
                let message = format!("{name}: {}", words(&error));
                let hopeless = matches!(Refusal::of(&error), Refusal::Final);
                return Trouble { hopeless, ..Trouble::passing(message) };
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Trouble::of(name, error),
            Err(_) => return Trouble::passing(format!("{name} did not answer to SUBSCRIBE in time")),
        }
        tracing::debug!(channel, server = name, "subscribed");
        listener(Heard::Standing);
        let why = tokio::select! {
            () = closed.notified() => "closed the connection",
            () = silence(&line.wire) => "has gone silent",
            () = line.home.lost(name) => "is not the right server any more",
        };
        Trouble::passing(format!("{name} {why}"))
    }

    async fn dial(&self, turn: usize, ear: Ear) -> Result<Line<'_>, Trouble> {
        match &self.inner.router {
            Router::One(link) => {
                let (wire, master) = link.another(ear).await?;
                let home = master.map_or(Home::Any, |address| Home::Master(link, address));
                Ok(Line { wire, name: link.name().to_owned(), home })
            }
            Router::Cluster(cluster) => {
                let owners = cluster.owners();
                let link = turn.checked_rem(owners.len()).and_then(|turn| owners.get(turn));
                let link = link.ok_or_else(|| Trouble::passing("no server of the Cluster is known".to_owned()))?;
                let (wire, _) = link.another(ear).await?;
                Ok(Line { wire, name: link.name().to_owned(), home: Home::Owner(cluster) })
            }
        }
    }
}

impl Home<'_> {
    /// Ends when server `name` is none to listen at any more.
    async fn lost(&self, name: &str) {
        if matches!(self, Self::Any) {
            pending::<()>().await;
        }
        loop {
            time::sleep(WATCH).await;
            let lost = match self {
                Self::Any => false,
                Self::Master(link, address) => match link.target() {
                    Target::Sentinel(sentinels) => sentinels.moved_from(address).await,
                    Target::Server(_) => false,
                },
                Self::Owner(cluster) => cluster.owners().iter().all(|owner| owner.name() != name),
            };
            if lost {
                return;
            }
        }
    }
}

/// Ends when the server does not answer any more. An error is an answer, too.
async fn silence(wire: &Wire) {
    let ping = redis::cmd("PING");
    loop {
        time::sleep(PING).await;
        if !matches!(time::timeout(ANSWER, wire.send(&ping, false)).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Takes what a server says unasked apart.
fn ear(listener: Listener, closed: Arc<Notify>) -> Ear {
    Arc::new(move |push: PushInfo| match push.kind {
        // The channel comes first: there is but one.
        PushKind::Message => {
            if let Some(Value::BulkString(payload)) = push.data.get(1) {
                listener(Heard::Message(payload));
            }
        }
        PushKind::Disconnection => closed.notify_one(),
        _ => {}
    })
}

/// The pauses between attempts, jittered, as a restart of the server sends all clients here at once.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(PAUSE)
        .without_max_times()
        .with_jitter()
        .build()
}
