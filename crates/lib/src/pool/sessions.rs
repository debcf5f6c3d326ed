//! Sessions as Redis keeps them: heard of, ended, listed. Who beats and when, and what it means for a lease, is told in
//! [`crate::session`].

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{BATCH, Pool, owned, text};
use crate::{
    error::{Error, Result},
    script,
    time::{Timestamp, millis},
};

/// A session as everyone may see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SessionInfo {
    /// What its process called it; several may have the same name, one after the other or at once.
    pub name: String,
    /// What tells it from others of its name: the name, `#`, and 8 hexadecimal digits.
    pub id: String,
    /// Whether it has been heard of in time. One that has not is listed for an hour more.
    pub alive: bool,
    /// Until when it is alive unless it is heard of again; of a dead one, until when it was.
    pub until: Timestamp,
    /// How many leases are part of it. Those of a dead one end [`CLOCK_SLACK`](crate::CLOCK_SLACK) after its time.
    pub leases: u64,
}

/// What Redis says to a heartbeat.
pub(crate) enum Heartbeat {
    Alive {
        /// How many leases it has.
        leases: u64,
        /// Until when it was alive before, and is now, by Redis' clock (ms).
        before: u64,
        until: u64,
    },
    /// It was not heard of in time, or was ended.
    Over,
    /// Redis never heard of it, or forgot.
    Unknown,
}

/// One of a session's leases in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionLease {
    pub(crate) id: String,
    pub(crate) token: u64,
}

impl Pool {
    /// The sessions of this pool, dead ones of the last hour too, sorted by name and id.
    ///
    /// It is read in pages: sessions that begin or end meanwhile may be listed or not.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>> {
        let mut sessions = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut reply = self.call(&script::SESSIONS, &[text(&cursor)]).await?;
            cursor = reply.text()?;
            let (mut listed, now) = (reply.list()?, reply.count()?);
            while listed.len() > 0 {
                let (id, until, leases) = (listed.text()?, listed.int()?, listed.count()?);
                let name = id.rsplit_once('#').map_or(&*id, |(name, _)| name).to_owned();
                let alive = u64::try_from(until).is_ok_and(|until| until > now);
                let until = Timestamp::from_millis(until.unsigned_abs());
                // One may be on two pages.
                sessions.insert((name.clone(), id.clone()), SessionInfo { name, id, alive, until, leases });
            }
            if cursor == "0" {
                return Ok(sessions.into_values().collect());
            }
        }
    }

    /// Says that a session is alive. `begin`: also if Redis never heard of it.
    pub(crate) async fn heartbeat(&self, session: &str, ttl: Duration, begin: bool) -> Result<Heartbeat> {
        let script = if begin { &script::BEGIN_SESSION } else { &script::HEARTBEAT };
        let args = [text(session), owned(millis("session's time to live", ttl)?), owned(u8::from(begin))];
        let mut reply = self.send(script, &args, false).await?;
        let status = reply.text()?;
        if status == "ttl" {
            return Err(Error::TtlRefused {
                pool: self.name().clone(),
                found: format!("{ttl:?} (of a session)"),
                allowed: format!("at most {:?} (the pool's maxTTL)", Duration::from_millis(reply.count()?)),
            });
        }
        if let Some(error) = self.status(&status, &mut reply)? {
            return Err(error);
        }
        let alive = reply.int()? == 1;
        let leases = reply.count()?;
        let before = reply.int()?;
        Ok(if alive {
            Heartbeat::Alive { leases, before: u64::try_from(before).unwrap_or(0), until: reply.count()? }
        } else if before == 0 {
            Heartbeat::Unknown
        } else {
            Heartbeat::Over
        })
    }

    /// Ends a session and all its leases. A pool that is gone has none.
    pub(crate) async fn end_session(&self, session: &str) -> Result<()> {
        loop {
            let mut reply = match self.call(&script::HEARTBEAT, &[text(session), text("0"), text("0")]).await {
                Ok(reply) => reply,
                Err(Error::UnknownPool { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let (_, left) = (reply.int()?, reply.count()?);
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// All leases of a session. Those that begin or end meanwhile may be listed or not.
    pub(crate) async fn session_leases(&self, session: &str) -> Result<Vec<SessionLease>> {
        let (mut leases, mut last) = (Vec::new(), String::new());
        loop {
            let mut reply = self.call(&script::SESSION, &[text(session), text(&last)]).await?;
            let page = reply.pairs()?;
            let full = page.len() >= BATCH;
            if let Some((id, _)) = page.last() {
                last.clone_from(id);
            }
            // One without a token has no holder: nobody's, and `check` tells.
            leases.extend(
                page.into_iter().filter_map(|(id, token)| Some(SessionLease { id, token: token.parse().ok()? })),
            );
            if !full {
                return Ok(leases);
            }
        }
    }

    /// Frees leases that nobody holds, as far as they are still the same.
    pub(crate) async fn free_stray(&self, leases: &[SessionLease]) -> Result<()> {
        for batch in leases.chunks(BATCH) {
            let args: Vec<_> =
                batch.iter().flat_map(|lease| [text(&lease.id), owned(format_args!("{:016}", lease.token))]).collect();
            self.call(&script::FREE, &args).await?;
        }
        Ok(())
    }
}
