//! What operations cost, as counts that are the same on every machine: Redis commands and writes. Times are measured by
//! the benchmarks, never asserted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server};
use redis_allocator::{
    BindOptions, BindPolicy, Client, Item, Origin, Ownership, Pool, PoolSettings, ResourceKey, SyncOptions, SyncOutcome,
};

/// One server of each kind, and what a test does on it.
macro_rules! on_both {
    ($(#[$doc:meta])* $name:ident, $server:ident, $client:ident, $body:block) => {
        $(#[$doc])*
        #[tokio::test]
        async fn $name() -> Result<()> {
            for flavor in Flavor::ALL {
                let $server = Server::start(flavor).await?;
                let $client = Client::connect(&$server.url()).await?;
                let scenario = async { $body };
                let outcome: Result<()> = scenario.await;
                outcome.with_context(|| flavor.to_string())?;
            }
            Ok(())
        }
    };
}

/// What one thing did to the server.
#[derive(Debug)]
struct Cost {
    calls: BTreeMap<String, u64>,
    /// Keys written, as the server counts them for its snapshots.
    changes: i64,
    /// Bytes sent to replicas, or that would be.
    replicated: i64,
}

impl Cost {
    fn commands(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Proves that nothing was written, in three ways.
    fn is_read_only(&self) -> Result<()> {
        const WRITES: [&str; 10] =
            ["hset", "hdel", "hincrby", "zadd", "zrem", "zpopmin", "sadd", "unlink", "del", "expire"];
        ensure!(self.changes == 0 && self.replicated == 0, "something was written: {self:?}");
        ensure!(WRITES.iter().all(|write| !self.calls.contains_key(*write)), "a writing command was sent: {self:?}");
        Ok(())
    }
}

async fn number(server: &Server, section: &str, field: &str) -> Result<i64> {
    Ok(server.info(section, field).await?.parse()?)
}

async fn cost_of<T>(server: &Server, doing: impl Future<Output = Result<T>>) -> Result<(T, Cost)> {
    let stats = server.command_stats().await?;
    let changes = number(server, "persistence", "rdb_changes_since_last_save").await?;
    let replicated = number(server, "replication", "master_repl_offset").await?;
    let done = doing.await?;
    let cost = Cost {
        calls: server.command_stats().await?.since(&stats),
        changes: number(server, "persistence", "rdb_changes_since_last_save").await? - changes,
        replicated: number(server, "replication", "master_repl_offset").await? - replicated,
    };
    Ok((done, cost))
}

fn items(size: usize) -> Result<Vec<Item>> {
    (0..size)
        .map(|i| {
            let key: ResourceKey = format!("10.0.{}.{}:8000", i >> 8, i & 255).parse()?;
            Ok(Item::new(key).position(i as u64).label("zone", "a"))
        })
        .collect()
}

async fn pool_of(client: &Client, name: &str, size: usize) -> Result<Pool> {
    let pool = client.pool(name)?;
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    pool.extend(items(size)?).await?;
    Ok(pool)
}

async fn pair(pool: &Pool) -> Result<()> {
    pool.malloc().await?.context("nothing is free")?.free().await?;
    Ok(())
}

on_both!(a_pair_of_malloc_and_free_is_at_most_sixteen_commands, server, client, {
    const PAIRS: u64 = 200;
    let pool = pool_of(&client, "gpus", 50).await?;
    pair(&pool).await?; // loads the scripts
    let (done, cost) = cost_of(&server, async {
        for _ in 0..PAIRS {
            pair(&pool).await?;
        }
        Ok(PAIRS)
    })
    .await?;
    ensure!(cost.calls.get("evalsha") == Some(&(2 * done)), "a pair is two calls: {cost:?}");
    ensure!(cost.commands() <= 16 * done, "{} commands for {done} pairs: {cost:?}", cost.commands());
    Ok(())
});

on_both!(a_batch_of_sixteen_costs_as_many_commands_as_one, server, client, {
    let pool = pool_of(&client, "gpus", 50).await?;
    pair(&pool).await?;
    let ((), cost) = cost_of(&server, async {
        let leases = pool.malloc().up_to(16).await?;
        ensure!(leases.len() == 16, "{} leases", leases.len());
        for freed in pool.free_all(leases).await? {
            freed?;
        }
        Ok(())
    })
    .await?;
    ensure!(cost.calls.get("evalsha") == Some(&2) && cost.commands() <= 16, "{} commands: {cost:?}", cost.commands());
    ensure!(pool.info().await?.counts.free == 50, "not everything came back");
    Ok(())
});

on_both!(an_unchanged_pool_is_synchronised_without_a_write, server, client, {
    let pool = pool_of(&client, "gpus", 0).await?;
    let origin = Origin::Range("hosts".to_owned());
    let options = SyncOptions { max_shrink_percent: 50, ..SyncOptions::default() };
    pool.sync(&origin, items(1000)?, &options).await?;
    let lease = pool.malloc().await?.context("nothing is free")?;
    let (outcome, cost) = cost_of(&server, async { Ok(pool.sync(&origin, items(1000)?, &options).await?) }).await?;
    ensure!(outcome == SyncOutcome::Unchanged, "{outcome:?}");
    ensure!(cost.calls.get("evalsha") == Some(&1), "one round trip is enough: {cost:?}");
    cost.is_read_only()?;
    lease.free().await?;
    Ok(())
});

on_both!(unchanged_settings_and_bindings_are_declared_without_a_write, server, client, {
    let pool = pool_of(&client, "gpus", 10).await?;
    let owned = Ownership { manager: Some("files"), known: None };
    let binding = BindOptions { policy: BindPolicy::Required, declared: true, ..BindOptions::default() };
    pool.configure(&PoolSettings::default(), &owned).await?;
    pool.bind("trainer", "10.0.0.3:8000", &binding).await?;
    let (changed, cost) = cost_of(&server, async {
        let configured = pool.configure(&PoolSettings::default(), &owned).await?;
        Ok((configured.created || configured.changed, pool.bind("trainer", "10.0.0.3:8000", &binding).await?))
    })
    .await?;
    ensure!(changed == (false, false), "something changed: {changed:?}");
    cost.is_read_only()
});

on_both!(an_idle_gc_costs_the_same_whatever_the_pools_size, server, client, {
    let (small, large) = (pool_of(&client, "small", 1).await?, pool_of(&client, "large", 5000).await?);
    small.gc(200).await?;
    let (_, of_small) = cost_of(&server, async { Ok(small.gc(200).await?) }).await?;
    let (_, of_large) = cost_of(&server, async { Ok(large.gc(200).await?) }).await?;
    ensure!(of_small.calls == of_large.calls, "{of_small:?} against {of_large:?}");
    // Leases, sessions (twice: over, and long over), quarantines, bindings, what sources miss, who waits.
    ensure!(of_large.commands() <= 10, "{} commands: {of_large:?}", of_large.commands());
    of_large.is_read_only()
});
