//! The library against real servers: every operation once, on Redis 7, on Valkey 9, and on a three-master Cluster.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, cluster::Cluster, eventually};
use redis_allocator::{
    BindOptions, BindPolicy, Cause, Client, Error, Item, LostReason, Order, Ownership, Place, Pool, PoolSettings,
    Removal, ResourceKey, SyncOutcome, Ttl, test_clock::TestClock,
};
use tokio::sync::OnceCell;

/// Where a client may find its pools.
enum Deployment {
    Single(Server),
    Cluster(Cluster),
}

impl Deployment {
    /// One of each for all scenarios, which get along by prefixes of their own: a Cluster takes seconds to begin. They end
    /// with this process.
    async fn all() -> Result<&'static [Self]> {
        static ALL: OnceCell<[Deployment; 3]> = OnceCell::const_new();
        let start = async || {
            Ok::<_, anyhow::Error>([
                Self::Single(Server::start(Flavor::Redis).await?),
                Self::Single(Server::start(Flavor::Valkey).await?),
                Self::Cluster(Cluster::start(Flavor::Redis).await?),
            ])
        };
        Ok(ALL.get_or_try_init(start).await?)
    }

    fn url(&self) -> String {
        match self {
            Self::Single(server) => server.url(),
            Self::Cluster(cluster) => format!("redis+cluster://{}", cluster.addresses().join(",")),
        }
    }

    /// A client whose scripts see a clock that only this test moves.
    async fn client(&self, prefix: &str) -> Result<(Client, TestClock)> {
        let clock = TestClock::at(Duration::from_hours(500_000));
        let client = Client::builder(self.url()).key_prefix(prefix).owner("tester").test_clock(clock.clone());
        Ok((client.connect().await?, clock))
    }
}

async fn pool_of(client: &Client, name: &str, settings: &PoolSettings, keys: &[&str]) -> Result<Pool> {
    let pool = client.pool(name)?;
    pool.configure(settings, &Ownership::default()).await?;
    let keys = keys.iter().map(|key| key.parse::<ResourceKey>()).collect::<Result<Vec<_>, _>>()?;
    pool.extend(keys).await?;
    Ok(pool)
}

/// Runs a scenario everywhere; after it, no invariant may be broken.
macro_rules! everywhere {
    ($(#[$doc:meta])* $name:ident, $client:ident, $clock:ident, $body:block) => {
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            for deployment in Deployment::all().await? {
                let name = stringify!($name);
                let ($client, $clock) = deployment.client(&name[..name.len().min(64)]).await?;
                let _ = &$clock;
                let scenario = async { $body };
                let pools: Vec<Pool> = scenario.await?;
                for pool in pools {
                    ensure!(pool.check().await?.is_empty(), "{:?}: {:?}", pool, pool.check().await?);
                }
            }
            Ok(())
        }
    };
}

