//! `redis-allocator malloc` that waits in line, asks for several at once, by labels, or of several pools: what its command
//! is told, how it ends, and that nothing is left behind by one that was interrupted or killed.

mod program;

use std::{
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Client, Item, Lease, Ownership, Pool, PoolSettings};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// For what happens at once, on a machine that may have no time.
const SOON: Duration = Duration::from_secs(30);

struct World {
    server: Server,
    client: Client,
}

impl World {
    async fn new() -> Result<Self> {
        // Before any lease is granted: a build takes longer than leases last.
        program::binary("redis-allocator")?;
        let server = Server::start(Flavor::Redis).await?;
        let client = Client::builder(server.url()).owner("tester").connect().await?;
        Ok(Self { server, client })
    }

    /// A pool that is indexed by zone, of resources named after theirs: `eu-0`, …
    async fn pool(&self, name: &str, resources: &[&str]) -> Result<Pool> {
        let pool = self.client.pool(name)?;
        let settings = PoolSettings {
            default_ttl: Duration::from_mins(5),
            indexes: vec![vec!["zone".to_owned()]],
            ..PoolSettings::default()
        };
        pool.configure(&settings, &Ownership::default()).await?;
        let item = |key: &&str| {
            let zone = key.split('-').next().unwrap_or_default();
            Ok(Item::new(key.parse()?).label("zone", zone).param("from", zone))
        };
        pool.extend(resources.iter().map(item).collect::<Result<Vec<_>>>()?).await?;
        Ok(pool)
    }

    /// `redis-allocator malloc ARGUMENTS -- sh -c SCRIPT`.
    fn start(&self, arguments: &[&str], script: &str) -> Result<Child> {
        let mut malloc: Command = program::redis_allocator()?;
        malloc.arg("malloc").args(arguments).args(["--redis-url", &self.server.url(), "--", "sh", "-c", script]);
        Ok(malloc.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    async fn run(&self, arguments: &[&str], script: &str) -> Result<Ended> {
        end(self.start(arguments, script)?).await
    }

    fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut get = program::redis_allocator()?;
        get.arg("get").args(arguments).args(["-o", "json", "--redis-url", &self.server.url()]);
        let output = get.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// How a process ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn end(child: Child) -> Result<Ended> {
    let pid = Pid::from_child(&child);
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Ok(output) = tokio::time::timeout(2 * SOON, waiting).await else {
        kill_process(pid, Signal::KILL)?;
        bail!("redis-allocator malloc did not end");
    };
    let Output { status, stdout, stderr } = output??;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: status.code(), stdout: text(&stdout), stderr: text(&stderr) })
}

async fn waiting(pool: &Pool, callers: u64) -> Result<()> {
    eventually(SOON, async || {
        let found = pool.info().await?.counts.waiting;
        ensure!(found == callers, "{found} wait");
        Ok(())
    })
    .await
}

async fn taken(pool: &Pool) -> Result<Lease> {
    pool.malloc().await?.context("it should be free")
}

async fn is_all_free(pool: &Pool) -> Result<()> {
    let counts = pool.info().await?.counts;
    ensure!(counts.free == counts.total && counts.leased == 0 && counts.waiting == 0, "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn who_waits_is_listed_and_gets_what_the_other_frees() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0"]).await?;
    let held = taken(&gpus).await?;
    let first = world.start(&["gpus", "--wait", "1m", "--owner", "first"], "echo $REDIS_ALLOCATOR_KEY; sleep 1")?;
    waiting(&gpus, 1).await?;
    let second = ["gpus", "--wait", "1m", "--owner", "second", "--selector", "zone in (eu,us)", "--priority", "0"];
    let second = world.start(&second, "echo $REDIS_ALLOCATOR_KEY")?;
    waiting(&gpus, 2).await?;
    let line = world.get(&["waiters", "gpus"])?;
    let told = |n: usize, field: &str| line["items"][n][field].clone();
    assert_eq!([told(0, "owner"), told(1, "owner")], ["first", "second"], "{line:#}");
    assert_eq!([told(0, "ahead"), told(1, "ahead")], [0, 1]);
    assert_eq!([told(0, "selectors"), told(1, "selectors")], [json!([]), json!(["zone in (eu,us)"])]);

    held.free().await?;
    let first = end(first).await?;
    assert_eq!((first.code, first.stdout.as_str()), (Some(0), "eu-0\n"), "{}", first.stderr);
    let second = end(second).await?;
    assert_eq!((second.code, second.stdout.as_str()), (Some(0), "eu-0\n"), "{}", second.stderr);
    is_all_free(&gpus).await
}

