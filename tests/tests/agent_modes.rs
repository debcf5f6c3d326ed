//! What a manifest says of a pool's mode and indexes is what callers get, and a mode stays what it is.

mod agent;
mod program;

use agent::{Site, pool};
use anyhow::{Context as _, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::Client;

#[tokio::test]
async fn a_shared_pool_has_as_many_holders_as_its_manifest_says() -> Result<()> {
    program::binary("redis-allocator")?;
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let spec = |more: &str| format!("{{mode: Shared, {more} resources: [{{name: db}}], lease: {{defaultTTL: 1m}}}}");
    site.write("a.yaml", &pool("a", &spec("maxHolders: 2,")))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    let first = a.malloc().await?.context("the first holder")?;
    let _second = a.malloc().await?.context("the second holder")?;
    assert!(a.malloc().await?.is_none(), "no third one");

    site.write("a.yaml", &pool("a", &spec("maxHolders: 3,")))?;
    let _third = eventually(agent::SOON, async || a.malloc().await?.context("there is no third holder yet")).await?;
    first.free().await?;

    // Whose leases would end if it became another one?
    site.write("a.yaml", &pool("a", "{resources: [{name: db}]}"))?;
    agent.logged("spec.mode: found \\\"Exclusive\\\", allowed is what the pool was created with").await?;
    let settings = a.info().await?.settings;
    ensure!(settings.mode.to_string() == "Shared", "{settings:?}");
    agent.has_condition("a", "Ready", "True", "Ready").await?;

    // One that was not there when the mode was chosen learns of it from Redis.
    assert!(agent.terminate().await?.success());
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.has_condition("a", "Ready", "False", "ModeConflict").await
}

#[tokio::test]
async fn indexes_are_those_of_the_manifest_and_follow_it() -> Result<()> {
    program::binary("redis-allocator")?;
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let resources = "resources: [{name: x, labels: {zone: a, model: m}}]";
    site.write("a.yaml", &pool("a", &format!("{{{resources}, indexes: [[zone], [model, zone]]}}")))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    assert_eq!(a.info().await?.settings.indexes, [vec!["zone"], vec!["model", "zone"]]);
    site.write("a.yaml", &pool("a", &format!("{{{resources}}}")))?;
    eventually(agent::SOON, async || {
        let indexes = a.info().await?.settings.indexes;
        ensure!(indexes.is_empty(), "{indexes:?}");
        Ok(())
    })
    .await
}
