//! Pools whose resources have several holders at once: whose turn it is, how many may, and what becomes of holders when
//! their resource is quarantined, removed, reserved or forgotten. On Redis 7 and Valkey 9, on a clock that only the test
//! moves.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server};
use redis_allocator::{
    BindOptions, BindPolicy, Cause, Client, Error, Item, Lease, Leaving, LostReason, Mode, Order, Origin, Ownership,
    Place, Pool, PoolSettings, Removal, ResourceKey, ResourceState, SyncOptions, SyncOutcome, test_clock::TestClock,
};

const TTL: Duration = Duration::from_mins(1);
/// After it, a lease that ran out is given to others.
const PAST_TTL: Duration = Duration::from_secs(63);

/// One pool on one server, and the clock of its scripts.
struct World {
    server: Server,
    pool: Pool,
    clock: TestClock,
}

fn shared(max_holders: u32, order: Order) -> PoolSettings {
    let mode = Mode::Shared { max_holders: NonZeroU32::new(max_holders) };
    PoolSettings { mode, order, default_ttl: TTL, ..PoolSettings::default() }
}

fn keys(names: &[&str]) -> Vec<ResourceKey> {
    names.iter().map(|name| name.parse().expect("a key")).collect()
}

fn names(leases: &[Lease]) -> Vec<&str> {
    leases.iter().map(|lease| lease.key().as_str()).collect()
}

impl World {
    async fn new(flavor: Flavor, settings: &PoolSettings, resources: &[&str]) -> Result<Self> {
        let server = Server::start(flavor).await?;
        let clock = TestClock::at(Duration::from_hours(500_000));
        let client = Client::builder(server.url()).owner("tester").test_clock(clock.clone()).connect().await?;
        let pool = client.pool("accounts")?;
        pool.configure(settings, &Ownership::default()).await?;
        pool.extend(keys(resources)).await?;
        Ok(Self { server, pool, clock })
    }

    async fn lease(&self) -> Result<Lease> {
        self.pool.malloc().await?.context("nothing has room")
    }

    async fn leases(&self, n: usize) -> Result<Vec<Lease>> {
        let mut leases = Vec::with_capacity(n);
        for _ in 0..n {
            leases.push(self.lease().await?);
        }
        Ok(leases)
    }

    /// So many leases, which nobody keeps.
    async fn crowd(&self, n: usize) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let leases = self.pool.malloc().up_to(left.min(200)).await?;
            ensure!(!leases.is_empty(), "no room for {left} more");
            left -= leases.len();
            leases.into_iter().for_each(Lease::detach);
        }
        Ok(())
    }

    async fn state(&self, key: &str) -> Result<ResourceState> {
        self.pool.get(key).await?.with_context(|| format!("no {key}"))
    }

    async fn is_sound(&self) -> Result<()> {
        let broken = self.pool.check().await?;
        ensure!(broken.is_empty(), "{broken:?}");
        Ok(())
    }
}

