//! The agent and Redis: away, back, back without its data; and what it writes when there is nothing to do.

mod agent;
mod program;

use std::{fs, time::Duration};

use agent::{SOON, Site, pool, pool_of};
use anyhow::{Result, ensure};
use e2e::{Flavor, Server, eventually};
use futures::StreamExt as _;
use redis_allocator::{Client, Place};

/// How long it may take until Redis is noticed to be back: the pauses between attempts grow to half a minute. Less than
/// the minute after which each pool is looked at again anyway.
const BACK: Duration = Duration::from_secs(50);

/// Time to live of a lease that is lost with its pool. The hold takes as long and a little more: long enough to be seen.
const LEASE: Duration = Duration::from_secs(12);

#[tokio::test]
async fn redis_may_be_away_at_the_start_and_later() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let url = server.url();
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 2))?;
    server.kill();
    let mut agent = site.agent(&["--redis-url", &url])?;
    agent.not_ready_because("Redis server is unavailable").await?;
    assert_eq!(agent.page("/healthz")?.0, 200, "an agent that waits is alive");
    assert_eq!(agent.metric("redis_allocator_redis_up")?, 0);

    server.restart().await?;
    agent
        .eventually(BACK, |agent| {
            ensure!(agent.page("/readyz")?.0 == 200);
            Ok(())
        })
        .await?;
    let client = Client::connect(&url).await?;
    let a = client.pool("a")?;
    assert_eq!(a.len().await?, 2);

    // It is asleep, comes back as it was, and gets what was edited meanwhile.
    server.pause()?;
    agent.not_ready_because("Redis").await?;
    site.write("a.yaml", &pool_of("a", 3))?;
    server.resume()?;
    eventually(BACK, async || {
        ensure!(a.len().await? == 3);
        Ok(())
    })
    .await?;
    let complaints = agent.log().matches("Redis does not answer").count();
    assert_eq!(complaints, 1, "one line for an outage:\n{}", agent.log());
    Ok(())
}

#[tokio::test]
async fn a_redis_that_came_back_empty_is_refilled_and_held_back() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let resources = "resources: [{name: r0}, {name: r1}], gc: {interval: 200ms}";
    site.write("used.yaml", &pool("used", &format!("{{{resources}}}")))?;
    site.write("unused.yaml", &pool("unused", &format!("{{{resources}}}")))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let (used, unused) = (client.pool("used")?, client.pool("unused")?);
    let lease = used.malloc().ttl(LEASE).keep_alive().await?.expect("free");
    let memory = site.state().join("pools.json");
    agent
        .eventually(SOON, |_| {
            let remembered: serde_json::Value = serde_json::from_str(&fs::read_to_string(&memory)?)?;
            ensure!(
                remembered["pools"]["default/used"]["longest"]["For"]["secs"] == LEASE.as_secs(),
                "not yet: {remembered}"
            );
            Ok(())
        })
        .await?;

    server.flushall().await?;
    tokio::time::timeout(SOON, lease.lost()).await?;
    agent.has_condition("used", "Degraded", "True", "RecoveredAfterDataLoss").await?;
    eventually(SOON, async || {
        ensure!(used.len().await? == 2 && unused.len().await? == 2);
        Ok(())
    })
    .await?;
    let state = used.get("r0").await?.expect("declared");
    assert!(matches!(state.place, Place::Quarantined { until: Some(_) }), "{state:?}");
    assert!(used.malloc().await?.is_none(), "a holder may still use it");

    eventually(LEASE + SOON, async || {
        ensure!(used.info().await?.counts.free == 2);
        Ok(())
    })
    .await?;
    agent.has_condition("used", "Degraded", "False", "NothingWrong").await?;
    assert!(used.check().await?.is_empty() && unused.check().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn reconciling_an_unchanged_declaration_writes_nothing() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let spec = "{resources: [{name: x, params: {a: 1}}], ranges: [{name: r, template: 'r{:04}', from: 1, to: 1000}]}";
    site.write("a.yaml", &pool("a", spec))?;
    site.write(
        "b.yaml",
        "apiVersion: redis-allocator.dev/v1alpha1\nkind: SoftBinding\nmetadata: {name: b}\nspec: {poolRef: {name: a}, \
         resourceName: x, policy: Required, ttl: 1h}\n",
    )?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    agent.has_condition("b", "Ready", "True", "Bound").await?;
    assert!(agent.terminate().await?.success());
    assert_eq!(client.pool("a")?.len().await?, 1001);

    // Redis tells of every key that is written. The agents' own pool, by which they choose a leader, is another one.
    server.config_set("notify-keyspace-events", "KA").await?;
    let mut events = redis::Client::open(server.url())?.get_async_pubsub().await?;
    events.psubscribe("__keyspace@*__:ra:{default*").await?;
    events.psubscribe("__keyspace@*__:ra:namespaces").await?;
    let mut events = events.into_on_message();
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    agent.has_condition("b", "Ready", "True", "Bound").await?;
    assert!(agent.terminate().await?.success());
    let written = tokio::time::timeout(Duration::from_millis(500), events.next()).await;
    assert!(written.is_err(), "{:?}", written.map(|event| event.map(|event| event.get_channel_name().to_owned())));

    // The listener does hear of writes.
    client.pool("a")?.malloc().await?.expect("free");
    assert!(tokio::time::timeout(SOON, events.next()).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_range_of_100_000_is_there_soon_and_stays_cheap() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool("a", "{ranges: [{name: r, template: 'host-{}', from: 1, to: 100000}]}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    let a = client.pool("a")?;
    // An unoptimised build on a busy machine; the figure itself is measured by the benchmarks.
    agent
        .eventually(Duration::from_mins(5), |agent| {
            ensure!(agent.page("/readyz")?.0 == 200);
            Ok(())
        })
        .await?;
    assert_eq!(a.len().await?, 100_000);
    assert!(a.malloc().await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_wrong_type_in_one_pool_is_said_and_hinders_no_other() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    server.cmd::<()>(&["SET", "ra:{default/broken}:items", "not a hash"]).await?;
    site.write("broken.yaml", &pool_of("broken", 2))?;
    site.write("fine.yaml", &pool_of("fine", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.has_condition("broken", "Ready", "False", "RedisRefused").await?;
    assert_eq!(client.pool("fine")?.len().await?, 2);
    server.cmd::<()>(&["DEL", "ra:{default/broken}:items"]).await?;
    agent.has_condition("broken", "Ready", "True", "Ready").await?;
    assert_eq!(client.pool("broken")?.len().await?, 2);
    Ok(())
}
