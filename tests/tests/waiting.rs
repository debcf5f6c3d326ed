//! Asking for what is not free yet, for several at once, and by labels: on Redis 7, on Valkey 9, and on a Cluster, in real
//! time, since those who wait are woken by messages.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Proxy, Server, cluster::Cluster, proxy::Fate, wait::eventually};
use futures::future::join_all;
use redis_allocator::{
    BindOptions, BindPolicy, Cause, Client, Error, Item, Lease, Mode, Ownership, Pool, PoolSettings, ResourceKey,
    Selector, malloc_any, malloc_any_or_wait,
};
use tokio::{task::JoinHandle, time::timeout};

const LONG: Duration = Duration::from_secs(30);
/// Longer than any message needs, and half of the time between two looks of a waiter's own.
const SOON: Duration = Duration::from_millis(500);

enum Deployment {
    Single(Server),
    Cluster(Cluster),
}

impl Deployment {
    async fn all() -> Result<Vec<Self>> {
        Ok(vec![
            Self::Single(Server::start(Flavor::Redis).await?),
            Self::Single(Server::start(Flavor::Valkey).await?),
            Self::Cluster(Cluster::start(Flavor::Redis).await?),
        ])
    }

    async fn client(&self) -> Result<Client> {
        let url = match self {
            Self::Single(server) => server.url(),
            Self::Cluster(cluster) => format!("redis+cluster://{}", cluster.addresses().join(",")),
        };
        Ok(Client::builder(url).owner("tester").connect().await?)
    }
}

async fn pool_of(client: &Client, settings: &PoolSettings, items: impl IntoIterator<Item = Item>) -> Result<Pool> {
    let pool = client.pool("gpus")?;
    pool.configure(settings, &Ownership::default()).await?;
    pool.extend(items).await?;
    Ok(pool)
}

fn item(key: &str) -> Item {
    Item::new(key.parse().expect("a key"))
}

fn items(n: usize) -> Vec<Item> {
    (0..n).map(|k| item(&format!("r{k}"))).collect()
}

fn selector(text: &str) -> Selector {
    text.parse().expect("a selector")
}

fn key(lease: &Lease) -> &str {
    lease.key().as_str()
}

/// Begins to wait, and returns when Redis knows of it.
async fn in_line<F>(pool: &Pool, place: u64, request: F) -> Result<JoinHandle<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let waiter = tokio::spawn(request);
    eventually(LONG, async || {
        ensure!(pool.info().await?.counts.waiting == place);
        Ok(())
    })
    .await?;
    Ok(waiter)
}

/// What a waiter is given.
async fn soon<T: Send + 'static>(waiter: JoinHandle<redis_allocator::Result<T>>) -> Result<T> {
    Ok(waiter.await??)
}

async fn whole(pool: &Pool) -> Result<()> {
    let broken = pool.check().await?;
    ensure!(broken.is_empty(), "{broken:?}");
    Ok(())
}

