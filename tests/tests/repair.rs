//! What an operator's own hands, or a server that lost part of a pool, can break: `check` names it, `repair` mends it, and
//! the leases that are held stay held. On Redis 7 and Valkey 9.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, wait::eventually};
use redis_allocator::{
    Client, Invariant, Item, Lease, Mode, Ownership, Pool, PoolSettings, Selector, Violation, WaiterInfo,
};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

const SOON: Duration = Duration::from_secs(30);

struct World {
    server: Server,
    pool: Pool,
}

fn shared() -> PoolSettings {
    PoolSettings { mode: Mode::Shared { max_holders: 2.try_into().ok() }, ..indexed() }
}

fn indexed() -> PoolSettings {
    PoolSettings { indexes: vec![vec!["zone".to_owned()]], ..PoolSettings::default() }
}

impl World {
    /// Two resources, `a` in zone eu and `b` in zone us.
    async fn new(flavor: Flavor, settings: &PoolSettings) -> Result<Self> {
        let server = Server::start(flavor).await?;
        let pool = Client::builder(server.url()).owner("tester").connect().await?.pool("gpus")?;
        pool.configure(settings, &Ownership::default()).await?;
        pool.extend([Item::new("a".parse()?).label("zone", "eu"), Item::new("b".parse()?).label("zone", "us")]).await?;
        Ok(Self { server, pool })
    }

    /// A command on one of the pool's keys.
    async fn do_(&self, command: &str, part: &str, rest: &[&str]) -> Result<redis::Value> {
        let key = format!("ra:{{default/gpus}}:{part}");
        let words: Vec<_> = [command, &key].into_iter().chain(rest.iter().copied()).collect();
        self.server.cmd(&words).await
    }

    /// Exactly this is found, and repaired.
    async fn mends(&self, expected: &[Invariant]) -> Result<()> {
        let found = self.pool.check().await?;
        let names: BTreeSet<_> = found.iter().map(|violation| violation.invariant).collect();
        ensure!(names == expected.iter().copied().collect(), "expected {expected:?}, found {found:?}");
        ensure!(self.pool.repair().await? > 0, "nothing was mended of {expected:?}");
        let left: Vec<Violation> = self.pool.check().await?;
        ensure!(left.is_empty(), "{expected:?} left {left:?}");
        ensure!(self.pool.repair().await? == 0);
        Ok(())
    }

    /// Which resource a selector finds, given back at once.
    async fn zone(&self, zone: &str) -> Result<Option<String>> {
        let Some(lease) = self.pool.malloc().select(Selector::new().equals("zone", zone)).await? else {
            return Ok(None);
        };
        let key = lease.key().to_string();
        lease.free().await?;
        Ok(Some(key))
    }

    async fn free(&self) -> Result<u64> {
        Ok(self.pool.info().await?.counts.free)
    }
}

#[tokio::test]
async fn labels_that_are_wrong_or_missing_are_entered_anew() -> Result<()> {
    for flavor in Flavor::ALL {
        for settings in [indexed(), shared()] {
            let world = World::new(flavor, &settings).await?;
            world.do_("ZADD", "by-label", &["0", "zone\0eu\x00004398046511104\0ghost", "0", "rubbish"]).await?;
            world.mends(&[Invariant::LabelButNotFree]).await?;
            ensure!(world.zone("eu").await?.as_deref() == Some("a"));

            world.do_("DEL", "by-label", &[]).await?;
            ensure!(world.zone("eu").await?.is_none());
            world.mends(&[Invariant::FreeWithoutLabel]).await?;
            ensure!(world.zone("eu").await?.as_deref() == Some("a") && world.zone("us").await?.as_deref() == Some("b"));

            // The label of another time: the resource is free, but not by this one.
            let entries: Vec<String> =
                redis::from_redis_value(world.do_("ZRANGEBYLEX", "by-label", &["[zone\0eu", "(zone\0f"]).await?)?;
            ensure!(entries.len() == 1, "{entries:?}");
            world.do_("ZADD", "by-label", &["0", &entries[0].replace("\0eu\0", "\0jp\0")]).await?;
            world.mends(&[Invariant::LabelButNotFree]).await?;
            ensure!(world.zone("jp").await?.is_none() && world.zone("eu").await?.is_some());
        }
    }
    Ok(())
}

