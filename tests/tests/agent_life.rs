//! The agent as a process: started, stopped, killed, doubled; with a server of its own.

mod agent;
mod program;

use std::{fs, time::Duration};

use agent::{SOON, Site, pool_of};
use anyhow::{Context as _, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::Client;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

#[tokio::test]
async fn one_of_two_agents_leads_and_the_other_takes_over() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    let mut first = site.agent(&["--redis-url", &server.url()])?;
    first.ready_and("leading").await?;
    let mut second = site.another_agent(&["--redis-url", &server.url()])?;
    second.ready_and("following").await?;
    assert_eq!((first.metric("redis_allocator_leader")?, second.metric("redis_allocator_leader")?), (1, 0));

    // Killed: the lead ends with its lease, after 10 s and the clock slack.
    let killed = std::time::Instant::now();
    first.kill()?;
    second.ready_and("leading").await?;
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
    site.write("a.yaml", &pool_of("a", 2))?;
    let a = client.pool("a")?;
    eventually(SOON, async || {
        ensure!(a.len().await? == 2);
        Ok(())
    })
    .await?;

    // Stopped cleanly: the next one leads at once.
    let mut third = site.agent(&["--redis-url", &server.url()])?;
    third.ready_and("following").await?;
    let stopped = std::time::Instant::now();
    assert!(second.terminate().await?.success());
    third.ready_and("leading").await?;
    // Sooner than the lead would have ended by itself: a third of its time had passed at most, and the slack follows.
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_leader_that_slept_too_long_stops_before_it_writes() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    let mut first = site.agent(&["--redis-url", &server.url()])?;
    first.ready().await?;
    let mut second = site.another_agent(&["--redis-url", &server.url()])?;
    second.ready_and("following").await?;
    first.signal(Signal::STOP)?;
    second.ready_and("leading").await?;
    first.signal(Signal::CONT)?;
    first.logged("the lead is lost").await?;
    first.ready_and("following").await?;
    second.ready_and("leading").await?;
    Ok(())
}

#[tokio::test]
async fn a_second_agent_on_a_state_directory_is_refused() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    let mut first = site.agent(&["--redis-url", &server.url()])?;
    first.ready().await?;
    let mut second = site.agent(&["--redis-url", &server.url()])?;
    assert_eq!(second.ended().await?.code(), Some(1));
    let pid = first.file()?["pid"].to_string();
    assert!(
        first.log().contains(&format!("another agent (pid {pid}) is running on the state directory")),
        "{}",
        first.log()
    );
    first.ready().await?;
    Ok(())
}

#[tokio::test]
async fn it_stops_within_seconds_and_leaves_nothing_that_misleads() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = site.agent(&["--redis-url", &server.url()])?;
        agent.ready().await?;
        let stopped = std::time::Instant::now();
        agent.signal(signal)?;
        assert_eq!(agent.ended().await?.code(), Some(0));
        // A moment is usual. What an agent does not end by itself is given ten seconds.
        assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
        assert!(!site.state().join("agent.json").exists());
    }
    // While Redis does not answer, too.
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    server.pause()?;
    agent.not_ready_because("Redis").await?;
    let stopped = std::time::Instant::now();
    agent.signal(Signal::TERM)?;
    assert_eq!(agent.ended().await?.code(), Some(0));
    assert!(stopped.elapsed() < Duration::from_secs(20), "{:?}", stopped.elapsed());
    Ok(())
}

fn lives(pid: i32) -> bool {
    // A zombie waits for its parent alone, and does nothing any more.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok()) && !state.contains(") Z ")
}

