//! Where a resource goes, and what is over.

use std::collections::{BTreeMap, BTreeSet};

use super::{Binding, End, Id, Name, Order, Reference, Reply, SLACK, view::holder_record};

/// What one reclaiming did.
#[derive(Debug, Default)]
pub(super) struct Reclaimed {
    pub(super) expired: Vec<(Name, String)>,
    pub(super) due: Vec<Name>,
    pub(super) unbound: Vec<Name>,
    pub(super) more: bool,
}

impl Reclaimed {
    pub(super) fn any(&self) -> bool {
        !(self.expired.is_empty() && self.due.is_empty() && self.unbound.is_empty())
    }
}

fn is_over(end: End, now: u64) -> bool {
    end.is_some_and(|end| end <= now)
}

impl Reference {
    /// A place behind all that are free: by the time, of a shared pool by turns, of which a millisecond has many.
    fn next_turn(&mut self) -> u64 {
        if !self.is_shared() {
            return self.now();
        }
        self.last_turn = self.now().max(self.last_turn + 1);
        self.last_turn
    }

    pub(super) fn enter(&mut self, key: Name, since: Option<u64>) {
        let turn = match (self.settings.order, since) {
            (Order::Sequential, _) => 0,
            (_, Some(turn)) => turn,
            _ => self.next_turn(),
        };
        self.free.insert(key, turn);
    }

    /// Places resources that are in no place, one after the other. `since`: the turn of those that keep it.
    fn settle(&mut self, keys: &[Name], since: &BTreeMap<Name, u64>) {
        let mut disturbed = Vec::new();
        for &key in keys {
            if !self.items.contains_key(key) {
                self.marks.remove(key);
                continue;
            }
            let now = self.now();
            if let Some(marks) = self.marks.get_mut(key) {
                marks.retain(|_, until| !is_over(*until, now));
                if marks.is_empty() {
                    self.marks.remove(key);
                }
            }
            if let Some(marks) = self.marks.get(key) {
                let ends: Option<Vec<u64>> = marks.values().copied().collect();
                self.quarantined.insert(key, ends.and_then(|ends| ends.into_iter().max()));
                continue;
            }
            let reserved = self.reserved_for(key);
            let mut offered = false;
            while !self.settings.suspended && self.room(key) > 0 {
                let Some(others) = self.offer(key, reserved) else { break };
                offered = true;
                disturbed.extend(others);
            }
            if self.room(key) > 0 && reserved.is_none() {
                // Whoever is given a shared resource sends it to the end of the queue.
                let rotates = offered && self.settings.order == Order::LeastRecentlyUsed;
                self.enter(key, since.get(key).copied().filter(|_| !rotates));
            }
        }
        disturbed.retain(|_| self.settings.shared.is_some());
        if !disturbed.is_empty() {
            self.settle(&disturbed, &BTreeMap::new());
        }
    }

    /// Places resources that may be anywhere. A leased one of an exclusive pool stays, a free one keeps its turn.
    pub(super) fn resettle(&mut self, keys: &[Name]) {
        let mut seen = BTreeSet::new();
        let mut movable = Vec::new();
        let mut since = BTreeMap::new();
        for &key in keys.iter().filter(|key| seen.insert(**key)) {
            if let Some(turn) = self.free.remove(key).filter(|turn| *turn > 0) {
                since.insert(key, turn);
            }
            self.quarantined.remove(key);
            if self.is_shared() || self.holders(key) == 0 {
                movable.push(key);
            }
        }
        self.settle(&movable, &since);
    }

    /// Whether something keeps a resource out of circulation now.
    pub(super) fn is_marked(&self, key: Name) -> bool {
        let now = self.now();
        self.marks.get(key).is_some_and(|marks| marks.values().any(|until| !is_over(*until, now)))
    }

    /// Ends leases.
    pub(super) fn release(&mut self, ids: &[Id]) {
        let mut used = BTreeSet::new();
        for id in ids {
            // What was only offered was not used, and needs no rest.
            if self.leases.remove(id).is_none_or(|lease| lease.granted.is_some()) {
                used.insert(id.0);
            }
        }
        let mut keys: Vec<Name> = Vec::new();
        for (key, _) in ids {
            if !keys.contains(key) {
                keys.push(key);
            }
        }
        if self.is_shared() {
            self.resettle(&keys);
            for key in keys {
                if self.holders(key) == 0 && self.draining.remove(key) {
                    self.did("the last holder of what left the pool is gone");
                }
            }
            return;
        }
        if self.settings.cooldown > 0 {
            let until = Some(self.now() + self.settings.cooldown);
            for &key in keys.iter().filter(|key| used.contains(*key) && self.items.contains_key(*key)) {
                self.marks.entry(key).or_default().insert("cooldown", until);
            }
        }
        self.settle(&keys, &BTreeMap::new());
    }

