//! Asking for leases: what a request can say, and how it is carried to its end. Waiting in line is in [`super::wait`].

use std::{
    future::{Future, IntoFuture},
    iter,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{Args, BATCH, Pool, owned, selector::Selector, text, wait};
use crate::{
    error::{Error, Result},
    item::Record,
    lease::{Granted, Lease},
    names::{BindingName, ResourceKey, check_owner},
    pool::grants::{Renewal, shared, shutting_down},
    reply::Reply,
    script,
    session::{Membership, Session},
    time::{BootInstant, Timestamp, Ttl},
    to_the_end::ToTheEnd,
};

/// How much longer than a call's own limit its caller waits for it to say why it failed.
const LATE: Duration = Duration::from_millis(500);
/// The most combinations of values that all selectors of a request may stand for.
const MOST_PROBES: usize = 64;
/// The highest priority of a request that waits.
const MOST_PRIORITY: u8 = 100;

/// The holder of a lease as Redis keeps it, behind token and time.
#[derive(Serialize)]
struct Holder<'a> {
    owner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

/// Who asks, as every request and lease of theirs has it.
pub(crate) struct Asker {
    pub(crate) owner: String,
    /// The holder in JSON.
    pub(crate) holder: String,
}

impl Asker {
    fn new(owner: String, bind: Option<&BindingName>, session: Option<&str>) -> Self {
        let holder = Holder { owner: &owner, bind: bind.map(BindingName::as_str), session };
        let holder = serde_json::to_string(&holder).unwrap_or_default();
        Self { owner, holder }
    }
}

/// What a request asks for beside one resource of any kind, as `demand.lua` reads it.
#[derive(Serialize)]
struct Demand<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    selectors: &'a [Vec<String>],
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

/// Of a [`Malloc`]: it answers at once.
#[derive(Debug, Clone, Copy)]
pub struct Now;

/// Of a [`Malloc`]: it waits in line for so long.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    at_most: Duration,
    priority: u8,
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
    wait: W,
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

    fn with<W2, N2>(self, wait: W2, count: N2) -> Malloc<W2, N2> {
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

/// A checked request, on its way.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) pool: Pool,
    ttl: Ttl,
    pub(super) ttl_arg: i64,
    pub(super) binding: Option<BindingName>,
    pub(super) asker: Arc<Asker>,
    /// JSON, as `demand.lua` reads it; empty: one resource, any.
    pub(super) demand: String,
    session: Option<Arc<Membership>>,
    n: usize,
    /// All of `n`, or none.
    all: bool,
    keep_alive: bool,
}

/// What one grant is asked with, as the script takes it.
#[derive(Clone)]
pub(super) struct Request {
    ttl: i64,
    binding: Option<BindingName>,
    asker: Arc<Asker>,
    demand: String,
}

/// What the script said to one request.
pub(super) struct Answer {
    sent: BootInstant,
    incarnation: Arc<str>,
    now: u64,
    is_shared: bool,
    /// `None`: nothing is free.
    grants: Option<Reply>,
}

impl Answer {
    /// Reads what stands behind the status in a reply to a request that was sent then: one result, or a list of them.
    pub(super) fn read_one(sent: BootInstant, reply: &mut Reply) -> Result<Self> {
        let grants = reply.optional_list()?;
        let (incarnation, now, is_shared) = Self::terms(reply)?;
        Ok(Self { sent, incarnation, now, is_shared, grants })
    }

    fn read_all(sent: BootInstant, reply: &mut Reply, n: usize) -> Result<Vec<Self>> {
        let mut results = reply.list()?;
        let (incarnation, now, is_shared) = Self::terms(reply)?;
        (0..n)
            .map(|_| {
                let incarnation = Arc::clone(&incarnation);
                Ok(Self { sent, incarnation, now, is_shared, grants: results.optional_list()? })
            })
            .collect()
    }

    fn terms(reply: &mut Reply) -> Result<(Arc<str>, u64, bool)> {
        Ok((reply.text()?.into(), reply.count()?, reply.int()? == 1))
    }
}

impl Ask {
    /// Grants, and gives up when a reply is late: it always finds someone. When nobody awaits it any more, the leases it
    /// brings are dropped, which frees them.
    pub(super) async fn grant_in_time(self) -> Result<Vec<Lease>> {
        let pool = self.pool.clone();
        let client = &pool.client().inner;
        // The call itself gives up in time; this one is for replies that are late. A permanent grant takes two calls.
        let calls = if self.ttl == Ttl::Permanent { 2 } else { 1 };
        let timeout = client.timeout * calls + LATE;
        let grant = ToTheEnd::new(client.runtime.clone(), self.grant());
        match tokio::time::timeout(timeout, grant).await {
            Ok(leases) => leases,
            Err(_) => Err(Error::OutcomeUnknown {
                operation: "malloc",
                subject: pool.name().to_string(),
                message: format!("no answer within {} ms; if one comes, it is freed", timeout.as_millis()),
            }),
        }
    }

    async fn grant(self) -> Result<Vec<Lease>> {
        let first = Request {
            ttl: self.ttl_arg,
            binding: self.binding.clone(),
            asker: Arc::clone(&self.asker),
            demand: self.demand.clone(),
        };
        let requests = if self.all { 1 } else { self.n };
        let leases = if requests == 1 && self.binding.is_none() && self.demand.is_empty() {
            self.read(self.ask_with_others(first).await?)?
        } else {
            let rest = Request { binding: None, ..first.clone() };
            let requests: Vec<_> = iter::once(first).chain(iter::repeat_n(rest, requests - 1)).collect();
            let mut leases = Vec::with_capacity(self.n);
            // Boxed, as what else is rare here: it would make every request's future larger.
            for answer in Box::pin(self.pool.ask_for(&requests)).await? {
                leases.extend(self.read(answer)?);
            }
            leases
        };
        self.begin(leases).await
    }

    /// Leases were granted: confirms permanent ones, and has them kept alive.
    pub(super) async fn begin(&self, leases: Vec<Lease>) -> Result<Vec<Lease>> {
        if self.ttl == Ttl::Permanent {
            Box::pin(self.confirm(&leases)).await?;
        }
        if self.keep_alive {
            leases.iter().for_each(Lease::keep_alive);
        }
        Ok(leases)
    }

    /// What is special is asked for alone: what is wrong with it must be nobody else's trouble.
    async fn ask_with_others(&self, request: Request) -> Result<Answer> {
        let serve =
            |pool: Pool, requests: Vec<Request>| async move { shared(requests.len(), pool.ask_for(&requests).await) };
        let runtime = &self.pool.client().inner.runtime;
        let answer = self.pool.inner.together.mallocs.ask(request, BATCH, &self.pool, runtime, serve).await;
        answer.unwrap_or_else(|| Err(shutting_down()))
    }

    /// The leases that an answer grants; none when nothing is free.
    pub(super) fn read(&self, answer: Answer) -> Result<Vec<Lease>> {
        let Answer { sent, incarnation, now, is_shared, grants } = answer;
        let Some(mut grants) = grants else { return Ok(Vec::new()) };
        let mut leases = Vec::with_capacity(grants.len() / 4);
        while grants.len() > 0 {
            let Some(key) = grants.optional_text()? else { return Err(self.refusal(&mut grants)?) };
            let token = grants.count()?;
            let ttl = Duration::from_millis(grants.count()?);
            let record = grants.text()?;
            let facts = Record::facts_of(&record)
                .ok_or_else(|| grants.broken(format!("the record of {key} can't be read: {record:?}")))?;
            leases.push(Lease::new(Granted {
                pool: self.pool.clone(),
                id: is_shared.then(|| format!("{key}\0{token:016}")),
                key: ResourceKey::new(key)?,
                incarnation: Arc::clone(&incarnation),
                token,
                at: Timestamp::from_millis(now),
                asker: Arc::clone(&self.asker),
                binding: self.binding.clone(),
                facts,
                ttl,
                deadline: sent + ttl,
                session: self.session.clone(),
            }));
        }
        Ok(leases)
    }

    /// Why the script refused, from what stands behind the `false` that says so.
    fn refusal(&self, reply: &mut Reply) -> Result<Error> {
        let pool = self.pool.name().clone();
        Ok(match reply.text()?.as_str() {
            "ttl" => self.refused(Duration::from_millis(reply.count()?)),
            "count" => Error::ImpossibleCount { pool, count: self.n as u64, most: reply.count()? },
            "index" => {
                let labels = reply.text()?;
                let indexes = (0..reply.len()).map(|_| reply.text()).collect::<Result<_>>()?;
                Error::NotIndexed { pool, labels, indexes }
            }
            "session" => Error::SessionOver {
                pool,
                session: self.session.as_ref().map_or_else(String::new, |session| session.id().to_owned()),
            },
            "lost" => Error::OutcomeUnknown {
                operation: "malloc",
                subject: pool.to_string(),
                message: "what it was granted has ended before this client heard of it".to_owned(),
            },
            other => reply.broken(format!("unknown refusal {other:?}")),
        })
    }

    /// Makes claims permanent. On failure they are dropped, which goes on telling Redis until it hears.
    async fn confirm(&self, leases: &[Lease]) -> Result<()> {
        let asked: Vec<_> = leases.iter().map(|lease| (Arc::clone(lease.grant()), None)).collect();
        for (renewal, lease) in self.pool.renew_grants(&asked).await?.into_iter().zip(leases) {
            match renewal {
                Renewal::Extended => {}
                Renewal::Refused(maximum) => return Err(self.refused(maximum)),
                Renewal::Lost(reason) => {
                    return Err(Error::Lost { pool: self.pool.name().clone(), resource: lease.key().clone(), reason });
                }
            }
        }
        Ok(())
    }

    fn refused(&self, maximum: Duration) -> Error {
        let found = match self.ttl {
            Ttl::For(duration) => format!("{duration:?}"),
            Ttl::Permanent => "unlimited time".to_owned(),
            Ttl::PoolDefault => "the pool's own default time".to_owned(),
        };
        Error::TtlRefused {
            pool: self.pool.name().clone(),
            found,
            allowed: format!("at most {maximum:?} (the pool's maxTTL)"),
        }
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

    /// Who asks unless a request says otherwise.
    fn asker(&self) -> &Arc<Asker> {
        self.inner.asker.get_or_init(|| Arc::new(Asker::new(self.client().owner().to_owned(), None, None)))
    }

    /// Asks for grants in one round trip; one answer for each.
    async fn ask_for(&self, requests: &[Request]) -> Result<Vec<Answer>> {
        let sent = BootInstant::now();
        let mut args = Args::with_capacity(4 * requests.len());
        for Request { ttl, binding, asker, demand } in requests {
            let binding = binding.as_ref().map_or("", BindingName::as_str);
            args.extend([owned(ttl), text(binding), text(&asker.holder), text(demand)]);
        }
        let mut reply = self.read(self.send(&script::MALLOC, &args, true).await?)?;
        Answer::read_all(sent, &mut reply, requests.len())
    }
}

/// The first lease that one of several requests gets, tried in this order, one round trip each: for pools of which any
/// would do. `None` when none of them has anything free.
///
/// To wait as well, wait in one of them afterwards: `malloc_any([&a, &b]).await?` and then
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
