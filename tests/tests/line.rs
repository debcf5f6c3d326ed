//! The line of those who wait, in a crowd: processes full of waiters, on real servers. What decides who comes when is
//! only what can be seen: the line as it is listed, and the fencing tokens, which are given in the order of the grants.
//!
//! A waiter that was not heard of for five seconds, or that did not take what it was offered for two, has lost its place
//! and comes again, at the end: that may happen on a machine that has no time. Redis counts arrivals, so each test knows
//! how often that was, and allows for exactly so many.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Random, Server, Witness, cluster::Cluster, eventually, witness::Grant};
use redis_allocator::{Client, Item, Ownership, Pool, PoolSettings, WaiterInfo};
use tokio::process::{Child, Command};

/// For what must happen, on a machine that may have no time.
const PATIENCE: Duration = Duration::from_mins(6);
/// Of a test: many times what it takes.
const LIMIT: Duration = Duration::from_mins(15);
const PROCESSES: usize = 8;
/// How many places a step of priority is worth.
const STEP: u64 = 100;

struct Scene {
    url: String,
    witness: Witness,
    pool: Pool,
    /// Ends when this does.
    record: Server,
}

/// A process of waiters.
struct Waiters {
    name: String,
    process: Child,
}

impl Scene {
    async fn on(url: String, resources: usize) -> Result<Self> {
        let record = Server::start(Flavor::Redis).await?;
        let witness = Witness::connect(&record.url()).await?;
        let client = Client::builder(&url).timeout(PATIENCE).connect_timeout(PATIENCE).connect().await?;
        let pool = client.pool("line")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        pool.extend((0..resources).map(|k| Ok(Item::new(format!("r{k}").parse()?))).collect::<Result<Vec<_>>>()?)
            .await?;
        Ok(Self { url, witness, pool, record })
    }

    fn start(&self, name: impl Into<String>, conduct: &serde_json::Value) -> Result<Waiters> {
        let name = name.into();
        let process = Command::new(env!("CARGO_BIN_EXE_line_worker"))
            .args([&self.url, &self.record.url(), "line", &name, &conduct.to_string()])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start waiters")?;
        Ok(Waiters { name, process })
    }

    async fn in_line(&self, at_least: u64) -> Result<()> {
        eventually(PATIENCE, async || {
            let waiting = self.pool.info().await?.counts.waiting;
            ensure!(waiting >= at_least, "{waiting} of {at_least} wait");
            Ok(())
        })
        .await
    }

    /// The same for a crowd, while nobody is served.
    async fn whole_line(&self, crowd: u64) -> Result<Vec<WaiterInfo>> {
        eventually(PATIENCE, async || {
            let line = self.line().await?;
            // Between two pages, someone may lose its place.
            let different = line.iter().map(|waiter| &waiter.id).collect::<BTreeSet<_>>().len() as u64;
            ensure!(different == crowd && line.len() as u64 == crowd, "{different} of {crowd} are in line");
            Ok(line)
        })
        .await
    }

    /// Those in line, in turn.
    async fn line(&self) -> Result<Vec<WaiterInfo>> {
        let mut line = Vec::new();
        loop {
            let page = self.pool.waiters(line.len() as u64, 200).await?;
            line.extend(page.waiters);
            if line.len() as u64 >= page.total {
                return Ok(line);
            }
        }
    }

    /// What was granted to waiters whose names begin so, in the order in which it was granted.
    async fn granted_to(&self, name: &str) -> Result<Vec<Grant>> {
        let mut grants = self.witness.grants().await?;
        grants.retain(|grant| grant.holder.starts_with(name));
        Ok(grants)
    }

    /// Everything is back, without anyone collecting it, nobody waits, and nobody has complained.
    async fn is_whole(&self, resources: usize) -> Result<()> {
        let all = self.pool.malloc().count(resources).wait(PATIENCE).await?;
        ensure!(self.pool.free_all(all).await?.iter().all(Result::is_ok));
        let counts = self.pool.info().await?.counts;
        ensure!(counts.free == resources as u64 && counts.waiting == 0 && counts.leased == 0, "{counts:?}");
        let refusals = self.witness.refusals().await?;
        ensure!(refusals.is_empty(), "{refusals:#?}");
        let broken = self.pool.check().await?;
        ensure!(broken.is_empty(), "{broken:?}");
        Ok(())
    }
}

async fn all_end(processes: Vec<Waiters>) -> Result<()> {
    for mut waiters in processes {
        let status = tokio::time::timeout(PATIENCE, waiters.process.wait())
            .await
            .with_context(|| format!("some waiters of {} were never served", waiters.name))??;
        ensure!(status.success(), "{} ended with {status}", waiters.name);
    }
    Ok(())
}

