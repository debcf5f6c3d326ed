//! Renewals and returns whose reply is lost: repeated safely, or told as what they are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use redis_allocator::{BindOptions, Error, LostReason};

use crate::scene::{SOON, TTL, everywhere, on_all};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_freed_once_and_told_truly() -> Result<()> {
    everywhere(async |scene, fate| {
        let lease = scene.pool.malloc().ttl(TTL * 60).await?.context("free")?;
        scene.lose(1, fate).await?;
        lease.free().await.context("it was freed, by the call whose reply was lost")?;
        scene.all_come_back(SOON).await?;

        // One that was over long ago, and whose resource someone else has: not ours to free.
        let stale = scene.pool.malloc().ttl(Duration::from_millis(1)).await?.context("free")?;
        let key = stale.key().clone();
        scene.sound.bind("next", &key, &BindOptions { declared: true, ..BindOptions::default() }).await?;
        let next = eventually(SOON, async || {
            scene.sound.gc(200).await?;
            let lease = scene.sound.malloc().ttl(TTL * 60).bind("next").await?.context("others are free")?;
            ensure!(lease.key() == &key, "{key} is not free yet");
            Ok(lease)
        })
        .await?;
        scene.lose(1, fate).await?;
        let outcome = stale.free().await;
        ensure!(
            matches!(outcome, Err(Error::NotOwner { .. } | Error::OutcomeUnknown { .. })),
            "a stale holder was told {outcome:?}"
        );
        next.renew().await.context("a stale holder freed it")?;
        next.free().await?;

        // The same by key alone.
        let key = scene.pool.malloc_key(TTL * 60).await?.context("free")?;
        scene.lose(1, fate).await?;
        for freed in scene.pool.free_keys([&key]).await? {
            freed?;
        }
        ensure!(scene.pool.free_keys([&key]).await?.iter().all(Result::is_err), "{key} was freed twice");
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_return_that_is_never_answered_is_unknown_and_made_all_the_same() -> Result<()> {
    everywhere(async |scene, fate| {
        // By the lease's drop, if need be.
        let lease = scene.pool.malloc().ttl(TTL * 60).await?.context("free")?;
        scene.lose(4, fate).await?;
        let outcome = lease.free().await;
        ensure!(matches!(outcome, Err(Error::OutcomeUnknown { operation: "free", .. })), "{outcome:?}");
        scene.proxy.pass();
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_are_repeated_safely() -> Result<()> {
    everywhere(async |scene, fate| {
        let lease = scene.pool.malloc().ttl(TTL * 60).await?.context("free")?;
        let first = lease.deadline();
        scene.lose(1, fate).await?;
        lease.renew().await?;
        ensure!(lease.deadline() > first, "{lease:?}");
        scene.lose(u64::MAX, fate).await?;
        let outcome = lease.renew().await;
        ensure!(matches!(outcome, Err(Error::OutcomeUnknown { operation: "renew", .. })), "{outcome:?}");
        ensure!(!lease.is_lost(), "unknown is not lost");
        scene.ready().await?;
        lease.renew().await?;
        lease.free().await?;
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_hears_in_time_that_its_lease_is_lost() -> Result<()> {
    on_all(async |deployment| {
        let scene = deployment.scene("hears").await?;
        let ttl = Duration::from_secs(4);
        // Kept alive for longer than its time to live.
        let kept = scene.pool.malloc().ttl(ttl).keep_alive().await?.context("free")?;
        let (watched, other) = (scene.pool.malloc().ttl(ttl).await?, scene.pool.malloc().ttl(ttl).keep_alive().await?);
        let (watched, other) = (watched.context("free")?, other.context("free")?);
        watched.lost().await;
        ensure!(watched.lost_reason() == Some(LostReason::Expired) && watched.remaining() == Some(Duration::ZERO));
        tokio::time::sleep(ttl).await;
        ensure!(!kept.is_lost() && !other.is_lost(), "{kept:?} {other:?}");

        // Ended by an operator: heard of at the next renewal, a third of the time later.
        let ended = Instant::now();
        scene.sound.force_free(other.key()).await?;
        other.lost().await;
        ensure!(other.lost_reason() == Some(LostReason::Ended), "{other:?}");
        ensure!(ended.elapsed() < ttl, "heard after {:?}", ended.elapsed());

        // Nobody answers: heard of at the deadline, not later, and not much sooner.
        for silent in [true, false] {
            let kept = scene.pool.malloc().ttl(ttl).keep_alive().await?.context("free")?;
            if silent {
                scene.proxy.hold();
            } else {
                scene.proxy.refuse();
            }
            let deadline = kept.deadline().context("it has an end")?;
            kept.lost().await;
            let late = Instant::now();
            ensure!(deadline.is_past() && kept.lost_reason() == Some(LostReason::Expired), "{kept:?}");
            ensure!(kept.is_lost() && late.elapsed() < TTL);
            scene.proxy.pass();
            scene.ready().await?;
        }
        drop((kept, other, watched));
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}
