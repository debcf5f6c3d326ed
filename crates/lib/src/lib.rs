//! Leases on scarce, named resources, handed out by Redis (or Valkey): GPUs, proxies, test devices, ports, licences,
//! accounts. A pool holds the resources; a [`Lease`] is the right to use one of them until a deadline. No two holders ever
//! have the same one at the same time; in a shared pool, never more than the pool allows.
//!
//! ```no_run
//! use std::time::Duration;
//! use redis_allocator::Client;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), redis_allocator::Error> {
//! let client = Client::connect("redis://127.0.0.1:6379").await?;
//! let pool = client.pool("default/gpus")?;
//! match pool.malloc().ttl(Duration::from_secs(120)).bind("trainer-1").keep_alive().await? {
//!     Some(lease) => {
//!         tokio::select! {
//!             () = lease.lost() => eprintln!("lost {}: stop using it", lease.key()),
//!             () = work(lease.key().as_str(), lease.fencing_token()) => lease.free().await?,
//!         }
//!     }
//!     None => eprintln!("nothing is free"),
//! }
//! # Ok(())
//! # }
//! # async fn work(_: &str, _: u64) {}
//! ```
//!
//! Every operation is one atomic script in one round trip; what has to reach many resources, or waits, is several of them.
//! Time is always Redis' own; a lease's deadline is local and counted from before its request was sent. What the keys are is
//! told in the source of `keys`, what each script does at the head of its file in `scripts`.
//!
//! | to | see |
//! |---|---|
//! | make a pool, exclusive or shared, and say what it holds | [`Pool::configure`], [`Mode`], [`Pool::extend`], [`Pool::extend_for`] |
//! | ask for one, for as many as are free, for all of several | [`Pool::malloc`], [`Malloc::up_to`], [`Malloc::count`] |
//! | ask for one with certain labels | [`Malloc::select`], [`Selector`], [`PoolSettings::indexes`] |
//! | ask several pools in turn | [`malloc_any`] |
//! | wait in line, and look at the line | [`Malloc::wait`], [`Malloc::priority`], [`Pool::waiters`] |
//! | keep a lease, and hear when it is lost | [`Malloc::keep_alive`], [`Lease::lost`] |
//! | keep many by one heartbeat, and see who is alive | [`Session`], [`Malloc::session`], [`Pool::sessions`] |
//! | see who holds what, and where the rest is | [`Pool::leases`], [`Pool::snapshot`] |
//! | hold one resource for one name, or let it come back to it | [`Malloc::bind`], [`Pool::bind`] |
//! | open, check and close what is leased | [`Allocatable`], [`Malloc::open`] |
//!
//! A pool of one resource with [`Mode::Shared`] is a counting semaphore whose permits expire; an exclusive one with one
//! resource is a lock with a fencing token.

mod client;
mod combine;
mod connection;
mod error;
mod item;
mod keep_alive;
mod keys;
mod lease;
mod names;
mod object;
mod pool;
mod reply;
mod script;
mod session;
#[cfg(feature = "test-clock")]
#[doc(hidden)]
pub mod test_clock;
mod time;
mod to_the_end;
mod wake;

pub use crate::{
    client::{Client, ClientBuilder, ClockReading, Permissions, ServerFacts, ServerInfo},
    error::{Error, LostReason, Result},
    item::{Item, MAX_PRIORITY},
    lease::Lease,
    names::{BindingName, Origin, PoolName, ResourceKey},
    object::{Allocatable, Allocated, BoxError, CloseError, Failure, Fault, Open, OpenError},
    pool::{
        BindOptions, BindPolicy, Binding, CLOCK_SLACK, Cause, ConfigureForesight, Configured, Counters, Counts, Cursor,
        Departure, GcReport, Hold, Incarnation, Invariant, Known, LeaseInfo, Leaving, ListedLease, Longest, Malloc,
        Many, Mark, Mode, Now, One, Order, OriginInfo, Ownership, Place, Pool, PoolInfo, PoolSettings, Quarantined,
        Removal, ResourceState, Retired, Selector, SessionInfo, SnapshotPage, SyncForesight, SyncOptions, SyncOutcome,
        Violation, WaiterInfo, WaiterPage, Waiting, malloc_any, malloc_any_or_wait,
    },
    session::{Session, SessionBuilder},
    time::{BootInstant, MAX_DURATION, Timestamp, Ttl},
};
