//! What ends with a session, and what does not; and what is no session.

use std::{future::IntoFuture, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{
    CLOCK_SLACK, Client, Error, Lease, LostReason, Mode, Ownership, PoolSettings, test_clock::TestClock,
};
use tokio_util::task::AbortOnDropHandle;

use crate::scene::{LONG, SOON, fill, is_clean, keys, lease_of, leases_of, listed, pool_of, session};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_session_is_the_end_of_its_leases() -> Result<()> {
    const LEASES: usize = 450;
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), LEASES).await?;
        let elsewhere = pool.client().pool("elsewhere")?;
        fill(&elsewhere, 1).await?;
        let session = session(&pool, "trainer-1", LONG).await?;
        let clone = session.clone();
        let (leases, far) = (leases_of(&session, &pool, LEASES).await?, lease_of(&session, &elsewhere).await?);
        ensure!(pool.malloc().await?.is_none() && elsewhere.malloc().await?.is_none(), "not all is taken");

        session.end().await?;
        ensure!(leases.iter().chain([&far]).all(|lease| lease.lost_reason() == Some(LostReason::Ended)));
        ensure!(pool.info().await?.counts.free == LEASES as u64 && elsewhere.info().await?.counts.free == 1);
        let info = listed(&pool, "trainer-1").await?;
        ensure!(!info.alive && info.leases == 0 && info.id == clone.id(), "{info:?}");
        let refused = pool.malloc().session(&clone).await;
        ensure!(matches!(refused, Err(Error::SessionOver { .. })), "{refused:?}");
        let joined = clone.join(&pool).await;
        ensure!(matches!(joined, Err(Error::SessionOver { .. })), "{joined:?}");
        drop((clone, leases, far));
        is_clean(&pool).await?;

        // Dropped, it ends by itself; what was detached from it ends as well.
        let session = pool.client().session("trainer-2").ttl(LONG).start().await?;
        let mut leases = leases_of(&session, &pool, 3).await?;
        leases.pop().context("three")?.detach();
        drop(session);
        ensure!(leases.iter().all(Lease::is_lost));
        eventually(SOON, async || {
            let counts = pool.info().await?.counts;
            ensure!(counts.free == LEASES as u64, "{counts:?}");
            Ok(())
        })
        .await?;
        ensure!(!listed(&pool, "trainer-2").await?.alive);
        is_clean(&pool).await?;
        is_clean(&elsewhere).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_waits_for_a_lease_of_its_session() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 1).await?;
        let session = session(&pool, "trainer-1", LONG).await?;
        let taken = pool.malloc().await?.context("nothing is free")?;
        let waiting = || {
            let request = pool.malloc().session(&session).wait(SOON);
            AbortOnDropHandle::new(tokio::spawn(request.into_future()))
        };
        let in_line = async || {
            eventually(SOON, async || {
                let counts = pool.info().await?.counts;
                ensure!(counts.waiting == 1, "{counts:?}");
                Ok(())
            })
            .await
        };
        let waiter = waiting();
        in_line().await?;
        taken.free().await?;
        let lease = waiter.await??;
        ensure!(lease.ttl() == Some(LONG) && listed(&pool, "trainer-1").await?.leases == 1, "{lease:?}");
        lease.renew().await?;

        // It ends while somebody waits for another one.
        let waiter = waiting();
        in_line().await?;
        session.clone().end().await?;
        let refused = waiter.await?;
        ensure!(lease.is_lost() && matches!(refused, Err(Error::SessionOver { .. })), "{refused:?}");
        eventually(SOON, async || {
            let counts = pool.info().await?.counts;
            ensure!(counts.waiting == 0 && counts.free == 1, "{counts:?}");
            Ok(())
        })
        .await?;
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_die_alone() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 4).await?;
        let instance = session(&pool, "trainer-1", LONG).await?;
        let threads = [instance.thread("loader-1")?, instance.thread("loader-2")?];
        ensure!(threads[0].name() == "trainer-1/loader-1" && threads[0].ttl() == LONG);
        let kept = lease_of(&instance, &pool).await?;
        let [first, second] = threads;
        let (lost, other) = (lease_of(&first, &pool).await?, lease_of(&second, &pool).await?);

        // As when it panics.
        drop(first);
        ensure!(lost.is_lost() && !kept.is_lost() && !other.is_lost());
        eventually(SOON, async || {
            let info = listed(&pool, "trainer-1/loader-1").await?;
            ensure!(!info.alive, "{info:?}");
            Ok(())
        })
        .await?;
        kept.renew().await?;
        other.renew().await?;
        instance.end().await?;
        ensure!(kept.is_lost() && !other.is_lost());
        other.renew().await?;
        let alive: Vec<_> = pool.sessions().await?.into_iter().filter(|session| session.alive).collect();
        ensure!(alive.len() == 1 && alive[0].name == "trainer-1/loader-2" && alive[0].leases == 1, "{alive:?}");
        second.end().await?;
        ensure!(pool.info().await?.counts.free == 4);
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_shared_pool_each_share_is_the_sessions_own() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = Client::connect(&server.url()).await?.pool("licences")?;
        let settings = PoolSettings { mode: Mode::Shared { max_holders: None }, ..PoolSettings::default() };
        pool.configure(&settings, &Ownership::default()).await?;
        pool.extend(keys(2)).await?;
        let (dies, lives) = (session(&pool, "dies", LONG).await?, session(&pool, "lives", LONG).await?);
        let (lost, kept) = (leases_of(&dies, &pool, 300).await?, leases_of(&lives, &pool, 5).await?);
        let plain = pool.malloc().await?.context("shared")?;
        ensure!(listed(&pool, "dies").await?.leases == 300);
        let (mut lost, mut kept) = (lost.into_iter(), kept.into_iter());
        lost.next().context("300")?.free().await?;
        ensure!(listed(&pool, "dies").await?.leases == 299);
        dies.end().await?;
        ensure!(lost.all(|lease| lease.is_lost()));
        let leased = pool.info().await?.counts.leased;
        ensure!(leased == 6, "{leased} leases are left");
        for lease in kept.by_ref().take(3) {
            lease.renew().await?;
            lease.free().await?;
        }
        plain.renew().await?;
        ensure!(listed(&pool, "lives").await?.leases == 2);
        is_clean(&pool).await?;
        ensure!(pool.force_free("r0").await? && pool.force_free("r1").await?);
        let told = kept.next().context("two")?.renew().await;
        ensure!(matches!(told, Err(Error::Lost { reason: LostReason::Ended, .. })), "{told:?}");
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_out_of_memory_keeps_sessions_and_lets_them_end() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 1).await?;
        let session = session(&pool, "trainer-1", LONG).await?;
        let lease = lease_of(&session, &pool).await?;
        server.config_set("maxmemory", "1").await?;
        lease.renew().await?;
        let late = pool.client().session("late").start().await?.join(&pool).await;
        ensure!(matches!(late, Err(Error::Server { .. })), "{late:?}");
        session.end().await?;
        ensure!(lease.is_lost() && pool.info().await?.counts.free == 1);
        server.config_set("maxmemory", "0").await?;
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_are_listed_for_an_hour() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let clock = TestClock::at(Duration::from_hours(500_000));
        let pool = Client::builder(server.url()).test_clock(clock.clone()).connect().await?.pool("gpus")?;
        fill(&pool, 3).await?;
        ensure!(pool.sessions().await?.is_empty());
        let now = || clock.micros() / 1000;
        let ttl = Duration::from_mins(1);
        let gone = session(&pool, "b#1", ttl).await?;
        let lease = lease_of(&gone, &pool).await?;
        let info = listed(&pool, "b#1").await?;
        ensure!(info.alive && info.leases == 1 && info.until.as_millis() == now() + 60_000, "{info:?}");
        ensure!(info.id == gone.id() && info.id.len() == "b#1#".len() + 8, "{info:?}");
        ensure!(pool.info().await?.counts.sessions == 1);

        // Its time is over for Redis, though its process does not know yet.
        clock.advance(ttl);
        let info = listed(&pool, "b#1").await?;
        ensure!(!info.alive && info.leases == 1 && info.until.as_millis() == now(), "{info:?}");
        ensure!(pool.gc(200).await?.expired.is_empty(), "ended before the clocks' slack");
        let told = lease.renew().await;
        ensure!(matches!(told, Err(Error::Lost { reason: LostReason::Ended, .. })), "{told:?}");
        clock.advance(CLOCK_SLACK);
        ensure!(pool.gc(200).await?.expired.len() == 1);
        let info = listed(&pool, "b#1").await?;
        ensure!(!info.alive && info.leases == 0 && info.until.as_millis() == now() - 2000, "{info:?}");

        let (alive, many) = (session(&pool, "a", LONG).await?, session(&pool, "c", LONG).await?);
        alive.join(&pool).await?;
        let mut threads = Vec::new();
        for i in 0..250 {
            threads.push(many.thread(format!("{i:03}"))?);
            threads[i].join(&pool).await?;
        }
        let sessions = pool.sessions().await?;
        ensure!(sessions.len() == 252 && sessions.is_sorted(), "{} sessions", sessions.len());
        ensure!(sessions.iter().filter(|session| !session.alive).count() == 1);
        ensure!(sessions[1].name == "b#1" && sessions[251].name == "c/249");

        // Since its time was over, two seconds ago.
        clock.advance(Duration::from_secs(3598));
        pool.gc(200).await?;
        ensure!(listed(&pool, "b#1").await?.leases == 0);
        clock.advance(Duration::from_millis(1));
        pool.gc(200).await?;
        ensure!(listed(&pool, "b#1").await.is_err(), "it is remembered for more than an hour");
        drop(lease);
        is_clean(&pool).await
    })
    .await
}

