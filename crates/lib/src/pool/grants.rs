//! Granting, renewing, giving back: what workloads do. Many at once are one script; one is the same with n = 1.

use std::{
    future::{Future, IntoFuture},
    iter,
    pin::Pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use serde::Serialize;

use super::{Args, BATCH, Pool, keys_of, owned, text};
use crate::{
    combine::Combiner,
    error::{Error, LostReason, Result},
    item::Record,
    lease::{Grant, Granted, Lease},
    names::{BindingName, ResourceKey, check_owner},
    reply::Reply,
    script,
    time::{BootInstant, Timestamp, Ttl},
    to_the_end::ToTheEnd,
};

/// How much longer than a call's own limit its caller waits for it to say why it failed.
const LATE: Duration = Duration::from_millis(500);

/// The holder of a lease as Redis keeps it, behind token and time.
#[derive(Serialize)]
struct Holder<'a> {
    owner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind: Option<&'a str>,
}

/// A request for a lease, made by [`Pool::malloc`]. Await it for `Option<Lease>`: `None` when nothing is free.
///
/// A request that was sent is carried to its end: if this future is dropped, or gives up waiting, a task of the library
/// goes on in its place, and a lease that still comes in is freed at once.
#[must_use = "a request does nothing until it is awaited"]
#[derive(Debug, Clone)]
pub struct Malloc {
    pub(crate) pool: Pool,
    ttl: Ttl,
    pub(crate) binding: Option<String>,
    owner: Option<String>,
    pub(crate) keep_alive: bool,
}

impl Malloc {
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
    /// `Required` binding gets its resource or nothing.
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

    /// As many leases as are free, at most `n` (1 to 200), in one round trip. With a binding name, the first one follows
    /// the binding.
    ///
    /// # Errors
    /// As for one.
    pub async fn up_to(self, n: usize) -> Result<Vec<Lease>> {
        if n == 0 || n > BATCH {
            return Err(Error::Invalid {
                what: "number of leases",
                found: n.to_string(),
                allowed: format!("1 to {BATCH}"),
            });
        }
        let client = self.pool.client();
        // The call itself gives up in time; this one is for replies that are late. A permanent grant takes two calls.
        let calls = if self.ttl == Ttl::Permanent { 2 } else { 1 };
        let timeout = client.inner.timeout * calls + LATE;
        let ask = self.ask(n)?;
        // The reply always finds someone. When nobody awaits it any more, the leases it brings are dropped, which frees them.
        let grant = ToTheEnd::new(client.inner.runtime.clone(), ask.grant());
        match tokio::time::timeout(timeout, grant).await {
            Ok(leases) => leases,
            Err(_) => Err(Error::OutcomeUnknown {
                operation: "malloc",
                subject: self.pool.name().to_string(),
                message: format!("no answer within {} ms; if one comes, it is freed", timeout.as_millis()),
            }),
        }
    }

    fn ask(&self, n: usize) -> Result<Ask> {
        let binding = self.binding.as_deref().map(BindingName::new).transpose()?;
        let owner = match &self.owner {
            Some(owner) => check_owner(owner.clone())?,
            None => self.pool.client().owner().to_owned(),
        };
        let holder = Holder { owner: &owner, bind: binding.as_ref().map(BindingName::as_str) };
        let holder = serde_json::to_string(&holder).unwrap_or_default();
        Ok(Ask {
            pool: self.pool.clone(),
            ttl: self.ttl,
            ttl_arg: self.ttl.to_arg()?,
            binding,
            owner,
            holder: holder.into(),
            n,
            keep_alive: self.keep_alive,
        })
    }
}

impl IntoFuture for Malloc {
    type Output = Result<Option<Lease>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.up_to(1).await?.pop()) })
    }
}

/// A checked request, on its way.
struct Ask {
    pool: Pool,
    ttl: Ttl,
    ttl_arg: i64,
    binding: Option<BindingName>,
    owner: String,
    holder: Arc<str>,
    n: usize,
    keep_alive: bool,
}

/// What one grant is asked with, as the script takes it.
#[derive(Clone)]
struct Request {
    ttl: i64,
    binding: Option<BindingName>,
    holder: Arc<str>,
}

/// What the script said to one request.
struct Answer {
    sent: BootInstant,
    incarnation: Arc<str>,
    now: u64,
    /// `None`: nothing is free.
    grant: Option<Reply>,
}

/// A grant to be freed: resource, token (empty: none) and deadline (`None`: permanent).
pub(crate) type ToBeFreed = (ResourceKey, String, Option<BootInstant>);

/// Where callers meet that ask one pool at the same moment: their calls become one.
#[derive(Default)]
pub(super) struct Together {
    mallocs: Combiner<Request, Result<Answer>>,
    frees: Combiner<ToBeFreed, Result<Result<()>>>,
}

