//! Asking for leases: what a request can say. How it is carried to its end is in [`super::ask`], waiting in line in
//! [`super::wait`].

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use super::{
    BATCH, Pool,
    ask::{Ask, Asker, Demand},
    selector::Selector,
    wait,
};
use crate::{
    error::{Error, Result},
    lease::Lease,
    names::{BindingName, check_owner},
    session::Session,
    time::Ttl,
};

/// The most combinations of values that all selectors of a request may stand for.
const MOST_PROBES: usize = 64;
/// The highest priority of a request that waits.
const MOST_PRIORITY: u8 = 100;

/// Of a [`Malloc`]: it answers at once.
#[derive(Debug, Clone, Copy)]
pub struct Now;

/// Of a [`Malloc`]: it waits in line for so long.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    pub(crate) at_most: Duration,
    priority: u8,
}

impl Waiting {
    /// What is left of it when so much of its time has passed; `None`: not enough to wait for.
    pub(crate) fn after(self, passed: Duration) -> Option<Self> {
        let at_most = self.at_most.checked_sub(passed)?;
        wait::check(at_most).ok()?;
        Some(Self { at_most, ..self })
    }
}

/// Of a [`Malloc`]: it asks for one resource.
#[derive(Debug, Clone, Copy)]
pub struct One;

/// Of a [`Malloc`]: it asks for so many resources, or none.
#[derive(Debug, Clone, Copy)]
pub struct Many(usize);

/// A request for leases, made by [`Pool::malloc`]. Await it:
///
/// | | one | with [`count`](Self::count) |
/// |---|---|---|
/// | at once | `Option<Lease>` | `Option<Vec<Lease>>` |
/// | with [`wait`](Self::wait) | `Lease` | `Vec<Lease>` |
///
/// `None`: nothing is free, or not enough is. Whoever waits in vain gets [`Error::NotServed`].
///
/// A request that was sent is carried to its end: if this future is dropped, or gives up waiting for the reply, a task of
/// the library goes on in its place, and a lease that still comes in is freed at once. Who waits in line and is dropped
/// leaves the line.
#[must_use = "a request does nothing until it is awaited"]
#[derive(Debug, Clone)]
pub struct Malloc<W = Now, N = One> {
    pub(crate) pool: Pool,
    ttl: Ttl,
    pub(crate) binding: Option<String>,
    owner: Option<String>,
    pub(crate) keep_alive: bool,
    selectors: Vec<Selector>,
    session: Option<Session>,
    pub(crate) wait: W,
    count: N,
}

impl<W, N> Malloc<W, N> {
    /// How long the lease lasts unless it is renewed. Default: the pool's `defaultTTL`.
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// Asks for a lease without an end. It begins as a claim of ten seconds that this call confirms, so that nothing is
    /// held for ever by a caller who never heard of it. Refused by pools that have a `maxTTL`.
    pub fn permanent(self) -> Self {
        self.ttl(Ttl::Permanent)
    }

    /// Prefers the resource that this name had last (a soft binding), and remembers the one it gets. A name that has a
    /// `Required` binding gets its resource or nothing. Not together with [`count`](Self::count).
    pub fn bind(mut self, name: impl Into<String>) -> Self {
        self.binding = Some(name.into());
        self
    }

    /// Who the lease is granted to, for people to see. Default: [`Client::owner`](crate::Client::owner).
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Has the lease renewed until it is freed, dropped or lost; see [`Lease::keep_alive`].
    pub fn keep_alive(mut self) -> Self {
        self.keep_alive = true;
        self
    }

    /// Asks for a resource with these labels. Said again, it is what would do as well, if nothing that was said before is
    /// free: alternatives in order of preference, of at most 64 combinations of values in all.
    ///
    /// # Errors
    /// When awaited, [`Error::NotIndexed`] unless the selector's labels are one of the pool's `indexes`.
    pub fn select(mut self, selector: Selector) -> Self {
        self.selectors.push(selector);
        self
    }

    /// Makes the lease part of a session: it has no time to live of its own, is kept by the session's heartbeats, and ends
    /// with the session. Not together with [`ttl`](Self::ttl).
    ///
    /// # Errors
    /// When awaited, [`Error::SessionOver`], and those of [`Session::join`].
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    pub(crate) fn with<W2, N2>(self, wait: W2, count: N2) -> Malloc<W2, N2> {
        let Self { pool, ttl, binding, owner, keep_alive, selectors, session, .. } = self;
        Malloc { pool, ttl, binding, owner, keep_alive, selectors, session, wait, count }
    }

