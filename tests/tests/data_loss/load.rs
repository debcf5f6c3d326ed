//! A pool under load: workloads that take, use and give back, and report each use to a witness. It must not know what is
//! lost.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    Witness, eventually,
    witness::{self, Use},
};
use redis_allocator::{CLOCK_SLACK, Client, Error, Lease, Pool, PoolSettings, ResourceKey};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longest time to live that the pools under load grant.
pub(crate) const LONGEST: Duration = Duration::from_secs(2);
/// For what must happen soon, on a machine that may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);
const WORKERS: usize = 6;
pub(crate) const SIZE: u64 = 8;

pub(crate) fn keys() -> Vec<ResourceKey> {
    (0..SIZE).map(|i| ResourceKey::new(format!("r{i}")).unwrap()).collect()
}

pub(crate) fn settings() -> PoolSettings {
    PoolSettings { default_ttl: LONGEST, max_ttl: Some(LONGEST), ..PoolSettings::default() }
}

/// Workloads that take, use and give back, each through a connection of its own, and report each use.
pub(crate) struct Load {
    tasks: JoinSet<Result<()>>,
    stop: CancellationToken,
}

impl Load {
    pub(crate) async fn start(url: &str, witness: &Witness) -> Result<Self> {
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        for number in 0..WORKERS {
            let holder: Arc<str> = format!("worker-{number}").into();
            let client = Client::builder(url).owner(&*holder).timeout(SOON).connect().await?;
            tasks.spawn(work(client.pool("load")?, witness.clone(), holder, number, stop.clone()));
        }
        Ok(Self { tasks, stop })
    }

    pub(crate) async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn work(pool: Pool, witness: Witness, holder: Arc<str>, number: usize, stop: CancellationToken) -> Result<()> {
    let mut round = number;
    while !stop.is_cancelled() {
        round += 1;
        let request = pool.malloc().ttl(LONGEST * u32::try_from(1 + round % 4)? / 4);
        let request = if round.is_multiple_of(2) { request.keep_alive() } else { request };
        let lease = match request.await {
            Ok(Some(lease)) => lease,
            Err(error) if !error.is_transient() && !matches!(error, Error::UnknownPool { .. }) => {
                return Err(error.into());
            }
            _ => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        use_it(
            &lease,
            &witness,
            &holder,
            Duration::from_millis(20 + 30 * (round as u64 % 12) + 900 * u64::from(round.is_multiple_of(12))),
        )
        .await?;
        witness.end(lease.key(), lease.fencing_token()).await?;
        match lease.free().await {
            Ok(()) | Err(Error::NotOwner { .. } | Error::UnknownPool { .. }) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Uses a resource for a while, or until its lease is lost, or until somebody proves that it is another's.
async fn use_it(lease: &Lease, witness: &Witness, holder: &str, time: Duration) -> Result<()> {
    let end = witness::now() + time;
    while witness::now() < end {
        let at = witness::now();
        let remaining = lease.remaining().context("a lease without an end")?;
        if lease.is_lost() {
            break;
        }
        let used = Use::new(lease.key(), lease.fencing_token(), holder, at, remaining);
        if let Some(refusal) = witness.record(&used).await? {
            if lease.is_lost() {
                witness.excuse(&refusal).await?;
            }
            break;
        }
        let _ = tokio::time::timeout(Duration::from_millis(30), lease.lost()).await;
    }
    Ok(())
}

/// Waits until leases are held, so that there is something to lose.
pub(crate) async fn busy(pool: &Pool) -> Result<()> {
    eventually(SOON, async || {
        let counts = pool.info().await?.counts;
        ensure!(counts.leased >= 4, "{counts:?}");
        Ok(())
    })
    .await
}

/// Waits until all resources are free again, once nobody asks for them.
pub(crate) async fn whole(pool: &Pool) -> Result<()> {
    eventually(LONGEST + CLOCK_SLACK + SOON, async || {
        pool.gc(200).await?;
        let counts = pool.info().await?.counts;
        ensure!(counts.free == SIZE && counts.total == SIZE, "{counts:?}");
        Ok(())
    })
    .await?;
    ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
    Ok(())
}
