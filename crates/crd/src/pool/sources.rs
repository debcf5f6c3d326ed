//! Where a pool's resources are discovered: files, HTTP servers, names, and objects of a Kubernetes cluster.
//!
//! Says what to ask, how often, and how the answer is read; knows nobody who asks.

#![allow(unreachable_pub, reason = "the derives copy each type into a function")]
#![allow(clippy::doc_markdown, reason = "descriptions become those of the schema, which are no Markdown")]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::HttpHeader;
use crate::{
    duration::Duration,
    template::{AddressTemplate, ObjectTemplate},
};

/// Resources that somebody else lists, asked for again and again. Exactly one of file, http, dns and kubernetes.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.file), has(self.http), has(self.dns), has(self.kubernetes)].filter(x, x).size() == 1")
    .message("must be exactly one of file, http, dns and kubernetes"))]
pub struct ResourceSource {
    /// The source's name, unique in its pool: a DNS-1123 label.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::patterns::LABEL_PATTERN))]
    pub name: String,

    /// How often the source is asked. After a failure it is asked sooner. 1s to 24h.
    #[serde(default = "default_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("must be a duration from 1s to 24h"))]
    pub interval: Duration,

    /// How long a resource that the source no longer shows stays before it leaves the pool, draining if it is leased. One
    /// that is shown again in time stays. 0s: it leaves at once. 0s to 8760h.
    #[serde(default = "default_ttl")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("must be a duration of at most 8760h"))]
    pub ttl: Duration,

    /// The resources are listed in a file that the agent can read. Refused from Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceFile")]
    pub file: Option<SourceFile>,

    /// The resources are listed by an HTTP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceHttp")]
    pub http: Option<SourceHttp>,

    /// The resources are the addresses of a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceDns")]
    pub dns: Option<SourceDns>,

    /// The resources are objects of the cluster, or listed in one. Only for agents that run with --kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceKubernetes")]
    pub kubernetes: Option<SourceKubernetes>,
}

const fn default_interval() -> Duration {
    Duration::from_secs(300)
}

const fn default_ttl() -> Duration {
    Duration::from_secs(3600)
}

/// How a list of resources is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum SourceFormat {
    /// One key a line; blank lines and those that begin with # say nothing.
    #[default]
    Lines,
    /// A JSON list of keys, or of objects with the fields of spec.resources.
    Json,
}

/// A file that lists resources; at most 8 MiB.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceFile {
    /// The file, by its absolute path on the agent's machine.
    #[schemars(length(min = 1, max = 4096), regex(pattern = crate::patterns::KEY_PATTERN))]
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("must be an absolute path"))]
    pub path: String,

    /// How the file is written.
    #[serde(default)]
    pub format: SourceFormat,
}

/// An HTTP server that lists resources, in an answer of at most 8 MiB.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceHttp {
    /// Where to ask, by GET.
    #[schemars(length(min = 1, max = 2048), regex(pattern = crate::patterns::KEY_PATTERN))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
        .message("must be a URL that starts with http:// or https://"))]
    pub url: String,

    /// How the answer is written.
    #[serde(default)]
    pub format: SourceFormat,

    /// An answer that takes longer has failed. 10ms to 5m.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10ms') && duration(self) <= duration('5m')")
        .message("must be a duration from 10ms to 5m"))]
    pub timeout: Duration,

    /// Headers to send; at most 32. They do not follow a redirect to another server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HttpHeader>,
}

const fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

/// A name whose addresses, of IPv4 and IPv6, are the resources.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceDns {
    /// The name, looked up as the agent's machine does.
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::patterns::HOST_PATTERN))]
    pub name: String,

    /// Put behind each address, which has brackets then if it is one of IPv6. 1 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: Option<i32>,

    /// A resource's key, with one {} where the address goes.
    #[serde(default)]
    pub template: AddressTemplate,
}

/// Objects of the pool's namespace, or nodes. Exactly one of pods, nodes, endpointSlices, configMapKeyRef and secretKeyRef.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.pods), has(self.nodes), has(self.endpointSlices), has(self.configMapKeyRef), has(self.secretKeyRef)].filter(x, x).size() == 1")
    .message("must be exactly one of pods, nodes, endpointSlices, configMapKeyRef and secretKeyRef"))]
pub struct SourceKubernetes {
    /// Each ready pod of the pool's namespace that the selector matches is a resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SelectedObjects")]
    pub pods: Option<SelectedObjects>,

    /// Each ready node of the cluster that the selector matches is a resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SelectedObjects")]
    pub nodes: Option<SelectedObjects>,

    /// Each ready endpoint of the EndpointSlices of the pool's namespace that the selector matches is a resource. Those of a
    /// Service have the label kubernetes.io/service-name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SelectedObjects")]
    pub endpoint_slices: Option<SelectedObjects>,

    /// The resources are listed in a ConfigMap of the pool's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceKeyRef")]
    pub config_map_key_ref: Option<SourceKeyRef>,

    /// The resources are listed in a Secret of the pool's namespace. No message quotes it; its keys become resource names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SourceKeyRef")]
    pub secret_key_ref: Option<SourceKeyRef>,
}

/// Objects by their labels, and what makes a resource of each.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelectedObjects {
    /// Which objects. One that says nothing matches all.
    pub label_selector: LabelSelector,

    /// A resource's key: {name} stands for the object's name, {ip} for its address, and of endpoints {port} for each of their
    /// ports. An endpoint's name is that of the pod behind it.
    #[serde(default)]
    pub template: ObjectTemplate,
}

/// Labels that an object must have, as in Kubernetes. All of it must hold.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels with their values; at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "match_labels")]
    pub match_labels: BTreeMap<String, String>,

    /// Demands on single labels; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<LabelRequirement>,
}

fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "description": "A label's value, as in Kubernetes: at most 63 characters.",
            "type": "string", "maxLength": 63, "pattern": crate::patterns::LABEL_VALUE_PATTERN,
        },
    })
}

/// A demand on one label.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)")
    .message("must be values for In and NotIn, and none for Exists and DoesNotExist").field_path(".values"))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317), regex(pattern = crate::patterns::LABEL_KEY_PATTERN))]
    pub key: String,

    /// What is demanded of it.
    pub operator: LabelOperator,

    /// Values, for In and NotIn; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "label_values")]
    pub values: Vec<String>,
}

fn label_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "description": "A label's value, as in Kubernetes: at most 63 characters.",
            "type": "string", "maxLength": 63, "pattern": crate::patterns::LABEL_VALUE_PATTERN,
        },
    })
}

/// What may be demanded of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum LabelOperator {
    /// It has one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// A key of a ConfigMap or Secret that lists resources.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceKeyRef {
    /// The object's name, in the pool's namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::patterns::SUBDOMAIN_PATTERN))]
    pub name: String,

    /// The key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = crate::patterns::DATA_KEY_PATTERN))]
    pub key: String,

    /// How the value is written.
    #[serde(default)]
    pub format: SourceFormat,
}
