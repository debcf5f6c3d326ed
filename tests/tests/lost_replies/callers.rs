//! Callers who are gone when the reply comes: what it brings is given back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Flavor;
use redis_allocator::{Lease, Pool};

use crate::scene::{Deployment, SOON, TTL, in_turn};

/// How long a grant takes here and now: the median of some.
async fn typical_time(pool: &Pool) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..15 {
        let asked = Instant::now();
        let lease = pool.malloc().await?.context("free")?;
        times.push(asked.elapsed());
        lease.free().await?;
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// Callers who give up at any moment, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_leaves_nothing_behind() -> Result<()> {
    let given_up = async {
        for flavor in Flavor::ALL {
            let deployment = Deployment::single(flavor).await?;
            let scene = deployment.scene("given-up").await?;
            scene.proxy.delay(Duration::from_millis(2));
            let typical = typical_time(&scene.pool).await?;
            let (mut heard, granted) = (0, scene.granted().await?);
            for round in 0..200_u32 {
                // From no time at all to several times what a call takes on this machine.
                let patience = typical * round / 50;
                let mut keys = Vec::new();
                let request = scene.pool.malloc().ttl(TTL * 600);
                let request = async {
                    match round % 5 {
                        0 => request.permanent().await.map(|lease| lease.into_iter().collect()),
                        1 => request.bind("name").await.map(|lease| lease.into_iter().collect()),
                        2 => request.keep_alive().up_to(2).await,
                        3 => {
                            // Given up, it goes on in the background; completed, it is free.
                            if let Some(lease) = request.await? {
                                lease.renew().await?;
                                lease.free().await?;
                            }
                            Ok(Vec::new())
                        }
                        _ => {
                            keys.extend(scene.pool.malloc_key(TTL * 600).await?);
                            Ok(Vec::new())
                        }
                    }
                };
                if let Ok(leases) = tokio::time::timeout(patience, request).await {
                    let leases: Vec<Lease> = leases?;
                    drop(leases);
                    heard += 1;
                }
                for freed in scene.pool.free_keys(keys).await? {
                    freed?;
                }
            }
            scene.proxy.pass();
            scene.all_come_back(SOON).await?;
            scene.nothing_expired().await?;
            let granted = scene.granted().await? - granted;
            println!("{flavor}: 200 requests, {heard} of them heard out, {granted} grants");
            ensure!(heard > 5 && heard < 195 && granted > heard / 2, "{heard} heard, {granted} granted");
        }
        Ok(())
    };
    in_turn(given_up).await
}
