//! Granting and giving back, by the rules of the documentation: the pool's order, soft bindings, fencing tokens.

use redis_allocator::{Longest, Order, Ttl};

use super::pool::{Binding, Lease, Pool, SLACK, Spot, is_over, millis};
use crate::step::{Name, Outcome};

/// A claim for a permanent lease lasts this long (ms) until it is confirmed.
const CLAIM: u64 = 10_000;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) owner: Name,
    pub(crate) ttl: Ttl,
    pub(crate) bind: Option<Name>,
    pub(crate) n: usize,
}

impl Pool {
    /// The resources of which one is next: one, or several when the order leaves it open.
    fn next_free(&self) -> Vec<Name> {
        let mut free: Vec<_> = self
            .spots
            .iter()
            .filter_map(|(key, spot)| {
                let Spot::Free { since } = spot else { return None };
                let item = &self.items[key];
                let turn = since.unwrap_or(item.position);
                Some((u16::MAX - item.priority, turn, *key))
            })
            .collect();
        free.sort_unstable();
        let highest = free.first().map(|first| first.0);
        free.retain(|candidate| Some(candidate.0) == highest);
        if self.settings.order != Order::Random {
            free.truncate(1);
        }
        free.into_iter().map(|(_, _, key)| key).collect()
    }

    /// Whether the pool refuses this time to live (ms; `None` = permanent).
    pub(crate) fn refuses(&self, ttl: Option<u64>) -> bool {
        self.settings.max_ttl.is_some_and(|max| ttl.is_none_or(|ttl| ttl > millis(max)))
    }

    pub(crate) fn ttl_of(&self, ttl: Ttl) -> Option<u64> {
        match ttl {
            Ttl::PoolDefault => Some(millis(self.settings.default_ttl)),
            Ttl::For(duration) => Some(millis(duration)),
            Ttl::Permanent => None,
        }
    }

    pub(crate) fn lengthen(&mut self, ttl: Option<u64>) {
        let ttl = ttl.map_or(Longest::Permanent, |ttl| Longest::For(std::time::Duration::from_millis(ttl)));
        self.longest = self.longest.max(ttl);
    }

    /// Grants; the resources in the order of their tokens. `seen`: what the real pool granted, of use where the order
    /// leaves it open.
    pub(crate) fn malloc(&mut self, ask: Ask, seen: &[Name]) -> Result<Vec<Name>, Outcome> {
        let ttl = self.ttl_of(ask.ttl);
        if self.refuses(ttl) {
            self.did("malloc above maxTTL is refused");
            return Err(Outcome::Refused("ttl_refused", String::new()));
        }
        if self.settings.suspended {
            self.did("malloc on a suspended pool");
            return Ok(Vec::new());
        }
        let mut taken = Vec::new();
        let mut rebind = false;
        let mut plain = ask.n;
        if let Some(name) = ask.bind {
            plain -= 1;
            rebind = self.serve(name, &mut taken, seen, false);
        }
        let named = taken.len();
        self.take_next(plain, &mut taken, seen);
        if taken.len() >= 2 {
            self.did("malloc of several");
        }
        if taken.is_empty() {
            self.did("malloc finds nothing");
        }

        let now = self.now();
        let first = (self.last + 1).max(self.now_us);
        for (token, key) in (first..).zip(&taken) {
            let expires = ttl.map(|ttl| now + ttl);
            self.leases.insert(key, Lease { owner: ask.owner, binding: ask.bind, token, granted_at: now, expires });
            self.last = token;
            self.counters.granted += 1;
            if ttl.is_none() {
                self.lengthen(Some(CLAIM));
            }
            self.lengthen(ttl);
        }
        if let (true, Some(name), [key, ..]) = (rebind && named == 1, ask.bind, taken.as_slice()) {
            let ttl = millis(self.settings.binding_ttl);
            let expires = (ttl > 0).then_some(now + ttl);
            let (required, declared, ended) = (false, false, false);
            self.bindings.insert(name, Binding { resource: key, required, declared, ttl, expires, ended });
        }
        Ok(taken)
    }

    fn take(&mut self, key: Name, taken: &mut Vec<Name>) {
        self.spots.remove(key);
        taken.push(key);
    }

