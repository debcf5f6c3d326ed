//! A workload of the crash test: takes, uses and gives back resources at random until its standard input ends, or until
//! it is killed. It reports each use to the witness, and accuses whoever takes a lease away before its deadline.
//!
//! Arguments: URL of the pool's server, URL of the witness, the pool's name, a name that no other process has.

use std::{
    env,
    hash::{BuildHasher, Hasher, RandomState},
    io::Read,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use e2e::witness::{self, Use, Witness};
use redis_allocator::{BindOptions, BindPolicy, Client, Error, Lease, Pool};
use tokio_util::sync::CancellationToken;

/// Tasks of one worker, each with leases of its own.
const TASKS: usize = 2;
/// How long the server may take to answer: it is always there, but the machine may have no time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Names that workers share, so that they meet.
const NAMES: u64 = 6;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url, witness, pool, holder] = &arguments[..] else {
        bail!("usage: crash_worker URL WITNESS-URL POOL HOLDER");
    };
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ended.cancel();
    });
    let client = Client::builder(url).owner(holder).timeout(PATIENCE).connect_timeout(PATIENCE).connect().await?;
    let witness = Witness::connect(witness).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let worker = Worker {
            pool: client.pool(pool)?,
            witness: witness.clone(),
            holder: Arc::from(holder.as_str()),
            random: Random::new(task),
            stop: stop.clone(),
        };
        tasks.spawn(worker.run());
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended? {
            witness.accuse(&format!("worker failed: {error:#}"), holder).await?;
        }
    }
    Ok(())
}

struct Worker {
    pool: Pool,
    witness: Witness,
    holder: Arc<str>,
    random: Random,
    stop: CancellationToken,
}

impl Worker {
    async fn run(mut self) -> Result<()> {
        while !self.stop.is_cancelled() {
            match self.random.below(20) {
                0 => self.bind().await?,
                1 => {
                    let name = self.name();
                    self.pool.unbind(name).await.context("unbind")?;
                }
                2 => self.hold_key().await?,
                _ => self.hold().await?,
            }
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        format!("name-{}", self.random.below(NAMES))
    }

    async fn bind(&mut self) -> Result<()> {
        let name = self.name();
        let resource = format!("r{}", self.random.below(32));
        let policy = if self.random.below(2) == 0 { BindPolicy::Required } else { BindPolicy::Preferred };
        let ttl = Some(Duration::from_millis(200 + self.random.below(1500)));
        match self.pool.bind(name, resource, &BindOptions { ttl, policy, declared: false }).await {
            Ok(_) | Err(Error::BindingConflict { .. }) => Ok(()),
            Err(error) => Err(error).context("bind"),
        }
    }

    /// Without a token nothing can be reported: it is only in the others' way.
    async fn hold_key(&mut self) -> Result<()> {
        let Some(key) = self.pool.malloc_key(Duration::from_secs(3)).await.context("malloc_key")? else {
            return Ok(());
        };
        self.pause(150).await;
        for freed in self.pool.free_keys([&key]).await.context("free_keys")? {
            if let Err(error) = freed {
                self.witness.accuse(&format!("{key}, granted a moment ago: {error}"), &self.holder).await?;
            }
        }
        Ok(())
    }

    async fn hold(&mut self) -> Result<()> {
        let ttl = Duration::from_millis(1000 + self.random.below(2000));
        let mut request = self.pool.malloc().ttl(ttl);
        if self.random.below(5) < 2 {
            request = request.bind(self.name());
        }
        let renewal = self.random.below(3);
        if renewal == 0 {
            request = request.keep_alive();
        }
        let n = 1 + usize::from(self.random.below(6) == 0);
        let leases = request.up_to(n).await.context("malloc")?;
        if leases.is_empty() {
            self.pause(30).await;
            return Ok(());
        }
        // Some go on for longer than one time to live, some until it is over.
        let stay = if self.random.below(4) == 0 { 2500 } else { 400 };
        let end = witness::now() + Duration::from_millis(50 + self.random.below(stay));
        let mut renewed = witness::now();
        while witness::now() < end && !self.stop.is_cancelled() {
            for lease in &leases {
                self.report(lease).await?;
            }
            if renewal == 1 && witness::now() > renewed + ttl / 3 {
                renewed = witness::now();
                for lease in &leases {
                    self.renew(lease).await?;
                }
            }
            self.pause(60).await;
        }
        for lease in leases {
            self.give_back(lease).await?;
        }
        Ok(())
    }

    async fn report(&self, lease: &Lease) -> Result<()> {
        let at = witness::now();
        let remaining = lease.remaining().context("a lease without an end")?;
        if lease.is_lost() {
            return self.lost(lease).await;
        }
        let used = Use::new(lease.key(), lease.fencing_token(), &self.holder, at, remaining);
        if let Some(refusal) = self.witness.record(&used).await?
            && lease.remaining().is_none_or(|remaining| remaining.is_zero())
        {
            self.witness.excuse(&refusal).await?;
        }
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        match lease.renew().await {
            Ok(()) => Ok(()),
            Err(Error::Lost { .. }) => self.lost(lease).await,
            Err(error) => Err(error).context("renew"),
        }
    }

    /// Nobody ends leases here: none may be lost before its deadline.
    async fn lost(&self, lease: &Lease) -> Result<()> {
        match lease.remaining() {
            Some(remaining) if !remaining.is_zero() => {
                let why = format!("{} was lost {remaining:?} early: {:?}", lease.key(), lease.lost_reason());
                self.witness.accuse(&why, &self.holder).await
            }
            _ => Ok(()),
        }
    }

    async fn give_back(&mut self, lease: Lease) -> Result<()> {
        let (key, token, deadline) = (lease.key().clone(), lease.fencing_token(), lease.deadline());
        match self.random.below(8) {
            0 => lease.detach(),
            1 => {
                self.witness.end(&key, token).await?;
                drop(lease);
            }
            _ => {
                self.witness.end(&key, token).await?;
                match lease.free().await {
                    Ok(()) => {}
                    Err(error @ Error::NotOwner { .. }) => {
                        if deadline.is_some_and(|deadline| !deadline.is_past()) {
                            self.witness.accuse(&format!("freed too late, says {error}"), &self.holder).await?;
                        }
                    }
                    Err(error) => return Err(error).context("free"),
                }
            }
        }
        Ok(())
    }

    async fn pause(&mut self, at_most: u64) {
        let pause = Duration::from_millis(5 + self.random.below(at_most));
        let _ = tokio::time::timeout(pause, self.stop.cancelled()).await;
    }
}

/// A small generator (splitmix64), seeded by the system: no two workers do the same.
struct Random(u64);

impl Random {
    fn new(task: usize) -> Self {
        let mut seed = RandomState::new().build_hasher();
        seed.write_usize(task);
        Self(seed.finish())
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
