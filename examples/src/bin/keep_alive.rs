//! Holds a GPU for as long as the work takes, and stops the work at once when the lease is lost.
//!
//! Run it beside an agent that has `examples/pools`: `REDIS_URL=redis://127.0.0.1:6379 cargo run --bin keep_alive`.

use std::time::Duration;

use anyhow::{Result, bail};
use redis_allocator::Client;

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let client = Client::connect(&url).await?;
    let pool = client.pool("default/gpus")?;

    // A short time to live, renewed in the background: a crash returns the GPU soon, a long job keeps it.
    // The binding name brings this worker back to the GPU that it had last, if that is free.
    let request = pool.malloc().ttl(Duration::from_secs(15)).bind("trainer-1").keep_alive();
    let Some(lease) = request.await? else { bail!("every GPU is in use") };
    println!("training on {}", lease.key());

    tokio::select! {
        () = train() => println!("done"),
        // The server was gone for too long, or an operator took the GPU away: it may be somebody else's now.
        () = lease.lost() => bail!("lost {}, stopped at once", lease.key()),
    }
    lease.free().await?;
    Ok(())
}

async fn train() {
    for epoch in 1..=3 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        println!("epoch {epoch} of 3");
    }
}
