//! Callers of one process that ask at the same moment: they share scripts, and nothing else.

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server};
use futures::future::join_all;
use redis_allocator::{BindingName, Client, Error, Item, Ownership, Pool, PoolSettings, Selector};

const SIZE: usize = 40;

async fn pool_of(client: &Client, size: usize) -> Result<Pool> {
    let pool = client.pool("gpus")?;
    let settings = PoolSettings { indexes: vec![vec!["zone".to_owned()]], ..PoolSettings::default() };
    pool.configure(&settings, &Ownership::default()).await?;
    let item = |k| Ok(Item::new(format!("r{k:02}").parse()?).label("zone", if k % 2 == 0 { "eu" } else { "us" }));
    pool.extend((0..size).map(item).collect::<Result<Vec<_>>>()?).await?;
    Ok(pool)
}

fn zone(text: &str) -> Result<Selector> {
    Ok(text.parse()?)
}

// One thread: all of them have asked before any is answered.
#[tokio::test]
async fn requests_for_something_special_share_scripts_and_fail_alone() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let client = Client::connect(&server.url()).await?;
        let pool = pool_of(&client, SIZE).await?;
        let session = client.session("worker").start().await?;
        session.join(&pool).await?;
        pool.malloc().bind("first").await?.context("all are free")?.free().await?;

        let before = server.command_stats().await?.calls("evalsha");
        let mut requests = Vec::new();
        for k in 0..8 {
            requests.push(pool.malloc().bind(format!("name-{k}")));
            requests.push(pool.malloc().select(zone("zone=eu")?));
            requests.push(pool.malloc().session(&session));
        }
        requests.insert(5, pool.malloc().select(zone("model=x")?));
        let mut answers = join_all(requests.into_iter().map(IntoFuture::into_future)).await;
        let scripts = server.command_stats().await?.calls("evalsha") - before;
        // The first is alone, the 24 others come to two scripts; a heartbeat may be among them.
        ensure!((3..=6).contains(&scripts), "{scripts} scripts for 25 requests");

        let refused = answers.remove(5);
        ensure!(matches!(refused, Err(Error::NotIndexed { .. })), "{refused:?}");
        let leases = answers.into_iter().map(|lease| lease?.context("enough is free")).collect::<Result<Vec<_>>>()?;
        for (k, lease) in leases.iter().enumerate() {
            let name = format!("name-{}", k / 3);
            ensure!(lease.binding().map(BindingName::as_str) == Some(&*name).filter(|_| k % 3 == 0));
            let even = lease.key().as_str()[1..].parse::<usize>()? % 2 == 0;
            ensure!(k % 3 != 1 || even, "{} is not in eu", lease.key());
        }
        ensure!(pool.bindings().await?.len() == 9, "each of eight names, and the first");
        let listed = pool.sessions().await?;
        ensure!(listed.len() == 1 && listed[0].leases == 8, "{listed:?}");
        ensure!(pool.check().await?.is_empty());
    }
    Ok(())
}

// One thread, as above.
#[tokio::test]
async fn who_was_granted_something_hears_of_it_though_the_rest_of_the_batch_fails() -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let pool = Client::connect(&server.url()).await?.pool("gpus")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        pool.extend(["a".parse()?, "b".parse()?].map(Item::new)).await?;
        // Enough for a plain grant, and not for looking at what is over when there is nothing to grant.
        server.cmd::<()>(&["ACL", "SETUSER", "user", "on", ">secret", "~*", "&*", "+@all", "-hincrby"]).await?;
        let url = format!("redis://user:secret@{}", server.address());
        let limited = Client::connect(&url).await?.pool("gpus")?;
        // The first is alone; the other two are one script, and there is one resource left for them.
        let answers = join_all((0..3).map(|_| limited.malloc().into_future())).await;
        let granted = answers.iter().filter(|answer| matches!(answer, Ok(Some(_)))).count();
        ensure!(granted == 2, "{answers:?}");
        ensure!(matches!(limited.malloc().await, Err(Error::Server { .. })), "what is wrong is told");
        for answer in answers {
            if let Ok(Some(lease)) = answer {
                lease.free().await?;
            }
        }
        ensure!(pool.info().await?.counts.free == 2 && pool.check().await?.is_empty());
    }
    Ok(())
}
