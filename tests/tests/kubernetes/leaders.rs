//! Two agents: one leads, the other takes over, and never do both.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use rustix::process::Signal;

use crate::{
    agent::{Agent, pool_of},
    cluster::{Cluster, NAMESPACE},
};

/// The promise: how long a pool may be without an agent when its leader was killed.
const TAKEOVER: Duration = Duration::from_secs(15);

async fn leads(agent: &mut Agent) -> Result<()> {
    agent
        .eventually(TAKEOVER * 2, |agent| {
            let (status, body) = agent.page("/readyz")?;
            ensure!(status == 200 && body.trim() == "ready, leading", "{status} {body}");
            Ok(())
        })
        .await
}

async fn holder(cluster: &Cluster) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.kube(), NAMESPACE);
    Ok(leases.get("redis-allocator").await?.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
}

#[tokio::test]
async fn a_follower_takes_over_from_a_leader_that_was_killed_or_stopped() -> Result<()> {
    let Some(cluster) = Cluster::start("killing the leader").await? else { return Ok(()) };
    let mut first = cluster.agent()?;
    assert_eq!(first.ready().await?, "ready, leading");
    let mut second = cluster.agent()?;
    assert_eq!(second.ready().await?, "ready, following");
    assert_eq!((first.metric("redis_allocator_leader")?, second.metric("redis_allocator_leader")?), (1, 0));
    cluster.apply(&pool_of("a", 1)).await?;
    cluster.ready("a").await?;
    let lease = cluster.in_redis("a")?.malloc().ttl(Duration::from_secs(6)).keep_alive().await?.context("free")?;
    let held_by = holder(&cluster).await?;
    ensure!(!held_by.is_empty());

    let killed = Instant::now();
    first.kill()?;
    cluster.apply(&pool_of("a", 2)).await?;
    leads(&mut second).await?;
    assert!(killed.elapsed() <= TAKEOVER, "{:?}", killed.elapsed());
    assert_ne!(holder(&cluster).await?, held_by);
    cluster.ready("a").await?;
    cluster.redis_has("a", 2).await?;

    // Stopped cleanly: the next one leads at once.
    let mut third = cluster.agent()?;
    assert_eq!(third.ready().await?, "ready, following");
    let stopped = Instant::now();
    assert!(second.terminate().await?.success());
    leads(&mut third).await?;
    assert!(stopped.elapsed() < TAKEOVER / 2, "{:?}", stopped.elapsed());
    cluster.apply(&pool_of("a", 3)).await?;
    cluster.redis_has("a", 3).await?;

    // Whoever leads: no lease notices.
    assert!(!lease.is_lost());
    lease.renew().await?;

    // Nobody left: the last one gives the Lease back.
    assert!(third.terminate().await?.success());
    assert_eq!(holder(&cluster).await?, "");
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn a_leader_that_slept_too_long_follows() -> Result<()> {
    let Some(cluster) = Cluster::start("a leader that sleeps").await? else { return Ok(()) };
    cluster.apply(&pool_of("a", 1)).await?;
    let mut first = cluster.agent()?;
    leads(&mut first).await?;
    let mut second = cluster.agent()?;
    assert_eq!(second.ready().await?, "ready, following");
    first.signal(Signal::STOP)?;
    leads(&mut second).await?;
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.redis_has("a", 2).await?;
    first.signal(Signal::CONT)?;
    first
        .eventually(TAKEOVER * 2, |agent| {
            let (status, body) = agent.page("/readyz")?;
            ensure!(status == 200 && body.trim() == "ready, following", "{status} {body}");
            Ok(())
        })
        .await?;
    leads(&mut second).await?;
    cluster.ready("a").await?;
    cluster.redis_has("a", 2).await?;
    cluster.nothing_was_refused()
}
