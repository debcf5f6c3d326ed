//! Edits, deletions, leases, killed leaders, silent servers, in any order: in the end Redis has what is declared, and
//! nothing else.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use redis_allocator_crd::ResourcePool;
use serde_json::json;

use crate::{agent::Agent, cluster::Cluster};

const POOLS: u64 = 12;
const STEPS: usize = 250;
/// The last leases end, a killed leader is replaced, what failed is tried again.
const SETTLE: Duration = Duration::from_mins(2);

/// xorshift64*, Vigna 2014: the same run for the same seed, as far as three processes allow.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
    }
}

fn pool(name: &str, size: u64) -> serde_json::Value {
    let resources: Vec<_> = (0..size).map(|index| json!({"name": format!("r{index}")})).collect();
    json!({
        "apiVersion": "redis-allocator.dev/v1alpha1",
        "kind": "ResourcePool",
        "metadata": {"name": name},
        "spec": {"resources": resources, "maxShrinkPercent": 100, "gc": {"interval": "300ms"}},
    })
}

/// What the API server has, and Redis should.
fn size(pool: &ResourcePool) -> u64 {
    pool.spec.resources.len() as u64
}

async fn step(cluster: &Cluster, agents: &mut [Agent; 2], dice: &mut Dice) -> Result<()> {
    let name = format!("p{}", dice.below(POOLS));
    let pools = cluster.pools();
    match dice.below(100) {
        0..50 => {
            let manifest = pool(&name, dice.below(7));
            pools.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&manifest)).await?;
        }
        50..75 => {
            if let Err(error) = pools.delete(&name, &DeleteParams::default()).await {
                ensure!(matches!(&error, kube::Error::Api(status) if status.code == 404), error);
            }
        }
        75..93 => {
            // A pool that is not there, or not now, grants nothing; what is granted is never given back.
            if let Ok(Some(lease)) = cluster.in_redis(&name)?.malloc().ttl(Duration::from_secs(1)).await {
                lease.detach();
            }
        }
        93..96 => {
            cluster.redis.pause()?;
            tokio::time::sleep(Duration::from_millis(500 + dice.below(1500))).await;
            cluster.redis.resume()?;
        }
        96..98 => {
            cluster.api.pause()?;
            tokio::time::sleep(Duration::from_millis(500 + dice.below(1500))).await;
            cluster.api.resume()?;
        }
        _ => {
            let other = cluster.agent()?;
            std::mem::replace(&mut agents[usize::from(dice.below(2) == 0)], other).kill()?;
        }
    }
    tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
    Ok(())
}

#[tokio::test]
async fn after_any_turmoil_redis_has_what_is_declared() -> Result<()> {
    let Some(cluster) = Cluster::start("turmoil").await? else { return Ok(()) };
    let seed = getrandom::u64()? | 1;
    let mut dice = Dice(seed);
    let mut agents = [cluster.agent()?, cluster.agent()?];
    agents[0].ready().await?;
    for number in 0..STEPS {
        step(&cluster, &mut agents, &mut dice).await.with_context(|| format!("step {number} of seed {seed}"))?;
    }
    cluster
        .within(SETTLE, async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let declared = cluster.pools().list(&ListParams::default()).await?.items;
            let mut names = BTreeSet::new();
            for pool in &declared {
                let name = pool.metadata.name.as_deref().context("no name")?;
                ensure!(pool.metadata.deletion_timestamp.is_none(), "{name} is still being deleted: {:?}", pool.status);
                let status = pool.status.as_ref().with_context(|| format!("{name} has no status"))?;
                let ready = status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
                ensure!(ready && status.observed_generation == pool.metadata.generation, "{name}: {status:?}");
                let counts = cluster.in_redis(name)?.info().await?.counts;
                let found = (counts.total, counts.leased, counts.free);
                ensure!(found == (size(pool), 0, size(pool)), "{name} has {counts:?} instead of {}", size(pool));
                ensure!(status.total.unsigned_abs() == size(pool), "the status of {name} is {status:?}");
                names.insert(name.to_owned());
            }
            let found = cluster.client.pools("default").await?;
            let found: BTreeSet<_> = found.iter().map(|pool| pool.name().to_owned()).collect();
            ensure!(found == names, "Redis has {found:?} instead of {names:?}");
            Ok(())
        })
        .await
        .with_context(|| format!("seed {seed}"))?;
    for pool in cluster.client.pools("default").await? {
        assert_eq!(cluster.client.pool(pool.as_str())?.check().await?, []);
    }
    cluster.nothing_was_refused()
}
