//! What a controller's user waits for, and what it costs while nothing changes: from `kubectl apply` to `Ready`, requests
//! to the API server, commands to Redis, memory. Needs the binaries of an API server, and is skipped without them.

#[path = "../tests/agent/mod.rs"]
mod agent;
#[path = "../tests/kubernetes/cluster.rs"]
mod cluster;
mod common;
#[path = "../tests/program/mod.rs"]
mod program;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use agent::Agent;
use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use common::{Figures, Target, drive::as_float, rounds};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api,
    api::{DeleteParams, PostParams, WatchEvent, WatchParams},
};
use redis_allocator_crd::ResourcePool;
use serde_json::json;
use tokio::time::timeout;

/// A round takes minutes, whatever `BENCH_ROUNDS` says.
const MOST_ROUNDS: usize = 3;
const ONE_BY_ONE: usize = 50;
const MANY: usize = 1000;
const LARGE: u64 = 100_000;
const MINUTE: Duration = Duration::from_mins(1);
/// After this, all counts are written.
const SETTLE: Duration = Duration::from_secs(25);
const PATIENCE: Duration = Duration::from_mins(5);

#[tokio::main]
async fn main() -> Result<()> {
    let mut single = [(); 2].map(|()| Figures::default());
    let mut many = [(); 3].map(|()| Figures::default());
    let mut requests = Figures::default();
    let mut commands = [(); 2].map(|()| Figures::default());
    let mut memory = [(); 2].map(|()| Figures::default());
    let rounds = rounds()?.min(MOST_ROUNDS);
    for round in 0..rounds {
        let Some(cluster) = Cluster::start("the benchmark of the agent in Kubernetes").await? else { return Ok(()) };
        if round == 0 {
            println!("\nkubernetes: an API server, etcd, Redis and the agent on one machine, {rounds} rounds");
        }
        let mut agent = cluster.agent()?;
        agent.ready().await?;

        let mut took = Vec::new();
        for index in 0..ONE_BY_ONE {
            took.extend(apply(&cluster.pools(), vec![pool(&format!("one-{index}"), 2)?]).await?);
        }
        for (figures, part) in single.iter_mut().zip([50, 99]) {
            figures.add(percentile(&mut took, part).as_secs_f64() * 1e3);
        }
        cluster.pools().delete_collection(&DeleteParams::default(), &kube::api::ListParams::default()).await?;

        let manifests = (0..MANY).map(|index| pool(&format!("many-{index}"), 2)).collect::<Result<Vec<_>>>()?;
        let started = Instant::now();
        let mut took = apply(&cluster.pools(), manifests).await?;
        many[2].add(started.elapsed().as_secs_f64());
        for (figures, part) in many.iter_mut().zip([50, 99]) {
            figures.add(percentile(&mut took, part).as_secs_f64() * 1e3);
        }

        tokio::time::sleep(SETTLE).await;
        let (asked, before) = (cluster.requests_of_agents()?, cluster.redis.command_stats().await?);
        tokio::time::sleep(MINUTE).await;
        let spent = cluster.requests_of_agents()?.split_off(asked.len());
        let calls = cluster.redis.command_stats().await?.since(&before);
        requests.add(as_float(spent.len() as u64));
        commands[0].add(as_float(calls.get("evalsha").copied().unwrap_or_default()));
        commands[1].add(as_float(calls.values().sum()));
        memory[0].add(resident(&agent)?);
        if round == 0 {
            println!("  requests in the first round's minute: {:?}", by_kind(&spent));
        }
        drop((agent, cluster));

        let Some(cluster) = Cluster::start("the benchmark of a large pool").await? else { return Ok(()) };
        let mut agent = cluster.agent()?;
        agent.ready().await?;
        apply(&cluster.pools(), vec![pool("large", LARGE)?]).await?;
        tokio::time::sleep(SETTLE).await;
        memory[1].add(resident(&agent)?);
    }

    single[0].print("apply to Ready, one pool of 2, p50", "ms", None);
    single[1].print("  … p99 of 50", "ms", None);
    many[0].print("apply to Ready, each of 1,000 pools of 2, p50", "ms", None);
    many[1].print("  … p99", "ms", None);
    many[2].print("  … all of them, their creation included", "s", None);
    requests.print("1,000 unchanged pools: requests to the API server", "/min", None);
    commands[0].print("1,000 unchanged pools: scripts that Redis runs", "/min", None);
    commands[1].print("  … with the commands in them", "/min", None);
    memory[0].print("agent with 1,000 pools, resident", "MB", Some(Target::AtMost(60.0)));
    memory[1].print("agent with one pool of 100,000, resident", "MB", Some(Target::AtMost(100.0)));
    Ok(())
}

fn pool(name: &str, size: u64) -> Result<ResourcePool> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "redis-allocator.dev/v1alpha1",
        "kind": "ResourcePool",
        "metadata": {"name": name},
        "spec": {"ranges": [{"name": "r", "template": "host-{}", "from": 1, "to": size}]},
    }))?)
}

/// Creates pools, 16 at a time, and waits until they are ready: how long each took, from when its request was sent.
async fn apply(pools: &Api<ResourcePool>, manifests: Vec<ResourcePool>) -> Result<Vec<Duration>> {
    let count = manifests.len();
    let now = pools.list(&kube::api::ListParams::default()).await?.metadata.resource_version.context("no version")?;
    let events = pools.watch(&WatchParams::default().timeout(290), &now).await?;
    let ready = async {
        let mut ready = BTreeMap::new();
        let mut events = std::pin::pin!(events);
        while ready.len() < count {
            let event = timeout(PATIENCE, events.try_next()).await??.context("the watch has ended")?;
            if let WatchEvent::Added(pool) | WatchEvent::Modified(pool) = event
                && is_ready(&pool)
            {
                ready.entry(pool.metadata.name.unwrap_or_default()).or_insert_with(Instant::now);
            }
        }
        Ok::<_, anyhow::Error>(ready)
    };
    let create = futures::stream::iter(manifests)
        .map(async |manifest| {
            let started = Instant::now();
            pools.create(&PostParams::default(), &manifest).await?;
            Ok::<_, anyhow::Error>((manifest.metadata.name.unwrap_or_default(), started))
        })
        .buffer_unordered(16)
        .try_collect::<Vec<_>>();
    let (created, ready) = tokio::try_join!(create, ready)?;
    created
        .iter()
        .map(|(name, started)| Ok(ready.get(name).context("another pool")?.duration_since(*started)))
        .collect()
}

fn is_ready(pool: &ResourcePool) -> bool {
    let conditions = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    pool.metadata.deletion_timestamp.is_none() && conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

fn percentile(took: &mut [Duration], part: usize) -> Duration {
    took.sort_unstable();
    took.get((took.len() * part).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

fn by_kind(requests: &[e2e::kube::Request]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for request in requests {
        *kinds.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
    }
    kinds
}

/// Memory of the agent's process, in MB.
fn resident(agent: &Agent) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    ensure!(kilobytes > 0);
    Ok(as_float(kilobytes) / 1024.0)
}