/// How many at least of these are not in the order of their numbers: all but the longest row of rising ones.
fn out_of_turn(order: &[usize]) -> usize {
    // Of all rising rows of a length, the least number that one ends with.
    let mut ends: Vec<usize> = Vec::new();
    for &number in order {
        let longer = ends.partition_point(|&end| end < number);
        match ends.get_mut(longer) {
            Some(end) => *end = number,
            None => ends.push(number),
        }
    }
    order.len() - ends.len()
}

#[test]
fn who_is_out_of_turn_is_counted() {
    assert_eq!(out_of_turn(&[0, 1, 2, 3]), 0);
    assert_eq!(out_of_turn(&[1, 2, 3, 0]), 1);
    assert_eq!(out_of_turn(&[1, 0, 3, 2]), 2);
    assert_eq!(out_of_turn(&[3, 2, 1, 0]), 3);
}

/// Whether the grants came in the order of the line, but for those who had to come again.
fn in_turn(line: &[WaiterInfo], grants: &[Grant], again: u64) -> Result<()> {
    let places: HashMap<&str, usize> =
        line.iter().enumerate().map(|(place, waiter)| (waiter.owner.as_str(), place)).collect();
    ensure!(places.len() == line.len() && grants.len() == line.len(), "{} grants for {}", grants.len(), line.len());
    let order = grants
        .iter()
        .map(|grant| places.get(grant.holder.as_str()).copied())
        .collect::<Option<Vec<_>>>()
        .context("someone was served who was not in line")?;
    ensure!(order.iter().collect::<BTreeSet<_>>().len() == order.len(), "someone was served twice");
    let astray = out_of_turn(&order) as u64;
    ensure!(astray <= again, "{astray} were served out of turn, and only {again} came again");
    Ok(())
}

/// Whether the line is what it should be: by arrival within a priority, and nobody before one who came earlier by more
/// places than its priority is worth.
fn is_fair(line: &[WaiterInfo]) -> Result<()> {
    for (place, waiter) in line.iter().enumerate() {
        let mut later: BTreeMap<u8, u64> = BTreeMap::new();
        for before in &line[..place] {
            if before.since > waiter.since {
                *later.entry(before.priority).or_default() += 1;
            }
        }
        for (priority, count) in later {
            let allowed = STEP * u64::from(priority.saturating_sub(waiter.priority));
            ensure!(count <= allowed, "{count} of priority {priority} came later than {waiter:?} and are before it");
        }
    }
    Ok(())
}

/// Times that someone came to the line.
async fn arrivals(server: &Server) -> Result<u64> {
    server.cmd(&["HGET", "ra:{default/line}:meta", "arrivals"]).await
}

/// Returns how many had to come again.
async fn a_thousand_are_served_in_turn(flavor: Flavor, highest: u8) -> Result<u64> {
    const RESOURCES: usize = 8;
    const EACH: usize = 125;
    let server = Server::start(flavor).await?;
    let scene = Scene::on(server.url(), RESOURCES).await?;
    let held = scene.pool.malloc().ttl(LIMIT).count(RESOURCES).await?.context("all are free")?;
    let conduct = serde_json::json!({
        "waiters": EACH, "priorities": [0, highest], "ttl": 60_000, "hold": 0, "fickle": false, "again": false,
    });
    let processes = (0..PROCESSES).map(|number| scene.start(format!("p{number}"), &conduct)).collect::<Result<_>>()?;
    let crowd = (PROCESSES * EACH) as u64;
    scene.in_line(crowd).await?;
    let line = scene.whole_line(crowd).await?;
    is_fair(&line)?;

    let since = Instant::now();
    ensure!(scene.pool.free_all(held).await?.iter().all(Result::is_ok));
    all_end(processes).await?;
    let again = arrivals(&server).await? - crowd;
    println!("{flavor}, priorities 0 to {highest}: {crowd} in turn within {:?}, {again} came again", since.elapsed());
    in_turn(&line, &scene.granted_to("p").await?, again)?;
    let granted = scene.pool.info().await?.counters.granted;
    ensure!(granted == crowd + RESOURCES as u64, "{granted} grants for {crowd} waiters");
    scene.is_whole(RESOURCES).await?;
    Ok(again)
}

/// One after the other: a thousand that look every second are a load of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_of_eight_processes_are_served_in_the_order_of_the_line() -> Result<()> {
    for (flavor, highest) in [(Flavor::Redis, 0), (Flavor::Redis, 4), (Flavor::Valkey, 4)] {
        // Where many have to come again, it says less: another attempt may say more.
        for _ in 0..3 {
            let again = tokio::time::timeout(LIMIT, a_thousand_are_served_in_turn(flavor, highest)).await??;
            if again <= 50 {
                break;
            }
        }
    }
    Ok(())
}

