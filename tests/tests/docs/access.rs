//! The users of Redis that operations.md proposes: each can do its work, and a worker nothing beside.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::IntoFuture as _,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{
    BindOptions, Cause, Client, Error, Item, Known, Origin, Ownership, Pool, PoolSettings, Removal, SyncOptions,
};

use super::page;

const LIMIT: Duration = Duration::from_mins(5);

/// A server that has the users of the page, and nobody else: the default user is off for keys.
async fn server(flavor: Flavor) -> Result<Server> {
    let server = Server::start(flavor).await?;
    let page = page("docs/operations.md")?;
    let users = page.blocks.iter().filter(|block| block.language == "acl").flat_map(|block| block.text.lines());
    let mut made = 0;
    for user in users {
        let words: Vec<&str> = user.split_whitespace().collect();
        let (kind, rules) = words.split_first().context("an empty line among the users")?;
        ensure!(*kind == "user", "{user:?} is no user");
        server.cmd::<()>(&[&["ACL", "SETUSER"], rules].concat()).await?;
        made += 1;
    }
    ensure!(made == 3, "the page has {made} users");
    Ok(server)
}

async fn login(server: &Server, name: &str, password: &str) -> Result<Client> {
    Ok(Client::connect(&format!("redis://{name}:{password}@{}", server.address())).await?)
}

/// All that an agent does.
async fn operate(client: &Client) -> Result<Pool> {
    let pool = client.pool("default/gpus")?;
    let settings = PoolSettings { cooldown: Duration::from_millis(1), ..PoolSettings::default() };
    let configured = pool.configure(&settings, &Ownership { manager: Some("files:/pools"), known: None }).await?;
    let known = Known { incarnation: configured.incarnation, longest: configured.longest };
    pool.configure(&settings, &Ownership { manager: Some("files:/pools"), known: Some(&known) }).await?;
    let items = ["gpu-0", "gpu-1", "gpu-2"].map(|key| key.parse().map(Item::new));
    let items = items.into_iter().collect::<Result<Vec<_>, _>>()?;
    pool.sync(&Origin::Spec, items.clone(), &SyncOptions::default()).await?;
    pool.sync(&Origin::Spec, items[..2].to_vec(), &SyncOptions::default()).await?;
    pool.bind("trainer-1", "gpu-0", &BindOptions { declared: true, ..BindOptions::default() }).await?;
    pool.unbind("trainer-1").await?;
    pool.quarantine("gpu-0", None, "down", Cause::Probe).await?;
    pool.unquarantine("gpu-0", None).await?;
    pool.end_recovery().await?;
    pool.gc(200).await?;
    pool.info().await?;
    ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
    pool.repair().await?;
    pool.bindings().await?;
    ensure!(client.namespaces().await? == ["default"], "the namespace is not listed");
    ensure!(client.pools("default").await?.len() == 1, "the pool is not listed");
    // The lead is a lease.
    work(&pool).await?;
    Ok(pool)
}

/// All that a workload does.
async fn work(pool: &Pool) -> Result<()> {
    let lease = pool.malloc().ttl(Duration::from_secs(30)).bind("worker").await?.context("nothing is free")?;
    lease.renew().await?;
    pool.quarantine(lease.key(), Some(Duration::from_millis(1)), "hot", Cause::Manual).await?;
    pool.snapshot().await?;
    pool.binding("worker").await?;
    lease.free().await?;
    let lease = pool.malloc().permanent().keep_alive().await?.context("nothing is free")?;
    pool.force_free(lease.key()).await?;
    ensure!(lease.renew().await.is_err(), "an ended lease was renewed");
    Ok(())
}

#[tokio::test]
async fn the_users_can_do_their_work_and_a_worker_nothing_beside() -> Result<()> {
    for flavor in Flavor::ALL {
        tokio::time::timeout(LIMIT, try_users(flavor)).await.with_context(|| format!("on {flavor}"))??;
    }
    Ok(())
}