async fn everywhere(scenario: impl AsyncFn(Client) -> Result<Pool>) -> Result<()> {
    for deployment in Deployment::all().await? {
        let pool = scenario(deployment.client().await?).await?;
        whole(&pool).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_makes_room_serves_the_first_in_line() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(1)).await?;
        let wait = |pool: &Pool| {
            let request = pool.malloc().ttl(LONG).wait(LONG);
            async move { request.await }
        };
        // Freed.
        let lease = pool.malloc().await?.context("free")?;
        let waiter = in_line(&pool, 1, wait(&pool)).await?;
        lease.free().await?;
        let lease = soon(waiter).await?;
        ensure!(lease.remaining().context("not permanent")? > LONG / 2 && pool.info().await?.counts.waiting == 0);
        // Revoked.
        let waiter = in_line(&pool, 1, wait(&pool)).await?;
        ensure!(pool.force_free("r0").await?);
        let other = soon(waiter).await?;
        ensure!(other.fencing_token() > lease.fencing_token());
        lease.detach();
        // Extended.
        let waiter = in_line(&pool, 1, wait(&pool)).await?;
        pool.extend([item("r1")]).await?;
        ensure!(key(&soon(waiter).await?) == "r1");
        // Released from quarantine: the lease of the line before was dropped, and freed in the background.
        let free = eventually(LONG, async || pool.malloc().await?.context("not free")).await?;
        let waiter = in_line(&pool, 1, wait(&pool)).await?;
        pool.quarantine("r1", None, "broken", Cause::Manual).await?;
        free.free().await?;
        ensure!(pool.info().await?.counts.waiting == 1);
        pool.unquarantine("r1", None).await?;
        let lease = soon(waiter).await?;
        // Unbound, and resumed.
        pool.bind("a", "r1", &BindOptions { policy: BindPolicy::Required, ..BindOptions::default() }).await?;
        let waiter = in_line(&pool, 1, wait(&pool)).await?;
        lease.free().await?;
        ensure!(pool.info().await?.counts.waiting == 1 && pool.malloc().await?.is_none());
        pool.unbind("a").await?;
        let lease = soon(waiter).await?;
        pool.suspend(true).await?;
        let waiter = in_line(&pool, 1, wait(&pool)).await?;
        lease.free().await?;
        ensure!(pool.info().await?.counts.waiting == 1);
        pool.suspend(false).await?;
        soon(waiter).await?.free().await?;
        other.free().await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_name_gets_its_resource_alone() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(2)).await?;
        pool.bind("a", "r1", &BindOptions { policy: BindPolicy::Required, ..BindOptions::default() }).await?;
        let mine = pool.malloc().bind("a").await?.context("reserved")?;
        let other = pool.malloc().await?.context("free")?;
        let request = pool.malloc().bind("a").wait(LONG);
        let waiter = in_line(&pool, 1, async move { request.await }).await?;
        other.free().await?;
        ensure!(pool.info().await?.counts.waiting == 1);
        mine.free().await?;
        let mine = soon(waiter).await?;
        ensure!(key(&mine) == "r1");
        mine.free().await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_come_are_the_first_served_within_their_priority() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(1)).await?;
        let mut lease = pool.malloc().await?.context("free")?;
        let mut waiters = Vec::new();
        for (place, priority) in [0, 2, 1, 2, 0].into_iter().enumerate() {
            let request = pool.malloc().owner(format!("{place}")).wait(LONG).priority(priority);
            waiters.push(in_line(&pool, place as u64 + 1, async move { request.await }).await?);
        }
        let listed = pool.waiters(0, 200).await?;
        let owners: Vec<_> = listed.waiters.iter().map(|waiter| waiter.owner.as_str()).collect();
        ensure!(owners == ["1", "3", "2", "0", "4"] && listed.total == 5, "{owners:?}");
        let mut waiters: Vec<_> = waiters.into_iter().map(Some).collect();
        for next in [1, 3, 2, 0, 4] {
            lease.free().await?;
            lease = soon(waiters[next].take().context("once")?).await?;
            ensure!(lease.owner() == next.to_string());
        }
        lease.free().await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_leaves_at_once_and_costs_nobody_a_grant() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(1)).await?;
        let lease = pool.malloc().await?.context("free")?;
        let since = Instant::now();
        let timed_out = pool.malloc().wait(Duration::from_millis(300)).await;
        ensure!(matches!(timed_out, Err(Error::NotServed { .. })), "{timed_out:?}");
        ensure!(since.elapsed() >= Duration::from_millis(300) && pool.info().await?.counts.waiting == 0);

        let request = pool.malloc().wait(LONG);
        let gone = in_line(&pool, 1, async move { request.await }).await?;
        let request = pool.malloc().wait(LONG);
        let stays = in_line(&pool, 2, async move { request.await }).await?;
        gone.abort();
        eventually(LONG, async || {
            ensure!(pool.info().await?.counts.waiting == 1);
            Ok(())
        })
        .await?;
        lease.free().await?;
        soon(stays).await?.free().await?;

        // Dropped at every moment of being served.
        for round in 0..40 {
            let lease = eventually(LONG, async || pool.malloc().await?.context("not free")).await?;
            let request = pool.malloc().wait(LONG);
            let waiter = in_line(&pool, 1, async move { request.await }).await?;
            lease.free().await?;
            tokio::time::sleep(Duration::from_micros(50 * round)).await;
            waiter.abort();
        }
        eventually(LONG, async || {
            let counts = pool.info().await?.counts;
            ensure!(counts.free == 1 && counts.waiting == 0, "{counts:?}");
            Ok(())
        })
        .await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_come_together_or_not_at_all() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(4)).await?;
        let three = pool.malloc().count(3).await?.context("enough is free")?;
        ensure!(three.iter().map(key).collect::<BTreeSet<_>>().len() == 3);
        ensure!(pool.malloc().count(2).await?.is_none() && pool.info().await?.counts.free == 1);

        // Who asks for more is not starved by those who ask for one.
        let request = pool.malloc().count(3).wait(LONG);
        let waiter = in_line(&pool, 1, async move { request.await }).await?;
        ensure!(pool.malloc().await?.is_none(), "what is gathered is not granted to others");
        let request = pool.malloc().wait(LONG);
        let behind = in_line(&pool, 2, async move { request.await }).await?;
        let mut three = three.into_iter();
        for _ in 0..2 {
            ensure!(!waiter.is_finished() && !behind.is_finished());
            three.next().context("three")?.free().await?;
        }
        let served = soon(waiter).await?;
        ensure!(served.len() == 3);
        three.next().context("three")?.free().await?;
        soon(behind).await?.free().await?;
        ensure!(pool.free_all(served).await?.iter().all(Result::is_ok));

        // One that gives up lets the others on.
        let all = pool.malloc().count(4).await?.context("all are free")?;
        let request = pool.malloc().count(4).wait(LONG);
        let gone = in_line(&pool, 1, async move { request.await }).await?;
        let request = pool.malloc().wait(LONG);
        let behind = in_line(&pool, 2, async move { request.await }).await?;
        let mut all = all.into_iter();
        all.next().context("four")?.free().await?;
        ensure!(!behind.is_finished());
        gone.abort();
        soon(behind).await?.free().await?;
        for lease in all {
            lease.free().await?;
        }
        Ok(pool)
    })
    .await
}

