//! The kind `ResourcePool`: what a pool is made of and how its leases behave.
//!
//! Types, defaults and the rules that the schema carries; knows nothing of where objects come from or go to.

#![allow(unreachable_pub, reason = "the derives copy each type into a function")]

mod health;
mod resources;
mod sources;
mod status;

pub use health::{Exec, HealthCheck, HttpGet, HttpHeader, StatusRange, TcpSocket};
pub use resources::{RangeKeys, Resource, ResourceRange};
pub use sources::{
    LabelOperator, LabelRequirement, LabelSelector, ResourceSource, SelectedObjects, SourceDns, SourceFile,
    SourceFormat, SourceHttp, SourceKeyRef, SourceKubernetes,
};
pub use status::{ResourcePoolStatus, SourceState, SourceStatus};

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// What a pool of named resources holds and how they are leased.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "redis-allocator.dev",
    version = "v1alpha1",
    kind = "ResourcePool",
    plural = "resourcepools",
    namespaced,
    status = "ResourcePoolStatus",
    derive = "PartialEq",
    shortname = "rpool",
    category = "redis-allocator",
    doc = "A pool of scarce, named things that workloads lease.",
    validation = Rule::new(crate::patterns::NAME_RULE).message(crate::patterns::NAME_MESSAGE),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", description = "How many holders a resource has at once."),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.total", description = "Declared resources."),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free", description = "Resources that can be granted now."),
    printcolumn(name = "Leased", type_ = "integer", json_path = ".status.leased", description = "Resources with a live lease."),
    printcolumn(name = "Quarantined", type_ = "integer", json_path = ".status.quarantined", description = "Resources held back."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the pool is as declared."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation."),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.draining", description = "Leased resources that left the declaration.", priority = 1),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting", description = "Callers waiting for a resource.", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why the pool is or is not ready.", priority = 1),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'Shared' || !has(self.maxHolders)")
    .message("must be absent unless mode is Shared: a resource of an Exclusive pool has one holder").field_path(".maxHolders"))]
#[x_kube(validation = Rule::new("self.mode == 'Exclusive' || duration(self.cooldown) == duration('0s')")
    .message("must be 0s unless mode is Exclusive: cooldown needs mode Exclusive").field_path(".cooldown"))]
pub struct ResourcePoolSpec {
    /// How many holders a resource has at once. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("must be what the pool was created with: mode is immutable, so delete the pool and create another"))]
    pub mode: Mode,

    /// The most holders that a resource of a Shared pool has at once. Absent: any number. 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = 1_000_000))]
    pub max_holders: Option<i32>,

    /// Which free resource is granted first among those of the same priority.
    #[serde(default)]
    pub order: Order,

    /// The resources, one by one; at most 4,096. Bigger pools use ranges or sources.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub resources: Vec<Resource>,

    /// Resources by number: each range stands for up to 1,000,000 of them, as do all ranges together.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.map(r, r.to - r.from + 1).sum() <= 1000000")
        .message("must be ranges of 1,000,000 resources or fewer together"))]
    pub ranges: Vec<ResourceRange>,

    /// Resources that somebody else lists: each source brings up to 100,000 of them. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sources: Vec<ResourceSource>,

    /// Sets of label keys that callers may select by; at most 4, of 1 to 4 keys each. A selector names all keys of one set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "indexes")]
    #[x_kube(validation = Rule::new("self.all(a, a.all(key, a.exists_one(other, other == key)))")
        .message("must be sets in which each label key is there once"))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a.size() == b.size() && a.all(key, key in b)))")
        .message("must be sets that differ, whatever the order of their label keys"))]
    pub indexes: Vec<Vec<String>>,

    /// How long a lease lasts.
    #[serde(default)]
    pub lease: LeaseSettings,

    /// Pause before a returned resource is granted again. 0s to 8760h.
    #[serde(default)]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("must be a duration of at most 8760h"))]
    pub cooldown: Duration,

    /// Defaults for soft bindings that callers make.
    #[serde(default)]
    pub soft_binding: SoftBindingSettings,

    /// How the agent finds out that a resource works. Absent: it is taken to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HealthCheck")]
    pub health_check: Option<HealthCheck>,

    /// Upkeep by the agent.
    #[serde(default)]
    pub gc: GcSettings,

    /// What happens to a leased resource that leaves the declaration.
    #[serde(default)]
    pub removal_policy: RemovalPolicy,

    /// What happens to the pool in Redis when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// An edit, or an answer of a source, that drops more than this share of the resources, in percent, is held back, with a
    /// condition that says so.
    /// 0 holds every removal back, 100 none.
    #[serde(default = "default_max_shrink_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub max_shrink_percent: i32,

    /// Whether granting is paused. Leases go on and so does reconciling.
    #[serde(default)]
    pub suspend: bool,
}

