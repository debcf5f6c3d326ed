//! Who has to do with a pool beside its holders: those who wait in line, and the sessions that report alive. It must not
//! know how anything is printed.

use std::collections::BTreeSet;

use anyhow::Result;
use jiff::Timestamp;
use redis_allocator::{Error, Pool, PoolName, SessionInfo, WaiterInfo};
use serde::Serialize;

use super::{
    age::{since, until},
    fetch::{Ask, Fetch, Found},
    output::Row,
};
use crate::moment::moment;

/// How many waiters are read in one call.
const PAGE: u32 = 200;

/// How far a caller in line has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Progress {
    Waiting,
    /// Something was offered to it, which it has to claim.
    Offered,
    /// It has not been heard of: whatever comes next passes it over.
    Dead,
}

/// A caller in line: what it asked for, how long ago, and how many are before it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WaiterView {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) id: String,
    /// How many are before it.
    pub(super) ahead: u64,
    pub(super) state: Progress,
    pub(super) owner: String,
    pub(super) binding: Option<String>,
    pub(super) session: Option<String>,
    pub(super) priority: u8,
    /// How many resources it wants, all at once.
    pub(super) count: u64,
    /// What would do for it, the first one preferred; empty: whatever there is.
    pub(super) selectors: Vec<String>,
    pub(super) since: Timestamp,
    /// Of a dead one: until when it was thought alive. Of others that moves with each look that they take.
    pub(super) died_at: Option<Timestamp>,
}

impl WaiterView {
    fn new(pool: &PoolName, waiter: WaiterInfo, now: redis_allocator::Timestamp) -> Self {
        let is_dead = waiter.alive_until <= now;
        let state = match (is_dead, waiter.offered) {
            (true, _) => Progress::Dead,
            (false, true) => Progress::Offered,
            (false, false) => Progress::Waiting,
        };
        Self {
            namespace: pool.namespace().to_owned(),
            pool: pool.name().to_owned(),
            id: waiter.id,
            ahead: waiter.place,
            state,
            owner: waiter.owner,
            binding: waiter.binding,
            session: waiter.session,
            priority: waiter.priority,
            count: waiter.count,
            selectors: waiter.selectors.iter().map(ToString::to_string).collect(),
            since: moment(waiter.since),
            died_at: is_dead.then(|| moment(waiter.alive_until)),
        }
    }
}

impl Row for WaiterView {
    const COLUMNS: &'static [&'static str] =
        &["POOL", "AHEAD", "HOLDER", "PRIORITY", "COUNT", "SELECTOR", "SINCE", "STATE", "BINDING", "SESSION", "ID"];
    const WIDE_COLUMNS: usize = 3;

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.ahead.to_string(),
            self.owner.clone(),
            self.priority.to_string(),
            self.count.to_string(),
            self.selectors.join(" | "),
            since(self.since, now),
            format!("{:?}", self.state),
            self.binding.clone().unwrap_or_default(),
            self.session.clone().unwrap_or_default(),
            self.id.clone(),
        ]
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pool, &self.id)
    }
}

impl Fetch for WaiterView {
    const KIND: &'static str = "waiter";
    const PLURAL: &'static str = "waiters";
    const NAMED_ONCE: bool = false;

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        let is_asked_for = |waiter: &Self| ask.is_for(&waiter.id) || ask.is_for(&waiter.owner);
        ask.each(async |pool| Ok(waiters(&pool).await?.into_iter().filter(is_asked_for).collect())).await
    }
}

/// The whole line. Whoever moves up while it is read is listed once.
async fn waiters(pool: &Pool) -> Result<Vec<WaiterView>, Error> {
    let (mut views, mut seen, mut from) = (Vec::new(), BTreeSet::new(), 0);
    loop {
        let page = pool.waiters(from, PAGE).await?;
        from += u64::from(PAGE);
        let news = page.waiters.into_iter().filter(|waiter| seen.insert(waiter.id.clone()));
        views.extend(news.map(|waiter| WaiterView::new(pool.name(), waiter, page.now)));
        if from >= page.total {
            return Ok(views);
        }
    }
}

/// Whether a session has been heard of in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Life {
    Alive,
    /// Its leases end, or have ended.
    Dead,
}

/// A session in a pool: whether it is alive, until when, and what it keeps.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionView {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) name: String,
    pub(super) id: String,
    pub(super) state: Life,
    /// Until when it is alive unless it is heard of again; of a dead one, until when it was.
    pub(super) until: Timestamp,
    pub(super) leases: u64,
}

impl SessionView {
    fn new(pool: &PoolName, session: SessionInfo) -> Self {
        Self {
            namespace: pool.namespace().to_owned(),
            pool: pool.name().to_owned(),
            name: session.name,
            id: session.id,
            state: if session.alive { Life::Alive } else { Life::Dead },
            until: moment(session.until),
            leases: session.leases,
        }
    }
}

impl Row for SessionView {
    const COLUMNS: &'static [&'static str] = &["POOL", "NAME", "STATE", "LEASES", "UNTIL", "ID"];
    const WIDE_COLUMNS: usize = 1;

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.name.clone(),
            format!("{:?}", self.state),
            self.leases.to_string(),
            match self.state {
                Life::Alive => until(Some(self.until), now),
                Life::Dead => format!("{} ago", since(self.until, now)),
            },
            self.id.clone(),
        ]
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pool, &self.id)
    }

    fn differs(&self, older: &Self) -> bool {
        // Each heartbeat moves a live one's time.
        let until = if self.state == Life::Alive { older.until } else { self.until };
        Self { until, ..self.clone() } != *older
    }
}

impl Fetch for SessionView {
    const KIND: &'static str = "session";
    const PLURAL: &'static str = "sessions";
    const NAMED_ONCE: bool = false;

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        let is_asked_for = |session: &Self| ask.is_for(&session.id) || ask.is_for(&session.name);
        ask.each(async |pool| {
            let sessions = pool.sessions().await?.into_iter();
            Ok(sessions.map(|session| Self::new(pool.name(), session)).filter(is_asked_for).collect())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_session_tells_since_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut session = SessionView {
            namespace: "default".to_owned(),
            pool: "gpus".to_owned(),
            name: "trainer-1".to_owned(),
            id: "trainer-1#00c0ffee".to_owned(),
            state: Life::Alive,
            until: at(1030),
            leases: 2,
        };
        let expected = ["gpus", "trainer-1", "Alive", "2", "in 30s", "trainer-1#00c0ffee"];
        assert_eq!(session.cells(at(1000)), expected);
        session.state = Life::Dead;
        assert_eq!(session.cells(at(1330))[4], "5m ago");
        assert_eq!(SessionView::COLUMNS.len(), session.cells(at(0)).len());
    }

    #[test]
    fn a_heartbeat_is_no_change() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let session = SessionView {
            namespace: "default".to_owned(),
            pool: "gpus".to_owned(),
            name: "trainer-1".to_owned(),
            id: "trainer-1#00c0ffee".to_owned(),
            state: Life::Alive,
            until: at(1030),
            leases: 2,
        };
        let later = SessionView { until: at(1040), ..session.clone() };
        assert!(!later.differs(&session));
        assert!(SessionView { leases: 1, ..later.clone() }.differs(&session));
        let dead = SessionView { state: Life::Dead, ..later };
        assert!(dead.differs(&session));
        assert!(SessionView { until: at(1041), ..dead.clone() }.differs(&dead));
    }
}