everywhere!(a_resource_is_leased_and_comes_back, client, clock, {
    let pool = client.pool("gpus")?;
    assert!(matches!(pool.malloc().await, Err(Error::UnknownPool { .. })));
    assert!(matches!(pool.extend(["a".parse::<ResourceKey>()?]).await, Err(Error::UnknownPool { .. })));
    let configured = pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    assert!(configured.created && configured.changed && !configured.recovered);
    let again = pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    assert!(!again.created && !again.changed);
    assert_eq!(client.pools("default").await?, [pool.name().clone()]);
    assert_eq!(client.namespaces().await?, ["default"]);

    let item = Item::new("gpu-0".parse()?).priority(10).label("zone", "a").param("index", 0);
    assert_eq!(pool.extend([item.clone(), Item::new("gpu-1".parse()?)]).await?, 2);
    assert_eq!(pool.extend([item]).await?, 0);
    assert_eq!(pool.len().await?, 2);
    assert!(pool.contains("gpu-0").await? && !pool.contains("gpu-9").await?);

    let first = pool.malloc().await?.context("both are free")?;
    assert_eq!((first.key().as_str(), first.owner()), ("gpu-0", "tester"));
    assert_eq!(first.params()["index"], 0);
    assert_eq!(first.labels()["zone"], "a");
    assert_eq!(first.ttl(), Some(Duration::from_mins(2)));
    let second = pool.malloc().ttl(Duration::from_mins(1)).await?.context("one is free")?;
    assert_eq!(second.key().as_str(), "gpu-1");
    assert!(second.fencing_token() > first.fencing_token());
    assert!(pool.malloc().await?.is_none());
    let states = pool.snapshot().await?;
    assert!(matches!(&states[0].place, Place::Leased(lease) if lease.owner == "tester"));

    first.renew().await?;
    first.free().await?;
    let third = pool.malloc().await?.context("one came back")?;
    assert_eq!(third.key().as_str(), "gpu-0");
    third.free().await?;
    second.free().await?;
    let info = pool.info().await?;
    assert_eq!((info.counts.free, info.counts.leased, info.counters.granted, info.counters.freed), (2, 0, 3, 3));
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(an_expired_lease_is_reclaimed_after_the_slack_and_its_holder_told, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a"]).await?;
    let lease = pool.malloc().ttl(Duration::from_mins(1)).await?.context("free")?;
    clock.advance(Duration::from_secs(61));
    assert!(pool.malloc().await?.is_none(), "the slack is not over");
    assert!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::Ended, .. })));
    assert!(lease.is_lost());
    clock.advance(Duration::from_secs(2));
    let next = pool.malloc().await?.context("reclaimed on the way")?;
    assert!(next.fencing_token() > lease.fencing_token());
    assert!(matches!(lease.free().await, Err(Error::NotOwner { .. })));
    assert_eq!(pool.info().await?.counters.expired, 1);
    next.free().await?;
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(gc_reports_what_it_reclaims, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a", "b", "c"]).await?;
    for lease in pool.malloc().ttl(Duration::from_secs(5)).up_to(3).await? {
        lease.detach();
    }
    pool.quarantine("a", Some(Duration::from_mins(1)), "smoke", Cause::Manual).await?;
    clock.advance(Duration::from_secs(7));
    let report = pool.gc(2).await?;
    assert_eq!((report.expired.len(), report.more), (2, true));
    assert_eq!(report.expired[0].1, "tester");
    assert_eq!(pool.gc(200).await?.expired.len(), 1);
    clock.advance(Duration::from_mins(1));
    let report = pool.gc(200).await?;
    assert_eq!((report.recovered.len(), report.more), (1, false));
    assert!(pool.gc(0).await.is_err() && pool.gc(201).await.is_err());
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(permanent_leases_are_confirmed, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a"]).await?;
    let lease = pool.malloc().permanent().await?.context("free")?;
    assert_eq!((lease.ttl(), lease.deadline()), (None, None));
    clock.advance(Duration::from_secs(1_000_000));
    assert!(pool.malloc().await?.is_none());
    lease.free().await?;

    let settings = PoolSettings { max_ttl: Some(Duration::from_mins(5)), ..PoolSettings::default() };
    pool.configure(&settings, &Ownership::default()).await?;
    assert!(matches!(pool.malloc().permanent().await, Err(Error::TtlRefused { .. })));
    assert!(matches!(pool.malloc().ttl(Duration::from_secs(301)).await, Err(Error::TtlRefused { .. })));
    let lease = pool.malloc().ttl(Duration::from_mins(5)).await?.context("free")?;
    assert!(matches!(lease.renew_for(Ttl::Permanent).await, Err(Error::TtlRefused { .. })));
    assert!(!lease.is_lost());
    lease.free().await?;
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(orders_hold_within_a_priority, client, clock, {
    let mut pools = Vec::new();
    for order in [Order::LeastRecentlyUsed, Order::Sequential, Order::Random] {
        let settings = PoolSettings { order, ..PoolSettings::default() };
        let name = order.to_string().to_lowercase();
        let pool = client.pool(&name)?;
        pool.configure(&settings, &Ownership::default()).await?;
        let low = Item::new("low".parse()?);
        let items = ["c", "a", "b"].map(|key| Item::new(key.parse().unwrap()).priority(5));
        pool.extend(items.into_iter().chain([low])).await?;
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..30 {
            clock.advance(Duration::from_millis(1));
            let leases = pool.malloc().up_to(4).await?;
            let keys: Vec<_> = leases.iter().map(|lease| lease.key().to_string()).collect();
            assert_eq!(keys[3], "low", "{order}");
            firsts.insert(keys[0].clone());
            if order == Order::Sequential {
                assert_eq!(keys, ["c", "a", "b", "low"]);
            }
            for lease in leases {
                clock.advance(Duration::from_millis(1));
                lease.free().await?;
            }
        }
        assert_eq!(
            firsts.len(),
            match order {
                Order::Random => 3,
                _ => 1,
            },
            "{order}: {firsts:?}"
        );
        pools.push(pool);
    }
    // Changed in service, everything free is placed anew.
    let settings = PoolSettings { order: Order::Sequential, ..PoolSettings::default() };
    pools[0].configure(&settings, &Ownership::default()).await?;
    let keys: Vec<_> = pools[0].malloc().up_to(4).await?.iter().map(|lease| lease.key().to_string()).collect();
    assert_eq!(keys, ["c", "a", "b", "low"]);
    Ok::<_, anyhow::Error>(pools)
});

everywhere!(a_name_gets_its_resource_again, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a", "b", "c"]).await?;
    let first = pool.malloc().bind("trainer").await?.context("free")?;
    let key = first.key().clone();
    first.free().await?;
    clock.advance(Duration::from_secs(1));
    let again = pool.malloc().bind("trainer").await?.context("free")?;
    assert_eq!(again.key(), &key);
    // Someone else has it: the next one, and the binding moves only if the lease is not the name's own.
    let other = pool.malloc().bind("trainer").await?.context("free")?;
    assert_ne!(other.key(), &key);
    assert_eq!(pool.binding("trainer").await?.context("bound")?.resource, key);
    again.free().await?;
    other.free().await?;
    let thief = pool.malloc().bind("thief").await?.context("free")?;
    pool.bind("trainer", thief.key(), &BindOptions::default()).await?;
    let moved = pool.malloc().bind("trainer").await?.context("free")?;
    assert_ne!(moved.key(), thief.key());
    assert_eq!(&pool.binding("trainer").await?.context("bound")?.resource, moved.key());
    assert_eq!(pool.bindings_of(moved.key()).await?.len(), 1);
    clock.advance(Duration::from_secs(3601));
    assert!(pool.binding("trainer").await?.is_none(), "an hour is over");
    assert!(pool.unbind("thief").await?);
    assert!(!pool.unbind("thief").await?);
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(a_required_binding_reserves, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a", "b"]).await?;
    let required = BindOptions { policy: BindPolicy::Required, declared: true, ..BindOptions::default() };
    assert!(pool.bind("vip", "a", &required).await?);
    assert!(!pool.bind("vip", "a", &required).await?, "nothing changed");
    assert!(matches!(pool.bind("other", "a", &required).await, Err(Error::BindingConflict { .. })));
    assert_eq!(pool.info().await?.counts.reserved, 1);
    assert_eq!(pool.malloc().await?.context("b")?.key().as_str(), "b");
    let vip = pool.malloc().bind("vip").await?.context("reserved")?;
    assert_eq!(vip.key().as_str(), "a");
    assert!(pool.malloc().bind("vip").await?.is_none(), "its resource or none");
    vip.free().await?;
    assert!(matches!(pool.get("a").await?.context("declared")?.place, Place::Reserved));
    pool.quarantine("a", None, "broken", Cause::Probe).await?;
    assert!(pool.malloc().bind("vip").await?.is_none());
    assert!(pool.unquarantine("a", Some(Cause::Probe)).await?);
    assert!(pool.unbind("vip").await?);
    assert!(matches!(pool.get("a").await?.context("declared")?.place, Place::Free { .. }));
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(marks_of_several_causes_are_apart, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a"]).await?;
    let lease = pool.malloc().await?.context("free")?;
    assert!(!pool.quarantine("a", None, "down", Cause::Probe).await?.in_effect, "leased");
    lease.free().await?;
    assert!(pool.malloc().await?.is_none());
    assert!(pool.quarantine("a", Some(Duration::from_mins(1)), "maintenance", Cause::Manual).await?.in_effect);
    assert!(pool.unquarantine("a", Some(Cause::Probe)).await?);
    assert!(!pool.unquarantine("a", Some(Cause::Probe)).await?);
    assert!(pool.malloc().await?.is_none(), "a probe's success never ends a manual quarantine");
    clock.advance(Duration::from_secs(61));
    pool.malloc().await?.context("healed on the way")?.free().await?;
    assert!(matches!(pool.quarantine("z", None, "", Cause::Manual).await, Err(Error::UnknownResource { .. })));
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(a_cooldown_follows_each_lease, client, clock, {
    let settings = PoolSettings { cooldown: Duration::from_secs(30), ..PoolSettings::default() };
    let pool = pool_of(&client, "gpus", &settings, &["a"]).await?;
    pool.malloc().await?.context("free")?.free().await?;
    assert!(pool.malloc().await?.is_none());
    clock.advance(Duration::from_secs(31));
    assert!(pool.malloc().await?.is_some());
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(what_leaves_drains_or_is_revoked, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a", "b", "c"]).await?;
    let lease = pool.malloc().await?.context("free")?;
    assert_eq!(pool.shrink([lease.key()]).await?, 1);
    let info = pool.info().await?;
    assert_eq!((info.counts.total, info.counts.leased, info.counts.draining), (2, 1, 1));
    assert!(pool.snapshot().await?.iter().any(|resource| !resource.declared));
    lease.renew().await?;
    let key = lease.key().clone();
    lease.free().await?;
    assert!(pool.get(&key).await?.is_none());

    let lease = pool.malloc().await?.context("free")?;
    let retired = pool.retire(Removal::Drain).await?;
    assert_eq!((retired.leases_left, retired.deleted), (1, false));
    assert!(pool.malloc().await?.is_none());
    lease.free().await?;
    assert!(pool.retire(Removal::Drain).await?.deleted);
    assert!(matches!(pool.info().await, Err(Error::UnknownPool { .. })));
    assert!(client.pools("default").await?.is_empty());

    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a"]).await?;
    let lease = pool.malloc().await?.context("free")?;
    assert!(pool.retire(Removal::Revoke).await?.deleted);
    assert!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::PoolLost, .. })));
    Ok::<_, anyhow::Error>(vec![])
});

everywhere!(origins_keep_to_themselves, client, clock, {
    use redis_allocator::{Origin, SyncOptions};
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["shared", "mine"]).await?;
    let items = |keys: &[&str]| keys.iter().map(|key| Item::new(key.parse().unwrap()).priority(3)).collect::<Vec<_>>();
    let options = SyncOptions { max_shrink_percent: 50, ..SyncOptions::default() };
    let outcome = pool.sync(&Origin::Spec, items(&["shared", "x", "y", "z"]), &options).await?;
    assert_eq!(outcome, SyncOutcome::Applied { added: 3, updated: 1, removed: 0, draining: 0, revoked: 0 });
    assert_eq!(pool.sync(&Origin::Spec, items(&["shared", "x", "y", "z"]), &options).await?, SyncOutcome::Unchanged);
    let held = pool.sync(&Origin::Spec, items(&["x"]), &options).await?;
    assert_eq!(held, SyncOutcome::HeldBack { found: 1, peak: 4, allowed_min: 2 });
    assert_eq!(pool.clear().await?, 1, "the declared one stays");
    let outcome = pool.sync(&Origin::Spec, items(&["x", "y"]), &options).await?;
    assert_eq!(outcome, SyncOutcome::Applied { added: 0, updated: 0, removed: 2, draining: 0, revoked: 0 });
    let twice = pool.sync(&Origin::Spec, items(&["x", "x"]), &options).await;
    assert!(matches!(twice, Err(Error::Invalid { .. })));
    assert_eq!(pool.info().await?.origins[&Origin::Spec].count, 2);
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(keys_alone_are_freed_only_by_their_client, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a", "b"]).await?;
    let key = pool.malloc_key(Duration::from_mins(1)).await?.context("free")?;
    let results = pool.free_keys([key.as_str(), "b", "nobody"]).await?;
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Error::NotOwner { .. })));
    assert!(matches!(results[2], Err(Error::NotOwner { .. })));
    let lease = pool.malloc().await?.context("free")?;
    assert!(pool.force_free(lease.key()).await?);
    assert!(!pool.force_free(lease.key()).await?);
    assert!(matches!(lease.renew().await, Err(Error::Lost { .. })));
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(suspended_pools_grant_nothing, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a"]).await?;
    pool.suspend(true).await?;
    assert!(pool.malloc().await?.is_none());
    pool.suspend(false).await?;
    assert!(pool.malloc().await?.is_some());
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(a_second_manager_is_refused, client, clock, {
    let pool = client.pool("gpus")?;
    let settings = PoolSettings::default();
    pool.configure(&settings, &Ownership { manager: Some("files:/a"), known: None }).await?;
    let other = Ownership { manager: Some("files:/b"), known: None };
    assert!(matches!(pool.configure(&settings, &other).await, Err(Error::ManagerConflict { .. })));
    assert_eq!(pool.takeover("files:/b").await?.as_deref(), Some("files:/a"));
    assert!(!pool.configure(&settings, &other).await?.changed);
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(bad_input_changes_nothing, client, clock, {
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a"]).await?;
    let before = pool.info().await?;
    let long = "k".repeat(513);
    for bad in ["", "a\0b", &long] {
        assert!(matches!(pool.get(bad).await, Err(Error::InvalidName { .. })));
        assert!(matches!(pool.shrink([bad]).await, Err(Error::InvalidName { .. })));
        assert!(matches!(pool.free_keys([bad]).await, Err(Error::InvalidName { .. })));
        assert!(matches!(pool.malloc().bind(bad).await, Err(Error::InvalidName { .. })));
        assert!(matches!(pool.bind(bad, "a", &BindOptions::default()).await, Err(Error::InvalidName { .. })));
    }
    for bad in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        assert!(matches!(pool.malloc().ttl(bad).await, Err(Error::Invalid { .. })));
        assert!(matches!(pool.quarantine("a", Some(bad), "", Cause::Manual).await, Err(Error::Invalid { .. })));
        let settings = PoolSettings { default_ttl: bad, ..PoolSettings::default() };
        assert!(matches!(pool.configure(&settings, &Ownership::default()).await, Err(Error::Invalid { .. })));
    }
    assert!(matches!(pool.malloc().up_to(0).await, Err(Error::Invalid { .. })));
    assert!(matches!(pool.malloc().up_to(201).await, Err(Error::Invalid { .. })));
    assert!(matches!(client.pool("No/Such"), Err(Error::InvalidName { .. })));
    assert_eq!(pool.info().await?, before);
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(a_call_between_two_assignments_is_seen, client, clock, {
    let keys = || ["x", "y"].map(|key| key.parse::<ResourceKey>().unwrap());
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &[]).await?;
    pool.assign(keys()).await?;
    assert_eq!(pool.assign(keys()).await?, SyncOutcome::Unchanged);
    assert_eq!(pool.shrink(["y"]).await?, 1);
    let outcome = pool.assign(keys()).await?;
    assert!(matches!(outcome, SyncOutcome::Applied { added: 1, .. }), "{outcome:?}");
    pool.extend(["z".parse::<ResourceKey>()?]).await?;
    let outcome = pool.assign(keys()).await?;
    assert!(matches!(outcome, SyncOutcome::Applied { removed: 1, .. }), "{outcome:?}");
    assert_eq!(pool.clear().await?, 2);
    Ok::<_, anyhow::Error>(vec![pool])
});

everywhere!(a_hold_is_never_shortened, client, clock, {
    use redis_allocator::{Hold, Known, Longest};
    let pool = client.pool("gpus")?;
    let settings = PoolSettings::default();
    let first = pool.configure(&settings, &Ownership::default()).await?.incarnation;
    pool.retire(Removal::Drain).await?;
    let long = Known { incarnation: first, longest: Longest::For(Duration::from_hours(1)) };
    let made = pool.configure(&settings, &Ownership { manager: None, known: Some(&long) }).await?;
    assert!(made.created && made.recovered);
    let held = pool.info().await?.hold;
    assert!(matches!(held, Some(Hold::Until(_))));
    // Someone remembers a life before that, and shorter leases.
    let other = client.pool("other")?.configure(&settings, &Ownership::default()).await?.incarnation;
    let short = Known { incarnation: other, longest: Longest::For(Duration::from_secs(1)) };
    pool.configure(&settings, &Ownership { manager: None, known: Some(&short) }).await?;
    assert_eq!(pool.info().await?.hold, held);
    Ok::<_, anyhow::Error>(vec![pool])
});

/// The timer hears of an end that came nearer, whether or not the lease is kept alive.
#[tokio::test]
async fn a_nearer_end_is_told_in_time() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    let pool = pool_of(&client, "gpus", &PoolSettings::default(), &["a", "b"]).await?;
    for ttl in [Ttl::Permanent, Ttl::For(Duration::from_hours(1))] {
        let lease = pool.malloc().ttl(ttl).await?.context("free")?;
        let lost = lease.lost_token();
        lease.renew_for(Duration::from_millis(300)).await?;
        tokio::time::timeout(Duration::from_secs(5), lost.cancelled()).await.context("never told")?;
        lease.detach();
    }
    // Kept alive, it is renewed in its new rhythm.
    let pool = pool_of(&client, "kept", &PoolSettings::default(), &["a"]).await?;
    let lease = pool.malloc().ttl(Duration::from_hours(1)).keep_alive().await?.context("free")?;
    lease.renew_for(Duration::from_secs(6)).await?;
    let deadline = lease.deadline();
    eventually(Duration::from_secs(10), async || {
        ensure!(lease.deadline() > deadline, "not renewed: {:?} {lease:?}", lease.lost_reason());
        Ok(())
    })
    .await?;
    lease.free().await?;
    Ok(())
}
