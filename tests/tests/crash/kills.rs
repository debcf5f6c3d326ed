//! On one server, which keeps what it acknowledges: exclusive, and shared.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{
    Flavor, Server, Witness,
    witness::{self, Use},
};

use crate::scene::{Circumstances, LIMIT, Scene};

const BETWEEN_KILLS: Duration = Duration::from_millis(400);
/// Fewer would prove little.
const GRANTS: u64 = 200;

async fn killed_workers_take_nothing_with_them(flavor: Flavor, shared: Option<u32>, kills: usize) -> Result<()> {
    let began = Instant::now();
    let server = Server::start(flavor).await?;
    let mut scene = Scene::on(server.url(), Circumstances { shared, ..Circumstances::STEADY }).await?;
    let resizing = scene.resize();
    scene.start_workers()?;
    for kill in 0..kills {
        tokio::time::sleep(BETWEEN_KILLS).await;
        // Most hold something when they are killed; the others may wait, or just be starting.
        scene.kill_one(kill % 4 > 0).await?;
    }
    let reported = scene.witness.counts().await?.grants;
    scene.more_grants(GRANTS.saturating_sub(reported)).await?;
    resizing.end().await?;
    scene.end_workers().await?;
    let info = scene.all_is_free().await?;
    let counts = scene.is_clean(GRANTS).await?;
    println!(
        "{flavor}, shared: {shared:?}: {kills} kills, {} of them while holding; {counts:?}; pool: {:?}, {:?}; {:.1} s",
        scene.while_holding,
        info.counts,
        info.counters,
        began.elapsed().as_secs_f64(),
    );
    ensure!(scene.while_holding >= kills * 9 / 20, "only {} of {kills} held something", scene.while_holding);
    ensure!(info.counters.expired > 0, "nobody's lease expired: {:?}", info.counters);
    ensure!(shared.is_none() || counts.together > 0, "nothing was shared: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_never_share_a_resource_on_redis() -> Result<()> {
    tokio::time::timeout(LIMIT, killed_workers_take_nothing_with_them(Flavor::Redis, None, 44)).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_never_share_a_resource_on_valkey() -> Result<()> {
    tokio::time::timeout(LIMIT, killed_workers_take_nothing_with_them(Flavor::Valkey, None, 44)).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_share_a_resource_with_as_many_as_may_have_it() -> Result<()> {
    tokio::time::timeout(LIMIT, killed_workers_take_nothing_with_them(Flavor::Redis, Some(2), 30)).await?
}

/// Otherwise the tests above would prove nothing.
#[tokio::test]
async fn the_witness_refuses_one_holder_too_many() -> Result<()> {
    let record = Server::start(Flavor::Redis).await?;
    let witness = Witness::connect(&record.url()).await?.shared(2);
    let at = witness::now();
    let used = |token: u64, later: u64| {
        let moment = at + Duration::from_millis(later);
        Use::new(&"r0", token, &format!("holder-{token}"), moment, Duration::from_mins(1))
    };
    for (token, later) in [(1, 0), (2, 1), (1, 2)] {
        ensure!(witness.record(&used(token, later)).await?.is_none(), "two may hold it");
    }
    let refusal = witness.record(&used(3, 3)).await?;
    ensure!(refusal.as_ref().is_some_and(|refusal| refusal.why == "crowded"), "{refusal:?}");
    ensure!(witness.held_by("holder-2").await?.len() == 1);
    witness.end(&"r0", 2).await?;
    ensure!(witness.held_by("holder-2").await?.is_empty());
    ensure!(witness.record(&used(3, 30_000)).await?.is_none(), "one of the two has ended");
    let repeated = Use { holder: "another".to_owned(), ..used(1, 70_000) };
    let refusal = witness.record(&repeated).await?;
    ensure!(refusal.is_some_and(|refusal| refusal.why == "token-repeated"));
    let counts = witness.counts().await?;
    ensure!(counts.grants == 3 && counts.together > 0 && witness.refusals().await?.len() == 2, "{counts:?}");
    Ok(())
}
