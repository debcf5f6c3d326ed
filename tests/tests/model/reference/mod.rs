//! The reference: a pool and its clients on plain maps, one method for each step. It is written from what is promised
//! in the documentation; it must not know Redis.

mod bindings;
mod clients;
mod grants;
mod items;
mod life;
pub(crate) mod pool;
pub(crate) use self::{clients::Handle, items::PEAK_LASTS};

use std::collections::BTreeMap;

use redis_allocator::{Longest, Origin, Removal, SyncOutcome, Ttl};

use self::{
    grants::Ask,
    pool::{Binding, Pool, is_over, millis},
};
use crate::{
    step::{Decl, KEYS, Name, Outcome, Step},
    view::View,
};

/// The clock stands here (µs) when a sequence begins: not at a whole millisecond.
pub(crate) const START_US: u64 = 1_800_000_000_000_123;
/// How many grants of one resource the test keeps in its hands.
pub(crate) const KEPT: usize = 3;

#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) now_us: u64,
    pub(crate) pool: Option<Pool>,
    /// Per resource, the oldest first.
    pub(crate) handles: BTreeMap<Name, Vec<Handle>>,
    /// Tokens of what was granted by key alone.
    pub(crate) key_grants: BTreeMap<Name, u64>,
    /// The pool that was lost last, as an agent would remember it.
    pub(crate) lost: Option<(usize, Longest)>,
    pub(crate) saved: Option<Box<Pool>>,
    /// How many times the pool was created.
    lives: usize,
    registered: Option<usize>,
    /// What the last step did, beyond returning.
    pub(crate) deeds: Vec<&'static str>,
}

impl Reference {
    pub(crate) fn new() -> Self {
        Self {
            now_us: START_US,
            pool: None,
            handles: [].into(),
            key_grants: [].into(),
            lost: None,
            saved: None,
            lives: 0,
            registered: None,
            deeds: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now_us / 1000
    }

    /// The place in `handles` of a grant that a step names.
    pub(crate) fn handle(&self, key: Name, back: usize) -> Option<usize> {
        self.handles.get(key)?.len().checked_sub(back + 1)
    }

    pub(crate) fn view(&self) -> View {
        View { listed: self.registered.is_some(), pool: self.pool.as_ref().map(Pool::view) }
    }

    /// Does a step. `seen`: the resources that the real pool granted, in order.
    pub(crate) fn apply(&mut self, step: &Step, seen: &[Name]) -> Outcome {
        self.now_us += u64::try_from(step.takes().as_micros()).unwrap_or(u64::MAX);
        self.deeds.clear();
        if let Some(pool) = &mut self.pool {
            pool.now_us = self.now_us;
        }
        let outcome = self.act(step, seen);
        if let Some(pool) = &mut self.pool {
            self.deeds.append(&mut pool.deeds);
        }
        outcome
    }

    fn act(&mut self, step: &Step, seen: &[Name]) -> Outcome {
        match step {
            Step::Renew { key, back } => return self.renew(key, *back, Ttl::PoolDefault),
            Step::RenewFor { key, back, ttl } => return self.renew(key, *back, *ttl),
            Step::Free { key, back } => return self.free(key, *back),
            Step::Configure { settings, manager, memory } => return self.configure(settings, *manager, *memory),
            Step::Retire { removal } => return self.retire(*removal),
            Step::FlushAll => {
                self.flush();
                return Outcome::Done;
            }
            Step::Pass { .. } => {
                self.deeds.push("time passes");
                return Outcome::Done;
            }
            Step::Rollback => {
                if let Some(saved) = self.saved.clone() {
                    self.pool = Some(Pool { now_us: self.now_us, ..*saved });
                    self.deeds.push("rollback");
                }
                return Outcome::Done;
            }
            _ => {}
        }
        if self.pool.is_none() {
            self.deeds.push("a call to no pool is refused");
            return Outcome::Refused("unknown_pool", String::new());
        }
        match step {
            Step::Malloc { owner, ttl, bind, n } => {
                return self.malloc(Ask { owner, ttl: *ttl, bind: *bind, n: *n }, seen);
            }
            Step::MallocKey { ttl } => return self.malloc_key(*ttl, seen),
            Step::FreeKeys { keys } => return self.free_keys(keys),
            Step::Save => {
                self.saved = self.pool.clone().map(Box::new);
                self.deeds.push("save");
                return Outcome::Done;
            }
            _ => {}
        }
        self.pool.as_mut().map_or(Outcome::Skipped, |pool| pool.act(step))
    }
}

/// Who leases are granted to that were asked for by key alone.
pub(crate) const CLIENT: Name = "tester";

impl Pool {
    /// Steps that concern nothing but the pool.
    fn act(&mut self, step: &Step) -> Outcome {
        match step {
            Step::ForceFree { key } => {
                let ended = self.revoke(key);
                if ended {
                    self.did("force_free");
                }
                Outcome::Flag(ended)
            }
            Step::Extend { items } => Outcome::Count(self.extend(items)),
            Step::Shrink { keys } => Outcome::Count(self.shrink(keys)),
            Step::Assign { items } => {
                let outcome = self.sync(&Origin::Api, items, Removal::Drain, 100);
                if matches!(outcome, SyncOutcome::Applied { added, updated, removed, .. } if added + updated + removed > 0)
                {
                    self.did("assign");
                }
                Outcome::Synced(outcome)
            }
            Step::Clear => {
                let outcome = self.sync(&Origin::Api, &[], Removal::Drain, 100);
                let SyncOutcome::Applied { removed, .. } = outcome else { return Outcome::Count(0) };
                if removed > 0 {
                    self.did("clear");
                }
                Outcome::Count(removed)
            }
            Step::Sync { origin, items, removal, percent } => {
                Outcome::Synced(self.sync(origin, items, *removal, *percent))
            }
            Step::RacingSyncs { origin, first, second } => self.race(origin, first, second),
            Step::Bind { name, resource, required, declared, ttl } => {
                self.bind(name, resource, *required, *declared, ttl.map_or(0, millis))
            }
            Step::Unbind { name } => Outcome::Flag(self.unbind(name)),
            Step::Quarantine { key, cause, duration, reason } => {
                let until = duration.map(|duration| self.now() + millis(duration));
                self.quarantine(key, *cause, until, reason)
            }
            Step::Unquarantine { key, cause } => Outcome::Flag(self.unquarantine(key, *cause)),
            Step::EndRecovery => Outcome::Count(self.end_recovery()),
            Step::Suspend { suspended } => {
                if self.settings.suspended != *suspended {
                    self.did(if *suspended { "suspend" } else { "resume" });
                }
                self.settings.suspended = *suspended;
                Outcome::Done
            }
            Step::Takeover { manager } => {
                let former = self.manager.replace(manager);
                self.did("takeover");
                Outcome::Former(former.map(str::to_owned))
            }
            Step::Abandon => {
                if self.manager.take().is_some() {
                    self.did("abandon");
                }
                Outcome::Done
            }
            Step::Gc { count } => self.gc(*count as usize),
            Step::Repair => {
                self.did("repair finds nothing");
                Outcome::Count(0)
            }
            Step::Look { key, name } => self.look(key, name),
            _ => Outcome::Skipped,
        }
    }

