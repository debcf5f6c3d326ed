//! How the agent finds out that a resource works: probes in the shape of core/v1.
//!
//! Says what to probe; knows neither sockets nor processes.

#![allow(unreachable_pub, reason = "the derives copy each type into a function")]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::Duration, template::TargetTemplate};

/// A probe of every resource of a pool. Exactly one of httpGet, tcpSocket and exec.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.httpGet), has(self.tcpSocket), has(self.exec)].filter(x, x).size() == 1")
    .message("must be exactly one of httpGet, tcpSocket and exec"))]
pub struct HealthCheck {
    /// A resource works when an HTTP GET answers with an expected status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HttpGet")]
    pub http_get: Option<HttpGet>,

    /// A resource works when a TCP connection to it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TcpSocket")]
    pub tcp_socket: Option<TcpSocket>,

    /// A resource works when a command exits with 0. Refused from Kubernetes; from files it needs --allow-exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Exec")]
    pub exec: Option<Exec>,

    /// Pause between two probes of a resource. 100ms to 24h.
    #[serde(default = "default_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('24h')")
        .message("must be a duration from 100ms to 24h"))]
    pub interval: Duration,

    /// A probe that takes longer has failed. 10ms to 5m.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10ms') && duration(self) <= duration('5m')")
        .message("must be a duration from 10ms to 5m"))]
    pub timeout: Duration,

    /// So many probes in a row must fail before a resource is quarantined. 1 to 100.
    #[serde(default = "default_failure_threshold")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_threshold: i32,

    /// So many probes in a row must succeed before a quarantined resource is back. 1 to 100.
    #[serde(default = "default_success_threshold")]
    #[schemars(range(min = 1, max = 100))]
    pub success_threshold: i32,

    /// When more than this share of the pool fails, in percent, the prober is suspected and nothing more is quarantined.
    /// 0 to 100.
    #[serde(default = "default_max_unhealthy_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub max_unhealthy_percent: i32,
}

const fn default_interval() -> Duration {
    Duration::from_secs(10)
}

const fn default_timeout() -> Duration {
    Duration::from_secs(2)
}

const fn default_failure_threshold() -> i32 {
    3
}

const fn default_success_threshold() -> i32 {
    1
}

const fn default_max_unhealthy_percent() -> i32 {
    40
}

/// A probe by HTTP.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Where to ask, such as `http://{name}/healthz`. {name} stands for the resource's name, {params.KEY} for one of its params.
    #[x_kube(validation = Rule::new("self.startsWith('http://') || self.startsWith('https://')")
        .message("must be a URL that starts with http:// or https://"))]
    pub url: TargetTemplate,

    /// Headers to send; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HttpHeader>,

    /// The statuses of a resource that works.
    #[serde(default)]
    pub expected_status: StatusRange,
}

/// A header of an HTTP request.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpHeader {
    /// The header's name (RFC 9110 token).
    #[schemars(length(min = 1, max = 256), regex(pattern = crate::patterns::HEADER_NAME_PATTERN))]
    pub name: String,

    /// The header's value: visible ASCII, spaces and tabs.
    #[schemars(length(max = 4096), regex(pattern = crate::patterns::HEADER_VALUE_PATTERN))]
    pub value: String,
}

/// HTTP statuses from min to max, both included.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.max >= self.min").message("must be at least min").field_path(".max"))]
pub struct StatusRange {
    /// The lowest expected status. 100 to 599.
    #[serde(default = "default_min_status")]
    #[schemars(range(min = 100, max = 599))]
    pub min: i32,

    /// The highest expected status. 100 to 599.
    #[serde(default = "default_max_status")]
    #[schemars(range(min = 100, max = 599))]
    pub max: i32,
}

const fn default_min_status() -> i32 {
    200
}

const fn default_max_status() -> i32 {
    399
}

impl Default for StatusRange {
    fn default() -> Self {
        Self { min: default_min_status(), max: default_max_status() }
    }
}

/// A probe by TCP.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpSocket {
    /// Where to connect, as host:port, such as `{name}` or `{name}:{params.port}`. {name} stands for the resource's name,
    /// {params.KEY} for one of its params.
    pub address: TargetTemplate,
}

/// A probe by command.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// The program and its arguments, run without a shell; 1 to 64. In each, {name} stands for the resource's name,
    /// {params.KEY} for one of its params.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<TargetTemplate>,
}
