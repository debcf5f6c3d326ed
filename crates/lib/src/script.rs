//! The Lua scripts, each with the prelude and the shared parts it needs. What a script does, takes and answers is said
//! at its head, in `scripts/*.lua`; who sends them is [`crate::connection`].

use std::sync::LazyLock;

use redis::Script as Sha;

/// Whether a script may be sent a second time after its first reply was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// A second execution changes nothing that the first did not (it names a grant, or only reads).
    Safe,
    /// A second execution would do it twice: the caller gets `OutcomeUnknown` instead.
    Never,
}

/// One script, ready to be sent by its SHA-1.
#[derive(Debug)]
pub(crate) struct Script {
    /// What it does, for errors: `malloc`, `free`.
    pub(crate) operation: &'static str,
    pub(crate) repeat: Repeat,
    /// Whether it writes nothing: a lost reply is then a plain timeout.
    pub(crate) read_only: bool,
    pub(crate) code: String,
    pub(crate) sha: String,
}

impl Script {
    pub(crate) fn new(operation: &'static str, repeat: Repeat, read_only: bool, code: String) -> Self {
        let sha = Sha::new(&code).get_hash().to_owned();
        Self { operation, repeat, read_only, code, sha }
    }
}

/// What a server that is out of memory does with a script. Both kinds are decided before the script begins, so that
/// none stops half-way for lack of memory (script flags, Redis 7).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Grants and declarations are refused.
    Refuse,
    /// Whatever gives back goes on.
    Allow,
    /// Reads need none.
    Read,
}

/// A script in its two forms.
#[derive(Debug)]
pub(crate) struct Scripted {
    plain: Script,
    /// The form that takes the time as its first two arguments instead of asking Redis: for tests alone.
    #[cfg(feature = "test-clock")]
    clocked: Script,
}

impl Scripted {
    fn new(operation: &'static str, repeat: Repeat, memory: Memory, parts: &[&str]) -> Self {
        let flags = match memory {
            Memory::Refuse => "#!lua\n",
            Memory::Allow => "#!lua flags=allow-oom\n",
            Memory::Read => "#!lua flags=no-writes\n",
        };
        let code = format!("{flags}{}", parts.join("\n"));
        let read_only = memory == Memory::Read;
        Self {
            #[cfg(feature = "test-clock")]
            clocked: {
                let asked = "redis.call('TIME')";
                debug_assert_eq!(code.matches(asked).count(), 1, "the prelude reads the time once");
                let given = "{ table.remove(ARGV, 1), table.remove(ARGV, 1) }";
                Script::new(operation, repeat, read_only, code.replacen(asked, given, 1))
            },
            plain: Script::new(operation, repeat, read_only, code),
        }
    }

    /// The form that asks Redis for the time.
    pub(crate) fn plain(&self) -> &Script {
        &self.plain
    }

    /// The form that is told the time.
    #[cfg(feature = "test-clock")]
    pub(crate) fn clocked(&self) -> &Script {
        &self.clocked
    }
}

const PRELUDE: &str = include_str!("scripts/shared/prelude.lua");
const BASE: &str = include_str!("scripts/shared/base.lua");
const TERMS: &str = include_str!("scripts/shared/terms.lua");
const GRANT: &str = include_str!("scripts/shared/grant.lua");
const POLL: &str = include_str!("scripts/shared/poll.lua");
const UNDO: &str = include_str!("scripts/shared/undo.lua");
const GIVE_BACK: &str = include_str!("scripts/shared/give_back.lua");
const FREE_SET: &str = include_str!("scripts/shared/free_set.lua");
const OFFER: &str = include_str!("scripts/shared/offer.lua");
const SETTLE: &str = include_str!("scripts/shared/settle.lua");
const RECLAIM: &str = include_str!("scripts/shared/reclaim.lua");
const DEMAND: &str = include_str!("scripts/shared/demand.lua");
const ORIGINS: &str = include_str!("scripts/shared/origins.lua");
const LEAVE: &str = include_str!("scripts/shared/leave.lua");

