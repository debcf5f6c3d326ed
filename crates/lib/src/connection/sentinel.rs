//! Who is master, by Redis Sentinel: ask, connect, and let the server itself confirm it, as
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/> wants it. Asked anew for every connection, and
//! once a second meanwhile: in a failover whose old master lives, that one goes on taking writes for some ten seconds
//! before it is told, and all of them are lost.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::future::{BoxFuture, select_ok};
use redis::{ConnectionInfo, RedisError, Value, from_redis_value};
use tokio::time;

use super::{
    endpoint::at,
    link::{Ear, Link, Target, Trouble, Wire},
};

/// How often the Sentinels are asked whether the master is still the same.
pub(super) const WATCH: Duration = Duration::from_secs(1);

/// A connection to the master, and the master's host and port.
type Found = Result<(Wire, (String, u16)), Trouble>;

/// The Sentinels of one master.
pub(super) struct Sentinels {
    peers: Vec<Arc<Link>>,
    master: String,
    /// How to log in to the master, wherever it is.
    server: ConnectionInfo,
    /// For one Sentinel to answer. The whole has the same limit, so the Sentinels are asked all at once.
    limit: Duration,
    /// Where the connection that calls share went last. A std mutex: it is never held across an await.
    latest: Mutex<Option<(String, u16)>>,
}

impl Sentinels {
    pub(super) fn new(sentinels: Vec<ConnectionInfo>, master: String, server: ConnectionInfo, limit: Duration) -> Self {
        let link = |sentinel| Arc::new(Link::new(Target::Server(sentinel), limit));
        Self { peers: sentinels.into_iter().map(link).collect(), master, server, limit, latest: Mutex::default() }
    }

    /// How to log in to the master, wherever it is.
    pub(super) fn server(&self) -> &ConnectionInfo {
        &self.server
    }

    pub(super) fn describe(&self) -> String {
        format!("the master {:?} by Sentinel", self.master)
    }

    /// Connects to the server that is master now, and tells where that is. Boxed, because a Sentinel is reached by a
    /// [`Link`], too.
    pub(super) fn connect(&self, ear: Option<Ear>) -> BoxFuture<'_, Found> {
        Box::pin(self.find(ear))
    }

    async fn find(&self, ear: Option<Ear>) -> Found {
        let (host, port) = self.locate().await?;
        let server = at(&self.server, &host, port);
        let name = server.addr().to_string();
        let trouble =
            |error| Trouble::of(&format!("can't connect to {name}, master {:?} by Sentinel", self.master), error);
        let wire = Wire::connect(&server, ear).await.map_err(trouble)?;
        let role = wire.send(&redis::cmd("ROLE"), false).await.and_then(Value::extract_error).map_err(trouble)?;
        let role = match role {
            Value::Array(parts) => parts.into_iter().next().and_then(|role| from_redis_value::<String>(role).ok()),
            _ => None,
        };
        if role.as_deref() == Some("master") {
            return Ok((wire, (host, port)));
        }
        let role = role.unwrap_or_else(|| "nothing known".to_owned());
        Err(Trouble::passing(format!(
            "{name} should be master {:?} by Sentinel, but says it is a {role}: a failover is going on",
            self.master
        )))
    }

    /// The first answer of any Sentinel that knows the master.
    async fn locate(&self) -> Result<(String, u16), Trouble> {
        let (address, _) = select_ok(self.peers.iter().map(|sentinel| Box::pin(self.ask(sentinel)))).await?;
        Ok(address)
    }

    async fn ask(&self, sentinel: &Arc<Link>) -> Result<(String, u16), Trouble> {
        let name = sentinel.name();
        let ask = async {
            let trouble = |error: RedisError| Trouble::of(&format!("can't ask Sentinel {name}"), error);
            let wire = sentinel.wire().await?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
            let reply = wire.send(&command, false).await.and_then(Value::extract_error).map_err(trouble)?;
            from_redis_value::<Option<(String, u16)>>(reply)
                .map_err(|error| trouble(error.into()))?
                .ok_or_else(|| Trouble::passing(format!("Sentinel {name} knows no master {:?}", self.master)))
        };
        time::timeout(self.limit, ask).await.unwrap_or_else(|_| {
            let limit = self.limit.as_millis();
            Err(Trouble::passing(format!("can't ask Sentinel {name}: no answer within {limit} ms")))
        })
    }

    /// Notes where the connection that calls share goes.
    pub(super) fn follow(&self, address: (String, u16)) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// Whether the Sentinels name another server than the one that calls go to. If none answers, not.
    async fn moved(&self) -> bool {
        let Ok(now) = self.locate().await else { return false };
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|latest| *latest != now)
    }

    /// Whether the Sentinels name another server than this one. If none answers, not.
    pub(super) async fn moved_from(&self, address: &(String, u16)) -> bool {
        self.locate().await.is_ok_and(|now| now != *address)
    }
}

/// Makes a link leave a master that is none any more, for as long as the link is used.
pub(super) fn watch(link: &Arc<Link>) {
    let link: Weak<Link> = Arc::downgrade(link);
    tokio::spawn(async move {
        loop {
            time::sleep(WATCH).await;
            let Some(link) = link.upgrade() else { return };
            if let Target::Sentinel(sentinels) = link.target()
                && link.is_connected()
                && sentinels.moved().await
            {
                link.retire_any();
            }
        }
    });
}
