//! Waiting for an object: in line like anyone else, for one limit of time, however many resources fail on the way.

use std::{
    future::{Future, IntoFuture},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use redis_allocator::{
    Allocated, BindOptions, BindPolicy, Error, Fault, Item, Lease, LostReason, Open, OpenError, Order, Ownership,
    PoolSettings, Waiting,
};
use tokio::{task::JoinHandle, time::sleep};

use super::{
    expect_error, faults,
    sessions::{Flaw, SOON, Scene, Sessions, everywhere, locked},
};

type Asking = JoinHandle<Result<Allocated<Sessions>, OpenError>>;

/// Asks in a task of its own, and returns when Redis has so many in line.
async fn in_line(scene: &Scene, waiting: u64, open: Open<Sessions, Waiting>) -> Result<Asking> {
    let asking = tokio::spawn(open.into_future());
    scene.in_line(waiting).await?;
    Ok(asking)
}

/// What a request gets that needs not wait any more.
async fn soon<T>(asking: impl Future<Output = T>) -> Result<T> {
    Ok(tokio::time::timeout(SOON, asking).await?)
}

/// Everything that is free, the first one last.
async fn take_all(scene: &Scene) -> Result<Vec<Lease>> {
    let mut leases = scene.pool.malloc().up_to(3).await?;
    leases.reverse();
    Ok(leases)
}

async fn free_first(leases: &mut Vec<Lease>) -> Result<()> {
    Ok(leases.pop().context("all are free")?.free().await?)
}

async fn free_all(scene: &Scene, leases: Vec<Lease>) -> Result<()> {
    for freed in scene.pool.free_all(leases).await? {
        freed?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_opens_what_another_has_closed() -> Result<()> {
    everywhere(async |scene| {
        // Without need, nobody waits.
        let first = scene.open_in_time(SOON).await?;
        assert_eq!((first.key().as_str(), scene.log.take_events()), ("a", vec!["open a".into(), "check a".into()]));
        let others = take_all(scene).await?;
        let asking = in_line(scene, 1, scene.open_in_time(SOON)).await?;
        assert!(scene.open().await?.is_none(), "whoever does not wait is told at once");
        assert!(scene.log.take_events().is_empty());
        first.close().await?;
        let second = soon(asking).await???;
        assert_eq!(second.key().as_str(), "a");
        assert_eq!(scene.log.take_events(), ["close a", "open a", "check a"]);
        scene.in_line(0).await?;
        second.close().await?;
        free_all(scene, others).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_one_that_failed_the_next_one_is_waited_for() -> Result<()> {
    everywhere(async |scene| {
        scene.log.break_with("a", Flaw::OpenFails);
        scene.log.break_with("b", Flaw::Unhealthy);
        let mut taken = take_all(scene).await?;
        let asking = in_line(scene, 1, scene.open_in_time(SOON)).await?;
        for (key, events) in [("a", vec!["open a"]), ("b", vec!["open b", "check b", "close b"])] {
            free_first(&mut taken).await?;
            eventually(SOON, async || {
                ensure!(!scene.marks(key).await?.is_empty(), "{key} is not quarantined");
                Ok(())
            })
            .await?;
            scene.in_line(1).await?;
            assert_eq!(scene.log.take_events(), events);
        }
        free_first(&mut taken).await?;
        let object = soon(asking).await???;
        assert_eq!(object.key().as_str(), "c");
        object.close().await?;
        scene.ensure_quarantined(&["a", "b"]).await?;

        // As many as may be tried have failed: nothing more is waited for.
        scene.log.break_with("c", Flaw::CheckFails);
        let (tried, nothing_else) =
            faults(expect_error(soon(scene.open_in_time(SOON).attempts(1).into_future()).await?)?)?;
        assert!(matches!(&tried[..], [(c, Fault::Check(_))] if c == "c") && !nothing_else);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_time_is_over_the_error_tells_whether_anything_was_tried() -> Result<()> {
    everywhere(async |scene| {
        let limit = Duration::from_millis(300);
        let mut taken = take_all(scene).await?;
        match expect_error(soon(scene.open_in_time(limit).into_future()).await?)? {
            OpenError::Lease(Error::NotServed { pool, after }) => {
                assert_eq!((pool.to_string().as_str(), after), ("default/devices", limit));
            }
            other => return Err(other.into()),
        }
        assert!(scene.log.take_events().is_empty());
        scene.in_line(0).await?;

        scene.log.break_with("a", Flaw::Unhealthy);
        free_first(&mut taken).await?;
        let error = expect_error(soon(scene.open_in_time(limit).into_future()).await?)?;
        assert_eq!(
            error.to_string(),
            "no resource of pool default/devices can be used: a: it is not healthy; nothing else is free"
        );
        let (tried, nothing_else) = faults(error)?;
        assert!(matches!(&tried[..], [(a, Fault::Unhealthy)] if a == "a") && nothing_else);
        scene.in_line(0).await?;
        free_all(scene, taken).await?;
        scene.ensure_quarantined(&["a"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_attempts_together_wait_no_longer_than_one() -> Result<()> {
    everywhere(async |scene| {
        scene.log.break_with("a", Flaw::OpenFails);
        scene.pool.shrink(["b", "c"]).await?;
        // Each attempt waits for less than the limit, and fails. Were the limit each one's own, all of them would be made.
        let again_and_again = async {
            loop {
                sleep(Duration::from_millis(100)).await;
                scene.pool.unquarantine("a", None).await?;
            }
        };
        let opened = tokio::select! {
            opened = scene.open_in_time(Duration::from_millis(400)).attempts(100).into_future() => opened,
            failed = again_and_again => return failed,
        };
        let (tried, nothing_else) = faults(expect_error(opened)?)?;
        ensure!(nothing_else && tried.len() < 100, "{} were tried", tried.len());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_takes_nothing_of_the_time_to_wait() -> Result<()> {
    everywhere(async |scene| {
        let limit = Duration::from_secs(2);
        let mut taken = take_all(scene).await?;
        scene.log.break_with("a", Flaw::OpenTakesLong);
        free_first(&mut taken).await?;
        let asking = tokio::spawn(scene.open_in_time(limit).into_future());
        eventually(SOON, async || {
            ensure!(*locked(&scene.log.events) == ["open a"]);
            Ok(())
        })
        .await?;
        sleep(limit).await;
        scene.log.break_with("a", Flaw::OpenFails);
        scene.in_line(1).await?;
        free_first(&mut taken).await?;
        let object = soon(asking).await???;
        assert_eq!(object.key().as_str(), "b");
        object.close().await?;
        free_all(scene, taken).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_dropped_leaves_the_line_or_gives_back_what_it_opens() -> Result<()> {
    everywhere(async |scene| {
        let mut taken = take_all(scene).await?;
        in_line(scene, 1, scene.open_in_time(SOON)).await?.abort();
        scene.in_line(0).await?;
        free_first(&mut taken).await?;
        assert_eq!(scene.pool.info().await?.counts.free, 1);
        assert!(scene.log.take_events().is_empty());

        taken.extend(scene.pool.malloc().await?);
        scene.log.break_with("a", Flaw::OpenHangs);
        let asking = in_line(scene, 1, scene.open_in_time(SOON)).await?;
        free_first(&mut taken).await?;
        eventually(SOON, async || {
            ensure!(*locked(&scene.log.events) == ["open a"]);
            Ok(())
        })
        .await?;
        assert!(scene.is_leased("a").await?);
        asking.abort();
        free_all(scene, taken).await?;
        scene.settled().await?;
        scene.ensure_quarantined(&[]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_waits_as_the_request_did() -> Result<()> {
    everywhere(async |scene| {
        let object = scene.open_in_time(SOON).await?;
        let mut others = take_all(scene).await?;
        scene.log.break_with("a", Flaw::Unhealthy);
        let refreshing = tokio::spawn(object.refresh());
        scene.in_line(1).await?;
        scene.ensure_quarantined(&["a"]).await.context("it waits when the broken one is given up")?;
        free_first(&mut others).await?;
        let object = soon(refreshing).await???;
        assert_eq!(object.key().as_str(), "b");
        let token = object.lease().fencing_token();
        let object = object.refresh().await?;
        assert_eq!(object.lease().fencing_token(), token, "it is healthy");
        object.close().await?;

        let object = scene.open_in_time(Duration::from_millis(300)).await?;
        scene.log.break_with("b", Flaw::CheckFails);
        let (tried, nothing_else) = faults(expect_error(soon(object.refresh()).await?)?)?;
        assert!(matches!(&tried[..], [(b, Fault::Check(_))] if b == "b") && nothing_else);
        free_all(scene, others).await?;
        scene.ensure_quarantined(&["a", "b"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_a_session_is_waited_for_until_that_is_over() -> Result<()> {
    everywhere(async |scene| {
        let shift = scene.pool.client().session("shift").start().await?;
        let open = || scene.pool.malloc().session(&shift).wait(SOON).open(scene.kind());
        let mut taken = take_all(scene).await?;
        let asking = in_line(scene, 1, open()).await?;
        assert_eq!(scene.pool.waiters(0, 1).await?.waiters[0].session.as_deref(), Some(shift.id()));
        free_first(&mut taken).await?;
        let object = soon(asking).await???;
        assert_eq!((object.key().as_str(), scene.pool.sessions().await?[0].leases), ("a", 1));

        let asking = in_line(scene, 1, open()).await?;
        shift.clone().end().await?;
        assert!(matches!(expect_error(soon(asking).await??)?, OpenError::Lease(Error::SessionOver { .. })));
        soon(object.lost()).await?;
        assert_eq!(object.lease().lost_reason(), Some(LostReason::Ended));
        assert!(matches!(expect_error(soon(object.refresh()).await?)?, OpenError::Lease(Error::SessionOver { .. })));
        assert_eq!(scene.log.late.swap(0, Ordering::SeqCst), 1, "it was held no more when it was closed");
        free_all(scene, taken).await?;
        scene.ensure_quarantined(&[]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_are_served_in_order_of_arrival_and_priority() -> Result<()> {
    everywhere(async |scene| {
        let mut taken = take_all(scene).await?;
        let first = in_line(scene, 1, scene.open_in_time(SOON)).await?;
        let second = in_line(scene, 2, scene.open_in_time(SOON)).await?;
        let urgent = scene.pool.malloc().wait(SOON).priority(1).open(scene.kind());
        let urgent = in_line(scene, 3, urgent).await?;
        free_first(&mut taken).await?;
        let mut waiting = 3;
        for asking in [urgent, first, second] {
            waiting -= 1;
            let object = soon(asking).await???;
            assert_eq!(object.key().as_str(), "a");
            scene.in_line(waiting).await?;
            object.close().await?;
        }
        free_all(scene, taken).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_labels_are_waited_for() -> Result<()> {
    everywhere(async |scene| {
        let indexes = vec![vec!["zone".to_owned()]];
        let settings = PoolSettings { order: Order::Sequential, indexes, ..PoolSettings::default() };
        scene.pool.configure(&settings, &Ownership::default()).await?;
        scene.pool.extend([Item::new("b".parse()?).label("zone", "eu")]).await?;
        let required = BindOptions { policy: BindPolicy::Required, ..BindOptions::default() };
        scene.pool.bind("night", "c", &required).await?;
        let taken = scene.pool.malloc().bind("night").await?.context("reserved")?;
        let mut others = take_all(scene).await?;

        let named = Sessions { name: Some("night"), ..scene.kind() };
        let named = in_line(scene, 1, scene.pool.malloc().wait(SOON).open(named)).await?;
        let labelled = scene.pool.malloc().select("zone=eu".parse()?).wait(SOON).open(scene.kind());
        let labelled = in_line(scene, 2, labelled).await?;
        free_first(&mut others).await?;
        assert_eq!(scene.pool.info().await?.counts.free, 1, "a is for neither of them");
        free_first(&mut others).await?;
        let object = soon(labelled).await???;
        assert_eq!(object.key().as_str(), "b");
        object.close().await?;
        taken.free().await?;
        let object = soon(named).await???;
        assert_eq!((object.key().as_str(), object.lease().binding().map(AsRef::as_ref)), ("c", Some("night")));
        object.close().await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_none_and_other_nonsense_changes_nothing() -> Result<()> {
    everywhere(async |scene| {
        let wrong: [(Open<Sessions, Waiting>, &str); 5] = [
            (scene.open_in_time(Duration::ZERO), "time to wait 0ns is not valid: allowed is 1 ms to 24 h"),
            (scene.open_in_time(Duration::from_hours(25)), "time to wait 90000s"),
            (scene.pool.malloc().wait(SOON).priority(101).open(scene.kind()), "priority 101"),
            (scene.open_in_time(SOON).attempts(0), "number of attempts 0"),
            (scene.pool.malloc().select("zone=eu".parse()?).wait(SOON).open(scene.kind()), "pool default/devices"),
        ];
        for (open, text) in wrong {
            let error = expect_error(open.await)?.to_string();
            assert!(error.starts_with(text), "{error}");
        }
        assert_eq!(scene.pool.info().await?.counters.granted, 0);
        scene.in_line(0).await?;
        assert!(scene.log.take_events().is_empty());
        Ok(())
    })
    .await
}
