//! What an operator does by hand: `free --force`, `quarantine`, `unquarantine`, `takeover`.

mod program;

use std::{process::Output, time::Duration};

use anyhow::{Context, Result};
use e2e::{Flavor, Server};
use redis_allocator::{Cause, Client, Error, Item, Mark, Ownership, Place, Pool, PoolSettings};

async fn world() -> Result<(Server, Pool)> {
    // Before any lease is granted: a build takes longer than leases last.
    program::binary("redis-allocator")?;
    let server = Server::start(Flavor::Redis).await?;
    let pool = Client::connect(&server.url()).await?.pool("lab/gpus")?;
    pool.configure(&PoolSettings::default(), &Ownership { manager: Some("first"), known: None }).await?;
    pool.extend([Item::new("gpu-0".parse()?)]).await?;
    Ok((server, pool))
}

fn run(server: &Server, arguments: &[&str]) -> Result<Output> {
    Ok(program::redis_allocator()?.args(arguments).args(["--redis-url", &server.url()]).output()?)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn gpu(pool: &Pool) -> Result<(Place, Vec<Mark>)> {
    let state = pool.get("gpu-0").await?.context("gpu-0 is gone")?;
    Ok((state.place, state.marks))
}

#[tokio::test]
async fn free_takes_a_lease_away_only_when_forced() -> Result<()> {
    let (server, pool) = world().await?;
    let lease = pool.malloc().await?.context("gpu-0 should be free")?;

    let refused = run(&server, &["free", "lab/gpus", "gpu-0"])?;
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("--force"), "{}", stderr(&refused));
    lease.renew().await?;

    let freed = run(&server, &["free", "lab/gpus", "gpu-0", "--force"])?;
    assert!(freed.status.success(), "{}", stderr(&freed));
    assert!(matches!(lease.renew().await, Err(Error::Lost { .. })));
    assert!(matches!(gpu(&pool).await?.0, Place::Free { .. }));

    let again = run(&server, &["free", "-n", "lab", "gpus", "gpu-0", "--force"])?;
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is not leased"), "{}", stderr(&again));
    Ok(())
}

#[tokio::test]
async fn a_quarantine_keeps_a_resource_until_it_is_released() -> Result<()> {
    let (server, pool) = world().await?;
    let done = run(&server, &["quarantine", "lab/gpus", "gpu-0", "--for", "10m", "--reason", "fan is loud"])?;
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(stdout(&done), "gpu-0 of pool lab/gpus is quarantined now, for 10m\n");
    assert!(pool.malloc().await?.is_none());
    let (place, marks) = gpu(&pool).await?;
    assert!(matches!(place, Place::Quarantined { until: Some(_) }), "{place:?}");
    assert_eq!((marks[0].cause, marks[0].reason.as_str()), (Cause::Manual, "fan is loud"));

    let done = run(&server, &["unquarantine", "lab/gpus", "gpu-0"])?;
    assert_eq!(stdout(&done), "gpu-0 of pool lab/gpus is no longer quarantined\n");
    assert!(matches!(gpu(&pool).await?.0, Place::Free { .. }));
    let done = run(&server, &["unquarantine", "lab/gpus", "gpu-0"])?;
    assert_eq!(stdout(&done), "gpu-0 of pool lab/gpus was not quarantined\n");
    Ok(())
}

#[tokio::test]
async fn a_leased_resource_is_quarantined_when_its_lease_ends() -> Result<()> {
    let (server, pool) = world().await?;
    let lease = pool.malloc().ttl(Duration::from_mins(1)).await?.context("gpu-0 should be free")?;
    let done = run(&server, &["quarantine", "lab/gpus", "gpu-0", "--reason", "later"])?;
    assert!(stdout(&done).contains("once its lease has ended, until it is released"), "{}", stdout(&done));
    lease.renew().await?;
    lease.free().await?;
    assert!(matches!(gpu(&pool).await?.0, Place::Quarantined { until: None }));
    Ok(())
}

#[tokio::test]
async fn wrong_names_and_times_change_nothing() -> Result<()> {
    let (server, pool) = world().await?;
    for (arguments, code) in [
        (&["quarantine", "lab/gpus", "gpu-9", "--reason", "x"][..], 1),
        (&["quarantine", "lab/gpus", "gpu-0", "--for", "0s", "--reason", "x"], 1),
        (&["quarantine", "lab/gpus", "gpu-0", "--for", "soon", "--reason", "x"], 2),
        (&["quarantine", "lab/gpus", "gpu-0"], 2),
        (&["quarantine", "lab/nope", "gpu-0", "--reason", "x"], 1),
        (&["unquarantine", "lab/nope", "gpu-0"], 1),
        (&["free", "lab/gpus", "", "--force"], 1),
        (&["takeover", "lab/nope", "--manager-id", "x"], 1),
        (&["takeover", "lab/gpus", "--manager-id", ""], 1),
    ] {
        let output = run(&server, arguments)?;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{arguments:?}: {}", stderr(&output));
    }
    assert!(matches!(gpu(&pool).await?.0, Place::Free { .. }));
    assert_eq!(pool.info().await?.manager.as_deref(), Some("first"));
    Ok(())
}

#[tokio::test]
async fn after_a_takeover_the_former_manager_is_refused() -> Result<()> {
    let (server, pool) = world().await?;
    let done = run(&server, &["takeover", "lab/gpus", "--manager-id", "second"])?;
    assert_eq!(stdout(&done), "pool lab/gpus is now managed by second, no longer by first\n");
    let settings = PoolSettings { suspended: true, ..PoolSettings::default() };
    let refused = pool.configure(&settings, &Ownership { manager: Some("first"), known: None }).await;
    assert!(matches!(refused, Err(Error::ManagerConflict { .. })), "{refused:?}");
    let done = run(&server, &["takeover", "lab/gpus", "--manager-id", "second"])?;
    assert_eq!(stdout(&done), "pool lab/gpus is managed by second already\n");
    Ok(())
}
