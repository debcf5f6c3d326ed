//! A pool that a program makes by itself: no manifest, no agent, only a server. Expired leases come back all the same,
//! as soon as somebody asks and nothing else is free.
//!
//! `REDIS_URL=redis://127.0.0.1:6379 cargo run --bin pool_by_api`

use anyhow::Result;
use redis_allocator::{Client, Item, Ownership, PoolSettings, Removal};

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let client = Client::connect(&url).await?;
    let pool = client.pool("examples/ports")?;
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;

    let items = (9000_u16..9010)
        .map(|port| Ok(Item::new(port.to_string().parse()?).param("port", port)))
        .collect::<Result<Vec<_>>>()?;
    println!("{} ports are new", pool.extend(items).await?);

    // Several at once, in one round trip.
    let leases = pool.malloc().up_to(3).await?;
    for lease in &leases {
        println!("port {} for {}", lease.key(), lease.owner());
    }
    for lease in leases {
        lease.free().await?;
    }
    // The pool goes once nobody holds anything of it any more: the next call of a long-lived program would see to that.
    let retired = pool.retire(Removal::Drain).await?;
    println!("pool deleted: {}, leases left: {}", retired.deleted, retired.leases_left);
    Ok(())
}
