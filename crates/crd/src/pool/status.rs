//! What the agent reports of a pool.

#![allow(unreachable_pub, reason = "the derives copy each type into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// What the agent last saw of a pool.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcePoolStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,

    /// Ready, Synced, Degraded, Exhausted and, of a pool with sources, Discovered, each with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Declared resources.
    #[serde(default)]
    pub total: i64,

    /// Resources that can be granted now.
    #[serde(default)]
    pub free: i64,

    /// Live leases; in a Shared pool, a resource may have several.
    #[serde(default)]
    pub leased: i64,

    /// Resources held back: by a failed probe, by hand, or cooling down.
    #[serde(default)]
    pub quarantined: i64,

    /// Free resources kept for the name of a Required binding.
    #[serde(default)]
    pub reserved: i64,

    /// Leased resources that left the declaration and go when their lease ends.
    #[serde(default)]
    pub draining: i64,

    /// Callers in line for a resource.
    #[serde(default)]
    pub waiting: i64,

    /// Identity of the pool in Redis. Another one than before means that Redis lost the pool, leases included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 128))]
    pub incarnation: Option<String>,

    /// The longest lease granted so far: for how long a lost pool's resources are held back.
    #[serde(rename = "longestTTL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Duration")]
    pub longest_ttl: Option<Duration>,

    /// Whether a permanent lease was granted, so that a lost pool's resources are held back until an operator decides.
    #[serde(default)]
    pub permanent_leases: bool,

    /// What each source brings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sources: Vec<SourceStatus>,
}

/// What the agent last saw of a source.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The source's name.
    pub name: String,

    /// How it is with the source.
    #[serde(default)]
    pub state: SourceState,

    /// Resources that the source last brought into the pool.
    #[serde(default)]
    pub items: i64,

    /// When the source last brought what could be used; only while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Time")]
    pub last_success: Option<Time>,

    /// What is wrong, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How it is with a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SourceState {
    /// It has not answered yet.
    #[default]
    Pending,
    /// The pool has what it brought.
    Fresh,
    /// It can't be asked, or its answer can't be used. The pool stays as it was.
    Failing,
    /// It brought so much less than before that the pool stays as it was.
    HeldBack,
}
