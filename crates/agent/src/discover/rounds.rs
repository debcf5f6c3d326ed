//! When a source is asked, and what is done with its answer.
//!
//! # Guarantees
//! - A source is asked at once when it is first seen and when its declaration changes, then about every `interval`; after a
//!   failure sooner, and later each time that it fails again.
//! - An answer that can't be used, or that drops too much, changes nothing.
//! - When Redis has lost the pool, what the source last brought is brought back at once, whether it can be asked or not.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use jiff::Timestamp;
use redis_allocator::{Client, Error, Item, Origin, PoolName, ResourceKey, SyncOptions, SyncOutcome};
use redis_allocator_crd::{Resource, ResourceSource, SourceState};
use tokio::sync::watch;

use super::{
    Discoverer,
    trouble::{HELD_BACK, INVALID, Trouble},
};
use crate::{backoff::jittered, desired::DesiredSource};

/// How soon a source that failed is asked again, the first time.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SourceReport {
    pub(crate) state: SourceState,
    /// How many resources it last brought; absent if this agent never had any of it.
    pub(crate) items: Option<u64>,
    /// When it last brought what could be used, as far as this agent knows.
    pub(crate) last_success: Option<Timestamp>,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

/// What following a source takes.
pub(crate) struct Follow<'a> {
    pub(crate) discoverer: &'a Discoverer,
    pub(crate) client: &'a Client,
    pub(crate) pool: &'a PoolName,
    pub(crate) desired: DesiredSource,
    /// What was known of it before.
    pub(crate) report: SourceReport,
    /// Changes each time that the pool was made anew.
    pub(crate) made_anew: watch::Receiver<u64>,
}

/// Follows a source for as long as this is not dropped. `tell` hears how it is with it; `astray`, that the pool is not there
/// or not as it was.
pub(crate) async fn follow(follow: Follow<'_>, tell: impl Fn(SourceReport), astray: impl Fn()) {
    let Follow { discoverer, client, pool, desired, mut report, mut made_anew } = follow;
    let mut source = Source { discoverer, client, pool, desired: &desired, last: None, complaint: None };
    let interval: Duration = desired.source.interval.into();
    let mut failures = 0;
    // Whatever was made before this is made now.
    made_anew.borrow_and_update();
    loop {
        let outcome = source.round().boxed().await;
        let pause = match outcome {
            Outcome::Fine | Outcome::HeldBack(_) => {
                failures = 0;
                interval
            }
            Outcome::Failed(_) | Outcome::NoRedis(_) => {
                let pause = RETRY.saturating_mul(1 << failures.min(16)).min(interval);
                failures += 1;
                pause
            }
        };
        if matches!(&outcome, Outcome::NoRedis(error) if !error.is_transient()) {
            astray();
        }
        source.judge(outcome, &mut report);
        tell(report.clone());
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            changed = made_anew.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                source.bring_back().boxed().await;
            }
        }
    }
}

/// How a round ended.
enum Outcome {
    /// Redis has what the source brought.
    Fine,
    HeldBack(Trouble),
    Failed(Trouble),
    /// The source is not to blame: Redis is away, or the pool is another one now. The reconciler says so.
    NoRedis(Error),
}

struct Source<'a> {
    discoverer: &'a Discoverer,
    client: &'a Client,
    pool: &'a PoolName,
    desired: &'a DesiredSource,
    /// What Redis was last given, or was to be.
    last: Option<Arc<[Item]>>,
    /// What was last logged as wrong.
    complaint: Option<&'static str>,
}

