//! What keeping pools in order costs: garbage collection, synchronising, memory.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::{Figures, Target, drive, items, pool_of, rounds};
use e2e::Server;
use redis_allocator::{Client, Lease, Origin, Ownership, Pool, PoolSettings, SyncOptions, SyncOutcome};

const MANY: usize = 100_000;
/// What one call of `gc` reclaims at most.
const CHUNK: u32 = 200;
const IDLE_CALLS: usize = 2000;

#[tokio::main]
async fn main() -> Result<()> {
    let server = common::server("upkeep").await?;
    let client = Client::connect(&server.url()).await?;
    let small = pool_of(&client, "small", 100).await?;
    let large = pool_of(&client, "large", 1_000_000).await?;
    let mut idle = [(); 3].map(|()| Figures::default());
    let mut sync = [(); 3].map(|()| Figures::default());
    let mut memory = Figures::default();
    let mut reclaim = [(); 2].map(|()| Figures::default());
    for _ in 0..rounds()? {
        let idle_gc = |pool: &Pool| {
            let pool = pool.clone();
            async move { pool.gc(CHUNK).await.map(drop).map_err(Into::into) }
        };
        let took = drive::median_latencies(IDLE_CALLS, || idle_gc(&small), || idle_gc(&large)).await?;
        for (figures, figure) in idle.iter_mut().zip([took.0, took.1, took.1 / took.0]) {
            figures.add(figure);
        }

        // A server of its own each round, so that nothing is left of the last one; the small pool loads the scripts.
        let server = Server::start(common::flavor()?).await?;
        let client = Client::connect(&server.url()).await?;
        let warm = pool_of(&client, "warm", 1).await?;
        synchronise(&warm, 1).await?;
        let pool = client.pool("hosts")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        let before = used_memory(&server).await?;
        let (first, again) = (synchronise(&pool, MANY).await?, synchronise(&pool, MANY).await?);
        ensure!(matches!(first.1, SyncOutcome::Applied { added, .. } if added == MANY as u64), "{:?}", first.1);
        ensure!(again.1 == SyncOutcome::Unchanged, "{:?}", again.1);
        sync[0].add(first.0.as_secs_f64());
        sync[1].add(again.0.as_secs_f64() * 1e3);
        memory.add((used_memory(&server).await? - before) / drive::as_float(MANY as u64));

        let (took, longest) = reclaim_all(&server, &pool).await?;
        reclaim[0].add(took.as_secs_f64());
        reclaim[1].add(longest.as_secs_f64() * 1e3);
    }

    idle[0].print("gc that finds nothing, 100 resources, p50", "µs", None);
    idle[1].print("gc that finds nothing, 1,000,000 resources, p50", "µs", None);
    idle[2].print("  … as a multiple of that at 100", "×", Some(Target::AtMost(1.2)));
    sync[0].print("a range of 100,000 resources synced", "s", Some(Target::AtMost(2.0)));
    sync[1].print("  … and again, unchanged", "ms", None);
    memory.print("Redis memory for each idle resource", "bytes", Some(Target::AtMost(300.0)));
    reclaim[0].print("100,000 expired leases reclaimed", "s", Some(Target::AtMost(2.0)));
    reclaim[1].print("  … longest script (SLOWLOG)", "ms", Some(Target::AtMost(5.0)));
    Ok(())
}

async fn synchronise(pool: &Pool, size: usize) -> Result<(Duration, SyncOutcome)> {
    let items = items(size)?;
    let started = Instant::now();
    let outcome = pool.sync(&Origin::Range("hosts".to_owned()), items, &SyncOptions::default()).await?;
    Ok((started.elapsed(), outcome))
}

/// Leases everything for a moment, waits until it may be reclaimed, and reclaims it; how long that took, and its longest
/// script.
async fn reclaim_all(server: &Server, pool: &Pool) -> Result<(Duration, Duration)> {
    let mut leased = 0;
    while leased < MANY {
        let batch = pool.malloc().ttl(Duration::from_millis(1)).up_to(CHUNK as usize).await?;
        ensure!(!batch.is_empty(), "only {leased} could be leased");
        leased += batch.len();
        batch.into_iter().for_each(Lease::detach);
    }
    tokio::time::sleep(redis_allocator::CLOCK_SLACK + Duration::from_millis(100)).await;
    server.watch_slow_commands(Duration::from_micros(100), 10_000).await?;
    let started = Instant::now();
    let mut reclaimed = 0;
    loop {
        let report = pool.gc(CHUNK).await?;
        reclaimed += report.expired.len();
        if !report.more {
            break;
        }
    }
    let took = started.elapsed();
    ensure!(reclaimed == MANY, "only {reclaimed} were reclaimed");
    let longest = server.slow_commands().await?.iter().map(|command| command.took).max().unwrap_or_default();
    Ok((took, longest))
}

async fn used_memory(server: &Server) -> Result<f64> {
    Ok(server.info("memory", "used_memory").await?.parse()?)
}
