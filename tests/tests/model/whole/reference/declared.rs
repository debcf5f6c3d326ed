//! What is declared, by which origin, and for how long.

use super::{Item, Name, Reference, Reply};
use crate::whole::step::{Decl, ORIGINS};

/// Whose facts count: the lowest.
fn rank(origin: Name) -> usize {
    ORIGINS.iter().position(|other| *other == origin).unwrap_or(ORIGINS.len())
}

impl Reference {
    pub(super) fn upsert(&mut self, origin: Name, ttl: u64, decls: &[Decl]) -> Reply {
        let (mut added, mut updated, mut changed) = (0, 0, Vec::new());
        for decl in decls {
            if ttl > 0 {
                self.missing.insert((origin, decl.key), self.now() + ttl);
                self.did("a resource is declared for a time");
            } else {
                self.missing.remove(&(origin, decl.key));
            }
            if self.draining.remove(decl.key) || !self.items.contains_key(decl.key) && self.holders(decl.key) > 0 {
                self.did("a draining resource is declared again");
            }
            let old = self.items.get(decl.key);
            let position = decl.position.or(old.map(|old| old.position)).unwrap_or(self.next_position);
            let mut new = Item { priority: decl.priority, position, labels: decl.labels, origins: [origin].into() };
            if let Some(old) = old {
                if old.origins.iter().any(|other| *other != origin && rank(other) < rank(origin)) {
                    new = Item { origins: new.origins, ..old.clone() };
                }
                new.origins.extend(&old.origins);
                let facts = |item: &Item| (item.priority, item.position, item.labels, item.origins.clone());
                if facts(old) == facts(&new) {
                    continue;
                }
                if old.labels != new.labels && self.free.contains_key(decl.key) {
                    self.did("labels of a free resource change");
                }
                updated += 1;
            } else {
                added += 1;
            }
            self.next_position = self.next_position.max(new.position + 1);
            self.items.insert(decl.key, new);
            changed.push(decl.key);
        }
        let before = self.woken.len();
        self.resettle(&changed);
        if self.woken.len() > before {
            self.did("what is declared is offered");
        }
        Reply::List(vec![Reply::text("ok"), Reply::text(added), Reply::text(updated)])
    }

    pub(super) fn remove(&mut self, origin: Name, keys: &[Name], revoke: bool, later: u64) -> Reply {
        let mut counts = (0, 0, 0);
        if later > 0 {
            let at = self.now() + later;
            for key in keys {
                let missing = self.missing.entry((origin, key)).or_insert(at);
                *missing = at.min(*missing);
            }
            self.did("what is missing may stay for a while");
        } else {
            counts = self.let_go(origin, keys, revoke);
        }
        let (left, draining, revoked) = counts;
        Reply::List([left, draining, revoked].iter().fold(vec![Reply::text("ok")], |mut reply, count| {
            reply.push(Reply::text(count));
            reply
        }))
    }

    /// An origin, or with '' every one, lets go of resources. How many left, of these draining, of these revoked.
    pub(super) fn let_go(&mut self, origin: Name, keys: &[Name], revoke: bool) -> (u64, u64, u64) {
        let mut leaving = Vec::new();
        for &key in keys {
            if !origin.is_empty() {
                self.missing.remove(&(origin, key));
            }
            let Some(item) = self.items.get_mut(key) else { continue };
            if origin.is_empty() {
                item.origins.clear();
            } else if !item.origins.remove(origin) {
                continue;
            }
            if item.origins.is_empty() {
                leaving.push(key);
            } else {
                self.did("a resource stays with its other origin");
            }
        }
        let (mut draining, mut revoked) = (0, 0);
        let mut ended = Vec::new();
        for &key in &leaving {
            self.items.remove(key);
            self.free.remove(key);
            self.quarantined.remove(key);
            self.marks.remove(key);
            let held: Vec<_> = self.leases.keys().filter(|(of, _)| *of == key).copied().collect();
            if held.is_empty() {
                continue;
            }
            if self.is_shared() {
                self.draining.insert(key);
            }
            if held.iter().any(|id| self.leases[id].granted.is_none()) {
                self.did("what is offered leaves the pool");
            }
            if revoke {
                revoked += 1;
                ended.push(held);
                self.did("remove revokes");
            } else {
                draining += 1;
                self.did("remove drains");
            }
        }
        for held in ended {
            self.count_revoked(&held);
            self.release(&held);
        }
        (leaving.len() as u64, draining, revoked)
    }
}
