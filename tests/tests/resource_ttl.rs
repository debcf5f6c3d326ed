//! Resources that are declared for a time: they leave when it is over, drain if they are leased then, and stay if they
//! are declared again before. On Redis 7 and Valkey 9, on a clock that only the test moves.

use std::{num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server};
use redis_allocator::{
    Client, Error, GcReport, Item, Mode, Origin, Ownership, Place, Pool, PoolSettings, Removal, ResourceKey,
    SyncOptions, SyncOutcome, test_clock::TestClock,
};

const HOUR: Duration = Duration::from_hours(1);

struct World {
    _server: Server,
    pool: Pool,
    clock: TestClock,
}

impl World {
    async fn new(flavor: Flavor, settings: &PoolSettings) -> Result<Self> {
        let server = Server::start(flavor).await?;
        let clock = TestClock::at(Duration::from_hours(500_000));
        let pool = Client::builder(server.url()).test_clock(clock.clone()).connect().await?.pool("proxies")?;
        pool.configure(settings, &Ownership::default()).await?;
        Ok(Self { _server: server, pool, clock })
    }

    /// What a pass of the garbage collection does after this time.
    async fn gc_after(&self, time: Duration) -> Result<GcReport> {
        self.clock.advance(time);
        Ok(self.pool.gc(200).await?)
    }

    /// What is declared, and that nothing is broken.
    async fn declared(&self) -> Result<String> {
        let broken = self.pool.check().await?;
        ensure!(broken.is_empty(), "{broken:?}");
        let mut keys: Vec<_> = self.pool.keys().await?.iter().map(ToString::to_string).collect();
        keys.sort();
        Ok(keys.join(" "))
    }
}

fn items(names: &str) -> Vec<Item> {
    names.split_whitespace().map(|name| Item::new(name.parse().expect("a key"))).collect()
}

fn left(report: &GcReport) -> Vec<&str> {
    let mut left: Vec<_> = report.left.iter().map(ResourceKey::as_str).collect();
    left.sort_unstable();
    left
}

#[tokio::test]
async fn what_is_added_for_a_time_leaves_unless_it_is_added_again() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &PoolSettings::default()).await?;
        let pool = &world.pool;
        pool.extend(items("for-good")).await?;
        ensure!(pool.extend_for(HOUR, items("a b c d")).await? == 4);
        ensure!(world.gc_after(HOUR / 2).await? == GcReport::default());
        // One is added again, one for good, one lets the time pass, and one is leased when it does.
        ensure!(pool.extend_for(HOUR, items("a")).await? == 0);
        ensure!(pool.extend(items("b")).await? == 0);
        let mut held = pool.malloc().ttl(HOUR * 3).up_to(5).await?;
        held.retain(|lease| lease.key().as_str() == "d");
        let report = world.gc_after(HOUR / 2).await?;
        ensure!(left(&report) == ["c", "d"] && !report.more, "{report:?}");
        ensure!(world.declared().await? == "a b for-good");

        // The leased one drains.
        let state = pool.get("d").await?.context("leased still")?;
        ensure!(!state.declared && matches!(state.place, Place::Leased(_)), "{state:?}");
        ensure!(pool.info().await?.counts.draining == 1);
        let lease = held.pop().context("d was leased")?;
        lease.renew().await?;
        lease.free().await?;
        ensure!(pool.get("d").await?.is_none());

        ensure!(left(&world.gc_after(HOUR / 2).await?) == ["a"]);
        world.gc_after(HOUR * 24 * 365).await?;
        ensure!(world.declared().await? == "b for-good");
        // What was for good may be there for a time from now on.
        pool.extend_for(HOUR, items("b")).await?;
        ensure!(left(&world.gc_after(HOUR).await?) == ["b"]);
        ensure!(world.declared().await? == "for-good");
    }
    Ok(())
}

#[tokio::test]
async fn a_list_assigned_for_good_is_so_though_part_of_it_was_declared_for_a_time() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &PoolSettings::default()).await?;
        let pool = &world.pool;
        pool.assign(items("a b")).await?;
        ensure!(pool.assign(items("a b")).await? == SyncOutcome::Unchanged);
        ensure!(pool.extend_for(HOUR, items("a")).await? == 0);
        ensure!(pool.foresee_departures().await?.len() == 1);
        let outcome = pool.assign(items("a b")).await?;
        ensure!(outcome != SyncOutcome::Unchanged && pool.foresee_departures().await?.is_empty(), "{outcome:?}");
        ensure!(world.gc_after(HOUR * 2).await?.left.is_empty() && world.declared().await? == "a b");
    }
    Ok(())
}

