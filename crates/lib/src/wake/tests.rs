//! Waking on real servers that are killed, silenced, moved and forbidding.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor, Proxy, Server,
    cluster::{Cluster, Node},
    eventually,
    proxy::Fate,
    sentinel::Sentinels,
};
use futures::{FutureExt as _, future::join_all};
use tokio::runtime::Handle;

use super::{LINGER, Waiter};
use crate::{client::Client, pool::Pool};

/// Long enough for anything that must happen on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to show.
const A_WHILE: Duration = Duration::from_millis(300);

async fn connect(url: &str) -> Result<Client> {
    let limit = Duration::from_secs(2);
    Ok(Client::builder(url).timeout(limit).connect_timeout(limit).connect().await?)
}

fn enter(client: &Client) -> Waiter {
    client.inner.wake.enter(client)
}

/// A waiter whose client has a subscription.
async fn enter_and_subscribe(client: &Client) -> Result<Waiter> {
    let waiter = enter(client);
    ensure!(waiter.woken(SOON).await, "no subscription was made");
    Ok(waiter)
}

/// How many connections got it.
async fn publish(server: &Server, waiter: &Waiter) -> Result<u64> {
    server.cmd(&["PUBLISH", waiter.channel(), waiter.id()]).await
}

/// Tells a waiter by way of any server of a deployment, until it is heard.
async fn reaches(server: &Server, waiter: &Waiter) -> Result<()> {
    eventually(SOON, async || {
        publish(server, waiter).await?;
        ensure!(waiter.woken(A_WHILE).await, "what {server} publishes is not heard");
        Ok(())
    })
    .await
}

async fn subscribers(server: &Server) -> Result<usize> {
    let clients: String = server.cmd(&["CLIENT", "LIST", "TYPE", "PUBSUB"]).await?;
    Ok(clients.lines().filter(|line| !line.is_empty()).count())
}

#[tokio::test]
async fn a_message_wakes_the_waiter_it_is_for() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::builder(flavor).unix_socket().start().await?;
        for url in [server.url(), server.unix_url().context("the server has no socket")?] {
            let client = connect(&url).await?;
            let first = enter_and_subscribe(&client).await?;
            // Nothing tells this one that the subscription stands: it stood before.
            let second = enter(&client);
            ensure!(!second.woken(A_WHILE).await, "woken by nothing");
            ensure!(first.id() != second.id() && first.channel() == second.channel());

            ensure!(publish(&server, &first).await? == 1);
            ensure!(first.woken(SOON).await, "{flavor}: not woken");
            ensure!(!second.woken(A_WHILE).await, "{flavor}: woken by a message for another");

            // Two that come between two waits are one, and remembered.
            publish(&server, &first).await?;
            publish(&server, &first).await?;
            publish(&server, &second).await?;
            ensure!(second.woken(SOON).await);
            ensure!(first.woken(Duration::ZERO).await, "{flavor}: an earlier message was forgotten");
            ensure!(!first.woken(A_WHILE).await, "{flavor}: woken twice");

            // A wait that was given up takes nothing with it.
            let mut given_up = Box::pin(first.woken(SOON));
            ensure!((&mut given_up).now_or_never().is_none());
            publish(&server, &first).await?;
            publish(&server, &second).await?;
            ensure!(second.woken(SOON).await);
            drop(given_up);
            ensure!(first.woken(Duration::ZERO).await, "{flavor}: a wait that was given up took a message along");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_waiters_id_wakes_nobody() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = connect(&server.url()).await?;
    let waiter = enter_and_subscribe(&client).await?;
    let gone = enter(&client);
    let id = gone.id().to_owned();
    drop(gone);
    for payload in ["", "1", ":1", "0000000000000000:1", &waiter.id().replace(':', ""), &id, &format!("{id}x")] {
        ensure!(server.cmd::<u64>(&["PUBLISH", waiter.channel(), payload]).await? == 1);
    }
    ensure!(!waiter.woken(A_WHILE).await, "woken by nonsense");
    reaches(&server, &waiter).await
}