    async fn ask(self, n: usize, all: bool) -> Result<Ask> {
        let binding = self.binding.as_deref().map(BindingName::new).transpose()?;
        if all && binding.is_some() {
            return Err(Error::Invalid {
                what: "request",
                found: "a binding name and a count".to_owned(),
                allowed: "a binding name for one resource, or several resources without a name".to_owned(),
            });
        }
        if self.session.is_some() && self.ttl != Ttl::PoolDefault {
            return Err(Error::Invalid {
                what: "request",
                found: "a session and a time to live".to_owned(),
                allowed: "one of them: a session's lease lasts as long as the session".to_owned(),
            });
        }
        let combinations: usize = self.selectors.iter().map(Selector::combinations).sum();
        if combinations > MOST_PROBES {
            return Err(Error::Invalid {
                what: "selectors",
                found: format!("{combinations} combinations of values"),
                allowed: format!("at most {MOST_PROBES} in all alternatives together"),
            });
        }
        let selectors = self.selectors.iter().map(Selector::probes).collect::<Result<Vec<_>>>()?;
        let owner = self.owner.clone().map(check_owner).transpose()?;
        let session = match &self.session {
            Some(session) => Some(session.in_pool(&self.pool).await?),
            None => None,
        };
        let session_id = session.as_ref().map(|session| session.id());
        let asker = if owner.is_none() && binding.is_none() && session_id.is_none() {
            Arc::clone(self.pool.asker())
        } else {
            let owner = owner.unwrap_or_else(|| self.pool.client().owner().to_owned());
            Arc::new(Asker::new(owner, binding.as_ref(), session_id))
        };
        let demand = if selectors.is_empty() && !all && session.is_none() {
            String::new()
        } else {
            let demand = Demand { n: all.then_some(n), selectors: &selectors, session: session_id };
            serde_json::to_string(&demand).unwrap_or_default()
        };
        Ok(Ask {
            pool: self.pool,
            ttl: self.ttl,
            ttl_arg: self.ttl.to_arg()?,
            binding,
            asker,
            demand,
            session,
            n,
            all,
            keep_alive: self.keep_alive,
        })
    }
}

impl<N> Malloc<Now, N> {
    /// Waits in line until it is served, at most for so long: 1 ms to 24 h.
    ///
    /// Who comes first is served first, within a [`priority`](Malloc::priority). Whatever becomes free is offered to the
    /// first in line that it would do for, and wakes only that one. Whoever does not wait gets nothing that someone in
    /// line is waiting for.
    ///
    /// # Errors
    /// When awaited, [`Error::NotServed`] when the time is over, and those of [`Pool::malloc`]. A server that is away in
    /// the meantime is waited for as well; who was not heard of for five seconds goes to the end of the line.
    pub fn wait(self, at_most: Duration) -> Malloc<Waiting, N>
    where
        N: Clone,
    {
        let count = self.count.clone();
        self.with(Waiting { at_most, priority: 0 }, count)
    }
}

impl<N> Malloc<Waiting, N> {
    /// How far this request goes before others that wait, 0 to 100. Default 0.
    ///
    /// Each step is worth a hundred places: a request of priority 3 is served before those of priority 0 that came at most
    /// three hundred requests earlier. So whoever waits is overtaken by at most a hundred later ones for each step that
    /// they are above it, and never starves.
    pub fn priority(mut self, priority: u8) -> Self {
        self.wait.priority = priority;
        self
    }
}

impl<W> Malloc<W, One> {
    /// Asks for `n` resources (1 to 200), all of them or none. Of a shared pool, several of them may be one resource.
    ///
    /// # Errors
    /// When awaited, [`Error::ImpossibleCount`] when the pool could never grant so many.
    pub fn count(self, n: usize) -> Malloc<W, Many>
    where
        W: Clone,
    {
        let wait = self.wait.clone();
        self.with(wait, Many(n))
    }
}

impl Malloc {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            ttl: Ttl::PoolDefault,
            binding: None,
            owner: None,
            keep_alive: false,
            selectors: Vec::new(),
            session: None,
            wait: Now,
            count: One,
        }
    }

    /// As many leases as are free, at most `n` (1 to 200), in one round trip. With a binding name, the first one follows
    /// the binding.
    ///
    /// # Errors
    /// As for one.
    pub async fn up_to(self, n: usize) -> Result<Vec<Lease>> {
        check_count(n)?;
        self.ask(n, false).await?.grant_in_time().await
    }
}

