//! `redis-allocator doctor`: each trouble is provoked on a real server, found, and told with its mend.

mod agent;
mod program;

use std::{
    fs,
    future::IntoFuture as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent::{Site, pool_of};
use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, cluster::Cluster, eventually, replica::Replica};
use redis_allocator::{Client, Item, Known, Longest, Ownership, Pool, PoolSettings, test_clock::TestClock};
use serde_json::Value;

/// Exit code and findings.
fn examine(url: &str, arguments: &[&str]) -> Result<(i32, Vec<Value>)> {
    let command = ["doctor", "-o", "json", "--redis-url", url];
    let output = program::redis_allocator()?.args(command).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text)
        .with_context(|| format!("no JSON: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    let findings = report["findings"].as_array().cloned().context("no findings")?;
    for finding in &findings {
        let needs_mend = finding["level"] == "error" || finding["level"] == "warning";
        ensure!(finding["mend"].is_string() == needs_mend, "{finding}");
    }
    Ok((output.status.code().context("the doctor was killed")?, findings))
}

/// The level of the only finding of this check about this subject, if it is given; and its words.
fn found<'a>(findings: &'a [Value], check: &str, subject: Option<&str>) -> Result<(&'a str, &'a str)> {
    let is_it = |it: &&Value| it["check"] == check && subject.is_none_or(|subject| it["subject"] == subject);
    let all: Vec<_> = findings.iter().filter(is_it).collect();
    ensure!(all.len() == 1, "{check} of {subject:?} in {findings:#?}");
    Ok((all[0]["level"].as_str().unwrap_or_default(), all[0]["found"].as_str().unwrap_or_default()))
}

async fn pool(client: &Client, name: &str, resources: usize) -> Result<Pool> {
    let pool = client.pool(name)?;
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    let items = (0..resources).map(|index| Ok(Item::new(format!("r{index}").parse()?))).collect::<Result<Vec<_>>>()?;
    pool.extend(items).await?;
    Ok(pool)
}

#[tokio::test]
async fn a_server_without_persistence_is_warned_of_and_nothing_else() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let client = Client::connect(&server.url()).await?;
        let gpus = pool(&client, "lab/gpus", 3).await?;
        let lease = gpus.malloc().await?.context("free")?;
        let keys: Vec<String> = server.cmd(&["KEYS", "*"]).await?;
        let mut before = Vec::new();
        for key in &keys {
            before.push(server.cmd::<Vec<u8>>(&["DUMP", key]).await?);
        }
        let (code, findings) = examine(&server.url(), &[])?;
        assert_eq!(code, 0, "{findings:#?}");
        let (level, words) = found(&findings, "persistence", None)?;
        assert!(level == "warning" && words.starts_with("nothing is kept on disk"), "{words}");
        let bad: Vec<_> = findings.iter().filter(|it| it["level"] != "ok" && it["check"] != "persistence").collect();
        assert!(bad.is_empty(), "{bad:#?}");
        let word = if flavor == Flavor::Redis { "redis 7." } else { "valkey " };
        assert!(found(&findings, "version", None)?.1.starts_with(word), "{findings:#?}");
        let words = found(&findings, "pool", Some("lab/gpus"))?.1;
        assert_eq!(words, "every invariant holds; resources: 3, leased: 1");
        for (key, dump) in keys.iter().zip(before) {
            assert_eq!(server.cmd::<Vec<u8>>(&["DUMP", key]).await?, dump, "{key} was changed");
        }
        lease.free().await?;
    }
    Ok(())
}

