//! What the schema lets through and the agent refuses: said in the status, nothing changed in Redis, mended by the next
//! good edit.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::{agent::pool, cluster::Cluster};

/// A range that makes a resource that is listed, too: no schema can say this.
const COLLISION: &str = "{resources: [{name: r1}, {name: x}], ranges: [{name: r, template: 'r{}', from: 1, to: 9}]}";
/// Whoever may create a pool must not run commands in the agent.
const EXEC: &str = "{resources: [{name: r1}], healthCheck: {exec: {command: ['true']}}}";

#[tokio::test]
async fn an_invalid_edit_changes_nothing_but_the_status() -> Result<()> {
    let Some(cluster) = Cluster::start("invalid edits").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool("a", "{resources: [{name: r1}, {name: r2}]}")).await?;
    cluster.apply(&pool("b", "{resources: [{name: r1}]}")).await?;
    cluster.ready("a").await?;
    let in_redis = cluster.in_redis("a")?;
    let lease = in_redis.malloc().keep_alive().await?.context("free")?;

    for (spec, words) in [(COLLISION, "spec.resources[0].name"), (EXEC, "exec")] {
        cluster.apply(&pool("a", spec)).await?;
        let refused = cluster.pool_is("a", "Ready", "False", "InvalidSpec").await?;
        let status = refused.status.context("no status")?;
        let message = status.conditions.iter().find(|it| it.type_ == "Ready").map(|it| it.message.clone());
        ensure!(message.as_ref().is_some_and(|text| text.contains(words)), "{message:?}");
        cluster.pool_is("a", "Synced", "False", "InvalidSpec").await?;
        let event = cluster.event("a", "InvalidSpec").await?;
        assert_eq!(
            (event.type_.as_deref(), event.reporting_controller.as_deref()),
            (Some("Warning"), Some("redis-allocator"))
        );
        // Others go on meanwhile, and by that the edit has had its time to do harm.
        cluster.apply(&pool("b", "{resources: [{name: r1}, {name: r2}]}")).await?;
        cluster.redis_has("b", 2).await?;
        cluster.apply(&pool("b", "{resources: [{name: r1}]}")).await?;
        cluster.redis_has("b", 1).await?;
        let keys: BTreeSet<_> = in_redis.keys().await?.into_iter().map(|key| key.to_string()).collect();
        assert_eq!(keys, BTreeSet::from(["r1".to_owned(), "r2".to_owned()]), "as the last good declaration said");
        lease.renew().await?;

        cluster.apply(&pool("a", "{resources: [{name: r1}, {name: r2}]}")).await?;
        cluster.ready("a").await?;
    }

    // A pool that never was valid is not in Redis, and goes without ado.
    cluster.apply(&pool("c", COLLISION)).await?;
    cluster.pool_is("c", "Ready", "False", "InvalidSpec").await?;
    assert!(in_redis.client().pool("c")?.info().await.is_err());
    cluster.delete("rpool", "c").await?;
    cluster.pool_is_gone("c").await?;
    // One that became invalid is taken down as usual.
    lease.free().await?;
    cluster.apply(&pool("a", EXEC)).await?;
    cluster.pool_is("a", "Ready", "False", "InvalidSpec").await?;
    cluster.delete("rpool", "a").await?;
    cluster.pool_is_gone("a").await?;
    cluster.nothing_was_refused()
}