    /// Takes as many as there are, at most `count`. When there are too few, what is over is reclaimed first.
    fn take_next(&mut self, count: usize, taken: &mut Vec<Name>, seen: &[Name]) {
        let goal = taken.len() + count;
        for attempt in 0..2 {
            while taken.len() < goal {
                let candidates = self.next_free();
                let Some(first) = candidates.first() else { break };
                let chosen = seen.get(taken.len()).filter(|key| candidates.contains(key)).unwrap_or(first);
                if candidates.len() > 1 {
                    self.did("malloc chooses at random");
                }
                self.did(match self.settings.order {
                    Order::LeastRecentlyUsed => "malloc by LeastRecentlyUsed",
                    Order::Sequential => "malloc by Sequential",
                    Order::Random => "malloc by Random",
                });
                self.take(chosen, taken);
            }
            // A pool of eight resources and four names has never more to reclaim than one malloc reclaims.
            if taken.len() < goal && attempt == 0 {
                let done = self.reclaim(16);
                if !done.expired.is_empty() {
                    self.did("malloc reclaims a lease");
                }
                if !done.recovered.is_empty() {
                    self.did("malloc ends a quarantine");
                }
            }
        }
    }

    /// Serves a request with a binding name; whether the name is bound to what it got.
    fn serve(&mut self, name: Name, taken: &mut Vec<Name>, seen: &[Name], reclaimed: bool) -> bool {
        if self.bindings.get(name).is_some_and(|binding| is_over(binding.expires, self.now())) {
            self.end_binding(name, true);
        }
        let Some(binding) = self.bindings.get(name).cloned() else {
            self.take_next(1, taken, seen);
            if !taken.is_empty() {
                self.did("malloc binds a new name");
            }
            return true;
        };
        if binding.ended {
            self.take_next(1, taken, seen);
            if !taken.is_empty() {
                self.did("malloc does not rebind an ended declaration");
            }
            return false;
        }
        let in_the_way = match self.take_bound(name, binding.resource, taken) {
            Ok(()) => {
                self.did(if binding.required {
                    "malloc gets its reserved resource"
                } else {
                    "malloc follows its binding"
                });
                return !binding.required && !binding.declared;
            }
            Err(in_the_way) => in_the_way,
        };
        if binding.required {
            // Whatever is over may be in its way, the binding itself too.
            if !reclaimed {
                self.reclaim(16);
                return self.serve(name, taken, seen, true);
            }
            self.did("malloc waits for its reserved resource");
            return false;
        }
        self.take_next(1, taken, seen);
        let its_own = in_the_way == Some(name);
        if !taken.is_empty() {
            self.did(match (binding.declared, its_own) {
                (true, _) => "malloc leaves a declared binding where it is",
                (false, true) => "malloc keeps the binding of a killed worker",
                (false, false) => "malloc rebinds",
            });
        }
        !binding.declared && !its_own
    }

    /// Takes the resource a name is bound to, if it can be had; else the name under which it is leased, if it is.
    fn take_bound(&mut self, name: Name, key: Name, taken: &mut Vec<Name>) -> Result<(), Option<Name>> {
        if let Some(lease) = self.leases.get(key) {
            if !self.is_reclaimable(key) {
                return Err(lease.binding);
            }
            self.release(key);
            self.counters.expired += 1;
            self.did("malloc reclaims its bound resource");
        }
        if matches!(self.spots.get(key), Some(Spot::Quarantined { until }) if is_over(*until, self.now())) {
            self.resettle(key);
            self.did("malloc ends a quarantine");
        }
        match self.spots.get(key) {
            Some(Spot::Free { .. }) => self.take(key, taken),
            Some(Spot::Reserved) if self.reserved_for(key) == Some(name) => self.take(key, taken),
            _ => return Err(None),
        }
        Ok(())
    }

    /// Gives a lease back; whether this token held it.
    pub(crate) fn free(&mut self, key: Name, token: u64) -> bool {
        let Some(lease) = self.leases.get(key).filter(|lease| lease.token == token) else { return false };
        if is_over(lease.expires, self.now()) {
            self.did(if is_over(lease.expires.map(|at| at + SLACK), self.now()) {
                "free of an expired lease"
            } else {
                "free within the slack"
            });
        }
        if !self.items.contains_key(key) {
            self.did("free ends a drain");
        }
        self.release(key);
        self.counters.freed += 1;
        true
    }

    /// Ends a lease whoever holds it.
    pub(crate) fn revoke(&mut self, key: Name) -> bool {
        if !self.leases.contains_key(key) {
            return false;
        }
        self.release(key);
        self.counters.revoked += 1;
        true
    }
}
