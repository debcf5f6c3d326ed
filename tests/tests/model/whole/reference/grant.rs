//! Granting what is free, and what can't be granted.

use super::{Ask, Binding, CLAIM, Class, Id, LIFE, Lease, Name, Reference, Reply, SLACK, view::item_record};
use crate::whole::step::{DEFAULT_TTL, INDEXES, SELECTORS};

impl Ask {
    pub(crate) fn is_plain(&self) -> bool {
        self.name.is_none() && self.n == 1 && self.selectors.is_empty() && self.session.is_none()
    }
}

/// What one call remembers from request to request.
struct Call {
    gathering: bool,
    reclaimed: bool,
}

impl Reference {
    pub(super) fn malloc(&mut self, asks: &[Ask]) -> Reply {
        let mut results = vec![Reply::Nothing; asks.len()];
        let mut call = Call { gathering: self.gathers(), reclaimed: false };
        if call.gathering && !self.settings.suspended {
            let gatherers = |of: &Self| of.line.values().filter(|waiter| waiter.ask.n > 1).count();
            let before = gatherers(self);
            self.bury();
            if gatherers(self) < before && self.serve_line() > 0 {
                self.did("what a dead one gathered is for those in line");
            }
            call.gathering = self.gathers();
        }
        // Those that ask for something special come first.
        let of_kind = |plain| (0..asks.len()).filter(move |i| asks[*i].is_plain() == plain);
        for i in of_kind(false).chain(of_kind(true)) {
            results[i] = self.serve(i, &asks[i], &mut call);
        }
        Reply::List(vec![
            Reply::text("ok"),
            Reply::List(results),
            Reply::text("life"),
            Reply::text(self.now()),
            Reply::text(u8::from(self.is_shared())),
        ])
    }

    /// Whether anybody in line waits for several.
    pub(super) fn gathers(&self) -> bool {
        self.line.values().any(|waiter| waiter.ask.n > 1)
    }

    /// The time to live that is granted, or the answer that refuses what was asked for.
    pub(super) fn time_to_live(&self, asked: i64) -> Result<u64, Reply> {
        let max = self.settings.max_ttl;
        let ttl = if asked == 0 { DEFAULT_TTL } else { asked.unsigned_abs() };
        if max > 0 && (asked == -1 || ttl > max) {
            return Err(Reply::List(vec![Reply::Nothing, Reply::text("ttl"), Reply::text(max)]));
        }
        Ok(if asked == -1 { CLAIM } else { ttl })
    }

    /// Why a request can't be met, now or later.
    pub(super) fn refusal(&mut self, ask: &Ask) -> Option<Reply> {
        if let Some(over) = ask.session {
            let now = self.now().cast_signed();
            if self.sessions.get(over).is_none_or(|until| *until <= now) {
                self.did("a session that is over asks");
                return Some(Reply::List(vec![Reply::Nothing, Reply::text("session")]));
            }
        }
        let most = self.most_at_once();
        if ask.n > 1 && ask.n > most {
            self.did("more is asked for than there could be");
            return Some(Reply::List(vec![Reply::Nothing, Reply::text("count"), Reply::text(most)]));
        }
        let unknown = ask.selectors.iter().rev().find(|selector| !self.has_index(**selector))?;
        self.did("an index is not there");
        let labels: Vec<_> = SELECTORS[*unknown].iter().map(|(label, _)| *label).collect();
        let known = INDEXES[self.settings.indexes].iter().map(|labels| Reply::text(labels.join(",")));
        let refusal = [Reply::Nothing, Reply::text("index"), Reply::text(labels.join(","))];
        Some(Reply::List(refusal.into_iter().chain(known).collect()))
    }

    /// How many leases at once the pool could have.
    pub(super) fn most_at_once(&self) -> u64 {
        let items = self.items.len() as u64;
        match self.settings.shared {
            None => items,
            Some(0) if items > 0 => u64::MAX,
            Some(holders) => items * holders,
        }
    }