#[tokio::test]
async fn settings_that_lose_leases_are_found() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        for (name, value, check, level, words) in [
            ("maxmemory-policy", "allkeys-lru", "eviction", "error", "maxmemory-policy allkeys-lru"),
            ("maxmemory-policy", "noeviction", "eviction", "ok", "noeviction"),
            ("save", "3600 1", "persistence", "warning", "only snapshots (save 3600 1)"),
            ("appendonly", "yes", "persistence", "ok", "appendonly yes, appendfsync everysec"),
            ("appendfsync", "no", "persistence", "warning", "appendonly yes, appendfsync no"),
            ("min-replicas-to-write", "1", "replication", "error", "min-replicas-to-write is 1 and 0 keep up"),
            ("min-replicas-to-write", "0", "replication", "ok", "no replica"),
            ("maxmemory", "100kb", "memory", "error", ""),
        ] {
            server.config_set(name, value).await?;
            let (code, findings) = examine(&server.url(), &[])?;
            let (is, said) = found(&findings, check, None)?;
            assert!(is == level && said.starts_with(words), "{name} {value}: {is}: {said}");
            assert_eq!(code, i32::from(level == "error"), "{name} {value}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn replicas_are_looked_at_and_refused_for_writing() -> Result<()> {
    for flavor in Flavor::ALL {
        let master = Server::start(flavor).await?;
        let replica = Replica::of(&master).await?;
        replica.server().config_set("maxmemory-policy", "allkeys-lru").await?;
        let (code, findings) = examine(&master.url(), &[])?;
        let (at_master, at_replica) = (master.address(), replica.server().address());
        let (level, words) = found(&findings, "replication", Some(&at_master))?;
        assert!(level == "warning" && words.starts_with("1 replica, min-replicas-to-write 0"), "{words}");
        let (level, words) = found(&findings, "replication", Some(&at_replica))?;
        assert_eq!((level, words), ("ok", format!("a replica of {at_master}, connected to it").as_str()));
        // Once it is the master, it evicts.
        assert_eq!((code, found(&findings, "eviction", Some(&at_replica))?.0), (1, "error"));
        assert_eq!(found(&findings, "eviction", Some(&at_master))?.0, "ok");
        assert_eq!(found(&findings, "clocks", None)?.0, "ok");

        let (code, findings) = examine(&replica.server().url(), &[])?;
        let (level, words) = found(&findings, "replication", None)?;
        assert!(code == 1 && level == "error" && words.starts_with("a read-only replica of 127.0.0.1:"), "{words}");
    }
    Ok(())
}

/// The users that operations.md proposes.
async fn make_users(server: &Server) -> Result<()> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md"))?;
    let block = page.split("```acl\n").nth(1).and_then(|rest| rest.split("```").next()).context("no users")?;
    for user in block.lines() {
        let rules: Vec<&str> = user.split_whitespace().skip(1).collect();
        server.cmd::<()>(&[&["ACL", "SETUSER"], &rules[..]].concat()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_user_may_not_see_cannot_be_told_and_what_it_may_not_do_is_found() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        make_users(&server).await?;
        let client = Client::connect(&server.url()).await?;
        pool(&client, "default/gpus", 1).await?;
        let login = |user: &str, password: &str| format!("redis://{user}:{password}@{}", server.address());

        let (code, findings) = examine(&login("agent", "agent-secret"), &[])?;
        assert_eq!((code, found(&findings, "permissions", None)?.0), (0, "ok"), "{findings:#?}");
        let (level, words) = found(&findings, "persistence", None)?;
        assert!(level == "unknown" && words.contains("can't tell, because save can't be read"), "{words}");
        assert_eq!(found(&findings, "pool", None)?.0, "ok");

        let worker = login("gpu-worker", "worker-secret");
        let (code, findings) = examine(&worker, &[])?;
        let (level, words) = found(&findings, "pools", None)?;
        assert!(code == 0 && level == "unknown" && words.contains("name the pools"), "{words}");
        let (code, findings) = examine(&worker, &["gpus"])?;
        let (level, words) = found(&findings, "permissions", None)?;
        assert!(code == 0 && level == "warning" && words.contains("UNLINK ra:{default/gpus}:meta"), "{words}");
        assert_eq!(found(&findings, "pool", Some("default/gpus"))?.0, "ok");
        let (code, findings) = examine(&worker, &["lab/other"])?;
        let (level, words) = found(&findings, "permissions", None)?;
        assert!(code == 1 && level == "error" && words.contains("can't run scripts on pool lab/other"), "{words}");

        // One that may use no channel can lease, and is neither woken nor wakes.
        server.cmd::<()>(&["ACL", "SETUSER", "agent", "resetchannels", "-subscribe"]).await?;
        let (code, findings) = examine(&login("agent", "agent-secret"), &[])?;
        let (level, words) = found(&findings, "waking", None)?;
        assert!(code == 0 && level == "warning", "{words}");
        assert!(words.contains("denied PUBLISH ra:wake:0, SUBSCRIBE ra:wake:0; they look once a second"), "{words}");
        let mend = findings.iter().find(|it| it["check"] == "waking").context("found")?["mend"].to_string();
        assert!(mend.contains("+publish +subscribe +ping &ra:wake:*"), "{mend}");

        let half = "half on >secret resetkeys ~ra:* -@all +@hash +@sortedset -zadd +time +evalsha +script|load";
        server.cmd::<()>(&[&["ACL", "SETUSER"][..], &half.split(' ').collect::<Vec<_>>()].concat()).await?;
        let (code, findings) = examine(&login("half", "secret"), &["gpus"])?;
        let (level, words) = found(&findings, "permissions", None)?;
        assert_eq!((code, level), (1, "error"));
        assert!(words.ends_with("denied ZADD ra:{default/gpus}:meta"), "{words}");
        for check in ["version", "eviction", "memory", "persistence", "replication"] {
            let (level, words) = found(&findings, check, None)?;
            assert!(level == "unknown" && words.contains("NOPERM"), "{check}: {words}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn broken_pools_are_found() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let client = Client::connect(&server.url()).await?;
        let at = |since_epoch| Client::builder(server.url()).test_clock(TestClock::at(since_epoch)).connect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;

        pool(&client, "broken", 3).await?;
        server.cmd::<()>(&["ZREM", "ra:{default/broken}:free", "r1", "r2"]).await?;
        pool(&client, "newer", 1).await?;
        server.cmd::<()>(&["HSET", "ra:{default/newer}:meta", "schema", "99"]).await?;
        pool(&client, "overdue", 1).await?;
        let late = at(now.saturating_sub(Duration::from_mins(10))).await?;
        late.pool("overdue")?.malloc_key(Duration::from_secs(30)).await?.context("free")?;
        pool(&client, "ahead", 1).await?;
        let early = at(now + Duration::from_hours(3)).await?;
        early.pool("ahead")?.malloc_key(Duration::from_secs(30)).await?.context("free")?;
        let lost = pool(&client, "lost", 1).await?;
        let known =
            Known { incarnation: lost.info().await?.incarnation, longest: Longest::For(Duration::from_hours(1)) };
        server
            .cmd::<()>(&["DEL", "ra:{default/lost}:meta", "ra:{default/lost}:items", "ra:{default/lost}:free"])
            .await?;
        let ownership = Ownership { manager: Some("files:/pools"), known: Some(&known) };
        lost.configure(&PoolSettings::default(), &ownership).await?;

        let (code, findings) = examine(&server.url(), &[])?;
        assert_eq!(code, 1);
        let of = |check, pool: &str| found(&findings, check, Some(pool));
        assert_eq!(of("invariant", "default/broken")?, ("error", "in-no-place: 2, the first is r1"));
        let (level, words) = of("schema", "default/newer")?;
        assert!(level == "error" && words.contains("layout version 99"), "{words}");
        let (level, words) = of("collection", "default/overdue")?;
        assert!(level == "warning" && words.contains(": 1, r0 for 5"), "{words}");
        let (level, words) = of("leases", "default/ahead")?;
        assert!(level == "error" && words.contains(": 1, r0 for 108"), "{words}");
        assert_eq!(of("tokens", "default/ahead")?.0, "warning");
        let (level, words) = of("recovery", "default/lost")?;
        assert!(level == "warning" && words.contains("held back for 3"), "{words}");
        let (level, words) = found(&findings, "agents", None)?;
        assert!(level == "warning" && words.contains("files:/pools, and 0 agents lead"), "{words}");

        // Named ones only, and mended.
        client.pool("broken")?.repair().await?;
        let (code, findings) = examine(&server.url(), &["broken"])?;
        assert_eq!((code, found(&findings, "pool", None)?.0), (0, "ok"));
        let (code, findings) = examine(&server.url(), &["-n", "lab", "nope"])?;
        assert_eq!((code, found(&findings, "pool", Some("lab/nope"))?.0), (0, "warning"));
    }
    Ok(())
}

#[tokio::test]
async fn the_dead_that_nobody_buries_are_found() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let client = Client::connect(&server.url()).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let long_ago = TestClock::at(now.saturating_sub(Duration::from_mins(10)));
        let late = Client::builder(server.url()).owner("ghost").test_clock(long_ago).connect().await?;

        let line = pool(&client, "line", 1).await?;
        let lease = line.malloc().ttl(Duration::from_hours(1)).await?.context("free")?;
        let waiter = tokio::spawn(late.pool("line")?.malloc().wait(Duration::from_hours(1)).into_future());
        eventually(Duration::from_secs(30), async || {
            ensure!(line.info().await?.counts.waiting == 1, "nobody waits");
            Ok(())
        })
        .await?;
        let (code, findings) = examine(&server.url(), &[])?;
        let (level, words) = found(&findings, "waiters", Some("default/line"))?;
        assert!(code == 0 && level == "warning", "{words}");
        assert!(words.starts_with("dead callers among the first 200 in line: 1, "), "{words}");
        assert!(words.contains(" of ghost for 59"), "{words}");
        waiter.abort();
        lease.free().await?;

        pool(&client, "kept", 1).await?;
        let session = late.session("ghost").start().await?;
        session.join(&late.pool("kept")?).await?;
        let (_, findings) = examine(&server.url(), &["kept"])?;
        assert_eq!(found(&findings, "pool", Some("default/kept"))?.0, "ok", "without leases it is in nobody's way");
        let lease = late.pool("kept")?.malloc().session(&session).await?.context("free")?;
        let (code, findings) = examine(&server.url(), &["kept"])?;
        let (level, words) = found(&findings, "sessions", Some("default/kept"))?;
        assert!(code == 0 && level == "warning", "{words}");
        assert!(words.starts_with("dead sessions whose leases have not ended: 1, with 1 leases, ghost#"), "{words}");
        lease.free().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_that_leads_is_seen() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let (code, findings) = examine(&server.url(), &[])?;
    assert_eq!((code, found(&findings, "agents", None)?.0), (0, "ok"), "{findings:#?}");
    agent.terminate().await?;
    let (code, findings) = examine(&server.url(), &[])?;
    assert_eq!((code, found(&findings, "agents", None)?.0), (0, "warning"), "{findings:#?}");
    Ok(())
}

#[tokio::test]
async fn every_node_of_a_cluster_is_looked_at() -> Result<()> {
    for flavor in Flavor::ALL {
        let cluster = Cluster::start(flavor).await?;
        let client = Client::connect(&cluster.nodes()[0].server().url()).await?;
        for name in ["a", "b", "c", "d"] {
            pool(&client, name, 1).await?;
        }
        let second = cluster.nodes()[1].server();
        second.config_set("maxmemory-policy", "allkeys-random").await?;
        let (code, findings) = examine(&cluster.nodes()[0].server().url(), &[])?;
        assert_eq!(code, 1, "{findings:#?}");
        for node in cluster.nodes() {
            let address = node.server().address();
            let expected = if address == second.address() { "error" } else { "ok" };
            assert_eq!(found(&findings, "eviction", Some(&address))?.0, expected, "{address}");
            assert_eq!(found(&findings, "clock", Some(&address))?.0, "ok");
        }
        assert_eq!(found(&findings, "clocks", None)?.0, "ok");
        assert_eq!(findings.iter().filter(|it| it["check"] == "pool" && it["level"] == "ok").count(), 4);
    }
    Ok(())
}

#[test]
fn a_server_that_is_not_there_is_an_error_in_words() -> Result<()> {
    let output = program::redis_allocator()?.args(["doctor", "--redis-url", "redis://127.0.0.1:1"]).output()?;
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.starts_with("error: the Redis server is unavailable"), "{words}");
    Ok(())
}
