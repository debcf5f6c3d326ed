//! What an agent must remember of its pools outside of Redis: for the day when Redis has forgotten them.
//!
//! A pool whose incarnation is gone was lost, with leases that live holders rely on. Only who remembers the longest of
//! those leases knows for how long the refilled pool must be held back. An agent without its state directory refills such
//! a pool at once.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use redis_allocator::{Known, Longest, PoolInfo, PoolName};
use redis_allocator_crd::DeletionPolicy;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{OccupiedDir, StateError, file};

const FILE: &str = "pools.json";
/// Changes of so long a time share one write, which waits for the disk.
const GATHER: Duration = Duration::from_millis(200);
/// For how much longer than its longest lease a pool is remembered that is missed: clocks differ, and are set.
const SLACK: Duration = Duration::from_mins(10);

/// What is remembered of one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RememberedPool {
    /// Its life in Redis, and the longest lease granted in it.
    #[serde(flatten)]
    pub(crate) known: Known,
    /// What its declaration said should happen when it goes, in case it goes while no agent runs.
    pub(crate) deletion_policy: DeletionPolicy,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Content {
    #[serde(default)]
    pools: BTreeMap<PoolName, RememberedPool>,
    /// Those of them that are not declared and not in Redis, and since when: Redis may have lost them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    missed: BTreeMap<PoolName, Timestamp>,
}

/// What the last agent of this directory remembered, for those who only look.
pub(super) fn look(dir: &Path) -> Result<BTreeMap<PoolName, RememberedPool>, StateError> {
    let content: Option<Content> = file::read(&dir.join(FILE))?;
    Ok(content.unwrap_or_default().pools)
}

/// `pools.json`, in memory and, shortly after each change, on disk.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    content: Mutex<Content>,
    changed: Notify,
}

