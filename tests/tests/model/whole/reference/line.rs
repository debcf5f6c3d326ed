//! Who waits, in what order, and what is offered to whom.

use super::{Ask, Class, Id, LIFE, Lease, Mode, Name, Reference, Reply, Waiter};

/// How many of the first in line are looked at when something was kept from them until now.
const SERVED: usize = 16;
/// How much of what is free is tried for one waiter.
const TRIED: u64 = 16;
const MIDDLE: u64 = 1_000_000_000_000;
/// How many places one step of priority is worth.
const STEP: u64 = 100;

impl Reference {
    pub(crate) fn in_line(&self) -> Vec<Name> {
        let mut line: Vec<_> = self.line.iter().map(|(id, waiter)| (waiter.turn, *id)).collect();
        line.sort_unstable();
        line.into_iter().map(|(_, id)| id).collect()
    }

    fn is_alive(&self, id: Name) -> bool {
        self.alive.get(id).is_some_and(|until| *until > self.now())
    }

    pub(super) fn drop_waiter(&mut self, id: Name) {
        self.line.remove(id);
        self.served.remove(id);
        self.alive.remove(id);
    }

    /// Forgets those that were not heard of for too long.
    pub(super) fn bury(&mut self) {
        let now = self.now();
        let mut dead: Vec<_> =
            self.alive.iter().filter(|(_, until)| **until <= now).map(|(id, at)| (*at, *id)).collect();
        dead.sort_unstable();
        for (_, id) in dead {
            if self.line.contains_key(id) {
                self.did("a dead waiter is buried");
            }
            self.drop_waiter(id);
        }
    }

    /// Whether a resource would do for a waiter.
    pub(super) fn would_do(&self, id: Name, key: Name) -> bool {
        let waiter = &self.line[id];
        match (&waiter.class, self.reserved_for(key)) {
            (Class::Reserved(name), reserved) => reserved == Some(*name) && self.fits(key, &waiter.ask.selectors),
            (_, Some(_)) => false,
            (Class::Any, None) => true,
            (Class::Selected, None) => self.fits(key, &waiter.ask.selectors),
        }
    }

    fn first_for(&mut self, key: Name) -> Option<Name> {
        let one = loop {
            let line = self.in_line();
            let mut wanting = line.into_iter().filter(|id| self.line[id].offer.is_none() && self.would_do(id, key));
            let first = wanting.find(|id| self.line[id].ask.n == 1);
            match first.filter(|id| !self.is_alive(id)) {
                Some(dead) => {
                    self.did("a dead waiter is passed over");
                    self.drop_waiter(dead);
                }
                None => break first,
            }
        };
        // Of those who want several, only the first counts.
        let gatherer = if self.reserved_for(key).is_none() { self.gatherer() } else { None };
        let gatherer = gatherer.filter(|id| self.would_do(id, key));
        let turn = |id: &Name| (self.line[id].turn, *id);
        let first = [one, gatherer].into_iter().flatten().min_by_key(turn);
        let is_passed_over = |id: &Name| {
            let waiter = &self.line[id];
            let before = first.is_none_or(|first| turn(id) < turn(&first));
            waiter.ask.n > 1 && waiter.offer.is_none() && Some(*id) != gatherer && before && self.would_do(id, key)
        };
        if self.line.keys().any(is_passed_over) {
            self.did("who gathers waits to be the first of those who do");
        }
        first
    }

    /// The first of those who want several: it alone gathers.
    pub(super) fn gatherer(&mut self) -> Option<Name> {
        loop {
            let most = self.most_at_once();
            let several = |id: &Name| self.line[id].offer.is_none() && self.line[id].ask.n > 1;
            let line: Vec<_> = self.in_line().into_iter().filter(several).collect();
            let first = line.iter().position(|id| !self.is_alive(id) || self.line[id].ask.n <= most);
            if first != Some(0) && !line.is_empty() {
                self.did("who wants more than there is does not gather");
            }
            let first = line[first?];
            if self.is_alive(first) {
                return Some(first);
            }
            self.drop_waiter(first);
        }
    }

    /// Offers a resource to the first in line for it. The free ones that were taken along, if someone took it.
    pub(super) fn offer(&mut self, key: Name, reserved: Option<Name>) -> Option<Vec<Name>> {
        let first = self.first_for(key)?;
        let Waiter { ask, priority, .. } = self.line[first].clone();
        let line = self.in_line();
        let passed = |other: &&Name| {
            let (own, other) = (&self.line[first], &self.line[*other]);
            own.priority > other.priority && own.turn < other.turn
        };
        if priority > 0 && line.iter().any(|other| passed(&other)) {
            self.did("a higher priority is served first");
        }
        if reserved.is_some() {
            self.did("what is reserved is offered to its name");
        }
        if ask.n == 1 {
            if !ask.selectors.is_empty() {
                self.did("an offer by selector");
            }
            self.offer_all(first, &[key]);
            return Some(Vec::new());
        }
        // One of each first: what is shared is spread.
        let others = self.look(&ask.selectors, ask.n, 0);
        let (mut chosen, mut taken) = (vec![key], Vec::new());
        let mut rooms: Vec<_> = others.iter().map(|key| self.room(key)).collect();
        let mut own = self.room(key) - 1;
        while (chosen.len() as u64) < ask.n {
            let before = chosen.len();
            for (other, room) in others.iter().zip(&mut rooms) {
                if (chosen.len() as u64) < ask.n && *room > 0 {
                    chosen.push(other);
                    *room -= 1;
                    if !taken.contains(other) {
                        taken.push(*other);
                    }
                }
            }
            if (chosen.len() as u64) < ask.n && own > 0 {
                chosen.push(key);
                own -= 1;
            }
            if chosen.len() == before {
                self.did("who gathers waits for more");
                return None;
            }
        }
        self.did("several are offered at once");
        for other in &taken {
            self.free.remove(other);
        }
        self.offer_all(first, &chosen);
        Some(taken)
    }

