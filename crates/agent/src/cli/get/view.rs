//! One printed thing of each kind: its fields in JSON and YAML, its columns in a table. It must not know how it was read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use redis_allocator_crd::SourceState;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    age::{since, until},
    output::Row,
};

/// A pool: its settings, how many of its resources are where, what it has seen, what the agent thinks of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PoolView {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) order: String,
    pub(super) suspended: bool,
    /// Who declares it; absent for a pool made by a program.
    pub(super) manager: Option<String>,
    pub(super) incarnation: String,
    pub(super) counts: CountsView,
    pub(super) counters: CountersView,
    /// Whether what is declared anew is held back, after a loss of data.
    pub(super) hold: Option<HoldView>,
    /// How many resources come from where.
    pub(super) origins: BTreeMap<String, u64>,
    /// What the agent says; empty without an agent on this machine.
    pub(super) conditions: Vec<Condition>,
}

/// The time after a loss of data, in which holders that the server no longer knows may still be at work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct HoldView {
    /// Absent if only an operator can end it: some of those leases never expire.
    pub(super) until: Option<Timestamp>,
}

/// How many resources of a pool are where, now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct CountsView {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) leased: u64,
    pub(super) quarantined: u64,
    pub(super) reserved: u64,
    pub(super) draining: u64,
    pub(super) bindings: u64,
    /// Callers that wait in line.
    pub(super) waiting: u64,
    /// Sessions that are alive.
    pub(super) sessions: u64,
}

/// What happened in a pool since it was created.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct CountersView {
    pub(super) granted: u64,
    pub(super) freed: u64,
    pub(super) expired: u64,
    pub(super) revoked: u64,
    pub(super) quarantined: u64,
}

/// The conditions that are good when false; the others are good when true.
const BAD: [&str; 2] = ["Degraded", "Exhausted"];

/// The status of a condition that nobody vouches for.
pub(super) const UNKNOWN: &str = "Unknown";

impl PoolView {
    fn ready(&self) -> String {
        let ready = self.conditions.iter().find(|condition| condition.type_ == "Ready");
        ready.map(|condition| condition.status.clone()).unwrap_or_default()
    }

    /// What is wrong, as the agent puts it; otherwise what a user would wonder about.
    fn status(&self) -> String {
        let wrong = |condition: &&Condition| {
            let bad = BAD.contains(&condition.type_.as_str());
            condition.status == if bad { "True" } else { "False" } || condition.status == UNKNOWN
        };
        let mut reasons: Vec<&str> = self.conditions.iter().filter(wrong).map(|it| it.reason.as_str()).collect();
        reasons.dedup();
        if self.suspended && !reasons.contains(&"Suspended") {
            reasons.push("Suspended");
        }
        reasons.join(",")
    }
}

impl Row for PoolView {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "TOTAL",
        "FREE",
        "LEASED",
        "QUARANTINED",
        "RESERVED",
        "WAITING",
        "READY",
        "STATUS",
        "DRAINING",
        "BINDINGS",
        "SESSIONS",
        "GRANTED",
        "EXPIRED",
        "ORDER",
        "MANAGER",
    ];
    const WIDE_COLUMNS: usize = 7;

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        let CountsView { total, free, leased, quarantined, reserved, draining, bindings, waiting, sessions } =
            self.counts;
        let counts = [total, free, leased, quarantined, reserved, waiting].map(|count| count.to_string());
        let more =
            [draining, bindings, sessions, self.counters.granted, self.counters.expired].map(|count| count.to_string());
        [self.name.clone()]
            .into_iter()
            .chain(counts)
            .chain([self.ready(), self.status()])
            .chain(more)
            .chain([self.order.clone(), self.manager.clone().unwrap_or_default()])
            .collect()
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.name, "")
    }
}

/// Where a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum State {
    Free,
    Leased,
    /// Leased, and no longer declared: gone when the lease ends.
    Draining,
    /// Offered to a caller in line, who has not claimed it yet.
    Offered,
    /// Of a shared pool: as many hold it as may.
    Full,
    Quarantined,
    /// Kept for the one name of a Required binding.
    Reserved,
    /// In no place: the agent repairs that.
    Nowhere,
}

/// A resource: where it is, who has it, what holds it back, how it was declared.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResourceView {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) name: String,
    pub(super) state: State,
    /// Since when it is free or leased.
    pub(super) since: Option<Timestamp>,
    /// Who has it; absent for one of a shared pool, which may have many holders.
    pub(super) lease: Option<HolderView>,
    /// How many have it.
    pub(super) holders: u64,
    /// When a quarantine ends; absent if it does not end by itself, or there is none.
    pub(super) quarantined_until: Option<Timestamp>,
    /// Why it is, or will be once its lease has ended, held back.
    pub(super) marks: Vec<MarkView>,
    pub(super) reserved_for: Option<String>,
    pub(super) priority: u16,
    pub(super) origins: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) params: Map<String, Value>,
}

/// Who has a resource.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HolderView {
    pub(super) owner: String,
    pub(super) binding: Option<String>,
    /// The session that the lease is part of.
    pub(super) session: Option<String>,
    pub(super) fencing_token: u64,
    pub(super) granted_at: Timestamp,
    /// Absent for a lease that never expires, or ends with its session.
    pub(super) expires_at: Option<Timestamp>,
    /// Whether a caller in line has yet to claim it.
    pub(super) offered: bool,
}

impl HolderView {
    fn until(&self, now: Timestamp) -> String {
        match (self.expires_at, &self.session) {
            (None, Some(_)) => "with session".to_owned(),
            (end, _) => until(end, now),
        }
    }
}

