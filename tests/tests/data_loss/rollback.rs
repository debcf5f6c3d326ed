//! What came after a backup, or what a promoted replica had not received, is lost: within a time to live all is settled.

use anyhow::{Result, ensure};
use e2e::{Flavor, Server, Witness, eventually, replica::Replica, witness};
use redis_allocator::{Client, Ownership};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::load::{LONGEST, Load, SOON, busy, keys, settings, whole};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_is_settled_within_a_time_to_live() -> Result<()> {
    Flavor::both(|flavor| a_rollback_under_load(flavor, Rollback::Backup)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lagged_is_settled_within_a_time_to_live() -> Result<()> {
    Flavor::both(|flavor| a_rollback_under_load(flavor, Rollback::Replica)).await
}

/// How a server comes to know less than it did.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rollback {
    /// It is restarted from a backup.
    Backup,
    /// A replica that lagged is promoted in its place.
    Replica,
}

/// One address for whichever server is the master, as a Kubernetes Service is. Without one it refuses everybody.
struct Service {
    port: u16,
    upstream: watch::Sender<Option<u16>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Service {
    async fn start(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let upstream = watch::Sender::new(Some(upstream));
        let target = upstream.subscribe();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut target = target.clone();
                connections.spawn(async move {
                    let Some(port) = *target.borrow_and_update() else { return };
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = target.changed() => {}
                    }
                });
            }
        });
        Ok(Self { port, upstream, _accepting: AbortOnDropHandle::new(accepting) })
    }
}

async fn a_rollback_under_load(flavor: Flavor, rollback: Rollback) -> Result<()> {
    let (server, record) = (Server::start(flavor).await?, Server::start(Flavor::Redis).await?);
    let witness = Witness::connect(&record.url()).await?;
    let service = Service::start(server.port()).await?;
    let url = format!("redis://127.0.0.1:{}", service.port);
    let pool = Client::connect(&url).await?.pool("load")?;
    pool.configure(&settings(), &Ownership::default()).await?;
    pool.extend(keys()).await?;
    let replica = Replica::of(&server).await?;
    let load = Load::start(&url, &witness).await?;
    busy(&pool).await?;

    let backup = server.save().await?;
    replica.lag();
    tokio::time::sleep(LONGEST).await;
    busy(&pool).await?;
    let before = pool.info().await?;
    let lost_from = witness::now();
    server.kill();
    service.upstream.send_replace(None);
    let master = match rollback {
        Rollback::Backup => {
            server.restart_from(&backup).await?;
            &server
        }
        Rollback::Replica => {
            replica.promote().await?;
            replica.server()
        }
    };
    // Before anybody reaches it.
    let known: u64 = master.cmd(&["HGET", "ra:{default/load}:meta", "last"]).await?;
    service.upstream.send_replace(Some(master.port()));
    let lost_until = witness::now();

    // Whatever nobody knew of is over now. Nothing that happens from here on is excused.
    tokio::time::sleep(LONGEST).await;
    let settled = witness::now();
    let grants = witness.counts().await?.grants;
    busy(&pool).await?;
    tokio::time::sleep(LONGEST).await;
    eventually(SOON, async || {
        ensure!(witness.counts().await?.grants > grants, "nothing was granted afterwards");
        Ok(())
    })
    .await?;
    load.end().await?;
    whole(&pool).await?;

    let (counts, refusals, info) = (witness.counts().await?, witness.refusals().await?, pool.info().await?);
    let window = u64::try_from(lost_from.as_millis())?..u64::try_from(settled.as_millis())?;
    let (within, outside): (Vec<_>, Vec<_>) = refusals.into_iter().partition(|refusal| window.contains(&refusal.at()));
    println!(
        "{flavor}, {rollback:?}: away for {:?}, {} grants, {} uses, {} refused for a while",
        lost_until.saturating_sub(lost_from),
        counts.grants,
        counts.uses,
        within.len()
    );
    ensure!(outside.is_empty(), "refused outside of the bounds: {outside:#?}");
    ensure!(within.iter().all(|refusal| refusal.why != "token-repeated"), "{within:#?}");
    ensure!(info.incarnation == before.incarnation && info.last_token > before.last_token, "{info:?}");
    ensure!(known <= before.last_token, "it lost nothing");
    Ok(())
}
