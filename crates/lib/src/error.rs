//! Every way a call of this library can fail, one variant for each thing a caller would do differently.

use std::{sync::Arc, time::Duration};

use crate::names::{BindingName, PoolName, ResourceKey};

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// *Nothing free* is not among them: that is `Ok(None)`, or for a request that waited [`Error::NotServed`]. Unless a variant
/// says otherwise, a call that fails has changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No pool of this name exists on the server.
    #[error("there is no pool {pool}: declare it in a manifest, or create it with Pool::configure")]
    UnknownPool {
        /// The pool that was asked for.
        pool: PoolName,
    },

    /// The pool has no resource of this name.
    #[error("pool {pool} has no such resource: see what it has with `redis-allocator get resources`")]
    UnknownResource {
        /// The pool that was asked.
        pool: PoolName,
    },

    /// The caller does not hold the grant it named: it was freed, ended, or has been given to another since.
    #[error("{resource} in pool {pool} is not held by this grant: it ended, or the resource was granted anew")]
    NotOwner {
        /// The pool of the resource.
        pool: PoolName,
        /// The resource that the stale grant named.
        resource: ResourceKey,
    },

    /// The lease has ended while its holder still wanted it: stop using the resource.
    #[error("the lease on {resource} in pool {pool} is lost: stop using it ({reason})")]
    Lost {
        /// The pool of the resource.
        pool: PoolName,
        /// The resource that is no longer held.
        resource: ResourceKey,
        /// Why it was lost.
        reason: LostReason,
    },

    /// A name or key breaks the rules for its kind.
    #[error("{what} {found:?} is not valid: allowed is {allowed}")]
    InvalidName {
        /// The kind of name, such as `pool name`.
        what: &'static str,
        /// What was given, shortened.
        found: String,
        /// What would be accepted.
        allowed: &'static str,
    },

    /// An argument is out of its range.
    #[error("{what} {found} is not valid: allowed is {allowed}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// What was given.
        found: String,
        /// What would be accepted.
        allowed: String,
    },

    /// The time to live that was asked for is not one that this pool grants. It is refused, never clamped.
    #[error("pool {pool} refuses a lease of {found}: allowed is {allowed}")]
    TtlRefused {
        /// The pool that was asked.
        pool: PoolName,
        /// The time to live that was asked for.
        found: String,
        /// What the pool grants.
        allowed: String,
    },

    /// The pool could never grant so many at once. Nothing was changed.
    #[error("pool {pool} can never grant {count} at once: it has {most} to grant")]
    ImpossibleCount {
        /// The pool that was asked.
        pool: PoolName,
        /// How many were asked for.
        count: u64,
        /// How many it could grant if nobody held anything.
        most: u64,
    },

    /// A selector's labels are none of the pool's indexes.
    #[error(
        "pool {pool} has no index [{labels}] to select by: allowed are {}; or add it to the pool's indexes",
        if indexes.is_empty() { "none".to_owned() } else { indexes.iter().map(|i| format!("[{i}]")).collect::<Vec<_>>().join(", ") }
    )]
    NotIndexed {
        /// The pool that was asked.
        pool: PoolName,
        /// The selector's labels, sorted, with commas between.
        labels: String,
        /// The pool's indexes, each as its labels with commas between.
        indexes: Vec<String>,
    },

    /// The session was ended, or Redis has not heard of it in time. What was to be part of it was not granted.
    #[error("session {session} is over in pool {pool}: start another one")]
    SessionOver {
        /// The pool that was asked.
        pool: PoolName,
        /// The session's id.
        session: String,
    },

    /// A newer synchronisation of the same origin has begun: this one stopped, part of it may have been written.
    #[error("synchronising {origin} of pool {pool} was superseded by a newer one: nothing to do, the newer one wins")]
    Superseded {
        /// The pool being synchronised.
        pool: PoolName,
        /// The origin being synchronised.
        origin: String,
    },

    /// Another declaration manages the pool.
    #[error(
        "pool {pool} is managed by {found:?}, not by {manager:?}: remove one of the two declarations, or take the pool \
         over (redis-allocator takeover)"
    )]
    ManagerConflict {
        /// The pool.
        pool: PoolName,
        /// Who asked.
        manager: String,
        /// Who manages it.
        found: String,
    },

    /// The pool exists with another mode, and what a lease is differs between the two.
    #[error(
        "pool {pool} was created with mode {found}, and can't become {wanted}: keep its mode, or delete the pool, and \
         create it anew once its leases are over"
    )]
    ModeConflict {
        /// The pool.
        pool: PoolName,
        /// The mode it has.
        found: String,
        /// The mode that was asked for.
        wanted: &'static str,
    },

    /// A Required binding already reserves the resource for another name.
    #[error("{resource} in pool {pool} is already reserved for {holder}: it can't be reserved for {name} too")]
    BindingConflict {
        /// The pool.
        pool: PoolName,
        /// The resource both want.
        resource: ResourceKey,
        /// The name that was refused.
        name: BindingName,
        /// The name that has it.
        holder: BindingName,
    },

    /// A time limit passed before the call was sent, or before a read-only call was answered. Nothing was changed.
    #[error("waited {} ms for {waited_for}, in vain", after.as_millis())]
    Timeout {
        /// What did not come.
        waited_for: &'static str,
        /// How long it was waited for.
        after: Duration,
    },

    /// The server can't be reached, or does not take commands now. The call was not executed; try again later.
    #[error("the Redis server is unavailable: {message}")]
    Unavailable {
        /// What happened, in a sentence.
        message: String,
        /// The error beneath.
        #[source]
        source: Option<Arc<redis::RedisError>>,
    },

    /// Nothing became free within the time that a request waited in line. Nothing was changed.
    #[error("nothing became free in pool {pool} within the {} ms that it was waited for", after.as_millis())]
    NotServed {
        /// The pool that was waited for.
        pool: PoolName,
        /// How long.
        after: Duration,
    },

    /// The request was sent and its reply never came: it may have been executed, or not. Look before you repeat it.
    #[error("the outcome of {operation} on {subject} is unknown: its reply was lost ({message})")]
    OutcomeUnknown {
        /// The operation.
        operation: &'static str,
        /// What it was to change.
        subject: String,
        /// What happened to the reply.
        message: String,
    },

    /// The pool was written by a newer version of this library. Upgrade this client; it touches nothing.
    #[error("pool {pool} has layout version {found}, this client understands {supported}: upgrade the client")]
    UnsupportedSchema {
        /// The pool.
        pool: PoolName,
        /// The version found.
        found: String,
        /// The newest version understood.
        supported: u32,
    },

    /// The server may evict keys, and with them leases.
    #[error(
        "the Redis server evicts keys when memory is full (maxmemory-policy {policy}), which would let two holders have \
         one resource: set maxmemory-policy noeviction, or allow it explicitly with ClientBuilder::allow_eviction"
    )]
    Evicting {
        /// The policy found.
        policy: String,
    },

    /// The server refused or failed the command itself: no permission, a key of the wrong type, out of memory.
    #[error("the Redis server refused {operation} on {subject}: {message}")]
    Server {
        /// The operation.
        operation: &'static str,
        /// What it was to change.
        subject: String,
        /// The server's words.
        message: String,
    },
}

