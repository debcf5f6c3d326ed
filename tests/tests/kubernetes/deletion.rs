//! `kubectl delete`: what becomes of the leases is the deletion policy's to say, and nobody waits for ever who does not
//! want to.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{SOON, pool, pool_of},
    cluster::Cluster,
};

/// Its holder renews it every two seconds, and hears then that it was revoked.
const SHORT: Duration = Duration::from_secs(6);

fn policy(name: &str, policy: &str) -> String {
    pool(name, &format!("{{resources: [{{name: r0}}, {{name: r1}}], deletionPolicy: {policy}}}"))
}

#[tokio::test]
async fn a_deleted_pool_waits_for_its_leases_as_its_policy_says() -> Result<()> {
    let Some(cluster) = Cluster::start("deleting pools").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&[policy("drain", "Drain"), policy("revoke", "Revoke"), policy("orphan", "Orphan")].concat()).await?;
    cluster.apply(&pool_of("unused", 2)).await?;
    for name in ["drain", "revoke", "orphan", "unused"] {
        cluster.ready(name).await?;
    }
    let [drain, revoke, orphan] = ["drain", "revoke", "orphan"].map(|name| cluster.in_redis(name));
    let (drain, revoke, orphan) = (drain?, revoke?, orphan?);
    let held = drain.malloc().ttl(SHORT).keep_alive().await?.context("free")?;
    let revoked = revoke.malloc().ttl(SHORT).keep_alive().await?.context("free")?;
    let orphaned = orphan.malloc().ttl(SHORT).keep_alive().await?.context("free")?;

    // Nobody holds anything: kubectl itself waits until it is gone.
    cluster.api.kubectl(&["delete", "rpool", "unused", "--timeout=40s"]).await?;
    cluster.pool_is_gone("unused").await?;

    cluster.delete("rpool", "drain").await?;
    let draining = cluster.pool_is("drain", "Ready", "False", "Draining").await?;
    assert!(draining.metadata.deletion_timestamp.is_some());
    assert!(drain.malloc().await?.is_none(), "nothing is granted any more");
    held.renew().await?;
    held.free().await?;
    cluster.pool_is_gone("drain").await?;

    cluster.delete("rpool", "revoke").await?;
    tokio::time::timeout(SOON, revoked.lost()).await?;
    cluster.pool_is_gone("revoke").await?;

    cluster.delete("rpool", "orphan").await?;
    cluster.is_gone(cluster.pools(), "orphan").await?;
    orphaned.renew().await?;
    let info = orphan.info().await?;
    ensure!(info.manager.is_none() && info.counts.total == 2, "{info:?}");
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn a_deletion_waits_for_an_agent() -> Result<()> {
    let Some(cluster) = Cluster::start("deleting pools while no agent runs").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.ready("a").await?;
    assert!(agent.terminate().await?.success());
    cluster.delete("rpool", "a").await?;
    assert!(cluster.pools().get("a").await?.metadata.deletion_timestamp.is_some());
    assert_eq!(cluster.in_redis("a")?.len().await?, 2);
    let _agent = cluster.agent()?;
    cluster.pool_is_gone("a").await?;

    // The next of that name is another pool.
    cluster.apply(&pool_of("a", 3)).await?;
    cluster.ready("a").await?;
    cluster.redis_has("a", 3).await?;
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn a_forced_deletion_waits_for_nobody() -> Result<()> {
    let Some(cluster) = Cluster::start("forcing a deletion").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&(policy("held", "Drain") + &policy("lost", "Drain"))).await?;
    cluster.ready("held").await?;
    cluster.ready("lost").await?;
    let lease = cluster.in_redis("held")?.malloc().ttl(SHORT).keep_alive().await?.context("free")?;
    let force = async |name: &str| {
        cluster.api.kubectl(&["annotate", "rpool", name, "redis-allocator.dev/force-delete=true"]).await.map(drop)
    };

    // The leases are revoked.
    cluster.delete("rpool", "held").await?;
    cluster.pool_is("held", "Ready", "False", "Draining").await?;
    force("held").await?;
    cluster.pool_is_gone("held").await?;
    tokio::time::timeout(SOON, lease.lost()).await?;

    // Without Redis nothing can be revoked; the object goes nevertheless.
    cluster.redis.pause()?;
    cluster.delete("rpool", "lost").await?;
    cluster.pool_is("lost", "Ready", "False", "RedisUnavailable").await?;
    force("lost").await?;
    cluster.is_gone(cluster.pools(), "lost").await?;
    cluster.redis.resume()?;
    cluster.nothing_was_refused()
}
