//! A pool, seen from a client. Each file beside this one holds one kind of operation; all of them run one script a call
//! through [`Pool::call`].

mod ask;
mod bindings;
mod check;
mod foresee;
mod gc;
mod grants;
mod info;
mod items;
mod leases;
mod life;
mod malloc;
mod quarantine;
mod selector;
mod sessions;
mod settings;
mod snapshot;
mod sync;
#[cfg(feature = "test-clock")]
mod test_surface;
mod wait;
mod waiters;

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

pub use self::{
    bindings::{BindOptions, BindPolicy, Binding},
    check::{Invariant, Violation},
    foresee::{Departure, Leaving, SyncForesight},
    gc::GcReport,
    info::{Counters, Counts, Hold, OriginInfo, PoolInfo},
    leases::ListedLease,
    life::{ConfigureForesight, Configured, Incarnation, Known, Longest, Ownership, Retired},
    malloc::{Malloc, Many, Now, One, Waiting, malloc_any, malloc_any_or_wait},
    quarantine::{Cause, Mark, Quarantined},
    selector::Selector,
    sessions::SessionInfo,
    settings::{Mode, Order, PoolSettings},
    snapshot::{Cursor, LeaseInfo, Place, ResourceState, SnapshotPage},
    sync::{Removal, SyncOptions, SyncOutcome},
    waiters::{WaiterInfo, WaiterPage},
};
pub(crate) use ask::Asker;
pub(crate) use grants::{KeyGrant, Renewal, ToBeFreed};
pub(crate) use sessions::{Heartbeat, SessionLease};

use crate::{
    client::Client,
    error::{Error, Result},
    keys::POOL_KEYS,
    names::{PoolName, ResourceKey},
    reply::Reply,
    script::Scripted,
};

/// The most resources that one script handles: longer work is cut into calls of this many, so that no other client
/// waits long.
pub(crate) const BATCH: usize = 200;
/// The newest layout of the keys that this version understands.
const SCHEMA: u32 = 1;
/// How long after a lease's expiry Redis waits before it gives the resource to someone else, so that a clock that
/// jumped ahead takes nothing from a holder. Hosts that serve one pool in turn must agree within it.
pub const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// A handle to one pool; see [`Client::pool`]. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// A handle that keeps nothing alive.
pub(crate) struct WeakPool(Weak<Inner>);

impl WeakPool {
    pub(crate) fn upgrade(&self) -> Option<Pool> {
        self.0.upgrade().map(|inner| Pool { inner })
    }
}

struct Inner {
    client: Client,
    name: PoolName,
    keys: [String; POOL_KEYS],
    /// Where callers of this pool meet.
    together: grants::Together,
    /// Who asks unless a request says otherwise; made when it is first needed.
    asker: OnceLock<Arc<ask::Asker>>,
}

/// The argument list of a script.
type Args<'a> = Vec<Cow<'a, [u8]>>;

fn text(value: &str) -> Cow<'_, [u8]> {
    Cow::Borrowed(value.as_bytes())
}

fn owned(value: impl std::fmt::Display) -> Cow<'static, [u8]> {
    Cow::Owned(value.to_string().into_bytes())
}

impl Pool {
    pub(crate) fn new(client: Client, name: PoolName, keys: [String; POOL_KEYS]) -> Self {
        let (together, asker) = (grants::Together::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { client, name, keys, together, asker }) }
    }

    pub(crate) fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.inner))
    }

    /// The pool's full name.
    pub fn name(&self) -> &PoolName {
        &self.inner.name
    }

    /// The client this handle came from.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Runs a script on this pool; its answer, or the status with which it declined.
    async fn call(&self, script: &'static Scripted, args: &[Cow<'_, [u8]>]) -> Result<Reply> {
        self.read(self.send(script, args, false).await?)
    }

    async fn send(&self, script: &'static Scripted, args: &[Cow<'_, [u8]>], patiently: bool) -> Result<Reply> {
        let Inner { client, name, keys, .. } = &*self.inner;
        client.run(client.form(script), name.as_str(), keys, args, patiently).await
    }

    /// Turns the statuses that any script may answer with into errors.
    fn read(&self, mut reply: Reply) -> Result<Reply> {
        let status = reply.text()?;
        match self.status(&status, &mut reply)? {
            None => Ok(reply),
            Some(error) => Err(error),
        }
    }

    fn status(&self, status: &str, reply: &mut Reply) -> Result<Option<Error>> {
        let pool = self.name().clone();
        Ok(match status {
            "ok" => None,
            "unknown" => Some(Error::UnknownPool { pool }),
            "schema" => Some(Error::UnsupportedSchema { pool, found: reply.text()?, supported: SCHEMA }),
            "no-resource" => Some(Error::UnknownResource { pool }),
            other => Some(reply.broken(format!("unknown status {other:?}"))),
        })
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.name().as_str()).finish()
    }
}

fn keys_of<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Result<Vec<ResourceKey>> {
    keys.into_iter().map(ResourceKey::new).collect()
}