/// Why a lease is no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// Its deadline passed before a renewal was answered.
    Expired,
    /// An operator, or the pool's removal policy, ended it, or it had expired and was reclaimed.
    Ended,
    /// The pool itself was lost or created anew: Redis restarted without its data.
    PoolLost,
}

impl std::fmt::Display for LostReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Expired => "its time is over",
            Self::Ended => "it was ended or reclaimed",
            Self::PoolLost => "the pool lost its data",
        })
    }
}

impl Error {
    /// A short name from a fixed set, for metric labels and log fields.
    pub fn category(&self) -> &'static str {
        match self {
            Self::UnknownPool { .. } => "unknown_pool",
            Self::UnknownResource { .. } => "unknown_resource",
            Self::NotOwner { .. } => "not_owner",
            Self::Lost { .. } => "lost",
            Self::InvalidName { .. } => "invalid_name",
            Self::Invalid { .. } => "invalid",
            Self::TtlRefused { .. } => "ttl_refused",
            Self::ImpossibleCount { .. } => "impossible_count",
            Self::NotIndexed { .. } => "not_indexed",
            Self::SessionOver { .. } => "session_over",
            Self::Superseded { .. } => "superseded",
            Self::ManagerConflict { .. } => "manager_conflict",
            Self::ModeConflict { .. } => "mode_conflict",
            Self::BindingConflict { .. } => "binding_conflict",
            Self::Timeout { .. } => "timeout",
            Self::NotServed { .. } => "not_served",
            Self::Unavailable { .. } => "unavailable",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::UnsupportedSchema { .. } => "unsupported_schema",
            Self::Evicting { .. } => "evicting",
            Self::Server { .. } => "server",
        }
    }

    /// Whether the same call may succeed later without anyone changing anything but the server's health.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unavailable { .. } | Self::OutcomeUnknown { .. })
    }
}
