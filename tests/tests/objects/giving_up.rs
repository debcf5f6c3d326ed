//! Giving up: whoever drops a request, a refresh or an end at any moment leaves nothing behind.

use std::{
    future::{Future, poll_fn},
    ops::AsyncFn,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use redis_allocator::{Allocated, OpenError};
use tokio::time::sleep;

use super::sessions::{Flaw, SOON, Scene, Sessions, everywhere, locked};

/// Polls a future at most so often, then drops it.
async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut left = times;
    let mut future = pin!(future);
    if left == 0 {
        return None;
    }
    poll_fn(|context| {
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Gives up after each number of polls until the deed gets done. Nothing may be left behind, and nothing be quarantined
/// but what is broken. Returns how often it was given up.
async fn given_up_everywhere<F: Future<Output = Result<()>>>(
    scene: &Scene,
    broken: &[(&str, Flaw)],
    prepare: impl AsyncFn() -> Result<Option<Allocated<Sessions>>>,
    deed: impl Fn(Option<Allocated<Sessions>>) -> F,
) -> Result<usize> {
    for times in 0.. {
        scene.log.mend();
        let prepared = prepare().await?;
        for (key, flaw) in broken {
            scene.log.break_with(key, *flaw);
        }
        let done = polled(times, deed(prepared)).await;
        scene.settled().await.with_context(|| format!("given up after {times} polls"))?;
        let (opened, ended) = (locked(&scene.log.closed).len(), scene.log.ended.load(Ordering::SeqCst));
        ensure!(opened == ended, "{times} polls: {opened} were opened, {ended} closed to the end");
        for state in scene.pool.snapshot().await? {
            let may_be = broken.iter().any(|(key, _)| *key == state.key.as_str());
            ensure!(may_be || state.marks.is_empty(), "{times} polls: {state:?}");
            scene.pool.unquarantine(state.key.as_str(), None).await?;
        }
        if let Some(done) = done {
            done?;
            return Ok(times);
        }
    }
    bail!("it never gets done")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_at_any_moment_leaves_nothing_behind() -> Result<()> {
    everywhere(async |scene| {
        let nothing = async || Ok(None);
        let opened = async || scene.open().await.map_err(Into::into);
        let open = |_| async {
            scene.opened().await?.close().await?;
            Ok(())
        };
        let refresh = |session: Option<Allocated<Sessions>>| async {
            session.context("it was opened")?.refresh().await?.close().await?;
            Ok(())
        };
        let mut moments = Vec::new();
        moments.push(given_up_everywhere(scene, &[], nothing, open).await?);
        let broken = [("a", Flaw::OpenFails), ("b", Flaw::Unhealthy)];
        moments.push(given_up_everywhere(scene, &broken, nothing, open).await?);
        moments.push(given_up_everywhere(scene, &[], opened, refresh).await?);
        let broken = [("a", Flaw::CheckFails), ("b", Flaw::OpenFails)];
        moments.push(given_up_everywhere(scene, &broken, opened, refresh).await?);
        // Two waits in each thing that is done: this test still drops in the midst of all of them.
        ensure!(moments.iter().all(|&times| times > 6), "{moments:?}");
        // What may still have been under way has come back by now.
        sleep(Duration::from_millis(200)).await;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_in_line_or_after_it_leaves_nothing_behind() -> Result<()> {
    everywhere(async |scene| {
        scene.pool.shrink(["c"]).await?;
        let opened = async || scene.open().await.map_err(Into::into);
        // One that can't be opened, then the line, then what its holder gives back.
        let wait = |holder: Option<Allocated<Sessions>>| async {
            let holder = holder.context("it was opened")?;
            let hand_over = async {
                scene.in_line(1).await?;
                Ok(holder.close().await?)
            };
            let waiting = async { Ok::<_, anyhow::Error>(scene.open_in_time(SOON).await?) };
            let ((), object) = tokio::try_join!(hand_over, waiting)?;
            ensure!(object.key().as_str() == "a", "{object:?}");
            object.close().await?;
            Ok(())
        };
        let moments = given_up_everywhere(scene, &[("b", Flaw::OpenFails)], opened, wait).await?;
        ensure!(moments > 12, "{moments}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_meets_a_session_that_is_still_open() -> Result<()> {
    everywhere(async |scene| {
        scene.log.break_with("b", Flaw::Unhealthy);
        let kind = Arc::new(scene.kind());
        let worker = async |number: usize| {
            let mut handed_out = 0;
            for round in 0_usize.. {
                scene.clock.advance(Duration::from_millis(2));
                let open = scene.pool.malloc().open(Arc::clone(&kind)).quarantine(Duration::from_millis(1));
                // Some give up early, some late, some not at all; some close, some only drop.
                let polls = if round.is_multiple_of(2) { 1 + (number + round) % 16 } else { usize::MAX };
                match polled(polls, open.into_future()).await {
                    Some(Ok(Some(session))) if (number + round).is_multiple_of(3) => session.close().await?,
                    Some(Ok(Some(_session))) => sleep(Duration::from_millis(1)).await,
                    Some(Err(OpenError::Lease(error))) => return Err(error.into()),
                    _ => {
                        sleep(Duration::from_millis(1)).await;
                        continue;
                    }
                }
                handed_out += 1;
                if handed_out == 5 {
                    break;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(SOON, futures::future::try_join_all((0..12).map(worker))).await??;
        scene.settled().await?;
        ensure!(scene.marks("a").await?.is_empty() && scene.marks("c").await?.is_empty());
        Ok(())
    })
    .await
}
