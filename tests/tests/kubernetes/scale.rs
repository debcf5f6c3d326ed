//! A thousand pools: all become ready, and then nothing is written as long as nothing changes.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{DeleteParams, ListParams, PostParams};
use redis_allocator_crd::{ResourcePool, ResourcePoolStatus};

use crate::cluster::Cluster;

const POOLS: usize = 1000;
/// For an unoptimised build on a busy machine; the benchmark has the figures.
const PATIENCE: Duration = Duration::from_mins(4);
/// Longer than counts may be held back.
const QUIET: Duration = Duration::from_secs(20);

fn number(index: usize) -> Result<ResourcePool> {
    let manifest = serde_json::json!({
        "apiVersion": "redis-allocator.dev/v1alpha1",
        "kind": "ResourcePool",
        "metadata": {"name": format!("pool-{index}")},
        "spec": {"resources": [{"name": "a"}, {"name": "b"}]},
    });
    Ok(serde_json::from_value(manifest)?)
}

/// Each pool's resource version and status.
type Seen = BTreeMap<String, (Option<String>, Option<ResourcePoolStatus>)>;

impl Cluster {
    /// All pools, when all are ready.
    async fn all_ready(&self) -> Result<Seen> {
        let pools = self.pools();
        eventually(PATIENCE, async || {
            // What is asked here must not be what the agent waits for.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut seen = BTreeMap::new();
            for pool in pools.list(&ListParams::default()).await?.items {
                let conditions = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
                if conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True") {
                    let name = pool.metadata.name.context("no name")?;
                    seen.insert(name, (pool.metadata.resource_version, pool.status));
                }
            }
            ensure!(seen.len() == POOLS, "{} pools are ready", seen.len());
            Ok(seen)
        })
        .await
    }

    /// Nothing was written since these were seen, and so many requests counted.
    async fn nothing_was_written(&self, before: &Seen, requests: usize) -> Result<()> {
        let now = self.all_ready().await?;
        let changed: Vec<_> = before.iter().filter(|(name, seen)| now.get(*name) != Some(seen)).collect();
        let what = || changed.iter().map(|(name, seen)| format!("{name}: {seen:?} became {:?}\n", now.get(*name)));
        ensure!(changed.is_empty(), "{}", what().collect::<String>());
        let writes = self.writes_since(requests)?;
        ensure!(writes.is_empty(), "{writes:?}");
        Ok(())
    }
}

#[tokio::test]
async fn a_thousand_pools_become_ready_and_cost_nothing_while_nothing_changes() -> Result<()> {
    let Some(cluster) = Cluster::start("a thousand pools").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let pools = cluster.pools();
    futures::stream::iter(0..POOLS)
        .map(async |index| Ok::<_, anyhow::Error>(pools.create(&PostParams::default(), &number(index)?).await?))
        .buffer_unordered(16)
        .try_collect::<Vec<_>>()
        .await?;
    cluster.all_ready().await?;
    assert_eq!(cluster.client.pools("default").await?.len(), POOLS);

    // Counts that were true when they were written may change once more.
    tokio::time::sleep(QUIET).await;
    let (seen, requests) = (cluster.all_ready().await?, cluster.requests_of_agents()?.len());
    tokio::time::sleep(QUIET).await;
    cluster.nothing_was_written(&seen, requests).await?;

    // An agent that starts finds everything as it should be.
    assert!(agent.terminate().await?.success());
    let requests = cluster.requests_of_agents()?.len();
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    tokio::time::sleep(QUIET).await;
    cluster.nothing_was_written(&seen, requests).await?;

    // All at once, as they came.
    pools.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    eventually(PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let left = pools.list_metadata(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} pools are left");
        Ok(())
    })
    .await?;
    assert_eq!(cluster.client.pools("default").await?, []);
    cluster.nothing_was_refused()
}