    fn serve(&mut self, i: usize, ask: &Ask, call: &mut Call) -> Reply {
        let ttl = match self.time_to_live(ask.ttl) {
            Err(refusal) => return refusal,
            Ok(ttl) => ttl,
        };
        if let Some(refusal) = self.refusal(ask) {
            return refusal;
        }
        if self.settings.suspended {
            self.did("malloc on a suspended pool");
            return Reply::Nothing;
        }
        let served = self.serve_now(i, ask, ttl, call);
        if served.is_empty() {
            return Reply::Nothing;
        }
        self.did("malloc");
        self.keep(&served);
        self.told(&served, ttl)
    }

    /// What a reply says of what was granted.
    pub(super) fn told(&self, ids: &[Id], ttl: u64) -> Reply {
        let parts = ids.iter().flat_map(|(key, token)| {
            [Reply::text(key), Reply::text(token), Reply::text(ttl), Reply::text(item_record(&self.items[key]))]
        });
        Reply::List(parts.collect())
    }

    fn serve_now(&mut self, i: usize, ask: &Ask, ttl: u64, call: &mut Call) -> Vec<Id> {
        let mut in_the_way: Option<Name> = None;
        if let Some(name) = ask.name {
            for again in [false, true] {
                let (bound, only) = self.bound(name);
                let Some(key) = bound else { break };
                let ripe = self.ripen(key);
                in_the_way = ripe.err().flatten();
                let at_hand = ripe.is_ok() && self.is_at_hand(ask, key);
                if at_hand && !(call.gathering && self.free.contains_key(key) && self.is_kept(key)) {
                    self.did(if only { "malloc gets what is reserved" } else { "malloc follows its binding" });
                    let id = self.take(ask, key, ttl);
                    self.rebind(name, key, None);
                    return vec![id];
                }
                if !only {
                    break;
                }
                if again || call.reclaimed {
                    return Vec::new();
                }
                // What is over may be in its way.
                call.reclaimed = !self.reclaim(16).more;
            }
        }
        if call.gathering && ask.n > 1 && self.gatherer().is_some() {
            return Vec::new();
        }
        for again in [false, true] {
            let mut found = self.look(&ask.selectors, if call.gathering { 16 } else { ask.n }, i);
            if call.gathering {
                let before = found.len();
                found.retain(|key| !self.is_kept(key));
                if found.len() < before {
                    self.did("malloc leaves what someone gathers");
                }
            }
            let room = found.iter().map(|key| self.room(key)).fold(0, u64::saturating_add);
            if ask.n == 1 && !found.is_empty() {
                self.selected(ask, found[0]);
                let id = self.take(ask, found[0], ttl);
                if let Some(name) = ask.name {
                    self.rebind(name, found[0], in_the_way);
                }
                return vec![id];
            }
            if ask.n > 1 && room >= ask.n {
                self.did("malloc of several");
                let mut ids = Vec::new();
                // One of each before the second of any.
                while (ids.len() as u64) < ask.n {
                    for key in &found {
                        if (ids.len() as u64) < ask.n && self.room(key) > 0 {
                            ids.push(self.take(ask, key, ttl));
                        }
                    }
                }
                if ids.len() > found.len() {
                    self.did("malloc of several takes one resource twice");
                }
                return ids;
            }
            if ask.n > 1 && room > 0 {
                self.did("malloc of several finds too few");
            }
            if again || call.reclaimed {
                break;
            }
            call.reclaimed = !self.reclaim(ask.n.max(16)).more;
        }
        self.did("malloc finds nothing");
        Vec::new()
    }

    fn selected(&mut self, ask: &Ask, key: Name) {
        if let [first, ..] = ask.selectors[..] {
            let preferred = self.fits(key, &[first]);
            self.did(if preferred { "malloc by selector" } else { "malloc by a later selector" });
        }
    }

