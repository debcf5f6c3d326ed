//! One step of taking down a pool that is not declared any more, as its deletion policy says.

use redis_allocator::{Error, Removal, Retired};
use redis_allocator_crd::DeletionPolicy;

use redis_allocator::PoolName;

use super::Context;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    /// Nothing of it is ours any more.
    Done,
    /// It is another declaration's, and stays as it is.
    NotOurs,
    /// It is not there, and not because it was deleted here: Redis may have lost it, with leases that live holders rely on.
    Lost,
    /// It goes when these have ended.
    Leases(u64),
}

/// Does what can be done now. Called again until it is done.
pub(super) async fn delete(ctx: &Context, name: &PoolName, policy: DeletionPolicy) -> Result<Deletion, Error> {
    let pool = ctx.client.pool(name.as_str())?;
    match pool.info().await {
        Ok(info) if info.manager.as_deref() == Some(&ctx.manager) => {}
        // Someone else's by now, or never ours: not ours to take down.
        Ok(_) => return Ok(Deletion::NotOurs),
        Err(Error::UnknownPool { .. }) => return Ok(Deletion::Lost),
        Err(error) => return Err(error),
    }
    let removal = match policy {
        DeletionPolicy::Drain => Removal::Drain,
        DeletionPolicy::Revoke => Removal::Revoke,
        DeletionPolicy::Orphan => {
            pool.abandon().await?;
            tracing::info!(pool = %name, "the pool stays, unmanaged: its deletionPolicy is Orphan");
            return Ok(Deletion::Done);
        }
    };
    let Retired { leases_left, deleted } = match pool.retire(removal).await {
        Ok(retired) => retired,
        Err(Error::UnknownPool { .. }) => return Ok(Deletion::Lost),
        Err(error) => return Err(error),
    };
    if deleted {
        tracing::info!(pool = %name, "pool drained and deleted");
        return Ok(Deletion::Done);
    }
    Ok(Deletion::Leases(leases_left))
}
