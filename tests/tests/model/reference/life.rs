//! A pool's life: created, configured, lost, recovered, brought back from an old snapshot, taken down.

use redis_allocator::{Cause, Counters, Longest, PoolSettings, Removal};

use super::{
    Reference,
    pool::{Pool, RECOVERY, SLACK, millis},
};
use crate::step::{Memory, Name, Outcome};

impl Reference {
    fn known(&self, memory: Memory) -> Option<(usize, Longest)> {
        match memory {
            Memory::Nothing => None,
            Memory::LastLost => self.lost,
            Memory::Present => self.pool.as_ref().map(|pool| (pool.life, pool.longest)),
        }
    }

    pub(super) fn configure(&mut self, settings: &PoolSettings, manager: Option<Name>, memory: Memory) -> Outcome {
        let known = self.known(memory);
        let created = self.pool.is_none();
        if created {
            self.pool = Some(Pool::new(self.now_us, self.lives, settings.clone()));
            self.lives += 1;
        }
        let Some(pool) = &mut self.pool else { return Outcome::Skipped };
        if let (Some(found), Some(manager)) = (pool.manager, manager)
            && found != manager
        {
            pool.did("configure by another manager is refused");
            // It is listed even so, under a life that nobody has, if it was not.
            self.registered = self.registered.or(Some(usize::MAX));
            return Outcome::Refused("manager_conflict", found.to_owned());
        }
        let mut changed = created || (manager.is_some() && pool.manager != manager);
        pool.manager = manager.or(pool.manager);

        let lost = known.filter(|(life, _)| created || (pool.life != *life && pool.recovered_from != Some(*life)));
        let mut recovered = false;
        if let Some((life, longest)) = lost {
            changed = true;
            pool.longest = pool.longest.max(longest);
            pool.recovered_from = Some(life);
            // Nobody held anything if nothing was ever granted.
            recovered = longest != Longest::For(std::time::Duration::ZERO);
            if recovered {
                let until = match longest {
                    Longest::For(ttl) => Some(pool.now() + millis(ttl) + SLACK),
                    Longest::Permanent => None,
                };
                // Never shorter than a hold that is in force already.
                pool.hold = Some(match pool.hold {
                    Some(before) => before.zip(until).map(|(before, until)| before.max(until)),
                    None => until,
                });
            }
        }
        let reorder = pool.settings.order != settings.order;
        if created {
            pool.did("configure creates");
        } else {
            let old = pool.settings.clone();
            let deeds = [
                (old.order != settings.order, "configure changes order"),
                (old.default_ttl != settings.default_ttl, "configure changes default_ttl"),
                (old.max_ttl != settings.max_ttl, "configure changes max_ttl"),
                (old.cooldown != settings.cooldown, "configure changes cooldown"),
                (old.binding_ttl != settings.binding_ttl, "configure changes binding_ttl"),
                (old.suspended != settings.suspended, "configure changes suspended"),
                (recovered && !pool.items.is_empty(), "configure holds back what is there"),
            ];
            changed |= old != *settings;
            for (_, deed) in deeds.into_iter().filter(|(did, _)| *did) {
                pool.did(deed);
            }
            if !changed {
                pool.did("configure finds nothing changed");
            }
        }
        if recovered {
            pool.did("configure notices a loss");
        }
        pool.settings = settings.clone();
        let keys: Vec<Name> = pool.items.keys().copied().collect();
        if let (Some(until), true) = (pool.hold, recovered) {
            for key in &keys {
                pool.mark(key, Cause::Recovery, until, RECOVERY);
                pool.resettle(key);
            }
        }
        if reorder {
            for key in keys {
                pool.resettle(key);
            }
        }
        self.registered = Some(pool.life);
        Outcome::Configured { created, changed, recovered, life: pool.life, longest: pool.longest }
    }

    pub(super) fn retire(&mut self, removal: Removal) -> Outcome {
        let Some(pool) = &mut self.pool else { return Outcome::Refused("unknown_pool", String::new()) };
        pool.settings.suspended = true;
        let held = pool.leases.len();
        pool.remove_all(removal);
        if removal == Removal::Revoke {
            let leased: Vec<Name> = pool.leases.keys().copied().collect();
            for key in leased {
                pool.revoke(key);
            }
        }
        let leases_left = pool.leases.len() as u64;
        let deleted = leases_left == 0;
        pool.did(match (removal, leases_left) {
            (Removal::Revoke, _) if held > 0 => "retire revokes",
            (_, 0) => "retire deletes",
            _ => "retire drains",
        });
        if deleted {
            if self.registered == Some(pool.life) {
                self.registered = None;
            }
            self.lose();
        }
        Outcome::Retired { leases_left, deleted }
    }

    /// The pool is gone; what an agent remembers of it stays.
    pub(super) fn lose(&mut self) {
        if let Some(pool) = self.pool.take() {
            self.deeds.extend(&pool.deeds);
            self.lost = Some((pool.life, pool.longest));
        }
    }

    pub(super) fn flush(&mut self) {
        self.lose();
        self.saved = None;
        self.registered = None;
        self.deeds.push("flushall");
    }
}

impl Pool {
    fn new(now_us: u64, life: usize, settings: PoolSettings) -> Self {
        Self {
            now_us,
            life,
            manager: None,
            settings,
            items: [].into(),
            leases: [].into(),
            spots: [].into(),
            marks: [].into(),
            bindings: [].into(),
            origins: [].into(),
            next_position: 0,
            last: 0,
            longest: Longest::For(std::time::Duration::ZERO),
            hold: None,
            recovered_from: None,
            counters: Counters::default(),
            deeds: Vec::new(),
        }
    }
}