#[tokio::test]
async fn what_is_no_session_is_refused() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let client = Client::connect(&server.url()).await?;
        for name in ["", "a\0b", &"x".repeat(501)] {
            let refused = client.session(name).start().await;
            ensure!(matches!(refused, Err(Error::InvalidName { .. })), "{refused:?}");
        }
        for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(86_401), Duration::MAX] {
            let refused = client.session("x").ttl(ttl).start().await;
            ensure!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        }
        let session = client.session("x".repeat(500)).start().await?;
        ensure!(session.thread("t").is_err() && session.ttl() == Duration::from_secs(30));
        let unknown = session.join(&client.pool("nowhere")?).await;
        ensure!(matches!(unknown, Err(Error::UnknownPool { .. })), "{unknown:?}");
        let pool = pool_of(&server.url(), 1).await?;
        let stranger = pool.malloc().session(&session).await;
        ensure!(matches!(stranger, Err(Error::Invalid { .. })), "{stranger:?}");
        ensure!(pool.sessions().await?.is_empty() && pool.info().await?.counts.free == 1);
        // A pool that grants nothing for so long.
        let brief = client.pool("brief")?;
        let second = Duration::from_secs(1);
        let settings = PoolSettings { default_ttl: second, max_ttl: Some(second), ..PoolSettings::default() };
        brief.configure(&settings, &Ownership::default()).await?;
        let long = session.join(&brief).await;
        ensure!(matches!(long, Err(Error::TtlRefused { .. })), "{long:?}");
        client.session("x").ttl(second).start().await?.join(&brief).await?;
        // The longest name there may be.
        let pool = client.pool("gpus")?;
        let lease = lease_of(&session, &pool).await?;
        ensure!(listed(&pool, &"x".repeat(500)).await?.leases == 1);
        lease.free().await?;
        is_clean(&pool).await
    })
    .await
}
