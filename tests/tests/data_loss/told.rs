//! Who held something when it was lost is taken back, or told; and the hold lasts as long as anyone may rely on it. The
//! time is the test's own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Proxy, Server, proxy::Fate};
use redis_allocator::{
    CLOCK_SLACK, Cause, Client, Error, Hold, Known, Lease, Longest, LostReason, Ownership, Place, Pool, PoolSettings,
    test_clock::TestClock,
};

use crate::load::{SIZE, keys};

/// A pool of order "least recently used", on a clock that the test moves: r0 is granted first, r1 next, and so on.
async fn on_a_clock(server: &Server) -> Result<(Pool, TestClock)> {
    let clock = TestClock::at(Duration::from_hours(500_000));
    let pool = Client::builder(server.url()).test_clock(clock.clone()).connect().await?.pool("gpus")?;
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    for key in keys() {
        pool.extend([key]).await?;
        clock.advance(Duration::from_millis(1));
    }
    Ok((pool, clock))
}

async fn granted(pool: &Pool, clock: &TestClock) -> Result<Lease> {
    clock.advance(Duration::from_millis(1));
    pool.malloc().await?.context("nothing is free")
}

#[tokio::test]
async fn a_holder_who_is_forgotten_is_taken_back_or_told() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let (pool, clock) = on_a_clock(&server).await?;
        let (kept, given_back) = (granted(&pool, &clock).await?, granted(&pool, &clock).await?);
        let resource = given_back.key().clone();
        let backup = server.save().await?;
        let last = pool.info().await?.last_token;
        given_back.free().await?;
        for _ in 0..6 {
            granted(&pool, &clock).await?.detach();
        }
        let again = granted(&pool, &clock).await?;
        ensure!(again.key() == &resource, "{again:?}");
        pool.force_free("r2").await?;
        let forgotten = granted(&pool, &clock).await?;
        pool.force_free("r3").await?;
        let held_back = granted(&pool, &clock).await?;
        pool.force_free("r4").await?;
        let taken = granted(&pool, &clock).await?;
        server.restart_from(&backup).await?;
        ensure!(pool.info().await?.last_token == last);

        // Its resource is free: taken back, and its token never comes again.
        clock.advance(Duration::from_millis(1));
        forgotten.renew().await?;
        ensure!(pool.info().await?.last_token == forgotten.fencing_token());
        ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
        // Held back: taken back as well, and held back again when it ends.
        pool.quarantine(held_back.key(), None, "suspicious", Cause::Manual).await?;
        held_back.renew().await?;
        ensure!(pool.info().await?.counts.quarantined == 0);
        // Leased to another meanwhile: told at once, and the other is not disturbed.
        let thief = pool.malloc().await?.context("free")?;
        ensure!(thief.key() == taken.key() && thief.fencing_token() > taken.fencing_token());
        let told = taken.renew().await;
        ensure!(matches!(told, Err(Error::Lost { reason: LostReason::Ended, .. })), "{told:?}");
        ensure!(matches!(taken.free().await, Err(Error::NotOwner { .. })));
        // The backup says that someone else has it: told, too.
        ensure!(matches!(again.renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
        thief.renew().await?;
        kept.renew().await?;
        ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);

        for lease in [kept, forgotten, held_back, thief] {
            lease.free().await?;
        }
        ensure!(matches!(pool.get("r3").await?.context("r3")?.place, Place::Quarantined { until: None }));
        pool.unquarantine("r3", None).await?;
        // What was given back after the backup was made is over by its time.
        clock.advance(Duration::from_hours(1));
        pool.gc(200).await?;
        ensure!(pool.info().await?.counts.free == SIZE, "{:?}", pool.info().await?.counts);
        ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn after_permanent_leases_an_operator_ends_the_hold() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let (pool, clock) = on_a_clock(&server).await?;
        let lease = pool.malloc().permanent().await?.context("free")?;
        let info = pool.info().await?;
        ensure!(info.longest == Longest::Permanent, "{info:?}");
        let known = Known { incarnation: info.incarnation, longest: info.longest };
        server.flushall().await?;
        let ownership = Ownership { manager: None, known: Some(&known) };
        ensure!(pool.configure(&PoolSettings::default(), &ownership).await?.recovered);
        pool.extend(keys()).await?;
        ensure!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::PoolLost, .. })));
        clock.advance(Duration::from_hours(365 * 24));
        pool.gc(200).await?;
        ensure!(pool.malloc().await?.is_none(), "granted without an operator's word");
        let info = pool.info().await?;
        ensure!(info.hold == Some(Hold::Released) && info.counts.quarantined == SIZE, "{info:?}");
        // The same declaration again, as every minute: the hold goes on.
        ensure!(!pool.configure(&PoolSettings::default(), &ownership).await?.recovered);
        ensure!(pool.malloc().await?.is_none(), "granted without an operator's word");
        ensure!(pool.end_recovery().await? == SIZE);
        ensure!(pool.info().await?.counts.free == SIZE && pool.info().await?.hold.is_none());
        ensure!(granted(&pool, &clock).await?.fencing_token() > lease.fencing_token());
        ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
        Ok(())
    })
    .await
}

/// Somebody else was faster than the one who remembers, and its reply was lost besides.
#[tokio::test]
async fn a_pool_made_anew_by_another_is_held_back_too() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let (pool, clock) = on_a_clock(&server).await?;
        granted(&pool, &clock).await?.detach();
        let info = pool.info().await?;
        let known = Known { incarnation: info.incarnation, longest: info.longest };
        server.flushall().await?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        pool.extend(keys()).await?;
        let unaware = granted(&pool, &clock).await?;

        let proxy = Proxy::start(server.port()).await?;
        let agent = Client::builder(proxy.url()).test_clock(clock.clone()).connect().await?.pool("gpus")?;
        let ownership = Ownership { manager: Some("agent"), known: Some(&known) };
        proxy.drop_replies_where(1, Fate::Close, |exchange| exchange.is("EVALSHA") && !exchange.is_error());
        let outcome = agent.configure(&PoolSettings::default(), &ownership).await;
        ensure!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
        agent.configure(&PoolSettings::default(), &ownership).await?;
        let counts = pool.info().await?.counts;
        ensure!((counts.leased, counts.quarantined, counts.free) == (1, SIZE - 1, 0), "{counts:?}");
        unaware.renew().await.context("a lease of the new life is in force")?;
        unaware.free().await?;
        ensure!(pool.malloc().await?.is_none(), "granted during the hold");
        clock.advance(Duration::from_mins(2) + CLOCK_SLACK + Duration::from_millis(1));
        ensure!(pool.malloc().up_to(50).await?.len() as u64 == SIZE);
        ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
        Ok(())
    })
    .await
}
