//! What was lost behind a session's back: it is told, at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Error, Lease, LostReason};

use crate::scene::{LONG, SOON, fill, is_clean, lease_of, leases_of, listed, pool_of, session};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_everything_is_told_of_at_once() -> Result<()> {
    const TTL: Duration = Duration::from_secs(9);
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 3).await?;
        let joined = session(&pool, "joined", TTL).await?;
        joined.join(&pool).await?;
        let session = session(&pool, "trainer-1", TTL).await?;
        let leases = leases_of(&session, &pool, 3).await?;
        let (first, joined_first) = (session.id().to_owned(), joined.id().to_owned());
        server.flushall().await?;
        for lease in &leases {
            tokio::time::timeout(SOON, lease.lost()).await.context("it is not told")?;
        }
        ensure!(leases.iter().all(|lease| lease.lost_reason() == Some(LostReason::PoolLost)), "{leases:?}");
        ensure!(!leases[0].deadline().context("no deadline")?.is_past(), "its time was over anyway");
        let refused = pool.malloc().session(&session).await;
        ensure!(matches!(refused, Err(Error::UnknownPool { .. })), "{refused:?}");

        fill(&pool, 3).await?;
        let lease = lease_of(&session, &pool).await?;
        let info = listed(&pool, "trainer-1").await?;
        ensure!(info.alive && info.leases == 1 && info.id != first, "{info:?}");
        ensure!(leases.iter().all(Lease::is_lost));
        // What was joined is there again by itself.
        eventually(SOON, async || {
            let info = listed(&pool, "joined").await?;
            ensure!(info.alive && info.id != joined_first, "{info:?}");
            Ok(())
        })
        .await?;

        // Only the session is gone.
        server.cmd::<()>(&["DEL", "ra:{default/gpus}:sessions"]).await?;
        let told = lease.renew().await;
        ensure!(matches!(told, Err(Error::Lost { reason: LostReason::PoolLost, .. })), "{told:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_backup_does_not_know_is_told_of() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 3).await?;
        let session = session(&pool, "trainer-1", LONG).await?;
        let (kept, freed) = (lease_of(&session, &pool).await?, lease_of(&session, &pool).await?);
        kept.renew().await?;
        let backup = server.save().await?;
        freed.free().await?;
        let forgotten = lease_of(&session, &pool).await?;
        // Looked at, and found to be as many as before.
        kept.renew().await?;
        server.restart_from(&backup).await?;
        let told = forgotten.renew().await;
        ensure!(matches!(told, Err(Error::Lost { reason: LostReason::Ended, .. })), "{told:?}");
        ensure!(!kept.is_lost());
        kept.free().await?;
        session.end().await?;
        ensure!(pool.info().await?.counts.free == 3, "{:?}", pool.info().await?.counts);
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_ends_one_lease_is_heard_of() -> Result<()> {
    const TTL: Duration = Duration::from_secs(9);
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 3).await?;
        let session = session(&pool, "trainer-1", TTL).await?;
        let leases = leases_of(&session, &pool, 3).await?;
        ensure!(pool.force_free(leases[1].key()).await?);
        tokio::time::timeout(SOON, leases[1].lost()).await.context("it is not told")?;
        ensure!(leases[1].lost_reason() == Some(LostReason::Ended));
        // Granted anew, to the same session: the earlier lease is over all the same.
        let again = lease_of(&session, &pool).await?;
        ensure!(again.key() == leases[1].key() && pool.force_free(leases[0].key()).await?);
        let other = lease_of(&session, &pool).await?;
        ensure!(other.key() == leases[0].key());
        let told = leases[0].renew().await;
        ensure!(matches!(told, Err(Error::Lost { reason: LostReason::Ended, .. })), "{told:?}");
        for lease in [&leases[2], &again, &other] {
            lease.renew().await?;
        }
        is_clean(&pool).await
    })
    .await
}
