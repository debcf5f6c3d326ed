//! While the pool's slot moves to another node of a Cluster and back, half-way again and again: nothing is promised but
//! that no resource is used by two, and that all goes on afterwards.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, cluster::Cluster};

use crate::scene::{Circumstances, LIMIT, Scene};

const MOVES: usize = 4;

async fn a_slot_moves_under_workers_that_are_killed() -> Result<()> {
    let began = Instant::now();
    let cluster = Cluster::start(Flavor::Redis).await?;
    let url = format!("redis+cluster://{}", cluster.addresses().join(","));
    let circumstances = Circumstances { unavailable: true, ..Circumstances::STEADY };
    let mut scene = Scene::on(url, circumstances).await?;
    let resizing = scene.resize();
    scene.start_workers()?;
    let slot = cluster.slot_of("{default/crash}").await?;
    for _ in 0..MOVES {
        scene.more_grants(20).await?;
        let source = cluster.owner_of(slot).await?;
        let others = || cluster.nodes().iter().filter(|node| node.client_port() != source.client_port());
        let migration = cluster.migrate(slot, others().next().context("there is but one node")?).await?;
        // Part of the pool is here, part of it is there.
        ensure!(migration.move_keys(3).await? == 3);
        scene.kill_one(false).await?;
        scene.kill_one(false).await?;
        migration.finish().await?;
        scene.kill_one(true).await?;
    }
    scene.more_grants(20).await?;
    resizing.end().await?;
    scene.end_workers().await?;
    let info = scene.all_is_free().await?;
    let counts = scene.is_clean(80).await?;
    println!(
        "{MOVES} moves, {} of {} killed while holding; {counts:?}; pool: {:?}, {:?}; {:.1} s",
        scene.while_holding,
        3 * MOVES,
        info.counts,
        info.counters,
        began.elapsed().as_secs_f64(),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_never_share_a_resource_while_its_slot_moves() -> Result<()> {
    tokio::time::timeout(LIMIT, a_slot_moves_under_workers_that_are_killed()).await?
}