impl Source<'_> {
    fn declared(&self) -> &ResourceSource {
        &self.desired.source
    }

    async fn round(&mut self) -> Outcome {
        let fetched = self.discoverer.fetch(self.pool.namespace(), self.declared()).await;
        let items = match fetched.and_then(|resources| self.items(resources)) {
            Ok(items) => items,
            Err(trouble) => return Outcome::Failed(trouble),
        };
        match self.synchronise(&items, &self.desired.options).await {
            Ok(SyncOutcome::HeldBack { found, peak, allowed_min }) => {
                let message = format!(
                    "it brings {found} resources, lately {peak}: allowed are {allowed_min} or more; if that is meant, set \
                     spec.maxShrinkPercent to 100 until it is done"
                );
                Outcome::HeldBack(Trouble::new(HELD_BACK, message))
            }
            Ok(_) => {
                self.last = Some(items);
                Outcome::Fine
            }
            Err(Error::Invalid { .. } | Error::InvalidName { .. }) if self.is_secret() => {
                Outcome::Failed(Trouble::new(INVALID, "Redis can't take an entry, which can't be told as it is secret"))
            }
            Err(error @ (Error::Invalid { .. } | Error::InvalidName { .. })) => {
                Outcome::Failed(Trouble::new(INVALID, error.to_string()))
            }
            Err(error) => {
                // It may be there or not; should the pool turn out to be lost, this is what it is to have.
                self.last = Some(items);
                Outcome::NoRedis(error)
            }
        }
    }

    /// Gives a pool that was made anew what the lost one had. Whether it works out is seen in the next round.
    async fn bring_back(&self) {
        if let Some(items) = &self.last
            && let Err(error) = self.synchronise(items, &self.desired.options).await
        {
            tracing::debug!(pool = %self.pool, source = self.declared().name, "bringing back failed: {error}");
        }
    }

    async fn synchronise(&self, items: &Arc<[Item]>, options: &SyncOptions) -> Result<SyncOutcome, Error> {
        let origin = Origin::Source(self.declared().name.clone());
        let outcome = self.client.pool(self.pool.as_str())?.sync(&origin, items.to_vec(), options).await?;
        if let SyncOutcome::Applied { added, updated, removed, draining, revoked } = outcome
            && added + updated + removed > 0
        {
            tracing::info!(pool = %self.pool, %origin, added, updated, removed, draining, revoked, "pool synced");
        }
        Ok(outcome)
    }

    fn items(&self, mut resources: Vec<Resource>) -> Result<Arc<[Item]>, Trouble> {
        if self.desired.first_position.is_none() {
            // The order of the list means nothing then, and another one must not look like a change.
            resources.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let item = |(resource, index): (Resource, u64)| {
            Ok(Item {
                key: ResourceKey::new(&resource.name)?,
                priority: u16::try_from(resource.priority).unwrap_or(0),
                position: self.desired.first_position.map(|first| first + index),
                labels: resource.labels,
                params: resource.params,
            })
        };
        // Names were validated.
        resources.into_iter().zip(0..).map(item).collect::<Result<_, Error>>().map_err(|_| {
            Trouble::new(INVALID, "an entry is no resource key, allowed are 1 to 512 bytes of UTF-8 without NUL")
        })
    }

    fn is_secret(&self) -> bool {
        self.declared().kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.secret_key_ref.is_some())
    }

    /// Says what came of a round: in the report, in the log if it is news, and in the metrics.
    fn judge(&mut self, outcome: Outcome, report: &mut SourceReport) {
        let (pool, name, metrics) = (self.pool, &self.desired.source.name, &self.discoverer.metrics);
        let (state, trouble) = match outcome {
            Outcome::Fine => {
                let now = Timestamp::now();
                let items = self.last.as_ref().map_or(0, |items| items.len() as u64);
                metrics.discovered(pool, name, items, now);
                if self.complaint.take().is_some() {
                    tracing::info!(%pool, source = name, items, "the source is fine again");
                }
                *report = SourceReport {
                    state: SourceState::Fresh,
                    items: Some(items),
                    last_success: Some(now),
                    message: String::new(),
                };
                return;
            }
            // It is as it was.
            Outcome::NoRedis(_) => return,
            Outcome::Failed(trouble) => (SourceState::Failing, trouble),
            Outcome::HeldBack(trouble) => (SourceState::HeldBack, trouble),
        };
        metrics.discovery_failed(pool, name, trouble.category);
        if self.complaint.replace(trouble.category) != Some(trouble.category) {
            tracing::warn!(%pool, source = name, category = trouble.category, "the source can't be used, and the pool stays as it was: {trouble}");
        }
        (report.state, report.message) = (state, trouble.message);
    }
}
