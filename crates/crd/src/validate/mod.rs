//! From an untyped object to a typed one, or to everything that is wrong with it.
//!
//! Does in file mode what an API server does with the same schema, plus what only Rust can say. The rules stand on the
//! types; here is only the order in which they are asked.

mod collisions;
mod contents;
mod items;
mod rules;
mod structure;

use serde_json::Value;

pub use self::items::{MAX_SOURCE_ITEMS, read_items, validate_items};
use crate::{
    kind::{Kind, Object},
    schema,
    violation::{FieldPath, Report, Violation},
};

/// Checks an object of a kind and fills in the defaults.
///
/// As the API server does, fields that are `null` are taken as absent. What it drops silently is refused here: an unknown
/// field is a violation. A `status` is ignored; `metadata.namespace` defaults to `default`.
///
/// # Errors
/// Everything that is wrong, in the order of the paths; of more than 1,000 violations the first 1,000 found.
pub fn validate(kind: Kind, object: &Value) -> Result<Object, Vec<Violation>> {
    check(kind, None, object)
}

/// Checks an object that is to replace an older one: like [`validate`], and what must not change has not.
///
/// # Errors
/// Everything that is wrong, as with [`validate`].
pub fn validate_update(old: &Object, new: &Value) -> Result<Object, Vec<Violation>> {
    let object = match old {
        Object::ResourcePool(pool) => serde_json::to_value(pool),
        Object::SoftBinding(binding) => serde_json::to_value(binding),
    };
    let object = object.map_err(|error| vec![unreadable(&error)])?;
    check(old.kind(), Some(&object), new)
}

fn check(kind: Kind, old: Option<&Value>, object: &Value) -> Result<Object, Vec<Violation>> {
    let mut report = Report::default();
    let mut object = structure::check(schema::of(kind), object, &mut report);
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    rules::check(kind, old, &object, &mut report);
    contents::check(kind, &object, &mut report);
    if !report.is_empty() {
        return Err(report.into_violations());
    }
    let typed = match kind {
        Kind::ResourcePool => serde_json::from_value(object).map(|pool| Object::ResourcePool(Box::new(pool))),
        Kind::SoftBinding => serde_json::from_value(object).map(|binding| Object::SoftBinding(Box::new(binding))),
    };
    typed.map_err(|error| vec![unreadable(&error)])
}

/// The schema admits what the types do not: not known to happen, and still not a reason to panic.
fn unreadable(error: &serde_json::Error) -> Violation {
    Violation::new(
        FieldPath::default(),
        format!("a value that does not fit: {error}"),
        "what the field's description says",
    )
}