    /// Of two synchronisations that begin together, the one that begins later wins.
    fn race(&mut self, origin: &Origin, first: &[Decl], second: &[Decl]) -> Outcome {
        let overtaken = if let Some(outcome) = self.begin_sync(origin, first, 100) {
            Outcome::Synced(outcome)
        } else {
            self.did("sync is superseded");
            Outcome::Refused("superseded", origin.to_string())
        };
        let winner = self.sync(origin, second, Removal::Drain, 100);
        Outcome::Both(Box::new(overtaken), Box::new(Outcome::Synced(winner)))
    }

    fn gc(&mut self, most: usize) -> Outcome {
        let done = self.reclaim(most);
        let deeds = [
            (!done.expired.is_empty(), "gc ends leases"),
            (!done.recovered.is_empty(), "gc ends quarantines"),
            (!done.unbound.is_empty(), "gc ends bindings"),
            (done.more, "gc leaves the rest"),
        ];
        for (_, deed) in deeds.into_iter().filter(|(did, _)| *did) {
            self.did(deed);
        }
        Outcome::Reclaimed {
            expired: done.expired.into_iter().map(|(key, owner)| (key.to_owned(), owner.to_owned())).collect(),
            recovered: done.recovered.into_iter().map(str::to_owned).collect(),
            unbound: done.unbound.into_iter().map(str::to_owned).collect(),
            more: done.more,
        }
    }

    fn look(&mut self, key: Name, name: Name) -> Outcome {
        self.did("look");
        let in_force = |binding: &&Binding| !binding.ended && !is_over(binding.expires, self.now());
        let mut keys: Vec<_> = self.items.keys().map(ToString::to_string).collect();
        keys.sort_unstable();
        let to_key = |(_, binding): &(&Name, &Binding)| binding.resource == key && !binding.ended;
        let mut bindings_of: Vec<_> = self.bindings.iter().filter(to_key).map(|(name, _)| (*name).to_owned()).collect();
        bindings_of.sort_unstable();
        Outcome::Looked {
            keys,
            declared: self.items.contains_key(key),
            known: self.items.contains_key(key) || self.leases.contains_key(key),
            len: self.items.len() as u64,
            bindings_of,
            bound_to: self.bindings.get(name).filter(in_force).map(|binding| binding.resource.to_owned()),
        }
    }
}

/// Where `KEYS` has what the real pool named.
pub(crate) fn key_of(text: &str) -> Option<Name> {
    KEYS.into_iter().find(|key| *key == text)
}