#[tokio::test]
async fn many_wrong_labels_are_found_page_by_page() -> Result<()> {
    let world = World::new(Flavor::Redis, &indexed()).await?;
    let garbage: Vec<String> = (0..1000).map(|i| format!("zone\0eu\x00004398046511104\0ghost-{i}")).collect();
    let scored: Vec<&str> = garbage.iter().flat_map(|member| ["0", member]).collect();
    world.do_("ZADD", "by-label", &scored).await?;
    ensure!(world.pool.repair().await? == 1000);
    ensure!(world.pool.check().await?.is_empty() && world.zone("eu").await?.as_deref() == Some("a"));
    Ok(())
}

#[tokio::test]
async fn leases_of_a_shared_pool_are_whole_or_end() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared()).await?;
        let held = world.pool.malloc().up_to(4).await?;
        ensure!(held.len() == 4 && world.free().await? == 0);
        let id = |lease: &Lease| format!("{}\0{:016}", lease.key(), lease.fencing_token());

        // Not counted: nobody else may have its place, and its holder keeps it.
        world.do_("ZREM", "shares", &[&id(&held[0])]).await?;
        world.mends(&[Invariant::LeaseWithoutShare, Invariant::InNoPlace]).await?;
        ensure!(world.pool.malloc().await?.is_none());
        held[0].renew().await?;
        // Counted though it is over.
        world.do_("ZADD", "shares", &["0", "a\x000000000000000001", "0", "b\x000000000000000002"]).await?;
        world.mends(&[Invariant::ShareWithoutLease]).await?;
        held[0].renew().await?;
        // Without a holder, and without a lease: it ends, and its place is another's.
        world.do_("HDEL", "holders", &[&id(&held[1])]).await?;
        world.mends(&[Invariant::LeaseWithoutHolder]).await?;
        ensure!(held[1].renew().await.is_err() && world.free().await? == 1);
        world.do_("ZREM", "leases", &[&id(&held[2])]).await?;
        world.mends(&[Invariant::HolderWithoutLease, Invariant::ShareWithoutLease]).await?;
        ensure!(held[2].renew().await.is_err() && world.pool.info().await?.counts.leased == 2);
        held[3].renew().await?;

        // Free though it is full.
        let full = world.pool.malloc().up_to(4).await?;
        ensure!(full.len() == 2 && world.free().await? == 0);
        world.do_("ZADD", "free", &["4398046511104000", "a"]).await?;
        world.mends(&[Invariant::FreeThoughFull, Invariant::FreeWithoutLabel]).await?;
        ensure!(world.free().await? == 0 && world.pool.malloc().await?.is_none());

        // A session's lease that is over.
        world.do_("ZADD", "session-leases", &["0", "loader#1\0a\x000000000000000001", "0", "rubbish"]).await?;
        world.mends(&[Invariant::SessionLeaseWithoutLease]).await?;
        for lease in [&held[0], &held[3], &full[0], &full[1]] {
            lease.renew().await?;
        }
    }
    Ok(())
}

/// Someone who waits for a resource until one comes, and what Redis knows of it.
async fn waiter(pool: &Pool, n: usize) -> Result<(AbortOnDropHandle<Result<Vec<Lease>>>, WaiterInfo)> {
    let request = pool.malloc().count(n).wait(SOON * 2).priority(3);
    let task: JoinHandle<Result<Vec<Lease>>> = tokio::spawn(async move { Ok(request.await?) });
    let waiter = eventually(SOON, async || {
        let page = pool.waiters(0, 200).await?;
        ensure!(page.total == page.waiters.len() as u64);
        page.waiters.into_iter().find(|waiter| waiter.count == n as u64).context("not in line yet")
    })
    .await?;
    Ok((AbortOnDropHandle::new(task), waiter))
}