/// The known word that an unknown one was probably meant to be.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Nobody means a short word by a long one, and the distance costs the product of both lengths.
    const LONGEST: usize = 64;
    const FARTHEST: usize = 3;
    if word.len() > LONGEST {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::osa_distance(&lower, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= FARTHEST && *distance * 3 <= known.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| format!("did you mean {known}?"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::{API_VERSION, GcSettings, LeaseSettings, ResourcePoolSpec, SoftBindingSettings};

    fn pool(spec: &Value) -> Value {
        json!({ "apiVersion": API_VERSION, "kind": "ResourcePool", "metadata": { "name": "gpus" }, "spec": spec })
    }

    #[test]
    fn the_defaults_of_the_schema_are_those_of_the_types() {
        let Ok(Object::ResourcePool(empty)) = validate(Kind::ResourcePool, &pool(&json!({}))) else { panic!() };
        assert_eq!(empty.spec, ResourcePoolSpec::default());
        assert_eq!(empty.metadata.namespace.as_deref(), Some("default"));

        let nested = json!({ "lease": {}, "gc": {}, "softBinding": {}, "healthCheck": { "httpGet": { "url": "http://{name}" } } });
        let Ok(Object::ResourcePool(nested)) = validate(Kind::ResourcePool, &pool(&nested)) else { panic!() };
        assert_eq!(nested.spec.lease, LeaseSettings::default());
        assert_eq!(nested.spec.gc, GcSettings::default());
        assert_eq!(nested.spec.soft_binding, SoftBindingSettings::default());
        // A health check has no default of its own; its fields are compared with what serde fills in.
        let check = serde_json::from_value(json!({ "httpGet": { "url": "http://{name}" } })).unwrap();
        assert_eq!(nested.spec.health_check, Some(check));
    }

    #[test]
    fn null_is_absent_and_a_status_is_ignored() {
        let mut object = pool(&json!({ "order": null, "healthCheck": null }));
        object["metadata"]["creationTimestamp"] = Value::Null;
        object["status"] = json!({ "anything": 1 });
        let Ok(Object::ResourcePool(pool)) = validate(Kind::ResourcePool, &object) else { panic!() };
        assert_eq!((pool.spec, pool.status), (ResourcePoolSpec::default(), None));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once_and_in_order() {
        let object = pool(&json!({
            "oder": "Random",
            "mode": "Common",
            "resources": [{ "name": "a" }, { "name": "a", "priority": 1001, "labels": { "-": "x" } }],
            "ranges": [{ "name": "r", "template": "{}{}", "from": 2, "to": 1 }],
            "lease": { "defaultTTL": "2m", "maxTTL": "1m" },
            "gc": { "interval": "soon" },
        }));
        let violations = validate(Kind::ResourcePool, &object).unwrap_err();
        let paths: Vec<_> = violations.iter().map(|violation| violation.path.to_string()).collect();
        assert_eq!(
            paths,
            [
                "spec.gc.interval",
                "spec.lease.defaultTTL",
                "spec.mode",
                "spec.oder",
                "spec.ranges[0].template",
                "spec.ranges[0].to",
                "spec.resources[1].labels[\"-\"]",
                "spec.resources[1].name",
                "spec.resources[1].priority",
            ]
        );
    }

    #[test]
    fn an_object_that_is_no_object_is_refused() {
        for object in [json!(null), json!([]), json!("x"), json!({})] {
            assert!(!validate(Kind::SoftBinding, &object).unwrap_err().is_empty(), "{object}");
        }
    }

    #[test]
    fn a_full_pool_is_checked_in_well_under_a_second() {
        let resources: Vec<_> = (0..4096)
            .map(|i| json!({ "name": format!("gpu-{i}"), "priority": i % 1000, "labels": { "zone": "a", "model": "x" }, "params": { "index": i } }))
            .collect();
        let ranges: Vec<_> = (0..64)
            .map(|i| json!({ "name": format!("r{i}"), "template": format!("h{i}-{{}}"), "from": 1, "to": 15_000 }))
            .collect();
        let object = pool(&json!({ "resources": resources, "ranges": ranges }));
        schema::of(Kind::ResourcePool);
        let start = Instant::now();
        validate(Kind::ResourcePool, &object).unwrap();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn lists_and_maps_beyond_their_bounds_are_one_violation() {
        let labels: serde_json::Map<_, _> = (0..33).map(|i| (format!("l{i}"), json!("a"))).collect();
        let range = |i| json!({ "name": format!("r{i}"), "template": "{}{}", "from": 0, "to": 0 });
        let resource = |i: usize| json!({ "name": i });
        for (spec, path) in [
            (json!({ "resources": (0..4097).map(resource).collect::<Vec<_>>() }), "spec.resources"),
            (json!({ "ranges": (0..65).map(range).collect::<Vec<_>>() }), "spec.ranges"),
            (json!({ "resources": [{ "name": "a", "labels": labels }] }), "spec.resources[0].labels"),
        ] {
            let violations = validate(Kind::ResourcePool, &pool(&spec)).unwrap_err();
            assert_eq!(violations.iter().map(|violation| violation.path.to_string()).collect::<Vec<_>>(), [path]);
        }
    }

    #[test]
    fn params_are_bounded_in_bytes() {
        let params = |length| json!({ "resources": [{ "name": "a", "params": { "x": "x".repeat(length) } }] });
        assert!(validate(Kind::ResourcePool, &pool(&params(16 * 1024 - 8))).is_ok());
        let violations = validate(Kind::ResourcePool, &pool(&params(16 * 1024 - 7))).unwrap_err();
        assert_eq!(
            violations[0].to_string(),
            "spec.resources[0].params: found 16385 bytes of JSON, allowed is at most 16384 bytes of JSON"
        );
    }

    #[test]
    fn a_hint_is_given_for_near_misses_only() {
        let known = ["order", "defaultTTL", "gc"];
        assert_eq!(did_you_mean("defaultTtl", known).as_deref(), Some("did you mean defaultTTL?"));
        assert_eq!(did_you_mean("oder", known).as_deref(), Some("did you mean order?"));
        assert_eq!(did_you_mean("replicas", known), None);
        assert_eq!(did_you_mean(&"x".repeat(1 << 20), known), None);
    }
}