macro_rules! scripts {
    ($($name:ident = $file:literal, $repeat:ident, $memory:ident, [$($part:ident),*];)*) => {
        $(
            pub(crate) static $name: LazyLock<Scripted> = LazyLock::new(|| {
                Scripted::new(
                    $file,
                    Repeat::$repeat,
                    Memory::$memory,
                    &[PRELUDE, $($part,)* include_str!(concat!("scripts/", $file, ".lua"))],
                )
            });
        )*

        /// Every script, for tests.
        #[cfg(test)]
        fn all() -> Vec<&'static Scripted> {
            vec![$(&*$name),*]
        }
    };
}

scripts! {
    MALLOC = "malloc", Never, Refuse, [GRANT, BASE, TERMS, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM, DEMAND];
    // A waiter names itself: asked again, it hears the same.
    WAIT = "wait", Safe, Refuse, [POLL, BASE, TERMS, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM, DEMAND];
    LEAVE_LINE = "wait", Safe, Allow, [BASE, TERMS, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM, DEMAND];
    FREE = "free", Never, Allow, [UNDO, GIVE_BACK, BASE, FREE_SET, OFFER, SETTLE];
    RENEW = "renew", Safe, Allow, [BASE, FREE_SET];
    REVOKE = "revoke", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, ORIGINS, LEAVE];
    GC = "gc", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM, ORIGINS, LEAVE];
    // A session that lives goes on, and one that ends gives back.
    BEGIN_SESSION = "heartbeat", Safe, Refuse, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM];
    HEARTBEAT = "heartbeat", Safe, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM];
    SESSION = "session", Safe, Read, [BASE];
    SESSIONS = "sessions", Safe, Read, [BASE];
    WAITERS = "waiters", Safe, Read, [BASE];
    CONFIGURE = "configure", Never, Refuse, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    SET_META = "set_meta", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    DESTROY = "destroy", Never, Allow, [BASE];
    BEGIN_SYNC = "begin_sync", Safe, Refuse, [BASE, ORIGINS];
    FINISH_SYNC = "finish_sync", Safe, Allow, [BASE, ORIGINS];
    // With a ticket, what comes late is superseded. Without one, it could undo what was done since.
    UPSERT = "upsert", Safe, Refuse, [BASE, UNDO, FREE_SET, OFFER, SETTLE, ORIGINS];
    UPSERT_ONCE = "upsert", Never, Refuse, [BASE, UNDO, FREE_SET, OFFER, SETTLE, ORIGINS];
    REMOVE = "remove", Safe, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, ORIGINS, LEAVE];
    REMOVE_ONCE = "remove", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, ORIGINS, LEAVE];
    RESETTLE = "resettle", Safe, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    MEND = "mend", Safe, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM];
    QUARANTINE = "quarantine", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    UNQUARANTINE = "unquarantine", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    BIND = "bind", Never, Refuse, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM];
    UNBIND = "unbind", Never, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM];
    HOLD = "hold", Safe, Allow, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    BINDING = "binding", Safe, Read, [BASE];
    INFO = "info", Safe, Read, [BASE];
    LEASES = "leases", Safe, Read, [BASE];
    SCAN = "scan", Safe, Read, [BASE];
    SNAPSHOT = "snapshot", Safe, Read, [BASE];
    // The same, by those who only look: flagged so that Redis itself lets them write nothing.
    FORESEE_CONFIGURE = "configure", Safe, Read, [BASE, UNDO, FREE_SET, OFFER, SETTLE];
    FORESEE_SYNC = "begin_sync", Safe, Read, [BASE, ORIGINS];
    PERMISSIONS = "permissions", Safe, Read, [BASE];
    CHECK = "check", Safe, Read, [BASE, UNDO, FREE_SET, OFFER, SETTLE, RECLAIM, ORIGINS];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_asks_for_the_time_exactly_once() {
        for script in all() {
            assert_eq!(script.plain.code.matches("'TIME'").count(), 1, "{}", script.plain.operation);
        }
    }

    #[test]
    fn keys_are_never_built_inside_lua() {
        for script in all() {
            assert!(!script.plain.code.contains("ra:"), "{}", script.plain.operation);
        }
    }
}
