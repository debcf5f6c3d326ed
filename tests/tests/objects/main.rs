//! Allocatable objects on real servers: what is opened is closed once, before its resource is given back; what failed is
//! quarantined before; and whoever gives up, loses the lease or panics on the way leaves nothing behind.

mod giving_up;
mod sessions;
mod waiting;

use std::{
    future::IntoFuture,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{
    BindOptions, BindPolicy, Cause, Client, Error, Fault, LostReason, Open, OpenError, Order, Ownership, PoolSettings,
    ResourceKey, Timestamp,
};
use tokio::time::sleep;

use self::sessions::{Flaw, Log, SOON, Sessions, everywhere, locked};

fn faults(error: OpenError) -> Result<(Vec<(String, Fault)>, bool)> {
    match error {
        OpenError::Unusable { failures, nothing_else, .. } => {
            let unexpected = failures.iter().find_map(|failure| failure.not_quarantined.clone());
            ensure!(unexpected.is_none(), "{unexpected:?}");
            Ok((failures.into_iter().map(|failure| (failure.key.to_string(), failure.fault)).collect(), nothing_else))
        }
        other => bail!("{other}"),
    }
}

fn expect_error<T: std::fmt::Debug, E>(result: Result<T, E>) -> Result<E> {
    match result {
        Ok(unexpected) => bail!("it should have failed: {unexpected:?}"),
        Err(error) => Ok(error),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_opened_and_checked_and_closed_before_its_resource_is_free() -> Result<()> {
    everywhere(async |scene| {
        let mut session = scene.opened().await?;
        assert_eq!((session.key().as_str(), session.key.as_str()), ("a", "a"));
        assert_eq!(session.params["password"], "hunter2");
        session.key.push_str(""); // the object itself can be changed
        assert!(session.is_healthy().await? && !session.is_lost());
        assert!(scene.is_leased("a").await?);
        assert_eq!(session.lease().owner(), "tester");
        assert_eq!(scene.log.take_events(), ["open a", "check a", "check a"]);
        session.close().await?;
        assert_eq!(scene.log.take_events(), ["close a"]);
        assert!(!scene.is_leased("a").await?);
        // An Arc of a kind is a kind: the configuration can be shared.
        let kind = Arc::new(scene.kind());
        let first = scene.pool.malloc().open(Arc::clone(&kind)).await?.context("free")?;
        let second = scene.pool.malloc().open(Arc::clone(&kind)).await?.context("free")?;
        assert_eq!((first.key().as_str(), second.key().as_str()), ("a", "b"));
        first.close().await?;
        second.close().await?;
        scene.ensure_quarantined(&[]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_is_kept_alive_unless_it_must_not_be() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let pool = Client::connect(&server.url()).await?.pool("devices")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        pool.extend(["a".parse::<ResourceKey>()?, "b".parse()?]).await?;
        let kind = Arc::new(Sessions { name: None, pool: pool.clone(), log: Arc::default() });
        let ttl = Duration::from_secs(2);
        let kept = pool.malloc().ttl(ttl).open(Arc::clone(&kind)).await?.context("free")?;
        let left = pool.malloc().ttl(ttl).open(Arc::clone(&kind)).keep_alive(false).await?.context("free")?;
        tokio::time::timeout(SOON, left.lost()).await?;
        assert!(left.is_lost() && !kept.is_lost());
        left.close().await?;
        sleep(ttl).await;
        assert!(!kept.is_lost());
        kept.close().await?;
        kind.log.ensure_over()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_free_is_no_error_and_bad_settings_change_nothing() -> Result<()> {
    everywhere(async |scene| {
        let unknown = scene.pool.client().pool("unknown")?.malloc().open(scene.kind()).await;
        assert!(matches!(expect_error(unknown)?, OpenError::Lease(Error::UnknownPool { .. })));
        let wrong: [(Open<Sessions>, &str); 5] = [
            (scene.open().attempts(0), "number of attempts 0 is not valid: allowed is 1 to 100"),
            (scene.open().attempts(101), "number of attempts 101"),
            (scene.open().quarantine(Duration::ZERO), "duration of the quarantine 0ns"),
            (scene.open().close_timeout(Duration::ZERO), "time limit for closing 0ns"),
            (scene.pool.malloc().bind("").open(scene.kind()), "binding name \"\""),
        ];
        for (open, text) in wrong {
            let error = expect_error(open.await)?.to_string();
            assert!(error.starts_with(text), "{error}");
        }
        assert_eq!(scene.pool.info().await?.counters.granted, 0);
        let taken = scene.pool.malloc().up_to(3).await?;
        assert!(scene.open().await?.is_none());
        scene.pool.free_all(taken).await?;
        assert!(scene.log.take_events().is_empty());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_quarantined_and_the_next_one_tried() -> Result<()> {
    everywhere(async |scene| {
        scene.log.break_with("a", Flaw::OpenFails);
        scene.log.break_with("b", Flaw::Unhealthy);
        let session = scene.opened().await?;
        assert_eq!(session.key().as_str(), "c");
        assert_eq!(scene.log.take_events(), ["open a", "open b", "check b", "close b", "open c", "check c"]);
        session.close().await?;
        scene.ensure_quarantined(&["a", "b"]).await?;
        let marks = scene.marks("a").await?;
        let minute = scene.clock.micros() / 1000 + 60_000;
        assert_eq!(marks[0].cause, Cause::Manual);
        assert_eq!(marks[0].until.map(Timestamp::as_millis), Some(minute));
        // The value of a param is not told.
        assert_eq!(marks[0].reason, "tester: it could not be opened: login failed: {password} is wrong");
        assert_eq!(scene.marks("b").await?[0].reason, "tester: it is not healthy");
        // A health check that succeeds knows less.
        assert!(!scene.pool.unquarantine("a", Some(Cause::Probe)).await?);
        scene.ensure_quarantined(&["a", "b"]).await?;
        scene.log.mend();
        scene.clock.advance(Duration::from_secs(61));
        scene.pool.gc(200).await?;
        scene.ensure_quarantined(&[]).await?;
        let again = scene.opened().await?;
        assert_eq!(again.key().as_str(), "a");
        again.close().await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_tried_than_was_asked_for() -> Result<()> {
    everywhere(async |scene| {
        scene.log.break_with("a", Flaw::OpenFails);
        scene.log.break_with("b", Flaw::CheckFails);
        scene.log.break_with("c", Flaw::Unhealthy);
        let error = expect_error(scene.open().attempts(2).quarantine(Duration::from_secs(5)).await)?;
        assert_eq!(
            error.to_string(),
            "no resource of pool default/devices can be used: a: it could not be opened: login failed: hunter2 is \
             wrong; b: its health could not be checked: no answer"
        );
        let (faults_found, nothing_else) = faults(error)?;
        assert!(matches!(&faults_found[..], [(a, Fault::Open(_)), (b, Fault::Check(_))] if a == "a" && b == "b"));
        assert!(!nothing_else);
        scene.ensure_quarantined(&["a", "b"]).await?;
        let (faults_found, nothing_else) = faults(expect_error(scene.open().attempts(2).await)?)?;
        assert!(matches!(&faults_found[..], [(c, Fault::Unhealthy)] if c == "c"));
        assert!(nothing_else);
        assert!(scene.open().await?.is_none(), "now nothing is free");
        // The quarantine of five seconds is over, that of a minute is not.
        scene.log.mend();
        scene.clock.advance(Duration::from_secs(6));
        let session = scene.opened().await?;
        assert_eq!(session.key().as_str(), "a");
        session.close().await?;
        scene.ensure_quarantined(&["c"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_quarantined_for_longer_stays_so() -> Result<()> {
    everywhere(async |scene| {
        let (first, second) = (scene.opened().await?, scene.opened().await?);
        for (key, duration) in [("a", None), ("b", Some(Duration::from_secs(1)))] {
            scene.log.break_with(key, Flaw::Unhealthy);
            let quarantined = scene.pool.quarantine(key, duration, "the fan is loud", Cause::Manual).await?;
            assert!(!quarantined.in_effect, "it is leased");
        }
        let first = first.refresh().await?;
        assert_eq!(first.key().as_str(), "c");
        let (tried, nothing_else) = faults(expect_error(second.refresh().await)?)?;
        assert!(matches!(&tried[..], [(b, Fault::Unhealthy)] if b == "b") && nothing_else);
        let (a, b) = (scene.marks("a").await?, scene.marks("b").await?);
        assert_eq!((a.len(), a[0].until, a[0].reason.as_str()), (1, None, "the fan is loud"));
        assert_eq!((b.len(), b[0].reason.as_str()), (1, "tester: it is not healthy"));
        first.close().await?;
        scene.ensure_quarantined(&["a", "b"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_with_a_name_follows_its_soft_binding() -> Result<()> {
    everywhere(async |scene| {
        let named = |name| Sessions { name: Some(name), ..scene.kind() };
        let taken = scene.pool.malloc().await?.context("free")?;
        let session = scene.pool.malloc().open(named("night")).await?.context("free")?;
        assert_eq!((session.key().as_str(), session.lease().binding().map(AsRef::as_ref)), ("b", Some("night")));
        session.close().await?;
        taken.free().await?;
        let session = scene.pool.malloc().open(named("night")).await?.context("free")?;
        assert_eq!(session.key().as_str(), "b", "a would be the next one");
        session.close().await?;
        // A name in the request is stronger.
        let session = scene.pool.malloc().bind("day").open(named("night")).await?.context("free")?;
        assert_eq!((session.key().as_str(), session.lease().binding().map(AsRef::as_ref)), ("a", Some("day")));
        session.close().await?;
        // What is broken is left for another one, and the name with it.
        scene.log.break_with("b", Flaw::Unhealthy);
        let session = scene.pool.malloc().open(named("night")).await?.context("free")?;
        assert_eq!(session.key().as_str(), "a");
        session.close().await?;
        assert_eq!(scene.pool.binding("night").await?.context("bound")?.resource.as_str(), "a");
        // A name that must have one resource gets no other.
        let required = BindOptions { policy: BindPolicy::Required, ..BindOptions::default() };
        scene.pool.bind("only", "c", &required).await?;
        scene.log.break_with("c", Flaw::OpenFails);
        let (tried, nothing_else) = faults(expect_error(scene.pool.malloc().open(named("only")).await)?)?;
        assert_eq!((tried.len(), tried[0].0.as_str(), nothing_else), (1, "c", true));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_keeps_what_is_healthy_and_replaces_what_is_not() -> Result<()> {
    everywhere(async |scene| {
        let session = scene.opened().await?;
        let token = session.lease().fencing_token();
        let session = session.refresh().await?;
        assert_eq!(session.lease().fencing_token(), token);
        scene.log.take_events();

        scene.log.break_with("a", Flaw::CheckFails);
        scene.log.break_with("b", Flaw::OpenFails);
        let session = session.refresh().await?;
        assert_eq!(scene.log.take_events(), ["check a", "close a", "open b", "open c", "check c"]);
        assert_eq!(session.key().as_str(), "c");
        scene.log.break_with("c", Flaw::CloseFails);
        assert!(session.lease().fencing_token() > token);
        let session = session.refresh().await?;
        assert_eq!(session.key().as_str(), "c");

        scene.log.break_with("c", Flaw::Unhealthy);
        let (tried, nothing_else) = faults(expect_error(session.refresh().await)?)?;
        assert!(matches!(&tried[..], [(c, Fault::Unhealthy)] if c == "c") && nothing_else);
        scene.ensure_quarantined(&["a", "b", "c"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_whose_lease_is_lost_is_not_handed_out() -> Result<()> {
    for (flaw, opened) in [(Flaw::OpenHangs, 0), (Flaw::CheckHangs, 1)] {
        for flavor in Flavor::ALL {
            let server = Server::start(flavor).await?;
            let pool = Client::connect(&server.url()).await?.pool("devices")?;
            let settings = PoolSettings { order: Order::Sequential, ..PoolSettings::default() };
            pool.configure(&settings, &Ownership::default()).await?;
            pool.extend(["a".parse::<ResourceKey>()?, "b".parse()?]).await?;
            let log = Arc::<Log>::default();
            let kind = Sessions { name: None, pool: pool.clone(), log: Arc::clone(&log) };
            log.break_with("a", flaw);
            let opening = tokio::spawn(pool.malloc().ttl(Duration::from_secs(2)).open(kind).into_future());
            eventually(SOON, async || {
                ensure!(locked(&log.events).last().is_some_and(|event| event == "open a" || event == "check a"));
                ensure!(locked(&log.closed).len() == opened);
                Ok(())
            })
            .await?;
            assert!(pool.force_free("a").await?);
            // Somebody else has it now; its next renewal tells the one who is opening it.
            let other = pool.malloc().await?.context("a is free again")?;
            assert_eq!(other.key().as_str(), "a");
            let session = tokio::time::timeout(SOON, opening).await???.context("b is free")?;
            assert_eq!(session.key().as_str(), "b");
            assert!(pool.get("a").await?.context("a")?.marks.is_empty(), "it is not known to be broken");
            log.mend();

            // One that is lost later is replaced.
            assert!(pool.force_free("b").await?);
            tokio::time::timeout(SOON, session.lost()).await?;
            assert_eq!(session.lease().lost_reason(), Some(LostReason::Ended));
            other.free().await?;
            let session = session.refresh().await?;
            assert_eq!(session.key().as_str(), "a");
            session.close().await?;
            assert_eq!(*locked(&log.closed), vec![1; opened + 2]);
            assert_eq!(pool.info().await?.counts.free, 2);
            assert!(pool.check().await?.is_empty());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_tries_both_and_tells_what_failed() -> Result<()> {
    everywhere(async |scene| {
        let session = scene.opened().await?;
        scene.log.break_with("a", Flaw::CloseFails);
        let error = expect_error(session.close().await)?;
        assert_eq!(
            error.to_string(),
            "a of pool default/devices was given up with errors; closing it failed: it does not hang up"
        );
        assert!(error.lease.is_none() && !scene.is_leased("a").await?);

        scene.log.break_with("a", Flaw::CloseHangs);
        let session = scene.open().close_timeout(Duration::from_millis(50)).await?.context("free")?;
        let error = expect_error(session.close().await)?;
        assert_eq!(error.object.map(|error| error.to_string()), Some("it took longer than 50ms".to_owned()));
        assert!(!scene.is_leased("a").await?);
        scene.log.ensure_over()?;

        // What was taken away can't be freed, and is closed all the same.
        scene.log.mend();
        let session = scene.opened().await?;
        scene.pool.force_free("a").await?;
        let error = expect_error(session.close().await)?;
        assert!(matches!((&error.object, &error.lease), (None, Some(Error::NotOwner { .. }))), "{error}");
        assert_eq!(*locked(&scene.log.closed), [1, 1, 1]);
        assert_eq!(scene.log.late.swap(0, Ordering::SeqCst), 1, "it was held no more");
        scene.ensure_quarantined(&[]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_object_is_closed_and_then_its_resource_is_free() -> Result<()> {
    everywhere(async |scene| {
        for flaw in [None, Some(Flaw::CloseFails), Some(Flaw::ClosePanics), Some(Flaw::CloseHangs)] {
            let session = scene.open().close_timeout(Duration::from_millis(50)).await?.context("free")?;
            if let Some(flaw) = flaw {
                scene.log.break_with("a", flaw);
            }
            drop(session);
            scene.settled().await.with_context(|| format!("{flaw:?}"))?;
        }
        // An end that nobody waits for any more is carried on.
        scene.log.mend();
        let session = scene.opened().await?;
        drop(session.close());
        scene.settled().await?;
        scene.ensure_quarantined(&[]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_leaves_nothing_behind() -> Result<()> {
    everywhere(async |scene| {
        for (flaw, sessions) in [(Flaw::OpenPanics, 0), (Flaw::CheckPanics, 1)] {
            scene.log.break_with("a", flaw);
            let opening = tokio::spawn(scene.open().into_future());
            assert!(opening.await.is_err_and(|error| error.is_panic()), "{flaw:?}");
            scene.settled().await?;
            assert_eq!(locked(&scene.log.closed).len(), sessions);
            scene.ensure_quarantined(&[]).await?;
        }
        scene.log.mend();
        let session = scene.opened().await?;
        scene.log.break_with("a", Flaw::ClosePanics);
        assert!(tokio::spawn(session.close()).await.is_err_and(|error| error.is_panic()));
        scene.settled().await?;
        scene.ensure_quarantined(&[]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_quarantined_is_told_and_given_back() -> Result<()> {
    everywhere(async |scene| {
        let marks = "ra:{default/devices}:marks";
        scene.log.break_with("a", Flaw::Unhealthy);
        scene.server.cmd::<()>(&["SET", marks, "no hash"]).await?;
        let session = scene.open().attempts(1).await;
        let OpenError::Unusable { failures, .. } = expect_error(session)? else { bail!("it is another error") };
        assert_eq!(failures.len(), 1);
        assert!(matches!(failures[0].not_quarantined, Some(Error::Server { .. })), "{failures:?}");
        assert!(failures[0].to_string().contains("a: it is not healthy (and it could not be quarantined: "));
        scene.server.cmd::<()>(&["DEL", marks]).await?;
        scene.ensure_quarantined(&[]).await
    })
    .await
}