async fn dies(pid: i32) -> Result<()> {
    eventually(SOON, async || {
        ensure!(!lives(pid), "process {pid} still runs");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_embedded_server_lives_and_dies_with_its_agent() -> Result<()> {
    for flavor in [Flavor::Redis, Flavor::Valkey] {
        let binary = flavor.binary()?;
        let site = Site::new()?;
        site.write("a.yaml", &pool_of("a", 2))?;
        for end in [Signal::KILL, Signal::TERM] {
            let mut agent = site.embedded_agent(&binary)?;
            agent.ready().await?;
            let file = agent.file()?;
            let url = file["redisUrl"].as_str().context("no URL")?.to_owned();
            let server = i32::try_from(file["serverPid"].as_i64().context("no pid")?)?;
            let client = Client::connect(&url).await?;
            assert_eq!(client.pool("a")?.len().await?, 2);
            assert_eq!(client.server_info().await?.maxmemory_policy.as_deref(), Some("noeviction"));
            assert!(lives(server));
            drop(client);
            agent.signal(end)?;
            agent.ended().await?;
            dies(server).await?;
            let socket = url.strip_prefix("unix://").context("no socket")?.to_owned();
            eventually(SOON, async || {
                ensure!(!fs::exists(&socket)?, "{socket} is left behind");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_embedded_pool_is_held_back_after_a_restart_only_if_it_was_leased() -> Result<()> {
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    site.write("b.yaml", &pool_of("b", 1))?;
    let mut agent = site.embedded_agent(&Flavor::Redis.binary()?)?;
    agent.ready().await?;
    let client = Client::connect(agent.file()?["redisUrl"].as_str().context("no URL")?).await?;
    client.pool("a")?.malloc().await?.context("free")?.free().await?;
    client.pool("b")?.malloc().await?.context("free")?.detach();
    drop(client);
    assert_eq!(agent.terminate().await?.code(), Some(0));

    let mut agent = site.embedded_agent(&Flavor::Redis.binary()?)?;
    agent.ready().await?;
    let client = Client::connect(agent.file()?["redisUrl"].as_str().context("no URL")?).await?;
    assert!(client.pool("a")?.malloc().await?.is_some(), "nobody held it");
    assert!(client.pool("b")?.malloc().await?.is_none(), "its holder may still use it");
    assert_eq!(client.pool("b")?.end_recovery().await?, 1);
    assert!(client.pool("b")?.malloc().await?.is_some());
    Ok(())
}

#[tokio::test]
async fn an_embedded_server_that_crashed_is_started_again_and_refilled() -> Result<()> {
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 2))?;
    let mut agent = site.embedded_agent(&Flavor::Redis.binary()?)?;
    agent.ready().await?;
    let pid = agent.file()?["serverPid"].as_i64().context("no pid")?;
    kill_process(Pid::from_raw(i32::try_from(pid)?).context("no process")?, Signal::KILL)?;
    let url = agent
        .eventually(SOON, |agent| {
            let file = agent.file()?;
            ensure!(file["serverPid"].as_i64() != Some(pid), "agent.json still names the old server");
            Ok(file["redisUrl"].as_str().context("no URL")?.to_owned())
        })
        .await?;
    let client = Client::connect(&url).await?;
    let a = client.pool("a")?;
    eventually(Duration::from_secs(50), async || {
        ensure!(a.len().await? == 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_state_directory_of_a_long_name_is_no_obstacle() -> Result<()> {
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    let state = site.state().join("x".repeat(60)).join("y".repeat(60));
    let mut agent = site.embedded_agent_at(&Flavor::Redis.binary()?, &state)?;
    agent.ready().await?;
    let url = agent.file()?["redisUrl"].as_str().context("no URL")?.to_owned();
    assert!(url.len() < 108, "{url}");
    let socket = std::path::PathBuf::from(url.strip_prefix("unix://").context("no socket")?);
    agent.signal(Signal::KILL)?;
    agent.ended().await?;
    let dir = socket.parent().context("no directory")?;
    eventually(SOON, async || {
        ensure!(!dir.exists(), "{} is left behind", dir.display());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_url_with_a_password_is_told_to_nobody() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    server.config_set("requirepass", "s3cret-word").await?;
    let site = Site::new()?;
    site.write("a.yaml", &pool_of("a", 1))?;
    let url = server.url().replace("redis://", "redis://:s3cret-word@");
    let mut agent = site.agent(&["--redis-url", &url, "--log-level", "trace"])?;
    agent.ready().await?;
    server.kill();
    agent.not_ready_because("Redis").await?;
    let (metrics, ready) = (agent.page("/metrics")?.1, agent.page("/readyz")?.1);
    for said in [agent.log(), agent.file()?.to_string(), metrics, ready] {
        assert!(!said.contains("s3cret-word"), "{said}");
    }
    Ok(())
}
