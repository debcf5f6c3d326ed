//! What can't be repeated, and loses its reply: it says that it may have been done, and has been, once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis_allocator::{BindOptions, BindPolicy, CLOCK_SLACK, Cause, Error, LostReason};

use crate::scene::{SOON, TTL, everywhere};

fn unknown(outcome: Result<(), Error>) -> Result<()> {
    let error = outcome.err().context("a reply came through")?;
    ensure!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_leases_says_so_and_has_been_done() -> Result<()> {
    everywhere(async |scene, fate| {
        scene.sound.malloc().ttl(Duration::from_millis(1)).await?.context("free")?.detach();
        tokio::time::sleep(CLOCK_SLACK).await;
        scene.lose(1, fate).await?;
        unknown(scene.pool.gc(200).await.map(drop))?;
        let counters = scene.sound.info().await?.counters;
        ensure!(counters.expired == 1, "{counters:?}");

        let lease = scene.sound.malloc().ttl(TTL * 60).await?.context("free")?;
        scene.lose(1, fate).await?;
        unknown(scene.pool.force_free(lease.key()).await.map(drop))?;
        ensure!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moved_a_resource_says_so_and_has_been_done() -> Result<()> {
    everywhere(async |scene, fate| {
        scene.lose(1, fate).await?;
        unknown(scene.pool.quarantine("r0", None, "x", Cause::Manual).await.map(drop))?;
        let info = scene.sound.info().await?;
        ensure!((info.counts.quarantined, info.counters.quarantined) == (1, 1), "{info:?}");
        scene.lose(1, fate).await?;
        unknown(scene.pool.unquarantine("r0", None).await.map(drop))?;
        ensure!(scene.sound.info().await?.counts.quarantined == 0);

        let required = BindOptions { policy: BindPolicy::Required, ..BindOptions::default() };
        scene.lose(1, fate).await?;
        match scene.pool.bind("vip", "r0", &required).await {
            Ok(_) => {}
            outcome => unknown(outcome.map(drop))?,
        }
        ensure!(scene.sound.info().await?.counts.reserved == 1);
        scene.lose(1, fate).await?;
        unknown(scene.pool.unbind("vip").await.map(drop))?;
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}
