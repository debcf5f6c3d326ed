//! Making what an origin declares so: the difference is worked out here, a chunk at a time is written by Redis.
//!
//! # Guarantees
//! - An origin whose digest is the stored one costs one round trip and writes nothing.
//! - Of two synchronisations of one origin, the one that began later wins; the other stops with
//!   [`Error::Superseded`](crate::Error::Superseded) at its next chunk.
//! - A synchronisation that dies half-way leaves no digest: the next one does the rest.
//! - A live lease is never taken away, unless `removal` is `Revoke` and its resource leaves.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Pool, items::Going, owned, text};
use crate::{
    error::{Error, Result},
    item::{Encoded, Item, Record},
    keys,
    names::{Origin, ResourceKey},
    script,
    time::millis,
};

/// The digest of what is declared for a time: no declaration has it.
const FOR_A_TIME: &str = "for a time";

/// What happens to a leased resource that leaves the declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Removal {
    /// It leaves when its lease ends.
    #[default]
    Drain,
    /// Its lease ends at once; the holder hears of it at its next renewal.
    Revoke,
}

/// How a synchronisation treats what is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOptions {
    /// What happens to leased resources. Default `Drain`.
    pub removal: Removal,
    /// The most, in percent of what the origin declared lately, that one synchronisation may drop, 0 to 100. Default
    /// 100: any.
    pub max_shrink_percent: u8,
    /// How long what is no longer declared stays all the same, from 1 ms to ten years: [`Pool::gc`] takes it out then,
    /// unless it is declared again meanwhile, and it drains if it is leased, whatever `removal` says. Where a later
    /// synchronisation says less, what is missing already leaves that much sooner. Default `None`: it leaves at once.
    pub keep_missing: Option<Duration>,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self { removal: Removal::Drain, max_shrink_percent: 100, keep_missing: None }
    }
}

/// What a synchronisation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncOutcome {
    /// Everything was as declared; nothing was written.
    Unchanged,
    /// Redis was brought to what is declared.
    Applied {
        /// Resources that are new.
        added: u64,
        /// Resources whose facts changed.
        updated: u64,
        /// Resources that left the pool; not those that [`SyncOptions::keep_missing`] keeps.
        removed: u64,
        /// Of these: still leased, until their lease ends.
        draining: u64,
        /// Of these: whose lease was ended.
        revoked: u64,
    },
    /// Too much would have left; nothing was written.
    HeldBack {
        /// How many resources are declared now.
        found: u64,
        /// The most that were declared lately.
        peak: u64,
        /// The fewest that would have been let through.
        allowed_min: u64,
    },
}

impl Pool {
    /// Makes these the items that `origin` declares.
    ///
    /// # Errors
    /// [`Error::Superseded`] when a later synchronisation of this origin began meanwhile, [`Error::Invalid`] for an item
    /// that is listed twice or does not fit: nothing is written then.
    pub async fn sync(&self, origin: &Origin, items: Vec<Item>, options: &SyncOptions) -> Result<SyncOutcome> {
        self.sync_until(origin, &items, options, None).await
    }

