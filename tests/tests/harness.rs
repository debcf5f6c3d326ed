//! The harness does what it says: each control of `e2e` against real servers.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Proxy, Server, cluster::Cluster, eventually, proxy::Fate, replica::Replica, sentinel::Sentinels};
use redis::aio::MultiplexedConnection;

/// Long enough for anything that happens at all, short enough to wait for what must not happen.
const SOON: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(150);

/// Set in the copy of this test binary that [`servers_die_with_a_killed_test_process`] kills.
const VICTIM: &str = "E2E_HARNESS_VICTIM";

/// A client that waits longer for its answers than any fault lasts here.
async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let config =
        redis::AsyncConnectionConfig::new().set_connection_timeout(Some(SOON)).set_response_timeout(Some(SOON));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
}

async fn incr(connection: &mut MultiplexedConnection, key: &str) -> redis::RedisResult<i64> {
    redis::cmd("INCR").arg(key).query_async(connection).await
}

async fn get(server: &Server, key: &str) -> Result<Option<i64>> {
    server.cmd(&["GET", key]).await
}

/// Waits until the server has executed what was sent to it.
async fn becomes(server: &Server, key: &str, value: i64) -> Result<()> {
    eventually(SOON, async || {
        let found = get(server, key).await?;
        ensure!(found == Some(value), "{key} is {found:?}");
        Ok(())
    })
    .await
}

