//! Replies that are lost after the server has done what they tell of, on one server and on a Cluster, by a connection
//! that closes and by one that falls silent: nothing is done twice, and nothing stays taken that nobody knows of.

use std::{
    ops::AsyncFn,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor, Proxy, Server,
    cluster::Cluster,
    eventually,
    proxy::{Exchange, Fate},
};
use redis_allocator::{
    BindOptions, BindPolicy, CLOCK_SLACK, Cause, Client, Error, Item, Lease, Longest, LostReason, Origin, Ownership,
    Place, Pool, PoolSettings, ResourceKey, SyncOptions, SyncOutcome, Ttl,
};
use tokio::sync::Semaphore;

/// How long a call of a client may take: short, as many calls here get no answer.
const TIMEOUT: Duration = Duration::from_secs(3);
const TTL: Duration = Duration::from_secs(1);
/// For what must happen soon, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(30);
/// How long a permanent grant is only claimed, until it is confirmed.
const CLAIM: Duration = Duration::from_secs(10);
const SIZE: usize = 8;

/// Of one scenario: many times what it takes.
const LIMIT: Duration = Duration::from_mins(5);

/// Few at a time: with all these servers starting at once, a small machine would not answer within [`TIMEOUT`].
static TURNS: Semaphore = Semaphore::const_new(4);

/// Runs a scenario when it is its turn.
async fn in_turn(scenario: impl Future<Output = Result<()>>) -> Result<()> {
    let _turn = TURNS.acquire().await?;
    tokio::time::timeout(LIMIT, scenario).await.with_context(|| format!("did not end within {LIMIT:?}"))?
}

/// Servers behind proxies.
enum Deployment {
    Single(Server, Proxy),
    Cluster(Cluster),
}

/// A pool whose replies can be lost, and the same pool seen through a connection that loses nothing.
struct Scene<'a> {
    pool: Pool,
    sound: Pool,
    proxy: &'a Proxy,
    server: &'a Server,
}

impl Deployment {
    async fn single(flavor: Flavor) -> Result<Self> {
        let server = Server::start(flavor).await?;
        let proxy = Proxy::start(server.port()).await?;
        Ok(Self::Single(server, proxy))
    }

    async fn cluster() -> Result<Self> {
        Ok(Self::Cluster(Cluster::start_with_proxies(Flavor::Redis).await?))
    }

    async fn scene(&self, name: &str) -> Result<Scene<'_>> {
        let (url, sound, proxy, server) = match self {
            Self::Single(server, proxy) => (proxy.url(), server.url(), proxy, server),
            Self::Cluster(cluster) => {
                let slot = cluster.slot_of(&format!("ra:{{default/{name}}}:meta")).await?;
                let owner = cluster.owner_of(slot).await?;
                let url = format!("redis+cluster://{}", cluster.addresses().join(","));
                (url.clone(), url, owner.proxy().context("the Cluster has no proxies")?, owner.server())
            }
        };
        let sound = Client::builder(sound).timeout(SOON).connect_timeout(SOON).connect().await?.pool(name)?;
        let settings = PoolSettings { default_ttl: TTL, ..PoolSettings::default() };
        sound.configure(&settings, &Ownership::default()).await?;
        let keys = (0..SIZE).map(|i| ResourceKey::new(format!("r{i}"))).collect::<Result<Vec<_>, _>>()?;
        sound.extend(keys).await?;
        let pool = Client::builder(url).timeout(TIMEOUT).connect_timeout(TIMEOUT).connect().await?.pool(name)?;
        // The scripts are known, so that no reply but the one meant is lost.
        pool.malloc().await?.context("nothing is free")?.free().await?;
        Ok(Scene { pool, sound, proxy, server })
    }
}

/// A reply that tells of something done.
fn done(exchange: &Exchange<'_>) -> bool {
    exchange.is("EVALSHA") && !exchange.is_error()
}