    fn take(&mut self, ask: &Ask, key: Name, ttl: u64) -> Id {
        let was_free = self.free.remove(key);
        self.lengthen(ttl);
        let expires = ask.session.is_none().then(|| self.now() + ttl);
        let id = self.hold(key, Lease { granted: Some(self.now()), ask: ask.clone(), waiter: None, expires });
        if let Some(turn) =
            was_free.filter(|_| self.is_shared() && self.room(key) > 0 && self.reserved_for(key).is_none())
        {
            let rotates = self.settings.order == crate::whole::step::Order::LeastRecentlyUsed;
            if rotates {
                self.did("a shared resource takes its turn");
            }
            self.enter(key, Some(turn).filter(|_| !rotates));
        } else if self.is_shared() {
            self.did("a shared resource is full");
        }
        id
    }

    pub(super) fn hold(&mut self, key: Name, lease: Lease) -> Id {
        self.last = self.now_us.max(self.last + 1);
        self.count_granted(true);
        self.leases.insert((key, self.last), lease);
        (key, self.last)
    }

    /// Whether the first of those who want several would take it.
    fn is_kept(&mut self, key: Name) -> bool {
        self.gatherer().is_some_and(|id| {
            let selectors = self.line[id].ask.selectors.clone();
            self.fits(key, &selectors)
        })
    }

    /// The resource a name is bound to, and whether it may have no other.
    pub(super) fn bound(&mut self, name: Name) -> (Option<Name>, bool) {
        let Some(binding) = self.bindings.get(name).cloned() else { return (None, false) };
        if binding.expires.is_some_and(|end| end <= self.now()) {
            if let Some(key) = self.end_binding(name) {
                self.resettle(&[key]);
            }
            return (None, false);
        }
        (Some(binding.key), binding.required)
    }

    /// Ends what is over of a resource. `Err`: it is not to be had; with the name that holds it, if someone does.
    pub(super) fn ripen(&mut self, key: Name) -> Result<(), Option<Name>> {
        let now = self.now();
        if let Some((id, lease)) = self.leases.range((key, 0)..=(key, u64::MAX)).next().filter(|_| !self.is_shared()) {
            if lease.expires.is_none_or(|at| at + SLACK > now) {
                return Err(lease.ask.name);
            }
            let id = *id;
            self.expire(&[id], &mut Vec::new());
        }
        if let Some(until) = self.quarantined.get(key) {
            if until.is_none_or(|until| until > now) {
                return Err(None);
            }
            self.resettle(&[key]);
        }
        Ok(())
    }

    /// Whether a resource can be granted to this request now.
    pub(super) fn is_at_hand(&self, ask: &Ask, key: Name) -> bool {
        let reserved = || self.reserved_for(key) == ask.name && ask.name.is_some();
        self.items.contains_key(key)
            && self.fits(key, &ask.selectors)
            && (self.free.contains_key(key) || reserved() && !self.quarantined.contains_key(key))
            && self.room(key) > 0
    }

    /// Remembers what a name got. `in_the_way`: under which name the resource is held that it had before, if it is.
    pub(super) fn rebind(&mut self, name: Name, key: Name, in_the_way: Option<Name>) {
        let declared = self.bindings.get(name).is_some_and(|binding| binding.required);
        if declared || in_the_way == Some(name) {
            return;
        }
        let ttl = self.settings.binding_ttl;
        let expires = (ttl > 0).then(|| self.now() + ttl);
        self.bindings.insert(name, Binding { key, required: false, ttl, expires });
    }

    pub(super) fn class(&mut self, ask: &Ask) -> (Class, Option<Name>) {
        let (bound, only) = ask.name.map_or((None, false), |name| self.bound(name));
        let class = match ask.name.filter(|_| only) {
            Some(name) => Class::Reserved(name),
            None if ask.selectors.is_empty() => Class::Any,
            None => Class::Selected,
        };
        (class, bound)
    }

    pub(super) fn breathe(&mut self, id: Name) {
        self.alive.insert(id, self.now() + LIFE);
    }
}