    fn offer_all(&mut self, id: Name, keys: &[Name]) {
        let ask = self.line[id].ask.clone();
        let mut offer = Vec::new();
        for key in keys {
            let lease = Lease { granted: None, ask: ask.clone(), waiter: Some(id), expires: Some(self.now()) };
            offer.push(self.hold(key, lease));
        }
        if let Some(waiter) = self.line.get_mut(id) {
            waiter.offer = Some(offer);
        }
        self.woken.push(id);
        self.did("an offer");
    }

    /// Offers what is free to the first in line. How many offers that made.
    pub(super) fn serve_line(&mut self) -> usize {
        let before = self.woken.len();
        if self.settings.suspended {
            return 0;
        }
        for id in self.in_line().into_iter().take(SERVED) {
            let Some(waiter) = self.line.get(id).filter(|waiter| waiter.offer.is_none()).cloned() else { continue };
            match waiter.class {
                Class::Reserved(name) => {
                    if let Some(key) = self.bindings.get(name).map(|binding| binding.key) {
                        self.resettle(&[key]);
                    }
                }
                _ => self.offer_free(id, &waiter.ask),
            }
        }
        self.woken.len() - before
    }

    /// One look of a waiter.
    pub(super) fn poll(&mut self, mode: Mode, id: Name, ask: &Ask, priority: u64) -> Reply {
        if mode == Mode::Leave {
            self.did(if self.line.contains_key(id) { "a waiter leaves" } else { "leave of who is not in line" });
            self.leave(id);
            return self.answer(Reply::Nothing, 0);
        }
        // A pool that is being filled again is waited for by who is in line already.
        let is_known = self.line.contains_key(id) || self.served.contains_key(id);
        let later =
            |refusal: &Reply| matches!(refusal, Reply::List(parts) if parts.get(1) == Some(&Reply::text("count")));
        let refusal = match self.time_to_live(ask.ttl) {
            Err(refusal) => Err(refusal),
            Ok(ttl) => self.refusal(ask).filter(|refusal| !(is_known && later(refusal))).map_or(Ok(ttl), Err),
        };
        let ttl = match refusal {
            Err(refusal) => {
                if self.line.contains_key(id) {
                    self.did("a waiter is refused later");
                }
                self.leave(id);
                return self.answer(refusal, 0);
            }
            Ok(ttl) => ttl,
        };
        if self.list(id).is_some() {
            self.breathe(id);
        }
        if let Some(result) = self.claimed(id, ttl) {
            return self.answer(result, 0);
        }
        if mode == Mode::Last {
            self.did("a waiter's time is over");
            self.leave(id);
            return self.answer(Reply::Nothing, 0);
        }
        self.breathe(id);
        let (class, bound) = self.class(ask);
        if let Some(waiter) = self.line.get_mut(id) {
            if waiter.class != class {
                waiter.class = class.clone();
                self.did("a waiter's binding changed");
            }
        } else {
            self.arrivals += 1;
            let turn = MIDDLE + self.arrivals - priority * STEP;
            let waiter = Waiter { turn, ask: ask.clone(), priority, class: class.clone(), offer: None };
            self.line.insert(id, waiter);
            self.did("a waiter comes");
            if self.leases.values().any(|lease| lease.granted.is_none() && lease.waiter == Some(id)) {
                self.did("who was thought dead comes back before its offer lapses");
            }
        }
        self.bury();
        if !self.settings.suspended {
            self.look_around(id, ask, bound, &class);
            if self.is_waiting(id) {
                let reclaimed = self.reclaim(SERVED as u64);
                if reclaimed.any() && self.is_waiting(id) {
                    self.look_around(id, ask, bound, &class);
                }
            }
        }
        if let Some(result) = self.claimed(id, ttl) {
            return self.answer(result, 0);
        }
        let place = self.in_line().iter().position(|other| *other == id).unwrap_or(0);
        self.did(if place > 0 { "a waiter waits behind others" } else { "a waiter waits" });
        self.answer(Reply::Nothing, place)
    }

    fn is_waiting(&self, id: Name) -> bool {
        self.line.get(id).is_none_or(|waiter| waiter.offer.is_none())
    }