    /// Ends leases whose time, or whose session's time, is over, and offers that nobody claimed.
    pub(super) fn expire(&mut self, ids: &[Id], ended: &mut Vec<(Name, String)>) {
        for id in ids {
            let lease = self.leases[id].clone();
            let Some(waiter) = lease.waiter.filter(|_| lease.granted.is_none()) else {
                ended.push((id.0, holder_record(*id, &lease)));
                self.counters.expired += 1;
                continue;
            };
            self.counters.granted -= 1;
            self.did("an offer lapses");
            // It may have come back since, and wait anew.
            if self.line.get(waiter).and_then(|waiter| waiter.offer.as_ref()).is_some_and(|offer| offer.contains(id)) {
                self.drop_waiter(waiter);
            }
        }
        self.release(ids);
    }

    /// Reclaims at most `count` things that are over.
    pub(super) fn reclaim(&mut self, count: u64) -> Reclaimed {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let now = self.now();
        let mut done = Reclaimed::default();
        let mut room = count;
        let over = |expires: End| is_over(expires.map(|at| at + SLACK), now);
        let mut ids: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| over(lease.expires))
            .map(|(id, lease)| (lease.expires, *id))
            .collect();
        ids.sort_unstable();
        ids.truncate(room);
        room -= ids.len();
        let ids: Vec<_> = ids.into_iter().map(|(_, id)| id).collect();
        self.expire(&ids, &mut done.expired);
        room = self.end_sessions(room, &mut done);
        let mut due: Vec<_> = self.quarantined.iter().map(|(key, until)| (*until, *key)).collect();
        due.retain(|(until, _)| is_over(*until, now));
        due.sort_unstable();
        due.truncate(room);
        room -= due.len();
        done.due = due.into_iter().map(|(_, key)| key).collect();
        self.resettle(&done.due.clone());
        let mut unbound: Vec<_> = self.bindings.iter().map(|(name, binding)| (binding.expires, *name)).collect();
        unbound.retain(|(end, _)| is_over(*end, now));
        unbound.sort_unstable();
        unbound.truncate(room);
        room -= unbound.len();
        for (_, name) in unbound {
            if let Some(key) = self.end_binding(name) {
                self.resettle(&[key]);
            }
            done.unbound.push(name);
        }
        done.more = room == 0;
        done
    }

    /// Sessions that are over, at most four a call.
    fn end_sessions(&mut self, mut room: usize, done: &mut Reclaimed) -> usize {
        if room == 0 {
            return 0;
        }
        let last = (self.now() - SLACK).cast_signed();
        let mut over: Vec<_> = self.sessions.iter().map(|(session, until)| (*until, *session)).collect();
        over.retain(|(until, _)| *until > 0 && *until <= last);
        over.sort_unstable();
        for (until, session) in over.into_iter().take(4) {
            let ids: Vec<_> = self.of_session(session).take(room).collect();
            if !ids.is_empty() {
                self.did("a session's leases end with it");
                self.expire(&ids, &mut done.expired);
                room -= ids.len();
            }
            if room > 0 {
                self.sessions.insert(session, -until);
                room -= 1;
            }
        }
        room
    }

    pub(super) fn free_all(&mut self, back: &[usize]) -> Reply {
        let (mut ids, mut results) = (Vec::new(), Vec::new());
        for back in back {
            let freed = self.grant(*back).filter(|id| self.leases.contains_key(id) && !ids.contains(id));
            // In an exclusive pool a resource names its lease.
            let freed = freed.filter(|(key, _)| self.is_shared() || ids.iter().all(|(other, _)| other != key));
            results.push(Reply::text(u8::from(freed.is_some())));
            self.did(if freed.is_some() { "free" } else { "free of what is not held" });
            if freed.is_some_and(|(key, _)| self.holders(key) > 1) {
                self.did("free of one of several holders");
            }
            ids.extend(freed);
        }
        if ids.len() > 1 {
            self.did("free of several");
        }
        self.release(&ids);
        Reply::List(vec![Reply::text("ok"), Reply::List(results)])
    }

    pub(super) fn renew(&mut self, back: usize, ttl: i64) -> Reply {
        let answer = |result: u8, max_ttl: u64| {
            Reply::List(vec![Reply::text("ok"), Reply::List(vec![Reply::text(result)]), Reply::text(max_ttl)])
        };
        let (now, max_ttl) = (self.now(), self.settings.max_ttl);
        let lease = self.grant(back).and_then(|id| self.leases.get_mut(&id));
        let Some(lease) = lease.filter(|lease| !is_over(lease.expires, now)) else { return answer(0, max_ttl) };
        if max_ttl > 0 && (ttl == -1 || ttl.unsigned_abs() > max_ttl) {
            return answer(2, max_ttl);
        }
        if ttl == -1 {
            lease.expires = None;
            self.permanent = true;
            self.did("renew for ever");
        } else {
            // One that was overtaken does not cut short; only what is permanent can be given an end.
            let expires = now + ttl.unsigned_abs();
            lease.expires = Some(lease.expires.map_or(expires, |at| at.max(expires)));
            self.lengthen(ttl.unsigned_abs());
            self.did("renew");
        }
        answer(1, max_ttl)
    }

    pub(super) fn revoke(&mut self, keys: &[Name]) -> Reply {
        let ids: Vec<_> = self.leases.keys().filter(|(key, _)| keys.contains(key)).copied().collect();
        let mut ordered = Vec::new();
        for key in keys {
            ordered.extend(ids.iter().filter(|(of, _)| of == key));
        }
        let offered = ordered.iter().any(|id| self.leases[id].granted.is_none());
        self.counters.revoked += ordered.len() as u64;
        if !ordered.is_empty() {
            self.did(if offered { "revoke of what is offered" } else { "revoke" });
            self.release(&ordered);
        }
        Reply::List(vec![Reply::text("ok"), Reply::text(ordered.len())])
    }

    pub(super) fn count_revoked(&mut self, ids: &[Id]) {
        self.counters.revoked += ids.len() as u64;
    }

    pub(super) fn count_granted(&mut self, more: bool) {
        if more { self.counters.granted += 1 } else { self.counters.granted -= 1 }
    }

    /// Ends a binding; the resource that it reserved.
    pub(super) fn end_binding(&mut self, name: Name) -> Option<Name> {
        self.bindings.remove(name).filter(|binding| binding.required).map(|binding| binding.key)
    }

    pub(super) fn bind(&mut self, name: Name, key: Name, required: bool, ttl: u64) -> Reply {
        let now = self.now();
        if let Some(holder) = self.reserved_for(key).filter(|holder| required && *holder != name) {
            if !is_over(self.bindings[holder].expires, now) {
                return Reply::List(vec![Reply::text("conflict"), Reply::text(holder)]);
            }
            self.end_binding(holder);
        }
        let mut changed: Vec<Name> = self.end_binding(name).into_iter().collect();
        self.bindings.insert(name, Binding { key, required, ttl, expires: (ttl > 0).then_some(now + ttl) });
        if required {
            self.did("bind required");
            changed.push(key);
        }
        self.resettle(&changed);
        Reply::List(vec![Reply::text("ok"), Reply::text(1)])
    }

    pub(super) fn unbind(&mut self, name: Name) -> Reply {
        let there = self.bindings.contains_key(name);
        if let Some(key) = self.end_binding(name) {
            self.resettle(&[key]);
        }
        Reply::List(vec![Reply::text("ok"), Reply::text(u8::from(there))])
    }

    pub(super) fn quarantine(&mut self, key: Name, cause: Name, duration: i64) -> Reply {
        if !self.items.contains_key(key) {
            return Reply::List(vec![Reply::text("no-resource")]);
        }
        let until = (duration >= 0).then(|| self.now() + duration.unsigned_abs());
        self.marks.entry(key).or_default().insert(cause, until);
        self.counters.quarantined += 1;
        let held = self.holders(key) > 0;
        self.resettle(&[key]);
        if held && self.is_shared() {
            self.did("quarantine of a shared resource leaves its holders alone");
        }
        Reply::List(vec![Reply::text("ok"), Reply::text(u8::from(self.is_shared() || !held))])
    }

    pub(super) fn unquarantine(&mut self, key: Name, cause: Name) -> Reply {
        let mut there = false;
        if let Some(marks) = self.marks.get_mut(key) {
            there = marks.contains_key(cause) || cause.is_empty();
            marks.retain(|other, _| *other != cause && !cause.is_empty());
            if marks.is_empty() {
                self.marks.remove(key);
            }
        }
        if there {
            self.resettle(&[key]);
        }
        Reply::List(vec![Reply::text("ok"), Reply::text(u8::from(there))])
    }
}
