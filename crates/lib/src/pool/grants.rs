//! Renewing and giving back. Many at once are one script; one is the same with n = 1. Asking is in
//! [`super::ask`].

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::{
    Args, BATCH, Pool,
    ask::{Answer, Request},
    keys_of, owned, text,
};
use crate::{
    combine::Combiner,
    error::{Error, LostReason, Result},
    lease::{Grant, Lease},
    names::ResourceKey,
    script,
    time::{BootInstant, Ttl},
};

/// A grant to be freed.
pub(crate) struct ToBeFreed<'a> {
    pub(crate) key: &'a ResourceKey,
    /// The lease's id in Redis.
    pub(crate) id: &'a str,
    /// Empty: it was never granted.
    pub(crate) token: Cow<'a, str>,
    /// `None`: it is permanent.
    pub(crate) deadline: Option<BootInstant>,
}

/// What a client keeps of a grant by key.
#[derive(Clone)]
pub(crate) struct KeyGrant {
    key: ResourceKey,
    id: String,
    token: String,
    deadline: Option<BootInstant>,
}

impl KeyGrant {
    fn of(grant: &Grant) -> Self {
        let ToBeFreed { key, id, token, deadline } = grant.to_be_freed();
        Self { key: key.clone(), id: id.to_owned(), token: token.into_owned(), deadline }
    }

    fn to_be_freed(&self) -> ToBeFreed<'_> {
        let Self { key, id, token, deadline } = self;
        ToBeFreed { key, id, token: Cow::Borrowed(token), deadline: *deadline }
    }
}

/// A grant to be renewed, and to which time to live (`None`: permanent).
pub(crate) type ToBeRenewed = (Arc<Grant>, Option<Duration>);

/// Where callers meet that ask one pool at the same moment: their calls become one.
#[derive(Default)]
pub(super) struct Together {
    pub(super) mallocs: Combiner<Request, Result<Answer>>,
    /// Those with a name, selectors or a session.
    pub(super) special: Combiner<Request, Result<Answer>>,
    frees: Combiner<Arc<Grant>, Result<Result<()>>>,
    renewals: Combiner<ToBeRenewed, Result<Renewal>>,
}

/// A failure that all who asked together share.
pub(super) fn shared<A>(count: usize, outcome: Result<Vec<A>>) -> Vec<Result<A>> {
    match outcome {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) => vec![error; count].into_iter().map(Err).collect(),
    }
}

pub(super) fn shutting_down() -> Error {
    Error::Unavailable { message: "the runtime is shutting down".to_owned(), source: None }
}

/// What became of one renewal in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    Extended,
    Lost(LostReason),
    /// The pool's maximum is shorter; the lease stays as it is.
    Refused(Duration),
}

impl Pool {
    /// Like [`malloc`](Self::malloc), for callers who want to keep nothing but the key: the token stays inside this
    /// client, and only this client can give the key back with [`free_keys`](Self::free_keys). Nothing renews it.
    pub async fn malloc_key(&self, ttl: impl Into<Ttl>) -> Result<Option<ResourceKey>> {
        let Some(lease) = self.malloc().ttl(ttl).await? else { return Ok(None) };
        let key = lease.key().clone();
        let mut grants = self.client().inner.key_grants.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() == grants.capacity() {
            grants.retain(|_, held| {
                held.retain(|grant| !grant.deadline.is_some_and(BootInstant::is_past));
                !held.is_empty()
            });
        }
        grants.entry((self.name().clone(), key.clone())).or_default().push(KeyGrant::of(lease.grant()));
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
                // In a shared pool one key may have been granted more than once: each time it is named is one of those.
                let mut named = HashMap::<&ResourceKey, usize>::new();
                batch
                    .iter()
                    .map(|key| {
                        let nth = named.entry(key).or_default();
                        *nth += 1;
                        let held = grants.get(&(self.name().clone(), key.clone()));
                        held.and_then(|held| held.len().checked_sub(*nth).map(|k| held[k].clone())).unwrap_or_else(
                            || KeyGrant { key: key.clone(), id: key.to_string(), token: String::new(), deadline: None },
                        )
                    })
                    .collect()
            };
            let asked: Vec<_> = named.iter().map(KeyGrant::to_be_freed).collect();
            let freed = self.free_grants(&asked).await?;
            drop(asked);
            let mut grants = self.client().inner.key_grants.lock().unwrap_or_else(PoisonError::into_inner);
            for (grant, freed) in named.into_iter().zip(freed) {
                let name = (self.name().clone(), grant.key);
                if let Some(held) = grants.get_mut(&name) {
                    held.retain(|other| other.token != grant.token);
                    if held.is_empty() {
                        grants.remove(&name);
                    }
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

    /// Frees one grant, together with those that others free at this moment.
    pub(crate) async fn free_grant(&self, grant: Arc<Grant>) -> Result<Result<()>> {
        let serve = |pool: Pool, grants: Vec<Arc<Grant>>| async move {
            let named: Vec<_> = grants.iter().map(|grant| grant.to_be_freed()).collect();
            shared(named.len(), pool.free_grants(&named).await)
        };
        let freed = self.inner.together.frees.ask(grant, BATCH, self, &self.client().inner.runtime, serve).await;
        freed.unwrap_or_else(|| Err(shutting_down()))
    }

    /// Frees grants; what became of each.
    pub(crate) async fn free_grants(&self, named: &[ToBeFreed<'_>]) -> Result<Vec<Result<()>>> {
        let mut args = Args::with_capacity(2 * named.len());
        for grant in named {
            args.extend([text(grant.id), text(&grant.token)]);
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
                        .map(|ToBeFreed { key, token, deadline, .. }| {
                            let held = held.int()? == 1;
                            let in_time = !token.is_empty() && deadline.is_none_or(|deadline| deadline > sent);
                            Ok(match &lost {
                                _ if held => Ok(()),
                                Some(_) if in_time => Ok(()),
                                Some(error) if !token.is_empty() => Err(Error::clone(error)),
                                _ => Err(Error::NotOwner { pool: self.name().clone(), resource: (*key).clone() }),
                            })
                        })
                        .collect();
                }
                Err(error @ Error::OutcomeUnknown { .. }) if lost.is_none() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
    }

    /// Renews one grant, together with those that others renew at this moment.
    pub(crate) async fn renew_grant(&self, grant: Arc<Grant>, ttl: Option<Duration>) -> Result<Renewal> {
        let serve =
            |pool: Pool, asked: Vec<ToBeRenewed>| async move { shared(asked.len(), pool.renew_grants(&asked).await) };
        let runtime = &self.client().inner.runtime;
        let renewed = self.inner.together.renewals.ask((grant, ttl), BATCH, self, runtime, serve).await;
        renewed.unwrap_or_else(|| Err(shutting_down()))
    }

    /// Renews at most [`BATCH`] grants in one round trip, each to its own time to live (`None` = permanent), and tells
    /// each what became of it.
    pub(crate) async fn renew_grants(&self, asked: &[ToBeRenewed]) -> Result<Vec<Renewal>> {
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
                args.extend([text(grant.id()), owned(Grant::ttl_arg(*ttl)?), owned(grant.record())]);
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Extended,
    Lost(LostReason),
    /// Above the pool's maximum, which is this.
    Refused(Duration),
}
