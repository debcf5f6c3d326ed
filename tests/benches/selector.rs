//! What a selector costs Redis, in a pool of a million resources beside one of a hundred.

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::{Figures, Target, drive, items, rounds};
use redis_allocator::{Client, Ownership, Pool, PoolSettings, Selector};

/// How long each thing is driven, each round.
const LENGTH: Duration = Duration::from_millis(700);
const CALLERS: usize = 8;
const ZONES: usize = 4;

/// What the caller of a number selects.
type Kind<'a> = &'a dyn Fn(usize) -> Option<Selector>;

#[tokio::main]
async fn main() -> Result<()> {
    let server = common::server("selecting by label").await?;
    let client = Client::connect(&server.url()).await?;
    let small = indexed(&client, "small", 100).await?;
    let large = indexed(&client, "large", 1_000_000).await?;
    let zone = |i: usize| format!("zone-{}", i % ZONES);
    let equal = |i| Some(Selector::new().equals("zone", zone(i)));
    let either = |i| Some(Selector::new().one_of("zone", [zone(i), zone(i + 1)]));
    let kinds: [(&str, Kind<'_>); 3] = [("zone=…", &equal), ("zone in (…, …)", &either), ("no selector", &|_| None)];

    let mut figures = [(); 3].map(|()| [(); 3].map(|()| Figures::default()));
    for _ in 0..rounds()? {
        for (figures, (_, kind)) in figures.iter_mut().zip(kinds) {
            let mut cost = [0.0; 2];
            for (cost, pool) in cost.iter_mut().zip([&small, &large]) {
                let mut caller = 0;
                let driven = drive::callers(&server, CALLERS, || {
                    caller += 1;
                    let (pool, selector) = (pool.clone(), kind(caller));
                    async move { drive::repeat(LENGTH, || pair(&pool, selector.clone())).await }
                });
                *cost = driven.await?.cost();
            }
            for (figure, cost) in figures.iter_mut().zip([cost[0], cost[1], cost[1] / cost[0]]) {
                figure.add(cost);
            }
        }
    }
    for (figures, (kind, _)) in figures.iter().zip(kinds) {
        let target = if kind == "no selector" { None } else { Some(Target::AtMost(1.3)) };
        figures[0].print(format!("Redis CPU, a pair, {kind}, 100 resources"), "µs", None);
        figures[1].print(format!("Redis CPU, a pair, {kind}, 1,000,000 resources"), "µs", None);
        figures[2].print("  … as a multiple of that at 100", "×", target);
    }
    Ok(())
}

/// A pool whose resources are spread over a few zones, and can be selected by them.
async fn indexed(client: &Client, name: &str, size: usize) -> Result<Pool> {
    let pool = client.pool(name)?;
    let settings = PoolSettings { indexes: vec![vec!["zone".to_owned()]], ..PoolSettings::default() };
    pool.configure(&settings, &Ownership::default()).await?;
    let spread =
        items(size)?.into_iter().enumerate().map(|(i, item)| item.label("zone", format!("zone-{}", i % ZONES)));
    pool.extend(spread).await?;
    Ok(pool)
}

async fn pair(pool: &Pool, selector: Option<Selector>) -> Result<()> {
    let mut malloc = pool.malloc();
    if let Some(selector) = selector {
        malloc = malloc.select(selector);
    }
    malloc.await?.context("nothing that fits is free")?.free().await?;
    Ok(())
}
