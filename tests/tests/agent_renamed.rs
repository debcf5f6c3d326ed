//! Declarations that say the same in another way: a source of another name, a list that a source brings from now on, a
//! resource that moves. Nobody loses what stays declared, although what leaves is revoked at once.

mod agent;
mod program;

use std::{fs, path::PathBuf, time::Duration};

use agent::{Agent, SOON, Site, pool};
use anyhow::{Context as _, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Client, Lease, Pool};

struct World {
    _server: Server,
    site: Site,
    agent: Agent,
    pool: Pool,
}

impl World {
    async fn new(spec: &str, lists: &[(&str, &str)]) -> Result<Self> {
        program::binary("redis-allocator")?;
        let server = Server::start(Flavor::Redis).await?;
        let site = Site::new()?;
        for (list, text) in lists {
            fs::write(path(&site, list), text)?;
        }
        site.write("a.yaml", &pool("a", &filled(&site, spec)))?;
        let mut agent = site.agent(&["--redis-url", &server.url()])?;
        agent.ready().await?;
        let pool = Client::connect(&server.url()).await?.pool("a")?;
        Ok(Self { _server: server, site, agent, pool })
    }

    /// Each `FILE(x)` of a source is the list `x`.
    fn declare(&self, spec: &str) -> Result<()> {
        self.site.write("a.yaml", &pool("a", &filled(&self.site, spec)))
    }

    async fn has(&self, keys: &[(&str, &str)]) -> Result<()> {
        eventually(SOON, async || {
            let found = self.pool.snapshot().await?;
            let mut found: Vec<_> = found.iter().map(|it| (it.key.as_str(), it.origins.clone())).collect();
            found.sort();
            let found: Vec<_> = found
                .into_iter()
                .map(|(key, origins)| (key, origins.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
                .collect();
            let found: Vec<_> = found.iter().map(|(key, origins)| (*key, origins.as_str())).collect();
            ensure!(found == keys, "{found:?}");
            Ok(())
        })
        .await
        .with_context(|| self.agent.log())
    }

    async fn lease(&self) -> Result<Lease> {
        let lease = self.pool.malloc().ttl(Duration::from_hours(1)).await?.context("all are free")?;
        ensure!(lease.key().as_str() == "h1");
        Ok(lease)
    }
}

fn path(site: &Site, list: &str) -> PathBuf {
    site.state().with_file_name(list)
}

fn filled(site: &Site, spec: &str) -> String {
    let path = path(site, "").display().to_string();
    let file = format!("interval: 1s, ttl: 0s, file: {{path: '{path}");
    let spec = spec.replace("FILE(", &file).replace(')', "'}");
    format!("{{order: Sequential, maxShrinkPercent: 100, removalPolicy: Revoke, {spec}}}")
}

const BOTH: &str = "h1\nh2\n";

#[tokio::test]
async fn what_an_old_source_brought_stays_until_the_new_one_has_brought_its_list() -> Result<()> {
    let mut world = World::new("sources: [{name: old, FILE(old)}]", &[("old", BOTH)]).await?;
    world.has(&[("h1", "source/old"), ("h2", "source/old")]).await?;
    let lease = world.lease().await?;

    world.declare("sources: [{name: new, FILE(new)}]")?;
    world.agent.has_condition("a", "Discovered", "False", "SourceFailing").await?;
    world.agent.has_condition("a", "Synced", "False", "SourcePending").await?;
    world.has(&[("h1", "source/old"), ("h2", "source/old")]).await?;
    lease.renew().await.context("it stays declared")?;

    fs::write(path(&world.site, "new"), "h1\nh3\n")?;
    world.has(&[("h1", "source/new"), ("h3", "source/new")]).await?;
    world.agent.has_condition("a", "Synced", "True", "Synced").await?;
    lease.renew().await.context("it stays declared")?;

    // One that fails from now on has brought its list once: what leaves does so.
    world.declare("resources: [{name: own}], sources: [{name: new, FILE(new)}]")?;
    world.has(&[("h1", "source/new"), ("h3", "source/new"), ("own", "spec")]).await?;
    fs::remove_file(path(&world.site, "new"))?;
    world.agent.has_condition("a", "Discovered", "False", "SourceFailing").await?;
    world.declare("sources: [{name: new, FILE(new)}]")?;
    world.has(&[("h1", "source/new"), ("h3", "source/new")]).await
}

#[tokio::test]
async fn what_was_listed_stays_until_a_source_lists_it() -> Result<()> {
    let mut world =
        World::new("resources: [{name: h1}], ranges: [{name: r, template: 'h{}', from: 2, to: 2}]", &[]).await?;
    world.has(&[("h1", "spec"), ("h2", "range/r")]).await?;
    let lease = world.lease().await?;
    world.declare("sources: [{name: new, FILE(new)}]")?;
    world.agent.has_condition("a", "Synced", "False", "SourcePending").await?;
    world.has(&[("h1", "spec"), ("h2", "range/r")]).await?;
    fs::write(path(&world.site, "new"), BOTH)?;
    world.has(&[("h1", "source/new"), ("h2", "source/new")]).await?;
    lease.renew().await.context("it stays declared")?;

    // An empty list is a list, and what was listed here is not waited for.
    fs::write(path(&world.site, "new"), "")?;
    world.declare("resources: [{name: h1}], sources: [{name: new, FILE(new)}]")?;
    world.has(&[("h1", "spec")]).await?;
    world.declare("sources: [{name: new, FILE(new)}]")?;
    world.has(&[]).await
}

#[tokio::test]
async fn what_moves_from_one_list_to_another_never_leaves() -> Result<()> {
    let world = World::new("resources: [{name: h1}, {name: h2}]", &[]).await?;
    world.has(&[("h1", "spec"), ("h2", "spec")]).await?;
    let lease = world.lease().await?;
    world.declare("resources: [{name: h2}], ranges: [{name: r, template: 'h{}', from: 1, to: 1}]")?;
    world.has(&[("h1", "range/r"), ("h2", "spec")]).await?;
    lease.renew().await.context("it stays declared")?;
    world.declare("resources: [{name: h1}, {name: h2}]")?;
    world.has(&[("h1", "spec"), ("h2", "spec")]).await?;
    lease.renew().await.context("it stays declared")
}
