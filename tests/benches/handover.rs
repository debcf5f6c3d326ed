//! How long it takes from giving a resource back until the next one in line has it, with a thousand in line.
//!
//! One resource goes round: whoever is served keeps it for a moment, gives it back, and goes to the end of the line. All
//! that wait ask whether they are still in line meanwhile, as they always do. The clock is one that processes share. Another
//! process sends two no-ops now and then, so that a busy machine is told from a slow hand-over.

mod common;

use std::{
    env,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use common::{Figures, Target, children, children::Children, drive, micros, noop::Noop, pool_of, rounds};
use e2e::{Server, eventually, witness};
use redis_allocator::{Client, Pool};

const WAITERS: usize = 1000;
/// How long the resource goes round, each round.
const LENGTH: Duration = Duration::from_secs(4);
/// How long whoever is served keeps it.
const KEPT: Duration = Duration::from_millis(2);
const WAIT: Duration = Duration::from_mins(10);

/// How long whoever compares rests between two times.
const REST: Duration = Duration::from_millis(5);

/// One use of the resource: its token, and when it was had and was about to be given back.
type Use = (u64, Duration, Duration);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments[..] {
        [] => runtime.block_on(table()),
        ["child", url, pool, tasks] => runtime.block_on(child(url, pool, tasks.parse()?)),
        _ => bail!("usage: handover"),
    }
}

async fn table() -> Result<()> {
    let server = common::server("hand-over, with 1,000 in line").await?;
    let client = Client::connect(&server.url()).await?;
    let rounds = rounds()?;
    let noop = Noop::connect(&server.url()).await?;
    let mut figures = [(); 2].map(|()| [(); 6].map(|()| Figures::default()));
    for round in 0..rounds {
        for (figures, processes) in figures.iter_mut().zip([1, 8]) {
            let pool = pool_of(&client, &format!("line-{round}-{processes}"), 1).await?;
            let (mut took, mut nothing) = go_round(&server, &noop, &pool, processes).await?;
            ensure!(took.len() > 100, "only {} hand-overs", took.len());
            took.sort_unstable();
            nothing.sort_unstable();
            let at = |sorted: &[Duration], percent| micros(sorted[(sorted.len() - 1) * percent / 100]) / 1000.0;
            figures[0].add(at(&took, 50));
            figures[1].add(at(&took, 99));
            figures[2].add(at(&took, 100));
            figures[3].add(drive::as_float(took.len() as u64) / LENGTH.as_secs_f64());
            figures[4].add(at(&nothing, 50));
            figures[5].add(at(&nothing, 99));
        }
    }
    for (figures, processes) in figures.iter().zip(["1 process", "8 processes"]) {
        figures[0].print(format!("hand-over, 1,000 in line, {processes}, p50"), "ms", None);
        figures[1].print("  … p99", "ms", Some(Target::AtMost(3.0)));
        figures[2].print("  … longest", "ms", None);
        figures[3].print("  … how many", "/s", None);
        figures[4].print("  two no-ops meanwhile, p50", "ms", None);
        figures[5].print("  … p99", "ms", None);
    }
    Ok(())
}

/// Has the resource go round among waiters in so many processes: how long each hand-over took, and two no-ops meanwhile.
async fn go_round(
    server: &Server,
    noop: &Noop,
    pool: &Pool,
    processes: usize,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let first = pool.malloc().await?.context("the pool is empty")?;
    let (url, name, tasks) = (server.url(), pool.name().to_string(), (WAITERS / processes).to_string());
    let start = move || Children::start(processes, &["child", &url, &name, &tasks]);
    let children = tokio::task::spawn_blocking(start).await.context("starting processes panicked")??;
    let in_line = async |least: u64| {
        let waiting = pool.info().await?.counts.waiting;
        ensure!(waiting >= least, "only {waiting} wait");
        Ok(())
    };
    eventually(Duration::from_mins(1), async || in_line(WAITERS as u64).await).await?;
    first.free().await?;
    let (started, mut nothing) = (Instant::now(), Vec::new());
    while started.elapsed() < LENGTH {
        tokio::time::sleep(REST).await;
        let sent = Instant::now();
        noop.pair().await?;
        nothing.push(sent.elapsed());
    }
    // Who has just given it back is on the way to the end of the line.
    in_line(WAITERS as u64 * 98 / 100).await?;
    let said = tokio::task::spawn_blocking(move || children.results()).await.context("ending processes panicked")??;
    let uses = said.iter().map(|line| Ok(serde_json::from_str::<Vec<Use>>(line)?)).collect::<Result<Vec<_>>>()?;
    let mut uses = uses.concat();
    uses.sort_unstable();
    let took = uses.windows(2).map(|pair| pair[1].1.saturating_sub(pair[0].2)).collect();
    Ok((took, nothing))
}

/// One of several processes: its waiters wait, use and give back until the word comes.
async fn child(url: &str, pool: &str, tasks: usize) -> Result<()> {
    let pool = Client::connect(url).await?.pool(pool)?;
    let uses = Arc::new(Mutex::new(Vec::<Use>::new()));
    for _ in 0..tasks {
        let (pool, uses) = (pool.clone(), Arc::clone(&uses));
        tokio::spawn(async move {
            loop {
                let lease = match pool.malloc().wait(WAIT).await {
                    Ok(lease) => lease,
                    Err(error) => {
                        eprintln!("a waiter gave up: {error}");
                        return;
                    }
                };
                let (token, had) = (lease.fencing_token(), witness::now());
                tokio::time::sleep(KEPT).await;
                let freed = witness::now();
                match lease.free().await {
                    Ok(()) => uses.lock().unwrap_or_else(PoisonError::into_inner).push((token, had, freed)),
                    Err(error) => eprintln!("the resource was not given back: {error}"),
                }
            }
        });
    }
    tokio::task::spawn_blocking(children::wait_for_the_word).await.context("waiting panicked")??;
    let uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{}", serde_json::to_string(&*uses)?);
    Ok(())
}
