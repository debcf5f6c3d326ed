//! Declarations whose reply is lost: whichever it is of their several calls, they stand at the end.

use anyhow::{Context, Result, ensure};
use redis_allocator::{Error, Item, Origin, Ownership, PoolSettings, ResourceKey, SyncOptions, SyncOutcome};

use crate::scene::{SIZE, TTL, everywhere};

fn keys(n: usize) -> Result<Vec<ResourceKey>, Error> {
    (0..n).map(|i| ResourceKey::new(format!("s{i}"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declarations_are_repeated_safely() -> Result<()> {
    everywhere(async |scene, fate| {
        // Whichever reply is lost, of the first step to the last: the declaration stands at the end.
        for lost in [0, 2, 4, 5] {
            scene.lose_nth(lost, fate).await?;
            let declared = keys(230 - lost)?;
            let n = declared.len() as u64;
            let items = declared.into_iter().map(Item::new).collect();
            let outcome = scene.pool.sync(&Origin::Spec, items, &SyncOptions::default()).await;
            let outcome = outcome.with_context(|| format!("reply {lost} was lost"))?;
            // A beginning that is repeated finds nothing that it has done itself.
            ensure!(matches!(outcome, SyncOutcome::Applied { .. }), "{outcome:?}");
            let info = scene.sound.info().await?;
            ensure!(info.origins[&Origin::Spec].count == n && info.counts.total == n + SIZE as u64, "{info:?}");
            ensure!(info.origins[&Origin::Spec].digest.is_some(), "{info:?}");
            scene.proxy.pass();
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_ticket_are_repeated_or_unknown() -> Result<()> {
    everywhere(async |scene, fate| {
        // Either repeated with the same result, or the caller hears that it is not known.
        for lost in 0..2 {
            scene.lose_nth(lost, fate).await?;
            match scene.pool.extend(keys(230)?).await {
                Ok(_) | Err(Error::OutcomeUnknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            scene.ready().await?;
            scene.pool.extend(keys(230)?).await?;
            ensure!(scene.sound.len().await? == 230 + SIZE as u64);
            scene.lose_nth(lost, fate).await?;
            match scene.pool.shrink(keys(230)?).await {
                Ok(_) | Err(Error::OutcomeUnknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            scene.ready().await?;
            scene.pool.shrink(keys(230)?).await?;
            ensure!(scene.sound.check().await?.is_empty(), "{:?}", scene.sound.check().await?);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_whose_reply_is_lost_have_been_made() -> Result<()> {
    everywhere(async |scene, fate| {
        scene.lose_nth(0, fate).await?;
        let settings = PoolSettings { default_ttl: TTL, cooldown: TTL, ..PoolSettings::default() };
        let outcome = scene.pool.configure(&settings, &Ownership::default()).await;
        ensure!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
        ensure!(scene.sound.info().await?.settings == settings);
        scene.ready().await?;
        ensure!(!scene.pool.configure(&settings, &Ownership::default()).await?.changed);
        Ok(())
    })
    .await
}