#[tokio::test]
async fn who_waits_in_vain_ends_with_a_code_of_its_own_and_leaves_the_line() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0"]).await?;
    let held = taken(&gpus).await?;
    let begun = Instant::now();
    let ended = world.run(&["gpus", "--wait", "1500ms"], "echo ran").await?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(80), ""), "{}", ended.stderr);
    assert!(begun.elapsed() >= Duration::from_millis(1500), "it gave up after {:?}", begun.elapsed());
    assert!(ended.stderr.contains("a resource in pool default/gpus"), "{}", ended.stderr);
    assert_eq!(gpus.info().await?.counts.waiting, 0);
    let ended = world.run(&["gpus"], "echo ran").await?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(75), ""), "{}", ended.stderr);
    held.free().await?;
    is_all_free(&gpus).await
}

#[tokio::test]
async fn a_signal_ends_the_wait_and_the_line_is_left_by_then() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0"]).await?;
    let held = taken(&gpus).await?;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let child = world.start(&["gpus", "--wait", "1h"], "echo ran")?;
        waiting(&gpus, 1).await?;
        let asked = Instant::now();
        kill_process(Pid::from_child(&child), signal)?;
        let ended = end(child).await?;
        // Not by itself, after five seconds without a sign of life.
        assert_eq!(gpus.info().await?.counts.waiting, 0, "{signal:?}: it is still in line");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
        assert!(asked.elapsed() < Duration::from_secs(4), "{signal:?}: it took {:?}", asked.elapsed());
    }
    held.free().await?;
    is_all_free(&gpus).await
}

#[tokio::test]
async fn one_that_is_killed_while_it_waits_costs_nobody_a_grant() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0"]).await?;
    let held = taken(&gpus).await?;
    let mut killed = world.start(&["gpus", "--wait", "1m", "--owner", "killed"], "echo ran")?;
    waiting(&gpus, 1).await?;
    let heir = world.start(&["gpus", "--wait", "1m", "--owner", "heir"], "echo $REDIS_ALLOCATOR_OWNER")?;
    waiting(&gpus, 2).await?;
    killed.kill()?;
    killed.wait()?;
    let freed = Instant::now();
    held.free().await?;
    let ended = end(heir).await?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "heir\n"), "{}", ended.stderr);
    // The offer to the dead one lapses after two seconds; its place would end after five.
    assert!(freed.elapsed() < Duration::from_secs(15), "it took {:?}", freed.elapsed());
    is_all_free(&gpus).await
}

