//! The reference: a pool on plain maps, exclusive or shared, with those who wait, their sessions and what is declared for
//! a time. It is written from what is promised; it must not know Redis, nor how the library keeps any of this.

mod declared;
mod grant;
mod line;
mod place;
mod view;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::view::{facts_of, holder};
use super::step::{Ask, INDEXES, LABELS, Mode, Name, Order, Reply, SELECTORS, Settings, Step};

/// The clock stands here (µs) when a sequence begins: not at a whole millisecond.
const START_US: u64 = 1_800_000_000_000_123;
/// A lease is reclaimed this much (ms) after its expiry, an offer that nobody claims after it was made.
pub(crate) const SLACK: u64 = 2000;
/// A waiter is thought dead this long (ms) after it was last heard of.
pub(crate) const LIFE: u64 = 5000;
/// A permanent grant begins as a claim of this length (ms).
const CLAIM: u64 = 10_000;
/// For how long (ms) a session that is over is remembered.
const DEAD_FOR: u64 = 3_600_000;
/// How many grants the test keeps in its hands.
const KEPT: usize = 8;

/// A moment in ms; `None`: never.
pub(crate) type End = Option<u64>;
/// One lease: its resource and its token.
pub(crate) type Id = (Name, u64);

#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) priority: u16,
    pub(crate) position: u64,
    pub(crate) labels: usize,
    pub(crate) origins: BTreeSet<Name>,
}

#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// `None`: offered, and not claimed yet.
    pub(crate) granted: End,
    pub(crate) ask: Ask,
    /// Whom it is offered to.
    pub(crate) waiter: Option<Name>,
    pub(crate) expires: End,
}

/// What would do for a waiter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Class {
    Any,
    Selected,
    /// Only what is reserved for this name.
    Reserved(Name),
}

#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    pub(crate) turn: u64,
    pub(crate) ask: Ask,
    pub(crate) priority: u64,
    class: Class,
    pub(crate) offer: Option<Vec<Id>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Binding {
    pub(crate) key: Name,
    pub(crate) required: bool,
    ttl: u64,
    pub(crate) expires: End,
}

#[derive(Debug, Clone, Default)]
struct Counters {
    granted: u64,
    expired: u64,
    revoked: u64,
    quarantined: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) now_us: u64,
    pub(crate) settings: Settings,
    pub(crate) items: BTreeMap<Name, Item>,
    pub(crate) leases: BTreeMap<Id, Lease>,
    /// Resource → its turn.
    pub(crate) free: BTreeMap<Name, u64>,
    pub(crate) quarantined: BTreeMap<Name, End>,
    /// Cause → until.
    pub(crate) marks: BTreeMap<Name, BTreeMap<Name, End>>,
    pub(crate) bindings: BTreeMap<Name, Binding>,
    /// Who has a place in line.
    pub(crate) line: BTreeMap<Name, Waiter>,
    /// Who was granted what it waited for, as long as it may ask again.
    pub(crate) served: BTreeMap<Name, (Waiter, Vec<Id>)>,
    /// Who of both is heard of, and until when it is thought alive.
    pub(crate) alive: BTreeMap<Name, u64>,
    /// Until when; negative once the leases of one that is over have ended.
    pub(crate) sessions: BTreeMap<Name, i64>,
    /// (origin, resource) → when that origin lets go of it.
    pub(crate) missing: BTreeMap<(Name, Name), u64>,
    /// What left a shared pool while it was held.
    pub(crate) draining: BTreeSet<Name>,
    next_position: u64,
    last_turn: u64,
    last: u64,
    longest: u64,
    permanent: bool,
    arrivals: u64,
    counters: Counters,
    /// What the test was granted, the last one last.
    pub(crate) grants: Vec<Id>,
    /// Who was told to look, since the step began.
    pub(crate) woken: Vec<Name>,
    /// What the last step did, beyond returning.
    pub(crate) deeds: Vec<&'static str>,
    /// What the real pool granted to each request of this step, where that is left to chance.
    chosen: Vec<Vec<Name>>,
}