#[tokio::test]
async fn a_list_assigned_for_a_time_stays_as_long_as_it_is_assigned_again() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &PoolSettings::default()).await?;
        let pool = &world.pool;
        let many: Vec<_> = (0..450).map(|i| format!("r{i:03}")).collect();
        let many = many.join(" ");
        let outcome = pool.assign_for(HOUR, items(&many)).await?;
        ensure!(matches!(outcome, SyncOutcome::Applied { added: 450, removed: 0, .. }), "{outcome:?}");
        // The same list again and again: it never changes, and each time counts from then on.
        for _ in 0..3 {
            ensure!(world.gc_after(HOUR * 3 / 4).await? == GcReport::default());
            let outcome = pool.assign_for(HOUR, items(&many)).await?;
            ensure!(
                matches!(outcome, SyncOutcome::Applied { added: 0, updated: 0, removed: 0, .. }),
                "not written: {outcome:?}"
            );
        }
        // A shorter one takes the others back at once.
        let outcome = pool.assign_for(HOUR, items("r000 r001 r002 new")).await?;
        ensure!(matches!(outcome, SyncOutcome::Applied { added: 1, removed: 447, .. }), "{outcome:?}");
        ensure!(world.declared().await? == "new r000 r001 r002");

        // Assigned for good, it stays, although nothing else of it changed.
        let outcome = pool.assign(items("r000 r001 r002 new")).await?;
        ensure!(outcome != SyncOutcome::Unchanged);
        ensure!(pool.assign(items("r000 r001 r002 new")).await? == SyncOutcome::Unchanged);
        ensure!(world.gc_after(HOUR * 24).await? == GcReport::default());
        ensure!(world.declared().await? == "new r000 r001 r002");
        // And the other way round.
        pool.assign_for(HOUR, items("r000 r001 r002 new")).await?;
        ensure!(left(&world.gc_after(HOUR).await?).len() == 4);
        ensure!(world.declared().await?.is_empty());
        // What left is new when it comes back.
        let outcome = pool.assign_for(HOUR, items("r000")).await?;
        ensure!(matches!(outcome, SyncOutcome::Applied { added: 1, .. }), "{outcome:?}");
        ensure!(pool.clear().await? == 1);
        ensure!(world.gc_after(HOUR).await? == GcReport::default());
    }
    Ok(())
}

#[tokio::test]
async fn what_a_source_no_longer_shows_is_kept_for_a_while() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &PoolSettings::default()).await?;
        let (pool, source) = (&world.pool, Origin::Source("eu".to_owned()));
        let keep = SyncOptions { keep_missing: Some(HOUR), removal: Removal::Revoke, ..SyncOptions::default() };
        let sync = async |shown: &str| pool.sync(&source, items(shown), &keep).await;
        sync("a b c d").await?;
        pool.extend(items("d")).await?;

        let foreseen = pool.foresee_syncs(vec![(source.clone(), items("a"))], &keep).await?;
        let later: Vec<_> = foreseen[0].later.iter().map(ResourceKey::as_str).collect();
        ensure!(later == ["b", "c", "d"] && foreseen[0].removed.is_empty() && foreseen[0].kept.is_empty());
        let outcome = sync("a").await?;
        ensure!(outcome == foreseen[0].outcome, "{outcome:?}");
        ensure!(matches!(outcome, SyncOutcome::Applied { added: 0, removed: 0, draining: 0, revoked: 0, .. }));
        ensure!(world.declared().await? == "a b c d");
        ensure!(sync("a").await? == SyncOutcome::Unchanged);

        // One is shown again in time. What else changes meanwhile does not give the others more time.
        ensure!(world.gc_after(HOUR / 2).await? == GcReport::default());
        sync("a e").await?;
        sync("a b").await?;
        let mut held = pool.malloc().ttl(HOUR * 3).up_to(5).await?;
        held.retain(|lease| lease.key().as_str() == "c");
        let report = world.gc_after(HOUR / 2).await?;
        // What another declares as well stays.
        ensure!(left(&report) == ["c"], "{report:?}");
        ensure!(world.declared().await? == "a b d e");
        ensure!(pool.get("d").await?.context("declared")?.origins == [Origin::Api]);
        // It was leased: it drains, whatever the policy.
        held[0].renew().await?;
        ensure!(left(&world.gc_after(HOUR / 2).await?) == ["e"]);

        // It comes back while it is leased, and stays.
        let outcome = sync("a b c").await?;
        ensure!(matches!(outcome, SyncOutcome::Applied { added: 1, .. }), "{outcome:?}");
        held.pop().context("c was leased")?.free().await?;
        ensure!(matches!(pool.get("c").await?.context("declared")?.place, Place::Free { .. }));
        ensure!(world.gc_after(HOUR * 24).await?.left.is_empty());
        // Without that option it leaves at once, what was missing before too.
        sync("a b").await?;
        let outcome = pool.sync(&source, items("a"), &SyncOptions::default()).await?;
        ensure!(matches!(outcome, SyncOutcome::Applied { removed: 2, .. }), "{outcome:?}");
        ensure!(world.declared().await? == "a d");
        ensure!(world.gc_after(HOUR * 24).await? == GcReport::default());
    }
    Ok(())
}