impl Memory {
    /// Reads what the last agent of this directory remembered. What can't be read is put aside, loudly: an agent that
    /// does not start protects nobody.
    pub(crate) fn load(dir: &OccupiedDir) -> Result<Self, StateError> {
        let path = dir.path().join(FILE);
        let content = match file::read(&path) {
            Ok(content) => content.unwrap_or_default(),
            Err(error @ StateError::Garbled { .. }) => {
                let aside = path.with_extension("json.unreadable");
                fs::rename(&path, &aside).map_err(super::failed("putting aside", &path))?;
                tracing::error!(
                    file = %path.display(), put_aside_as = %aside.display(), error = %std::error::Error::source(&error)
                        .map(ToString::to_string).unwrap_or_default(),
                    "what was remembered of the pools can't be read: should Redis have lost its data, pools are refilled \
                     without holding them back"
                );
                Content::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { path, content: Mutex::new(content), changed: Notify::new() })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing panics while holding it.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no pool is remembered as managed.
    pub(crate) fn is_empty(&self) -> bool {
        let content = self.content();
        content.pools.keys().all(|pool| content.missed.contains_key(pool))
    }

    pub(crate) fn get(&self, pool: &PoolName) -> Option<RememberedPool> {
        self.content().pools.get(pool).cloned()
    }

    /// The pools that are remembered as managed.
    pub(crate) fn pools(&self) -> Vec<PoolName> {
        self.content().pools.keys().cloned().collect()
    }

    pub(crate) fn remember(&self, pool: &PoolName, facts: RememberedPool) {
        let content = &mut *self.content();
        let is_back = content.missed.remove(pool).is_some();
        if is_back || content.pools.get(pool) != Some(&facts) {
            content.pools.insert(pool.clone(), facts);
            self.changed.notify_one();
        }
    }

    /// Remembers what was seen of a pool, for the day when Redis has lost it.
    pub(crate) fn saw(&self, info: &PoolInfo, deletion_policy: DeletionPolicy) {
        let known = Known { incarnation: info.incarnation.clone(), longest: info.longest };
        self.remember(&info.name, RememberedPool { known, deletion_policy });
    }

    pub(crate) fn forget(&self, pool: &PoolName) {
        let content = &mut *self.content();
        content.missed.remove(pool);
        if content.pools.remove(pool).is_some() {
            self.changed.notify_one();
        }
    }

    /// A pool that nobody declares is not in Redis. It is forgotten when no lease that was granted in it can be left: it
    /// may be declared again before, and is held back then.
    pub(crate) fn miss(&self, pool: &PoolName, now: Timestamp) {
        let content = &mut *self.content();
        let Some(remembered) = content.pools.get(pool) else { return };
        let Some(&since) = content.missed.get(pool) else {
            content.missed.insert(pool.clone(), now);
            return self.changed.notify_one();
        };
        let missed_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if matches!(remembered.known.longest, Longest::For(longest) if missed_for > longest.saturating_add(SLACK)) {
            content.missed.remove(pool);
            content.pools.remove(pool);
            self.changed.notify_one();
        }
    }

    /// Writes changes to disk, shortly after they are made, until told to stop; the last ones before it returns.
    pub(crate) async fn keep_on_disk(&self, stop: CancellationToken) {
        loop {
            let stopping = tokio::select! {
                () = self.changed.notified() => stop.run_until_cancelled(tokio::time::sleep(GATHER)).await.is_none(),
                () = stop.cancelled() => true,
            };
            if let Err(error) = self.write() {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "can't remember what the pools need should Redis lose them"
                );
            }
            if stopping {
                return;
            }
        }
    }

    fn write(&self) -> Result<(), StateError> {
        // Not written under the lock: the disk may be slow, and a change made meanwhile notifies again.
        let content = serde_json::to_value(&*self.content())
            .map_err(|source| StateError::Garbled { path: self.path.clone(), source })?;
        file::write(&self.path, &content)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::StateDir;

    fn remembered(longest_s: u64) -> RememberedPool {
        let known =
            serde_json::json!({"incarnation": "0123456789abcdef", "longest": {"For": {"secs": longest_s, "nanos": 0}}});
        RememberedPool { known: serde_json::from_value(known).unwrap(), deletion_policy: DeletionPolicy::Orphan }
    }

    #[tokio::test]
    async fn the_next_agent_remembers_what_the_last_one_did() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::locate(Some(temp.path().to_owned())).unwrap();
        let occupied = dir.occupy().await.unwrap();
        let memory = Arc::new(Memory::load(&occupied).unwrap());
        assert!(memory.is_empty());

        let stop = CancellationToken::new();
        let writer = tokio::spawn({
            let (memory, stop) = (Arc::clone(&memory), stop.clone());
            async move { memory.keep_on_disk(stop).await }
        });
        let (gpus, proxies): (PoolName, PoolName) = ("gpus".parse().unwrap(), "lab/proxies".parse().unwrap());
        memory.remember(&gpus, remembered(60));
        memory.remember(&proxies, remembered(1));
        memory.forget(&proxies);
        memory.remember(&gpus, remembered(120));
        stop.cancel();
        writer.await.unwrap();

        let next = Memory::load(&occupied).unwrap();
        assert_eq!(next.pools(), std::slice::from_ref(&gpus));
        assert_eq!(next.get(&gpus), Some(remembered(120)));
    }

    #[tokio::test]
    async fn a_pool_that_redis_lost_is_remembered_for_as_long_as_its_leases() {
        let temp = tempfile::tempdir().unwrap();
        let occupied = StateDir::locate(Some(temp.path().to_owned())).unwrap().occupy().await.unwrap();
        let memory = Memory::load(&occupied).unwrap();
        let gpus: PoolName = "gpus".parse().unwrap();
        let at = |seconds: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        memory.remember(&gpus, remembered(60));
        memory.miss(&gpus, at(0));
        assert!(memory.is_empty(), "nothing of it is managed");
        memory.miss(&gpus, at(60) + SLACK);
        assert_eq!(memory.get(&gpus), Some(remembered(60)));

        // Declared again: another absence begins anew.
        memory.remember(&gpus, remembered(60));
        assert!(!memory.is_empty());
        memory.miss(&gpus, at(61) + SLACK);
        assert_eq!(memory.get(&gpus), Some(remembered(60)));
        memory.miss(&gpus, at(123) + SLACK + SLACK);
        assert_eq!(memory.get(&gpus), None);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_put_aside() {
        let temp = tempfile::tempdir().unwrap();
        let occupied = StateDir::locate(Some(temp.path().to_owned())).unwrap().occupy().await.unwrap();
        fs::write(temp.path().join(FILE), "{\"pools\": 3}").unwrap();
        assert!(Memory::load(&occupied).unwrap().is_empty());
        assert!(temp.path().join("pools.json.unreadable").exists());
        assert!(!temp.path().join(FILE).exists());
    }
}
