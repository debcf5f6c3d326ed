//! What clients hold: grants in the test's hands, and those known by their key alone, asked for, renewed and given back.

use redis_allocator::Ttl;

use super::{
    CLIENT, KEPT, Reference,
    grants::Ask,
    pool::{Lease, is_over, millis},
};
use crate::step::{Grant, Name, Outcome, facts};

/// A grant in the test's hands.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) life: usize,
    pub(crate) lease: Lease,
    /// ms; `None`: permanent.
    ttl: Option<u64>,
    /// Why its holder knows that it is lost.
    lost: Option<&'static str>,
}

impl Handle {
    /// Whether its holder still believes in it, in this life of the pool.
    pub(crate) fn is_believed(&self, life: usize) -> bool {
        self.life == life && self.lost.is_none()
    }
}

impl Reference {
    pub(super) fn malloc(&mut self, ask: Ask, seen: &[Name]) -> Outcome {
        let Some(pool) = &mut self.pool else { return Outcome::Skipped };
        let taken = match pool.malloc(ask, seen) {
            Ok(taken) => taken,
            Err(refused) => return refused,
        };
        if !taken.is_empty() {
            pool.did("malloc");
            pool.did(match ask.ttl {
                Ttl::PoolDefault => "malloc for the pool's time",
                Ttl::For(_) => "malloc for a time",
                Ttl::Permanent => "malloc permanent",
            });
        }
        let ttl = pool.ttl_of(ask.ttl);
        let mut grants = Vec::new();
        for key in taken {
            let lease = pool.leases[key].clone();
            grants.push(Grant {
                key: key.to_owned(),
                owner: ask.owner.to_owned(),
                binding: ask.bind.map(str::to_owned),
                token: lease.token,
                granted_at: lease.granted_at,
                ttl,
                facts: format!("{:?}", facts(pool.items[key].facts)),
            });
            let handles = self.handles.entry(key).or_default();
            handles.push(Handle { life: pool.life, lease, ttl, lost: None });
            if handles.len() > KEPT {
                handles.remove(0);
            }
        }
        Outcome::Granted(grants)
    }

    pub(super) fn malloc_key(&mut self, ttl: Ttl, seen: &[Name]) -> Outcome {
        let Some(pool) = &mut self.pool else { return Outcome::Skipped };
        match pool.malloc(Ask { owner: CLIENT, ttl, bind: None, n: 1 }, seen) {
            Err(refused) => refused,
            Ok(taken) => {
                for key in &taken {
                    self.key_grants.insert(key, pool.leases[key].token);
                    pool.did("malloc_key");
                }
                Outcome::Key(taken.first().map(ToString::to_string))
            }
        }
    }

    pub(super) fn free_keys(&mut self, keys: &[Name]) -> Outcome {
        let Some(pool) = &mut self.pool else { return Outcome::Skipped };
        let mut results = Vec::new();
        for key in keys {
            let token = self.key_grants.remove(key);
            let freed = token.is_some_and(|token| pool.free(key, token));
            pool.did(if freed { "free_keys" } else { "free_keys of what is not held" });
            results.push(freed);
        }
        Outcome::Keys(results)
    }

    pub(super) fn free(&mut self, key: Name, back: usize) -> Outcome {
        let Some(at) = self.handle(key, back) else { return Outcome::Skipped };
        let Some(handle) = self.handles.get_mut(key).map(|handles| handles.remove(at)) else { return Outcome::Skipped };
        let Some(pool) = &mut self.pool else { return Outcome::Refused("unknown_pool", String::new()) };
        if pool.free(key, handle.lease.token) {
            pool.did("free");
            return Outcome::Done;
        }
        pool.did("free of a stale grant is refused");
        if pool.leases.contains_key(key) {
            pool.did("free of a stale grant leaves the new holder alone");
        }
        Outcome::Refused("not_owner", String::new())
    }

    pub(super) fn renew(&mut self, key: Name, back: usize, ttl: Ttl) -> Outcome {
        let Some(at) = self.handle(key, back) else { return Outcome::Skipped };
        let Some(handle) = self.handles.get_mut(key).and_then(|handles| handles.get_mut(at)) else {
            return Outcome::Skipped;
        };
        let ttl = match ttl {
            Ttl::PoolDefault => handle.ttl,
            Ttl::For(duration) => Some(millis(duration)),
            Ttl::Permanent => None,
        };
        if let Some(reason) = handle.lost {
            return Outcome::Refused("lost", reason.to_owned());
        }
        let Some(pool) = self.pool.as_mut().filter(|pool| pool.life == handle.life) else {
            self.deeds.push("renew after the pool was lost");
            handle.lost = Some("the pool lost its data");
            return Outcome::Refused("lost", "the pool lost its data".to_owned());
        };
        let now = pool.now();
        // Redis lost what it had acknowledged: the token must never be given out again.
        let forgotten = handle.lease.token > pool.last;
        pool.last = pool.last.max(handle.lease.token);
        let held = match pool.leases.get(key) {
            None => forgotten && pool.items.contains_key(key),
            Some(lease) => lease.token == handle.lease.token && !is_over(lease.expires, now),
        };
        if !held {
            handle.lost = Some("it was ended or reclaimed");
            pool.did("renew of what is lost");
            return Outcome::Refused("lost", "it was ended or reclaimed".to_owned());
        }
        if pool.refuses(ttl) {
            pool.did("renew above maxTTL is refused");
            return Outcome::Refused("ttl_refused", String::new());
        }
        if forgotten {
            pool.spots.remove(key);
            pool.leases.insert(key, handle.lease.clone());
            pool.counters.granted += 1;
            pool.did("renew takes a lease back after a rollback");
        }
        if let Some(lease) = pool.leases.get_mut(key) {
            // A renewal never shortens a lease, but it may give a permanent one an end.
            let at_least = lease.expires.filter(|_| !forgotten).unwrap_or(0);
            lease.expires = ttl.map(|ttl| at_least.max(now + ttl));
        }
        pool.lengthen(ttl);
        handle.ttl = ttl;
        pool.did(if ttl.is_some() { "renew" } else { "renew for ever" });
        Outcome::Done
    }
}
