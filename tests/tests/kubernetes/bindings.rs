//! Declared bindings: they wait for their pool, follow it, and say what is wrong.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{agent::pool_of, cluster::Cluster};

fn binding(name: &str, pool: &str, resource: &str, policy: &str) -> String {
    format!(
        "apiVersion: redis-allocator.dev/v1alpha1\nkind: SoftBinding\nmetadata: {{name: {name}}}\nspec: {{poolRef: {{name: \
         {pool}}}, resourceName: {resource}, policy: {policy}}}\n---\n"
    )
}

#[tokio::test]
async fn a_binding_follows_its_pool() -> Result<()> {
    let Some(cluster) = Cluster::start("bindings and their pools").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&binding("mine", "a", "r1", "Required")).await?;
    cluster.binding_is("mine", "False", "PoolNotFound").await?;
    cluster.apply(&pool_of("a", 1)).await?;
    cluster.binding_is("mine", "False", "ResourceNotFound").await?;
    cluster.apply(&pool_of("a", 3)).await?;
    let bound = cluster.binding_is("mine", "True", "Bound").await?;
    assert_eq!(bound.status.context("no status")?.resource.as_deref(), Some("r1"));
    let table = cluster.api.kubectl(&["get", "sbind"]).await?;
    let row: Vec<_> = table.lines().nth(1).context("no row")?.split_whitespace().collect();
    assert_eq!(row[..5], ["mine", "a", "r1", "Required", "True"], "{table}");

    // Reserved: for the name, and for nobody else.
    let in_redis = cluster.in_redis("a")?;
    let lease = in_redis.malloc().bind("mine").await?.context("reserved for it")?;
    assert_eq!(lease.key().as_str(), "r1");
    lease.free().await?;
    cluster.counts("a", |status| (status.reserved, status.free), (1, 2)).await?;

    // Edited, and deleted.
    cluster.apply(&binding("mine", "a", "r2", "Preferred")).await?;
    cluster
        .eventually(async || {
            let bound = in_redis.binding("mine").await?.context("not bound")?;
            ensure!(bound.resource.as_str() == "r2", "{bound:?}");
            Ok(())
        })
        .await?;
    cluster.counts("a", |status| (status.reserved, status.free), (0, 3)).await?;
    cluster.delete("sbind", "mine").await?;
    cluster
        .eventually(async || {
            ensure!(in_redis.binding("mine").await?.is_none());
            Ok(())
        })
        .await?;

    // A pool that goes takes the binding's readiness with it, and gives it back.
    cluster.apply(&binding("other", "a", "r0", "Preferred")).await?;
    cluster.binding_is("other", "True", "Bound").await?;
    cluster.delete("rpool", "a").await?;
    cluster.pool_is_gone("a").await?;
    cluster.binding_is("other", "False", "PoolNotFound").await?;
    cluster.apply(&pool_of("a", 1)).await?;
    cluster.binding_is("other", "True", "Bound").await?;
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn of_two_that_claim_one_resource_the_second_waits() -> Result<()> {
    let Some(cluster) = Cluster::start("bindings that conflict").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.apply(&binding("first", "a", "r0", "Required")).await?;
    cluster.binding_is("first", "True", "Bound").await?;
    // The older one counts, and the API server tells ages in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cluster.apply(&binding("a-rival", "a", "r0", "Required")).await?;
    cluster.binding_is("a-rival", "False", "BindingConflict").await?;
    cluster.binding_is("first", "True", "Bound").await?;
    let in_redis = cluster.in_redis("a")?;
    assert_eq!(in_redis.malloc().bind("first").await?.context("reserved for it")?.key().as_str(), "r0");

    cluster.delete("sbind", "first").await?;
    cluster.binding_is("a-rival", "True", "Bound").await?;
    assert!(in_redis.binding("first").await?.is_none());
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn what_was_unbound_while_no_agent_ran_is_unbound_by_the_next_one() -> Result<()> {
    let Some(cluster) = Cluster::start("bindings deleted behind the agent's back").await? else { return Ok(()) };
    cluster.apply(&pool_of("a", 2)).await?;
    cluster.apply(&binding("gone", "a", "r0", "Required")).await?;
    cluster.apply(&binding("kept", "a", "r1", "Preferred")).await?;
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.binding_is("gone", "True", "Bound").await?;
    cluster.binding_is("kept", "True", "Bound").await?;
    assert!(agent.terminate().await?.success());
    cluster.delete("sbind", "gone").await?;
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let in_redis = cluster.in_redis("a")?;
    cluster
        .eventually(async || {
            ensure!(in_redis.binding("gone").await?.is_none());
            Ok(())
        })
        .await?;
    assert!(in_redis.binding("kept").await?.is_some());
    cluster.nothing_was_refused()
}