async fn the_dead_cost_no_grant() -> Result<()> {
    const RESOURCES: usize = 6;
    const EACH: usize = 40;
    const ROUNDS: usize = 3;
    let server = Server::start(Flavor::Redis).await?;
    let scene = Scene::on(server.url(), RESOURCES).await?;
    let conduct = serde_json::json!({
        "waiters": EACH, "priorities": [0, 3], "ttl": 2000, "hold": 40, "fickle": true, "again": false,
    });
    let mut random = Random::new(0);
    let mut started = 0;
    let mut start = || {
        started += 1;
        scene.start(format!("p{started}"), &conduct)
    };
    let mut processes = (0..PROCESSES).map(|_| start()).collect::<Result<Vec<_>>>()?;
    let mut killed = Vec::new();
    for _ in 0..ROUNDS {
        // Two at a time, at any moment of their work; others come in their place.
        for _ in 0..2 {
            let reported = scene.witness.counts().await?.grants;
            let more = 5 + random.below(40);
            eventually(PATIENCE, async || {
                let grants = scene.witness.counts().await?.grants;
                ensure!(grants >= reported + more, "{grants} grants, {more} more than {reported} are awaited");
                Ok(())
            })
            .await?;
            let number = usize::try_from(random.below(PROCESSES as u64))?;
            let mut victim = std::mem::replace(&mut processes[number], start()?);
            victim.process.kill().await.context("cannot kill waiters")?;
            killed.push(victim.name);
        }
    }
    let survivors: Vec<String> = processes.iter().map(|waiters| waiters.name.clone()).collect();
    all_end(processes).await?;

    let grants = scene.witness.grants().await?;
    let served_of = |name: &str| {
        let prefix = format!("{name}/");
        let of_process = grants.iter().filter(|grant| grant.holder.starts_with(&prefix));
        of_process.map(|grant| grant.holder.as_str()).collect::<BTreeSet<_>>().len()
    };
    for name in &survivors {
        ensure!(served_of(name) == EACH, "{} of {EACH} of {name} were served", served_of(name));
    }
    scene.is_whole(RESOURCES).await?;
    // Everything that was granted is known: reported, or to one that was cancelled, or to one that was killed before it
    // could report.
    let counters = scene.pool.info().await?.counters;
    let (granted, reported) = (counters.granted - RESOURCES as u64, grants.len() as u64);
    let cancelled = scene.witness.noted("changed its mind").await?;
    let cut_off: usize = killed.iter().map(|name| EACH - served_of(name)).sum();
    println!(
        "{} processes killed with {cut_off} waiters in line, {cancelled} futures cancelled; {granted} grants, {reported} \
         of them reported; {counters:?}",
        killed.len()
    );
    ensure!(cut_off > 0 && cancelled > 0, "nobody was in line when it was killed: this proves nothing");
    let most = reported + cancelled + 2 * cut_off as u64;
    ensure!((reported..=most).contains(&granted), "{granted} grants, of which {reported} to {most} are known");
    ensure!(counters.revoked == 0 && counters.expired <= granted, "{counters:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_that_are_killed_or_cancelled_cost_no_grant() -> Result<()> {
    tokio::time::timeout(LIMIT, the_dead_cost_no_grant()).await?
}

/// Overtaken by how many of each priority; nothing, if the one that waits had to come again.
async fn overtaken_by(scene: &Scene, priorities: [u8; 2], round: usize) -> Result<Option<BTreeMap<u8, u64>>> {
    const LOAD: usize = 6;
    let held = scene.pool.malloc().ttl(LIMIT).await?.context("it is free")?;
    let request = scene.pool.malloc().owner("patient").wait(PATIENCE);
    let patient = tokio::spawn(async move { request.await });
    scene.in_line(1).await?;
    let conduct = serde_json::json!({
        "waiters": LOAD, "priorities": priorities, "ttl": 60_000, "hold": 0, "fickle": false, "again": true,
    });
    // All of these come later.
    let load = (0..4).map(|number| scene.start(format!("{round}-{number}"), &conduct)).collect::<Result<Vec<_>>>()?;
    scene.in_line(1 + 4 * LOAD as u64).await?;
    let waits_since = async || -> Result<Option<_>> {
        let line = scene.line().await?;
        Ok(line.into_iter().find(|waiter| waiter.owner == "patient").map(|waiter| waiter.since))
    };
    let since = waits_since().await?.context("it is in line")?;
    let first = held.fencing_token();
    held.free().await?;
    let mut came_again = false;
    while !patient.is_finished() {
        came_again |= waits_since().await?.is_some_and(|now| now != since);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let patient = patient.await??;
    let mut overtaken = BTreeMap::new();
    for grant in scene.witness.grants().await? {
        if (first..patient.fencing_token()).contains(&grant.token) {
            let (_, priority) = grant.holder.rsplit_once('/').context("a holder without a priority")?;
            *overtaken.entry(priority.parse()?).or_default() += 1;
        }
    }
    let mut load = load;
    for waiters in &mut load {
        drop(waiters.process.stdin.take());
    }
    patient.free().await?;
    all_end(load).await?;
    println!("overtaken by {overtaken:?}, of each priority; had to come again: {came_again}");
    Ok(Some(overtaken).filter(|_| !came_again))
}

async fn the_lowest_are_served_under_load_from_above() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let scene = Scene::on(server.url(), 1).await?;
    for priorities in [[1, 1], [3, 3], [1, 4]] {
        let mut overtaken = None;
        for round in 0..3 {
            overtaken = overtaken_by(&scene, priorities, round).await?;
            if overtaken.is_some() {
                break;
            }
        }
        let overtaken = overtaken.context("it lost its place three times: this machine has no time at all")?;
        for (&priority, &count) in &overtaken {
            let most = STEP * u64::from(priority);
            ensure!(count <= most, "overtaken by {count} of priority {priority}, at most {most} are allowed");
        }
        let all: u64 = overtaken.values().sum();
        let most = STEP * u64::from(priorities[1]);
        ensure!(all <= most, "overtaken by {all}, at most {most} are allowed");
        // The load was constant: what came first was before it, or most of that, if someone had to come again.
        let least = STEP * u64::from(priorities[0]) / 2;
        ensure!(all > least, "overtaken by {all} only, of {most} that are allowed: this proves nothing");
    }
    scene.is_whole(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lowest_priority_is_overtaken_as_often_as_stated_and_no_more() -> Result<()> {
    tokio::time::timeout(LIMIT, the_lowest_are_served_under_load_from_above()).await?
}

async fn a_line_survives_the_move_of_its_slot() -> Result<()> {
    const RESOURCES: usize = 3;
    const EACH: usize = 25;
    let cluster = Cluster::start(Flavor::Redis).await?;
    let scene = Scene::on(format!("redis+cluster://{}", cluster.addresses().join(",")), RESOURCES).await?;
    let held = scene.pool.malloc().ttl(LIMIT).count(RESOURCES).await?.context("all are free")?;
    let conduct = serde_json::json!({
        "waiters": EACH, "priorities": [0, 1], "ttl": 60_000, "hold": 0, "fickle": false, "again": false,
    });
    let processes = (0..4).map(|number| scene.start(format!("p{number}"), &conduct)).collect::<Result<_>>()?;
    let crowd = 4 * EACH as u64;
    scene.in_line(crowd).await?;
    let line = scene.whole_line(crowd).await?;
    let slot = cluster.slot_of("{default/line}").await?;
    let source = cluster.owner_of(slot).await?;
    let target = cluster.nodes().iter().find(|node| node.client_port() != source.client_port()).context("one node")?;
    // Half here, half there, nothing is granted; those who wait ask again and again.
    let migration = cluster.migrate(slot, target).await?;
    ensure!(migration.move_keys(3).await? == 3);
    let (freed, finished) = tokio::join!(scene.pool.free_all(held), async {
        eventually(PATIENCE, async || {
            let refused = source.server().info("errorstats", "errorstat_TRYAGAIN").await?;
            let refused: u64 = refused.strip_prefix("count=").context("no count")?.parse()?;
            ensure!(refused > crowd, "{refused} were told to try again");
            Ok(())
        })
        .await?;
        migration.finish().await
    });
    finished?;
    ensure!(freed?.iter().all(Result::is_ok));
    all_end(processes).await?;
    let again = arrivals(target.server()).await? - crowd;
    println!("{crowd} in turn while their slot moved, {again} came again");
    in_turn(&line, &scene.granted_to("p").await?, again)?;
    let granted = scene.pool.info().await?.counters.granted;
    ensure!(granted == crowd + RESOURCES as u64, "{granted} grants for {crowd} waiters");
    scene.is_whole(RESOURCES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_in_line_are_served_where_their_slot_went() -> Result<()> {
    tokio::time::timeout(LIMIT, a_line_survives_the_move_of_its_slot()).await?
}
