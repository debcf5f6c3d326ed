//! A session keeps its leases by its heartbeats; without them it loses them when its time is over, and not before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Proxy, Server, eventually};
use redis_allocator::{CLOCK_SLACK, Client, Error, Lease};

use crate::scene::{
    SHORT, SLACK, SOON, granted_after, heard_of_since, in_a_process_that_dies, is_clean, lease_of, leases_of, listed,
    pool_of, session, told_at_the_deadline,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_heartbeat_keeps_all_leases() -> Result<()> {
    const LEASES: usize = 500;
    const TTL: Duration = Duration::from_secs(6);
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), LEASES).await?;
        let (session, loner) = (session(&pool, "trainer-1", TTL).await?, session(&pool, "loner", TTL).await?);
        loner.join(&pool).await?;
        let leases = leases_of(&session, &pool, LEASES).await?;
        ensure!(leases[0].ttl() == Some(TTL) && listed(&pool, "trainer-1").await?.leases == LEASES as u64);
        // The first heartbeat after a change looks at them one by one.
        let first = leases[0].deadline();
        heard_of_since(first, &leases[0]).await?;

        let (before, began, from) = (server.command_stats().await?, Instant::now(), leases[0].deadline());
        eventually(SOON, async || {
            let now = leases[0].deadline().context("no deadline")?;
            ensure!(now > from.context("no deadline")? + TTL * 2, "it has not lived twice as long yet");
            Ok(())
        })
        .await?;
        let turns = began.elapsed().as_secs() + 2;
        let scripts = server.command_stats().await?.since(&before).get("evalsha").copied().unwrap_or(0);
        // Two sessions beat three times in their time to live, that is every two seconds. Each lease follows.
        ensure!(scripts >= 8 && scripts <= 2 * turns, "{scripts} scripts in {turns} s");
        ensure!(leases.iter().all(|lease| !lease.is_lost() && lease.deadline() == leases[0].deadline()));

        for lease in &leases[..3] {
            lease.keep_alive();
            lease.renew_for(Duration::from_millis(1)).await?;
            lease.renew().await?;
        }
        ensure!(leases[0].remaining().context("an end")? > TTL / 2, "{leases:?}");
        let results = pool.free_all(leases).await?;
        ensure!(results.iter().all(Result::is_ok) && listed(&pool, "trainer-1").await?.leases == 0);
        is_clean(&pool).await?;
        session.end().await?;
        loner.end().await?;
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_loses_its_leases_in_time_and_not_before() -> Result<()> {
    const LEASES: usize = 300;
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let (url, pool) = (server.url(), pool_of(&server.url(), LEASES).await?);
        let (deadline, greatest) = in_a_process_that_dies(async move || {
            let pool = Client::connect(&url).await?.pool("gpus")?;
            let session = session(&pool, "trainer-1", SHORT).await?;
            let leases = leases_of(&session, &pool, LEASES).await?;
            let deadline = leases[0].deadline().context("no deadline")?;
            let greatest = leases.iter().map(Lease::fencing_token).max().context("no lease")?;
            // A heartbeat later.
            heard_of_since(Some(deadline), &leases[0]).await?;
            let deadline = leases[0].deadline().context("no deadline")?;
            Ok(((session, leases), (deadline, greatest)))
        })
        .await?;
        ensure!(listed(&pool, "trainer-1").await?.leases == LEASES as u64);

        // What nobody has but the dead comes back to whoever asks, and not before its time.
        let lease = granted_after(|| Some(deadline + SLACK), &pool).await?;
        // A heartbeat may have been on its way when it died.
        let over = deadline + SHORT + CLOCK_SLACK;
        ensure!(!(over + SOON / 3).is_past(), "its leases ended late");
        ensure!(lease.fencing_token() > greatest);
        ensure!(!listed(&pool, "trainer-1").await?.alive);
        let mut ended = Vec::new();
        loop {
            let report = pool.gc(200).await?;
            ended.push(report.expired.len());
            if !report.more {
                break;
            }
        }
        ensure!(ended.iter().all(|&ended| ended <= 200), "{ended:?}");
        // A malloc that finds nothing ends sixteen on its way.
        ensure!(ended.iter().sum::<usize>() == LEASES - 16, "{ended:?}");
        ensure!(pool.info().await?.counts.free == LEASES as u64 - 1, "{:?}", pool.info().await?.counts);
        ensure!(listed(&pool, "trainer-1").await?.leases == 0);
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_takes_nothing_before_the_deadline() -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(1);
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let pool = pool_of(&server.url(), 2).await?;
        let other = Client::connect(&server.url()).await?.pool("gpus")?;
        let session = session(&pool, "trainer-1", SHORT).await?;
        let leases = leases_of(&session, &pool, 2).await?;
        ensure!(other.malloc().await?.is_none());
        let token = leases[1].lost_token();
        // Not long enough to lose anything.
        for _ in 0..2 {
            server.pause()?;
            tokio::time::sleep(PAUSE).await;
            server.resume()?;
            tokio::time::sleep(PAUSE).await;
            ensure!(!leases[0].is_lost() && other.malloc().await?.is_none(), "{leases:?}");
        }
        server.pause()?;
        told_at_the_deadline(&leases[0]).await?;
        // All of them at once.
        ensure!(leases[1].is_lost());
        tokio::time::timeout(SOON, token.cancelled()).await.context("the other one is not told")?;
        server.resume()?;
        // What it was sent meanwhile made it think otherwise, for a while.
        let granted = granted_after(|| leases[0].deadline(), &other).await?;
        ensure!(granted.fencing_token() > leases[1].fencing_token());
        granted.free().await?;

        // The session goes on, and what it had stays over.
        let again = eventually(SOON, async || lease_of(&session, &pool).await).await?;
        ensure!(!again.is_lost() && leases.iter().all(Lease::is_lost));
        let mut ids: Vec<_> = pool.sessions().await?.into_iter().map(|session| session.id).collect();
        ids.dedup();
        ensure!(ids.len() == 2, "{ids:?}");
        again.free().await?;
        is_clean(&pool).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_takes_nothing_before_the_deadline() -> Result<()> {
    const LATENCY: Duration = Duration::from_millis(600);
    const TTL: Duration = Duration::from_secs(6);
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let proxy = Proxy::start(server.port()).await?;
        let other = pool_of(&server.url(), 1).await?;
        let pool = Client::connect(&proxy.url()).await?.pool("gpus")?;
        let session = session(&pool, "trainer-1", TTL).await?;
        let lease = lease_of(&session, &pool).await?;
        // Broken and mended within its time, it goes on.
        let before = lease.deadline();
        proxy.cut();
        heard_of_since(before, &lease).await?;
        ensure!(!lease.is_lost());

        // A slow one: its time counts from before the heartbeat was sent.
        proxy.delay(LATENCY);
        let before = lease.deadline();
        heard_of_since(before, &lease).await?;
        lease.renew().await?;
        ensure!(lease.remaining().context("an end")? + LATENCY <= TTL, "{:?} are left", lease.remaining());
        proxy.delay(Duration::ZERO);

        proxy.hold();
        proxy.cut();
        proxy.refuse();
        let (told, granted) = tokio::join!(
            told_at_the_deadline(&lease),
            granted_after(|| lease.deadline().map(|deadline| deadline + SLACK), &other)
        );
        told?;
        let granted = granted?;
        proxy.pass();
        let told = lease.free().await;
        ensure!(matches!(told, Err(Error::NotOwner { .. })), "{told:?}");
        granted.free().await?;
        is_clean(&other).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_restarts_under_the_same_name_revives_nothing() -> Result<()> {
    Flavor::both(async |flavor| {
        let server = Server::start(flavor).await?;
        let (url, pool) = (server.url(), pool_of(&server.url(), 2).await?);
        let (dead, deadline) = in_a_process_that_dies(async move || {
            let pool = Client::connect(&url).await?.pool("gpus")?;
            let session = session(&pool, "trainer-1", SHORT).await?;
            let lease = lease_of(&session, &pool).await?;
            let told = (session.id().to_owned(), lease.deadline().context("no deadline")?);
            Ok(((session, lease), told))
        })
        .await?;
        let session = session(&pool, "trainer-1", SHORT * 2).await?;
        let lease = lease_of(&session, &pool).await?;
        ensure!(session.id() != dead && session.name() == "trainer-1");
        let other = granted_after(|| Some(deadline + SLACK), &pool).await?;
        ensure!(other.key() != lease.key());
        ensure!(!lease.is_lost());
        let sessions = pool.sessions().await?;
        let (alive, gone): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|session| session.alive);
        ensure!(alive.len() == 1 && alive[0].id == session.id() && alive[0].leases == 1, "{alive:?}");
        ensure!(gone.len() == 1 && gone[0].id == dead && gone[0].leases == 0, "{gone:?}");
        session.end().await?;
        drop(other);
        is_clean(&pool).await
    })
    .await
}
