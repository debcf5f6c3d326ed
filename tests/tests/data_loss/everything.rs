//! Everything is lost: what is refilled is held back until the leases that nobody knows any more are over.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, Witness, eventually};
use redis_allocator::{CLOCK_SLACK, Client, Error, Hold, Known, Longest, LostReason, Ownership, Pool, Timestamp};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::load::{LONGEST, Load, SIZE, SOON, busy, keys, settings, whole};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refilled_is_held_back_until_lost_leases_are_over() -> Result<()> {
    Flavor::both(everything_is_lost_under_load).await
}

async fn everything_is_lost_under_load(flavor: Flavor) -> Result<()> {
    let (server, record) = (Server::start(flavor).await?, Server::start(Flavor::Redis).await?);
    let witness = Witness::connect(&record.url()).await?;
    let pool = Client::connect(&server.url()).await?.pool("load")?;
    let (recovered, mut recoveries) = watch::channel(0);
    let remembered = Arc::new(Mutex::new(None));
    let agent = AbortOnDropHandle::new(tokio::spawn(keep(pool.clone(), Arc::clone(&remembered), recovered)));
    recoveries.wait_for(|&times| times == 1).await?;
    let load = Load::start(&server.url(), &witness).await?;
    for times in 2..=3 {
        busy(&pool).await?;
        let mine = eventually(SOON, async || pool.malloc().await?.context("nothing is free")).await?;
        // The agent has seen what was granted.
        eventually(SOON, async || {
            let incarnation = pool.info().await?.incarnation;
            let known = remembered.lock().unwrap().clone().context("nothing is remembered")?;
            ensure!(known.incarnation == incarnation && known.longest == Longest::For(LONGEST), "{known:?}");
            Ok(())
        })
        .await?;
        let before = pool.info().await?;
        mine.renew().await?;
        let renewed = Instant::now();
        server.flushall().await?;
        recoveries.wait_for(|&seen| seen == times).await?;
        let after = pool.info().await?;
        ensure!(after.incarnation != before.incarnation);
        ensure!((after.counts.quarantined, after.counts.free) == (SIZE, 0), "{:?}", after.counts);
        let Some(Hold::Until(until)) = after.hold else { anyhow::bail!("not held back: {after:?}") };
        // It began between the two looks.
        let from = |moment: Timestamp| Duration::from_millis(until.as_millis().saturating_sub(moment.as_millis()));
        let hold = LONGEST + CLOCK_SLACK;
        ensure!(from(after.now) <= hold && from(before.now) >= hold, "held back until {until:?}: {before:?} {after:?}");

        // A renewal tells at once, unless this machine took so long that the holder's own time is over.
        let told = mine.renew().await;
        let Err(Error::Lost { reason, .. }) = told else { anyhow::bail!("{told:?}") };
        let over = renewed.elapsed() >= LONGEST && reason == LostReason::Expired;
        ensure!(reason == LostReason::PoolLost || over, "{reason:?}");
        ensure!(mine.lost_reason() == Some(reason), "{mine:?}");
        // Nobody gets anything before the hold is over.
        let early = pool.malloc().await?;
        ensure!(early.as_ref().is_none_or(|lease| lease.granted_at() >= until), "granted before {until:?}: {early:?}");
        drop(early);
        let token = eventually(hold + SOON, async || {
            let info = pool.info().await?;
            ensure!(info.counters.granted > 0, "{:?}", info.counts);
            ensure!(info.now >= until, "granted {} ms early", until.as_millis() - info.now.as_millis());
            Ok(info.last_token)
        })
        .await?;
        ensure!(token > before.last_token, "{token} after {}", before.last_token);
    }
    busy(&pool).await?;
    load.end().await?;
    ensure!(!agent.is_finished(), "the agent failed: {:?}", agent.await);
    whole(&pool).await?;
    let (counts, refusals) = (witness.counts().await?, witness.refusals().await?);
    println!("{flavor}: everything lost twice; {counts:?}");
    // Not even once: the hold outlasts whoever did not hear.
    ensure!(refusals.is_empty(), "{refusals:#?}");
    ensure!(counts.grants >= 12 && counts.excused == 0, "{counts:?}");
    Ok(())
}

/// Keeps the pool as the agent does: remembers its life and its longest lease, and makes it anew when it is gone.
async fn keep(pool: Pool, remembered: Arc<Mutex<Option<Known>>>, recovered: watch::Sender<u32>) -> Result<()> {
    loop {
        match pool.info().await {
            Ok(info) => {
                let known = Known { incarnation: info.incarnation, longest: info.longest };
                *remembered.lock().unwrap() = Some(known);
            }
            Err(Error::UnknownPool { .. }) => {
                let known = remembered.lock().unwrap().clone();
                let ownership = Ownership { manager: Some("test"), known: known.as_ref() };
                let configured = pool.configure(&settings(), &ownership).await?;
                ensure!(configured.created && configured.recovered == known.is_some(), "{configured:?}");
                pool.extend(keys()).await?;
                recovered.send_modify(|times| *times += 1);
            }
            Err(error) => ensure!(error.is_transient(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
