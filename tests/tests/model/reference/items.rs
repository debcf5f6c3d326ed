//! What is declared, by whom, and how a synchronisation changes it.

use std::collections::BTreeSet;

use redis_allocator::{Cause, Origin, Removal, SyncOutcome};

use super::pool::{Declared, Item, Pool, RECOVERY, is_over};
use crate::step::{Decl, Name};

/// The highest count of an origin is remembered for an hour (ms).
pub(crate) const PEAK_LASTS: u64 = 3_600_000;

/// How many left the pool, and what became of the leased ones.
#[derive(Debug, Default)]
pub(crate) struct Left {
    resources: u64,
    draining: u64,
    revoked: u64,
}

/// Where two origins declare one item, the facts are those of the lowest rank, and of these of the first by name.
fn rank(origin: &Origin) -> u8 {
    match origin {
        Origin::Spec => 1,
        Origin::Range(_) => 2,
        Origin::Source(_) => 3,
        Origin::Api => 4,
    }
}

impl Pool {
    /// Declares items for an origin: how many are new, and how many changed.
    fn upsert(&mut self, origin: &Origin, items: &[Decl]) -> (u64, u64) {
        let (mut added, mut updated) = (0, 0);
        let mut changed = Vec::new();
        let mut next_position = self.next_position;
        for decl in items {
            let item = if let Some(old) = self.items.get(decl.key) {
                let mut item = old.clone();
                item.origins.insert(origin.clone());
                if !old.origins.iter().any(|other| (rank(other), other) < (rank(origin), origin)) {
                    item.priority = decl.priority;
                    item.position = decl.position.unwrap_or(old.position);
                    item.facts = decl.facts;
                }
                if item == *old {
                    continue;
                }
                updated += 1;
                item
            } else {
                added += 1;
                let position = decl.position.unwrap_or(next_position);
                let hold = self.hold.filter(|end| !is_over(*end, self.now()));
                if let Some(until) = hold {
                    self.mark(decl.key, Cause::Recovery, until, RECOVERY);
                    self.did("a refilled resource is held back");
                }
                if self.leases.contains_key(decl.key) {
                    self.did("a draining resource is declared again");
                }
                let origins = [origin.clone()].into();
                Item { priority: decl.priority, position, facts: decl.facts, origins }
            };
            next_position = next_position.max(item.position + 1);
            self.items.insert(decl.key, item);
            changed.push(decl.key);
        }
        self.next_position = next_position;
        for key in changed {
            self.resettle(key);
        }
        (added, updated)
    }

    /// Lets one origin (`None`: every one) let go of items.
    fn remove(&mut self, origin: Option<&Origin>, keys: &BTreeSet<Name>, removal: Removal) -> Left {
        let mut done = Left::default();
        for key in keys {
            let Some(item) = self.items.get_mut(key) else { continue };
            match origin {
                Some(origin) if !item.origins.remove(origin) => continue,
                Some(_) => {}
                None => item.origins.clear(),
            }
            if !item.origins.is_empty() {
                let others = item.origins.clone();
                // Whoever still declares it brings its own facts at the next synchronisation.
                for other in others {
                    self.forget_digest(&other);
                }
                self.did("a shared resource stays with its other origin");
                continue;
            }
            done.resources += 1;
            self.items.remove(key);
            self.spots.remove(key);
            self.marks.remove(key);
            if self.leases.contains_key(key) {
                if removal == Removal::Revoke {
                    done.revoked += 1;
                    self.revoke(key);
                } else {
                    done.draining += 1;
                }
            }
        }
        done
    }

    fn forget_digest(&mut self, origin: &Origin) {
        if let Some(entry) = self.origins.get_mut(origin) {
            entry.digest = None;
        }
    }

    pub(crate) fn extend(&mut self, items: &[Decl]) -> u64 {
        let (added, updated) = self.upsert(&Origin::Api, items);
        if added > 0 {
            self.did("extend adds");
        }
        if updated > 0 {
            self.did("extend updates");
        }
        if added + updated > 0 {
            self.forget_digest(&Origin::Api);
        }
        added
    }

    pub(crate) fn shrink(&mut self, keys: &[Name]) -> u64 {
        let before = self.items.clone();
        let done = self.remove(Some(&Origin::Api), &keys.iter().copied().collect(), Removal::Drain);
        if self.items != before {
            self.forget_digest(&Origin::Api);
            self.did("shrink");
        }
        if done.draining > 0 {
            self.did("shrink drains");
        }
        done.resources
    }

    /// The part of a synchronisation that decides whether it goes on.
    pub(crate) fn begin_sync(&mut self, origin: &Origin, items: &[Decl], percent: u8) -> Option<SyncOutcome> {
        let now = self.now();
        // What a declaration never had is as it should be. Calls may add items without a synchronisation.
        if items.is_empty() && !self.origins.contains_key(origin) && *origin != Origin::Api {
            self.did("sync finds nothing declared");
            return Some(SyncOutcome::Unchanged);
        }
        let fresh = Declared { digest: None, count: 0, peak: 0, peak_at: now };
        let entry = self.origins.get(origin).cloned().unwrap_or(fresh);
        if entry.digest.as_deref() == Some(items) {
            self.did("sync finds nothing changed");
            return Some(SyncOutcome::Unchanged);
        }
        let peak = if now - entry.peak_at > PEAK_LASTS { entry.count } else { entry.peak };
        let allowed_min = (peak * u64::from(100 - percent)).div_ceil(100);
        let found = items.len() as u64;
        if found < allowed_min {
            self.did("sync is held back");
            return Some(SyncOutcome::HeldBack { found, peak, allowed_min });
        }
        self.origins.insert(origin.clone(), Declared { digest: None, ..entry });
        None
    }

    pub(crate) fn sync(&mut self, origin: &Origin, items: &[Decl], removal: Removal, percent: u8) -> SyncOutcome {
        if let Some(outcome) = self.begin_sync(origin, items, percent) {
            return outcome;
        }
        let now = self.now();
        let named: BTreeSet<Name> = items.iter().map(|decl| decl.key).collect();
        let declared = self.items.iter().filter(|(_, item)| item.origins.contains(origin));
        let gone = declared.map(|(key, _)| *key).filter(|key| !named.contains(key)).collect();
        let (added, updated) = self.upsert(origin, items);
        let Left { resources: left, draining, revoked } = self.remove(Some(origin), &gone, removal);
        if items.is_empty() {
            self.origins.remove(origin);
        } else if let Some(entry) = self.origins.get_mut(origin) {
            let count = items.len() as u64;
            // What was declared until now was declared lately, however long ago that began.
            if now - entry.peak_at > PEAK_LASTS {
                (entry.peak, entry.peak_at) = (entry.count, now);
            }
            if count >= entry.peak {
                (entry.peak, entry.peak_at) = (count, now);
            }
            (entry.count, entry.digest) = (count, Some(items.to_vec()));
        }
        let deeds = [
            (added, "sync adds"),
            (updated, "sync updates"),
            (left, "sync removes"),
            (draining, "sync drains"),
            (revoked, "sync revokes"),
        ];
        for (_, deed) in deeds.into_iter().filter(|(count, _)| *count > 0) {
            self.did(deed);
        }
        SyncOutcome::Applied { added, updated, removed: left, draining, revoked }
    }

    /// Drops every item whoever declared it.
    pub(crate) fn remove_all(&mut self, removal: Removal) {
        if self.items.is_empty() {
            return;
        }
        self.origins.clear();
        let keys = self.items.keys().copied().collect();
        self.remove(None, &keys, removal);
    }
}
