//! What one pair, `malloc` and `free`, costs: processor time of Redis and time of the caller, beside two scripts that do
//! nothing.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{Figures, Target, apart, drive, noop::Noop, pool_of, rounds};
use futures::future::try_join_all;
use redis_allocator::Client;

/// How long each thing is driven, each round.
const LENGTH: Duration = Duration::from_millis(700);
const CALLERS: usize = 64;
const BATCH: u8 = 16;
const LATENCIES: usize = 4000;

#[tokio::main]
async fn main() -> Result<()> {
    let server = common::server("one pair of malloc and free").await?;
    let client = Client::connect(&server.url()).await?;
    let noop = Noop::connect(&server.url()).await?;
    let pool = pool_of(&client, "bench", 1000).await?;
    let small = pool_of(&client, "small", 100).await?;
    let large = pool_of(&client, "large", 1_000_000).await?;
    // Callers of one client ask together; those with a client each ask alone, one script a call.
    let pools_apart = apart(&server, "bench", CALLERS).await?;
    let noops_apart = try_join_all((0..CALLERS).map(async |_| Noop::connect(&server.url()).await)).await?;

    let mut cost = [(); 7].map(|()| Figures::default());
    let mut ratio = [(); 4].map(|()| Figures::default());
    let mut p50 = [(); 3].map(|()| Figures::default());
    for _ in 0..rounds()? {
        let nothing = drive::callers(&server, CALLERS, || {
            let noop = noop.clone();
            async move { drive::repeat(LENGTH, || noop.pair()).await }
        })
        .await?
        .cost();
        let mut of = Vec::new();
        for pool in [&pool, &small, &large] {
            let driven = drive::callers(&server, CALLERS, || {
                let pool = pool.clone();
                async move { drive::repeat(LENGTH, || drive::pair(&pool)).await }
            });
            of.push(driven.await?.cost());
        }
        let mut pools = pools_apart.iter().cycle().cloned();
        let alone = drive::callers(&server, CALLERS, || {
            let pool = pools.next();
            async move {
                let pool = pool.context("there are pools")?;
                drive::repeat(LENGTH, || drive::pair(&pool)).await
            }
        });
        let alone = alone.await?.cost();
        let mut noops = noops_apart.iter().cycle().cloned();
        let nothing_alone = drive::callers(&server, CALLERS, || {
            let noop = noops.next();
            async move {
                let noop = noop.context("there are connections")?;
                drive::repeat(LENGTH, || noop.pair()).await
            }
        });
        let nothing_alone = nothing_alone.await?.cost();
        let batches = drive::callers(&server, 4, || {
            let pool = pool.clone();
            async move {
                let batches = drive::repeat(LENGTH, || async {
                    let leases = pool.malloc().up_to(BATCH.into()).await?;
                    ensure!(leases.len() == usize::from(BATCH), "only {} of {BATCH} were free", leases.len());
                    for freed in pool.free_all(leases).await? {
                        freed.context("a lease was not held")?;
                    }
                    Ok(())
                });
                Ok(batches.await? * u64::from(BATCH))
            }
        });
        let batches = batches.await?.cost();
        for (figures, figure) in cost.iter_mut().zip([nothing, alone, of[0], batches, of[1], of[2], nothing_alone]) {
            figures.add(figure);
        }
        for (figures, figure) in
            ratio.iter_mut().zip([alone / nothing_alone, of[0] / nothing, batches / nothing, of[2] / of[1]])
        {
            figures.add(figure);
        }
        let (nothing, one) = drive::median_latencies(LATENCIES, || noop.pair(), || drive::pair(&pool)).await?;
        for (figures, figure) in p50.iter_mut().zip([nothing, one, one / nothing]) {
            figures.add(figure);
        }
    }

    cost[6].print("Redis CPU, two no-ops, 64 callers, a connection each", "µs", None);
    cost[1].print("Redis CPU, a pair, 64 callers, a client each", "µs", None);
    ratio[0].print("  … as a multiple of the no-ops", "×", Some(Target::AtMost(8.0)));
    cost[0].print("Redis CPU, two no-ops, 64 callers", "µs", None);
    cost[2].print("Redis CPU, a pair, 64 callers of one client", "µs", None);
    ratio[1].print("  … as a multiple of the no-ops", "×", None);
    cost[3].print("Redis CPU, a pair in batches of 16, 4 callers", "µs", None);
    ratio[2].print("  … as a multiple of the no-ops", "×", Some(Target::AtMost(3.0)));
    cost[4].print("Redis CPU, a pair, 64 callers, 100 resources", "µs", None);
    cost[5].print("Redis CPU, a pair, 64 callers, 1,000,000 resources", "µs", None);
    ratio[3].print("  … as a multiple of that at 100", "×", Some(Target::AtMost(1.2)));
    p50[0].print("p50 of one caller, two no-ops", "µs", None);
    p50[1].print("p50 of one caller, a pair", "µs", None);
    p50[2].print("  … as a multiple of the no-ops", "×", Some(Target::AtMost(1.35)));
    Ok(())
}
