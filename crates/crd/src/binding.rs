//! The kind `SoftBinding`: a name's declared claim to a resource.
//!
//! Types, defaults and the rules that the schema carries; whether pool and resource exist is not known here.

#![allow(unreachable_pub, reason = "the derives copy each type into a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// Which resource a name is to have.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "redis-allocator.dev",
    version = "v1alpha1",
    kind = "SoftBinding",
    plural = "softbindings",
    namespaced,
    status = "SoftBindingStatus",
    derive = "PartialEq",
    shortname = "sbind",
    category = "redis-allocator",
    doc = "A declared binding of a name to a resource of a pool.",
    validation = Rule::new(crate::patterns::NAME_RULE).message(crate::patterns::NAME_MESSAGE),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.poolRef.name", description = "The pool."),
    printcolumn(name = "Resource", type_ = "string", json_path = ".spec.resourceName", description = "The bound resource."),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policy", description = "How strong the binding is."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the binding is in place."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation."),
)]
#[serde(rename_all = "camelCase")]
pub struct SoftBindingSpec {
    /// The pool, in the binding's own namespace. Immutable.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("must be what the binding was created with: poolRef is immutable, so delete the binding and create another"))]
    pub pool_ref: PoolRef,

    /// The name that callers bind by: 1 to 512 bytes without NUL. Absent: the object's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 512), regex(pattern = crate::patterns::KEY_PATTERN))]
    pub binding_name: Option<String>,

    /// The resource that the name is to have: 1 to 512 bytes without NUL.
    #[schemars(length(min = 1, max = 512), regex(pattern = crate::patterns::KEY_PATTERN))]
    pub resource_name: String,

    /// For how long the binding lasts, counted from when it was applied. Absent: until the object is deleted. 100ms to 87600h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('87600h')")
        .message("must be a duration from 100ms to 87600h"))]
    pub ttl: Option<Duration>,

    /// What happens when the resource is not free, and when others ask for it.
    #[serde(default)]
    pub policy: BindingPolicy,
}

/// A pool in the same namespace.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolRef {
    /// The pool's name: a DNS-1123 label.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::patterns::LABEL_PATTERN))]
    pub name: String,
}

/// How strong a binding is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum BindingPolicy {
    /// The name gets the resource if it is free, otherwise another one. Others may have the resource meanwhile.
    #[default]
    Preferred,
    /// The name gets this resource or none, and nobody else gets it.
    Required,
}

impl SoftBinding {
    /// The name that callers bind by: `spec.bindingName`, or else the object's own name.
    pub fn binding_name(&self) -> &str {
        self.spec.binding_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}

/// What the agent last saw of a binding.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SoftBindingStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,

    /// Ready, with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The resource that the name is bound to now. A declared binding is never moved, so this is spec.resourceName or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 512))]
    pub resource: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_without_a_name_takes_the_objects() {
        let spec = SoftBindingSpec {
            pool_ref: PoolRef { name: "gpus".to_owned() },
            binding_name: None,
            resource_name: "gpu-0".to_owned(),
            ttl: None,
            policy: BindingPolicy::Preferred,
        };
        let mut binding = SoftBinding::new("trainer-1", spec);
        assert_eq!(binding.binding_name(), "trainer-1");
        binding.spec.binding_name = Some("trainer".to_owned());
        assert_eq!(binding.binding_name(), "trainer");
    }
}