#[tokio::test]
async fn the_line_is_mended_and_served() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &indexed()).await?;
        let held = world.pool.malloc().up_to(2).await?;
        // What nobody waits for.
        world.do_("ZADD", "wants", &["0", "*\x000001000000000001ghost:1", "0", "rubbish"]).await?;
        world.mends(&[Invariant::WantWithoutWaiter]).await?;
        world
            .do_("HSET", "waiting", &["ghost:1", r#"{"n":1,"classes":["*\u0000"],"turn":"0001000000000001"}"#])
            .await?;
        world.do_("HSET", "waiting", &["ghost:2\0", "[]"]).await?;
        world.mends(&[Invariant::RequestWithoutLife]).await?;
        world.do_("ZADD", "waiters", &["1000000000001", "ghost:1"]).await?;
        world
            .mends(&[Invariant::WaitersMiscounted, Invariant::WaiterWithoutRequest, Invariant::WaiterWithoutLife])
            .await?;
        world.do_("HSET", "meta", &["waiters", "3"]).await?;
        world.mends(&[Invariant::WaitersMiscounted]).await?;
        // As if someone gathered who is gone: nobody else would ever get anything.
        world.do_("HSET", "meta", &["gathering", "1"]).await?;
        world.mends(&[Invariant::WaitersMiscounted]).await?;
        ensure!(world.pool.info().await?.counts.waiting == 0);

        // Who is in line keeps its place, or takes a new one, and is served.
        let (task, info) = waiter(&world.pool, 2).await?;
        ensure!(info.owner == "tester" && info.priority == 3 && info.place == 0 && !info.offered, "{info:?}");
        ensure!(info.alive_until > info.since && info.selectors.is_empty(), "{info:?}");
        world.do_("HDEL", "waiting", &[&info.id]).await?;
        world.pool.repair().await?;
        world.do_("HSET", "meta", &["waiters", "0", "gathering", "0"]).await?;
        world.pool.repair().await?;
        for lease in held {
            lease.free().await?;
        }
        let got = tokio::time::timeout(SOON, task).await???;
        ensure!(got.len() == 2);
        for lease in got {
            lease.free().await?;
        }
        ensure!(world.pool.check().await?.is_empty() && world.free().await? == 2);
    }
    Ok(())
}

#[tokio::test]
async fn the_line_is_told_page_by_page() -> Result<()> {
    let world = World::new(Flavor::Redis, &indexed()).await?;
    let _held = world.pool.malloc().up_to(2).await?;
    let mut tasks = Vec::new();
    for k in 0..5_u64 {
        let request = world.pool.malloc().bind(format!("name-{k}")).owner(format!("owner-{k}"));
        let request = request.select("zone in (eu, us)".parse()?).wait(SOON);
        tasks.push(AbortOnDropHandle::new(tokio::spawn(async move { request.await })));
        eventually(SOON, async || {
            ensure!(world.pool.waiters(0, 1).await?.total == k + 1);
            Ok(())
        })
        .await?;
    }
    let page = world.pool.waiters(1, 3).await?;
    let told: Vec<_> = page.waiters.iter().map(|it| (it.place, it.owner.as_str(), it.binding.as_deref())).collect();
    ensure!(
        told == [(1, "owner-1", Some("name-1")), (2, "owner-2", Some("name-2")), (3, "owner-3", Some("name-3")),]
            && page.total == 5,
        "{page:?}"
    );
    ensure!(page.waiters.iter().all(|it| it.selectors == ["zone in (eu, us)".parse().unwrap()]), "{page:?}");
    ensure!(world.pool.waiters(5, 200).await?.waiters.is_empty());
    ensure!(world.pool.waiters(u64::MAX, 1).await?.waiters.is_empty());
    ensure!(world.pool.waiters(0, 0).await.is_err() && world.pool.waiters(0, 201).await.is_err());
    Ok(())
}
