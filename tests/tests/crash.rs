//! Processes that share a pool are killed one after the other, while others resize it: no resource is ever used by two,
//! and every one comes back.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, Witness, eventually};
use redis_allocator::{Cause, Client, Item, Origin, Ownership, Pool, PoolSettings, ResourceKey, SyncOptions};
use tokio::process::{Child, Command};

const WORKERS: usize = 8;
const KILLS: usize = 44;
const BETWEEN_KILLS: Duration = Duration::from_millis(400);
/// For what must happen, on a machine that may have no time.
const PATIENCE: Duration = Duration::from_mins(1);
/// Fewer would prove little.
const GRANTS: u64 = 200;
/// Of a test: many times what it takes.
const LIMIT: Duration = Duration::from_mins(8);
/// Longest time to live that a worker asks for.
const LONGEST_TTL: Duration = Duration::from_secs(3);

struct Worker {
    holder: String,
    process: Child,
}

struct Scene {
    server: Server,
    record: Server,
    started: usize,
}

impl Scene {
    fn start_worker(&mut self) -> Result<Worker> {
        self.started += 1;
        let holder = format!("worker-{}", self.started);
        let process = Command::new(env!("CARGO_BIN_EXE_crash_worker"))
            .args([&self.server.url(), &self.record.url(), "crash", &holder])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a worker")?;
        Ok(Worker { holder, process })
    }
}

/// Grows and shrinks the pool, by calls and by a declaration, and has a resource fail its probe now and then.
async fn resize(pool: Pool) -> Result<()> {
    let mut rounds = 0;
    loop {
        let chosen = |step: usize| (0..32).filter(move |i| (i * 7 + rounds * step) % 5 < 3).map(|i| format!("r{i}"));
        let keys = chosen(3).map(ResourceKey::new).collect::<Result<Vec<_>, _>>()?;
        match rounds % 4 {
            0 => drop(pool.extend(keys).await?),
            1 => drop(pool.shrink(keys).await?),
            2 => {
                let items = keys.into_iter().map(|key| Item::new(key).priority(u16::try_from(rounds % 3).unwrap_or(0)));
                pool.sync(&Origin::Spec, items.collect(), &SyncOptions::default()).await?;
            }
            _ => {
                let key = format!("r{}", rounds % 32);
                // Unless it has just left the pool.
                let _ = pool.quarantine(&key, Some(Duration::from_millis(500)), "test", Cause::Probe).await;
            }
        }
        if rounds % 3 == 0 {
            pool.gc(200).await?;
        }
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn killed_workers_never_share_a_resource(flavor: Flavor) -> Result<()> {
    let began = Instant::now();
    let mut scene =
        Scene { server: Server::start(flavor).await?, record: Server::start(Flavor::Redis).await?, started: 0 };
    let witness = Witness::connect(&scene.record.url()).await?;
    let client = Client::builder(scene.server.url()).timeout(PATIENCE).connect_timeout(PATIENCE).connect().await?;
    let pool = client.pool("crash")?;
    let settings = PoolSettings { max_ttl: Some(LONGEST_TTL), default_ttl: LONGEST_TTL, ..PoolSettings::default() };
    pool.configure(&settings, &Ownership::default()).await?;
    pool.extend((0..24).map(|i| ResourceKey::new(format!("r{i}"))).collect::<Result<Vec<_>, _>>()?).await?;

    let resizing = tokio::spawn(resize(pool.clone()));
    let mut workers = (0..WORKERS).map(|_| scene.start_worker()).collect::<Result<Vec<_>>>()?;
    let mut while_holding = 0;
    for kill in 0..KILLS {
        tokio::time::sleep(BETWEEN_KILLS).await;
        let number = kill * 5 % WORKERS;
        if kill % 4 > 0 {
            // Most hold something when they are killed; the others may just be starting.
            eventually(PATIENCE, async || {
                let held = witness.held_by(&workers[number].holder).await?;
                ensure!(!held.is_empty(), "{} holds nothing", workers[number].holder);
                Ok(())
            })
            .await?;
        }
        let mut victim = std::mem::replace(&mut workers[number], scene.start_worker()?);
        victim.process.kill().await.context("cannot kill a worker")?;
        if !witness.held_by(&victim.holder).await?.is_empty() {
            while_holding += 1;
        }
    }
    eventually(PATIENCE, async || {
        let counts = witness.counts().await?;
        ensure!(counts.grants >= GRANTS, "{counts:?}");
        Ok(())
    })
    .await?;
    ensure!(!resizing.is_finished(), "resizing failed: {:?}", resizing.await);
    resizing.abort();
    for worker in &mut workers {
        drop(worker.process.stdin.take());
    }
    for worker in &mut workers {
        let status = tokio::time::timeout(PATIENCE, worker.process.wait()).await??;
        ensure!(status.success(), "{} ended with {status}", worker.holder);
    }

    // Whoever was killed held until its time was over and the clocks' slack had passed.
    let info = eventually(LONGEST_TTL + redis_allocator::CLOCK_SLACK + PATIENCE, async || {
        while pool.gc(200).await?.more {}
        let info = pool.info().await?;
        ensure!(info.counts.total > 0 && info.counts.free == info.counts.total, "not all are free: {:?}", info.counts);
        ensure!(info.counts.leased + info.counts.draining == 0, "some are leased: {:?}", info.counts);
        Ok(info)
    })
    .await?;
    let counts = witness.counts().await?;
    println!(
        "{flavor}: {KILLS} kills, {while_holding} of them while holding; {} grants, {} uses of {} resources, {} excused; \
         pool: {:?}, {:?}; {:.1} s",
        counts.grants,
        counts.uses,
        info.counts.total,
        counts.excused,
        info.counts,
        info.counters,
        began.elapsed().as_secs_f64(),
    );
    let refusals = witness.refusals().await?;
    ensure!(refusals.is_empty(), "{} refusals, the first: {:#?}", refusals.len(), &refusals[..refusals.len().min(5)]);
    ensure!(while_holding >= 20, "only {while_holding} of {KILLS} were killed while holding");
    ensure!(counts.grants >= GRANTS && counts.excused < counts.grants / 20, "{counts:?}");
    ensure!(info.counters.expired > 0, "nobody's lease expired: {:?}", info.counters);
    ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);

    let all = pool.malloc().up_to(200).await?;
    ensure!(all.len() as u64 == info.counts.total, "{} of {} can be had", all.len(), info.counts.total);
    for lease in all {
        lease.free().await?;
    }
    ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_never_share_a_resource_on_redis() -> Result<()> {
    tokio::time::timeout(LIMIT, killed_workers_never_share_a_resource(Flavor::Redis)).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_never_share_a_resource_on_valkey() -> Result<()> {
    tokio::time::timeout(LIMIT, killed_workers_never_share_a_resource(Flavor::Valkey)).await?
}
