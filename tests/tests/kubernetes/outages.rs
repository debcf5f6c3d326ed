//! The API server or Redis away for a while: nothing is lost, nothing is written by whoever may not lead any more, and
//! the status tells.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redis_allocator::Place;

use crate::{
    agent::{Agent, SOON, pool, pool_of},
    cluster::Cluster,
};

const OFTEN: &str = "{resources: [{name: r0}, {name: r1}], gc: {interval: 200ms}}";

async fn says(agent: &mut Agent, words: &str) -> Result<()> {
    agent
        .eventually(Duration::from_secs(40), |agent| {
            let (_, body) = agent.page("/readyz")?;
            ensure!(body.contains(words), "it says {body}");
            Ok(())
        })
        .await
}

/// Scripts that Redis ran in a second.
async fn scripts_in_a_second(cluster: &Cluster) -> Result<u64> {
    let before = cluster.redis.command_stats().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = cluster.redis.command_stats().await?.since(&before);
    Ok(calls.get("evalsha").copied().unwrap_or_default())
}

#[tokio::test]
async fn an_api_server_that_restarts_is_found_again() -> Result<()> {
    let Some(cluster) = Cluster::start("restarting the API server").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool("a", OFTEN)).await?;
    cluster.ready("a").await?;
    let lease = cluster.in_redis("a")?.malloc().keep_alive().await?.context("free")?;

    // A short absence.
    cluster.api.restart().await?;
    cluster.apply(&pool_of("a", 3)).await?;
    cluster.redis_has("a", 3).await?;
    says(&mut agent, "leading").await?;

    // One in which nobody can lead, and then the object is deleted before the agent looks.
    cluster.api.kill();
    agent
        .eventually(Duration::from_secs(40), |agent| {
            ensure!(agent.metric("redis_allocator_leader")? == 0, "it still leads");
            Ok(())
        })
        .await?;
    assert_eq!(agent.page("/healthz")?.0, 200, "an agent that waits is alive");
    lease.renew().await?;
    cluster.api.restart().await?;
    cluster.delete("rpool", "a").await?;
    cluster.apply(&pool_of("b", 2)).await?;
    cluster.ready("b").await?;
    lease.free().await?;
    // Whether it asked for more than it may is not judged here: an API server that starts refuses what it will allow.
    cluster.pool_is_gone("a").await
}

#[tokio::test]
async fn a_leader_whose_api_server_does_not_answer_writes_nothing() -> Result<()> {
    let Some(cluster) = Cluster::start("an API server that does not answer").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool("a", OFTEN)).await?;
    cluster.ready("a").await?;
    ensure!(scripts_in_a_second(&cluster).await? > 0, "a leader collects garbage");

    cluster.api.pause()?;
    agent
        .eventually(Duration::from_secs(12), |agent| {
            ensure!(agent.metric("redis_allocator_leader")? == 0, "it still leads");
            Ok(())
        })
        .await?;
    assert_eq!(scripts_in_a_second(&cluster).await?, 0, "{}", agent.log());
    cluster.api.resume()?;
    says(&mut agent, "ready, leading").await?;
    cluster.apply(&pool_of("a", 3)).await?;
    cluster.redis_has("a", 3).await?;
    cluster.ready("a").await?;
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn the_status_tells_that_redis_is_away_and_that_it_is_back() -> Result<()> {
    let Some(cluster) = Cluster::start("stopping Redis").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool("a", OFTEN)).await?;
    cluster.ready("a").await?;
    cluster.redis.save().await?;

    cluster.redis.kill();
    cluster.pool_is("a", "Ready", "False", "RedisUnavailable").await?;
    // What is applied meanwhile is not forgotten.
    cluster.apply(&(pool("a", &OFTEN.replace("r1", "r2")) + &pool_of("b", 2))).await?;
    cluster.pool_is("b", "Ready", "False", "RedisUnavailable").await?;
    cluster.redis.restart().await?;
    cluster.ready("a").await?;
    cluster.ready("b").await?;
    assert!(cluster.in_redis("a")?.contains("r2").await?);
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn an_agent_that_remembers_nothing_learns_from_the_status_what_redis_lost() -> Result<()> {
    let Some(cluster) = Cluster::start("losing Redis' data").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&(pool("used", OFTEN) + &pool("unused", OFTEN))).await?;
    cluster.ready("unused").await?;
    let before = cluster.ready("used").await?.status.context("no status")?.incarnation;
    let used = cluster.in_redis("used")?;
    let lease = used.malloc().ttl(Duration::from_secs(15)).keep_alive().await?.context("free")?;
    cluster
        .counts("used", |status| status.longest_ttl.as_ref().map(ToString::to_string), Some("15s".to_owned()))
        .await?;
    assert!(agent.terminate().await?.success());

    cluster.redis.flushall().await?;
    // With another state directory, as a pod that was replaced has.
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.pool_is("used", "Degraded", "True", "RecoveredAfterDataLoss").await?;
    tokio::time::timeout(SOON, lease.lost()).await?;
    cluster.redis_has("used", 2).await?;
    let state = used.get("r0").await?.context("not declared")?;
    ensure!(matches!(state.place, Place::Quarantined { until: Some(_) }), "{state:?}");
    assert!(used.malloc().await?.is_none(), "a holder may still use it");
    cluster.event("used", "RecoveredAfterDataLoss").await?;

    // Nobody held any of the other pool.
    assert!(cluster.in_redis("unused")?.malloc().await?.is_some());

    let recovered = cluster.pool_is("used", "Degraded", "False", "NothingWrong").await?;
    let status = recovered.status.context("no status")?;
    ensure!(status.incarnation != before, "{status:?}");
    cluster.counts("used", |status| status.free, 2).await?;
    cluster.nothing_was_refused()
}
