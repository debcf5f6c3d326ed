//! Takes a resource whenever one is free and holds it while it works, until it is told to stop (SIGTERM): the program of the
//! pods in `examples/kubernetes/2-library.yaml`.
//!
//! Beside an agent that has `examples/pools`:
//! `REDIS_URL=redis://127.0.0.1:6379 cargo run --bin worker -- --pool default/gpus`

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use redis_allocator::{Client, Lease, Pool};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

/// How long to wait before asking again, when nothing is free or Redis does not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// Works on leased resources until SIGTERM.
#[derive(Debug, Parser)]
struct Worker {
    /// Where Redis is; set by the pod, from a Secret.
    #[arg(long, env = "REDIS_URL", hide_env_values = true, default_value = "redis://127.0.0.1:6379")]
    redis_url: String,

    /// The pool, as NAMESPACE/NAME.
    #[arg(long)]
    pool: String,

    /// The name by which the worker prefers the resource that it had last.
    #[arg(long)]
    bind: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let worker = Worker::parse();
    let mut stop = signal(SignalKind::terminate())?;
    let client = tokio::select! {
        client = Client::connect(&worker.redis_url) => client?,
        _ = stop.recv() => return Ok(()),
    };
    let pool = client.pool(&worker.pool)?;
    while work_once(&worker, &pool, &mut stop).await {}
    println!("told to stop");
    Ok(())
}

/// Takes a resource, works, and gives it back. Whether to go on.
async fn work_once(worker: &Worker, pool: &Pool, stop: &mut Signal) -> bool {
    let mut request = pool.malloc();
    if let Some(name) = &worker.bind {
        request = request.bind(name);
    }
    // Renewed in the background, for as long as the pod lives: after a crash it comes back when its short time is over.
    // A call that is dropped half-way leaks nothing: what it was granted is given back.
    let granted = tokio::select! {
        granted = request.keep_alive() => granted,
        _ = stop.recv() => return false,
    };
    let lease = match granted {
        Ok(Some(lease)) => lease,
        Ok(None) => {
            println!("nothing is free in {}", worker.pool);
            return pause(stop).await;
        }
        // Redis is away, or the pool is not declared yet. It is not this pod that needs a restart.
        Err(error) => {
            println!("asking {} for a resource failed: {error}", worker.pool);
            return pause(stop).await;
        }
    };
    println!("{} is mine, with fencing token {}", lease.key(), lease.fencing_token());
    let go_on = tokio::select! {
        () = work(&lease) => true,
        // It may be somebody else's by now: nothing more may be done with it.
        () = lease.lost() => {
            println!("{} is lost, stopped at once", lease.key());
            return pause(stop).await;
        }
        _ = stop.recv() => false,
    };
    match lease.free().await {
        Ok(()) => println!("given back"),
        Err(error) => println!("giving it back failed, it comes back by itself: {error}"),
    }
    go_on
}

/// Waits a little. Whether to go on then.
async fn pause(stop: &mut Signal) -> bool {
    tokio::select! {
        () = sleep(PAUSE) => true,
        _ = stop.recv() => false,
    }
}

async fn work(lease: &Lease) {
    println!("working with {:?}", lease.params());
    sleep(Duration::from_mins(1)).await;
}
