//! What the agent says of its pools, bindings and files, as `status.json` has it: the same statuses that Kubernetes users
//! see on the objects.

use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use redis_allocator::PoolName;
use redis_allocator_crd::{ResourcePoolStatus, SoftBindingStatus, SourceStatus};
use serde::{Deserialize, Serialize};

/// All that was last said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusFile {
    pub(crate) updated_at: Timestamp,
    /// The identity under which the agent manages pools.
    pub(crate) manager: String,
    /// Whether it leads. A follower's reports are those of the time it last led.
    pub(crate) leader: bool,
    pub(crate) pools: Vec<PoolReport>,
    pub(crate) bindings: Vec<BindingReport>,
    /// Files with errors; each keeps what it last declared without one.
    pub(crate) files: Vec<FileReport>,
}

impl StatusFile {
    /// What is said of a pool.
    pub(crate) fn pool_conditions(&self, pool: &PoolName) -> &[Condition] {
        let found = self.pools.iter().find(|report| report.namespace == pool.namespace() && report.name == pool.name());
        found.map_or(&[], |report| &report.status.conditions)
    }

    /// What is said of a pool's sources.
    pub(crate) fn pool_sources(&self, pool: &PoolName) -> &[SourceStatus] {
        let found = self.pools.iter().find(|report| report.namespace == pool.namespace() && report.name == pool.name());
        found.map_or(&[], |report| &report.status.sources)
    }

    /// What is said of a declared binding of a pool, found by the name that callers bind by.
    pub(crate) fn binding_conditions(&self, pool: &PoolName, binding: &str) -> &[Condition] {
        let found = self.bindings.iter().find(|report| {
            report.namespace == pool.namespace() && report.pool == pool.name() && report.binding_name == binding
        });
        found.map_or(&[], |report| &report.status.conditions)
    }
}

/// A declared pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolReport {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) status: ResourcePoolStatus,
}

/// A declared binding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BindingReport {
    pub(crate) namespace: String,
    /// The name of the object.
    pub(crate) name: String,
    pub(crate) pool: String,
    /// The name that callers bind by.
    pub(crate) binding_name: String,
    pub(crate) status: SoftBindingStatus,
}

/// A file that is not taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileReport {
    pub(crate) path: PathBuf,
    /// Each with line and column, where there are any.
    pub(crate) errors: Vec<String>,
}
