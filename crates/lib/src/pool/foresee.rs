//! What synchronisations would do, worked out without writing anything: the questions that `sync` asks Redis, asked in
//! the same order of a copy of the pool's items.
//!
//! # Guarantees
//! - Nothing is written: Redis itself is told to refuse writes of these scripts.
//! - What changes in the pool meanwhile is the only thing that can make the synchronisation end otherwise.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr as _,
};

use super::{
    Pool, Removal, SyncOptions, SyncOutcome,
    items::Going,
    owned,
    snapshot::moment,
    sync::{Declared, Standing},
    text,
};
use crate::{
    error::{Error, Result},
    item::{Item, Record},
    keys,
    names::{Origin, ResourceKey},
    script,
    time::Timestamp,
};

/// What the synchronisation of one origin would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncForesight {
    /// The origin.
    pub origin: Origin,
    /// What [`Pool::sync`] would answer.
    pub outcome: SyncOutcome,
    /// Resources that would be new, in the order of the declaration.
    pub added: Vec<ResourceKey>,
    /// Resources whose facts would change, in the order of the declaration.
    pub updated: Vec<ResourceKey>,
    /// Resources that would leave the pool, sorted.
    pub removed: Vec<(ResourceKey, Leaving)>,
    /// Resources that would stay though this origin lets them go, as another one declares them; sorted.
    pub kept: Vec<ResourceKey>,
    /// Resources that this origin would let go of later, as [`SyncOptions::keep_missing`] says; sorted.
    pub later: Vec<ResourceKey>,
}

/// How a resource leaves its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// At once: nobody has it.
    AtOnce,
    /// With its lease.
    Draining,
    /// At once, and its lease ends.
    Revoked,
}

/// What an origin lets go of at a time to come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Departure {
    /// When [`Pool::gc`] sees to it.
    pub at: Timestamp,
    /// The resource, which leaves the pool then unless another origin declares it.
    pub key: ResourceKey,
    /// The origin, which keeps it if it declares it again by then.
    pub origin: Origin,
}

/// The items and leases of a pool, as they would be after each step.
#[derive(Default)]
struct Copy {
    items: HashMap<ResourceKey, Record>,
    leased: HashSet<ResourceKey>,
    /// Origins whose digest would be forgotten, as another one let go of what they share.
    forgotten: HashSet<Origin>,
}

impl Pool {
    /// What one [`sync`](Self::sync) after the other would do now, for each origin with its items, each origin once. Of a pool that does
    /// not exist: what they would do once it does. Reads the whole pool, page by page; writes nothing.
    ///
    /// # Errors
    /// As `sync`.
    pub async fn foresee_syncs(
        &self,
        declared: Vec<(Origin, Vec<Item>)>,
        options: &SyncOptions,
    ) -> Result<Vec<SyncForesight>> {
        let going = options.check()?;
        let mut copy: Option<Copy> = None;
        let mut foreseen = Vec::with_capacity(declared.len());
        for (origin, items) in declared {
            let desired = Declared::read(&items)?;
            let is_forgotten = copy.as_ref().is_some_and(|copy| copy.forgotten.contains(&origin));
            let digest = if is_forgotten { String::new() } else { going.digest(&desired) };
            let outcome = self.foresee_begin(&origin, &digest, items.len(), options).await?;
            if let Some(outcome) = outcome {
                foreseen.push(SyncForesight::nothing(origin, outcome));
                continue;
            }
            let copy = match &mut copy {
                Some(copy) => copy,
                none => none.insert(self.copy().await?),
            };
            foreseen.push(copy.sync(origin, &items, &desired, going));
        }
        Ok(foreseen)
    }

    /// What origins let go of unless they declare it again in time: what [`SyncOptions::keep_missing`] keeps for a while, and
    /// what was declared with a time to live. Sorted by time. Read page by page: what changes meanwhile may or may not show.
    ///
    /// # Errors
    /// [`Error::UnknownPool`].
    pub async fn foresee_departures(&self) -> Result<Vec<Departure>> {
        // One may come twice, with a time that was put off in between.
        let mut departures = HashMap::new();
        self.scan(keys::MISSING, |entry, at| {
            // What left a shared pool while it was held is no origin's any more.
            if let Some((origin, key)) = entry.split_once('\0')
                && !origin.is_empty()
                && let Some(at) = moment(&at)
            {
                departures.insert((Origin::from_str(origin)?, ResourceKey::new(key)?), at);
            }
            Ok(())
        })
        .await?;
        let mut sorted: Vec<_> =
            departures.into_iter().map(|((origin, key), at)| Departure { at, key, origin }).collect();
        sorted.sort();
        Ok(sorted)
    }

    /// How a synchronisation ends that ends before anything is compared.
    async fn foresee_begin(
        &self,
        origin: &Origin,
        digest: &str,
        count: usize,
        options: &SyncOptions,
    ) -> Result<Option<SyncOutcome>> {
        let name = origin.to_string();
        let args = [text(&name), text(digest), owned(count), owned(options.max_shrink_percent), text("look")];
        let mut reply = match self.call(&script::FORESEE_SYNC, &args).await {
            Ok(reply) => reply,
            Err(Error::UnknownPool { .. }) => return Ok((count == 0).then_some(SyncOutcome::Unchanged)),
            Err(error) => return Err(error),
        };
        Ok(match reply.text()?.as_str() {
            "unchanged" => Some(SyncOutcome::Unchanged),
            "held" => {
                Some(SyncOutcome::HeldBack { found: count as u64, peak: reply.count()?, allowed_min: reply.count()? })
            }
            _ => None,
        })
    }