fn labelled() -> Vec<Item> {
    let mut items = Vec::new();
    for zone in ["eu", "us"] {
        for model in ["a100", "h100"] {
            items.push(item(&format!("{zone}-{model}")).label("zone", zone).label("model", model));
        }
    }
    items.push(item("eu-plain").label("zone", "eu").priority(5));
    items.push(item("bare"));
    items
}

fn indexed() -> PoolSettings {
    PoolSettings {
        indexes: vec![vec!["zone".to_owned()], vec!["zone".to_owned(), "model".to_owned()]],
        ..PoolSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selector_takes_what_fits_and_nothing_else() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &indexed(), labelled()).await?;
        let of = async |text: &str| -> Result<Option<Lease>> { Ok(pool.malloc().select(selector(text)).await?) };
        let first = of("zone=eu").await?.context("free")?;
        ensure!(key(&first) == "eu-plain", "priority counts: {first:?}");
        let h100 = of("model=h100,zone in (eu,us)").await?.context("free")?;
        let other = of("model=h100,zone in (eu,us)").await?.context("free")?;
        ensure!(key(&h100).ends_with("h100") && key(&other).ends_with("h100"));
        ensure!(of("model=h100,zone in (eu,us)").await?.is_none() && of("zone=mars").await?.is_none());
        // What else would do.
        let request = pool.malloc().select(selector("zone=mars")).select(selector("zone=us"));
        let second_choice = request.await?.context("free")?;
        ensure!(key(&second_choice) == "us-a100");
        // Labels change, and what was known of them with them.
        pool.extend([item("bare").label("zone", "mars")]).await?;
        let bare = of("zone=mars").await?.context("labelled now")?;
        pool.extend([item("bare")]).await?;
        bare.free().await?;
        ensure!(of("zone=mars").await?.is_none());
        // Those who wait.
        let request = pool.malloc().select(selector("zone=us,model=h100")).wait(LONG);
        let waiter = in_line(&pool, 1, async move { request.await }).await?;
        second_choice.free().await?;
        first.free().await?;
        ensure!(!waiter.is_finished());
        for lease in [h100, other] {
            lease.free().await?;
        }
        let lease = soon(waiter).await?;
        ensure!(key(&lease) == "us-h100");
        lease.free().await?;
        // Several of a kind.
        let pair = pool.malloc().select(selector("zone=eu")).count(3).await?.context("three in eu")?;
        ensure!(pair.iter().all(|lease| key(lease).starts_with("eu")), "{pair:?}");
        ensure!(pool.malloc().select(selector("zone=us")).count(3).await?.is_none());
        ensure!(pool.free_all(pair).await?.iter().all(Result::is_ok));
        // Other indexes: what is free is found by them at once.
        pool.configure(
            &PoolSettings { indexes: vec![vec!["model".to_owned()]], ..PoolSettings::default() },
            &Ownership::default(),
        )
        .await?;
        ensure!(matches!(of("zone=eu").await, Err(error) if error.to_string().contains("no index [zone]")));
        let lease = of("model=a100").await?.context("indexed now")?;
        lease.free().await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_who_gathers_is_found_behind_much_that_does() -> Result<()> {
    everywhere(async |client| {
        let kept = (0..20).map(|k| item(&format!("eu-{k}")).label("zone", "eu").priority(5));
        let other = item("us").label("zone", "us");
        let pool = pool_of(&client, &indexed(), kept.chain([other])).await?;
        let request = pool.malloc().select(selector("zone=eu")).count(21).wait(LONG);
        let gatherer = in_line(&pool, 1, async move { request.await }).await?;
        let waited = pool.malloc().wait(LONG).await?;
        ensure!(key(&waited) == "us");
        let request = pool.malloc().select(selector("zone=us")).count(2).wait(LONG);
        let second = in_line(&pool, 2, async move { request.await }).await?;
        waited.free().await?;
        let at_once = pool.malloc().await?.context("it is nobody's, until it is the second one's turn to gather")?;
        ensure!(key(&at_once) == "us" && pool.malloc().await?.is_none());
        at_once.free().await?;
        gatherer.abort();

        second.abort();

        // Those who came while the pool was suspended, and only one of them gathers.
        pool.configure(&PoolSettings { suspended: true, ..indexed() }, &Ownership::default()).await?;
        let request = pool.malloc().select(selector("zone=eu")).count(21).wait(LONG);
        eventually(LONG, async || {
            ensure!(pool.info().await?.counts.waiting == 0);
            Ok(())
        })
        .await?;
        let gatherer = in_line(&pool, 1, async move { request.await }).await?;
        let request = pool.malloc().wait(LONG);
        let behind = in_line(&pool, 2, async move { request.await }).await?;
        pool.configure(&indexed(), &Ownership::default()).await?;
        let found = soon(behind).await?;
        ensure!(key(&found) == "us");
        found.free().await?;
        gatherer.abort();
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_want_several_are_in_nobodys_way_before_they_gather() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &indexed(), labelled()).await?;
        let held = pool.malloc().select(selector("zone=us")).up_to(200).await?;
        ensure!(held.len() == 2);
        let request = pool.malloc().select(selector("zone=eu")).count(6).wait(LONG);
        let gatherer = in_line(&pool, 1, async move { request.await }).await?;
        let many: Vec<_> = (0..250)
            .map(|_| {
                let request = pool.malloc().select(selector("zone=us")).count(2).wait(LONG);
                tokio::spawn(async move { request.await })
            })
            .collect();
        eventually(LONG, async || {
            ensure!(pool.info().await?.counts.waiting == 251);
            Ok(())
        })
        .await?;
        let request = pool.malloc().select(selector("zone=us")).wait(LONG);
        let behind = in_line(&pool, 252, async move { request.await }).await?;
        for lease in held {
            lease.free().await?;
        }
        soon(behind).await?.free().await?;
        // When nobody gathers before them, it is their turn.
        gatherer.abort();
        let first = eventually(LONG, async || {
            let (served, _) = many.iter().enumerate().find(|(_, one)| one.is_finished()).context("nobody is served")?;
            Ok(served)
        })
        .await?;
        let mut many = many;
        let two = soon(many.swap_remove(first)).await?;
        ensure!(two.len() == 2);
        for one in &many {
            one.abort();
        }
        drop(two);
        eventually(LONG, async || {
            let counts = pool.info().await?.counts;
            ensure!(counts.waiting == 0 && counts.leased == 0, "{counts:?}");
            Ok(())
        })
        .await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_granted_unheard_of_is_not_asked_for_again() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let proxy = Proxy::start(server.port()).await?;
        let sound = pool_of(&Client::connect(&server.url()).await?, &PoolSettings::default(), items(2)).await?;
        let pool = Client::connect(&proxy.url()).await?.pool("gpus")?;
        pool.malloc().await?.context("both are free")?.free().await?; // its script is known now
        proxy.drop_replies_where(1, Fate::Close, |exchange| exchange.is("EVALSHA") && !exchange.is_error());
        let error = pool.malloc().wait(LONG).await.err().context("it asked again")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "malloc", .. }), "{error}");
        let counters = sound.info().await?.counters;
        ensure!(counters.granted == 2, "{counters:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_reached_by_one_script_is_served_when_it_looks() -> Result<()> {
    everywhere(async |client| {
        let settings = PoolSettings { mode: Mode::Shared { max_holders: None }, ..PoolSettings::default() };
        let pool = pool_of(&client, &settings, []).await?;
        let crowd: Vec<_> = (0..250)
            .map(|_| {
                let request = pool.malloc().wait(LONG);
                tokio::spawn(async move { request.await })
            })
            .collect();
        eventually(LONG, async || {
            ensure!(pool.info().await?.counts.waiting == 250);
            Ok(())
        })
        .await?;
        // There is room for all of them at once: more than a script offers.
        pool.extend([item("roomy")]).await?;
        let mut served = Vec::new();
        for one in crowd {
            served.push(soon(one).await?);
        }
        ensure!(pool.free_all(served).await?.iter().all(Result::is_ok));
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_free_and_was_never_offered_is_found_by_a_look() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let settings = PoolSettings { suspended: true, ..PoolSettings::default() };
        let pool = pool_of(&Client::connect(&server.url()).await?, &settings, items(1)).await?;
        let request = pool.malloc().wait(LONG);
        let waiter = in_line(&pool, 1, async move { request.await }).await?;
        // Resumed in a way that offers nothing.
        server.cmd::<()>(&["HSET", "ra:{default/gpus}:meta", "suspended", "0"]).await?;
        soon(waiter).await?.free().await?;
        whole(&pool).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_more_than_is_left_is_in_nobodys_way() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(3)).await?;
        let held = pool.malloc().await?.context("all are free")?;
        let request = pool.malloc().count(3).wait(LONG);
        let gatherer = in_line(&pool, 1, async move { request.await }).await?;
        ensure!(pool.malloc().await?.is_none(), "all is kept");
        pool.shrink([held.key().clone()]).await?;
        held.free().await?;
        let two = pool.malloc().count(2).await?.context("nothing is kept for who can't have it")?;
        ensure!(pool.free_all(two).await?.iter().all(Result::is_ok));
        // It is filled again.
        pool.extend(items(3)).await?;
        ensure!(soon(gatherer).await?.len() == 3);
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_hears_that_its_time_is_refused_from_now_on() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(1)).await?;
        let held = pool.malloc().await?.context("it is free")?;
        let request = pool.malloc().ttl(LONG).wait(LONG * 4);
        let waiter = in_line(&pool, 1, async move { request.await }).await?;
        let settings = PoolSettings { default_ttl: LONG / 3, max_ttl: Some(LONG / 2), ..PoolSettings::default() };
        pool.configure(&settings, &Ownership::default()).await?;
        let refused = timeout(LONG, waiter).await.context("it waits on")??;
        ensure!(matches!(refused, Err(Error::TtlRefused { .. })), "{refused:?}");
        held.free().await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_be_is_an_error_of_its_own() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &indexed(), labelled()).await?;
        let counted = pool.malloc().count(7).await;
        ensure!(matches!(counted, Err(Error::ImpossibleCount { count: 7, most: 6, .. })), "{counted:?}");
        let waited = pool.malloc().count(7).wait(LONG).await;
        ensure!(matches!(waited, Err(Error::ImpossibleCount { .. })), "{waited:?}");
        for n in [0, 201] {
            ensure!(matches!(pool.malloc().count(n).await, Err(Error::Invalid { .. })));
        }
        let selected = pool.malloc().select(selector("model=h100")).wait(LONG).await;
        let Err(Error::NotIndexed { labels, indexes, .. }) = &selected else { anyhow::bail!("{selected:?}") };
        ensure!(labels == "model" && *indexes == ["zone", "model,zone"], "{labels} {indexes:?}");
        for time in [Duration::ZERO, Duration::from_hours(24 * 365)] {
            let waited = pool.malloc().wait(time).await;
            ensure!(matches!(waited, Err(Error::Invalid { what: "time to wait", .. })), "{waited:?}");
        }
        ensure!(matches!(pool.malloc().wait(LONG).priority(101).await, Err(Error::Invalid { what: "priority", .. })));
        ensure!(matches!(pool.malloc().bind("a").count(2).await, Err(Error::Invalid { .. })));
        let nowhere = client.pool("nowhere")?.malloc().wait(LONG).await;
        ensure!(matches!(nowhere, Err(Error::UnknownPool { .. })), "{nowhere:?}");
        let refused = pool.malloc().ttl(Duration::from_hours(1)).select(selector("zone=eu")).wait(LONG).await;
        ensure!(refused.is_ok(), "{refused:?}");
        drop(refused);
        eventually(LONG, async || {
            let counts = pool.info().await?.counts;
            ensure!(counts.free == 6 && counts.waiting == 0, "{counts:?}");
            Ok(())
        })
        .await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_of_several_pools_would_do() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(1)).await?;
        let other = client.pool("others")?;
        other.configure(&PoolSettings::default(), &Ownership::default()).await?;
        other.extend([item("o0")]).await?;
        let requests = || [pool.malloc(), other.malloc()];
        let first = malloc_any(requests()).await?.context("free")?;
        let second = malloc_any(requests()).await?.context("free")?;
        ensure!(key(&first) == "r0" && key(&second) == "o0" && malloc_any(requests()).await?.is_none());
        let waits = malloc_any_or_wait(requests(), LONG);
        let waiter = in_line(&pool, 1, waits).await?;
        first.free().await?;
        let lease = soon(waiter).await?;
        ensure!(key(&lease) == "r0");
        lease.free().await?;
        second.free().await?;
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_served_in_turn_by_few_resources() -> Result<()> {
    everywhere(async |client| {
        let pool = pool_of(&client, &PoolSettings::default(), items(3)).await?;
        let since = Instant::now();
        let crowd = (0..300).map(|_| {
            let request = pool.malloc().wait(LONG);
            async move {
                let lease = request.await?;
                let key = lease.key().clone();
                lease.free().await?;
                anyhow::Ok(key)
            }
        });
        let served: Result<Vec<ResourceKey>> = join_all(crowd).await.into_iter().collect();
        ensure!(served?.into_iter().collect::<BTreeSet<_>>().len() == 3);
        println!("300 in turn within {:?}", since.elapsed());
        let info = pool.info().await?;
        ensure!(info.counts.free == 3 && info.counts.waiting == 0 && info.counters.granted == 300, "{info:?}");
        Ok(pool)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_is_told_and_does_not_only_look() -> Result<()> {
    let server = Server::start(Flavor::Redis).await?;
    let pool = pool_of(&Client::connect(&server.url()).await?, &PoolSettings::default(), items(1)).await?;
    // Of twenty hand-overs, each within a look of a second, most take no time at all.
    let mut quick = 0;
    for _ in 0..20 {
        let lease = eventually(LONG, async || pool.malloc().await?.context("not free")).await?;
        let request = pool.malloc().wait(LONG);
        let waiter = in_line(&pool, 1, async move { request.await }).await?;
        let since = Instant::now();
        lease.free().await?;
        let next = waiter.await??;
        quick += usize::from(since.elapsed() < SOON);
        next.free().await?;
    }
    ensure!(quick >= 17, "only {quick} of 20 were told");
    Ok(())
}
