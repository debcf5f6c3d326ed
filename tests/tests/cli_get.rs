//! `redis-allocator get`: who holds what, until when, what is kept back and why, as table, JSON and YAML.

mod program;

use std::{
    future::IntoFuture as _,
    io::{BufRead, BufReader},
    process::{Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{BindOptions, Cause, Client, Item, Lease, Mode, Ownership, Pool, PoolSettings};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

async fn server() -> Result<(Server, Client)> {
    // Before any lease is granted: a build takes longer than leases last.
    program::binary("redis-allocator")?;
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::builder(server.url()).owner("tester").connect().await?;
    Ok((server, client))
}

async fn pool(client: &Client, name: &str, resources: impl IntoIterator<Item = String>) -> Result<Pool> {
    let pool = client.pool(name)?;
    pool.configure(&PoolSettings::default(), &Ownership { manager: Some("files:/pools"), known: None }).await?;
    let items = resources.into_iter().map(|key| Ok(Item::new(key.parse()?))).collect::<Result<Vec<_>>>()?;
    pool.extend(items).await?;
    Ok(pool)
}

/// `default/gpus`: gpu-0 is leased under the name job-1, gpu-1 quarantined, gpu-2 free.
async fn gpus(client: &Client) -> Result<Lease> {
    let gpus = pool(client, "gpus", (0..3).map(|n| format!("gpu-{n}"))).await?;
    gpus.bind("job-1", "gpu-0", &BindOptions::default()).await?;
    gpus.quarantine("gpu-1", Some(Duration::from_mins(10)), "fan is loud", Cause::Manual).await?;
    gpus.malloc().bind("job-1").await?.context("gpu-0 should be free")
}

fn get(server: &Server, arguments: &[&str]) -> Result<Output> {
    Ok(program::redis_allocator()?.arg("get").args(arguments).args(["--redis-url", &server.url()]).output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a call that succeeded.
fn printed(server: &Server, arguments: &[&str]) -> Result<String> {
    let output = get(server, arguments)?;
    anyhow::ensure!(output.status.success(), "{arguments:?} failed: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// The only one that a call lists. What may be several is a list, however many there are.
fn only(server: &Server, arguments: &[&str]) -> Result<Value> {
    let mut listed: Value = serde_json::from_str(&printed(server, &[arguments, &["-o", "json"]].concat())?)?;
    let items = listed["items"].as_array_mut().with_context(|| format!("{arguments:?} is no list"))?;
    ensure!(items.len() == 1, "{arguments:?}: {items:?}");
    items.pop().context("it is there")
}

/// The cells of a table's line. Columns are three blanks apart.
fn cells(line: &str) -> Vec<&str> {
    line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

fn row<'a>(table: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let line = table.lines().find(|line| cells(line).contains(&name));
    Ok(cells(line.with_context(|| format!("no row {name} in:\n{table}"))?))
}

#[tokio::test]
async fn pools_show_how_much_is_where() -> Result<()> {
    let (server, client) = server().await?;
    let _lease = gpus(&client).await?;
    pool(&client, "lab/probes", ["p".to_owned()]).await?;

    let table = printed(&server, &["pools"])?;
    let titles = ["NAME", "TOTAL", "FREE", "LEASED", "QUARANTINED", "RESERVED", "WAITING"];
    assert_eq!(row(&table, "NAME")?[..7], titles);
    assert_eq!(row(&table, "gpus")?[..7], ["gpus", "3", "1", "1", "1", "0", "0"]);
    assert!(!table.contains("probes"), "another namespace is shown:\n{table}");
    assert!(table.lines().all(|line| line == line.trim_end()), "{table:?}");

    let table = printed(&server, &["pools", "-A", "-o", "wide"])?;
    assert_eq!(row(&table, "probes")?[..2], ["lab", "probes"]);
    assert_eq!(row(&table, "gpus")?.last(), Some(&"files:/pools"));
    assert_eq!(printed(&server, &["pools", "-n", "lab"])?.lines().count(), 2);
    assert!(printed(&server, &["pool", "lab/probes"])?.contains("probes"));
    Ok(())
}

#[tokio::test]
async fn resources_show_who_holds_them_and_why_they_are_held_back() -> Result<()> {
    let (server, client) = server().await?;
    let lease = gpus(&client).await?;

    let table = printed(&server, &["resources", "gpus"])?;
    let leased = row(&table, "gpu-0")?;
    assert_eq!(leased[..4], ["gpus", "gpu-0", "Leased", "tester"]);
    assert!(leased[5].starts_with("in 1m") || leased[5].starts_with("in 11") || leased[5] == "in 2m", "{leased:?}");
    let kept = row(&table, "gpu-1")?;
    assert_eq!(kept[2], "Quarantined");
    assert_eq!(kept.last(), Some(&"manual: fan is loud"));
    assert_eq!(row(&table, "gpu-2")?[2], "Free");

    let one: Value = serde_json::from_str(&printed(&server, &["resources", "gpus", "gpu-0", "-o", "json"])?)?;
    assert_eq!(one["lease"]["fencingToken"], lease.fencing_token());
    assert_eq!(one["lease"]["binding"], "job-1");
    let granted = one["lease"]["grantedAt"].as_str().context("no time")?;
    assert!(granted.starts_with("20") && granted.ends_with('Z'), "not RFC 3339: {granted}");

    let all: Value = serde_json::from_str(&printed(&server, &["resources", "gpus", "-o", "json"])?)?;
    assert_eq!(all["items"].as_array().context("no list")?.len(), 3);
    assert_eq!(all["items"][1]["marks"][0]["reason"], "fan is loud");
    let yaml = printed(&server, &["resources", "gpus", "gpu-1", "-o", "yaml"])?;
    assert!(yaml.contains("reason: fan is loud") && yaml.contains("state: Quarantined"), "{yaml}");
    Ok(())
}

#[tokio::test]
async fn leases_and_bindings_are_listed() -> Result<()> {
    let (server, client) = server().await?;
    let lease = gpus(&client).await?;
    let table = printed(&server, &["leases", "-o", "wide"])?;
    assert_eq!(table.lines().count(), 2, "{table}");
    assert_eq!(row(&table, "gpu-0")?[..4], ["gpus", "gpu-0", "tester", "job-1"]);
    assert!(table.contains(&lease.fencing_token().to_string()));

    let table = printed(&server, &["bindings", "gpus"])?;
    assert_eq!(row(&table, "job-1")?[..4], ["gpus", "job-1", "gpu-0", "Preferred"]);
    assert_eq!(printed(&server, &["binding", "gpus", "job-1"])?.lines().count(), 2);
    Ok(())
}

async fn wait_in_line(pool: &Pool, callers: u64) -> Result<()> {
    eventually(SOON, async || {
        ensure!(pool.info().await?.counts.waiting == callers);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn waiters_and_sessions_are_listed_with_what_they_are_about() -> Result<()> {
    let (server, client) = server().await?;
    let gpus = pool(&client, "gpus", ["gpu-0".to_owned()]).await?;
    pool(&client, "lab/other", ["o".to_owned()]).await?;
    let held = gpus.malloc().await?.context("gpu-0 should be free")?;
    let session = client.session("trainer-1").start().await?;
    session.join(&gpus).await?;

    let second = gpus.malloc().owner("second").bind("job-7").wait(SOON);
    let second = tokio::spawn(second.into_future());
    wait_in_line(&gpus, 1).await?;
    let first = gpus.malloc().owner("first").session(&session).wait(SOON).priority(7);
    let first = tokio::spawn(first.into_future());
    wait_in_line(&gpus, 2).await?;

    let table = printed(&server, &["waiters"])?;
    let titles = ["POOL", "AHEAD", "HOLDER", "PRIORITY", "COUNT", "SELECTOR", "SINCE", "STATE"];
    assert_eq!(row(&table, "POOL")?, titles);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(row(&table, "first")?[..6], ["gpus", "0", "first", "7", "1", "-"]);
    assert_eq!(row(&table, "second")?[..6], ["gpus", "1", "second", "0", "1", "-"]);
    assert_eq!(row(&table, "second")?.last(), Some(&"Waiting"));
    let wide = printed(&server, &["waiters", "-A", "-o", "wide"])?;
    assert!(row(&wide, "second")?.contains(&"job-7") && row(&wide, "first")?.contains(&session.id()), "{wide}");
    let one = only(&server, &["waiters", "gpus", "first"])?;
    assert_eq!((&one["owner"], &one["priority"], &one["diedAt"]), (&"first".into(), &7.into(), &Value::Null));
    let yaml = printed(&server, &["waiters", "gpus", "-o", "yaml"])?;
    assert!(yaml.contains("owner: second") && yaml.contains("binding: job-7"), "{yaml}");
    assert_eq!(row(&printed(&server, &["pools"])?, "gpus")?[6], "2");
    assert_eq!(text(&get(&server, &["waiters", "lab/other"])?.stderr), "no waiters found in pool lab/other\n");

    held.free().await?;
    let handed = first.await??;
    let table = printed(&server, &["sessions", "-o", "wide"])?;
    assert_eq!(row(&table, "trainer-1")?[..4], ["gpus", "trainer-1", "Alive", "1"]);
    assert!(row(&table, "trainer-1")?[4].starts_with("in "), "{table}");
    assert_eq!(row(&table, "trainer-1")?.last(), Some(&session.id()));
    let leases = printed(&server, &["leases", "gpus", "-o", "wide"])?;
    let row_of_lease = row(&leases, "gpu-0")?;
    assert_eq!(row_of_lease[5..7], ["with session", "Leased"], "{leases}");
    assert_eq!(row_of_lease.last(), Some(&session.id()));
    drop(handed);
    session.end().await?;
    second.await??.free().await?;
    let dead = only(&server, &["session", "gpus", "trainer-1"])?;
    assert_eq!((&dead["state"], &dead["leases"]), (&"Dead".into(), &0.into()), "{dead}");
    Ok(())
}

#[tokio::test]
async fn leases_of_a_shared_pool_are_listed_each_for_itself() -> Result<()> {
    let (server, client) = server().await?;
    let shared = client.pool("licences")?;
    let mode = Mode::Shared { max_holders: std::num::NonZeroU32::new(450) };
    shared.configure(&PoolSettings { mode, ..PoolSettings::default() }, &Ownership::default()).await?;
    shared.extend([Item::new("matlab".parse()?)]).await?;
    let mut leases = Vec::new();
    for n in 0..3 {
        leases.push(shared.malloc().owner(format!("user-{n}")).await?.context("there is room")?);
    }
    let table = printed(&server, &["leases", "licences", "-o", "wide"])?;
    assert_eq!(table.lines().count(), 4, "{table}");
    for (n, lease) in leases.iter().enumerate() {
        let row = row(&table, &format!("user-{n}"))?;
        assert_eq!(row[..3], ["licences", "matlab", &format!("user-{n}")]);
        assert!(row.contains(&"Leased") && row.contains(&lease.fencing_token().to_string().as_str()), "{row:?}");
    }
    assert_eq!(row(&printed(&server, &["resources", "licences"])?, "matlab")?[3], "3 holders");

    // More than a page or two of them, of every kind: all are listed, one resource after the other, in the order of their
    // grants.
    let session = client.session("trainer").start().await?;
    leases.push(shared.malloc().owner("kept").session(&session).await?.context("there is room")?);
    loop {
        let granted = shared.malloc().up_to(200).await?;
        if granted.is_empty() {
            break;
        }
        leases.extend(granted);
    }
    assert_eq!(leases.len(), 450);
    shared.extend([Item::new("ansys".parse()?)]).await?;
    let other = shared.malloc().await?.context("it is new")?;
    shared.shrink(["matlab"]).await?;
    let output = get(&server, &["leases", "licences", "-o", "json"])?;
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "");
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    let listed = listed["items"].as_array().context("no list")?;
    let held = |lease: &Value| (lease["resource"].as_str().map(str::to_owned), lease["fencingToken"].as_u64());
    let mut expected = vec![(Some("ansys".to_owned()), Some(other.fencing_token()))];
    let mut tokens: Vec<_> = leases.iter().map(Lease::fencing_token).collect();
    tokens.sort_unstable();
    expected.extend(tokens.iter().map(|token| (Some("matlab".to_owned()), Some(*token))));
    assert_eq!(listed.iter().map(held).collect::<Vec<_>>(), expected);
    assert!(listed.iter().all(|lease| lease["draining"] == (lease["resource"] == "matlab")));
    let kept = listed.iter().find(|lease| lease["owner"] == "kept").context("it is not listed")?;
    assert_eq!((&kept["session"], &kept["expiresAt"]), (&session.id().into(), &Value::Null));

    // Those on one resource, page by page, too.
    let table = printed(&server, &["leases", "licences", "matlab", "-o", "wide"])?;
    let found: Vec<u64> = table.lines().skip(1).map(|line| Ok(cells(line)[7].parse()?)).collect::<Result<_>>()?;
    assert_eq!(found, tokens);
    let one = only(&server, &["leases", "licences", "ansys"])?;
    assert_eq!(held(&one), expected[0]);
    Ok(session.end().await?)
}

#[tokio::test]
async fn an_offer_is_told_from_a_lease_and_a_dead_waiter_from_a_live_one() -> Result<()> {
    let (server, client) = server().await?;
    let gpus = pool(&client, "gpus", ["gpu-0".to_owned()]).await?;
    let held = gpus.malloc().await?.context("gpu-0 should be free")?;
    // It died in line, a moment ago.
    let mut waiting = program::redis_allocator()?;
    waiting.args(["malloc", "gpus", "--wait", "1h", "--owner", "ghost", "--redis-url", &server.url(), "--", "true"]);
    let mut waiting = waiting.spawn()?;
    wait_in_line(&gpus, 1).await?;
    waiting.kill()?;
    waiting.wait()?;
    held.free().await?;
    let lease = only(&server, &["leases", "gpus", "gpu-0"])?;
    assert_eq!((&lease["owner"], &lease["offered"]), (&"ghost".into(), &true.into()), "{lease}");
    assert_eq!(row(&printed(&server, &["leases", "gpus"])?, "gpu-0")?.last(), Some(&"Offered"));
    assert_eq!(row(&printed(&server, &["resources", "gpus"])?, "gpu-0")?[2], "Offered");
    assert_eq!(row(&printed(&server, &["waiters", "gpus"])?, "ghost")?.last(), Some(&"Offered"));
    eventually(SOON, async || {
        let table = printed(&server, &["waiters", "gpus"])?;
        ensure!(row(&table, "ghost")?.last() == Some(&"Dead"), "{table}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_empty_server_is_no_error_and_a_missing_name_is() -> Result<()> {
    let (server, client) = server().await?;
    for what in ["pools", "resources", "leases", "bindings", "sources", "waiters", "sessions"] {
        let output = get(&server, &[what])?;
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
        assert_eq!(text(&output.stderr), format!("no {what} found in namespace default\n"));
        let none: Value = serde_json::from_str(&printed(&server, &[what, "-A", "-o", "json"])?)?;
        assert_eq!(none["items"], serde_json::json!([]));
    }
    let _lease = gpus(&client).await?;
    for (arguments, message) in [
        (&["pools", "nope"][..], "there is no pool default/nope"),
        (&["resources", "nope"], "there is no pool default/nope"),
        (&["resources", "gpus", "gpu-9"], r#"no resource "gpu-9" in pool default/gpus"#),
        (&["leases", "gpus", "gpu-2"], r#"no lease "gpu-2" in pool default/gpus"#),
        (&["bindings", "gpus", "nobody"], r#"no binding "nobody" in pool default/gpus"#),
        (&["waiters", "nope"], "there is no pool default/nope"),
        (&["waiters", "gpus", "nobody"], r#"no waiter "nobody" in pool default/gpus"#),
        (&["sessions", "nope"], "there is no pool default/nope"),
        (&["sessions", "gpus", "nobody"], r#"no session "nobody" in pool default/gpus"#),
        (&["pools", "No_Such"], "is not valid"),
    ] {
        let output = get(&server, arguments)?;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("error: ") && stderr.contains(message), "{arguments:?}: {stderr}");
    }
    Ok(())
}

#[tokio::test]
async fn thousands_are_listed_and_a_reader_may_go_away() -> Result<()> {
    let (server, client) = server().await?;
    let many = pool(&client, "many", (0..5000).map(|n| format!("thing-{n:04}"))).await?;
    let table = printed(&server, &["resources", "many"])?;
    assert_eq!(table.lines().count(), 5001);
    let names: Vec<_> = table.lines().skip(1).map(|line| cells(line)[1]).collect();
    assert!(names.is_sorted() && names[0] == "thing-0000" && names[4999] == "thing-4999");

    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.extend(many.malloc().up_to(200).await?);
    }
    let mut held: Vec<_> = leases.iter().map(|lease| lease.key().to_string()).collect();
    held.sort();
    let table = printed(&server, &["leases", "many"])?;
    assert_eq!(table.lines().skip(1).map(|line| cells(line)[1]).collect::<Vec<_>>(), held);

    for format in ["table", "json", "yaml"] {
        let mut child = program::redis_allocator()?
            .args(["get", "resources", "many", "-o", format, "--redis-url", &server.url()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.take().context("no output")?).read_line(&mut line)?;
        let output = child.wait_with_output()?;
        assert!(output.status.success(), "{format}: {}", output.status);
        assert_eq!(text(&output.stderr), "", "{format}");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_prints_what_changes_and_what_is_gone() -> Result<()> {
    let (server, client) = server().await?;
    let gpus = pool(&client, "gpus", ["gpu-0".to_owned()]).await?;
    let mut child = program::redis_allocator()?
        .args(["get", "resources", "gpus", "--watch", "--redis-url", &server.url()])
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let (send, seen) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
    let next = || seen.recv_timeout(SOON).context("nothing more was printed");

    assert!(next()?.starts_with("POOL"));
    assert_eq!(cells(&next()?)[2], "Free");
    let lease = gpus.malloc().await?.context("gpu-0 should be free")?;
    let line = next()?;
    assert_eq!(cells(&line)[1..4], ["gpu-0", "Leased", "tester"]);
    lease.free().await?;
    assert_eq!(cells(&next()?)[2], "Free");
    gpus.clear().await?;
    assert!(next()?.contains("(deleted)"));
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[tokio::test]
async fn a_watch_of_sessions_tells_of_no_heartbeat() -> Result<()> {
    let (server, client) = server().await?;
    let gpus = pool(&client, "gpus", ["gpu-0".to_owned()]).await?;
    let session = client.session("trainer-1").ttl(Duration::from_secs(2)).start().await?;
    session.join(&gpus).await?;
    let until = async || -> Result<_> { Ok(gpus.sessions().await?.first().context("it is there")?.until) };
    let first = until().await?;
    let mut child = program::redis_allocator()?
        .args(["get", "sessions", "gpus", "--watch", "--redis-url", &server.url()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut next = || lines.next().context("nothing more was printed");
    assert!(next()??.starts_with("POOL"));
    assert_eq!(cells(&next()??)[1..4], ["trainer-1", "Alive", "0"]);
    // Several of the watch's looks see it alive for longer than the one before did.
    eventually(SOON, async || {
        ensure!(until().await?.as_millis() > first.as_millis() + 5000);
        Ok(())
    })
    .await?;
    let _lease = gpus.malloc().session(&session).await?.context("gpu-0 should be free")?;
    assert_eq!(cells(&next()??)[1..4], ["trainer-1", "Alive", "1"]);
    child.kill()?;
    child.wait()?;
    Ok(session.end().await?)
}

#[tokio::test]
async fn the_server_may_be_named_by_the_environment() -> Result<()> {
    let (server, client) = server().await?;
    let _lease = gpus(&client).await?;
    let output = program::redis_allocator()?.args(["get", "pools"]).env("REDIS_URL", server.url()).output()?;
    assert!(text(&output.stdout).contains("gpus"), "{}", text(&output.stderr));

    let output = program::redis_allocator()?.args(["get", "pools"]).output()?;
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    for way in ["--redis-url", "REDIS_URL", "--state-dir"] {
        assert!(stderr.contains(way), "{stderr}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_dead_agent_said_is_not_vouched_for() -> Result<()> {
    let (server, client) = server().await?;
    pool(&client, "gpus", ["gpu-0".to_owned()]).await?;
    let state = tempfile::tempdir()?;
    let ready = serde_json::json!({
        "type": "Ready", "status": "True", "reason": "Served", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = serde_json::json!({
        "updatedAt": "2026-01-01T00:00:00Z", "manager": "files:/pools", "leader": true, "bindings": [], "files": [],
        "pools": [{ "namespace": "default", "name": "gpus", "status": { "conditions": [ready] } }],
    });
    std::fs::write(state.path().join("status.json"), status.to_string())?;
    let get = |arguments: &[&str]| -> Result<String> {
        let mut get = program::redis_allocator()?;
        get.args(["get", "pools", "--redis-url", &server.url()]).args(arguments);
        Ok(text(&get.env("REDIS_ALLOCATOR_STATE_DIR", state.path()).output()?.stdout))
    };
    assert_eq!(row(&get(&[])?, "gpus")?[7..9], ["Unknown", "AgentNotRunning"]);
    let json: Value = serde_json::from_str(&get(&["gpus", "-o", "json"])?)?;
    assert_eq!(json["conditions"][0]["status"], "Unknown");
    assert_eq!(json["conditions"][0]["reason"], "AgentNotRunning");
    Ok(())
}

#[tokio::test]
async fn a_pool_that_cannot_be_read_does_not_hide_the_others() -> Result<()> {
    let (server, client) = server().await?;
    for name in ["gpus", "broken", "hosts"] {
        pool(&client, name, ["r".to_owned()]).await?;
    }
    let keys: Vec<String> = server.cmd(&["KEYS", "*{default/broken}*"]).await?;
    for key in keys {
        server.cmd::<()>(&["SET", &key, "of another type"]).await?;
    }
    let output = get(&server, &["pools"])?;
    let (table, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(table.contains("gpus") && table.contains("hosts") && !table.contains("broken"), "{table}");
    assert!(stderr.contains("default/broken"), "{stderr}");
    Ok(())
}