#[tokio::test]
async fn the_subscription_lives_no_longer_than_its_waiters() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = connect(&server.url()).await?;
    ensure!(client.pool("default/gpus")?.malloc().await.is_err(), "there is no pool");
    ensure!(subscribers(&server).await? == 0, "subscribed before anyone waits");

    let before = Handle::current().metrics().num_alive_tasks();
    let waiter = enter_and_subscribe(&client).await?;
    ensure!(subscribers(&server).await? == 1);
    // As long as one waits, the others come and go.
    let others: Vec<_> = (0..10).map(|_| enter(&client)).collect();
    drop(others);
    tokio::time::sleep(LINGER + Duration::from_secs(1)).await;
    reaches(&server, &waiter).await?;

    // It outlives the last one by a little, for the next.
    drop(waiter);
    let dropped = Instant::now();
    tokio::time::sleep(LINGER / 2).await;
    drop(enter(&client));
    ensure!(subscribers(&server).await? == 1, "not kept for the next waiter");
    eventually(SOON, async || {
        let subscribers = subscribers(&server).await?;
        ensure!(subscribers == 0, "{subscribers} connections are subscribed");
        let tasks = Handle::current().metrics().num_alive_tasks();
        ensure!(tasks <= before, "{tasks} tasks live, {before} before");
        Ok(())
    })
    .await?;
    ensure!((LINGER * 5 / 4..LINGER * 3).contains(&dropped.elapsed()), "it lived for {:?}", dropped.elapsed());

    // It comes back, and ends with the client at once.
    drop(enter_and_subscribe(&client).await?);
    let shared = Arc::downgrade(&client.inner.wake.shared);
    drop(client);
    eventually(LINGER / 2, async || {
        ensure!(Weak::strong_count(&shared) == 0, "the client is gone, its task is not");
        ensure!(subscribers(&server).await? == 0, "the client is gone, its subscription is not");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_subscription_that_was_lost_is_made_anew_and_wakes_all() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let client = connect(&server.url()).await?;
        let first = enter_and_subscribe(&client).await?;
        let waiters = [first, enter(&client), enter(&client)];

        // The connection alone: noticed before the next time the server is asked whether it is there.
        ensure!(server.cmd::<u64>(&["CLIENT", "KILL", "TYPE", "PUBSUB"]).await? == 1);
        for waiter in &waiters {
            ensure!(waiter.woken(Duration::from_secs(3)).await, "{flavor}: not woken after a lost connection");
        }
        ensure!(subscribers(&server).await? == 1);

        // The server.
        server.kill();
        ensure!(!waiters[0].woken(A_WHILE).await, "{flavor}: woken by a server that is dead");
        server.restart().await?;
        for waiter in &waiters {
            ensure!(waiter.woken(SOON).await, "{flavor}: not woken after a restart");
        }
        reaches(&server, &waiters[2]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_silent_subscription_is_given_up() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let proxy = Proxy::start(server.port()).await?;
    let client = connect(&proxy.url()).await?;
    let waiter = enter_and_subscribe(&client).await?;
    // From the next question on, nothing comes any more on that connection; it stays open.
    proxy.drop_replies_where(1, Fate::Silence, |exchange| exchange.is("PING"));
    ensure!(waiter.woken(SOON).await, "the silence was not noticed");
    ensure!(proxy.dropped() == 1);
    reaches(&server, &waiter).await
}

/// The longest of all: the first by name, so that it is begun first.
#[tokio::test]
async fn a_forbidden_subscription_is_told_of_once_and_made_when_it_is_allowed() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let acl: &[&str] = &["ACL", "SETUSER", "worker", "on", ">secret", "~*", "+@all", "resetchannels"];
    server.cmd::<()>(acl).await?;
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || sink.clone());
    let _logging = tracing::subscriber::set_default(subscriber.finish());
    let refusals = || log.text().matches("may not subscribe").count();

    let url = server.url().replace("redis://", "redis://worker:secret@");
    // One has time: the next attempt is made half a minute later.
    let (client, patient) = (connect(&url).await?, connect(&url).await?);
    let (waiter, late) = (enter(&client), enter(&patient));
    eventually(SOON, async || {
        ensure!(refusals() == 2, "the log says: {}", log.text());
        Ok(())
    })
    .await?;
    ensure!(log.text().contains("NOPERM") && log.text().contains("&ra:wake:*"), "{}", log.text());
    ensure!(!log.text().contains("secret"), "{}", log.text());
    ensure!(!waiter.woken(A_WHILE).await, "woken without a subscription");
    // Calls go on.
    client.server_info().await?;

    // Neither does the next waiter's subscription complain again.
    drop(waiter);
    eventually(SOON, async || {
        ensure!(client.inner.wake.shared.state().task.is_none(), "the subscription's task lives");
        Ok(())
    })
    .await?;
    let _again = enter(&client);
    eventually(SOON, async || {
        let denied: Vec<HashMap<String, String>> = server.cmd(&["ACL", "LOG"]).await?;
        let count = denied.first().and_then(|entry| entry.get("count"));
        ensure!(count.is_some_and(|count| count == "2"), "{denied:?}");
        Ok(())
    })
    .await?;

    // The next attempt needs nothing but what was named.
    server.cmd::<()>(&["ACL", "SETUSER", "worker", "-@all", "+info", "+subscribe", "+publish", "+ping"]).await?;
    server.cmd::<()>(&["ACL", "SETUSER", "worker", "+hello", "+auth", "+client", "&ra:wake:*"]).await?;
    ensure!(late.woken(Duration::from_mins(1)).await, "not tried again");
    reaches(&server, &late).await?;
    ensure!(refusals() == 2, "the log says: {}", log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_of_a_cluster_wakes() -> Result<()> {
    let cluster = Cluster::start(Flavor::Redis).await?;
    let client = connect(&format!("redis+cluster://{}", cluster.addresses().join(","))).await?;
    let waiter = enter_and_subscribe(&client).await?;
    for node in cluster.nodes() {
        reaches(node.server(), &waiter).await?;
    }

    // The one that it listens to goes away: the next one does as well.
    listening(&cluster).await?.server().kill();
    ensure!(waiter.woken(SOON).await, "no other server was found");
    for node in cluster.nodes().iter().filter(|node| node.server().pid().is_ok()) {
        reaches(node.server(), &waiter).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_left_its_cluster_is_left() -> Result<()> {
    let cluster = Cluster::start(Flavor::Redis).await?;
    let client = connect(&format!("redis+cluster://{}", cluster.addresses().join(","))).await?;
    let waiter = enter_and_subscribe(&client).await?;

    // It lives on, alone: what the others publish does not reach it.
    let left = listening(&cluster).await?.server();
    let id: String = left.cmd(&["CLUSTER", "MYID"]).await?;
    left.cmd::<()>(&["CLUSTER", "RESET", "SOFT"]).await?;
    let others: Vec<_> = cluster.nodes().iter().map(Node::server).filter(|node| node.port() != left.port()).collect();
    for other in &others {
        other.cmd::<()>(&["CLUSTER", "FORGET", &id]).await?;
    }
    // Calls meet trouble, and the map of the Cluster is asked for again.
    eventually(SOON, async || {
        let pools: Vec<_> = (0..8).map(|number| client.pool(format!("p{number}"))).collect::<Result<_, _>>()?;
        join_all(pools.iter().map(Pool::info)).await;
        ensure!(waiter.woken(Duration::ZERO).await, "no other server is listened to");
        Ok(())
    })
    .await?;
    ensure!(subscribers(left).await? == 0);
    for other in others {
        reaches(other, &waiter).await?;
    }
    Ok(())
}

/// The node that has the one subscription.
async fn listening(cluster: &Cluster) -> Result<&Node> {
    let mut listening = None;
    for node in cluster.nodes() {
        if subscribers(node.server()).await? == 1 {
            ensure!(listening.replace(node).is_none(), "two subscriptions");
        }
    }
    listening.context("no server has a subscriber")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_master_is_listened_to() -> Result<()> {
    let master = Server::start(Flavor::Redis).await?;
    let replica = Server::builder(Flavor::Redis).replica_of(master.port()).start().await?;
    let sentinels = Sentinels::start(Flavor::Redis, "main", &master, 1, 3).await?;
    let client = connect(&format!("redis+sentinel://{}/main", sentinels.addresses().join(","))).await?;
    let waiter = enter_and_subscribe(&client).await?;
    reaches(&master, &waiter).await?;

    // Planned: the former master lives on, and so would a connection to it.
    ensure!(sentinels.failover().await? == replica.port());
    tokio::time::timeout(Duration::from_secs(5), reaches(&replica, &waiter)).await??;

    // Unplanned: back to the first one, once that has become a replica.
    eventually(Duration::from_secs(30), async || {
        let link = master.info("replication", "master_link_status").await?;
        ensure!(link == "up", "its link is {link}");
        Ok(())
    })
    .await?;
    replica.kill();
    ensure!(sentinels.wait_for_failover_from(replica.port()).await? == master.port());
    reaches(&master, &waiter).await
}

#[tokio::test]
async fn thousands_of_waiters_need_one_connection_and_one_task() -> Result<()> {
    const COUNT: usize = 5_000;
    let server = Server::start(Flavor::Redis).await?;
    let client = connect(&server.url()).await?;
    let first = enter_and_subscribe(&client).await?;
    let before = Handle::current().metrics().num_alive_tasks();
    let waiters: Vec<_> = (0..COUNT).map(|_| enter(&client)).collect();

    // Every other one is told.
    let (even, odd): (Vec<_>, Vec<_>) = waiters.iter().enumerate().partition(|(number, _)| number % 2 == 0);
    let mut messages = redis::pipe();
    for (_, waiter) in &even {
        messages.cmd("PUBLISH").arg(waiter.channel()).arg(waiter.id());
    }
    let waiting = join_all(even.iter().map(|(_, waiter)| waiter.woken(SOON)));
    let mut connection = server.connection().await?;
    let (woken, sent, tasks) = tokio::join!(waiting, messages.exec_async(&mut connection), async {
        Handle::current().metrics().num_alive_tasks()
    });
    sent?;
    ensure!(woken.into_iter().all(|woken| woken), "some were not woken");
    // One is the connection that publishes.
    ensure!(tasks <= before + 1, "{tasks} tasks for {COUNT} waiters, {before} for one");
    ensure!(subscribers(&server).await? == 1);
    ensure!(!join_all(odd.iter().map(|(_, waiter)| waiter.woken(A_WHILE))).await.contains(&true), "some were not told");

    ensure!(server.cmd::<u64>(&["CLIENT", "KILL", "TYPE", "PUBSUB"]).await? == 1);
    let woken = join_all(waiters.iter().map(|waiter| waiter.woken(SOON))).await;
    ensure!(woken.into_iter().all(|woken| woken), "some were not woken by the new subscription");

    drop((waiters, first));
    ensure!(client.inner.wake.shared.state().bells.is_empty(), "a waiter that has left is remembered");
    Ok(())
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
