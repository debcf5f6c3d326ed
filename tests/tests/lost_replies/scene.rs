//! A pool whose replies can be lost: on one server, or in a Cluster, behind proxies. It must not know what is asked.

use std::{
    ops::AsyncFn,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor, Proxy, Server,
    cluster::Cluster,
    eventually,
    proxy::{Exchange, Fate},
    within,
};
use redis_allocator::{Client, Ownership, Pool, PoolSettings, ResourceKey};
use tokio::sync::Semaphore;

/// How long a call of a client may take: short, as many calls here get no answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// For what must happen soon, on a machine that may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const SIZE: usize = 8;

/// Of one scenario: many times what it takes.
const LIMIT: Duration = Duration::from_mins(5);

/// Few at a time: with all these servers starting at once, a small machine would not answer within [`TIMEOUT`].
static TURNS: Semaphore = Semaphore::const_new(4);

/// Runs a scenario when it is its turn.
pub(crate) async fn in_turn(scenario: impl Future<Output = Result<()>>) -> Result<()> {
    let _turn = TURNS.acquire().await?;
    within(LIMIT, scenario).await
}

/// Servers behind proxies.
pub(crate) enum Deployment {
    Single(Server, Proxy),
    Cluster(Cluster),
}

/// A pool whose replies can be lost, and the same pool seen through a connection that loses nothing.
pub(crate) struct Scene<'a> {
    pub(crate) pool: Pool,
    pub(crate) sound: Pool,
    pub(crate) proxy: &'a Proxy,
    pub(crate) server: &'a Server,
}

impl Deployment {
    pub(crate) async fn single(flavor: Flavor) -> Result<Self> {
        let server = Server::start(flavor).await?;
        let proxy = Proxy::start(server.port()).await?;
        Ok(Self::Single(server, proxy))
    }

    async fn cluster() -> Result<Self> {
        Ok(Self::Cluster(Cluster::start_with_proxies(Flavor::Redis).await?))
    }

    pub(crate) async fn scene(&self, name: &str) -> Result<Scene<'_>> {
        let (url, sound, proxy, server) = match self {
            Self::Single(server, proxy) => (proxy.url(), server.url(), proxy, server),
            Self::Cluster(cluster) => {
                let slot = cluster.slot_of(&format!("ra:{{default/{name}}}:meta")).await?;
                let owner = cluster.owner_of(slot).await?;
                let url = format!("redis+cluster://{}", cluster.addresses().join(","));
                (url.clone(), url, owner.proxy().context("the Cluster has no proxies")?, owner.server())
            }
        };
        let sound = Client::builder(sound).timeout(SOON).connect_timeout(SOON).connect().await?.pool(name)?;
        let settings = PoolSettings { default_ttl: TTL, ..PoolSettings::default() };
        sound.configure(&settings, &Ownership::default()).await?;
        let keys = (0..SIZE).map(|i| ResourceKey::new(format!("r{i}"))).collect::<Result<Vec<_>, _>>()?;
        sound.extend(keys).await?;
        let pool = Client::builder(url).timeout(TIMEOUT).connect_timeout(TIMEOUT).connect().await?.pool(name)?;
        // The scripts are known, so that no reply but the one meant is lost.
        pool.malloc().await?.context("nothing is free")?.free().await?;
        Ok(Scene { pool, sound, proxy, server })
    }
}

/// A reply that tells of something done.
pub(crate) fn done(exchange: &Exchange<'_>) -> bool {
    exchange.is("EVALSHA") && !exchange.is_error()
}

impl Scene<'_> {
    /// Loses the replies to the next scripts that run.
    pub(crate) async fn lose(&self, count: u64, fate: Fate) -> Result<()> {
        self.ready().await?;
        self.proxy.drop_replies_where(count, fate, done);
        Ok(())
    }

    /// Ends an earlier fault, and waits for a connection that answers: one that fell silent between two replies is
    /// believed in until it is missed.
    pub(crate) async fn ready(&self) -> Result<()> {
        self.proxy.pass();
        eventually(SOON, async || Ok(self.pool.info().await?)).await.map(drop)
    }

    /// Loses the reply to the script that runs after `n` others.
    pub(crate) async fn lose_nth(&self, n: usize, fate: Fate) -> Result<()> {
        self.ready().await?;
        let seen = AtomicUsize::new(0);
        self.proxy
            .drop_replies_where(1, fate, move |exchange| done(exchange) && seen.fetch_add(1, Ordering::Relaxed) == n);
        Ok(())
    }

    pub(crate) async fn granted(&self) -> Result<u64> {
        Ok(self.sound.info().await?.counters.granted)
    }

    /// Whatever was granted was given back, long before its time was over.
    pub(crate) async fn nothing_expired(&self) -> Result<()> {
        let counters = self.sound.info().await?.counters;
        ensure!(counters.expired == 0, "{counters:?}");
        Ok(())
    }

    /// Waits until everything is free again, with the help of a collector; no longer than that.
    pub(crate) async fn all_come_back(&self, within: Duration) -> Result<()> {
        eventually(within, async || {
            self.sound.gc(200).await?;
            let counts = self.sound.info().await?.counts;
            ensure!(counts.free == counts.total, "{counts:?}");
            Ok(())
        })
        .await?;
        ensure!(self.sound.check().await?.is_empty(), "{:?}", self.sound.check().await?);
        Ok(())
    }
}

/// Runs a scenario on Redis, on Valkey and on a Cluster, side by side.
pub(crate) async fn on_all(scenario: impl AsyncFn(&Deployment) -> Result<()>) -> Result<()> {
    let all = async {
        tokio::try_join!(
            Box::pin(async { scenario(&Deployment::single(Flavor::Redis).await?).await }),
            Box::pin(async { scenario(&Deployment::single(Flavor::Valkey).await?).await }),
            Box::pin(async { scenario(&Deployment::cluster().await?).await }),
        )
        .map(drop)
    };
    in_turn(all).await
}

/// Runs a scenario everywhere, first with connections that close, then with connections that fall silent.
pub(crate) async fn everywhere(scenario: impl AsyncFn(&Scene<'_>, Fate) -> Result<()>) -> Result<()> {
    on_all(async |deployment| {
        for (name, fate) in [("close", Fate::Close), ("silence", Fate::Silence)] {
            let scene = deployment.scene(name).await?;
            let dropped = scene.proxy.dropped();
            scenario(&scene, fate).await.with_context(|| format!("{}, {fate:?}", scene.server))?;
            ensure!(scene.proxy.dropped() > dropped, "no reply was lost");
            scene.proxy.pass();
            scene.proxy.cut();
        }
        Ok(())
    })
    .await
}
