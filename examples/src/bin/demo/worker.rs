//! A worker in a process of its own: it takes a lease, holds it until it is told to end, and returns it. Killed, it
//! returns nothing: then the lease ends by itself.

use std::{
    io::{BufRead as _, Write as _},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use redis_allocator::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::oneshot,
    time::timeout,
};

/// How long a worker may take to start and get its lease, or to return it and end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker is told at its start.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    redis_url: String,
    #[arg(long)]
    pool: String,
    /// Who it says it is.
    #[arg(long)]
    owner: String,
    /// Its soft-binding name, if it has one.
    #[arg(long)]
    bind: Option<String>,
    #[arg(long)]
    ttl_ms: u64,
}

/// What a worker says once it holds its lease, on standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Holding {
    pub(crate) key: String,
    pub(crate) fencing_token: u64,
}

/// The worker's own side.
pub(crate) async fn run(args: WorkerArgs) -> Result<()> {
    let client = Client::builder(args.redis_url).owner(&args.owner).connect().await?;
    let pool = client.pool(&args.pool)?;
    let mut request = pool.malloc().ttl(Duration::from_millis(args.ttl_ms));
    if let Some(name) = &args.bind {
        request = request.bind(name.as_str());
    }
    let Some(lease) = request.keep_alive().await? else { bail!("nothing is free in pool {}", args.pool) };

    let holding = Holding { key: lease.key().to_string(), fencing_token: lease.fencing_token() };
    println!("{}", serde_json::to_string(&holding)?);
    std::io::stdout().flush()?;

    // Its work: waiting for a word, or for the end of whoever started it. Renewals go on meanwhile.
    tokio::select! {
        () = told_to_end() => {}
        () = lease.lost() => bail!("{} lost its lease on {}", args.owner, lease.key()),
    }
    lease.free().await?;
    Ok(())
}

/// Resolves when standard input has a line, or its end. In a thread, because a runtime would wait for a read that is
/// still going on when it ends.
async fn told_to_end() {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        let _ = tell.send(());
    });
    let _ = told.await;
}

/// A worker process, as the demo sees it. It is killed when this value is dropped.
pub(crate) struct Worker {
    pub(crate) owner: String,
    pub(crate) holding: Holding,
    pid: u32,
    process: Child,
}

impl Worker {
    /// Starts a worker and waits until it says what it holds.
    pub(crate) async fn start(
        redis_url: &str,
        pool: &str,
        owner: &str,
        bind: Option<&str>,
        ttl: Duration,
    ) -> Result<Self> {
        let this = std::env::current_exe().context("finding this program's own file failed")?;
        let mut process = Command::new(Path::new(&this))
            .args(["worker", "--redis-url", redis_url, "--pool", pool, "--owner", owner])
            .args(bind.iter().flat_map(|name| ["--bind", name]))
            .args(["--ttl-ms", &ttl.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not in reach of Ctrl-C: the demo ends it in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {owner} failed"))?;
        let pid = process.id().with_context(|| format!("{owner} ended at once"))?;
        let output = process.stdout.take().context("a worker without standard output")?;
        let mut line = String::new();
        timeout(PATIENCE, BufReader::new(output).read_line(&mut line)).await.with_context(|| {
            format!("waited {} s in vain for {owner} to get a lease of {pool}", PATIENCE.as_secs())
        })??;
        let holding = serde_json::from_str(&line).with_context(|| format!("{owner} did not say what it holds"))?;
        Ok(Self { owner: owner.to_owned(), holding, pid, process })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it so that it can't return anything (SIGKILL).
    pub(crate) async fn kill(mut self) -> Result<Holding> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a worker without a process id")?;
        kill_process(pid, Signal::KILL).with_context(|| format!("killing {} failed", self.owner))?;
        self.process.wait().await?;
        Ok(self.holding)
    }

    /// Tells it to return its lease and to end.
    pub(crate) async fn finish(mut self) -> Result<Holding> {
        drop(self.process.stdin.take());
        let status = timeout(PATIENCE, self.process.wait())
            .await
            .with_context(|| format!("waited {} s in vain for {} to end", PATIENCE.as_secs(), self.owner))??;
        if !status.success() {
            bail!("{} failed: {status}", self.owner);
        }
        Ok(self.holding)
    }
}
