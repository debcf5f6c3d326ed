//! How many pairs, `malloc` and `free`, a second: 64 tasks on one connection, and 8 processes.
//!
//! `drive URL POOL PROCESSES TASKS SECONDS` as arguments measures a pool of a server that is there already and prints one
//! number, and `no-ops URL TASKS SECONDS` two no-op scripts in place of a pair: `scripts/peer-bench.sh` compares with the
//! Python package that way.

mod common;

use std::{env, time::Duration};

use anyhow::{Context, Result, bail};
use common::{Figures, children, children::Children, drive, noop::Noop, pool_of, rounds};
use redis_allocator::Client;

const LENGTH: Duration = Duration::from_secs(2);
const POOL: &str = "bench";
const SIZE: usize = 1000;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => runtime()?.block_on(table()),
        ["drive", url, pool, processes, tasks, seconds] => {
            let length = Duration::from_secs_f64(seconds.parse().context("SECONDS must be a number")?);
            let rate = if processes == "1" {
                runtime()?.block_on(one_process(url, pool, tasks.parse()?, length))?
            } else {
                many_processes(url, pool, processes.parse()?, tasks, length)?
            };
            println!("{rate:.0}");
            Ok(())
        }
        ["no-ops", url, tasks, seconds] => {
            let length = Duration::from_secs_f64(seconds.parse().context("SECONDS must be a number")?);
            println!("{:.0}", runtime()?.block_on(no_ops(url, tasks.parse()?, length))?);
            Ok(())
        }
        ["child", url, pool, tasks, seconds] => {
            let length = Duration::from_secs_f64(seconds.parse()?);
            runtime()?.block_on(child(url, pool, tasks.parse()?, length))
        }
        _ => bail!("usage: throughput [drive URL POOL PROCESSES TASKS SECONDS | no-ops URL TASKS SECONDS]"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn table() -> Result<()> {
    let server = common::server("pairs of malloc and free a second").await?;
    let client = Client::connect(&server.url()).await?;
    let noop = Noop::connect(&server.url()).await?;
    let pool = pool_of(&client, POOL, SIZE).await?;
    let mut figures = [(); 5].map(|()| Figures::default());
    for _ in 0..rounds()? {
        let nothing = drive::callers(&server, 64, || {
            let noop = noop.clone();
            async move { drive::repeat(LENGTH, || noop.pair()).await }
        });
        figures[0].add(nothing.await?.rate());
        for (figure, callers) in [(1, 1), (2, 64)] {
            let driven = drive::callers(&server, callers, || {
                let pool = pool.clone();
                async move { drive::repeat(LENGTH, || drive::pair(&pool)).await }
            });
            figures[figure].add(driven.await?.rate());
        }
        for (figure, tasks) in [(3, "1"), (4, "8")] {
            let url = server.url();
            let driven = tokio::task::spawn_blocking(move || many_processes(&url, POOL, 8, tasks, LENGTH));
            figures[figure].add(driven.await??);
        }
    }
    figures[0].print("two no-ops, 64 tasks on one connection", "pairs/s", None);
    figures[1].print("1 task on one connection", "pairs/s", None);
    figures[2].print("64 tasks on one connection", "pairs/s", None);
    figures[3].print("8 processes of 1 task", "pairs/s", None);
    figures[4].print("8 processes of 8 tasks", "pairs/s", None);
    Ok(())
}

/// Pairs per second of one process.
async fn one_process(url: &str, pool: &str, tasks: usize, length: Duration) -> Result<f64> {
    let pool = pool_of(&Client::connect(url).await?, pool, SIZE).await?;
    drive::repeat(Duration::from_millis(100), || drive::pair(&pool)).await?;
    let (pairs, took) = drive::run(tasks, || {
        let pool = pool.clone();
        async move { drive::repeat(length, || drive::pair(&pool)).await }
    })
    .await?;
    Ok(drive::as_float(pairs) / took.as_secs_f64())
}

/// How often a second one process sends two no-op scripts in place of a pair.
async fn no_ops(url: &str, tasks: usize, length: Duration) -> Result<f64> {
    let noop = Noop::connect(url).await?;
    let (pairs, took) = drive::run(tasks, || {
        let noop = noop.clone();
        async move { drive::repeat(length, || noop.pair()).await }
    })
    .await?;
    Ok(drive::as_float(pairs) / took.as_secs_f64())
}

/// Pairs per second of several processes that begin at the same moment.
fn many_processes(url: &str, pool: &str, processes: usize, tasks: &str, length: Duration) -> Result<f64> {
    let seconds = length.as_secs_f64().to_string();
    let children = Children::start(processes, &["child", url, pool, tasks, &seconds])?;
    let rates = children.results()?;
    rates.iter().map(|rate| rate.parse::<f64>().context("a child says no number")).sum()
}

/// One of several processes: says that it is ready, waits for its turn, and prints its rate.
async fn child(url: &str, pool: &str, tasks: usize, length: Duration) -> Result<()> {
    let pool = pool_of(&Client::connect(url).await?, pool, SIZE).await?;
    drive::pair(&pool).await?;
    children::wait_for_the_word()?;
    let (pairs, took) = drive::run(tasks, || {
        let pool = pool.clone();
        async move { drive::repeat(length, || drive::pair(&pool)).await }
    })
    .await?;
    println!("{}", drive::as_float(pairs) / took.as_secs_f64());
    Ok(())
}