/// Whether a process exists and is no zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn each_flavor_is_the_server_it_says_and_evicts_nothing() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::builder(flavor).unix_socket().start().await?;
        // Valkey goes by the Redis version that it is compatible with there.
        let version = server.info("server", "redis_version").await?;
        let major: u32 = version.split('.').next().unwrap_or_default().parse()?;
        assert!(major >= 7, "{server} is version {version}");
        if flavor == Flavor::Valkey {
            assert_eq!(server.info("server", "server_name").await?, "valkey");
        }
        let [_, policy]: [String; 2] = server.cmd(&["CONFIG", "GET", "maxmemory-policy"]).await?;
        assert_eq!(policy, "noeviction");
        let mut by_socket = connect(&server.unix_url().context("no Unix socket")?).await?;
        assert_eq!(incr(&mut by_socket, "k").await?, 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_what_it_saved() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let (port, pid) = (server.port(), server.pid()?);
    server.cmd::<()>(&["SET", "k", "1"]).await?;
    let old = server.save().await?;
    server.cmd::<()>(&["SET", "k", "2"]).await?;

    server.kill();
    assert!(!is_alive(pid) && server.pid().is_err());
    assert!(server.cmd::<()>(&["PING"]).await.is_err());

    server.restart().await?;
    assert_eq!((server.port(), get(&server, "k").await?), (port, Some(1)));
    server.cmd::<()>(&["SET", "k", "3"]).await?;
    server.save().await?;
    server.restart_from(&old).await?;
    assert_eq!(get(&server, "k").await?, Some(1));
    server.flushall().await?;
    assert_eq!(get(&server, "k").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_server_that_never_saved_comes_back_empty() -> Result<()> {
    let server = Server::start(Flavor::Valkey).await?;
    server.cmd::<()>(&["SET", "k", "1"]).await?;
    server.restart().await?;
    assert_eq!(get(&server, "k").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_wrong_setting_is_reported_with_the_servers_own_words() {
    let reason = Server::builder(Flavor::Redis).line("appendonly perhaps").start().await.unwrap_err();
    let reason = format!("{reason:#}");
    assert!(reason.contains("has ended by itself") && reason.contains("argument must be 'yes' or 'no'"), "{reason}");
}

#[tokio::test]
async fn a_paused_server_answers_when_it_is_resumed() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let mut connection = server.connection().await?;
    server.pause()?;
    let mut answer = Box::pin(incr(&mut connection, "k"));
    assert!(tokio::time::timeout(MOMENT, &mut answer).await.is_err());
    server.resume()?;
    assert_eq!(answer.await?, 1);
    Ok(())
}

#[tokio::test]
async fn statistics_show_what_a_test_did_and_nothing_of_the_harness() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let before = server.command_stats().await?;
    server.cmd::<i64>(&["EVAL", "redis.call('SET', KEYS[1], 1) return redis.call('INCR', KEYS[1])", "1", "k"]).await?;
    let calls = server.command_stats().await?.since(&before);
    let calls: Vec<(&str, u64)> = calls.iter().map(|(command, calls)| (command.as_str(), *calls)).collect();
    assert_eq!(calls, [("eval", 1), ("incr", 1), ("set", 1)]);

    server.watch_slow_commands(Duration::from_millis(20), 10).await?;
    let cpu = server.cpu_time().await?;
    server.cmd::<()>(&["EVAL", "local n = 0 for i = 1, 2e7 do n = n + i end", "0"]).await?;
    // A machine without time makes any command slow.
    let slow: Vec<_> = server.slow_commands().await?.into_iter().filter(|it| it.command[0] == "EVAL").collect();
    assert_eq!(slow.len(), 1, "{slow:?}");
    // Time taken includes being preempted, processor time does not: only the order of magnitude must agree.
    let used = server.cpu_time().await?.saturating_sub(cpu);
    assert!(slow[0].took >= Duration::from_millis(20) && used >= slow[0].took / 10, "{slow:?}, used {used:?}");
    Ok(())
}

#[tokio::test]
async fn servers_die_with_a_killed_test_process() -> Result<()> {
    if std::env::var_os(VICTIM).is_some() {
        let server = Server::start(Flavor::Redis).await?;
        println!("pid={}", server.pid()?);
        return std::future::pending().await;
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "servers_die_with_a_killed_test_process", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(victim.stdout.take().context("no output")?).lines();
    let pid: u32 = loop {
        let line = lines.next().context("the victim ended")??;
        // The test runner may have begun the line.
        if let Some((_, pid)) = line.split_once("pid=") {
            break pid.parse()?;
        }
    };
    assert!(is_alive(pid));
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd"))?;
    victim.kill()?;
    victim.wait()?;
    eventually(SOON, async || {
        ensure!(!is_alive(pid), "the server still runs as process {pid}");
        ensure!(!directory.exists(), "{} is left behind", directory.display());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_dropped_reply_belongs_to_an_executed_command() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let proxy = Proxy::start(server.port()).await?;
    for (number, fate) in (1..).zip([Fate::Close, Fate::Silence]) {
        let mut client = connect(&proxy.url()).await?;
        redis::cmd("PING").exec_async(&mut client).await?;
        proxy.drop_replies_where(1, fate, |exchange| exchange.is("incr") && !exchange.is_error());
        redis::cmd("GET").arg("k").exec_async(&mut client).await?;
        assert_eq!(proxy.dropped(), number - 1);

        let mut lost = Box::pin(incr(&mut client, "k"));
        match fate {
            Fate::Close => {
                let outcome = tokio::time::timeout(SOON / 2, &mut lost).await;
                assert!(outcome.context("the client saw nothing")?.is_err());
            }
            Fate::Silence => assert!(tokio::time::timeout(MOMENT, &mut lost).await.is_err()),
        }
        becomes(&server, "k", i64::try_from(number)?).await?;
        // The reply is on its way.
        eventually(SOON, async || {
            ensure!(proxy.dropped() == number, "{} replies were dropped", proxy.dropped());
            Ok(())
        })
        .await?;
    }
    // The rule is used up: the next connection gets its replies.
    assert_eq!(incr(&mut connect(&proxy.url()).await?, "k").await?, 3);
    Ok(())
}

#[tokio::test]
async fn the_nth_replies_are_dropped_and_those_before_are_delivered() -> Result<()> {
    let server = Server::start(Flavor::Valkey).await?;
    let proxy = Proxy::start(server.port()).await?;
    let mut client = connect(&format!("{}?protocol=resp3", proxy.url())).await?;
    proxy.drop_replies_where(1, Fate::Close, |exchange| exchange.reply() == b":3\r\n");
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(incr(&mut client, "k").await.ok());
    }
    assert_eq!(answers, [Some(1), Some(2), None]);
    assert_eq!(get(&server, "k").await?, Some(3));
    proxy.drop_replies(2, Fate::Close);
    assert!(connect(&proxy.url()).await.is_err() && connect(&proxy.url()).await.is_err());
    assert!(connect(&proxy.url()).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_held_proxy_delivers_later_and_a_cut_one_never() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let proxy = Proxy::start(server.port()).await?;
    let mut client = connect(&proxy.url()).await?;

    proxy.hold();
    let mut answer = Box::pin(incr(&mut client, "k"));
    assert!(tokio::time::timeout(MOMENT, &mut answer).await.is_err());
    assert_eq!(get(&server, "k").await?, None, "the request must not have arrived");
    proxy.pass();
    assert_eq!(answer.await?, 1);

    proxy.hold_replies();
    let mut answer = Box::pin(incr(&mut client, "k"));
    assert!(tokio::time::timeout(MOMENT, &mut answer).await.is_err());
    becomes(&server, "k", 2).await.context("the request must have arrived")?;
    proxy.pass();
    assert_eq!(answer.await?, 2);

    proxy.cut();
    assert!(incr(&mut client, "k").await.is_err());
    let mut client = connect(&proxy.url()).await?;
    assert_eq!(incr(&mut client, "k").await?, 3);

    proxy.refuse();
    assert!(incr(&mut client, "k").await.is_err() && connect(&proxy.url()).await.is_err());
    proxy.pass();
    assert_eq!(incr(&mut connect(&proxy.url()).await?, "k").await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_delay_is_latency_and_not_a_queue() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let proxy = Proxy::start(server.port()).await?;
    let client = connect(&proxy.url()).await?;
    proxy.delay(MOMENT);
    let start = Instant::now();
    let calls = (0..50).map(|_| {
        let mut client = client.clone();
        async move { incr(&mut client, "k").await }
    });
    futures::future::try_join_all(calls).await?;
    let took = start.elapsed();
    // One after the other would take fifty times as long.
    assert!(took >= MOMENT && took < MOMENT * 25, "50 calls took {took:?}");
    Ok(())
}

#[tokio::test]
async fn a_lagging_replica_is_promoted_without_what_it_missed() -> Result<()> {
    for flavor in Flavor::ALL {
        let master = Server::start(flavor).await?;
        master.cmd::<()>(&["SET", "k", "1"]).await?;
        let replica = Replica::of(&master).await?;
        assert_eq!(get(replica.server(), "k").await?, Some(1));

        replica.lag();
        master.cmd::<()>(&["SET", "k", "2"]).await?;
        replica.catch_up(&master).await?;
        assert_eq!(get(replica.server(), "k").await?, Some(2));

        replica.lag();
        master.cmd::<()>(&["SET", "k", "3"]).await?;
        replica.promote().await?;
        assert_eq!(get(replica.server(), "k").await?, Some(2));
        replica.server().cmd::<()>(&["SET", "k", "4"]).await?;
        replica.server().save().await?;
        replica.server().restart().await?;
        assert_eq!(replica.server().info("replication", "role").await?, "master");
        assert_eq!(get(replica.server(), "k").await?, Some(4));
    }
    Ok(())
}

#[tokio::test]
async fn sentinels_promote_the_replica_on_demand_and_when_the_master_dies() -> Result<()> {
    futures::future::try_join_all(Flavor::ALL.map(fail_over_twice)).await.map(drop)
}

async fn fail_over_twice(flavor: Flavor) -> Result<()> {
    let first = Server::start(flavor).await?;
    let second = Server::builder(flavor).replica_of(first.port()).start().await?;
    let sentinels = Sentinels::start(flavor, "main", &first, 1, 3).await?;
    assert_eq!((sentinels.addresses().len(), sentinels.master_port().await?), (3, first.port()));

    assert_eq!(sentinels.failover().await?, second.port());
    assert_eq!(second.info("replication", "role").await?, "master");
    eventually(2 * SOON, async || {
        let link = first.info("replication", "master_link_status").await?;
        ensure!(link == "up", "the former master's link is {link}");
        Ok(())
    })
    .await?;

    second.kill();
    assert_eq!(sentinels.wait_for_failover_from(second.port()).await?, first.port());
    first.cmd::<()>(&["SET", "k", "1"]).await
}

#[tokio::test]
async fn a_slot_moves_between_the_masters_of_a_cluster() -> Result<()> {
    for flavor in Flavor::ALL {
        let cluster = Cluster::start(flavor).await?;
        let slot = cluster.slot_of("{pool}:a").await?;
        let source = cluster.owner_of(slot).await?;
        let target = cluster.nodes().iter().find(|node| node.client_port() != source.client_port());
        let target = target.context("only one node")?;
        for key in ["{pool}:a", "{pool}:b"] {
            source.server().cmd::<()>(&["SET", key, "1"]).await?;
        }

        let migration = cluster.migrate(slot, target).await?;
        assert_eq!(migration.move_keys(1).await?, 1);
        let both = source.server().cmd::<Vec<i64>>(&["MGET", "{pool}:a", "{pool}:b"]).await;
        let reason = format!("{:#}", both.unwrap_err());
        assert!(reason.to_uppercase().contains("TRYAGAIN") || reason.contains("TryAgain"), "{reason}");
        migration.finish().await?;

        assert_eq!(cluster.owner_of(slot).await?.client_port(), target.client_port());
        assert_eq!(target.server().cmd::<Vec<i64>>(&["MGET", "{pool}:a", "{pool}:b"]).await?, [1, 1]);
        let moved = source.server().cmd::<i64>(&["GET", "{pool}:a"]).await.unwrap_err();
        assert!(format!("{moved:#}").contains(&target.client_port().to_string()), "{moved:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_client_is_led_through_the_proxies() -> Result<()> {
    for flavor in Flavor::ALL {
        let cluster = Cluster::start_with_proxies(flavor).await?;
        let urls = cluster.addresses().into_iter().take(1).map(|address| format!("redis://{address}"));
        let builder = redis::cluster::ClusterClientBuilder::new(urls).retries(0);
        let client = builder.connection_timeout(SOON).response_timeout(SOON).build()?;
        let mut connection = client.get_async_connection().await?;
        let proxies: Vec<&Proxy> = cluster.nodes().iter().filter_map(e2e::cluster::Node::proxy).collect();
        for key in 0..30 {
            redis::cmd("SET").arg(key).arg(1).exec_async(&mut connection).await?;
        }
        assert!(proxies.len() == 3 && proxies.iter().all(|proxy| proxy.replies() > 5));

        let owner = cluster.owner_of(cluster.slot_of("k").await?).await?;
        owner.proxy().context("no proxy")?.drop_replies_where(1, Fate::Close, |exchange| exchange.is("INCR"));
        let lost: redis::RedisResult<i64> = redis::cmd("INCR").arg("k").query_async(&mut connection).await;
        assert!(lost.is_err());
        assert_eq!(get(owner.server(), "k").await?, Some(1));
    }
    Ok(())
}