#[tokio::test]
async fn several_are_handed_over_together_and_returned_together() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0", "eu-1", "us-0"]).await?;
    let script = "env | grep -A9 ^REDIS_ALLOCATOR_; exit 7";
    let ended = world.run(&["gpus", "--count", "2", "--selector", "zone=eu"], script).await?;
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    let value = |name: &str| {
        let found = ended.stdout.lines().find_map(|line| line.strip_prefix(&format!("REDIS_ALLOCATOR_{name}=")));
        found.map(str::to_owned).with_context(|| format!("no {name} in:\n{}", ended.stdout))
    };
    assert_eq!(value("COUNT")?, "2");
    let leases: Vec<Value> = serde_json::from_str(&value("LEASES")?)?;
    let mut keys: Vec<_> = leases.iter().filter_map(|lease| lease["key"].as_str()).collect();
    assert_eq!((value("KEY")?.as_str(), value("KEYS")?.as_str()), (keys[0], keys[0]));
    // The second line of that variable.
    assert!(ended.stdout.contains(&format!("_KEYS={}\n{}\n", keys[0], keys[1])), "{}", ended.stdout);
    keys.sort_unstable();
    assert_eq!(keys, ["eu-0", "eu-1"]);
    assert!(leases.iter().all(|lease| lease["params"]["from"] == "eu" && lease["labels"]["zone"] == "eu"));
    let last = gpus.info().await?.last_token;
    assert!(leases.iter().any(|lease| lease["fencingToken"] == last), "{leases:?}");
    is_all_free(&gpus).await?;

    // All of them, or none: two are free.
    let held = taken(&gpus).await?;
    let ended = world.run(&["gpus", "--count", "3"], "echo ran").await?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(75), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("3 resources in pool default/gpus"), "{}", ended.stderr);
    let child = world.start(&["gpus", "--count", "3", "--wait", "1m"], "echo $REDIS_ALLOCATOR_KEYS")?;
    waiting(&gpus, 1).await?;
    held.free().await?;
    let ended = end(child).await?;
    let mut keys: Vec<_> = ended.stdout.split_whitespace().collect();
    keys.sort_unstable();
    assert_eq!((ended.code, keys), (Some(0), vec!["eu-0", "eu-1", "us-0"]), "{}", ended.stderr);
    is_all_free(&gpus).await
}

#[tokio::test]
async fn one_lease_of_several_that_is_taken_away_stops_the_command() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0", "eu-1"]).await?;
    let child = world.start(&["gpus", "--count", "2", "--ttl", "2s"], "exec sleep 60")?;
    eventually(SOON, async || {
        ensure!(gpus.info().await?.counts.leased == 2);
        Ok(())
    })
    .await?;
    assert!(gpus.force_free("eu-1").await?);
    let ended = end(child).await?;
    assert_eq!(ended.code, Some(79), "{}", ended.stderr);
    assert!(ended.stderr.contains("eu-1 of pool default/gpus is lost"), "{}", ended.stderr);
    is_all_free(&gpus).await
}

#[tokio::test]
async fn selectors_and_pools_are_tried_in_their_order() -> Result<()> {
    let world = World::new().await?;
    let spot = world.pool("spot", &["eu-0", "us-0"]).await?;
    let reserve = world.pool("lab/reserve", &["asia-9"]).await?;
    let key = "echo $REDIS_ALLOCATOR_POOL $REDIS_ALLOCATOR_KEY";
    let got = async |arguments: &[&str]| anyhow::Ok(world.run(arguments, key).await?.stdout);
    assert_eq!(got(&["spot", "--selector", "zone=us"]).await?, "default/spot us-0\n");
    assert_eq!(got(&["spot", "--selector", "zone=asia", "--selector", "zone=us"]).await?, "default/spot us-0\n");
    let held = [taken(&spot).await?, taken(&spot).await?];
    assert_eq!(got(&["spot", "lab/reserve"]).await?, "lab/reserve asia-9\n");
    assert_eq!(got(&["spot", "lab/reserve", "--wait", "1m"]).await?, "lab/reserve asia-9\n");

    let last = taken(&reserve).await?;
    let ended = world.run(&["spot", "lab/reserve"], key).await?;
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("a resource in pools default/spot, lab/reserve"), "{}", ended.stderr);
    let child = world.start(&["spot", "lab/reserve", "--wait", "1m"], key)?;
    waiting(&spot, 1).await?;
    assert_eq!(reserve.info().await?.counts.waiting, 0, "it waits in the first pool only");
    for lease in held {
        lease.free().await?;
    }
    let ended = end(child).await?;
    assert!(ended.stdout.starts_with("default/spot "), "{ended:?}");
    last.free().await?;
    is_all_free(&spot).await?;
    is_all_free(&reserve).await
}

