//! The kinds of `redis-allocator.dev/v1alpha1`: types, defaults, validation rules and CRD generation.
//!
//! ```
//! use redis_allocator_crd::{Kind, Object, validate};
//! use serde_json::json;
//!
//! let manifest = json!({
//!     "apiVersion": "redis-allocator.dev/v1alpha1",
//!     "kind": "ResourcePool",
//!     "metadata": { "name": "gpus" },
//!     "spec": { "resources": [{ "name": "gpu-0" }], "ordr": "Random" },
//! });
//! let violations = validate(Kind::ResourcePool, &manifest).unwrap_err();
//! assert_eq!(violations[0].path.to_string(), "spec.ordr");
//! assert_eq!(violations[0].hint.as_deref(), Some("did you mean order?"));
//! ```
//!
//! Rules stand once, on the types: as schema keywords and CEL they reach an API server through [`crds`], and [`validate`]
//! runs the same ones on objects that come from elsewhere. What neither can say, about keys of maps or several lists at
//! once, only [`validate`] finds; whoever takes objects from an API server runs it, too.
//!
//! This crate knows neither Redis nor YAML nor the network; it can be a dependency of any operator.

mod binding;
mod duration;
mod kind;
mod patterns;
mod pool;
mod schema;
mod template;
mod validate;
mod violation;

pub use binding::{BindingPolicy, PoolRef, SoftBinding, SoftBindingSpec, SoftBindingStatus};
pub use duration::{Duration, InvalidDuration};
pub use kind::{API_VERSION, GROUP, Kind, Object, VERSION};
pub use pool::{
    DeletionPolicy, Exec, GcSettings, HealthCheck, HttpGet, HttpHeader, LabelOperator, LabelRequirement, LabelSelector,
    LeaseSettings, Mode, Order, RangeKeys, RemovalPolicy, Resource, ResourcePool, ResourcePoolSpec, ResourcePoolStatus,
    ResourceRange, ResourceSource, SelectedObjects, SoftBindingSettings, SourceDns, SourceFile, SourceFormat,
    SourceHttp, SourceKeyRef, SourceKubernetes, SourceState, SourceStatus, StatusRange, TcpSocket,
};
pub use schema::crds;
pub use template::{AddressTemplate, InvalidTemplate, KeyTemplate, MissingParam, ObjectTemplate, TargetTemplate};
pub use validate::{MAX_SOURCE_ITEMS, read_items, validate, validate_items, validate_update};
pub use violation::{FieldPath, Segment, Violation, without_secrets};