impl Scene<'_> {
    /// Loses the replies to the next scripts that run.
    async fn lose(&self, count: u64, fate: Fate) -> Result<()> {
        self.ready().await?;
        self.proxy.drop_replies_where(count, fate, done);
        Ok(())
    }

    /// Ends an earlier fault, and waits for a connection that answers: one that fell silent between two replies is
    /// believed in until it is missed.
    async fn ready(&self) -> Result<()> {
        self.proxy.pass();
        eventually(SOON, async || Ok(self.pool.info().await?)).await.map(drop)
    }

    /// Loses the reply to the script that runs after `n` others.
    async fn lose_nth(&self, n: usize, fate: Fate) -> Result<()> {
        self.ready().await?;
        let seen = AtomicUsize::new(0);
        self.proxy
            .drop_replies_where(1, fate, move |exchange| done(exchange) && seen.fetch_add(1, Ordering::Relaxed) == n);
        Ok(())
    }

    async fn granted(&self) -> Result<u64> {
        Ok(self.sound.info().await?.counters.granted)
    }

    /// Whatever was granted was given back, long before its time was over.
    async fn nothing_expired(&self) -> Result<()> {
        let counters = self.sound.info().await?.counters;
        ensure!(counters.expired == 0, "{counters:?}");
        Ok(())
    }

    /// Waits until everything is free again, with the help of a collector; no longer than that.
    async fn all_come_back(&self, within: Duration) -> Result<()> {
        eventually(within, async || {
            self.sound.gc(200).await?;
            let counts = self.sound.info().await?.counts;
            ensure!(counts.free == counts.total, "{counts:?}");
            Ok(())
        })
        .await?;
        ensure!(self.sound.check().await?.is_empty(), "{:?}", self.sound.check().await?);
        Ok(())
    }
}

