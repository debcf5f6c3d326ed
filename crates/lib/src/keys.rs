//! Every Redis key, spelled here and nowhere else.
//!
//! `<prefix>:{<namespace>/<name>}:<part>`: the braces are Redis' hash tag, so that all of one pool lives in one slot and
//! every operation is one atomic script, on Redis Cluster too. All of a pool's keys go to every script, in this order:
//!
//! | part | type | content |
//! |---|---|---|
//! | `meta` | HASH | schema, incarnation, manager, settings, last token, longest TTL granted, counters |
//! | `items` | HASH | resource → priority (4 digits), position (10), length of origins (4), origins (JSON), facts (JSON) |
//! | `free` | ZSET | resource → (1000 − priority)·2⁴² + ms since it is free, or its position |
//! | `leases` | ZSET | lease id → expiry, ms; `inf` = permanent, or as long as its session |
//! | `holders` | HASH | lease id → fencing token (16 digits), granted at (ms, 13 digits), holder (JSON: owner, bind, session) |
//! | `quarantine` | ZSET | resource → until, ms; `inf` = until released |
//! | `marks` | HASH | resource → JSON: cause → {until, reason}; for a leased one, to act when its lease ends |
//! | `reserved` | HASH | resource → the binding name that alone may have it |
//! | `binds` | HASH | name → kind (1 letter), TTL (ms, 13 digits), resource |
//! | `bind-expiry` | ZSET | name → when the binding ends, ms |
//! | `origins` | HASH | origin → JSON: ticket, digest, count, peak, `peak_at` |
//! | `by-label` | ZSET, score 0 | of what is free, for each index: label names, NUL, each value and NUL, score in `free` (16 digits), NUL, resource |
//! | `missing` | ZSET | origin, NUL, resource → when that origin lets go of it, ms; NUL, resource → `inf`: left a shared pool while held |
//! | `shares` | ZSET, score 0 | the lease ids of a shared pool |
//! | `waiters` | ZSET | waiter → its turn |
//! | `wants` | ZSET, score 0 | what would do for a waiter, turn (16 digits), waiter: see `offer.lua` |
//! | `waiting` | HASH | waiter → what it asked for (JSON); waiter, NUL → what was offered to it (JSON) |
//! | `alive` | ZSET | waiter → when it is thought dead unless it is heard of, ms |
//! | `sessions` | ZSET | session → when it is over unless it is heard of, ms; negative once its leases have ended |
//! | `session-leases` | ZSET, score 0 | session, NUL, lease id |
//!
//! A lease id is the resource in an exclusive pool, and resource, NUL, token (16 digits) in a shared one.
//!
//! What exists is listed per namespace in `<prefix>:{<namespace>}:pools` (HASH, name → incarnation), and the namespaces
//! in `<prefix>:namespaces` (SET): nothing ever needs SCAN or KEYS.

use std::sync::Arc;

use crate::{error::Error, names::PoolName};

/// How many keys a pool has.
pub(crate) const POOL_KEYS: usize = 20;

const PARTS: [&str; POOL_KEYS] = [
    "meta",
    "items",
    "free",
    "leases",
    "holders",
    "quarantine",
    "marks",
    "reserved",
    "binds",
    "bind-expiry",
    "origins",
    "by-label",
    "missing",
    "shares",
    "waiters",
    "wants",
    "waiting",
    "alive",
    "sessions",
    "session-leases",
];

/// The number of `items` among a script's KEYS, as Lua counts.
pub(crate) const ITEMS: usize = 2;
/// The number of `leases` among a script's KEYS, as Lua counts.
pub(crate) const LEASES: usize = 4;
/// The number of `marks` among a script's KEYS, as Lua counts.
pub(crate) const MARKS: usize = 7;
/// The number of `binds` among a script's KEYS, as Lua counts.
pub(crate) const BINDS: usize = 9;

/// The number of `bind-expiry` among a script's KEYS, as Lua counts.
pub(crate) const BIND_EXPIRY: usize = 10;

/// The number of `missing` among a script's KEYS, as Lua counts.
pub(crate) const MISSING: usize = 13;

/// Whether the key of this number is a sorted set.
pub(crate) fn is_sorted_set(key: usize) -> bool {
    matches!(key, 3 | 4 | 6 | 10 | 12..=16 | 18..=20)
}

/// What all keys begin with.
#[derive(Debug, Clone)]
pub(crate) struct Keyspace {
    prefix: Arc<str>,
}

impl Keyspace {
    /// # Errors
    /// [`Error::InvalidName`] for a prefix that is empty, long, or has braces, which would move the hash tag.
    pub(crate) fn new(prefix: &str) -> Result<Self, Error> {
        let plain = |c: char| c.is_ascii_graphic() && c != '{' && c != '}';
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(plain) {
            return Err(Error::InvalidName {
                what: "key prefix",
                found: prefix.chars().take(80).collect(),
                allowed: "1 to 64 printable ASCII characters without spaces and braces",
            });
        }
        Ok(Self { prefix: prefix.into() })
    }

    /// All keys of a pool, in the scripts' order.
    pub(crate) fn pool(&self, name: &PoolName) -> [String; POOL_KEYS] {
        PARTS.map(|part| format!("{}:{{{name}}}:{part}", self.prefix))
    }

    /// HASH: pool name → incarnation.
    pub(crate) fn registry(&self, namespace: &str) -> String {
        format!("{}:{{{namespace}}}:pools", self.prefix)
    }

    /// The channel on which a client hears that one of its waiters may look now; a message is that waiter's id. No key:
    /// channels belong to no slot and no database. With `*` as the client's id: what an ACL must allow, after a `&`.
    pub(crate) fn wake(&self, client_id: &str) -> String {
        format!("{}:wake:{client_id}", self.prefix)
    }

    /// SET of namespaces that ever had a pool.
    pub(crate) fn namespaces(&self) -> String {
        format!("{}:namespaces", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pools_keys_share_its_hash_tag() {
        let keys = Keyspace::new("ra").unwrap().pool(&"gpus".parse().unwrap());
        assert_eq!(keys[0], "ra:{default/gpus}:meta");
        assert!(keys.iter().all(|key| key.starts_with("ra:{default/gpus}:")));
    }

    #[test]
    fn a_prefix_with_braces_is_refused() {
        for bad in ["", "a{b", "a}b", "{x}", "a b", "ä", &"p".repeat(65)] {
            assert!(Keyspace::new(bad).is_err(), "{bad:?}");
        }
        assert!(Keyspace::new("team-a:ra").is_ok());
    }

    #[test]
    fn the_numbers_scripts_scan_by_are_those_of_the_parts() {
        let named = [ITEMS, LEASES, MARKS, BINDS, BIND_EXPIRY, MISSING].map(|key| PARTS[key - 1]);
        assert_eq!(named, ["items", "leases", "marks", "binds", "bind-expiry", "missing"]);
        let sorted: Vec<_> = (1..=POOL_KEYS).filter(|&key| is_sorted_set(key)).map(|key| PARTS[key - 1]).collect();
        let others = ["by-label", "missing", "shares", "waiters", "wants", "alive", "sessions", "session-leases"];
        assert_eq!(sorted, [&["free", "leases", "quarantine", "bind-expiry"][..], &others].concat());
    }
}