#[tokio::test]
async fn resources_take_turns_exactly_even_within_a_millisecond() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(0, Order::LeastRecentlyUsed), &["a", "b", "c", "d"]).await?;
        // The clock stands still.
        let mut held = world.leases(9).await?;
        ensure!(names(&held) == ["a", "b", "c", "d", "a", "b", "c", "d", "a"], "{:?}", names(&held));
        // What is given back has had its turn all the same.
        for lease in held.drain(1..6) {
            lease.free().await?;
        }
        let more = world.pool.malloc().up_to(5).await?;
        ensure!(names(&more) == ["b", "c", "d", "a", "b"], "{:?}", names(&more));
        world.clock.advance(Duration::from_secs(1));
        let later = world.leases(4).await?;
        ensure!(names(&later) == ["c", "d", "a", "b"], "{:?}", names(&later));
        let counts = world.pool.info().await?.counts;
        ensure!((counts.total, counts.free, counts.leased) == (4, 4, 4 + 5 + 4), "{counts:?}");
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_lowered_limit_holds_before_every_resource_has_been_placed_anew() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(3, Order::Sequential), &["a", "b"]).await?;
        let held = world.leases(2).await?;
        ensure!(names(&held) == ["a", "a"], "{:?}", names(&held));
        world.pool.bind("name", "a", &BindOptions::default()).await?;
        // Whoever lowered it died before anything else.
        world.server.cmd::<()>(&["HSET", "ra:{default/accounts}:meta", "max_holders", "2"]).await?;
        let named = world.pool.malloc().bind("name").await?.context("b has room")?;
        let other = world.lease().await?;
        ensure!(names(&[named, other]) == ["b", "b"], "more than two hold a");
        ensure!(world.pool.malloc().await?.is_none());
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn higher_priority_goes_first_until_it_is_full() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(2, Order::LeastRecentlyUsed), &["a", "b"]).await?;
        world.pool.extend([Item::new("z".parse()?).priority(5)]).await?;
        let held = world.leases(5).await?;
        ensure!(names(&held) == ["z", "z", "a", "b", "a"], "{:?}", names(&held));
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_resource_is_a_semaphore_whose_permits_expire() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(3, Order::LeastRecentlyUsed), &["permit"]).await?;
        let mut held = world.leases(3).await?;
        ensure!(world.pool.malloc().await?.is_none());
        let state = world.state("permit").await?;
        ensure!(state.place == Place::Full && state.holder_count == 3 && state.holders.len() == 3, "{state:?}");
        ensure!(state.holders.iter().all(|holder| holder.owner == "tester" && !holder.offered), "{state:?}");
        let tokens: Vec<_> = held.iter().map(Lease::fencing_token).collect();
        ensure!(tokens.is_sorted() && tokens[0] < tokens[1] && tokens[1] < tokens[2], "{tokens:?}");
        world.is_sound().await?;

        // One permit comes back, and only one.
        held.remove(1).free().await?;
        ensure!(matches!(world.state("permit").await?.place, Place::Free { .. }));
        held.push(world.lease().await?);
        ensure!(world.pool.malloc().await?.is_none());
        // Two are renewed, the third runs out: its permit is another's, with nobody else to see to it.
        world.clock.advance(TTL / 2);
        held[0].renew().await?;
        held[2].renew().await?;
        world.clock.advance(PAST_TTL.saturating_sub(TTL / 2));
        let next = world.lease().await?;
        ensure!(world.pool.malloc().await?.is_none());
        ensure!(matches!(held[1].renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
        held[0].renew().await?;
        next.renew().await?;
        world.is_sound().await?;

        world.clock.advance(PAST_TTL);
        let report = world.pool.gc(200).await?;
        ensure!(report.expired.len() == 3 && report.expired.iter().all(|(key, _)| key.as_str() == "permit"));
        let info = world.pool.info().await?;
        ensure!((info.counts.free, info.counts.leased, info.counters.expired) == (1, 0, 4), "{info:?}");
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_sequential_pool_fills_the_first_one_first() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(2, Order::Sequential), &["c", "a", "b"]).await?;
        let mut held = world.leases(5).await?;
        ensure!(names(&held) == ["c", "c", "a", "a", "b"], "{:?}", names(&held));
        held.remove(1).free().await?;
        held.remove(1).free().await?;
        let again = world.leases(3).await?;
        ensure!(names(&again) == ["c", "a", "b"], "{:?}", names(&again));
        ensure!(world.pool.malloc().await?.is_none());
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_random_pool_picks_any_that_has_room() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(40, Order::Random), &["a", "b", "c"]).await?;
        let mut granted: BTreeMap<String, u32> = BTreeMap::new();
        for round in 0..60 {
            world.clock.advance(Duration::from_micros(1 + 37 * round));
            let lease = world.lease().await?;
            *granted.entry(lease.key().to_string()).or_default() += 1;
            lease.detach();
        }
        ensure!(granted.len() == 3 && granted.values().all(|&count| (8..=40).contains(&count)), "{granted:?}");
        // All 120 places, no more.
        world.crowd(60).await?;
        ensure!(world.pool.malloc().await?.is_none());
        ensure!(world.pool.info().await?.counts.leased == 120);
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_quarantine_keeps_newcomers_out_and_leaves_holders_alone() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(2, Order::LeastRecentlyUsed), &["a", "b"]).await?;
        let mut held = world.leases(4).await?;
        held.pop().context("b")?.free().await?;
        ensure!(world.pool.quarantine("a", None, "smells", Cause::Manual).await?.in_effect);
        ensure!(world.pool.quarantine("b", Some(TTL * 2), "smells, too", Cause::Manual).await?.in_effect);
        ensure!(world.pool.malloc().await?.is_none());
        let state = world.state("a").await?;
        ensure!(state.place == Place::Quarantined { until: None } && state.holder_count == 2, "{state:?}");
        world.is_sound().await?;
        for lease in &held {
            lease.renew().await?;
        }
        for lease in held {
            lease.free().await?;
        }
        ensure!(world.pool.malloc().await?.is_none());
        let counts = world.pool.info().await?.counts;
        ensure!((counts.quarantined, counts.free, counts.leased) == (2, 0, 0), "{counts:?}");
        world.is_sound().await?;
        // One ends by time, the other by word.
        world.clock.advance(TTL * 2);
        ensure!(world.lease().await?.key().as_str() == "b");
        ensure!(world.pool.unquarantine("a", Some(Cause::Manual)).await?);
        ensure!(matches!(world.state("a").await?.place, Place::Free { .. }));
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_removed_drains_until_its_last_holder_leaves() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(3, Order::Sequential), &["a", "b"]).await?;
        let mut held = world.leases(3).await?;
        for (removal, leaving) in [(Removal::Drain, Leaving::Draining), (Removal::Revoke, Leaving::Revoked)] {
            let options = SyncOptions { removal, ..SyncOptions::default() };
            let foreseen = world.pool.foresee_syncs(vec![(Origin::Api, Vec::new())], &options).await?;
            let removed: Vec<_> = foreseen[0].removed.iter().map(|(key, how)| (key.as_str(), *how)).collect();
            ensure!(removed == [("a", leaving), ("b", Leaving::AtOnce)], "{foreseen:?}");
        }
        ensure!(world.pool.shrink(["a"]).await? == 1);
        let state = world.state("a").await?;
        ensure!(!state.declared && state.holder_count == 3 && state.place == Place::Full, "{state:?}");
        ensure!(world.pool.snapshot().await?.len() == 2);
        ensure!(world.pool.info().await?.counts.draining == 1);
        ensure!(world.lease().await?.key().as_str() == "b");
        held[0].renew().await?;
        held.pop().context("three")?.free().await?;
        ensure!(world.pool.info().await?.counts.draining == 1);
        world.is_sound().await?;

        // It may come back while it is held, and go again.
        world.pool.extend(keys(&["a"])).await?;
        ensure!(world.pool.info().await?.counts.draining == 0);
        ensure!(world.state("a").await?.holder_count == 2);
        held.push(world.pool.malloc().bind("x").await?.context("b or a")?);
        world.pool.shrink(["a"]).await?;
        for lease in held {
            lease.free().await?;
        }
        ensure!(world.pool.get("a").await?.is_none());
        ensure!(world.pool.info().await?.counts.draining == 0);
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn revoking_ends_every_lease_however_many_there_are() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(0, Order::LeastRecentlyUsed), &["a"]).await?;
        let pool = &world.pool;
        // By an operator.
        let lease = world.lease().await?;
        world.crowd(450).await?;
        ensure!(pool.force_free("a").await?);
        ensure!(!pool.force_free("a").await?);
        ensure!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
        let info = pool.info().await?;
        ensure!((info.counts.leased, info.counts.free, info.counters.revoked) == (0, 1, 451), "{info:?}");
        world.is_sound().await?;

        // By the declaration.
        world.crowd(401).await?;
        let options = SyncOptions { removal: Removal::Revoke, ..SyncOptions::default() };
        let outcome = pool.sync(&Origin::Api, Vec::new(), &options).await?;
        ensure!(matches!(outcome, SyncOutcome::Applied { removed: 1, draining: 0, revoked: 1, .. }), "{outcome:?}");
        let counts = pool.info().await?.counts;
        ensure!((counts.total, counts.leased, counts.draining) == (0, 0, 0), "{counts:?}");
        ensure!(pool.get("a").await?.is_none());
        world.is_sound().await?;

        // With the pool: what is declared and what drains.
        pool.extend(keys(&["a", "b"])).await?;
        world.crowd(600).await?;
        pool.shrink(["b"]).await?;
        let retired = pool.retire(Removal::Drain).await?;
        ensure!(!retired.deleted && retired.leases_left == 600, "{retired:?}");
        let retired = pool.retire(Removal::Revoke).await?;
        ensure!(retired.deleted && retired.leases_left == 0, "{retired:?}");
        ensure!(matches!(pool.info().await, Err(Error::UnknownPool { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn a_required_binding_has_all_places_of_its_resource() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(2, Order::Sequential), &["a", "b"]).await?;
        let pool = &world.pool;
        let early = world.lease().await?;
        ensure!(early.key().as_str() == "a");
        let required = BindOptions { policy: BindPolicy::Required, ..BindOptions::default() };
        pool.bind("solo", "a", &required).await?;
        ensure!(world.state("a").await?.place == Place::Reserved);
        ensure!(pool.info().await?.counts.reserved == 1);
        world.is_sound().await?;
        // Who was there stays, and counts.
        early.renew().await?;
        let own = pool.malloc().bind("solo").await?.context("one place is left")?;
        ensure!(own.key().as_str() == "a");
        ensure!(pool.malloc().bind("solo").await?.is_none());
        early.free().await?;
        let second = pool.malloc().bind("solo").await?.context("one place came back")?;
        let others = world.leases(2).await?;
        ensure!(names(&others) == ["b", "b"] && pool.malloc().await?.is_none());
        world.is_sound().await?;
        // The resource's places are everyone's again.
        second.free().await?;
        pool.unbind("solo").await?;
        ensure!(world.lease().await?.key().as_str() == "a");
        own.renew().await?;
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_holder_has_a_lease_of_its_own() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(0, Order::LeastRecentlyUsed), &["a"]).await?;
        let (one, other) = (world.lease().await?, world.lease().await?);
        ensure!(one.key() == other.key() && one.fencing_token() < other.fencing_token());
        // One runs out, the other does not: each is renewed by itself.
        world.clock.advance(TTL / 2);
        other.renew().await?;
        world.clock.advance(TTL / 2);
        ensure!(matches!(one.renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
        other.renew().await?;
        ensure!(world.state("a").await?.holders.iter().any(|holder| holder.token == other.fencing_token()));
        // The key is not enough to give back another's.
        let key = world.pool.malloc_key(TTL).await?.context("there is room")?;
        let freed = world.pool.free_keys([&key]).await?;
        ensure!(freed.iter().all(Result::is_ok), "{freed:?}");
        let freed = world.pool.free_keys([&key]).await?;
        ensure!(matches!(freed[..], [Err(Error::NotOwner { .. })]), "{freed:?}");
        other.renew().await?;
        let many = world.leases(3).await?;
        let freed = world.pool.free_all(many).await?;
        ensure!(freed.len() == 3 && freed.iter().all(Result::is_ok), "{freed:?}");
        other.free().await?;
        world.clock.advance(PAST_TTL);
        world.pool.gc(200).await?;
        ensure!(world.pool.info().await?.counts.leased == 0);
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn after_a_rollback_forgotten_holders_are_taken_back_as_far_as_there_is_room() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(3, Order::LeastRecentlyUsed), &["a"]).await?;
        let (kept, given_back) = (world.lease().await?, world.lease().await?);
        let backup = world.server.save().await?;
        given_back.free().await?;
        world.clock.advance(Duration::from_millis(1));
        let forgotten = world.leases(2).await?;
        world.server.restart_from(&backup).await?;

        // The backup says that what was given back is held still: one place is left.
        ensure!(world.state("a").await?.holder_count == 2);
        forgotten[0].renew().await?;
        ensure!(world.pool.info().await?.last_token == forgotten[0].fencing_token());
        let state = world.state("a").await?;
        ensure!(state.place == Place::Full && state.holder_count == 3, "{state:?}");
        ensure!(matches!(forgotten[1].renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
        ensure!(world.pool.malloc().await?.is_none());
        kept.renew().await?;
        world.is_sound().await?;

        // Its token never comes again, though it was not taken back.
        kept.free().await?;
        let newcomer = world.lease().await?;
        ensure!(newcomer.fencing_token() > forgotten[1].fencing_token());
        forgotten[0].renew().await?;
        world.is_sound().await?;
        for lease in forgotten.into_iter().take(1).chain([newcomer]) {
            lease.free().await?;
        }
        world.clock.advance(PAST_TTL);
        world.pool.gc(200).await?;
        let state = world.state("a").await?;
        ensure!(matches!(state.place, Place::Free { .. }) && state.holder_count == 0, "{state:?}");
        world.is_sound().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_number_of_holders_may_change_the_mode_may_not() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::new(flavor, &shared(3, Order::LeastRecentlyUsed), &["a", "b"]).await?;
        let (pool, ownership) = (&world.pool, Ownership::default());
        let held = world.leases(4).await?;
        for (max_holders, room) in [(1, 0), (2, 0), (4, 4), (0, 10)] {
            pool.configure(&shared(max_holders, Order::LeastRecentlyUsed), &ownership).await?;
            ensure!(pool.info().await?.settings == shared(max_holders, Order::LeastRecentlyUsed));
            let more = pool.malloc().up_to(10).await?;
            ensure!(more.len() == room, "{max_holders}: {:?}", names(&more));
            ensure!(pool.free_all(more).await?.iter().all(Result::is_ok));
            world.is_sound().await?;
        }
        for lease in held {
            lease.renew().await?;
            lease.free().await?;
        }
        let conflict = pool.configure(&PoolSettings::default(), &ownership).await;
        let told = conflict.as_ref().map_err(ToString::to_string).map(drop);
        ensure!(
            matches!(&conflict, Err(Error::ModeConflict { found, wanted: "Exclusive", .. }) if found == "Shared"),
            "{told:?}"
        );
        let foreseen = pool.foresee_configure(&PoolSettings::default(), &ownership).await;
        ensure!(matches!(foreseen, Err(Error::ModeConflict { .. })));
        let resting = PoolSettings { cooldown: TTL, ..shared(1, Order::Random) };
        ensure!(matches!(pool.configure(&resting, &ownership).await, Err(Error::Invalid { what: "cooldown", .. })));
        world.is_sound().await?;
    }
    Ok(())
}
