//! While Sentinels replace the master: once because it died, once because they were told to, when the former master lives
//! on for a moment. What was acknowledged and not replicated is lost then, and two may use a resource until the time of
//! the older one is over. How much that was is measured and printed; that it ends then, and that no fencing token ever
//! comes twice, is proven.

use std::{
    collections::HashSet,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, eventually, sentinel::Sentinels, witness};
use redis_allocator::{Client, Error, Item, Ownership, Pool, PoolSettings};
use tokio::task::JoinSet;

use crate::scene::{Circumstances, LIMIT, LONGEST_TTL, PATIENCE, Scene};

/// Of one call: a failover takes longer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much later than its holder's time a use may be told on a machine that is busy.
const TOLD_LATE: Duration = Duration::from_secs(5);
const GRANTS: u64 = 30;
/// Callers that do nothing but take and give back.
const CALLERS: usize = 8;

/// Callers of one process who take and give back as fast as they can: what they are told is compared with what is known
/// afterwards.
struct Churn {
    since: Instant,
    pool: Pool,
    heard: Arc<Mutex<Heard>>,
    tasks: JoinSet<Result<()>>,
}

#[derive(Default)]
struct Heard {
    tokens: Vec<u64>,
    /// Requests that were sent and never answered.
    unanswered: u64,
    /// When it was last told something.
    last: Option<Instant>,
    longest_silence: Duration,
}

impl Heard {
    fn grant(&mut self, token: u64) {
        self.tokens.push(token);
        let now = Instant::now();
        let silence = self.last.map_or(Duration::ZERO, |last| now - last);
        self.longest_silence = self.longest_silence.max(silence);
        self.last = Some(now);
    }
}

impl Churn {
    async fn start(url: &str) -> Result<Self> {
        let pool = Client::builder(url).timeout(TIMEOUT).connect_timeout(TIMEOUT).connect().await?.pool("churn")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        // Enough, although some are lost with their leases.
        let items = (0..500).map(|i| Ok(Item::new(format!("c{i}").parse()?))).collect::<Result<Vec<_>>>()?;
        pool.extend(items).await?;
        let heard = Arc::<Mutex<Heard>>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..CALLERS {
            tasks.spawn(churn(pool.clone(), Arc::clone(&heard)));
        }
        Ok(Self { since: Instant::now(), pool, heard, tasks })
    }

    fn heard<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until grants are heard of again.
    async fn goes_on(&self) -> Result<()> {
        let before = self.heard(|heard| heard.tokens.len());
        eventually(PATIENCE, async || {
            let now = self.heard(|heard| heard.tokens.len());
            ensure!(now > before + 2 * CALLERS, "{now} grants were heard of, {before} before");
            Ok(())
        })
        .await
    }

    /// Stops, and tells how many of the grants that were heard of are not known any more, at least and at most.
    async fn lost(mut self) -> Result<String> {
        let took = self.since.elapsed();
        while let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        self.tasks.shutdown().await;
        let known = eventually(PATIENCE, async || Ok(self.pool.info().await?.counters.granted)).await?;
        self.heard(|heard| {
            let different: HashSet<u64> = heard.tokens.iter().copied().collect();
            ensure!(different.len() == heard.tokens.len(), "a fencing token was given twice");
            // Who was interrupted just now had sent a request, too.
            let unanswered = heard.unanswered + CALLERS as u64;
            let least = (heard.tokens.len() as u64).saturating_sub(known);
            Ok(format!(
                "{least} to {} of {} grants within {took:?} were lost, none were made for {:?}",
                least + unanswered,
                heard.tokens.len(),
                heard.longest_silence
            ))
        })
    }
}

async fn churn(pool: Pool, heard: Arc<Mutex<Heard>>) -> Result<()> {
    let heard = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match pool.malloc().await {
            Ok(lease) => {
                let lease = lease.context("there are enough")?;
                heard().grant(lease.fencing_token());
                match lease.free().await {
                    // One that is lost, or held by the new master still.
                    Err(error) if error.is_transient() || matches!(error, Error::NotOwner { .. }) => {}
                    freed => freed?,
                }
            }
            Err(Error::OutcomeUnknown { .. }) => heard().unanswered += 1,
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error).context("malloc"),
        }
    }
}