#[tokio::test]
async fn leases_of_a_session_last_as_long_as_it_is_heard_of() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0", "eu-1"]).await?;
    let arguments = ["gpus", "--count", "2", "--session", "trainer-1", "--session-ttl", "2s"];
    let script = "echo $REDIS_ALLOCATOR_SESSION $REDIS_ALLOCATOR_TTL_MS; sleep 6; exit 7";
    let child = world.start(&arguments, script)?;
    eventually(SOON, async || {
        ensure!(gpus.info().await?.counts.leased == 2);
        Ok(())
    })
    .await?;
    let session = world.get(&["sessions", "gpus", "trainer-1"])?["items"][0].clone();
    assert_eq!((&session["state"], &session["leases"]), (&json!("Alive"), &json!(2)), "{session:#}");
    let lease = world.get(&["leases", "gpus", "eu-0"])?["items"][0].clone();
    assert_eq!((&lease["session"], &lease["expiresAt"]), (&session["id"], &Value::Null), "{lease:#}");
    // Long after the first two seconds and the slack, nobody else gets anything.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(gpus.malloc().await?.is_none());
    let ended = end(child).await?;
    let id = session["id"].as_str().context("an id")?;
    assert_eq!((ended.code, ended.stdout), (Some(7), format!("{id} 2000\n")), "{}", ended.stderr);
    is_all_free(&gpus).await?;
    assert_eq!(world.get(&["sessions", "gpus", id])?["items"][0]["state"], "Dead");

    // Nobody hears of one that was killed any more.
    let mut child = world.start(&arguments, "exec sleep 60")?;
    eventually(SOON, async || {
        ensure!(gpus.info().await?.counts.leased == 2);
        Ok(())
    })
    .await?;
    child.kill()?;
    child.wait()?;
    let heirs = gpus.malloc().wait(SOON).count(2).await?;
    assert_eq!(heirs.len(), 2);
    Ok(())
}

#[tokio::test]
async fn what_can_never_be_is_refused_with_its_reason_and_changes_nothing() -> Result<()> {
    let world = World::new().await?;
    let gpus = world.pool("gpus", &["eu-0", "eu-1"]).await?;
    let before = gpus.info().await?;
    for (arguments, code, words) in [
        (&["gpus", "--wait", "0s"][..], 2, "no time at all"),
        (&["gpus", "--wait", "8760h"], 2, "too long: allowed is 1ms to 24h"),
        (&["gpus", "--wait", "soon"], 2, "not a duration"),
        (&["gpus", "--selector", "zone"], 2, "label=value and label in"),
        (&["gpus", "--selector", "zone notin (eu)"], 2, "label=value and label in"),
        (&["gpus", "--selector", "model=h100"], 2, "model"),
        (&["gpus", "--selector", "model=h100", "--wait", "1m"], 2, "zone"),
        (&["gpus", "--count", "0"], 2, "1..=200"),
        (&["gpus", "--count", "201"], 2, "1..=200"),
        (&["gpus", "--count", "3"], 2, "it has 2 to grant"),
        (&["gpus", "--count", "3", "--wait", "1m"], 2, "it has 2 to grant"),
        (&["gpus", "--wait", "1m", "--priority", "101"], 2, "0..=100"),
        (&["gpus", "--priority", "3"], 2, "--wait"),
        (&["gpus", "--count", "2", "--bind", "me"], 2, "--bind"),
        (&["gpus", "--session", "", "--wait", "1m"], 2, "session name"),
        (&["gpus", "--session", "me", "--session-ttl", "100ms"], 2, "1 s to 24 h"),
        (&["No_Such"], 2, "is not valid"),
        (&["nope"], 1, "there is no pool default/nope"),
        (&["nope", "gpus", "--wait", "1m"], 1, "there is no pool default/nope"),
    ] {
        let ended = world.run(arguments, "echo ran").await?;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(words), "{arguments:?}: {}", ended.stderr);
    }
    assert_eq!(gpus.info().await?.counters, before.counters);
    // The longest that may be waited for is not refused.
    assert_eq!(world.run(&["gpus", "--wait", "24h"], "exit 7").await?.code, Some(7));
    is_all_free(&gpus).await
}
