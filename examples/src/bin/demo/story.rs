//! What the demo shows, step by step. Each step does something that happens in real life, waits for what the system
//! makes of it, and tells what it then reads from it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use redis_allocator::{Client, Place, Pool, PoolInfo, ResourceState};

use crate::{
    agent::Agent,
    devices::Device,
    tell::{Teller, until},
    worker::Worker,
};

/// How long anything may take that should take a moment.
const PATIENCE: Duration = Duration::from_secs(15);
/// Short, so that nobody waits long for a killed worker's lease to end.
const TTL: Duration = Duration::from_secs(3);
/// The manifests that ship with the project.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pools");

pub(crate) async fn run(teller: &Teller, binary: &Path, directory: &Path) -> Result<()> {
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(Device::new().await?);
    }
    let pools = directory.join("pools");
    copy_examples(&pools, &devices)?;

    teller.chapter("An agent with a server of its own, on a copy of examples/pools");
    let agent = Agent::start(binary, directory).await?;
    let client = Client::connect(agent.redis_url()).await?;
    let server = client.server_info().await?;
    let server_pid = agent.server_pid().map(|pid| format!(" (process {pid})")).unwrap_or_default();
    teller.line(format_args!("the agent runs (process {}), its endpoints are at http://{}", agent.pid(), agent.http()));
    teller.line(format_args!(
        "its server is {} {}{server_pid}, at {}",
        server.flavor,
        server.version,
        agent.redis_url()
    ));
    agent.ready().await?;
    pools_are_synced(teller, &client).await?;

    let gpus = client.pool("default/gpus")?;
    let workers = workers_hold_leases(teller, agent.redis_url(), &gpus).await?;
    let command = ["get", "resources", "gpus"];
    teller.line(format_args!("redis-allocator {} says:", command.join(" ")));
    agent.ask(binary, directory, &command).await?.lines().for_each(|line| teller.quote(line));
    let workers = a_killed_workers_lease_is_reclaimed(teller, &agent, &gpus, workers).await?;
    a_device_fails_and_returns(teller, &client.pool("default/devices")?, &mut devices).await?;
    an_edit_is_picked_up(teller, agent.redis_url(), &pools.join("gpus.yaml"), &gpus).await?;

    teller.chapter("The end");
    for worker in workers {
        let owner = worker.owner.clone();
        let held = worker.finish().await?;
        until(format_args!("{} to be free or kept", held.key), PATIENCE, async || at_rest(&gpus, &held.key).await)
            .await?;
        teller.line(format_args!("{owner} was told to end, and returned {}", held.key));
    }
    let PoolInfo { counters, .. } = gpus.info().await?;
    teller.line(format_args!(
        "pool {} so far: {} leases granted, {} returned, {} expired",
        gpus.name(),
        counters.granted,
        counters.freed,
        counters.expired
    ));
    let metrics = agent.metrics().await?;
    let series = metrics.lines().filter(|line| line.starts_with("redis_allocator_"));
    let about_gpus = series.clone().filter(|line| line.contains(r#""gpus""#));
    teller.line(format_args!("/metrics has {} series, {} of them about this pool", series.count(), about_gpus.count()));
    let took = agent.stop().await?;
    teller
        .line(format_args!("the agent was told to end (SIGTERM): it did, server included, in {} ms", took.as_millis()));
    Ok(())
}

/// Copies the manifests, with the devices' addresses replaced by those of devices that really are there.
fn copy_examples(pools: &Path, devices: &[Device]) -> Result<()> {
    fs::create_dir(pools)?;
    for entry in fs::read_dir(EXAMPLES).with_context(|| format!("reading {EXAMPLES} failed"))? {
        let path = entry?.path();
        let mut text = fs::read_to_string(&path).with_context(|| format!("reading {} failed", path.display()))?;
        let name = path.file_name().context("a file without a name")?;
        if name == "devices.yaml" {
            for (device, port) in devices.iter().zip(7811..) {
                let address = format!("127.0.0.1:{port}");
                ensure!(text.contains(&address), "{} has no device at {address} any more", path.display());
                text = text.replace(&address, device.address());
            }
        }
        fs::write(pools.join(name), text)?;
    }
    Ok(())
}

async fn pools_are_synced(teller: &Teller, client: &Client) -> Result<()> {
    for name in client.pools("default").await? {
        let info = client.pool(name.as_str())?.info().await?;
        let counts = info.counts;
        let origins: Vec<_> = info.origins.iter().map(|(origin, it)| format!("{} from {origin}", it.count)).collect();
        teller.line(format_args!(
            "pool {name} is synced: {} resources ({}), {} free, {} reserved",
            counts.total,
            origins.join(", "),
            counts.free,
            counts.reserved
        ));
        for binding in client.pool(name.as_str())?.bindings().await? {
            teller.line(format_args!("  {} is bound to {} ({:?})", binding.name, binding.resource, binding.policy));
        }
    }
    Ok(())
}

async fn workers_hold_leases(teller: &Teller, redis_url: &str, gpus: &Pool) -> Result<Vec<Worker>> {
    teller.chapter(format_args!(
        "Three workers, each a process of its own, lease a GPU for {} s and renew",
        TTL.as_secs()
    ));
    let mut workers = Vec::new();
    for (owner, bind) in [("trainer-1", Some("trainer-1")), ("trainer-2", None), ("report", Some("reports/nightly"))] {
        let worker = Worker::start(redis_url, gpus.name().as_str(), owner, bind, TTL).await?;
        tell_holder(teller, gpus, &worker).await?;
        workers.push(worker);
    }
    Ok(workers)
}

/// Tells what the pool, not the worker, says about who holds what.
async fn tell_holder(teller: &Teller, gpus: &Pool, worker: &Worker) -> Result<()> {
    let key = &worker.holding.key;
    let state = state(gpus, key).await?;
    let Place::Leased(lease) = &state.place else { anyhow::bail!("{key} should be leased, but: {:?}", state.place) };
    ensure!(
        lease.owner == worker.owner && lease.token == worker.holding.fencing_token,
        "{key} should be leased by {}, but: {lease:?}",
        worker.owner
    );
    let bound = lease.binding.as_ref().map(|name| format!(" as {name}")).unwrap_or_default();
    teller.line(format_args!(
        "{key} is leased by {}{bound} (process {}), params {}, fencing token {}",
        lease.owner,
        worker.pid(),
        serde_json::to_string(&state.params)?,
        lease.token
    ));
    Ok(())
}

async fn a_killed_workers_lease_is_reclaimed(
    teller: &Teller,
    agent: &Agent,
    gpus: &Pool,
    mut workers: Vec<Worker>,
) -> Result<Vec<Worker>> {
    teller.chapter("A worker is killed (SIGKILL): it can't return anything");
    let before = gpus.info().await?.counters.expired;
    let reclaimed_before = reclaimed(agent).await?;
    let victim = workers.remove(1);
    let owner = victim.owner.clone();
    let held = victim.kill().await?;
    let killed = Instant::now();
    let Place::Leased(_) = state(gpus, &held.key).await?.place else {
        anyhow::bail!("{} should still be leased right after {owner} was killed", held.key)
    };
    teller.line(format_args!("{owner} is dead; {} is still leased to it, and nobody renews that", held.key));
    until(format_args!("the lease of {owner} on {} to be reclaimed", held.key), PATIENCE, async || {
        at_rest(gpus, &held.key).await
    })
    .await?;
    let took = killed.elapsed();
    let expired = gpus.info().await?.counters.expired - before;
    ensure!(expired == 1, "one lease should have expired, not {expired}");
    let by_gc = until("the agent's GC to say that it reclaimed a lease", PATIENCE, async || {
        Ok(match reclaimed(agent).await? - reclaimed_before {
            0 => Err("it reclaimed none".to_owned()),
            count => Ok(count),
        })
    })
    .await?;
    teller.line(format_args!(
        "{} is free again {:.1} s after the kill: {expired} lease expired, {by_gc} reclaimed by the agent's GC",
        held.key,
        took.as_secs_f64()
    ));
    for worker in &workers {
        let Place::Leased(lease) = state(gpus, &worker.holding.key).await?.place else {
            anyhow::bail!("{} should still hold {}", worker.owner, worker.holding.key)
        };
        teller.line(format_args!("{} still has {}: it renews", lease.owner, worker.holding.key));
    }
    Ok(workers)
}

async fn a_device_fails_and_returns(teller: &Teller, pool: &Pool, devices: &mut [Device]) -> Result<()> {
    teller.chapter("A test device stops answering its probe, and comes back");
    let device = devices.last_mut().context("no devices")?;
    let key = device.address().to_owned();
    device.switch_off().await;
    let off = Instant::now();
    teller.line(format_args!("{key} is switched off: connections are refused from now on"));
    let marks = until(format_args!("{key} to be quarantined"), PATIENCE, async || {
        let state = state(pool, &key).await?;
        Ok(match state.place {
            Place::Quarantined { .. } => Ok(state.marks),
            place => Err(format!("{place:?}")),
        })
    })
    .await?;
    let mark = marks.first().with_context(|| format!("{key} is quarantined without a reason"))?;
    let (cause, reason) = (mark.cause, &mark.reason);
    teller.line(format_args!(
        "{key} is quarantined after {:.1} s, cause {cause:?}: {reason}",
        off.elapsed().as_secs_f64()
    ));
    let counts = pool.info().await?.counts;
    teller.line(format_args!("pool {}: {} free, {} quarantined", pool.name(), counts.free, counts.quarantined));

    device.switch_on().await?;
    let on = Instant::now();
    teller.line(format_args!("{key} is switched on again"));
    until(format_args!("{key} to leave quarantine"), PATIENCE, async || at_rest(pool, &key).await).await?;
    let counts = pool.info().await?.counts;
    teller.line(format_args!(
        "{key} is free again after {:.1} s; pool {}: {} free, {} quarantined",
        on.elapsed().as_secs_f64(),
        pool.name(),
        counts.free,
        counts.quarantined
    ));
    Ok(())
}

async fn an_edit_is_picked_up(teller: &Teller, redis_url: &str, manifest: &Path, gpus: &Pool) -> Result<()> {
    const NEW: &str =
        "    - {name: gpu-4, priority: 20, labels: {host: c}, params: {host: gpu-c.example.net, index: 0}}\n";
    teller.chapter("The manifest is edited while all this runs");
    let before = gpus.info().await?.counts.total;
    let text = fs::read_to_string(manifest)?;
    let list = "  resources:\n";
    let at = text.find(list).context("gpus.yaml has no resources any more")? + list.len();
    // As editors do it: written beside, then renamed over.
    let beside = manifest.with_extension("tmp");
    fs::write(&beside, format!("{}{NEW}{}", &text[..at], &text[at..]))?;
    fs::rename(&beside, manifest)?;
    let saved = Instant::now();
    teller.line(format_args!("saved gpus.yaml with one line more: {}", NEW.trim()));
    until("gpu-4 to be there", PATIENCE, async || {
        Ok(if gpus.contains("gpu-4").await? { Ok(()) } else { Err(format!("{:?}", gpus.keys().await?)) })
    })
    .await?;
    let took = saved.elapsed();
    let after = gpus.info().await?.counts.total;
    teller.line(format_args!(
        "pool {} has {after} resources instead of {before}, {} ms after the save",
        gpus.name(),
        took.as_millis()
    ));
    let worker = Worker::start(redis_url, gpus.name().as_str(), "trainer-3", None, TTL).await?;
    tell_holder(teller, gpus, &worker).await?;
    worker.finish().await?;
    Ok(())
}

/// How many expired leases the agent's GC has reclaimed so far, by its metrics.
async fn reclaimed(agent: &Agent) -> Result<u64> {
    const SERIES: &str = "redis_allocator_gc_reclaimed_total{kind=\"lease\"} ";
    let metrics = agent.metrics().await?;
    let count = metrics.lines().find_map(|line| line.strip_prefix(SERIES));
    count.and_then(|count| count.parse().ok()).with_context(|| format!("/metrics has no series {SERIES}"))
}

async fn state(pool: &Pool, key: &str) -> Result<ResourceState> {
    pool.get(key).await?.with_context(|| format!("pool {} has no {key}", pool.name()))
}

/// Whether a resource is in nobody's hands: free, or reserved for a name that does not use it.
async fn at_rest(pool: &Pool, key: &str) -> Result<Result<(), String>> {
    Ok(match state(pool, key).await?.place {
        Place::Free { .. } | Place::Reserved => Ok(()),
        place => Err(format!("{key} is {place:?}")),
    })
}
