//! A pool, the processes that use it, a witness, and what must be true in the end. It must not know what kind of servers
//! these are.

use std::{num::NonZeroU32, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor, Random, Server, Witness, eventually,
    witness::{Counts, Refusal},
};
use redis_allocator::{
    CLOCK_SLACK, Cause, Client, Error, Item, Mode, Origin, Ownership, Pool, PoolInfo, PoolSettings, ResourceKey,
    SyncOptions, Timestamp,
};
use tokio::process::{Child, Command};

/// For what must happen, on a machine that may have no time.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// Of a test: many times what it takes.
pub(crate) const LIMIT: Duration = Duration::from_mins(15);
/// Longest time to live that a worker asks for.
pub(crate) const LONGEST_TTL: Duration = Duration::from_secs(3);
/// Of the workers' sessions.
const SESSION_TTL: Duration = Duration::from_secs(2);
const WORKERS: usize = 8;

/// What the workers are told about their surroundings.
#[derive(Clone, Copy)]
pub(crate) struct Circumstances {
    /// The most holders of a resource, if it is shared.
    pub(crate) shared: Option<u32>,
    /// How long the servers may take to answer.
    pub(crate) timeout: Duration,
    /// Whether calls may fail for a while.
    pub(crate) unavailable: bool,
    /// Whether what the server acknowledged may be lost.
    pub(crate) forgetful: bool,
}

impl Circumstances {
    /// One server that is always there.
    pub(crate) const STEADY: Self = Self { shared: None, timeout: PATIENCE, unavailable: false, forgetful: false };

    fn to_json(self) -> String {
        let Self { shared, timeout, unavailable, forgetful } = self;
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        serde_json::json!({
            "shared": shared, "timeout": timeout, "unavailable": unavailable, "forgetful": forgetful,
        })
        .to_string()
    }
}

pub(crate) struct Scene {
    url: String,
    record: Server,
    circumstances: Circumstances,
    pub(crate) witness: Witness,
    pub(crate) pool: Pool,
    pub(crate) workers: Vec<Worker>,
    started: usize,
    killed: Vec<Killed>,
    /// How many were holding something when they were killed.
    pub(crate) while_holding: usize,
    random: Random,
}

pub(crate) struct Worker {
    pub(crate) holder: String,
    process: Child,
}

struct Killed {
    holder: String,
    /// Some time after that.
    at: Timestamp,
}

impl Scene {
    pub(crate) async fn on(url: String, circumstances: Circumstances) -> Result<Self> {
        let record = Server::start(Flavor::Redis).await?;
        let witness = Witness::connect(&record.url()).await?;
        let timeout = circumstances.timeout;
        let client = Client::builder(&url).timeout(timeout).connect_timeout(timeout).connect().await?;
        let pool = client.pool("crash")?;
        let mode = match circumstances.shared {
            Some(most) => Mode::Shared { max_holders: NonZeroU32::new(most) },
            None => Mode::Exclusive,
        };
        let index = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect();
        let settings = PoolSettings {
            mode,
            max_ttl: Some(LONGEST_TTL),
            default_ttl: LONGEST_TTL,
            indexes: vec![index(&["zone"]), index(&["zone", "model"])],
            ..PoolSettings::default()
        };
        pool.configure(&settings, &Ownership::default()).await?;
        pool.extend((0..24).map(item).collect::<Result<Vec<_>>>()?).await?;
        let random = Random::new(0);
        let (workers, killed) = (Vec::new(), Vec::new());
        Ok(Self { url, record, circumstances, witness, pool, workers, started: 0, killed, while_holding: 0, random })
    }

    pub(crate) fn start_workers(&mut self) -> Result<()> {
        while self.workers.len() < WORKERS {
            let worker = self.start_worker()?;
            self.workers.push(worker);
        }
        Ok(())
    }

    fn start_worker(&mut self) -> Result<Worker> {
        self.started += 1;
        let holder = format!("worker-{}", self.started);
        let process = Command::new(env!("CARGO_BIN_EXE_crash_worker"))
            .args([&self.url, &self.record.url(), "crash", &holder, &self.circumstances.to_json()])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a worker")?;
        Ok(Worker { holder, process })
    }

    /// Kills a worker, at the next moment at which it holds something if that is wanted, and starts another.
    pub(crate) async fn kill_one(&mut self, holding: bool) -> Result<()> {
        let number = usize::try_from(self.random.below(WORKERS as u64))?;
        if holding {
            let holder = &self.workers[number].holder;
            eventually(PATIENCE, async || {
                ensure!(!self.witness.held_by(holder).await?.is_empty(), "{holder} holds nothing");
                Ok(())
            })
            .await?;
        }
        let another = self.start_worker()?;
        let mut victim = std::mem::replace(&mut self.workers[number], another);
        victim.process.kill().await.context("cannot kill a worker")?;
        if !self.witness.held_by(&victim.holder).await?.is_empty() {
            self.while_holding += 1;
        }
        // Where the server is away just now, nobody looks at this.
        if !self.circumstances.unavailable {
            self.killed.push(Killed { holder: victim.holder, at: self.pool.info().await?.now });
        }
        Ok(())
    }

    /// Waits until the workers have been granted so many more.
    pub(crate) async fn more_grants(&self, more: u64) -> Result<()> {
        let before = self.witness.counts().await?.grants;
        eventually(PATIENCE, async || {
            let counts = self.witness.counts().await?;
            ensure!(counts.grants >= before + more, "{more} more than {before} are awaited: {counts:?}");
            Ok(())
        })
        .await
    }