const fn default_max_shrink_percent() -> i32 {
    50
}

impl Default for ResourcePoolSpec {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            max_holders: None,
            order: Order::default(),
            resources: Vec::new(),
            ranges: Vec::new(),
            sources: Vec::new(),
            indexes: Vec::new(),
            lease: LeaseSettings::default(),
            cooldown: Duration::default(),
            soft_binding: SoftBindingSettings::default(),
            health_check: None,
            gc: GcSettings::default(),
            removal_policy: RemovalPolicy::default(),
            deletion_policy: DeletionPolicy::default(),
            max_shrink_percent: default_max_shrink_percent(),
            suspend: false,
        }
    }
}

/// How many holders a resource has at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Mode {
    /// One holder at a time.
    #[default]
    Exclusive,
    /// Many holders at once, in turn; at most maxHolders of them.
    Shared,
}

fn indexes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 4,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "description": "A set of label keys.",
            "type": "array",
            "minItems": 1,
            "maxItems": 4,
            "x-kubernetes-list-type": "atomic",
            "items": {
                "description": "A label's key.",
                "type": "string", "minLength": 1, "maxLength": 317, "pattern": crate::patterns::LABEL_KEY_PATTERN,
            },
        },
    })
}

/// Which free resource is granted first among those of the same priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Order {
    /// The one that has been free the longest.
    #[default]
    LeastRecentlyUsed,
    /// The one declared first.
    Sequential,
    /// Any.
    Random,
}

/// What happens to a leased resource that leaves the declaration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum RemovalPolicy {
    /// It stays with its holder until the lease ends.
    #[default]
    Drain,
    /// Its lease ends at once.
    Revoke,
}

/// What happens to the pool in Redis when its object is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum DeletionPolicy {
    /// It goes when the last lease has ended; nothing more is granted.
    #[default]
    Drain,
    /// It goes at once, leases included.
    Revoke,
    /// It stays, unmanaged.
    Orphan,
}

/// How long leases last.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxTTL) || duration(self.defaultTTL) <= duration(self.maxTTL)")
    .message("must be at most maxTTL").field_path(".defaultTTL"))]
pub struct LeaseSettings {
    /// For how long a resource is leased to a caller who does not say. 100ms to 8760h.
    #[serde(rename = "defaultTTL", default = "default_lease_ttl")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('8760h')")
        .message("must be a duration from 100ms to 8760h"))]
    pub default_ttl: Duration,

    /// The longest lease. A caller who asks for more, or for a permanent lease, is refused. Absent: no limit, and permanent
    /// leases are allowed. 100ms to 8760h.
    #[serde(rename = "maxTTL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('8760h')")
        .message("must be a duration from 100ms to 8760h"))]
    pub max_ttl: Option<Duration>,
}

const fn default_lease_ttl() -> Duration {
    Duration::from_secs(120)
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self { default_ttl: default_lease_ttl(), max_ttl: None }
    }
}

/// Defaults for soft bindings that callers make.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SoftBindingSettings {
    /// For how long a pool remembers which resource a name had, counted from its last grant. 100ms to 8760h.
    #[serde(default = "default_binding_ttl")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('8760h')")
        .message("must be a duration from 100ms to 8760h"))]
    pub ttl: Duration,
}

const fn default_binding_ttl() -> Duration {
    Duration::from_secs(3600)
}

impl Default for SoftBindingSettings {
    fn default() -> Self {
        Self { ttl: default_binding_ttl() }
    }
}

/// Upkeep by the agent.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcSettings {
    /// How often expired leases, quarantines and bindings are collected. 100ms to 1h.
    #[serde(default = "default_gc_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('1h')")
        .message("must be a duration from 100ms to 1h"))]
    pub interval: Duration,
}

const fn default_gc_interval() -> Duration {
    Duration::from_secs(5)
}

impl Default for GcSettings {
    fn default() -> Self {
        Self { interval: default_gc_interval() }
    }
}