fn check_count(n: usize) -> Result<()> {
    if n == 0 || n > BATCH {
        return Err(Error::Invalid {
            what: "number of leases",
            found: n.to_string(),
            allowed: format!("1 to {BATCH}"),
        });
    }
    Ok(())
}

impl Malloc<Now, Many> {
    async fn all(self) -> Result<Option<Vec<Lease>>> {
        let Many(n) = self.count;
        check_count(n)?;
        let leases = self.ask(n, true).await?.grant_in_time().await?;
        Ok(Some(leases).filter(|leases| leases.len() == n))
    }
}

impl<N> Malloc<Waiting, N> {
    async fn in_line(self, n: usize, all: bool) -> Result<Vec<Lease>> {
        check_count(n)?;
        let Waiting { at_most, priority } = self.wait;
        wait::check(at_most)?;
        if priority > MOST_PRIORITY {
            return Err(Error::Invalid {
                what: "priority",
                found: priority.to_string(),
                allowed: format!("0 to {MOST_PRIORITY}"),
            });
        }
        wait::in_line(self.ask(n, all).await?, at_most, priority).await
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl IntoFuture for Malloc {
    type Output = Result<Option<Lease>>;
    type IntoFuture = Boxed<Option<Lease>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.up_to(1).await?.pop()) })
    }
}

impl IntoFuture for Malloc<Now, Many> {
    type Output = Result<Option<Vec<Lease>>>;
    type IntoFuture = Boxed<Option<Vec<Lease>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.all())
    }
}

impl IntoFuture for Malloc<Waiting, One> {
    type Output = Result<Lease>;
    type IntoFuture = Boxed<Lease>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let pool = self.pool.clone();
            let lease = self.in_line(1, false).await?.pop();
            lease.ok_or_else(|| wait::unanswered(&pool))
        })
    }
}

impl IntoFuture for Malloc<Waiting, Many> {
    type Output = Result<Vec<Lease>>;
    type IntoFuture = Boxed<Vec<Lease>>;

    fn into_future(self) -> Self::IntoFuture {
        let Many(n) = self.count;
        Box::pin(self.in_line(n, true))
    }
}

impl Pool {
    /// Begins a request for a lease; await it.
    ///
    /// The next resource is the one of highest priority that comes first in the pool's order. When none is free,
    /// expired leases and quarantines that are over are reclaimed first, so that a pool works without any agent.
    ///
    /// # Errors
    /// [`Error::UnknownPool`], [`Error::TtlRefused`] above the pool's `maxTTL`, [`Error::OutcomeUnknown`] when the reply
    /// is lost: a grant, if there was one, then ends by its time to live.
    pub fn malloc(&self) -> Malloc {
        Malloc::new(self.clone())
    }
}

/// The first lease that one of several requests gets, tried in this order, one round trip each: for pools of which any
/// would do. `None` when none of them has anything free.
///
/// To wait as well, wait in one of them afterwards: `malloc_any([a.malloc(), b.malloc()]).await?` and then
/// `a.malloc().wait(…)`; [`malloc_any_or_wait`] does both.
///
/// # Errors
/// The first error of a request ends it: an unknown pool is not passed over.
pub async fn malloc_any(requests: impl IntoIterator<Item = Malloc>) -> Result<Option<Lease>> {
    for request in requests {
        if let Some(lease) = request.await? {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}

/// As [`malloc_any`]; when nothing is free, it waits in line for the first of the requests, at most for so long.
///
/// # Errors
/// As [`malloc_any`] and [`Malloc::wait`]; [`Error::Invalid`] without a request.
pub async fn malloc_any_or_wait(requests: impl IntoIterator<Item = Malloc>, at_most: Duration) -> Result<Lease> {
    let requests: Vec<_> = requests.into_iter().collect();
    let first = requests.first().cloned().ok_or_else(|| Error::Invalid {
        what: "list of requests",
        found: "none".to_owned(),
        allowed: "at least one".to_owned(),
    })?;
    wait::check(at_most)?;
    match malloc_any(requests).await? {
        Some(lease) => Ok(lease),
        None => first.wait(at_most).await,
    }
}
