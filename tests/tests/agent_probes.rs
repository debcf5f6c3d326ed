//! Probes: what does not answer is not granted, until it answers again; and what an operator decided stays decided.

mod agent;
mod program;

use std::{collections::BTreeMap, net::TcpListener, time::Duration};

use agent::{SOON, Site, pool};
use anyhow::{Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Cause, Client, Mark, Place, Pool};

/// Resources that answer, each on a port of its own, by address.
fn listeners(count: usize) -> Result<BTreeMap<String, TcpListener>> {
    (0..count)
        .map(|_| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            Ok((listener.local_addr()?.to_string(), listener))
        })
        .collect()
}

/// A resource that was away answers again, once nobody else's connection has its port.
async fn listen_again(address: &str) -> Result<TcpListener> {
    eventually(SOON, async || Ok(TcpListener::bind(address)?)).await
}

fn manifest<'a>(resources: impl IntoIterator<Item = &'a String>, check: &str) -> String {
    let list: Vec<_> = resources.into_iter().map(|name| format!("{{name: '{name}'}}")).collect();
    // What is away refuses at once: only a machine without time for the prober takes as long as the timeout.
    let check = format!("{{{check}, interval: 200ms, timeout: 20s, failureThreshold: 2, maxUnhealthyPercent: 40}}");
    pool("a", &format!("{{resources: [{}], healthCheck: {check}}}", list.join(", ")))
}

async fn marks(pool: &Pool, key: &str, expected: &[Cause]) -> Result<Vec<Mark>> {
    eventually(SOON, async || {
        let state = pool.get(key).await?;
        let marks = state.map(|state| state.marks).unwrap_or_default();
        let causes: Vec<_> = marks.iter().map(|mark| mark.cause).collect();
        ensure!(causes == expected, "{key} has {marks:?}");
        Ok(marks)
    })
    .await
}

#[tokio::test]
async fn what_does_not_answer_is_quarantined_until_it_does() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let mut answering = listeners(5)?;
    site.write("a.yaml", &manifest(answering.keys(), "tcpSocket: {address: '{name}'}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;

    let (sick, listener) = answering.pop_first().expect("five");
    drop(listener);
    let found = marks(&a, &sick, &[Cause::Probe]).await?;
    assert!(found[0].reason.contains(&sick) && found[0].until.is_none(), "{found:?}");
    assert!(matches!(a.get(&sick).await?.expect("declared").place, Place::Quarantined { until: None }));
    for _ in 0..4 {
        let key = a.malloc().await?.expect("four are well").key().clone();
        assert_ne!(key.as_str(), sick);
    }

    let back = listen_again(&sick).await?;
    marks(&a, &sick, &[]).await?;
    agent.logged("a resource has recovered").await?;

    // An operator's word is not undone by a probe that succeeds, nor by another reconciliation.
    a.quarantine(&sick, None, "being repaired", Cause::Manual).await?;
    drop(back);
    marks(&a, &sick, &[Cause::Manual, Cause::Probe]).await?;
    let _back = listen_again(&sick).await?;
    marks(&a, &sick, &[Cause::Manual]).await?;
    site.write(
        "a.yaml",
        &manifest(answering.keys().chain([&sick]), "tcpSocket: {address: '{name}'}").replace("200ms", "150ms"),
    )?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    marks(&a, &sick, &[Cause::Manual]).await?;
    Ok(())
}

#[tokio::test]
async fn a_leased_resource_that_fails_stays_with_its_holder_and_is_held_back_afterwards() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let mut answering = listeners(3)?;
    site.write("a.yaml", &manifest(answering.keys(), "tcpSocket: {address: '{name}'}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    let lease = a.malloc().keep_alive().await?.expect("free");
    answering.remove(lease.key().as_str());
    marks(&a, lease.key().as_str(), &[Cause::Probe]).await?;
    lease.renew().await?;
    let key = lease.key().clone();
    lease.free().await?;
    assert!(matches!(a.get(key.as_str()).await?.expect("declared").place, Place::Quarantined { .. }));
    Ok(())
}

#[tokio::test]
async fn when_everything_fails_the_prober_is_suspected() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let answering = listeners(5)?;
    site.write("a.yaml", &manifest(answering.keys(), "tcpSocket: {address: '{name}'}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    let names: Vec<String> = answering.keys().cloned().collect();
    drop(answering);
    agent.has_condition("a", "Degraded", "True", "ProberSuspected").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Those that failed before the others were asked again may be out; never more than the percentage.
    assert!(a.info().await?.counts.quarantined <= 2, "{:?}", a.info().await?.counts);
    let mut back = Vec::new();
    for name in &names {
        back.push(listen_again(name).await?);
    }
    agent.has_condition("a", "Degraded", "False", "NothingWrong").await?;
    eventually(SOON, async || {
        ensure!(a.info().await?.counts.free == 5);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_command_is_run_only_where_that_is_allowed() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let site = Site::new()?;
    let names = ["good", "bad", "fine"].map(str::to_owned);
    site.write("a.yaml", &manifest(&names, "exec: {command: [test, '{name}', '!=', bad]}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    agent.has_condition("a", "Degraded", "True", "ExecNotAllowed").await?;
    let a = client.pool("a")?;
    assert_eq!(a.info().await?.counts.free, 3, "what is not probed is taken to work");
    assert!(agent.terminate().await?.success());

    let mut agent = site.agent(&["--redis-url", &server.url(), "--allow-exec"])?;
    agent.ready().await?;
    marks(&a, "bad", &[Cause::Probe]).await?;
    marks(&a, "good", &[]).await?;
    assert!(agent.metric("redis_allocator_probe_duration_seconds_count{result=\"failure\"}")? >= 2);

    // No check any more: what it has quarantined is not kept for ever.
    site.write("a.yaml", &pool("a", "{resources: [{name: good}, {name: bad}, {name: fine}]}"))?;
    marks(&a, "bad", &[]).await?;
    Ok(())
}