/// A failure that all who asked together share.
fn shared<A>(count: usize, outcome: Result<Vec<A>>) -> Vec<Result<A>> {
    match outcome {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) => vec![error; count].into_iter().map(Err).collect(),
    }
}

fn shutting_down() -> Error {
    Error::Unavailable { message: "the runtime is shutting down".to_owned(), source: None }
}

impl Ask {
    async fn grant(self) -> Result<Vec<Lease>> {
        let first = Request { ttl: self.ttl_arg, binding: self.binding.clone(), holder: Arc::clone(&self.holder) };
        let answers = if self.n == 1 && self.binding.is_none() {
            vec![self.ask_with_others(first).await?]
        } else {
            let rest = Request { binding: None, ..first.clone() };
            let requests: Vec<_> = iter::once(first).chain(iter::repeat_n(rest, self.n - 1)).collect();
            self.pool.ask_for(&requests).await?
        };
        let mut leases = Vec::with_capacity(answers.len());
        for answer in answers {
            leases.extend(self.read(answer)?);
        }
        if self.ttl == Ttl::Permanent {
            self.confirm(&leases).await?;
        }
        if self.keep_alive {
            leases.iter().for_each(Lease::keep_alive);
        }
        Ok(leases)
    }

    /// Names are asked for alone: what is wrong with one of them must be nobody else's trouble.
    async fn ask_with_others(&self, request: Request) -> Result<Answer> {
        let pool = self.pool.clone();
        let serve = move |requests: Vec<Request>| {
            let pool = pool.clone();
            async move { shared(requests.len(), pool.ask_for(&requests).await) }
        };
        let runtime = &self.pool.client().inner.runtime;
        let answer = self.pool.inner.together.mallocs.ask(request, BATCH, runtime, serve).await;
        answer.unwrap_or_else(|| Err(shutting_down()))
    }

    fn read(&self, answer: Answer) -> Result<Option<Lease>> {
        let Answer { sent, incarnation, now, grant } = answer;
        let Some(mut grant) = grant else { return Ok(None) };
        let key = grant.text()?;
        if grant.len() == 1 {
            let maximum = Duration::from_millis(grant.count()?);
            return Err(self.refused(maximum));
        }
        let token = grant.count()?;
        let ttl = Duration::from_millis(grant.count()?);
        let record = grant.text()?;
        let facts = Record::parse(&record)
            .and_then(|record| record.facts())
            .ok_or_else(|| grant.broken(format!("the record of {key} can't be read: {record:?}")))?;
        Ok(Some(Lease::new(Granted {
            pool: self.pool.clone(),
            key: ResourceKey::new(key)?,
            record: format!("{token:016}{now:013}{}", self.holder),
            incarnation,
            token,
            at: Timestamp::from_millis(now),
            owner: self.owner.clone(),
            binding: self.binding.clone(),
            facts,
            ttl,
            deadline: sent + ttl,
        })))
    }

