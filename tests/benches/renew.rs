//! What renewing costs: many leases whose holders renew them at the same moment, each for itself and together.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::{Figures, Target, apart, drive, drive::Driven, micros, pool_of, rounds};
use redis_allocator::{Client, Pool};

/// How long each thing is driven, each round.
const LENGTH: Duration = Duration::from_millis(700);
const CALLERS: usize = 64;
const LATENCIES: usize = 4000;

#[tokio::main]
async fn main() -> Result<()> {
    let server = common::server("renewals").await?;
    let client = Client::connect(&server.url()).await?;
    let pool = pool_of(&client, "bench", 1000).await?;
    // Callers of one client ask together; those with a client each ask alone, one script a call.
    let clients = apart(&server, "bench", CALLERS).await?;
    let mut figures = [(); 6].map(|()| Figures::default());
    for _ in 0..rounds()? {
        let driven = async |pools: &[Pool]| -> Result<Driven> {
            let mut pools = pools.iter().cycle().cloned();
            drive::callers(&server, CALLERS, || {
                let pool = pools.next();
                async move {
                    let lease = pool.context("there are pools")?.malloc().await?.context("the pool is empty")?;
                    let renewals = drive::repeat(LENGTH, async || Ok(lease.renew().await?)).await?;
                    lease.free().await?;
                    Ok(renewals)
                }
            })
            .await
        };
        let alone = driven(&clients).await?;
        let together = driven(std::slice::from_ref(&pool)).await?;
        let lease = pool.malloc().await?.context("the pool is empty")?;
        let mut took = Vec::with_capacity(LATENCIES);
        for _ in 0..LATENCIES {
            let started = Instant::now();
            lease.renew().await?;
            took.push(started.elapsed());
        }
        lease.free().await?;
        took.sort_unstable();
        let row = [
            alone.cost(),
            together.cost(),
            together.cost() / alone.cost(),
            alone.rate(),
            together.rate(),
            micros(took[LATENCIES / 2]),
        ];
        for (figures, figure) in figures.iter_mut().zip(row) {
            figures.add(figure);
        }
    }
    figures[0].print("Redis CPU, a renewal, 64 callers, a client each", "µs", None);
    figures[1].print("Redis CPU, a renewal, 64 callers of one client", "µs", None);
    figures[2].print("  … as a multiple of that alone", "×", Some(Target::AtMost(1.0)));
    figures[3].print("64 callers, a client each", "/s", None);
    figures[4].print("64 callers of one client", "/s", None);
    figures[5].print("p50 of one caller", "µs", None);
    Ok(())
}