/// Runs a scenario on Redis, Valkey and a Cluster, with connections that close and connections that fall silent.
async fn everywhere(name: &str, scenario: impl AsyncFn(&Scene<'_>, Fate) -> Result<()>) -> Result<()> {
    let one = async |deployment: Deployment, number: usize| {
        for fate in [Fate::Close, Fate::Silence] {
            let scene = deployment.scene(&format!("{name}-{number}-{}", fate == Fate::Close)).await?;
            let dropped = scene.proxy.dropped();
            scenario(&scene, fate).await.with_context(|| format!("{name} {number}, {}, {fate:?}", scene.server))?;
            ensure!(scene.proxy.dropped() > dropped, "no reply was lost");
            scene.proxy.pass();
            scene.proxy.cut();
        }
        Ok(())
    };
    let all = async {
        tokio::try_join!(
            Box::pin(one(Deployment::single(Flavor::Redis).await?, 0)),
            Box::pin(one(Deployment::single(Flavor::Valkey).await?, 1)),
            Box::pin(one(Deployment::cluster().await?, 2)),
        )
        .map(drop)
    };
    in_turn(all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_nobody_heard_of_ends_by_its_time() -> Result<()> {
    everywhere("grant", async |scene, fate| {
        let (granted, before) = (scene.granted().await?, scene.server.command_stats().await?);
        scene.lose(1, fate).await?;
        let error = scene.pool.malloc().await.err().context("a reply came through")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "malloc", .. }), "{error}");
        ensure!(scene.granted().await? == granted + 1, "{granted} grants became {}", scene.granted().await?);
        let after = scene.server.command_stats().await?;
        ensure!(after.calls("zpopmin") == before.calls("zpopmin") + 1, "executed more than once");
        // The next call is not harmed, and gets another resource.
        let lease = scene.pool.malloc().ttl(TTL * 60).await?.context("others are free")?;
        let info = scene.sound.info().await?;
        ensure!(info.counts.leased <= 2, "{:?}", info.counts);
        lease.free().await?;
        scene.all_come_back(TTL + CLOCK_SLACK + SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_late_reply_brings_is_freed() -> Result<()> {
    let late = async {
        for deployment in [
            Deployment::single(Flavor::Redis).await?,
            Deployment::single(Flavor::Valkey).await?,
            Deployment::cluster().await?,
        ] {
            for (name, ttl) in [("timed", Ttl::For(TTL * 600)), ("permanent", Ttl::Permanent)] {
                let scene = deployment.scene(name).await?;
                let granted = scene.granted().await?;
                let key = |part| format!("ra:{{default/{name}}}:{part}");
                scene.proxy.hold_replies();
                let error = scene.pool.malloc().ttl(ttl).await.err().context("a reply came through")?;
                ensure!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
                // Asked directly: in a Cluster, every client goes through the proxy.
                let seen: u64 = scene.server.cmd(&["HGET", &key("meta"), "granted"]).await?;
                ensure!(seen == granted + 1, "{granted} grants became {seen}");
                let leased: u64 = scene.server.cmd(&["ZCARD", &key("leases")]).await?;
                ensure!(leased == 1, "freed before its reply came");
                scene.proxy.pass();
                scene.all_come_back(SOON).await?;
                scene.nothing_expired().await?;
                ensure!(scene.granted().await? == granted + 1, "granted again");
            }
        }
        Ok(())
    };
    in_turn(late).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_grant_begins_as_a_claim() -> Result<()> {
    everywhere("claim", async |scene, fate| {
        scene.lose(1, fate).await?;
        let error = scene.pool.malloc().permanent().await.err().context("a reply came through")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "malloc", .. }), "{error}");
        let leased = scene.sound.snapshot().await?.into_iter().find_map(|resource| match resource.place {
            Place::Leased(lease) => Some(lease),
            _ => None,
        });
        let lease = leased.context("nothing is leased")?;
        let expires = lease.expires_at.context("it is permanent although nobody heard of it")?;
        ensure!(expires.as_millis() - lease.granted_at.as_millis() == 10_000, "{lease:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_nobody_confirms_is_over_in_time() -> Result<()> {
    let claim = async {
        let deployment = Deployment::single(Flavor::Redis).await?;
        let scene = deployment.scene("claim").await?;
        scene.lose(1, Fate::Close).await?;
        let asked = Instant::now();
        scene.pool.malloc().permanent().await.err().context("a reply came through")?;
        scene.all_come_back(CLAIM + CLOCK_SLACK + SOON).await?;
        let took = asked.elapsed();
        ensure!(took > CLAIM, "it was over after {took:?}: somebody else ended it");
        Ok(())
    };
    in_turn(claim).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_is_repeated_or_given_up() -> Result<()> {
    everywhere("confirm", async |scene, fate| {
        // Lost once: said again, and the grant is permanent.
        scene.proxy.drop_replies_where(1, fate, |exchange| done(exchange) && is_renewal(exchange));
        let lease = scene.pool.malloc().permanent().await?.context("free")?;
        ensure!(lease.deadline().is_none(), "{lease:?}");
        ensure!(scene.proxy.dropped() > 0, "no confirmation was lost");
        lease.free().await?;
        // Lost every time: given up, and freed in the background.
        scene.ready().await?;
        scene.proxy.drop_replies_where(u64::MAX, fate, |exchange| done(exchange) && is_renewal(exchange));
        let error = scene.pool.malloc().permanent().await.err().context("a confirmation came through")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "renew", .. }), "{error}");
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_permanent_unheard_of_is_freed_when_redis_is_back() -> Result<()> {
    let unheard = async {
        for flavor in Flavor::ALL {
            let deployment = Deployment::single(flavor).await?;
            for dropped_late in [false, true] {
                let scene = deployment.scene(&format!("unheard-{dropped_late}")).await?;
                let lease = scene.pool.malloc().ttl(TIMEOUT * 3).await?.context("free")?;
                // Now the script is known.
                lease.renew().await?;
                let lost = lease.lost_token();
                scene.proxy.hold_replies();
                let outcome = lease.renew_for(Ttl::Permanent).await;
                ensure!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
                scene.proxy.refuse();
                if dropped_late {
                    lost.cancelled().await;
                    ensure!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::Expired, .. })));
                    drop(lease);
                } else {
                    drop(lease);
                    // Longer than what the holder knew of.
                    tokio::time::sleep(TIMEOUT * 3).await;
                }
                let info = scene.sound.info().await?;
                ensure!(info.counts.leased == 1 && info.longest == Longest::Permanent, "{info:?}");
                scene.proxy.pass();
                scene.all_come_back(SOON).await?;
            }
        }
        Ok(())
    };
    in_turn(unheard).await
}

/// A renewal names the pool's incarnation first, 16 hexadecimal digits, and ends with a holder's record.
fn is_renewal(exchange: &Exchange<'_>) -> bool {
    let arguments = exchange.request();
    let keys: usize =
        arguments.get(2).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or_default();
    arguments.get(3 + keys).is_some_and(|first| first.len() == 16 && first.iter().all(u8::is_ascii_hexdigit))
        && arguments.len() > 5 + keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_freed_once_and_told_truly() -> Result<()> {
    everywhere("free", async |scene, fate| {
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

        // Never answered: unknown, and freed all the same, by the lease's drop if need be.
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
    everywhere("renew", async |scene, fate| {
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
async fn declarations_are_repeated_safely() -> Result<()> {
    everywhere("declare", async |scene, fate| {
        let keys = |n: usize| (0..n).map(|i| ResourceKey::new(format!("s{i}"))).collect::<Result<Vec<_>, _>>();
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
        // Calls without a ticket: either repeated with the same result, or the caller hears that it is not known.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_repeated_says_so_and_has_been_done() -> Result<()> {
    everywhere("once", async |scene, fate| {
        let unknown = |outcome: Result<(), Error>| {
            ensure!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
            Ok(())
        };
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

/// How long a grant takes here and now: the median of some.
async fn typical_time(pool: &Pool) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..15 {
        let asked = Instant::now();
        let lease = pool.malloc().await?.context("free")?;
        times.push(asked.elapsed());
        lease.free().await?;
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// Callers who give up at any moment, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_leaves_nothing_behind() -> Result<()> {
    let given_up = async {
        for flavor in Flavor::ALL {
            let deployment = Deployment::single(flavor).await?;
            let scene = deployment.scene("given-up").await?;
            scene.proxy.delay(Duration::from_millis(2));
            let typical = typical_time(&scene.pool).await?;
            let (mut heard, granted) = (0, scene.granted().await?);
            for round in 0..200_u32 {
                // From no time at all to several times what a call takes on this machine.
                let patience = typical * round / 50;
                let mut keys = Vec::new();
                let request = scene.pool.malloc().ttl(TTL * 600);
                let request = async {
                    match round % 5 {
                        0 => request.permanent().await.map(|lease| lease.into_iter().collect()),
                        1 => request.bind("name").await.map(|lease| lease.into_iter().collect()),
                        2 => request.keep_alive().up_to(2).await,
                        3 => {
                            // Given up, it goes on in the background; completed, it is free.
                            if let Some(lease) = request.await? {
                                lease.renew().await?;
                                lease.free().await?;
                            }
                            Ok(Vec::new())
                        }
                        _ => {
                            keys.extend(scene.pool.malloc_key(TTL * 600).await?);
                            Ok(Vec::new())
                        }
                    }
                };
                if let Ok(leases) = tokio::time::timeout(patience, request).await {
                    let leases: Vec<Lease> = leases?;
                    drop(leases);
                    heard += 1;
                }
                for freed in scene.pool.free_keys(keys).await? {
                    freed?;
                }
            }
            scene.proxy.pass();
            scene.all_come_back(SOON).await?;
            scene.nothing_expired().await?;
            let granted = scene.granted().await? - granted;
            println!("{flavor}: 200 requests, {heard} of them heard out, {granted} grants");
            ensure!(heard > 5 && heard < 195 && granted > heard / 2, "{heard} heard, {granted} granted");
        }
        Ok(())
    };
    in_turn(given_up).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_hears_in_time_that_its_lease_is_lost() -> Result<()> {
    let hears = async {
        for deployment in [Deployment::single(Flavor::Redis).await?, Deployment::cluster().await?] {
            let scene = deployment.scene("hears").await?;
            let ttl = Duration::from_secs(3);
            // Kept alive for longer than its time to live.
            let kept = scene.pool.malloc().ttl(ttl).keep_alive().await?.context("free")?;
            let (watched, other) =
                (scene.pool.malloc().ttl(ttl).await?, scene.pool.malloc().ttl(ttl).keep_alive().await?);
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
        }
        Ok(())
    };
    in_turn(hears).await
}
