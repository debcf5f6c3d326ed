//! Takes a GPU for two minutes, uses it, gives it back.
//!
//! Run it beside an agent that has `examples/pools`: `REDIS_URL=redis://127.0.0.1:6379 cargo run --bin lease`.

use std::time::Duration;

use anyhow::Result;
use redis_allocator::{Client, Lease};

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let client = Client::connect(&url).await?;
    let pool = client.pool("default/gpus")?;

    let Some(lease) = pool.malloc().ttl(Duration::from_mins(2)).await? else {
        println!("every GPU is in use");
        return Ok(());
    };
    work(&lease).await;
    lease.free().await?;
    Ok(())
}

async fn work(lease: &Lease) {
    println!("{} is mine, its params are {:?}", lease.key(), lease.params());
    // Whatever the GPU writes to gets the token, and refuses a smaller one than it has seen.
    println!("fencing token {}", lease.fencing_token());
    if let Some(left) = lease.remaining() {
        println!("{} s are left; whoever needs longer renews", left.as_secs());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}
