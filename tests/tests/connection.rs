//! How the library reaches Redis when things go wrong on the way: restarts, forgotten scripts, lost replies, silence,
//! slots that move and masters that change. What the operations themselves do is in `pool`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor, Proxy, Server,
    cluster::{Cluster, Node},
    eventually,
    proxy::{Exchange, Fate},
    sentinel::Sentinels,
};
use futures::future::try_join_all;
use redis_allocator::{Client, Error, Ownership, Place, Pool, PoolSettings, ResourceKey};

/// Of a call of these tests' clients: long enough for a busy machine, short enough to wait for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// For what takes longer only where the machine has no time.
const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 40;

async fn connect(url: impl Into<String>) -> Result<Client, Error> {
    Client::builder(url).timeout(TIMEOUT).connect_timeout(TIMEOUT).connect().await
}

/// A pool of [`SIZE`] resources.
async fn pool_of(client: &Client, name: &str) -> Result<Pool> {
    let pool = client.pool(name)?;
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    let keys = (0..SIZE).map(|i| ResourceKey::new(format!("r{i}"))).collect::<Result<Vec<_>, _>>()?;
    pool.extend(keys).await?;
    Ok(pool)
}

async fn malloc_and_free(pool: &Pool) -> Result<()> {
    pool.malloc().await?.context("nothing is free")?.free().await?;
    Ok(())
}

/// Grants since the pool was created, whoever heard of them.
async fn granted(pool: &Pool) -> Result<u64> {
    Ok(pool.info().await?.counters.granted)
}