/// The times at which uses may contradict each other.
struct Windows(Vec<RangeInclusive<u64>>);

impl Windows {
    fn add(&mut self, from: Duration, until: Duration) {
        let millis = |moment: Duration| u64::try_from(moment.as_millis()).unwrap_or(u64::MAX);
        self.0.push(millis(from)..=millis(until + LONGEST_TTL + TOLD_LATE));
    }

    fn contain(&self, at: u64) -> bool {
        self.0.iter().any(|window| window.contains(&at))
    }
}

async fn masters_change_under_workers_that_are_killed() -> Result<()> {
    let began = Instant::now();
    let master = Server::start(Flavor::Redis).await?;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(Server::builder(Flavor::Redis).replica_of(master.port()).start().await?);
    }
    let sentinels = Sentinels::start(Flavor::Redis, "main", &master, replicas.len(), 3).await?;
    let url = format!("redis+sentinel://{}/main", sentinels.addresses().join(","));
    let circumstances = Circumstances { shared: None, timeout: TIMEOUT, unavailable: true, forgetful: true };
    let mut scene = Scene::on(url.clone(), circumstances).await?;
    let resizing = scene.resize();
    scene.start_workers()?;
    scene.more_grants(GRANTS).await?;
    ensure!(scene.refusals().await?.is_empty() && scene.witness.noted("lost early").await? == 0, "lost beforehand");
    let mut windows = Windows(Vec::new());

    // The master dies, and a worker with it.
    let churn = Churn::start(&url).await?;
    churn.goes_on().await?;
    let from = witness::now();
    master.kill();
    windows.add(from, witness::now());
    scene.kill_one(false).await?;
    let port = eventually(LIMIT, async || sentinels.wait_for_failover_from(master.port()).await).await?;
    churn.goes_on().await?;
    scene.more_grants(GRANTS).await?;
    scene.kill_one(true).await?;
    println!("the master died: {}", churn.lost().await?);

    // The master is replaced: the former one takes grants until it hears of that.
    let former = replicas.iter().find(|replica| replica.port() == port).context("none of them is the master")?;
    let churn = Churn::start(&url).await?;
    churn.goes_on().await?;
    let from = witness::now();
    eventually(LIMIT, async || {
        // Sentinels that have no time give up what they were told to do.
        if sentinels.master_port().await? == port {
            sentinels.failover().await?;
        }
        Ok(())
    })
    .await?;
    eventually(PATIENCE, async || {
        let role = former.info("replication", "role").await?;
        ensure!(role == "slave", "the former master is {role} still");
        Ok(())
    })
    .await?;
    windows.add(from, witness::now());
    churn.goes_on().await?;
    scene.kill_one(false).await?;
    scene.more_grants(GRANTS).await?;
    scene.kill_one(true).await?;
    println!("the master was replaced: {}", churn.lost().await?);

    // What was lost is over.
    let end = windows.0.iter().map(|window| *window.end()).max().unwrap_or_default();
    eventually(LIMIT, async || {
        ensure!(witness::now() > Duration::from_millis(end));
        Ok(())
    })
    .await?;
    let lost_early = scene.witness.noted("lost early").await?;
    scene.more_grants(GRANTS).await?;
    ensure!(scene.witness.noted("lost early").await? == lost_early, "leases are still lost before their time");
    resizing.end().await?;
    scene.end_workers().await?;
    let info = scene.all_is_free().await?;
    scene.is_whole().await?;
    let (within, outside): (Vec<_>, Vec<_>) =
        scene.refusals().await?.into_iter().partition(|refusal| windows.contain(refusal.at()));
    println!(
        "{lost_early} leases were lost before their time; {} uses contradict others, all until these were over; {:?}; \
         pool: {:?}, {:?}; {:.1} s",
        within.len(),
        scene.witness.counts().await?,
        info.counts,
        info.counters,
        began.elapsed().as_secs_f64(),
    );
    ensure!(outside.is_empty(), "{outside:#?}");
    ensure!(within.iter().all(|refusal| refusal.why != "token-repeated"), "{within:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_loses_is_bounded() -> Result<()> {
    tokio::time::timeout(LIMIT, masters_change_under_workers_that_are_killed()).await?
}
