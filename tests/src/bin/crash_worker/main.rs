//! A workload of the crash tests: takes or waits for, uses and gives back resources at random until its standard input
//! ends, or until it is killed. It reports each use to the witness, and accuses whoever takes a lease away before its
//! deadline.
//!
//! Arguments: URL of the pool's server, URL of the witness, the pool's name, a name that no other process has, and the
//! circumstances, [`Circumstances`] as JSON.
//!
//! | file | idea |
//! |---|---|
//! | `ask` | what is asked for, and how |
//! | `hold` | what is done with it |

mod ask;
mod hold;

use std::{env, future::Future, io::Read, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use e2e::{Random, Witness};
use redis_allocator::{BindOptions, BindPolicy, Client, Error, Pool, Session};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// Tasks of one worker, each with leases of its own.
const TASKS: usize = 2;
/// Names that workers share, so that they meet.
const NAMES: u64 = 6;

/// What the worker is told about its surroundings.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Circumstances {
    /// The most holders of a resource, if it is shared.
    shared: Option<u32>,
    /// How long (ms) the server may take to answer.
    timeout: u64,
    /// Whether calls may fail for a while.
    unavailable: bool,
    /// Whether what the server acknowledged may be lost.
    forgetful: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url, witness, pool, holder, circumstances] = &arguments[..] else {
        bail!("usage: crash_worker URL WITNESS-URL POOL HOLDER CIRCUMSTANCES");
    };
    let circumstances: Circumstances = serde_json::from_str(circumstances).context("no circumstances")?;
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ended.cancel();
    });
    let witness = Witness::connect(witness).await?;
    let witness = if let Some(most) = circumstances.shared { witness.shared(most) } else { witness };
    let timeout = Duration::from_millis(circumstances.timeout);
    let client = loop {
        let client = Client::builder(url).owner(holder).timeout(timeout).connect_timeout(timeout);
        match client.connect().await {
            Ok(client) => break client,
            Err(error) if circumstances.unavailable && error.is_transient() && !stop.is_cancelled() => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
    };
    let session = client.session(holder).ttl(Duration::from_secs(2)).start().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let worker = Worker {
            pool: client.pool(pool)?,
            session: session.clone(),
            witness: witness.clone(),
            holder: Arc::from(holder.as_str()),
            random: Random::new(task),
            stop: stop.clone(),
            circumstances,
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
    session: Session,
    witness: Witness,
    holder: Arc<str>,
    random: Random,
    stop: CancellationToken,
    circumstances: Circumstances,
}

impl Worker {
    async fn run(mut self) -> Result<()> {
        while !self.stop.is_cancelled() {
            match self.random.below(20) {
                0 => self.bind().await?,
                1 => {
                    let name = self.name();
                    let unbound = self.pool.unbind(name).await;
                    self.answered("unbind", unbound).await?;
                }
                2 if self.circumstances.shared.is_none() => self.hold_key().await?,
                _ => self.ask_and_hold().await?,
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
        let policy = if self.random.one_of(2) { BindPolicy::Required } else { BindPolicy::Preferred };
        let ttl = Some(Duration::from_millis(200 + self.random.below(1500)));
        match self.pool.bind(name, resource, &BindOptions { ttl, policy, declared: false }).await {
            Err(Error::BindingConflict { .. }) => {}
            bound => drop(self.answered("bind", bound).await?),
        }
        Ok(())
    }

    /// What a call brought; nothing, if it failed as calls may fail under these circumstances.
    async fn answered<T>(&mut self, what: &'static str, outcome: redis_allocator::Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if self.circumstances.unavailable && error.is_transient() => {
                self.pause(100).await;
                Ok(None)
            }
            Err(error) => Err(error).context(what),
        }
    }

    /// Goes on with something at random moments, or ends it.
    async fn pause(&mut self, at_most: u64) {
        let pause = Duration::from_millis(5 + self.random.below(at_most));
        self.until_stopped(pause, std::future::pending::<()>()).await;
    }

    /// What that comes to, unless it takes longer than so, or this is to end.
    async fn until_stopped<T>(&self, at_most: Duration, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            () = self.stop.cancelled() => None,
            done = tokio::time::timeout(at_most, future) => done.ok(),
        }
    }
}
