//! The items of a pool as a caller declares them through the library: origin `api`.

use std::{collections::HashSet, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};

use super::{Args, BATCH, Pool, Removal, SyncOptions, SyncOutcome, keys_of, owned, text};
use crate::{
    error::{Error, Result},
    item::{Encoded, Item},
    keys,
    names::{Origin, ResourceKey},
    script,
    time::millis,
};

/// How many chunks are under way at once: enough to keep Redis busy, few enough to let others in between.
const CHUNKS_AT_ONCE: usize = 4;
/// How many entries one page of a scan has, about.
const PAGE: &str = "500";
/// What errors call the time for which resources are declared.
const RESOURCE_TTL: &str = "time to live of resources";

/// How items go.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Going {
    pub(super) removal: Removal,
    /// How long they stay all the same, ms; 0 = not at all.
    pub(super) later: i64,
}

/// What one call of the removing script did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Removed {
    pub(super) left: u64,
    pub(super) draining: u64,
    pub(super) revoked: u64,
}

impl Pool {
    /// Adds resources for good, or replaces the facts of those that this library added before; returns how many were new.
    ///
    /// What manifests declare keeps the manifests' facts. Cut into calls of 200: if one fails, those before it are done,
    /// and the same call can be made again.
    ///
    /// # Errors
    /// [`Error::UnknownPool`], and [`Error::Invalid`] for a priority above 1000 or facts above 64 KiB: nothing is added
    /// then.
    pub async fn extend<I: Into<Item>>(&self, items: impl IntoIterator<Item = I>) -> Result<u64> {
        self.extend_until(0, items.into_iter().map(Into::into).collect()).await
    }

    /// Like [`extend`](Self::extend), for a time of 1 ms to ten years: what is not added again by then leaves the pool, and
    /// drains if it is leased. [`gc`](Self::gc) sees to that. What was there for good is there for this time from now on.
    ///
    /// # Errors
    /// As for `extend`, and [`Error::Invalid`] for a time out of range.
    pub async fn extend_for<I: Into<Item>>(&self, ttl: Duration, items: impl IntoIterator<Item = I>) -> Result<u64> {
        let ttl = millis(RESOURCE_TTL, ttl)?;
        self.extend_until(ttl, items.into_iter().map(Into::into).collect()).await
    }

    async fn extend_until(&self, ttl: i64, items: Vec<Item>) -> Result<u64> {
        let encoded = items.iter().map(|item| Ok((&item.key, item.encode()?))).collect::<Result<Vec<_>>>()?;
        let (added, _) = self.upsert(&Origin::Api, "", ttl, &encoded).await?;
        Ok(added)
    }

    /// Takes back resources that this library added; returns how many left the pool. What is leased drains: it leaves
    /// when its lease ends. What a manifest declares stays.
    pub async fn shrink<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Result<u64> {
        let keys = keys_of(keys)?;
        Ok(self.remove(&Origin::Api.to_string(), "", Going::default(), &keys).await?.left)
    }

    /// Makes these the only resources that this library declares, for good: adds, replaces and takes back as needed.
    pub async fn assign<I: Into<Item>>(&self, items: impl IntoIterator<Item = I>) -> Result<SyncOutcome> {
        let items = items.into_iter().map(Into::into).collect();
        self.sync(&Origin::Api, items, &SyncOptions::default()).await
    }

    /// Like [`assign`](Self::assign), for a time of 1 ms to ten years: what is not assigned again by then leaves the pool,
    /// and drains if it is leased. Each call writes every item anew, and never answers [`SyncOutcome::Unchanged`] for any.
    ///
    /// # Errors
    /// As for `assign`, and [`Error::Invalid`] for a time out of range.
    pub async fn assign_for<I: Into<Item>>(
        &self,
        ttl: Duration,
        items: impl IntoIterator<Item = I>,
    ) -> Result<SyncOutcome> {
        let ttl = millis(RESOURCE_TTL, ttl)?;
        let items: Vec<Item> = items.into_iter().map(Into::into).collect();
        self.sync_until(&Origin::Api, &items, &SyncOptions::default(), Some(ttl)).await
    }

    /// Takes back all resources that this library added; returns how many left the pool.
    pub async fn clear(&self) -> Result<u64> {
        match self.assign(Vec::<Item>::new()).await? {
            SyncOutcome::Applied { removed, .. } => Ok(removed),
            SyncOutcome::Unchanged | SyncOutcome::HeldBack { .. } => Ok(0),
        }
    }

    /// The keys of all declared resources, in no order. Read page by page: what changes meanwhile may or may not show.
    pub async fn keys(&self) -> Result<Vec<ResourceKey>> {
        self.item_keys().await
    }

    /// Whether a resource is declared.
    pub async fn contains(&self, key: impl AsRef<str>) -> Result<bool> {
        Ok(self.get(key).await?.is_some_and(|resource| resource.declared))
    }

    /// How many resources are declared.
    pub async fn len(&self) -> Result<u64> {
        Ok(self.info().await?.counts.total)
    }

    /// Whether no resource is declared.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }

    pub(super) async fn item_keys(&self) -> Result<Vec<ResourceKey>> {
        let mut seen = HashSet::new();
        self.scan(keys::ITEMS, |key, _| {
            seen.insert(ResourceKey::new(key)?);
            Ok(())
        })
        .await?;
        Ok(seen.into_iter().collect())
    }

    /// Walks one of the pool's keys page by page. An entry may come twice.
    pub(super) async fn scan(&self, key: usize, mut visit: impl FnMut(String, String) -> Result<()>) -> Result<()> {
        let command = if keys::is_sorted_set(key) { "ZSCAN" } else { "HSCAN" };
        let mut cursor = "0".to_owned();
        loop {
            let mut reply = self.call(&script::SCAN, &[owned(key), text(command), text(&cursor), text(PAGE)]).await?;
            cursor = reply.text()?;
            for (field, value) in reply.pairs()? {
                visit(field, value)?;
            }
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    /// Declares items for an origin and a time (ms; 0 = for good); how many were added, and how many updated.
    pub(super) async fn upsert(
        &self,
        origin: &Origin,
        ticket: &str,
        ttl: i64,
        items: &[(&ResourceKey, Encoded)],
    ) -> Result<(u64, u64)> {
        let name = origin.to_string();
        // Made at once, started few at a time: with a stream of borrowing closures, a caller's future is not `Send`.
        let chunks: Vec<_> = items.chunks(BATCH).map(|chunk| self.upsert_chunk(&name, ticket, ttl, chunk)).collect();
        stream::iter(chunks)
            .buffered(CHUNKS_AT_ONCE)
            .try_fold((0, 0), |sum, chunk| async move { Ok((sum.0 + chunk.0, sum.1 + chunk.1)) })
            .await
    }

    async fn upsert_chunk(
        &self,
        origin: &str,
        ticket: &str,
        ttl: i64,
        chunk: &[(&ResourceKey, Encoded)],
    ) -> Result<(u64, u64)> {
        let script = if ticket.is_empty() { &script::UPSERT_ONCE } else { &script::UPSERT };
        let mut args = Args::with_capacity(3 + 4 * chunk.len());
        args.extend([text(origin), text(ticket), owned(ttl)]);
        for (key, item) in chunk {
            args.extend([text(key.as_str()), text(&item.priority), text(&item.position), text(&item.facts)]);
        }
        let mut reply = self.send(script, &args, false).await?;
        self.read_chunk(&mut reply, origin)?;
        Ok((reply.count()?, reply.count()?))
    }

    /// Lets an origin (or every one: an empty text) let go of items.
    pub(super) async fn remove(
        &self,
        origin: &str,
        ticket: &str,
        going: Going,
        keys: &[ResourceKey],
    ) -> Result<Removed> {
        let chunks: Vec<_> = keys.chunks(BATCH).map(|chunk| self.remove_chunk(origin, ticket, going, chunk)).collect();
        stream::iter(chunks)
            .buffered(CHUNKS_AT_ONCE)
            .try_fold(Removed::default(), |sum, chunk| async move {
                Ok(Removed {
                    left: sum.left + chunk.left,
                    draining: sum.draining + chunk.draining,
                    revoked: sum.revoked + chunk.revoked,
                })
            })
            .await
    }

    async fn remove_chunk(&self, origin: &str, ticket: &str, going: Going, chunk: &[ResourceKey]) -> Result<Removed> {
        let script = if ticket.is_empty() { &script::REMOVE_ONCE } else { &script::REMOVE };
        let revoke = if going.removal == Removal::Revoke { "1" } else { "0" };
        let mut args: Args<'_> = vec![text(origin), text(ticket), text(revoke), owned(going.later)];
        args.extend(chunk.iter().map(|key| text(key.as_str())));
        let mut reply = self.send(script, &args, false).await?;
        self.read_chunk(&mut reply, origin)?;
        let removed = Removed { left: reply.count()?, draining: reply.count()?, revoked: reply.count()? };
        if removed.revoked > 0 {
            self.revoke_rest(chunk).await?;
        }
        Ok(removed)
    }

    /// Ends what is left of the leases on resources that have left a shared pool: a call ends at most so many of each.
    async fn revoke_rest(&self, chunk: &[ResourceKey]) -> Result<()> {
        loop {
            let states = self.states_of(chunk).await?.into_iter();
            let held: Vec<_> = states.filter(|it| !it.declared && it.holder_count > 0).map(|it| it.key).collect();
            // Nobody is granted what is not declared: each turn leaves fewer.
            if held.is_empty() || self.revoke(&held).await? == 0 {
                return Ok(());
            }
        }
    }

    pub(super) async fn remove_everywhere(&self, keys: &[ResourceKey], removal: Removal) -> Result<Removed> {
        self.remove("", "", Going { removal, later: 0 }, keys).await
    }

    /// The status of one chunk of a synchronisation.
    pub(super) fn read_chunk(&self, reply: &mut crate::reply::Reply, origin: &str) -> Result<()> {
        let status = reply.text()?;
        if status == "superseded" {
            return Err(Error::Superseded { pool: self.name().clone(), origin: origin.to_owned() });
        }
        self.status(&status, reply)?.map_or(Ok(()), Err)
    }
}
