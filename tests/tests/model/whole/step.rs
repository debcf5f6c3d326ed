//! What a sequence on the whole pool is made of. It must not know what a step does.

/// The name of a resource, a waiter, a session, an owner.
pub(crate) type Name = &'static str;

pub(crate) const KEYS: [Name; 7] = ["a", "a b", "{c}", "d:", "é", "f\"", "g%7"];
pub(crate) const NAMES: [Name; 3] = ["n1", "n 2", "ñ\""];
pub(crate) const OWNERS: [Name; 2] = ["team/one", "zwei \"2\""];
pub(crate) const WAITERS: [Name; 8] = ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"];
/// One begins as another does.
pub(crate) const SESSIONS: [Name; 3] = ["s", "s/1", "t#é"];
/// The first one's facts count where both declare a resource.
pub(crate) const ORIGINS: [Name; 2] = ["spec", "source/x"];

/// Label sets that a pool may be selected by: none, or one of these lists.
pub(crate) const INDEXES: [&[&[Name]]; 4] =
    [&[], &[&["zone"]], &[&["zone"], &["model", "zone"]], &[&["model", "zone"], &["model"]]];

/// The labels that a resource may have; the first one stands for no facts at all.
pub(crate) const LABELS: [&[(Name, Name)]; 7] = [
    &[],
    &[("zone", "eu")],
    &[("zone", "us")],
    &[("zone", "e")],
    &[("model", "h"), ("zone", "eu")],
    &[("model", "a"), ("zone", "us")],
    &[("model", "h")],
];

/// A selector: for each label of an index, the values that will do.
pub(crate) type Selector = &'static [(Name, &'static [Name])];

pub(crate) const SELECTORS: [Selector; 8] = [
    &[("zone", &["eu"])],
    &[("zone", &["us"])],
    &[("zone", &["e", "eu"])],
    &[("zone", &["us", "eu"])],
    &[("model", &["h"]), ("zone", &["eu"])],
    &[("model", &["a", "h"]), ("zone", &["eu", "us"])],
    &[("model", &["h", "a"])],
    &[("zone", &["e"])],
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    LeastRecentlyUsed,
    Sequential,
    Random,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) order: Order,
    /// Of a shared pool: how many may hold one resource, 0 = any number. `None`: exclusive.
    pub(crate) shared: Option<u64>,
    /// Which of `INDEXES`.
    pub(crate) indexes: usize,
    /// ms, as all times here.
    pub(crate) cooldown: u64,
    /// 0: none.
    pub(crate) max_ttl: u64,
    /// 0: bindings that grants make last.
    pub(crate) binding_ttl: u64,
    pub(crate) suspended: bool,
}

impl Settings {
    /// What decides where a free resource stands.
    pub(crate) fn entry(&self) -> (Order, Option<u64>, usize) {
        (self.order, self.shared, self.indexes)
    }
}

/// What `0` stands for as a time to live.
pub(crate) const DEFAULT_TTL: u64 = 60_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) owner: Name,
    /// ms; 0: the pool's default, -1: permanent.
    pub(crate) ttl: i64,
    pub(crate) name: Option<Name>,
    pub(crate) n: u64,
    /// Which of `SELECTORS`, the preferred one first.
    pub(crate) selectors: Vec<usize>,
    pub(crate) session: Option<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Wait,
    Last,
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decl {
    pub(crate) key: Name,
    pub(crate) priority: u16,
    pub(crate) position: Option<u64>,
    /// Which of `LABELS`.
    pub(crate) labels: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Malloc {
        asks: Vec<Ask>,
    },
    /// Grants as they were made, 0 = the last one.
    Free {
        back: Vec<usize>,
    },
    Renew {
        back: usize,
        ttl: i64,
    },
    Revoke {
        keys: Vec<Name>,
    },
    /// One look of a waiter; its first one puts it in line. To be asked again after it was granted something is what a
    /// lost reply makes of it; never again is what death makes of it.
    Poll {
        mode: Mode,
        id: Name,
        ask: Ask,
        priority: u64,
    },
    Upsert {
        origin: Name,
        ttl: u64,
        decls: Vec<Decl>,
    },
    /// `origin`: empty = every one. `later`: 0 = at once.
    Remove {
        origin: Name,
        keys: Vec<Name>,
        revoke: bool,
        later: u64,
    },
    /// A Required binding, or a preferred one.
    Bind {
        name: Name,
        key: Name,
        required: bool,
        ttl: u64,
    },
    Unbind {
        name: Name,
    },
    /// `duration`: -1 = until released.
    Quarantine {
        key: Name,
        cause: Name,
        duration: i64,
    },
    Unquarantine {
        key: Name,
        cause: Name,
    },
    Suspend {
        suspended: bool,
    },
    Configure {
        settings: Settings,
    },
    Gc {
        count: u64,
    },
    /// `ttl`: 0 = it ends.
    Beat {
        session: Name,
        ttl: u64,
        begin: bool,
    },
    Pass {
        micros: u64,
    },
}

impl Step {
    /// How far the clock moves before the step is done, µs. Less than several grants take tokens: the clock alone must
    /// not give the next one.
    pub(crate) fn takes(&self) -> u64 {
        match self {
            Self::Pass { micros } => *micros,
            _ => 1,
        }
    }
}

/// What a script answers, numbers as texts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reply {
    Nothing,
    Text(String),
    List(Vec<Reply>),
}

impl Reply {
    pub(crate) fn text(value: impl std::fmt::Display) -> Self {
        Self::Text(format!("{value}"))
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("-"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(list) => f.debug_list().entries(list).finish(),
        }
    }
}
