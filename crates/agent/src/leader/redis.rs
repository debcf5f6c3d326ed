//! Which of several agents on one Redis leads: the one that holds the single resource of a pool of their own.
//!
//! # Guarantees
//! - [`Leadership::lost`] is cancelled before anyone else can lead: a lease is lost at its holder's deadline, and granted
//!   anew no sooner.
//!
//! # Caveats
//! - A Redis that loses its data loses this pool, too. The former leader hears of it at its next renewal, within a third
//!   of [`TTL`]; until then two may lead. What they write is the same, and a synchronisation stops when another began.

use std::time::Duration;

use futures::FutureExt as _;
use redis_allocator::{Client, Error, Lease, Ownership, PoolName, PoolSettings, ResourceKey};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::reconcile::SYSTEM_NAMESPACE;

/// How long a leader that does not answer still leads.
const TTL: Duration = Duration::from_secs(10);
/// How often a follower asks.
pub(crate) const ASK: Duration = Duration::from_secs(1);

/// The right to lead.
#[derive(Debug)]
pub(crate) struct Leadership {
    lease: Lease,
}

impl Leadership {
    /// Asks for it once; `None` when someone else leads.
    pub(crate) async fn ask(client: &Client, manager: &str) -> Result<Option<Self>, Error> {
        let pool = client.pool(pool_name(manager)?.as_str())?;
        let asked = pool.malloc().ttl(TTL).keep_alive().await;
        let lease = match asked {
            Err(Error::UnknownPool { .. }) => {
                pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
                None
            }
            Ok(lease) => lease,
            Err(error) => return Err(error),
        };
        if let Some(lease) = lease {
            return Ok(Some(Self { lease }));
        }
        // Nothing is free, or the pool is as it was created. Adding what is there already writes nothing new.
        if pool.is_empty().await? {
            pool.extend([ResourceKey::new("leader")?]).boxed().await?;
            let lease = pool.malloc().ttl(TTL).keep_alive().await?;
            return Ok(lease.map(|lease| Self { lease }));
        }
        Ok(None)
    }

    /// Cancelled when it is not this agent's any more.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.lease.lost_token()
    }

    /// Gives it up, so that another agent leads at once.
    pub(crate) async fn resign(self) {
        if let Err(error) = self.lease.free().await {
            tracing::debug!("giving up the lead failed: {error}");
        }
    }
}

/// Agents of the same declarations contend for the same pool; others have one of their own. The identity may be any
/// text, so its hash is the name.
fn pool_name(manager: &str) -> Result<PoolName, Error> {
    let digest = Sha256::digest(manager.as_bytes());
    let hash = digest.iter().take(16).fold(0_u128, |hash, &byte| hash << 8 | u128::from(byte));
    PoolName::new(SYSTEM_NAMESPACE, &format!("leader-{hash:032x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_has_a_valid_name_of_its_own() {
        let names = ["", "files:/etc/pools", "Ünïcode {braces}"].map(|manager| pool_name(manager).unwrap());
        assert_ne!(names[0], names[1]);
        assert_eq!(names[1].namespace(), SYSTEM_NAMESPACE);
    }
}
