//! Sessions: one heartbeat keeps all leases, whoever dies loses them in time and not before, and nothing that is over
//! comes back.

use std::{
    future::{Future, IntoFuture},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Proxy, Server, eventually};
use redis_allocator::{
    BootInstant, CLOCK_SLACK, Client, Error, Lease, LostReason, Mode, Ownership, Pool, PoolSettings, ResourceKey,
    Session, SessionInfo, test_clock::TestClock,
};
use tokio_util::task::AbortOnDropHandle;

/// For what must happen, on a machine that may have no time.
const SOON: Duration = Duration::from_secs(30);
/// Of a test: many times what it takes.
const LIMIT: Duration = Duration::from_mins(5);
/// Time to live of sessions that are not to die, even if this machine is busy.
const LONG: Duration = Duration::from_mins(1);
/// Time to live of sessions that are to die.
const SHORT: Duration = Duration::from_secs(6);
/// The clocks' slack, less what rounding to milliseconds takes.
const SLACK: Duration = Duration::from_millis(1990);

/// Runs a test on both flavours at once.
async fn on_both<F: Future<Output = Result<()>>>(test: impl Fn(Flavor) -> F) -> Result<()> {
    let both = async {
        let (redis, valkey) = tokio::join!(test(Flavor::Redis), test(Flavor::Valkey));
        redis.context("on Redis").and(valkey.context("on Valkey"))
    };
    tokio::time::timeout(LIMIT, both).await.with_context(|| format!("did not end within {LIMIT:?}"))?
}

fn keys(size: usize) -> Vec<ResourceKey> {
    (0..size).map(|i| ResourceKey::new(format!("r{i}")).unwrap()).collect()
}

async fn fill(pool: &Pool, size: usize) -> Result<()> {
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    for keys in keys(size).chunks(200) {
        pool.extend(keys.to_vec()).await?;
    }
    Ok(())
}

/// A pool of so many resources.
async fn pool_of(url: &str, size: usize) -> Result<Pool> {
    let pool = Client::connect(url).await?.pool("gpus")?;
    fill(&pool, size).await?;
    Ok(pool)
}

async fn session(pool: &Pool, name: &str, ttl: Duration) -> Result<Session> {
    Ok(pool.client().session(name).ttl(ttl).start().await?)
}

/// So many leases of a session.
async fn leases_of(session: &Session, pool: &Pool, count: usize) -> Result<Vec<Lease>> {
    let mut leases = Vec::with_capacity(count);
    while leases.len() < count {
        let more = pool.malloc().session(session).up_to((count - leases.len()).min(200)).await?;
        ensure!(!more.is_empty(), "only {} of {count} can be had", leases.len());
        leases.extend(more);
    }
    Ok(leases)
}

async fn lease_of(session: &Session, pool: &Pool) -> Result<Lease> {
    pool.malloc().session(session).await?.context("nothing is free")
}

async fn is_clean(pool: &Pool) -> Result<()> {
    let violations = pool.check().await?;
    ensure!(violations.is_empty(), "{violations:?}");
    Ok(())
}

/// What the pool knows of the one session of this name.
async fn listed(pool: &Pool, name: &str) -> Result<SessionInfo> {
    let mut sessions = pool.sessions().await?;
    sessions.retain(|session| session.name == name);
    ensure!(sessions.len() == 1, "not one session is called {name}: {sessions:?}");
    sessions.pop().context("there is one")
}

/// Runs something in a runtime of its own that ends in the midst, as a process that is killed: nothing is dropped, and
/// nobody is told anything.
async fn in_a_process_that_dies<T, F, R>(work: F) -> Result<R>
where
    F: AsyncFnOnce() -> Result<(T, R)> + Send + 'static,
    R: Send + 'static,
{
    let died = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (held, result) = runtime.block_on(work())?;
        runtime.shutdown_background();
        std::mem::forget(held);
        anyhow::Ok(result)
    });
    died.await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_heartbeat_keeps_all_leases() -> Result<()> {
    const LEASES: usize = 500;
    const TTL: Duration = Duration::from_secs(6);
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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

/// Waits for a heartbeat of its session that was sent later than the one this deadline comes from.
async fn heard_of_since(deadline: Option<BootInstant>, lease: &Lease) -> Result<()> {
    eventually(SOON, async || {
        ensure!(lease.deadline() > deadline, "no heartbeat since: {lease:?}");
        Ok(())
    })
    .await
}

/// Waits until a lease is lost, and looks whether it was told at its deadline.
async fn told_at_the_deadline(lease: &Lease) -> Result<()> {
    let deadline = lease.deadline().context("no deadline")?;
    tokio::time::timeout(SOON, lease.lost()).await.context("it is not told")?;
    ensure!(deadline.is_past() && !(deadline + SOON / 2).is_past(), "told at another time");
    ensure!(lease.is_lost() && lease.lost_reason() == Some(LostReason::Expired), "{lease:?}");
    let renewed = lease.renew().await;
    ensure!(matches!(renewed, Err(Error::Lost { reason: LostReason::Expired, .. })), "{renewed:?}");
    Ok(())
}

/// Has somebody else ask for a resource again and again until it is granted, and looks whether that was after this moment.
async fn granted_after(moment: impl Fn() -> Option<BootInstant>, pool: &Pool) -> Result<Lease> {
    let end = Instant::now() + SOON;
    loop {
        // What a paused server grants, it grants after it was asked.
        let before = moment().context("no deadline")?;
        if let Some(lease) = pool.malloc().await? {
            let moment = moment().context("no deadline")?;
            ensure!(moment == before && moment.is_past(), "granted {:?} early", moment.remaining());
            return Ok(lease);
        }
        ensure!(Instant::now() < end, "nothing is free");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_takes_nothing_before_the_deadline() -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(1);
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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
async fn the_end_of_a_session_is_the_end_of_its_leases() -> Result<()> {
    const LEASES: usize = 450;
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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
async fn the_dead_are_listed_for_an_hour() -> Result<()> {
    on_both(async |flavor| {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_restarts_under_the_same_name_revives_nothing() -> Result<()> {
    on_both(async |flavor| {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_everything_is_told_of_at_once() -> Result<()> {
    const TTL: Duration = Duration::from_secs(9);
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_shared_pool_each_share_is_the_sessions_own() -> Result<()> {
    on_both(async |flavor| {
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
    on_both(async |flavor| {
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

#[tokio::test]
async fn what_is_no_session_is_refused() -> Result<()> {
    on_both(async |flavor| {
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
