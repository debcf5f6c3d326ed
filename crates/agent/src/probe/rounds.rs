//! When each resource of a pool is probed, and what is done with the result.
//!
//! A round walks the pool page by page and spreads its probes over the interval, so that neither the resources nor the
//! agent see a burst, and a pool of 100,000 costs no more memory than one of 200. A pool too large for its interval is
//! walked as fast as the limit on concurrent probes lets it.

use std::{sync::Arc, time::Duration};

use redis_allocator::{Cause, Client, Error, Pool, PoolName, ResourceKey, ResourceState};
use redis_allocator_crd::HealthCheck;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Prober,
    verdicts::{Action, Verdicts},
};
use crate::{backoff::jittered, notice::What, reconcile::conditions::Probing};

/// Longest reason that is written down with a quarantine.
const MAX_REASON: usize = 500;

/// How soon a pool that can't be read is looked at again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// One probe's result.
type Probed = (ResourceKey, Result<(), String>);

/// Probes a pool's resources for as long as it is not dropped; `report` hears what the prober thinks of itself.
pub(crate) async fn watch_over(
    prober: &Arc<Prober>,
    client: &Client,
    name: &PoolName,
    check: &HealthCheck,
    report: impl Fn(Probing),
) {
    if check.exec.is_some() && !prober.allow_exec {
        report(Probing::ExecNotAllowed);
        return std::future::pending().await;
    }
    let Ok(pool) = client.pool(name.as_str()) else { return std::future::pending().await };
    let mut watch = Watch {
        prober,
        pool,
        check: Arc::new(check.clone()),
        verdicts: Verdicts::new(check.into()),
        running: JoinSet::new(),
        reported: None,
        report,
    };
    let interval: Duration = check.interval.into();
    // The first round is at once: what was broken while nobody looked is found soon.
    let mut spread = Duration::ZERO;
    loop {
        let started = Instant::now();
        let pause = match watch.round(spread).await {
            Ok(()) => {
                // The rest of the interval is for the last ones to answer.
                spread = interval.mul_f64(0.8);
                interval
            }
            // The pool is not there yet, or Redis is away: the reconciler says so.
            Err(_) => interval.min(RETRY),
        };
        sleep_until(started + jittered(pause)).await;
    }
}

/// Ends the quarantines of a pool that is not probed any more: nothing would end them otherwise.
///
/// # Errors
/// When Redis is away, or the pool is not there yet.
pub(crate) async fn release_all(client: &Client, name: &PoolName) -> Result<(), Error> {
    let pool = client.pool(name.as_str())?;
    let mut next = None;
    loop {
        let page = pool.snapshot_page(next.as_ref()).await?;
        for resource in page.resources {
            if resource.marks.iter().any(|mark| mark.cause == Cause::Probe)
                && pool.unquarantine(resource.key.as_str(), Some(Cause::Probe)).await?
            {
                tracing::info!(pool = %name, resource = %resource.key, "released: the pool is not probed any more");
            }
        }
        next = page.next;
        if next.is_none() {
            return Ok(());
        }
    }
}

struct Watch<'a, R> {
    prober: &'a Arc<Prober>,
    pool: Pool,
    check: Arc<HealthCheck>,
    verdicts: Verdicts,
    running: JoinSet<Probed>,
    reported: Option<Probing>,
    report: R,
}

impl<R: Fn(Probing)> Watch<'_, R> {
    /// Probes every resource once, spread over a time.
    async fn round(&mut self, spread: Duration) -> Result<(), Error> {
        let total = self.pool.info().await?.counts.total;
        self.verdicts.begin_round(total);
        let step = spread.checked_div(u32::try_from(total).unwrap_or(u32::MAX)).unwrap_or_default();
        let mut due = Instant::now();
        let mut next = None;
        loop {
            let page = self.pool.snapshot_page(next.as_ref()).await?;
            for resource in page.resources.into_iter().filter(|resource| resource.declared) {
                let quarantined = resource.marks.iter().any(|mark| mark.cause == Cause::Probe);
                self.verdicts.see(&resource.key, quarantined);
                self.start(resource, due).await;
                due += step;
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        while let Some(probed) = self.running.join_next().await {
            self.judge(probed).await;
        }
        self.tell();
        Ok(())
    }

    /// Starts a probe when it is due and there is room; meanwhile, others end.
    async fn start(&mut self, resource: ResourceState, due: Instant) {
        loop {
            let room = async {
                sleep_until(due).await;
                Arc::clone(&self.prober.running).acquire_owned().await
            };
            tokio::select! {
                Some(probed) = self.running.join_next() => self.judge(probed).await,
                permit = room => {
                    let (prober, check) = (Arc::clone(self.prober), Arc::clone(&self.check));
                    self.running.spawn(async move {
                        let _permit = permit;
                        let result = prober.probe(&check, &resource).await;
                        (resource.key, result)
                    });
                    return;
                }
            }
        }
    }

    async fn judge(&mut self, probed: Result<Probed, tokio::task::JoinError>) {
        let (key, result) = match probed {
            Ok(probed) => probed,
            Err(error) => return tracing::error!(pool = %self.pool.name(), %error, "a probe failed to run"),
        };
        let action = match &result {
            Ok(()) => self.verdicts.succeeded(&key),
            Err(_) => self.verdicts.failed(&key),
        };
        let done = match (&action, &result) {
            (Action::Quarantine, Err(reason)) => self.quarantine(&key, reason).await,
            (Action::Release, _) => self.release(&key).await,
            _ => Ok(()),
        };
        match done {
            Ok(()) => self.verdicts.done(&key, &action),
            // It left the pool, or Redis is away: the next round will tell.
            Err(Error::UnknownResource { .. } | Error::UnknownPool { .. }) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => {
                tracing::error!(pool = %self.pool.name(), resource = %key, "acting on a probe failed: {error}");
            }
        }
        self.tell();
    }

    async fn quarantine(&self, key: &ResourceKey, reason: &str) -> Result<(), Error> {
        let reason: String = reason.chars().take(MAX_REASON / 4).collect();
        let quarantined = self.pool.quarantine(key.as_str(), None, &reason, Cause::Probe).await?;
        tracing::warn!(
            pool = %self.pool.name(), resource = %key, reason, in_effect = quarantined.in_effect, "quarantined a resource"
        );
        self.prober.notices.send(self.pool.name(), What::Quarantined, format!("{key} ({reason})"));
        Ok(())
    }

    async fn release(&self, key: &ResourceKey) -> Result<(), Error> {
        if self.pool.unquarantine(key.as_str(), Some(Cause::Probe)).await? {
            tracing::info!(pool = %self.pool.name(), resource = %key, "a resource has recovered");
            self.prober.notices.send(self.pool.name(), What::Recovered, key.as_str());
        }
        Ok(())
    }

    fn tell(&mut self) {
        let probing = self.verdicts.probing();
        if self.reported == Some(probing) {
            return;
        }
        match (probing, self.reported) {
            (Probing::Suspected { failing, total, allowed_percent }, None | Some(Probing::Fine)) => tracing::warn!(
                pool = %self.pool.name(), failing, total, allowed_percent,
                "so many resources fail that the prober is suspected: nothing more is quarantined"
            ),
            (Probing::Fine, Some(Probing::Suspected { .. })) => {
                tracing::info!(pool = %self.pool.name(), "the prober is trusted again");
            }
            _ => {}
        }
        self.reported = Some(probing);
        (self.report)(probing);
    }
}
