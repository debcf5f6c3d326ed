//! A server that loses what it had acknowledged: everything (FLUSHALL), what came after a backup, or what a promoted
//! replica had not received. What is promised then: a pool that is made anew by whoever remembers it is held back until
//! the leases that nobody knows any more are over; after a rollback, two may use a resource until the older one's
//! deadline at most; no fencing token ever comes twice; the pool is whole again afterwards.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor, Proxy, Server, Witness, eventually,
    proxy::Fate,
    replica::Replica,
    witness::{self, Use},
};
use redis_allocator::{
    CLOCK_SLACK, Cause, Client, Error, Hold, Known, Lease, Longest, LostReason, Ownership, Place, Pool, PoolSettings,
    ResourceKey, Timestamp, test_clock::TestClock,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Longest time to live that the pools under load grant.
const LONGEST: Duration = Duration::from_secs(2);
/// For what must happen soon, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(30);
const WORKERS: usize = 6;
const SIZE: u64 = 8;

fn keys() -> Vec<ResourceKey> {
    (0..SIZE).map(|i| ResourceKey::new(format!("r{i}")).unwrap()).collect()
}

fn settings() -> PoolSettings {
    PoolSettings { default_ttl: LONGEST, max_ttl: Some(LONGEST), ..PoolSettings::default() }
}

/// Workloads that take, use and give back, each through a connection of its own, and report each use.
struct Load {
    tasks: JoinSet<Result<()>>,
    stop: CancellationToken,
}

impl Load {
    async fn start(url: &str, witness: &Witness) -> Result<Self> {
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        for number in 0..WORKERS {
            let holder: Arc<str> = format!("worker-{number}").into();
            let client = Client::builder(url).owner(&*holder).timeout(SOON).connect().await?;
            tasks.spawn(work(client.pool("load")?, witness.clone(), holder, number, stop.clone()));
        }
        Ok(Self { tasks, stop })
    }

    async fn end(mut self) -> Result<()> {
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

/// Keeps the pool as the agent does: remembers its life and its longest lease, and makes it anew when it is gone.
async fn keep(pool: Pool, remembered: Arc<Mutex<Option<Known>>>, recovered: watch::Sender<u32>) -> Result<()> {
    loop {
        match pool.info().await {
            Ok(info) => {
                let known = Known { incarnation: info.incarnation, longest: info.longest };
                *remembered.lock().unwrap() = Some(known);
            }
            Err(Error::UnknownPool { .. }) => {
                let known = remembered.lock().unwrap().clone();
                let ownership = Ownership { manager: Some("test"), known: known.as_ref() };
                let configured = pool.configure(&settings(), &ownership).await?;
                ensure!(configured.created && configured.recovered == known.is_some(), "{configured:?}");
                pool.extend(keys()).await?;
                recovered.send_modify(|times| *times += 1);
            }
            Err(error) => ensure!(error.is_transient(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until leases are held, so that there is something to lose.
async fn busy(pool: &Pool) -> Result<()> {
    eventually(SOON, async || {
        let counts = pool.info().await?.counts;
        ensure!(counts.leased >= 4, "{counts:?}");
        Ok(())
    })
    .await
}

/// Waits until all resources are free again, once nobody asks for them.
async fn whole(pool: &Pool) -> Result<()> {
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

async fn everything_is_lost_under_load(flavor: Flavor) -> Result<()> {
    let (server, record) = (Server::start(flavor).await?, Server::start(Flavor::Redis).await?);
    let witness = Witness::connect(&record.url()).await?;
    let pool = Client::connect(&server.url()).await?.pool("load")?;
    let (recovered, mut recoveries) = watch::channel(0);
    let remembered = Arc::new(Mutex::new(None));
    let agent = AbortOnDropHandle::new(tokio::spawn(keep(pool.clone(), Arc::clone(&remembered), recovered)));
    recoveries.wait_for(|&times| times == 1).await?;
    let load = Load::start(&server.url(), &witness).await?;
    for times in 2..=3 {
        busy(&pool).await?;
        let mine = eventually(SOON, async || pool.malloc().await?.context("nothing is free")).await?;
        // The agent has seen what was granted.
        eventually(SOON, async || {
            let incarnation = pool.info().await?.incarnation;
            let known = remembered.lock().unwrap().clone().context("nothing is remembered")?;
            ensure!(known.incarnation == incarnation && known.longest == Longest::For(LONGEST), "{known:?}");
            Ok(())
        })
        .await?;
        let before = pool.info().await?;
        mine.renew().await?;
        let renewed = Instant::now();
        server.flushall().await?;
        recoveries.wait_for(|&seen| seen == times).await?;
        let after = pool.info().await?;
        ensure!(after.incarnation != before.incarnation);
        ensure!((after.counts.quarantined, after.counts.free) == (SIZE, 0), "{:?}", after.counts);
        let Some(Hold::Until(until)) = after.hold else { anyhow::bail!("not held back: {after:?}") };
        // It began between the two looks.
        let from = |moment: Timestamp| Duration::from_millis(until.as_millis().saturating_sub(moment.as_millis()));
        let hold = LONGEST + CLOCK_SLACK;
        ensure!(from(after.now) <= hold && from(before.now) >= hold, "held back until {until:?}: {before:?} {after:?}");

        // A renewal tells at once, unless this machine took so long that the holder's own time is over.
        let told = mine.renew().await;
        let Err(Error::Lost { reason, .. }) = told else { anyhow::bail!("{told:?}") };
        let over = renewed.elapsed() >= LONGEST && reason == LostReason::Expired;
        ensure!(reason == LostReason::PoolLost || over, "{reason:?}");
        ensure!(mine.lost_reason() == Some(reason), "{mine:?}");
        // Nobody gets anything before the hold is over.
        let early = pool.malloc().await?;
        ensure!(early.as_ref().is_none_or(|lease| lease.granted_at() >= until), "granted before {until:?}: {early:?}");
        drop(early);
        let token = eventually(hold + SOON, async || {
            let info = pool.info().await?;
            ensure!(info.counters.granted > 0, "{:?}", info.counts);
            ensure!(info.now >= until, "granted {} ms early", until.as_millis() - info.now.as_millis());
            Ok(info.last_token)
        })
        .await?;
        ensure!(token > before.last_token, "{token} after {}", before.last_token);
    }
    busy(&pool).await?;
    load.end().await?;
    ensure!(!agent.is_finished(), "the agent failed: {:?}", agent.await);
    whole(&pool).await?;
    let (counts, refusals) = (witness.counts().await?, witness.refusals().await?);
    println!("{flavor}: everything lost twice; {counts:?}");
    // Not even once: the hold outlasts whoever did not hear.
    ensure!(refusals.is_empty(), "{refusals:#?}");
    ensure!(counts.grants >= 12 && counts.excused == 0, "{counts:?}");
    Ok(())
}

/// How a server comes to know less than it did.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rollback {
    /// It is restarted from a backup.
    Backup,
    /// A replica that lagged is promoted in its place.
    Replica,
}

/// One address for whichever server is the master, as a Kubernetes Service is. Without one it refuses everybody.
struct Service {
    port: u16,
    upstream: watch::Sender<Option<u16>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Service {
    async fn start(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let upstream = watch::Sender::new(Some(upstream));
        let target = upstream.subscribe();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut target = target.clone();
                connections.spawn(async move {
                    let Some(port) = *target.borrow_and_update() else { return };
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = target.changed() => {}
                    }
                });
            }
        });
        Ok(Self { port, upstream, _accepting: AbortOnDropHandle::new(accepting) })
    }
}

async fn a_rollback_under_load(flavor: Flavor, rollback: Rollback) -> Result<()> {
    let (server, record) = (Server::start(flavor).await?, Server::start(Flavor::Redis).await?);
    let witness = Witness::connect(&record.url()).await?;
    let service = Service::start(server.port()).await?;
    let url = format!("redis://127.0.0.1:{}", service.port);
    let pool = Client::connect(&url).await?.pool("load")?;
    pool.configure(&settings(), &Ownership::default()).await?;
    pool.extend(keys()).await?;
    let replica = Replica::of(&server).await?;
    let load = Load::start(&url, &witness).await?;
    busy(&pool).await?;

    let backup = server.save().await?;
    replica.lag();
    tokio::time::sleep(LONGEST).await;
    busy(&pool).await?;
    let before = pool.info().await?;
    let lost_from = witness::now();
    server.kill();
    service.upstream.send_replace(None);
    let master = match rollback {
        Rollback::Backup => {
            server.restart_from(&backup).await?;
            &server
        }
        Rollback::Replica => {
            replica.promote().await?;
            replica.server()
        }
    };
    // Before anybody reaches it.
    let known: u64 = master.cmd(&["HGET", "ra:{default/load}:meta", "last"]).await?;
    service.upstream.send_replace(Some(master.port()));
    let lost_until = witness::now();

    // Whatever nobody knew of is over now. Nothing that happens from here on is excused.
    tokio::time::sleep(LONGEST).await;
    let settled = witness::now();
    let grants = witness.counts().await?.grants;
    busy(&pool).await?;
    tokio::time::sleep(LONGEST).await;
    eventually(SOON, async || {
        ensure!(witness.counts().await?.grants > grants, "nothing was granted afterwards");
        Ok(())
    })
    .await?;
    load.end().await?;
    whole(&pool).await?;

    let (counts, refusals, info) = (witness.counts().await?, witness.refusals().await?, pool.info().await?);
    let window = u64::try_from(lost_from.as_millis())?..u64::try_from(settled.as_millis())?;
    let (within, outside): (Vec<_>, Vec<_>) = refusals.into_iter().partition(|refusal| window.contains(&refusal.at()));
    println!(
        "{flavor}, {rollback:?}: away for {:?}, {} grants, {} uses, {} refused for a while",
        lost_until.saturating_sub(lost_from),
        counts.grants,
        counts.uses,
        within.len()
    );
    ensure!(outside.is_empty(), "refused outside of the bounds: {outside:#?}");
    ensure!(within.iter().all(|refusal| refusal.why != "token-repeated"), "{within:#?}");
    ensure!(info.incarnation == before.incarnation && info.last_token > before.last_token, "{info:?}");
    ensure!(known <= before.last_token, "it lost nothing");
    Ok(())
}

/// Many times what it takes.
const LIMIT: Duration = Duration::from_mins(5);

async fn in_time(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::time::timeout(LIMIT, work).await.with_context(|| format!("did not end within {LIMIT:?}"))?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refilled_is_held_back_until_lost_leases_are_over() -> Result<()> {
    in_time(async {
        let (redis, valkey) = tokio::join!(
            Box::pin(everything_is_lost_under_load(Flavor::Redis)),
            Box::pin(everything_is_lost_under_load(Flavor::Valkey))
        );
        redis.and(valkey)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_is_settled_within_a_time_to_live() -> Result<()> {
    in_time(async {
        let (redis, valkey) = tokio::join!(
            Box::pin(a_rollback_under_load(Flavor::Redis, Rollback::Backup)),
            Box::pin(a_rollback_under_load(Flavor::Valkey, Rollback::Backup))
        );
        redis.and(valkey)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lagged_is_settled_within_a_time_to_live() -> Result<()> {
    in_time(async {
        let (redis, valkey) = tokio::join!(
            Box::pin(a_rollback_under_load(Flavor::Redis, Rollback::Replica)),
            Box::pin(a_rollback_under_load(Flavor::Valkey, Rollback::Replica))
        );
        redis.and(valkey)
    })
    .await
}

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
    in_time(async {
        for flavor in Flavor::ALL {
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
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn after_permanent_leases_an_operator_ends_the_hold() -> Result<()> {
    in_time(async {
        for flavor in Flavor::ALL {
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
        }
        Ok(())
    })
    .await
}

/// Somebody else was faster than the one who remembers, and its reply was lost besides.
#[tokio::test]
async fn a_pool_made_anew_by_another_is_held_back_too() -> Result<()> {
    in_time(async {
        for flavor in Flavor::ALL {
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
        }
        Ok(())
    })
    .await
}
