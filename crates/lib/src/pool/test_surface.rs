//! Scripts by their names, for tests that must run each of them at a moment of their own choosing: a single look of a
//! waiter, a single heartbeat. Only with the feature `test-clock`; production clients run scripts through their own calls.

use super::Pool;
use crate::script::{self, Scripted};

impl Pool {
    /// The pool's keys, as every script takes them.
    #[doc(hidden)]
    pub fn script_keys(&self) -> &[String] {
        &self.inner.keys
    }

    /// The text of a script that takes the time as its first two arguments: seconds and microseconds. `None` for a name
    /// that no script has.
    #[doc(hidden)]
    pub fn script_text(name: &str) -> Option<&'static str> {
        let script: &'static Scripted = match name {
            "bind" => &script::BIND,
            "check" => &script::CHECK,
            "configure" => &script::CONFIGURE,
            "free" => &script::FREE,
            "gc" => &script::GC,
            "heartbeat" => &script::HEARTBEAT,
            "info" => &script::INFO,
            "malloc" => &script::MALLOC,
            "quarantine" => &script::QUARANTINE,
            "remove" => &script::REMOVE,
            "renew" => &script::RENEW,
            "resettle" => &script::RESETTLE,
            "revoke" => &script::REVOKE,
            "scan" => &script::SCAN,
            "sessions" => &script::SESSIONS,
            "set_meta" => &script::SET_META,
            "snapshot" => &script::SNAPSHOT,
            "unbind" => &script::UNBIND,
            "unquarantine" => &script::UNQUARANTINE,
            "upsert" => &script::UPSERT,
            "wait" => &script::WAIT,
            "waiters" => &script::WAITERS,
            _ => return None,
        };
        Some(&script.clocked().code)
    }
}
