//! What an operator must know is told by Events, once.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{pool, pool_of},
    cluster::Cluster,
};

#[tokio::test]
async fn a_resource_that_fails_its_probe_is_told_of_and_so_is_its_recovery() -> Result<()> {
    let Some(cluster) = Cluster::start("Events of probes").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let mut listeners = (0..4).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let resources: Vec<_> = addresses.iter().map(|address| format!("{{name: '{address}'}}")).collect();
    let check = "{tcpSocket: {address: '{name}'}, interval: 200ms, timeout: 20s, failureThreshold: 2}";
    cluster.apply(&pool("a", &format!("{{resources: [{}], healthCheck: {check}}}", resources.join(", ")))).await?;
    cluster.ready("a").await?;
    cluster.counts("a", |status| (status.free, status.quarantined), (4, 0)).await?;

    drop(listeners.pop());
    let failing = addresses[3];
    cluster.counts("a", |status| (status.free, status.quarantined), (3, 1)).await?;
    let event = cluster.event("a", "Quarantined").await?;
    let note = event.note.context("no note")?;
    ensure!(note.contains(&failing.to_string()), "{note}");
    assert_eq!(event.type_.as_deref(), Some("Warning"));

    listeners.push(TcpListener::bind(failing)?);
    cluster.counts("a", |status| (status.free, status.quarantined), (4, 0)).await?;
    let event = cluster.event("a", "Recovered").await?;
    let note = event.note.context("no note")?;
    ensure!(note.contains(&failing.to_string()), "{note}");
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    // As an operator sees it.
    let told = cluster.api.kubectl(&["events", "--for", "resourcepool/a"]).await?;
    ensure!(told.contains("Quarantined") && told.contains("Recovered"), "{told}");
    cluster.nothing_was_refused()
}

#[tokio::test]
async fn a_shrink_that_is_held_back_and_a_drain_that_is_over_are_told() -> Result<()> {
    let Some(cluster) = Cluster::start("Events of edits").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let range = |to: u64, percent: u8| {
        let spec =
            format!("{{ranges: [{{name: r, template: 'r{{}}', from: 1, to: {to}}}], maxShrinkPercent: {percent}}}");
        pool("a", &spec)
    };
    cluster.apply(&range(10, 50)).await?;
    cluster.ready("a").await?;
    cluster.apply(&range(2, 50)).await?;
    cluster.pool_is("a", "Synced", "False", "ShrinkHeldBack").await?;
    cluster.ready("a").await?;
    cluster.redis_has("a", 10).await?;
    let held_back = cluster.event("a", "ShrinkHeldBack").await?;
    assert_eq!(held_back.type_.as_deref(), Some("Warning"));
    cluster.apply(&range(2, 100)).await?;
    cluster.redis_has("a", 2).await?;
    cluster.pool_is("a", "Synced", "True", "Synced").await?;

    cluster.apply(&pool_of("b", 2)).await?;
    cluster.ready("b").await?;
    let lease = cluster.in_redis("b")?.malloc().keep_alive().await?.context("free")?;
    cluster.delete("rpool", "b").await?;
    cluster.pool_is("b", "Ready", "False", "Draining").await?;
    lease.free().await?;
    cluster.pool_is_gone("b").await?;
    cluster.event("b", "Drained").await?;
    cluster.nothing_was_refused()
}