#[tokio::test]
async fn another_time_reaches_what_is_missing_already_though_the_list_is_the_same() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &PoolSettings::default()).await?;
        let (pool, source) = (&world.pool, Origin::Source("eu".to_owned()));
        let keep = |keep_missing| SyncOptions { keep_missing, ..SyncOptions::default() };
        let year = HOUR * 24 * 365;
        for shown in ["a", ""] {
            pool.sync(&source, items("a b c"), &keep(Some(year))).await?;
            pool.sync(&source, items(shown), &keep(Some(year))).await?;
            // More time is for what is missed from now on.
            pool.sync(&source, items(shown), &keep(Some(year * 2))).await?;
            let at = |departures: &[redis_allocator::Departure]| departures.iter().map(|it| it.at).max();
            let before = at(&pool.foresee_departures().await?);
            pool.sync(&source, items(shown), &keep(Some(HOUR))).await?;
            let after = at(&pool.foresee_departures().await?);
            ensure!(after < before, "{after:?} {before:?}");
            ensure!(pool.sync(&source, items(shown), &keep(Some(HOUR))).await? == SyncOutcome::Unchanged);
            let report = world.gc_after(HOUR).await?;
            let kept = world.declared().await?;
            ensure!(kept == shown && !report.left.is_empty(), "{kept} {report:?}");

            // No time at all: they leave at once.
            pool.sync(&source, items("a b c"), &keep(Some(year))).await?;
            pool.sync(&source, items(shown), &keep(Some(year))).await?;
            pool.sync(&source, items(shown), &keep(None)).await?;
            ensure!(world.declared().await? == shown && pool.foresee_departures().await?.is_empty());
        }
        ensure!(pool.info().await?.origins.is_empty(), "nothing is left of it");
    }
    Ok(())
}

#[tokio::test]
async fn what_leaves_a_shared_pool_drains_until_its_last_holder_leaves() -> Result<()> {
    for flavor in Flavor::ALL {
        let mode = Mode::Shared { max_holders: NonZeroU32::new(2) };
        let world = World::new(flavor, &PoolSettings { mode, ..PoolSettings::default() }).await?;
        let (pool, source) = (&world.pool, Origin::Source("eu".to_owned()));
        pool.extend_for(HOUR, items("a")).await?;
        let keep = SyncOptions { keep_missing: Some(HOUR), ..SyncOptions::default() };
        pool.sync(&source, items("b"), &keep).await?;
        let held = pool.malloc().ttl(HOUR * 3).up_to(4).await?;
        ensure!(held.len() == 4);
        pool.sync(&source, Vec::new(), &keep).await?;
        let gone = pool.foresee_syncs(vec![(source.clone(), Vec::new())], &keep).await?;
        ensure!(gone[0].outcome == SyncOutcome::Unchanged, "the source declares nothing any more: {gone:?}");
        ensure!(left(&world.gc_after(HOUR).await?) == ["a", "b"]);
        ensure!(pool.info().await?.counts.draining == 2);
        for lease in held {
            lease.renew().await?;
            lease.free().await?;
        }
        ensure!(pool.info().await?.counts.draining == 0 && pool.snapshot().await?.is_empty());
        ensure!(world.declared().await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_pass_lets_go_of_so_many_at_a_time_and_says_that_there_are_more() -> Result<()> {
    let world = World::new(Flavor::Redis, &PoolSettings::default()).await?;
    let many: Vec<_> = (0..250).map(|i| format!("r{i}")).collect();
    world.pool.extend_for(HOUR, items(&many.join(" "))).await?;
    let first = world.gc_after(HOUR).await?;
    ensure!(first.left.len() == 200 && first.more, "{} left", first.left.len());
    let second = world.pool.gc(200).await?;
    ensure!(second.left.len() == 50 && !second.more, "{} left", second.left.len());
    ensure!(world.declared().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_time_out_of_range_is_refused_and_nothing_is_written() -> Result<()> {
    let world = World::new(Flavor::Redis, &PoolSettings::default()).await?;
    for bad in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
        let refused = world.pool.extend_for(bad, items("a")).await;
        ensure!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        let refused = world.pool.assign_for(bad, items("a")).await;
        ensure!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        let options = SyncOptions { keep_missing: Some(bad), ..SyncOptions::default() };
        let refused = world.pool.sync(&Origin::Spec, items("a"), &options).await;
        ensure!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    ensure!(world.declared().await?.is_empty());
    Ok(())
}