/// One reason to hold a resource back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct MarkView {
    pub(super) cause: String,
    pub(super) reason: String,
    /// Absent if it does not end by itself.
    pub(super) until: Option<Timestamp>,
}

impl ResourceView {
    fn until(&self, now: Timestamp) -> String {
        match (&self.lease, self.state) {
            (Some(lease), _) => lease.until(now),
            (None, State::Quarantined) => until(self.quarantined_until, now),
            _ => String::new(),
        }
    }

    fn why(&self) -> String {
        let marks = self.marks.iter().map(|mark| match mark.reason.as_str() {
            "" => mark.cause.clone(),
            reason => format!("{}: {reason}", mark.cause),
        });
        marks.collect::<Vec<_>>().join("; ")
    }

    fn holder(&self) -> String {
        match (&self.lease, &self.reserved_for, self.holders) {
            (Some(lease), ..) => lease.owner.clone(),
            (None, Some(name), _) => format!("({name})"),
            (None, None, 0) => String::new(),
            (None, None, 1) => "1 holder".to_owned(),
            (None, None, many) => format!("{many} holders"),
        }
    }
}

impl Row for ResourceView {
    const COLUMNS: &'static [&'static str] = &[
        "POOL", "NAME", "STATE", "HOLDER", "SINCE", "UNTIL", "REASON", "PRIORITY", "TOKEN", "BINDING", "ORIGIN",
        "LABELS",
    ];
    const WIDE_COLUMNS: usize = 5;

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let labels: Vec<_> = self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let lease = self.lease.as_ref();
        vec![
            self.pool.clone(),
            self.name.clone(),
            format!("{:?}", self.state),
            self.holder(),
            self.since.map(|then| since(then, now)).unwrap_or_default(),
            self.until(now),
            self.why(),
            self.priority.to_string(),
            lease.map(|lease| lease.fencing_token.to_string()).unwrap_or_default(),
            lease.and_then(|lease| lease.binding.clone()).unwrap_or_default(),
            self.origins.join(","),
            labels.join(","),
        ]
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pool, &self.name)
    }
}

/// A lease: who holds what, since when, until when.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LeaseView {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) resource: String,
    /// What tells it from others: its resource may have several holders in a shared pool.
    #[serde(skip)]
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) holder: HolderView,
    /// Whether the resource is no longer declared.
    pub(super) draining: bool,
}

impl LeaseView {
    fn state(&self) -> State {
        match (self.holder.offered, self.draining) {
            (true, _) => State::Offered,
            (false, true) => State::Draining,
            (false, false) => State::Leased,
        }
    }
}

impl Row for LeaseView {
    const COLUMNS: &'static [&'static str] =
        &["POOL", "RESOURCE", "HOLDER", "BINDING", "SINCE", "UNTIL", "STATE", "TOKEN", "SESSION"];
    const WIDE_COLUMNS: usize = 2;

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.resource.clone(),
            self.holder.owner.clone(),
            self.holder.binding.clone().unwrap_or_default(),
            since(self.holder.granted_at, now),
            self.holder.until(now),
            format!("{:?}", self.state()),
            self.holder.fencing_token.to_string(),
            self.holder.session.clone().unwrap_or_default(),
        ]
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pool, &self.id)
    }
}

/// A soft binding: which name has which resource.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BindingView {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) name: String,
    pub(super) resource: String,
    pub(super) policy: String,
    /// From a manifest, not from a grant.
    pub(super) declared: bool,
    /// Whether its time is over; kept in mind because its manifest is still there.
    pub(super) ended: bool,
    /// Absent for a binding that does not expire.
    pub(super) expires_at: Option<Timestamp>,
    /// What the agent says of a declared one; empty without an agent on this machine.
    pub(super) conditions: Vec<Condition>,
}

impl BindingView {
    fn ready(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == "Ready")
    }
}

impl Row for BindingView {
    const COLUMNS: &'static [&'static str] =
        &["POOL", "NAME", "RESOURCE", "POLICY", "DECLARED", "UNTIL", "READY", "STATUS"];
    const WIDE_COLUMNS: usize = 2;

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let ready = self.ready();
        vec![
            self.pool.clone(),
            self.name.clone(),
            self.resource.clone(),
            self.policy.clone(),
            self.declared.to_string(),
            if self.ended { "ended".to_owned() } else { until(self.expires_at, now) },
            ready.map(|condition| condition.status.clone()).unwrap_or_default(),
            ready
                .filter(|condition| condition.status != "True")
                .map(|condition| condition.reason.clone())
                .unwrap_or_default(),
        ]
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pool, &self.name)
    }
}

/// A source of resources: how many it brought, and how it is with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SourceView {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) name: String,
    /// How many resources it last brought, as the server has it.
    pub(super) items: u64,
    /// The most that it brought lately: what a shrink is measured by.
    pub(super) peak: u64,
    /// What the agent says of it; absent without a leading agent on this machine.
    pub(super) state: Option<SourceState>,
    /// When it last brought what could be used, while it does not.
    pub(super) last_success: Option<Timestamp>,
    pub(super) message: String,
}

impl Row for SourceView {
    const COLUMNS: &'static [&'static str] = &["POOL", "NAME", "ITEMS", "STATE", "MESSAGE", "PEAK", "LAST SUCCESS"];
    const WIDE_COLUMNS: usize = 2;

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.name.clone(),
            self.items.to_string(),
            self.state.map(|state| format!("{state:?}")).unwrap_or_default(),
            self.message.clone(),
            self.peak.to_string(),
            self.last_success.map(|then| since(then, now)).unwrap_or_default(),
        ]
    }

    fn id(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pool, &self.name)
    }
}