fn a_script_that_ran(exchange: &Exchange<'_>) -> bool {
    exchange.is("EVALSHA") && !exchange.is_error()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_is_found_again() -> Result<()> {
    let ways = Flavor::ALL.into_iter().flat_map(|flavor| [(flavor, false), (flavor, true)]);
    try_join_all(ways.map(|(flavor, by_socket)| was_away(flavor, by_socket))).await.map(drop)
}

async fn was_away(flavor: Flavor, by_socket: bool) -> Result<()> {
    let server = Server::builder(flavor).unix_socket().start().await?;
    let url = if by_socket { server.unix_url().context("the server has no socket")? } else { server.url() };
    let patient = Client::builder(&url).timeout(PATIENCE).connect().await?.pool("gpus")?;
    let pool = pool_of(&connect(url).await?, "gpus").await?;
    server.save().await?;

    // Away and back between two calls: the next one notices nothing, although grants are never repeated.
    server.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.restart().await?;
    malloc_and_free(&pool).await?;

    // Away during a call, for longer than its timeout.
    server.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asked = Instant::now();
    let error = pool.malloc().await.err().context("a dead server granted a lease")?;
    ensure!(matches!(error, Error::Unavailable { .. }), "{error}");
    ensure!((TIMEOUT / 2..TIMEOUT * 4).contains(&asked.elapsed()), "gave up after {:?}", asked.elapsed());

    // Away during a call, and back before its timeout, however long the start takes here.
    let (called, restarted) = tokio::join!(malloc_and_free(&patient), async {
        tokio::time::sleep(TIMEOUT / 4).await;
        server.restart().await
    });
    restarted?;
    called?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_scripts_are_loaded_again_by_many_callers_at_once() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let pool = pool_of(&connect(server.url()).await?, "gpus").await?;
    server.cmd::<()>(&["SCRIPT", "FLUSH"]).await?;
    let leases = try_join_all((0..SIZE).map(async |_| pool.malloc().await)).await?;
    ensure!(leases.iter().all(Option::is_some), "some callers got nothing");
    ensure!(granted(&pool).await? == SIZE);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_reply_is_lost_is_repeated_only_if_it_may_be() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let proxy = Proxy::start(server.port()).await?;
    let pool = pool_of(&connect(proxy.url()).await?, "gpus").await?;
    malloc_and_free(&pool).await?;
    for fate in [Fate::Close, Fate::Silence] {
        let before = granted(&pool).await?;
        proxy.drop_replies_where(1, fate, a_script_that_ran);
        let error = pool.malloc().await.err().context("a lost reply was heard")?;
        ensure!(matches!(error, Error::OutcomeUnknown { .. }), "{fate:?}: {error}");
        ensure!(granted(&pool).await? == before + 1, "{fate:?}: granted {} times", granted(&pool).await? - before);

        // Freeing names the grant, so it is repeated.
        let lease = pool.malloc().await?.context("nothing is free")?;
        let key = lease.key().clone();
        proxy.drop_replies_where(1, fate, a_script_that_ran);
        lease.free().await?;
        let place = pool.get(key.as_str()).await?.context("the resource is gone")?.place;
        ensure!(matches!(place, Place::Free { .. }), "{fate:?}: not freed, but {place:?}");

        // So is a question.
        proxy.drop_replies_where(1, fate, a_script_that_ran);
        ensure!(pool.len().await? == SIZE);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_given_up_and_a_late_grant_given_back() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let proxy = Proxy::start(server.port()).await?;
    let pool = pool_of(&connect(proxy.url()).await?, "gpus").await?;
    malloc_and_free(&pool).await?;

    // Nothing passes in either direction; what was sent arrives later.
    proxy.hold();
    let asked = Instant::now();
    let caller = tokio::time::timeout(TIMEOUT / 2, async { pool.malloc().await });
    ensure!(caller.await.is_err(), "a black hole answered");
    let error = pool.len().await.err().context("a black hole answered")?;
    ensure!(matches!(error, Error::Timeout { .. } | Error::Unavailable { .. }), "{error}");
    ensure!(asked.elapsed() < TIMEOUT * 6, "gave up after {:?}", asked.elapsed());
    proxy.pass();
    malloc_and_free(&pool).await?;

    // The grant that nobody waits for any more.
    eventually(PATIENCE, async || {
        let counts = pool.info().await?.counts;
        ensure!(counts.leased == 0 && counts.free == SIZE, "{counts:?}");
        Ok(())
    })
    .await?;
    ensure!(granted(&pool).await? == 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_told_at_once_and_without_the_password() -> Result<()> {
    let server = Server::builder(Flavor::Redis).start().await?;
    server.config_set("requirepass", "sesame").await?;
    let address = server.address();
    let connect = |url: String| Client::builder(url).timeout(PATIENCE).connect_timeout(PATIENCE).connect();
    connect(format!("redis://:sesame@{address}/3")).await?;
    for url in [format!("redis://{address}"), format!("redis://:wrong-secret@{address}")] {
        let asked = Instant::now();
        let error = connect(url).await.err().context("logged in")?;
        ensure!(matches!(error, Error::Server { .. }), "{error}");
        ensure!(!error.to_string().contains("secret"), "{error}");
        ensure!(asked.elapsed() < PATIENCE / 2, "told after {:?}", asked.elapsed());
    }
    let error = connect(format!("redis://:sesame@{address}/99")).await.err().context("there is no such database")?;
    ensure!(matches!(error, Error::Server { .. }), "{error}");
    Ok(())
}

/// A node that does not own the slot of the pool.
fn other_than<'a>(cluster: &'a Cluster, owner: &Node) -> Result<&'a Node> {
    cluster.nodes().iter().find(|node| node.client_port() != owner.client_port()).context("there is but one node")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_followed_through_a_cluster() -> Result<()> {
    try_join_all(Flavor::ALL.map(followed_through_a_cluster)).await.map(drop)
}

async fn followed_through_a_cluster(flavor: Flavor) -> Result<()> {
    let cluster = Cluster::start(flavor).await?;
    // One that never answers comes first; and a plain URL of any node leads to all of them.
    let listed = connect(format!("redis+cluster://127.0.0.1:1,{}", cluster.addresses().join(","))).await?;
    let plain = connect(format!("redis://{}", cluster.addresses()[1])).await?;
    let pool = pool_of(&listed, "gpus").await?;
    for i in 0..12 {
        malloc_and_free(&pool_of(&plain, &format!("pool-{i}")).await?).await?;
    }

    let slot = cluster.slot_of("{default/gpus}").await?;
    let target = other_than(&cluster, cluster.owner_of(slot).await?)?;
    let migration = cluster.migrate(slot, target).await?;

    // With one part here and one there, nothing can be done, and nothing is.
    ensure!(migration.move_keys(1).await? == 1);
    let error = pool.malloc().await.err().context("half a pool granted a lease")?;
    ensure!(matches!(error, Error::Unavailable { .. }), "{error}");

    // A call waits for the end of the move, and finds the pool where it went.
    let (called, finished) = tokio::join!(malloc_and_free(&pool), migration.finish());
    finished?;
    called?;
    malloc_and_free(&plain.pool("gpus")?).await?;
    ensure!(granted(&pool).await? == 2);
    ensure!(pool.check().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_repeats_no_grant_either() -> Result<()> {
    let cluster = Cluster::start_with_proxies(Flavor::Redis).await?;
    let pool = pool_of(&connect(format!("redis+cluster://{}", cluster.addresses().join(","))).await?, "gpus").await?;
    malloc_and_free(&pool).await?;
    let owner = cluster.owner_of(cluster.slot_of("{default/gpus}").await?).await?;
    let proxy = owner.proxy().context("the node has no proxy")?;
    for fate in [Fate::Close, Fate::Silence] {
        let before = granted(&pool).await?;
        proxy.drop_replies_where(1, fate, a_script_that_ran);
        let error = pool.malloc().await.err().context("a lost reply was heard")?;
        ensure!(matches!(error, Error::OutcomeUnknown { .. }), "{fate:?}: {error}");
        ensure!(granted(&pool).await? == before + 1, "{fate:?}");
        malloc_and_free(&pool).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_master_is_followed_through_sentinel() -> Result<()> {
    let master = Server::start(Flavor::Redis).await?;
    let replica = Server::builder(Flavor::Redis).replica_of(master.port()).start().await?;
    let sentinels = Sentinels::start(Flavor::Redis, "main", &master, 1, 3).await?;
    // One that never answers comes first.
    let url = format!("redis+sentinel://127.0.0.1:1,{}/main", sentinels.addresses().join(","));
    let error = connect(url.replace("/main", "/other")).await.err().context("there is no such master")?;
    ensure!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("other"), "{error}");
    let pool = pool_of(&connect(url).await?, "gpus").await?;
    let heard_by_the_replica = async || -> Result<u64> { granted(&connect(replica.url()).await?.pool("gpus")?).await };
    eventually(PATIENCE, async || heard_by_the_replica().await).await?;

    // Planned: the former master lives on and would take grants for seconds, which would all be lost.
    ensure!(sentinels.failover().await? == replica.port());
    // Sooner than Sentinel makes the former master a replica, which would turn grants away.
    eventually(Duration::from_secs(7), async || {
        malloc_and_free(&pool).await?;
        ensure!(heard_by_the_replica().await? > 0, "grants still go to the former master");
        Ok(())
    })
    .await?;

    // Unplanned: back to the first one, once that has become a replica.
    eventually(2 * PATIENCE, async || {
        let link = master.info("replication", "master_link_status").await?;
        ensure!(link == "up", "its link is {link}");
        Ok(())
    })
    .await?;
    replica.kill();
    ensure!(sentinels.wait_for_failover_from(replica.port()).await? == master.port());
    eventually(PATIENCE, async || malloc_and_free(&pool).await).await
}
