//! What a sequence is made of: one step for every operation of the library, and what each may answer. Names are hostile
//! on purpose: nothing may be parsed out of them. It must not know what a step does.

use std::time::Duration;

use redis_allocator::{Cause, Longest, Origin, PoolSettings, Removal, SyncOutcome, Ttl};

/// The name of a resource, a binding, an owner or a manager.
pub(crate) type Name = &'static str;

pub(crate) const KEYS: [Name; 8] = ["a", "b", "{c}", "d e", "é", "f\"", "g%7", "h\\n"];
pub(crate) const NAMES: [Name; 4] = ["n1", "n 2", "{n3}", "ñ\""];
pub(crate) const OWNERS: [Name; 4] = ["team/one", "two:2", "three \"3\"", "vier/é"];
pub(crate) const MANAGERS: [Name; 2] = ["files:/a", "files:/b"];

/// One resource as a step declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decl {
    pub(crate) key: Name,
    pub(crate) priority: u16,
    pub(crate) position: Option<u64>,
    /// Which of the few sets of labels and params that tests use.
    pub(crate) facts: u8,
}

/// What a pool is configured with as remembered from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    Nothing,
    /// The pool as it was when it was last lost.
    LastLost,
    /// The pool as it is.
    Present,
}

/// `back` names a grant of a resource: 0 = the newest that is still in the test's hands, 1 = the one before.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Malloc {
        owner: Name,
        ttl: Ttl,
        bind: Option<Name>,
        n: usize,
    },
    MallocKey {
        ttl: Ttl,
    },
    FreeKeys {
        keys: Vec<Name>,
    },
    Renew {
        key: Name,
        back: usize,
    },
    RenewFor {
        key: Name,
        back: usize,
        ttl: Ttl,
    },
    Free {
        key: Name,
        back: usize,
    },
    ForceFree {
        key: Name,
    },
    Extend {
        items: Vec<Decl>,
    },
    Shrink {
        keys: Vec<Name>,
    },
    Assign {
        items: Vec<Decl>,
    },
    Clear,
    Sync {
        origin: Origin,
        items: Vec<Decl>,
        removal: Removal,
        percent: u8,
    },
    /// Two synchronisations of one origin, the second begun before the first has written anything.
    RacingSyncs {
        origin: Origin,
        first: Vec<Decl>,
        second: Vec<Decl>,
    },
    Bind {
        name: Name,
        resource: Name,
        required: bool,
        declared: bool,
        ttl: Option<Duration>,
    },
    Unbind {
        name: Name,
    },
    Quarantine {
        key: Name,
        cause: Cause,
        duration: Option<Duration>,
        reason: Name,
    },
    Unquarantine {
        key: Name,
        cause: Option<Cause>,
    },
    EndRecovery,
    Suspend {
        suspended: bool,
    },
    Configure {
        settings: PoolSettings,
        manager: Option<Name>,
        memory: Memory,
    },
    Takeover {
        manager: Name,
    },
    Abandon,
    Gc {
        count: u32,
    },
    Repair,
    Retire {
        removal: Removal,
    },
    /// The server loses everything.
    FlushAll,
    /// The server's data, as a later `Rollback` brings it back: an old snapshot, a replica that lags.
    Save,
    Rollback,
    Pass {
        time: Duration,
    },
    /// Every way to read.
    Look {
        key: Name,
        name: Name,
    },
}

impl Step {
    /// How far the clock moves before the step is done. Never zero: a pool is not lost, made anew and granted from
    /// within the microseconds that its last grants took tokens of.
    pub(crate) fn takes(&self) -> Duration {
        match self {
            Self::Pass { time } => *time,
            // A server that restarts or is promoted takes its time.
            Self::Rollback => Duration::from_secs(1),
            // Less than several grants take tokens: the clock alone must not give the next one.
            Self::Malloc { .. } => Duration::from_micros(1),
            _ => Duration::from_micros(10),
        }
    }
}

/// A lease as its holder sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) key: String,
    pub(crate) owner: String,
    pub(crate) binding: Option<String>,
    pub(crate) token: u64,
    pub(crate) granted_at: u64,
    /// ms; `None`: permanent.
    pub(crate) ttl: Option<u64>,
    pub(crate) facts: String,
}

/// What a step answered.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Done,
    /// The grant it names is not there.
    Skipped,
    Flag(bool),
    Count(u64),
    Granted(Vec<Grant>),
    Key(Option<String>),
    Keys(Vec<bool>),
    Synced(SyncOutcome),
    Both(Box<Outcome>, Box<Outcome>),
    Configured {
        created: bool,
        changed: bool,
        recovered: bool,
        life: usize,
        longest: Longest,
    },
    Former(Option<String>),
    Reclaimed {
        expired: Vec<(String, String)>,
        recovered: Vec<String>,
        unbound: Vec<String>,
        more: bool,
    },
    Retired {
        leases_left: u64,
        deleted: bool,
    },
    Looked {
        keys: Vec<String>,
        declared: bool,
        known: bool,
        len: u64,
        bindings_of: Vec<String>,
        bound_to: Option<String>,
    },
    /// The error's category, and what else of it is checked.
    Refused(&'static str, String),
}

/// A label and a param, at most.
type Facts = (Option<(&'static str, &'static str)>, Option<(&'static str, i64)>);

/// The labels and params that `Decl::facts` stands for.
pub(crate) fn facts(variant: u8) -> Facts {
    match variant {
        0 => (None, None),
        1 => (Some(("zone", "é\"")), None),
        2 => (None, Some(("index", 3))),
        _ => (Some(("zone", "a")), Some(("{}", -1))),
    }
}
