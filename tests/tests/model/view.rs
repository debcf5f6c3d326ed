//! All that can be seen of a pool, in plain values: made from the reference and from the real pool, and compared.

use std::collections::{BTreeMap, BTreeSet};

use redis_allocator::{Counters, Counts, Longest, PoolSettings};

/// A moment in ms; `None`: never.
pub(crate) type End = Option<u64>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PlaceView {
    Free { since: Option<u64> },
    Leased { owner: String, binding: Option<String>, token: u64, granted_at: u64, expires_at: Option<u64> },
    Quarantined { until: Option<u64> },
    Reserved,
    Nowhere,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResourceView {
    pub(crate) declared: bool,
    pub(crate) priority: u16,
    pub(crate) position: u64,
    pub(crate) facts: String,
    pub(crate) origins: BTreeSet<String>,
    pub(crate) place: PlaceView,
    /// Cause → until, reason.
    pub(crate) marks: BTreeMap<String, (Option<u64>, String)>,
    pub(crate) reserved_for: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BindingView {
    pub(crate) resource: String,
    pub(crate) required: bool,
    pub(crate) declared: bool,
    pub(crate) ended: bool,
    pub(crate) expires_at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InfoView {
    pub(crate) life: usize,
    pub(crate) manager: Option<String>,
    pub(crate) settings: PoolSettings,
    pub(crate) counts: Counts,
    pub(crate) counters: Counters,
    pub(crate) longest: Longest,
    pub(crate) last_token: u64,
    /// Until when; inner `None`: until an operator says so.
    pub(crate) hold: Option<End>,
    /// Origin → count, peak, whether there is a digest.
    pub(crate) origins: BTreeMap<String, (u64, u64, bool)>,
    pub(crate) now: u64,
}

/// `pool`: `None` when there is none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    pub(crate) listed: bool,
    pub(crate) pool: Option<PoolView>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolView {
    pub(crate) info: InfoView,
    pub(crate) resources: BTreeMap<String, ResourceView>,
    pub(crate) bindings: BTreeMap<String, BindingView>,
}

impl View {
    /// Where the two differ, a line each; empty when they agree.
    pub(crate) fn differences(expected: &Self, found: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if expected.listed != found.listed {
            lines.push(format!("listed: expected {}, found {}", expected.listed, found.listed));
        }
        match (&expected.pool, &found.pool) {
            (Some(expected), Some(found)) => {
                if expected.info != found.info {
                    lines.push(format!("info:\n  expected {:?}\n  found    {:?}", expected.info, found.info));
                }
                compare("resource", &expected.resources, &found.resources, &mut lines);
                compare("binding", &expected.bindings, &found.bindings, &mut lines);
            }
            (None, None) => {}
            (expected, found) => {
                lines.push(format!("pool exists: expected {}, found {}", expected.is_some(), found.is_some()));
            }
        }
        lines
    }
}

fn compare<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &BTreeMap<String, T>,
    found: &BTreeMap<String, T>,
    lines: &mut Vec<String>,
) {
    let names: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for name in names {
        let (expected, found) = (expected.get(name), found.get(name));
        if expected != found {
            lines.push(format!("{what} {name:?}:\n  expected {expected:?}\n  found    {found:?}"));
        }
    }
}