    async fn copy(&self) -> Result<Copy> {
        let mut copy = Copy::default();
        let unreadable = |key: &str| Error::Server {
            operation: "foresee",
            subject: self.name().to_string(),
            message: format!("the record of {key} can't be read"),
        };
        let read = async {
            self.scan(keys::ITEMS, |key, text| {
                let record = Record::parse(&text).ok_or_else(|| unreadable(&key))?;
                copy.items.insert(ResourceKey::new(key)?, record);
                Ok(())
            })
            .await?;
            self.scan(keys::LEASES, |id, _| {
                // In a shared pool a lease's id goes on behind the resource.
                let resource = id.split('\0').next().unwrap_or_default();
                copy.leased.insert(ResourceKey::new(resource)?);
                Ok(())
            })
            .await
        };
        match read.await {
            Ok(()) | Err(Error::UnknownPool { .. }) => Ok(copy),
            Err(error) => Err(error),
        }
    }
}

impl SyncForesight {
    fn nothing(origin: Origin, outcome: SyncOutcome) -> Self {
        Self {
            origin,
            outcome,
            added: Vec::new(),
            updated: Vec::new(),
            removed: Vec::new(),
            kept: Vec::new(),
            later: Vec::new(),
        }
    }
}

impl Copy {
    fn sync(&mut self, origin: Origin, items: &[Item], desired: &Declared, going: Going) -> SyncForesight {
        let mut settled = HashSet::new();
        let mut gone = Vec::new();
        for (key, record) in &self.items {
            match desired.standing(key, Some(record), &origin) {
                Standing::AsDeclared(key) => drop(settled.insert(key)),
                Standing::Gone => gone.push(key.clone()),
                Standing::Other => {}
            }
        }
        gone.sort();
        let (mut added, mut updated) = (Vec::new(), Vec::new());
        for item in items.iter().filter(|item| !settled.contains(&item.key)) {
            let facts = desired.items.get(&item.key).map_or("", |encoded| &encoded.facts);
            match self.upsert(&origin, item, facts) {
                Upserted::Added => added.push(item.key.clone()),
                Upserted::Updated => updated.push(item.key.clone()),
                Upserted::Same => {}
            }
        }
        let (mut removed, mut kept, mut later) = (Vec::new(), Vec::new(), Vec::new());
        if going.later > 0 {
            std::mem::swap(&mut gone, &mut later);
        }
        for key in gone {
            match self.remove(&origin, &key, going.removal) {
                Some(leaving) => removed.push((key, leaving)),
                None => kept.push(key),
            }
        }
        self.forgotten.remove(&origin);
        let count = |how| removed.iter().filter(|(_, leaving)| *leaving == how).count() as u64;
        let outcome = SyncOutcome::Applied {
            added: added.len() as u64,
            updated: updated.len() as u64,
            removed: removed.len() as u64,
            draining: count(Leaving::Draining),
            revoked: count(Leaving::Revoked),
        };
        SyncForesight { origin, outcome, added, updated, removed, kept, later }
    }

    /// As `upsert.lua`.
    fn upsert(&mut self, origin: &Origin, item: &Item, facts: &str) -> Upserted {
        let new = |position, origins| Record {
            priority: item.priority,
            position: item.position.unwrap_or(position),
            origins,
            facts: facts.to_owned(),
        };
        let Some(record) = self.items.get_mut(&item.key) else {
            self.items.insert(item.key.clone(), new(0, vec![origin.clone()]));
            return Upserted::Added;
        };
        let mut origins = record.origins.clone();
        if !origins.contains(origin) {
            origins.push(origin.clone());
        }
        let facts_are_others = record.origins.iter().any(|other| other != origin && precedes(other, origin));
        let changed =
            if facts_are_others { Record { origins, ..record.clone() } } else { new(record.position, origins) };
        if *record == changed {
            return Upserted::Same;
        }
        *record = changed;
        Upserted::Updated
    }

    /// As `leave.lua`; `None` when others declare it as well.
    fn remove(&mut self, origin: &Origin, key: &ResourceKey, removal: Removal) -> Option<Leaving> {
        let record = self.items.get_mut(key)?;
        record.origins.retain(|other| other != origin);
        if !record.origins.is_empty() {
            self.forgotten.extend(record.origins.iter().cloned());
            return None;
        }
        self.items.remove(key);
        Some(match removal {
            _ if !self.leased.contains(key) => Leaving::AtOnce,
            Removal::Drain => Leaving::Draining,
            Removal::Revoke => Leaving::Revoked,
        })
    }
}

enum Upserted {
    Added,
    Updated,
    Same,
}

/// Whether an origin's facts are the item's where the other one declares it too: as in `origins.lua`.
fn precedes(one: &Origin, other: &Origin) -> bool {
    let place = |origin: &Origin| match origin {
        Origin::Spec => 1,
        Origin::Range(_) => 2,
        Origin::Source(_) => 3,
        Origin::Api => 4,
    };
    (place(one), one.to_string()) < (place(other), other.to_string())
}
