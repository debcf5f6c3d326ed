//! What others do to the agent's objects and definitions, and to its pools.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{Site, pool_of},
    cluster::{Cluster, SOON},
};

const KINDS: [&str; 2] = ["resourcepools.redis-allocator.dev", "softbindings.redis-allocator.dev"];

#[tokio::test]
async fn definitions_may_come_late_and_go() -> Result<()> {
    let Some(cluster) = Cluster::start("definitions that come and go").await? else { return Ok(()) };
    cluster.api.kubectl(&["delete", "crd", KINDS[0], KINDS[1]]).await?;
    let mut agent = cluster.agent()?;
    agent
        .eventually(SOON, |agent| {
            let (_, said) = agent.page("/readyz")?;
            ensure!(said.contains("redis-allocator crd | kubectl apply"), "it says {said}");
            Ok(())
        })
        .await?;
    cluster.install().await?;
    agent
        .eventually(Duration::from_mins(2), |agent| {
            let (status, body) = agent.page("/readyz")?;
            ensure!(status == 200, "not ready: {body}");
            Ok(())
        })
        .await?;
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.ready("a").await?;

    // With the definition go its objects, each by its policy.
    let lease = cluster.in_redis("a")?.malloc().ttl(Duration::from_secs(6)).keep_alive().await?.context("free")?;
    cluster.api.kubectl(&["delete", "crd", KINDS[0], "--wait=false"]).await?;
    cluster.pool_is("a", "Ready", "False", "Draining").await?;
    lease.free().await?;
    cluster
        .eventually(async || {
            let left = cluster.api.kubectl(&["get", "crd", KINDS[0], "--ignore-not-found"]).await?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .await?;
    assert!(cluster.in_redis("a")?.info().await.is_err());
    assert_eq!(agent.page("/healthz")?.0, 200, "an agent that waits is alive");

    cluster.install().await?;
    cluster.apply(&pool_of("a", 3)).await?;
    cluster.pool_is_within(Duration::from_mins(2), "a", "Ready", "True", "Ready").await?;
    cluster.redis_has("a", 3).await?;
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn a_finalizer_that_was_taken_away_is_put_back() -> Result<()> {
    let Some(cluster) = Cluster::start("taking the finalizer away").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.ready("a").await?;
    let lease = cluster.in_redis("a")?.malloc().keep_alive().await?.context("free")?;
    let patch = r#"[{"op": "remove", "path": "/metadata/finalizers"}]"#;
    cluster.api.kubectl(&["patch", "rpool", "a", "--type=json", "--patch", patch]).await?;
    let pools = cluster.pools();
    cluster
        .eventually(async || {
            let finalizers = pools.get("a").await?.metadata.finalizers.unwrap_or_default();
            ensure!(finalizers == ["redis-allocator.dev/pool"], "{finalizers:?}");
            Ok(())
        })
        .await?;
    lease.renew().await?;
    assert_eq!(cluster.in_redis("a")?.len().await?, 2);
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn a_pool_that_another_declaration_manages_is_left_alone() -> Result<()> {
    let Some(cluster) = Cluster::start("pools of another declaration").await? else { return Ok(()) };
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 2))?;
    let mut files = site.agent(&["--redis-url", &cluster.redis.url()])?;
    files.ready().await?;
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&(pool_of("a", 5) + &pool_of("b", 1))).await?;
    cluster.ready("b").await?;
    cluster.pool_is("a", "Ready", "False", "ManagerConflict").await?;
    assert_eq!(cluster.in_redis("a")?.len().await?, 2);
    let event = cluster.event("a", "ManagerConflict").await?;
    assert_eq!(event.type_.as_deref(), Some("Warning"));

    // Deleting the object takes nothing from its manager.
    cluster.delete("rpool", "a").await?;
    cluster.is_gone(cluster.pools(), "a").await?;
    let info = cluster.in_redis("a")?.info().await?;
    ensure!(info.manager.as_deref().is_some_and(|manager| manager.starts_with("files:")), "{info:?}");
    assert_eq!(info.counts.free, 2);
    cluster.nothing_was_refused()
}