    /// Makes claims permanent. On failure they are dropped, which goes on telling Redis until it hears.
    async fn confirm(&self, leases: &[Lease]) -> Result<()> {
        let asked: Vec<_> = leases.iter().map(|lease| (lease.grant(), None)).collect();
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

/// What became of one renewal in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    Extended,
    Lost(LostReason),
    /// The pool's maximum is shorter; the lease stays as it is.
    Refused(Duration),
}

/// What one [`Pool::gc`] reclaimed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Leases that had expired: resource and former owner.
    pub expired: Vec<(ResourceKey, String)>,
    /// Resources whose quarantine or cooldown was over.
    pub recovered: Vec<ResourceKey>,
    /// Binding names whose time to live was over.
    pub unbound: Vec<BindingName>,
    /// Whether there may be more to reclaim: call again.
    pub more: bool,
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
        Malloc { pool: self.clone(), ttl: Ttl::PoolDefault, binding: None, owner: None, keep_alive: false }
    }

    /// Like [`malloc`](Self::malloc), for callers who want to keep nothing but the key: the token stays inside this
    /// client, and only this client can give the key back with [`free_keys`](Self::free_keys). Nothing renews it.
    pub async fn malloc_key(&self, ttl: impl Into<Ttl>) -> Result<Option<ResourceKey>> {
        let Some(lease) = self.malloc().ttl(ttl).await? else { return Ok(None) };
        let key = lease.key().clone();
        let mut grants = self.client().inner.key_grants.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() == grants.capacity() {
            grants.retain(|_, (_, deadline)| !deadline.is_some_and(BootInstant::is_past));
        }
        grants.insert((self.name().clone(), key.clone()), (lease.grant().token_text(), lease.deadline()));
        drop(grants);
        lease.detach();
        Ok(Some(key))
    }

    /// Gives back keys that [`malloc_key`](Self::malloc_key) of this client granted. One result for each, in order:
    /// [`Error::NotOwner`] for a key that this client does not hold, or not any more.
    ///
    /// # Errors
    /// When a call fails as a whole; what was to be freed then can be tried again.
    pub async fn free_keys<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Result<()>>> {
        let keys = keys_of(keys)?;
        let mut results = Vec::with_capacity(keys.len());
        for batch in keys.chunks(BATCH) {
            let named: Vec<_> = {
                let grants = self.client().inner.key_grants.lock().unwrap_or_else(PoisonError::into_inner);
                let grant = |key: &ResourceKey| grants.get(&(self.name().clone(), key.clone())).cloned();
                batch
                    .iter()
                    .map(|key| {
                        let (token, deadline) = grant(key).unwrap_or_default();
                        (key.clone(), token, deadline)
                    })
                    .collect()
            };
            let freed = self.free_grants(&named).await?;
            let mut grants = self.client().inner.key_grants.lock().unwrap_or_else(PoisonError::into_inner);
            for ((key, token, _), freed) in named.into_iter().zip(freed) {
                let name = (self.name().clone(), key);
                if grants.get(&name).is_some_and(|grant| grant.0 == token) {
                    grants.remove(&name);
                }
                results.push(freed);
            }
        }
        Ok(results)
    }

    /// Gives back leases of this pool, 200 in one round trip. One result for each, in order: [`Error::NotOwner`] for one
    /// that was not held any more.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a lease of another pool. When a call fails as a whole, its leases may still be held;
    /// like dropped ones they are freed in the background as soon as Redis can be told.
    pub async fn free_all(&self, leases: impl IntoIterator<Item = Lease>) -> Result<Vec<Result<()>>> {
        let leases: Vec<Lease> = leases.into_iter().collect();
        if let Some(stranger) = leases.iter().find(|lease| lease.pool() != self.name()) {
            return Err(Error::Invalid {
                what: "pool of a lease",
                found: stranger.pool().to_string(),
                allowed: self.name().to_string(),
            });
        }
        let mut results = Vec::with_capacity(leases.len());
        let mut leases = leases.into_iter();
        while leases.len() > 0 {
            let batch: Vec<Lease> = leases.by_ref().take(BATCH).collect();
            let named: Vec<_> = batch.iter().map(|lease| lease.grant().to_be_freed()).collect();
            let freed = self.free_grants(&named).await?;
            results.extend(batch.into_iter().zip(freed).map(|(lease, freed)| lease.freed(freed)));
        }
        Ok(results)
    }

    /// Ends a lease whoever holds it: an operator's tool. Whether there was one.
    ///
    /// The holder hears of it at its next renewal; until then it goes on using the resource.
    pub async fn force_free(&self, key: impl AsRef<str>) -> Result<bool> {
        let key = ResourceKey::new(key)?;
        let mut reply = self.call(&script::REVOKE, &[text(key.as_str())]).await?;
        Ok(reply.count()? == 1)
    }

    /// Asks for grants in one round trip; one answer for each.
    async fn ask_for(&self, requests: &[Request]) -> Result<Vec<Answer>> {
        let sent = BootInstant::now();
        let mut args = Args::with_capacity(3 * requests.len());
        for Request { ttl, binding, holder } in requests {
            args.extend([owned(ttl), text(binding.as_ref().map_or("", BindingName::as_str)), text(holder)]);
        }
        let mut reply = self.read(self.send(&script::MALLOC, &args, true).await?)?;
        let mut grants = reply.list()?;
        let incarnation: Arc<str> = reply.text()?.into();
        let now = reply.count()?;
        requests
            .iter()
            .map(|_| Ok(Answer { sent, incarnation: Arc::clone(&incarnation), now, grant: grants.optional_list()? }))
            .collect()
    }

    /// Frees one grant, together with those that others free at this moment.
    pub(crate) async fn free_grant(&self, grant: ToBeFreed) -> Result<Result<()>> {
        let pool = self.clone();
        let serve = move |grants: Vec<ToBeFreed>| {
            let pool = pool.clone();
            async move { shared(grants.len(), pool.free_grants(&grants).await) }
        };
        let freed = self.inner.together.frees.ask(grant, BATCH, &self.client().inner.runtime, serve).await;
        freed.unwrap_or_else(|| Err(shutting_down()))
    }

    /// Frees grants; what became of each.
    pub(crate) async fn free_grants(&self, named: &[ToBeFreed]) -> Result<Vec<Result<()>>> {
        let mut args = Args::with_capacity(2 * named.len());
        for (key, token, _) in named {
            args.extend([text(key.as_str()), text(token)]);
        }
        // Named by token, a second execution changes nothing. But it answers *not held* to what the first one freed: that
        // is told from what had ended before by the deadline, until which nobody else can have had it.
        let sent = BootInstant::now();
        let mut lost = None;
        loop {
            match self.call(&script::FREE, &args).await {
                Ok(mut reply) => {
                    let mut held = reply.list()?;
                    return named
                        .iter()
                        .map(|(key, token, deadline)| {
                            let held = held.int()? == 1;
                            let in_time = !token.is_empty() && deadline.is_none_or(|deadline| deadline > sent);
                            Ok(match &lost {
                                _ if held => Ok(()),
                                Some(_) if in_time => Ok(()),
                                Some(error) if !token.is_empty() => Err(Error::clone(error)),
                                _ => Err(Error::NotOwner { pool: self.name().clone(), resource: key.clone() }),
                            })
                        })
                        .collect();
                }
                Err(error @ Error::OutcomeUnknown { .. }) if lost.is_none() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews at most [`BATCH`] grants in one round trip, each to its own time to live (`None` = permanent), and tells
    /// each what became of it.
    pub(crate) async fn renew_grants(&self, asked: &[(&Arc<Grant>, Option<Duration>)]) -> Result<Vec<Renewal>> {
        let mut results = vec![Renewal::Lost(LostReason::Ended); asked.len()];
        // Grants from before the pool was lost and made anew are asked for apart: their incarnation tells.
        let mut rest: Vec<usize> = (0..asked.len()).collect();
        while let Some(&first) = rest.first() {
            let incarnation = Arc::clone(asked[first].0.incarnation());
            let (group, others) = rest.into_iter().partition(|&i| *asked[i].0.incarnation() == incarnation);
            rest = others;
            let sent = BootInstant::now();
            let mut args = Args::with_capacity(1 + 3 * asked.len());
            args.push(text(&incarnation));
            for &i in &group {
                let (grant, ttl) = &asked[i];
                grant.renewing_for(*ttl);
                args.extend([text(grant.key.as_str()), owned(Grant::ttl_arg(*ttl)?), text(&grant.record)]);
            }
            let statuses = self.renewal_statuses(&args, group.len()).await?;
            for (i, status) in group.into_iter().zip(statuses) {
                let (grant, ttl) = &asked[i];
                results[i] = match status {
                    Status::Extended if grant.renewed(sent, *ttl) => Renewal::Extended,
                    Status::Extended => Renewal::Lost(LostReason::Expired),
                    Status::Refused(maximum) => Renewal::Refused(maximum),
                    Status::Lost(reason) => {
                        grant.lose(reason);
                        Renewal::Lost(reason)
                    }
                };
            }
        }
        Ok(results)
    }

    async fn renewal_statuses(&self, args: &Args<'_>, n: usize) -> Result<Vec<Status>> {
        let mut reply = self.send(&script::RENEW, args, false).await?;
        match reply.text()?.as_str() {
            // The pool is gone, or has been made anew: nothing granted before is known to it.
            "unknown" | "incarnation" => Ok(vec![Status::Lost(LostReason::PoolLost); n]),
            status => {
                if let Some(error) = self.status(status, &mut reply)? {
                    return Err(error);
                }
                let mut list = reply.list()?;
                let maximum = Duration::from_millis(reply.count()?);
                (0..list.len())
                    .map(|_| {
                        Ok(match list.int()? {
                            1 => Status::Extended,
                            2 => Status::Refused(maximum),
                            _ => Status::Lost(LostReason::Ended),
                        })
                    })
                    .collect()
            }
        }
    }

    /// Reclaims at most `count` (1 to 200) things that are over: expired leases, quarantines, cooldowns, bindings. Its
    /// cost grows with what is over, not with the pool; call again while [`GcReport::more`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for another count, [`Error::OutcomeUnknown`] when the reply is lost: what was reclaimed is
    /// reclaimed, only the report is gone.
    pub async fn gc(&self, count: u32) -> Result<GcReport> {
        if count == 0 || count as usize > BATCH {
            return Err(Error::Invalid {
                what: "gc count",
                found: count.to_string(),
                allowed: format!("1 to {BATCH}"),
            });
        }
        let mut reply = self.call(&script::GC, &[owned(count)]).await?;
        let mut report = GcReport::default();
        for (resource, record) in reply.pairs()? {
            report.expired.push((ResourceKey::new(resource)?, super::snapshot::owner_of(&record)));
        }
        for resource in reply.texts()? {
            report.recovered.push(ResourceKey::new(resource)?);
        }
        for name in reply.texts()? {
            report.unbound.push(BindingName::new(name)?);
        }
        report.more = reply.int()? == 1;
        Ok(report)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Extended,
    Lost(LostReason),
    /// Above the pool's maximum, which is this.
    Refused(Duration),
}