    /// The same for a time, if one is given (ms).
    pub(super) async fn sync_until(
        &self,
        origin: &Origin,
        items: &[Item],
        options: &SyncOptions,
        ttl: Option<i64>,
    ) -> Result<SyncOutcome> {
        let going = options.check()?;
        let desired = Declared::read(items)?;
        let name = origin.to_string();
        // What has a time to live is always to be written anew, and is never what is declared for good.
        let digest = going.digest(&desired);
        let (asked, kept) = if ttl.is_some() { ("", FOR_A_TIME) } else { (&*digest, &*digest) };
        let args = [text(&name), text(asked), owned(items.len()), owned(options.max_shrink_percent)];
        let mut reply = self.call(&script::BEGIN_SYNC, &args).await?;
        let ticket = match reply.text()?.as_str() {
            "unchanged" => return Ok(SyncOutcome::Unchanged),
            "held" => {
                return Ok(SyncOutcome::HeldBack {
                    found: items.len() as u64,
                    peak: reply.count()?,
                    allowed_min: reply.count()?,
                });
            }
            _ => reply.text()?,
        };

        // What is as it should be already, and what must go.
        let mut settled: HashSet<&ResourceKey> = HashSet::new();
        let mut gone = Vec::new();
        self.scan(keys::ITEMS, |key, text| {
            let key = ResourceKey::new(key)?;
            match desired.standing(&key, Record::parse(&text).as_ref(), origin) {
                Standing::AsDeclared(key) => drop(settled.insert(key)),
                Standing::Gone => gone.push(key),
                Standing::Other => {}
            }
            Ok(())
        })
        .await?;
        if ttl.is_some() {
            settled.clear();
        } else {
            // What was about to leave is as declared, and yet must be told that it stays.
            self.scan(keys::MISSING, |entry, _| {
                if let Some((whose, key)) = entry.split_once('\0')
                    && whose == name
                    && !key.is_empty()
                {
                    settled.remove(&ResourceKey::new(key)?);
                }
                Ok(())
            })
            .await?;
        }
        let changed: Vec<_> = items
            .iter()
            .filter(|item| !settled.contains(&item.key))
            .filter_map(|item| Some((&item.key, desired.items.get(&item.key)?.clone())))
            .collect();
        // New ones first: a declaration that replaces everything never leaves the pool empty.
        let (added, updated) = self.upsert(origin, &ticket, ttl.unwrap_or(0), &changed).await?;
        let removed = self.remove(&name, &ticket, going, &gone).await?;
        let keeps = if going.later > 0 { "1" } else { "0" };
        let args = [text(&name), text(&ticket), text(kept), owned(items.len()), text(keeps)];
        let mut reply = self.send(&script::FINISH_SYNC, &args, false).await?;
        self.read_chunk(&mut reply, &name)?;
        Ok(SyncOutcome::Applied {
            added,
            updated,
            removed: removed.left,
            draining: removed.draining,
            revoked: removed.revoked,
        })
    }
}

impl SyncOptions {
    /// How what is gone goes.
    pub(super) fn check(self) -> Result<Going> {
        if self.max_shrink_percent > 100 {
            return Err(Error::Invalid {
                what: "most percent that may leave",
                found: self.max_shrink_percent.to_string(),
                allowed: "0 to 100".to_owned(),
            });
        }
        let later = self.keep_missing.map_or(Ok(0), |time| millis("time for which missing resources stay", time))?;
        Ok(Going { removal: self.removal, later })
    }
}

impl Going {
    /// What a synchronisation leaves as digest. The time for which things stay is part of it: another one is to reach what is
    /// missing already, though the list is the same.
    pub(super) fn digest(self, declared: &Declared) -> String {
        let Declared { digest, .. } = declared;
        if self.later > 0 { format!("{digest} {}", self.later) } else { digest.clone() }
    }
}

/// What an origin declares: each item as scripts take it, and a digest of all.
pub(super) struct Declared<'a> {
    pub(super) items: HashMap<&'a ResourceKey, Encoded>,
    pub(super) digest: String,
}

/// What an item that Redis has is to a synchronisation.
pub(super) enum Standing<'a> {
    /// It is as it should be.
    AsDeclared(&'a ResourceKey),
    /// The origin does not declare it any more.
    Gone,
    /// It is to be written, or another origin's alone.
    Other,
}

impl<'a> Declared<'a> {
    pub(super) fn read(items: &'a [Item]) -> Result<Self> {
        let mut encoded_items = HashMap::with_capacity(items.len());
        let mut digest = Sha256::new();
        for item in items {
            let encoded = item.encode()?;
            for part in [item.key.as_str(), &encoded.priority, &encoded.position, &encoded.facts] {
                digest.update(part.len().to_be_bytes());
                digest.update(part);
            }
            if encoded_items.insert(&item.key, encoded).is_some() {
                return Err(Error::Invalid {
                    what: "list of items",
                    found: format!("{} twice", item.key),
                    allowed: "each resource once".to_owned(),
                });
            }
        }
        let digest = digest.finalize().iter().take(16).fold(String::new(), |mut text, byte| {
            // Writing to a String never fails.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Ok(Self { items: encoded_items, digest })
    }

    /// Of an item that Redis has.
    pub(super) fn standing(&self, key: &ResourceKey, record: Option<&Record>, origin: &Origin) -> Standing<'a> {
        let record = record.filter(|record| record.origins.contains(origin));
        match (self.items.get_key_value(key), record) {
            (Some((key, encoded)), Some(record)) if record.says(encoded) => Standing::AsDeclared(key),
            (None, Some(_)) => Standing::Gone,
            _ => Standing::Other,
        }
    }
}