    fn look_around(&mut self, id: Name, ask: &Ask, bound: Option<Name>, class: &Class) {
        if let Some(key) = bound {
            let ripe = self.ripen(key);
            if !self.is_waiting(id) {
                return;
            }
            if ripe.is_ok() && self.is_at_hand(ask, key) {
                self.resettle(&[key]);
            }
        }
        if matches!(class, Class::Reserved(_)) || !self.is_waiting(id) {
            return;
        }
        self.offer_free(id, ask);
    }

    /// Offers what is free and would do for a waiter, until it has been offered something.
    fn offer_free(&mut self, id: Name, ask: &Ask) {
        let tried = if ask.n > 1 { 1 } else { TRIED };
        self.gatherer();
        let mut gathers = false;
        for (i, key) in self.look(&ask.selectors, tried, 0).into_iter().enumerate() {
            if !self.is_waiting(id) {
                return;
            }
            let Some(first) = self.first_for(key) else { continue };
            let several = self.line[first].ask.n > 1;
            if several && gathers {
                continue;
            }
            gathers = several;
            self.resettle(&[key]);
            if i > 0 && !self.is_waiting(id) {
                self.did("who gathers is passed by who wants what comes later");
            }
        }
    }

    fn answer(&self, result: Reply, place: usize) -> Reply {
        Reply::List(vec![
            Reply::text("ok"),
            result,
            Reply::text("life"),
            Reply::text(self.now()),
            Reply::text(u8::from(self.is_shared())),
            Reply::text(place),
        ])
    }

    /// What it was offered or granted.
    fn list(&self, id: Name) -> Option<Vec<Id>> {
        let offered = self.line.get(id).and_then(|waiter| waiter.offer.clone());
        offered.or_else(|| self.served.get(id).map(|(_, list)| list.clone()))
    }

    fn give_back(&mut self, list: &[Id]) {
        let ids: Vec<_> = list.iter().filter(|id| self.leases.contains_key(id)).copied().collect();
        for id in &ids {
            if self.leases[id].granted.is_none() {
                self.count_granted(false);
                self.did("an offer is given back");
            } else {
                self.did("a grant is given back");
            }
        }
        self.release(&ids);
    }

    fn leave(&mut self, id: Name) {
        let was_there = self.line.contains_key(id);
        let gathered = was_there && self.gathers() || self.served.get(id).is_some_and(|(waiter, _)| waiter.ask.n > 1);
        let list = self.list(id);
        self.drop_waiter(id);
        self.give_back(&list.unwrap_or_default());
        if gathered && self.serve_line() > 0 && was_there {
            self.did("who leaves lets others be served");
        }
    }

    /// Takes what was offered, or says again what was taken. `None`: it waits on.
    fn claimed(&mut self, id: Name, ttl: u64) -> Option<Reply> {
        let list = self.list(id)?;
        let in_line = self.line.contains_key(id);
        if let Some(result) = self.claim(id, &list, ttl) {
            self.alive.insert(id, self.now() + 3 * LIFE);
            if self.gathers() && self.serve_line() > 0 {
                self.did("who is served lets others be served");
            }
            return Some(result);
        }
        if !in_line {
            self.drop_waiter(id);
            self.give_back(&list);
            self.did("what was granted to a waiter is lost");
            return Some(Reply::List(vec![Reply::Nothing, Reply::text("lost")]));
        }
        if let Some(waiter) = self.line.get_mut(id) {
            waiter.offer = None;
        }
        self.did("part of an offer is gone");
        self.give_back(&list);
        None
    }

    fn claim(&mut self, id: Name, list: &[Id], ttl: u64) -> Option<Reply> {
        let now = self.now();
        for grant in list {
            let lease = self.leases.get(grant).filter(|_| self.items.contains_key(grant.0))?;
            if lease.granted.is_none() && self.is_marked(grant.0) {
                self.did("what was offered is quarantined meanwhile");
                return None;
            }
            if lease.granted.is_some() && lease.expires.is_some_and(|at| at <= now) {
                return None;
            }
        }
        self.lengthen(ttl);
        for grant in list {
            if let Some(lease) = self.leases.get_mut(grant) {
                lease.granted = lease.granted.or(Some(now));
                lease.waiter = None;
                // Never sooner than it was: what is asked late must not cut short what has been renewed since.
                let expires = lease.expires.map(|at| at.max(now + ttl));
                lease.expires = expires.filter(|_| lease.ask.session.is_none());
            }
        }
        let told = self.told(list, ttl);
        let Some(waiter) = self.line.remove(id) else {
            self.did("a waiter asks again for what it was granted");
            return Some(told);
        };
        self.did("a claim");
        self.did(if list.len() > 1 { "a claim of several" } else { "a claim of one" });
        self.keep(list);
        if let Some(name) = waiter.ask.name {
            let (bound, _) = self.bound(name);
            let way = bound.filter(|key| !self.is_shared() && *key != list[0].0);
            let held = way.and_then(|key| self.leases.range((key, 0)..=(key, u64::MAX)).next());
            let in_the_way = held.and_then(|(_, lease)| lease.ask.name);
            self.rebind(name, list[0].0, in_the_way);
        }
        self.served.insert(id, (waiter, list.to_vec()));
        Some(told)
    }
}
