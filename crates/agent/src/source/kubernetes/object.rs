//! One object of a cluster by itself: which one it is, where in its life, and what it declares, or why that can't be used.

use std::fmt;

use kube::{ResourceExt as _, core::DynamicObject};
use redis_allocator::PoolName;
use redis_allocator_crd::{API_VERSION, DeletionPolicy, Kind, Object, validate};
use serde_json::{Value, json};

use crate::reconcile::SYSTEM_NAMESPACE;

/// What a pool carries until it is gone from Redis.
pub(super) const FINALIZER: &str = "redis-allocator.dev/pool";
/// Lets a pool that is being deleted go at once, whoever holds what of it, and whether Redis can be reached or not.
pub(super) const FORCE_DELETE: &str = "redis-allocator.dev/force-delete";
/// Violations told of one object.
const TOLD: usize = 5;

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn of(kind: Kind, object: &DynamicObject) -> Self {
        Self { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }

    /// The pool that an object of this name declares, if it is one that declares pools.
    pub(super) fn pool(&self) -> Option<PoolName> {
        (self.kind == Kind::ResourcePool).then(|| PoolName::new(&self.namespace, &self.name).ok())?
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Why an object can't be used as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) generation: Option<i64>,
    pub(super) violations: Vec<String>,
}

impl Refusal {
    /// All of them in one line, or the first ones.
    pub(super) fn message(&self) -> String {
        let mut message = self.violations.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("; ");
        if self.violations.len() > TOLD {
            message = format!("{message}; and {} more", self.violations.len() - TOLD);
        }
        message
    }
}

/// Where an object is between its creation and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It does not carry the finalizer yet.
    Unborn,
    Live,
    Deleting {
        forced: bool,
    },
    /// It is being deleted, and that does not concern the agent any more.
    Gone,
}

impl Life {
    pub(super) fn of(kind: Kind, object: &DynamicObject) -> Self {
        let deleting = object.metadata.deletion_timestamp.is_some();
        let needs_finalizer = kind == Kind::ResourcePool;
        match (needs_finalizer, object.finalizers().iter().any(|it| it == FINALIZER)) {
            (true, true) if deleting => {
                Self::Deleting { forced: object.annotations().get(FORCE_DELETE).is_some_and(|value| value == "true") }
            }
            _ if deleting => Self::Gone,
            (true, false) => Self::Unborn,
            _ => Self::Live,
        }
    }
}

/// What a pool's object says should become of the pool, read by itself; the default if that can't be read.
pub(super) fn deletion_policy(object: &DynamicObject) -> DeletionPolicy {
    serde_json::from_value(object.data["spec"]["deletionPolicy"].clone()).unwrap_or_default()
}

/// The typed object, or all that is wrong with it as it is. The API server has checked the schema by the definition that is
/// installed, which may be another version's.
pub(super) fn read(key: &Key, object: &DynamicObject) -> Result<Object, Refusal> {
    let generation = object.metadata.generation;
    let mut metadata = json!({"name": key.name, "namespace": key.namespace});
    if let Some(generation) = generation {
        metadata["generation"] = generation.into();
    }
    let plain = json!({
        "apiVersion": API_VERSION, "kind": key.kind.as_str(), "metadata": metadata,
        "spec": object.data.get("spec").unwrap_or(&Value::Null),
    });
    let object = validate(key.kind, &plain).map_err(|violations| Refusal {
        generation,
        violations: violations.iter().map(ToString::to_string).collect(),
    })?;
    let mut violations = Vec::new();
    if key.namespace == SYSTEM_NAMESPACE {
        violations.push(format!(
            "metadata.namespace: found {SYSTEM_NAMESPACE:?}, which agents use among themselves, allowed is any other one"
        ));
    }
    // Whoever may create an object must not reach into the agent.
    if let Object::ResourcePool(pool) = &object {
        let files = pool.spec.sources.iter().enumerate().filter(|(_, source)| source.file.is_some());
        violations.extend(files.map(|(index, _)| {
            format!(
                "spec.sources[{index}].file: found a file, allowed in Kubernetes are http, dns and kubernetes: the agent's files \
                 are read only for manifests in files"
            )
        }));
    }
    if let Object::ResourcePool(pool) = &object
        && pool.spec.health_check.as_ref().is_some_and(|check| check.exec.is_some())
    {
        violations.push(
            "spec.healthCheck.exec: found a command, allowed in Kubernetes are httpGet and tcpSocket: commands run only \
             for manifests in files"
                .to_owned(),
        );
    }
    if violations.is_empty() { Ok(object) } else { Err(Refusal { generation, violations }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kubernetes::fixtures::{Otherwise as _, pool};

    fn refusal(object: &DynamicObject) -> Refusal {
        read(&Key::of(Kind::ResourcePool, object), object).unwrap_err()
    }

    #[test]
    fn force_is_what_the_annotation_says_exactly() {
        let mut deleting = pool("gpus").deleting().forced();
        assert_eq!(Life::of(Kind::ResourcePool, &deleting), Life::Deleting { forced: true });
        for no in ["false", "TRUE", "", "1"] {
            deleting.annotations_mut().insert(FORCE_DELETE.to_owned(), no.to_owned());
            assert_eq!(Life::of(Kind::ResourcePool, &deleting), Life::Deleting { forced: false }, "{no:?}");
        }
    }

    #[test]
    fn what_only_files_may_ask_for_is_refused() {
        let exec = json!({"healthCheck": {"exec": {"command": ["true"]}}});
        let files = json!({"sources": [
            {"name": "a", "dns": {"name": "h"}}, {"name": "b", "file": {"path": "/var/run/secrets/token"}},
        ]});
        let exec = refusal(&pool("gpus").spec(exec)).message();
        assert!(
            exec.starts_with("spec.healthCheck.exec: found a command, allowed in Kubernetes are httpGet"),
            "{exec}"
        );
        let files = refusal(&pool("files").spec(files)).message();
        assert!(
            files.starts_with("spec.sources[1].file: found a file, allowed in Kubernetes are http, dns and kubernetes"),
            "{files}"
        );
        let system = refusal(&pool("theirs").namespace(SYSTEM_NAMESPACE)).message();
        assert!(system.starts_with("metadata.namespace: found \"redis-allocator-system\""), "{system}");
    }

    #[test]
    fn a_message_ends() {
        let resources: Vec<_> = (0..9).map(|number| json!({"name": "", "priority": -number - 1})).collect();
        let refusal = refusal(&pool("gpus").spec(json!({"resources": resources})));
        let more = format!("; and {} more", refusal.violations.len() - TOLD);
        assert!(refusal.violations.len() > TOLD && refusal.message().ends_with(&more), "{}", refusal.message());
    }
}
