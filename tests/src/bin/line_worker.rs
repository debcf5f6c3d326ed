//! A process full of callers that wait in line: each is served once, or once after the other until its standard input
//! ends, reports that to the witness, and gives back what it was given.
//!
//! Arguments: URL of the pool's server, URL of the witness, the pool's name, a name that no other process has, and how to
//! behave, a [`Conduct`] as JSON.

use std::{
    env,
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    Random, Witness,
    witness::{self, Use},
};
use redis_allocator::{BootInstant, Client, Lease, Malloc, Pool};
use serde::Deserialize;

/// How long anything may take that must happen, on a machine that may have no time.
const PATIENCE: Duration = Duration::from_mins(12);
/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

static STOPPED: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Clone, Copy, Deserialize)]
struct Conduct {
    /// How many wait at a time.
    waiters: usize,
    /// From which on and up to which priority, each at random.
    priorities: (u8, u8),
    /// Time to live of the leases (ms).
    ttl: u64,
    /// The longest time (ms) for which a lease is held.
    hold: u64,
    /// Whether half of them give up in the midst of waiting before they are in earnest, and some ask for two at once.
    fickle: bool,
    /// Whether they ask again when they were served.
    again: bool,
}

// One thread: there are many of these processes.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url, witness, pool, name, conduct] = &arguments[..] else {
        bail!("usage: line_worker URL WITNESS-URL POOL NAME CONDUCT");
    };
    let conduct: Conduct = serde_json::from_str(conduct).context("no conduct")?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        STOPPED.store(true, Ordering::Relaxed);
    });
    let client = Client::builder(url).timeout(TIMEOUT).connect_timeout(TIMEOUT).connect().await?;
    let witness = Witness::connect(witness).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..conduct.waiters {
        let waiter = Waiter {
            pool: client.pool(pool)?,
            witness: witness.clone(),
            name: format!("{name}/{number}"),
            random: Random::new(number),
            conduct,
        };
        tasks.spawn(waiter.run());
    }
    let mut failed = false;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended? {
            failed = true;
            witness.accuse(&format!("waiter failed: {error:#}"), name).await?;
        }
    }
    ensure!(!failed, "some waiters failed; the witness knows why");
    Ok(())
}

struct Waiter {
    pool: Pool,
    witness: Witness,
    name: String,
    random: Random,
    conduct: Conduct,
}

impl Waiter {
    async fn run(mut self) -> Result<()> {
        let (lowest, highest) = self.conduct.priorities;
        loop {
            let priority = lowest + u8::try_from(self.random.below(u64::from(highest - lowest) + 1))?;
            // What is granted shows to whom, and how urgent it was.
            let holder = format!("{}/{priority}", self.name);
            let ttl = Duration::from_millis(self.conduct.ttl);
            let request = self.pool.malloc().owner(&holder).ttl(ttl);
            if self.conduct.fickle {
                self.change_its_mind(&request).await?;
            }
            let leases = if self.conduct.fickle && self.random.one_of(6) {
                request.wait(PATIENCE).priority(priority).count(2).await?
            } else {
                vec![request.wait(PATIENCE).priority(priority).await?]
            };
            self.hold(leases, &holder).await?;
            if !self.conduct.again || STOPPED.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// Waits for a moment and is cancelled, perhaps while it is being served.
    async fn change_its_mind(&mut self, request: &Malloc) -> Result<()> {
        while self.random.one_of(2) {
            let moment = Duration::from_millis(self.random.below(1500));
            if let Ok(served) = tokio::time::timeout(moment, request.clone().wait(PATIENCE).into_future()).await {
                // Too late: it has been served, and nobody knows.
                drop(served?);
            }
            self.witness.note("changed its mind").await?;
        }
        Ok(())
    }

    async fn hold(&mut self, leases: Vec<Lease>, holder: &str) -> Result<()> {
        for lease in &leases {
            let remaining = lease.remaining().context("a lease without an end")?;
            let used = Use::new(lease.key(), lease.fencing_token(), holder, witness::now(), remaining);
            if let Some(refusal) = self.witness.record(&used).await?
                && lease.remaining().is_none_or(|remaining| remaining.is_zero())
            {
                self.witness.excuse(&refusal).await?;
            }
        }
        if self.conduct.hold > 0 {
            tokio::time::sleep(Duration::from_millis(self.random.below(self.conduct.hold))).await;
        }
        for lease in leases {
            self.witness.end(lease.key(), lease.fencing_token()).await?;
            let deadline = lease.deadline();
            let freed = lease.free().await;
            // Who had no time to run for that long has lost it.
            ensure!(freed.is_ok() || deadline.is_some_and(BootInstant::is_past), "freed in time, but: {freed:?}");
        }
        Ok(())
    }
}
