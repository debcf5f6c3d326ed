//! Pools, sessions and processes that die; and what must be so at a deadline.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use redis_allocator::{
    BootInstant, Client, Error, Lease, LostReason, Ownership, Pool, PoolSettings, ResourceKey, Session, SessionInfo,
};

/// For what must happen, on a machine that may have no time.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Time to live of sessions that are not to die, even if this machine is busy.
pub(crate) const LONG: Duration = Duration::from_mins(1);
/// Time to live of sessions that are to die.
pub(crate) const SHORT: Duration = Duration::from_secs(6);
/// The clocks' slack, less what rounding to milliseconds takes.
pub(crate) const SLACK: Duration = Duration::from_millis(1990);

pub(crate) fn keys(size: usize) -> Vec<ResourceKey> {
    (0..size).map(|i| ResourceKey::new(format!("r{i}")).unwrap()).collect()
}

pub(crate) async fn fill(pool: &Pool, size: usize) -> Result<()> {
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    for keys in keys(size).chunks(200) {
        pool.extend(keys.to_vec()).await?;
    }
    Ok(())
}

/// A pool of so many resources.
pub(crate) async fn pool_of(url: &str, size: usize) -> Result<Pool> {
    let pool = Client::connect(url).await?.pool("gpus")?;
    fill(&pool, size).await?;
    Ok(pool)
}

pub(crate) async fn session(pool: &Pool, name: &str, ttl: Duration) -> Result<Session> {
    Ok(pool.client().session(name).ttl(ttl).start().await?)
}

/// So many leases of a session.
pub(crate) async fn leases_of(session: &Session, pool: &Pool, count: usize) -> Result<Vec<Lease>> {
    let mut leases = Vec::with_capacity(count);
    while leases.len() < count {
        let more = pool.malloc().session(session).up_to((count - leases.len()).min(200)).await?;
        ensure!(!more.is_empty(), "only {} of {count} can be had", leases.len());
        leases.extend(more);
    }
    Ok(leases)
}

pub(crate) async fn lease_of(session: &Session, pool: &Pool) -> Result<Lease> {
    pool.malloc().session(session).await?.context("nothing is free")
}

pub(crate) async fn is_clean(pool: &Pool) -> Result<()> {
    let violations = pool.check().await?;
    ensure!(violations.is_empty(), "{violations:?}");
    Ok(())
}

/// What the pool knows of the one session of this name.
pub(crate) async fn listed(pool: &Pool, name: &str) -> Result<SessionInfo> {
    let mut sessions = pool.sessions().await?;
    sessions.retain(|session| session.name == name);
    ensure!(sessions.len() == 1, "not one session is called {name}: {sessions:?}");
    sessions.pop().context("there is one")
}

/// Runs something in a runtime of its own that ends in the midst, as a process that is killed: nothing is dropped, and
/// nobody is told anything.
pub(crate) async fn in_a_process_that_dies<T, F, R>(work: F) -> Result<R>
where
    F: AsyncFnOnce() -> Result<(T, R)> + Send + 'static,
    R: Send + 'static,
{
    let died = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (held, result) = runtime.block_on(work())?;
        runtime.shutdown_background();
        std::mem::forget(held);
        anyhow::Ok(result)
    });
    died.await?
}

/// Waits for a heartbeat of its session that was sent later than the one this deadline comes from.
pub(crate) async fn heard_of_since(deadline: Option<BootInstant>, lease: &Lease) -> Result<()> {
    eventually(SOON, async || {
        ensure!(lease.deadline() > deadline, "no heartbeat since: {lease:?}");
        Ok(())
    })
    .await
}

/// Waits until a lease is lost, and looks whether it was told at its deadline.
pub(crate) async fn told_at_the_deadline(lease: &Lease) -> Result<()> {
    let deadline = lease.deadline().context("no deadline")?;
    tokio::time::timeout(SOON, lease.lost()).await.context("it is not told")?;
    ensure!(deadline.is_past() && !(deadline + SOON / 2).is_past(), "told at another time");
    ensure!(lease.is_lost() && lease.lost_reason() == Some(LostReason::Expired), "{lease:?}");
    let renewed = lease.renew().await;
    ensure!(matches!(renewed, Err(Error::Lost { reason: LostReason::Expired, .. })), "{renewed:?}");
    Ok(())
}

/// Has somebody else ask for a resource again and again until it is granted, and looks whether that was after this moment.
pub(crate) async fn granted_after(moment: impl Fn() -> Option<BootInstant>, pool: &Pool) -> Result<Lease> {
    let end = Instant::now() + SOON;
    loop {
        // What a paused server grants, it grants after it was asked.
        let before = moment().context("no deadline")?;
        if let Some(lease) = pool.malloc().await? {
            let moment = moment().context("no deadline")?;
            ensure!(moment == before && moment.is_past(), "granted {:?} early", moment.remaining());
            return Ok(lease);
        }
        ensure!(Instant::now() < end, "nothing is free");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
