//! From `kubectl apply` to a lease, and through edits: what is declared is in Redis, and what is in Redis in the status.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{pool, pool_of},
    cluster::Cluster,
};

/// The fields of a table's row, its header's names before them.
fn row<'a>(table: &'a str, name: &str) -> Result<Vec<(&'a str, &'a str)>> {
    let mut lines = table.lines().map(str::split_whitespace);
    let header = lines.next().context("an empty table")?;
    let row = lines.find(|row| row.clone().next() == Some(name)).with_context(|| format!("no {name} in:\n{table}"))?;
    Ok(header.zip(row).filter(|(name, _)| *name != "AGE").collect())
}

#[tokio::test]
async fn an_applied_pool_is_granted_from_and_its_status_says_so() -> Result<()> {
    let Some(cluster) = Cluster::start("applying, leasing and editing").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    assert_eq!(agent.ready().await?, "ready, leading");
    let spec = "{resources: [{name: gpu-0, priority: 9}, {name: gpu-1}], lease: {maxTTL: 1h}, gc: {interval: 200ms}}";
    cluster.apply(&pool("gpus", spec)).await?;
    let gpus = cluster.ready("gpus").await?;
    assert_eq!(gpus.metadata.finalizers.context("no finalizer")?, ["redis-allocator.dev/pool"]);
    let status = gpus.status.context("no status")?;
    assert_eq!(status.observed_generation, gpus.metadata.generation);
    assert_eq!((status.total, status.free, status.leased), (2, 2, 0));
    let in_redis = cluster.in_redis("gpus")?;
    let info = in_redis.info().await?;
    assert_eq!(status.incarnation, Some(info.incarnation.to_string()));
    let manager = info.manager.context("no manager")?;
    ensure!(manager.starts_with("kubernetes:"), "{manager}");

    // Granted by the library, seen with kubectl.
    let lease = in_redis.malloc().keep_alive().await?.context("free")?;
    assert_eq!(lease.key().as_str(), "gpu-0");
    cluster.counts("gpus", |status| (status.leased, status.free), (1, 1)).await?;
    let table = cluster.api.kubectl(&["get", "rpool"]).await?;
    let columns =
        [("NAME", "gpus"), ("MODE", "Exclusive"), ("TOTAL", "2"), ("FREE", "1"), ("LEASED", "1"), ("QUARANTINED", "0")];
    assert_eq!(row(&table, "gpus")?[..6], columns);
    ensure!(row(&table, "gpus")?.contains(&("READY", "True")), "{table}");
    let wide = cluster.api.kubectl(&["get", "resourcepools", "gpus", "-o", "wide"]).await?;
    for column in ["DRAINING", "WAITING", "REASON"] {
        ensure!(wide.lines().next().is_some_and(|header| header.contains(column)), "{wide}");
    }
    let all = cluster.api.kubectl(&["get", "redis-allocator"]).await?;
    ensure!(all.contains("resourcepool.redis-allocator.dev/gpus"), "{all}");

    // Nothing left to grant is a condition, not an error.
    let last = in_redis.malloc().await?.context("free")?;
    cluster.pool_is("gpus", "Exhausted", "True", "NothingFree").await?;
    last.free().await?;
    cluster.pool_is("gpus", "Exhausted", "False", "ResourcesFree").await?;

    // Edited: one comes, and one that is leased leaves when its lease ends.
    let edited = "{resources: [{name: gpu-1}, {name: gpu-2}, {name: gpu-3}], gc: {interval: 200ms}}";
    cluster.apply(&pool("gpus", edited)).await?;
    cluster.redis_has("gpus", 3).await?;
    cluster.counts("gpus", |status| (status.total, status.draining), (3, 1)).await?;
    lease.renew().await?;
    lease.free().await?;
    cluster.counts("gpus", |status| (status.free, status.draining, status.leased), (3, 0, 0)).await?;
    assert!(in_redis.get("gpu-0").await?.is_none());

    // Suspended, it grants nothing and says so.
    cluster.apply(&pool("gpus", &edited.replace("gc:", "suspend: true, gc:"))).await?;
    cluster.pool_is("gpus", "Ready", "False", "Suspended").await?;
    assert!(in_redis.malloc().await?.is_none());
    cluster.apply(&pool("gpus", edited)).await?;
    cluster.ready("gpus").await?;
    assert!(in_redis.check().await?.is_empty());
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn what_was_applied_before_any_agent_ran_is_found() -> Result<()> {
    let Some(cluster) = Cluster::start("applying before an agent runs").await? else { return Ok(()) };
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.api.kubectl(&["create", "namespace", "lab"]).await?;
    cluster.apply(&pool_of("a", 3).replace("{name: a}", "{name: a, namespace: lab}")).await?;
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.ready("a").await?;
    cluster.redis_has("default/a", 2).await?;
    cluster.redis_has("lab/a", 3).await?;

    // Stopped and started again, it changes nothing that was not changed; what was is.
    assert!(agent.terminate().await?.success());
    cluster.apply(&pool_of("a", 5)).await?;
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.redis_has("default/a", 5).await?;
    cluster.redis_has("lab/a", 3).await?;
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn every_example_is_accepted_and_becomes_ready() -> Result<()> {
    let Some(cluster) = Cluster::start("applying the examples").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes");
    cluster.api.kubectl(&["apply", "-R", "-f", &examples.display().to_string()]).await?;
    let objects = cluster.api.kubectl(&["get", "redis-allocator", "-A", "-o", "name"]).await?;
    ensure!(objects.contains("resourcepool.") && objects.contains("softbinding."), "{objects}");
    cluster
        .eventually(async || {
            let conditions = "{range .items[*]}{.kind}/{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}\
                              {\"\\n\"}{end}";
            let wanted = format!("jsonpath={conditions}");
            let found = cluster.api.kubectl(&["get", "redis-allocator", "-A", "-o", &wanted]).await?;
            ensure!(found.lines().all(|line| line.ends_with(" True")), "{found}");
            Ok(())
        })
        .await?;
    cluster.nothing_was_refused()
}