async fn try_users(flavor: Flavor) -> Result<()> {
    let server = server(flavor).await?;
    let agent = login(&server, "agent", "agent-secret").await?;
    let operated = operate(&agent).await.context("as the agent")?;

    let worker = login(&server, "gpu-worker", "worker-secret").await?;
    work(&worker.pool("default/gpus")?).await.context("as the worker")?;
    let denials = silent_denials(&server).await?;
    ensure!(denials.is_empty(), "denied so far: {denials:?}");
    let others = agent.pool("default/licences")?;
    others.configure(&PoolSettings::default(), &Ownership::default()).await?;
    denied("leasing from another pool", worker.pool("default/licences")?.malloc().await)?;
    denied("reading beyond the pool", worker.namespaces().await)?;

    // What was refused aloud is in the log, too.
    server.cmd::<()>(&["ACL", "LOG", "RESET"]).await?;
    let gpus = worker.pool("default/gpus")?;
    hand_over(&gpus, &login(&server, "gpu-worker", "worker-secret").await?.pool("default/gpus")?, &server, 1)
        .await
        .context("from worker to worker")?;
    let denials = silent_denials(&server).await?;
    ensure!(denials.is_empty(), "denied while waiting: {denials:?}");
    // Who may use no channel is heard of all the same, and hears by looking.
    server.cmd::<()>(&["ACL", "SETUSER", "gpu-worker", "resetchannels", "-publish", "-subscribe"]).await?;
    let mute = login(&server, "gpu-worker", "worker-secret").await?.pool("default/gpus")?;
    hand_over(&mute, &login(&server, "gpu-worker", "worker-secret").await?.pool("default/gpus")?, &server, 0)
        .await
        .context("without channels")?;
    ensure!(
        silent_denials(&server).await?.contains("publish"),
        "then this test would not see what is denied in silence"
    );

    try_team(&agent, &login(&server, "team-a", "team-secret").await?).await.context("as the team")?;
    ensure!(operated.retire(Removal::Revoke).await?.deleted, "the agent can't delete a pool");
    Ok(())
}

/// What no caller hears of: that it may not wake others, or be woken. (What a client tells of itself when it connects
/// matters to nobody.)
async fn silent_denials(server: &Server) -> Result<BTreeSet<String>> {
    let log: Vec<BTreeMap<String, redis::Value>> = server.cmd(&["ACL", "LOG"]).await?;
    let denied = log.iter().filter_map(|entry| redis::from_redis_value(entry.get("object")?.clone()).ok());
    Ok(denied.filter(|object: &String| !object.starts_with("client|")).collect())
}

/// One holds everything, the other waits, over so many subscriptions, and gets what the first one frees.
async fn hand_over(holder: &Pool, waiter: &Pool, server: &Server, subscriptions: usize) -> Result<()> {
    let mut leases = Vec::new();
    while let Some(lease) = holder.malloc().await? {
        leases.push(lease);
    }
    let waiting = tokio::spawn(waiter.malloc().wait(LIMIT).into_future());
    eventually(LIMIT, async || {
        ensure!(holder.info().await?.counts.waiting == 1, "nobody waits");
        let channels: Vec<String> = server.cmd(&["PUBSUB", "CHANNELS", "ra:wake:*"]).await?;
        ensure!(channels.len() == subscriptions, "{channels:?}");
        Ok(())
    })
    .await?;
    let lease = leases.pop().context("nothing was free")?;
    let key = lease.key().clone();
    lease.free().await?;
    let handed = waiting.await??;
    ensure!(*handed.key() == key, "{} was freed, and {} handed over", key, handed.key());
    handed.free().await?;
    for lease in leases {
        lease.free().await?;
    }
    Ok(())
}

/// The user of one namespace: all of its pools, and nothing else.
async fn try_team(agent: &Client, team: &Client) -> Result<()> {
    for name in ["team-a/gpus", "team-a/licences", "team-ab/gpus"] {
        let pool = agent.pool(name)?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        pool.extend([Item::new("a".parse()?), Item::new("b".parse()?)]).await?;
    }
    for name in ["team-a/gpus", "team-a/licences"] {
        work(&team.pool(name)?).await.with_context(|| name.to_owned())?;
    }
    ensure!(team.pools("team-a").await?.len() == 2, "the namespace's pools are not listed");

    for name in ["team-ab/gpus", "default/gpus"] {
        let other = team.pool(name)?;
        denied("leasing from another namespace", other.malloc().await)?;
        denied("reading another namespace's pool", other.info().await)?;
        denied("freeing another namespace's lease", other.force_free("a").await)?;
    }
    denied("listing another namespace", team.pools("default").await)?;
    denied("listing the namespaces", team.namespaces().await)?;
    // The list of what exists is the agent's: neither a new pool nor one less.
    let own = team.pool("team-a/gpus")?;
    denied("deleting a pool", own.retire(Removal::Revoke).await)?;
    let new = team.pool("team-a/new")?;
    denied("making a pool", new.configure(&PoolSettings::default(), &Ownership::default()).await)?;
    ensure!(agent.pools("team-a").await?.len() == 2, "the list of pools is not what it was");
    Ok(())
}

/// That Redis refused it, and nothing else did.
fn denied<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) -> Result<()> {
    // What a client hears of a key or a command; what a script hears of a command, on Redis 7.0 and on later ones.
    let refusals = ["NOPERM", "can't run this command", "ACL failure"];
    match outcome {
        Err(Error::Server { message, .. }) if refusals.iter().any(|refusal| message.contains(refusal)) => Ok(()),
        other => bail!("{what}: {other:?}"),
    }
}