impl Reference {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            now_us: START_US,
            settings,
            items: [].into(),
            leases: [].into(),
            free: [].into(),
            quarantined: [].into(),
            marks: [].into(),
            bindings: [].into(),
            line: [].into(),
            served: [].into(),
            alive: [].into(),
            sessions: [].into(),
            missing: [].into(),
            draining: [].into(),
            next_position: 0,
            last_turn: 0,
            last: 0,
            longest: 0,
            permanent: false,
            arrivals: 0,
            counters: Counters::default(),
            grants: Vec::new(),
            woken: Vec::new(),
            deeds: Vec::new(),
            chosen: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now_us / 1000
    }

    fn did(&mut self, deed: &'static str) {
        self.deeds.push(deed);
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.settings.shared.is_some()
    }

    /// The grant that a step names.
    pub(crate) fn grant(&self, back: usize) -> Option<Id> {
        self.grants.len().checked_sub(back + 1).map(|at| self.grants[at])
    }

    fn keep(&mut self, ids: &[Id]) {
        self.grants.extend(ids);
        let surplus = self.grants.len().saturating_sub(KEPT);
        self.grants.drain(..surplus);
    }

    /// How many hold a resource.
    pub(crate) fn holders(&self, key: Name) -> u64 {
        self.leases.range((key, 0)..=(key, u64::MAX)).count() as u64
    }

    /// How many more may.
    pub(crate) fn room(&self, key: Name) -> u64 {
        match self.settings.shared {
            None => 1_u64.saturating_sub(self.holders(key)),
            Some(0) => u64::MAX,
            Some(most) => most.saturating_sub(self.holders(key)),
        }
    }

    pub(crate) fn reserved_for(&self, key: Name) -> Option<Name> {
        self.bindings.iter().find(|(_, binding)| binding.required && binding.key == key).map(|(name, _)| *name)
    }

    /// The order in which what is free is granted.
    pub(crate) fn rank(&self, key: Name) -> u64 {
        const BAND: u64 = 1 << 42;
        let item = &self.items[key];
        let turn = if self.settings.order == Order::Sequential { item.position } else { self.free[key] };
        (1000 - u64::from(item.priority)) * BAND + turn
    }

    fn in_order(&self) -> Vec<Name> {
        let mut free: Vec<_> = self.free.keys().map(|key| (self.rank(key), *key)).collect();
        free.sort_unstable();
        free.into_iter().map(|(_, key)| key).collect()
    }

    /// Whether the pool has the index that a selector needs.
    pub(crate) fn has_index(&self, selector: usize) -> bool {
        let labels: Vec<_> = SELECTORS[selector].iter().map(|(label, _)| *label).collect();
        INDEXES[self.settings.indexes].contains(&&labels[..])
    }

    fn matches(&self, key: Name, selector: usize) -> bool {
        let labels = LABELS[self.items[key].labels];
        let has = |(label, values): &(Name, &[Name])| {
            labels.iter().any(|(own, value)| own == label && values.contains(value))
        };
        self.has_index(selector) && SELECTORS[selector].iter().all(has)
    }

    /// Whether a declared resource is among what is asked for.
    pub(crate) fn fits(&self, key: Name, selectors: &[usize]) -> bool {
        selectors.is_empty() || selectors.iter().any(|selector| self.matches(key, *selector))
    }

    /// The first free ones in the pool's order that fit. `request`: of this step, where chance decides.
    fn look(&self, selectors: &[usize], count: u64, request: usize) -> Vec<Name> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let free = self.in_order();
        let mut found: Vec<Name> = Vec::new();
        if selectors.is_empty() && self.settings.order == Order::Random {
            let chosen = self.chosen.get(request).map_or(&[][..], Vec::as_slice);
            while found.len() < count {
                let left: Vec<_> = free.iter().copied().filter(|key| !found.contains(key)).collect();
                let Some(highest) = left.iter().map(|key| self.items[key].priority).max() else { break };
                let best = |key: &Name| left.contains(key) && self.items[key].priority == highest;
                let Some(next) = chosen.iter().chain(&left).copied().find(best) else { break };
                found.push(next);
            }
        } else if selectors.is_empty() {
            found = free;
        } else {
            for selector in selectors {
                found.extend(free.iter().filter(|key| self.matches(key, *selector)));
            }
            let mut seen = BTreeSet::new();
            found.retain(|key| seen.insert(*key));
        }
        found.truncate(count);
        found
    }

    /// Does a step. `chosen`: what the real pool granted to each request.
    pub(crate) fn apply(&mut self, step: &Step, chosen: Vec<Vec<Name>>) -> Reply {
        self.now_us += step.takes();
        self.deeds.clear();
        self.woken.clear();
        self.chosen = chosen;
        match step {
            Step::Malloc { asks } => self.malloc(asks),
            Step::Free { back } => self.free_all(back),
            Step::Renew { back, ttl } => self.renew(*back, *ttl),
            Step::Revoke { keys } => self.revoke(keys),
            Step::Poll { mode, id, ask, priority } => self.poll(*mode, id, ask, *priority),
            Step::Upsert { origin, ttl, decls } => self.upsert(origin, *ttl, decls),
            Step::Remove { origin, keys, revoke, later } => self.remove(origin, keys, *revoke, *later),
            Step::Bind { name, key, required, ttl } => self.bind(name, key, *required, *ttl),
            Step::Unbind { name } => self.unbind(name),
            Step::Quarantine { key, cause, duration } => self.quarantine(key, cause, *duration),
            Step::Unquarantine { key, cause } => self.unquarantine(key, cause),
            Step::Suspend { suspended } => self.suspend(*suspended),
            Step::Configure { settings } => self.configure(settings),
            Step::Gc { count } => self.gc(*count),
            Step::Beat { session, ttl, begin } => self.beat(session, *ttl, *begin),
            Step::Pass { .. } => Reply::Nothing,
        }
    }

    /// Whether a step makes sense here: a waiter asks for the same each time, and chance is not asked to order a line.
    pub(crate) fn allows(&self, step: &Step) -> bool {
        match step {
            Step::Poll { id, ask, priority, mode } => {
                let before = self.line.get(id).or_else(|| self.served.get(id).map(|(waiter, _)| waiter));
                (self.settings.order != Order::Random)
                    && before.is_none_or(|waiter| (&waiter.ask, waiter.priority) == (ask, *priority))
                    && (before.is_some() || *mode == Mode::Wait)
            }
            Step::Free { back } => back.iter().all(|back| self.grant(*back).is_some()),
            Step::Renew { back, .. } => self.grant(*back).is_some_and(|id| {
                // Who holds a session's lease lets its session be heard of.
                self.leases.get(&id).is_none_or(|lease| lease.ask.session.is_none())
            }),
            Step::Configure { settings } => {
                settings.shared.is_some() == self.is_shared()
                    && (settings.order != Order::Random || self.alive.is_empty())
                    // Both at once: those in line are served before everything enters anew.
                    && (!self.settings.suspended || settings.suspended || settings.entry() == self.settings.entry())
            }
            _ => true,
        }
    }

    fn suspend(&mut self, suspended: bool) -> Reply {
        let resumed = self.settings.suspended && !suspended;
        self.settings.suspended = suspended;
        if resumed {
            self.did("resume");
            if self.serve_line() > 0 {
                self.did("resume serves the line");
            }
        }
        Reply::Nothing
    }

    fn configure(&mut self, settings: &Settings) -> Reply {
        let before = std::mem::replace(&mut self.settings, settings.clone());
        if before == *settings {
            return Reply::Nothing;
        }
        if before.suspended && !settings.suspended {
            self.did("configure resumes");
            if self.serve_line() > 0 {
                self.did("configure resumes and serves the line");
            }
        }
        if before.entry() != settings.entry() {
            self.did(match () {
                () if before.order != settings.order => "configure changes the order",
                () if before.shared != settings.shared => "configure changes maxHolders",
                () => "configure changes the indexes",
            });
            let all: Vec<_> = self.items.keys().copied().collect();
            self.resettle(&all);
        }
        Reply::Nothing
    }

    fn gc(&mut self, count: u64) -> Reply {
        let done = self.reclaim(count);
        let room = count - (done.expired.len() + done.due.len() + done.unbound.len()) as u64;
        let mut over: Vec<_> = self.missing.iter().map(|((origin, key), at)| (*at, *origin, *key)).collect();
        over.retain(|(at, ..)| *at <= self.now());
        over.sort_unstable();
        over.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let more = done.more || over.len() as u64 == room;
        let mut left = Vec::new();
        for (_, origin, key) in over {
            let there = self.items.contains_key(key);
            self.let_go(origin, &[key], false);
            if there && !self.items.contains_key(key) {
                self.did("gc lets go of what was not declared again");
                left.push(key);
            } else if there {
                self.did("gc lets one origin go");
            }
        }
        if !self.alive.is_empty() {
            self.bury();
            self.serve_line();
        }
        let forgotten = |until: i64| until < 0 && until.unsigned_abs() + DEAD_FOR < self.now();
        let before = self.sessions.len();
        let kept: BTreeMap<_, _> =
            self.sessions.iter().filter(|(_, until)| !forgotten(**until)).map(|(k, v)| (*k, *v)).collect();
        self.sessions = kept;
        if self.sessions.len() < before {
            self.did("gc forgets a session");
        }
        if more {
            self.did("gc leaves the rest");
        }
        left.sort_unstable();
        let texts = |names: &[Name]| Reply::List(names.iter().map(Reply::text).collect());
        let expired = done.expired.iter().flat_map(|(key, record)| [Reply::text(key), Reply::text(record)]).collect();
        Reply::List(vec![
            Reply::text("ok"),
            Reply::List(expired),
            texts(&done.due),
            texts(&done.unbound),
            Reply::text(u8::from(more)),
            texts(&left),
        ])
    }

    fn beat(&mut self, session: Name, ttl: u64, begin: bool) -> Reply {
        let now = self.now().cast_signed();
        let before = self.sessions.get(session).copied();
        let answer = |alive: bool, leases: usize, until: i64| {
            let parts = [Reply::text("ok"), Reply::text(u8::from(alive)), Reply::text(leases)];
            Reply::List(parts.into_iter().chain([Reply::text(before.unwrap_or(0)), Reply::text(until)]).collect())
        };
        let leases = self.of_session(session).count();
        if ttl == 0 {
            if before.is_some_and(|until| until > 0) {
                self.did("a session ends");
                self.sessions.insert(session, now - SLACK.cast_signed());
            }
            self.reclaim(200);
            return answer(false, self.of_session(session).count(), before.unwrap_or(0));
        }
        match before {
            Some(until) if until <= now => {
                self.did("a heartbeat comes too late");
                return answer(false, leases, until);
            }
            None if !begin => return answer(false, leases, 0),
            None if self.settings.max_ttl > 0 && ttl > self.settings.max_ttl => {
                self.did("a session that would outlast the maximum is refused");
                return Reply::List(vec![Reply::text("ttl"), Reply::text(self.settings.max_ttl)]);
            }
            None => self.did("a session begins"),
            Some(_) => self.did("a heartbeat"),
        }
        self.lengthen(ttl);
        let until = before.unwrap_or(0).max(now + ttl.cast_signed());
        self.sessions.insert(session, until);
        answer(true, leases, until)
    }

    fn of_session(&self, session: Name) -> impl Iterator<Item = Id> {
        let its = move |(_, lease): &(&Id, &Lease)| lease.ask.session == Some(session) && lease.granted.is_some();
        self.leases.iter().filter(its).map(|(id, _)| *id)
    }

    fn lengthen(&mut self, ttl: u64) {
        self.longest = self.longest.max(ttl);
    }

    /// What must hold after every gc of a pool that grants: what is free waits for nobody who could have it.
    pub(crate) fn withheld(&self) -> Option<String> {
        if self.settings.suspended {
            return None;
        }
        let line = self.in_line();
        for key in self.free.keys() {
            let first = line.iter().find(|id| self.line[**id].offer.is_none() && self.would_do(id, key));
            let Some(first) = first else { continue };
            let waiter = &self.line[first];
            let enough = || {
                let found = self.look(&waiter.ask.selectors, waiter.ask.n, 0);
                found.iter().map(|key| self.room(key)).fold(0, u64::saturating_add) >= waiter.ask.n
            };
            if waiter.ask.n == 1 || line.first() == Some(first) && enough() {
                return Some(format!("{key} is free, and {first} waits for it"));
            }
        }
        None
    }
}