    /// Has the workers end, as far as they live.
    pub(crate) async fn end_workers(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            drop(worker.process.stdin.take());
        }
        for worker in &mut self.workers {
            let status = tokio::time::timeout(PATIENCE, worker.process.wait()).await??;
            ensure!(status.success(), "{} ended with {status}", worker.holder);
        }
        Ok(())
    }

    /// Everything is free: whoever was killed held until its time was over and the clocks' slack had passed, and no
    /// longer.
    pub(crate) async fn all_is_free(&self) -> Result<PoolInfo> {
        eventually(LONGEST_TTL + CLOCK_SLACK + PATIENCE, async || {
            let before = self.pool.info().await?.now;
            while self.pool.gc(200).await?.more {}
            self.the_dead_hold_nothing(before).await?;
            let info = self.pool.info().await?;
            let counts = info.counts;
            ensure!(counts.total > 0 && counts.free == counts.total, "not all are free: {counts:?}");
            ensure!(counts.leased + counts.draining + counts.waiting == 0, "some are leased: {counts:?}");
            Ok(info)
        })
        .await
    }

    /// Of sessions whose processes were killed, nothing is left after their time and the slack, where someone has looked
    /// after that moment.
    async fn the_dead_hold_nothing(&self, looked: Timestamp) -> Result<()> {
        for session in self.pool.sessions().await? {
            let instance = session.name.split('/').next().unwrap_or_default();
            let Some(killed) = self.killed.iter().find(|killed| killed.holder == instance) else { continue };
            // What a process has sent may arrive a moment after its death.
            let latest = killed.at.as_millis() + millis(SESSION_TTL + Duration::from_secs(1));
            ensure!(session.until.as_millis() <= latest, "{session:?} outlives its process by more than its time");
            let ended = session.until.as_millis() + millis(CLOCK_SLACK) < looked.as_millis();
            ensure!(!ended || session.leases == 0, "at {looked}, this has leases: {session:?}");
        }
        Ok(())
    }

    /// What was not excused.
    pub(crate) async fn refusals(&self) -> Result<Vec<Refusal>> {
        self.witness.refusals().await
    }

    /// The record is clean and long enough to say something, the pool is in order, and all of it can be had.
    pub(crate) async fn is_clean(&self, at_least: u64) -> Result<Counts> {
        let refusals = self.refusals().await?;
        ensure!(
            refusals.is_empty(),
            "{} refusals, the first: {:#?}",
            refusals.len(),
            &refusals[..refusals.len().min(5)]
        );
        let counts = self.witness.counts().await?;
        ensure!(counts.grants >= at_least && counts.excused < counts.grants / 20, "{counts:?}");
        self.is_whole().await?;
        Ok(counts)
    }

    pub(crate) async fn is_whole(&self) -> Result<()> {
        ensure!(self.pool.check().await?.is_empty(), "{:?}", self.pool.check().await?);
        let total = self.pool.info().await?.counts.total;
        let slots = total * u64::from(self.circumstances.shared.unwrap_or(1));
        let all = self.pool.malloc().up_to(200).await?;
        ensure!(all.len() as u64 == slots, "{} of {slots} can be had", all.len());
        ensure!(self.pool.free_all(all).await?.iter().all(Result::is_ok));
        ensure!(self.pool.check().await?.is_empty(), "{:?}", self.pool.check().await?);
        Ok(())
    }

    /// Has the pool resized until this is dropped.
    pub(crate) fn resize(&self) -> Resizing {
        Resizing(tokio::spawn(resize(self.pool.clone(), self.circumstances)))
    }
}

/// A task that ends when this is dropped.
pub(crate) struct Resizing(tokio::task::JoinHandle<Result<()>>);

impl Resizing {
    /// That it went well.
    pub(crate) async fn end(mut self) -> Result<()> {
        ensure!(!self.0.is_finished(), "resizing failed: {:?}", (&mut self.0).await);
        self.0.abort();
        // What it has sent will have arrived.
        let _ = (&mut self.0).await;
        Ok(())
    }
}

impl Drop for Resizing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn item(number: usize) -> Result<Item> {
    let item = Item::new(ResourceKey::new(format!("r{number}"))?);
    let zone = ["eu", "us"][number % 2];
    let model = ["a", "b", "c"][number % 3];
    Ok(item.label("zone", zone).label("model", model))
}

/// Grows and shrinks the pool, by calls and by a declaration, and has a resource fail its probe now and then.
async fn resize(pool: Pool, circumstances: Circumstances) -> Result<()> {
    let may_be = |error: &Error| match error {
        // What it began with is forgotten.
        Error::Superseded { .. } => circumstances.forgetful,
        error => circumstances.unavailable && error.is_transient(),
    };
    let mut round = 0;
    loop {
        match resize_once(&pool, round).await {
            Err(error) if error.downcast_ref().is_some_and(may_be) => {}
            done => done?,
        }
        round += 1;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn resize_once(pool: &Pool, round: usize) -> Result<()> {
    let chosen = |step: usize| (0..32).filter(move |i| (i * 7 + round * step) % 5 < 3);
    let items = || chosen(3).map(item).collect::<Result<Vec<_>>>();
    match round % 4 {
        0 => drop(pool.extend(items()?).await?),
        1 => {
            let keys = chosen(3).map(|i| Ok(ResourceKey::new(format!("r{i}"))?)).collect::<Result<Vec<_>>>()?;
            pool.shrink(keys).await?;
        }
        2 => {
            let priority = u16::try_from(round % 3)?;
            let items = items()?.into_iter().map(|item| item.priority(priority)).collect();
            pool.sync(&Origin::Spec, items, &SyncOptions::default()).await?;
        }
        _ => {
            let key = format!("r{}", round % 32);
            // Unless it has just left the pool.
            let _ = pool.quarantine(&key, Some(Duration::from_millis(500)), "test", Cause::Probe).await;
        }
    }
    if round.is_multiple_of(3) {
        pool.gc(200).await?;
    }
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
