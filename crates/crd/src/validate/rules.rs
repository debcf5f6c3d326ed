//! Runs the CEL rules of a schema, the same that an API server runs.
//!
//! Knows how to run them and how to report them; what they say stands on the types.

use std::sync::LazyLock;

use kube::core::cel::{CompiledSchema, ErrorKind, ValidationError, compile_schema, validate_compiled};
use serde_json::{Map, Value};

use crate::{
    kind::Kind,
    schema,
    violation::{FieldPath, Report, Segment, Violation, describe_at},
};

/// Reports which rules the object breaks; those about changes only where there is an older object.
pub(super) fn check(kind: Kind, old: Option<&Value>, object: &Value, report: &mut Report) {
    // A rule on a value of the wrong type cannot be evaluated, and that is no news after the type was reported.
    let well_formed = report.is_empty();
    for error in validate_compiled(compiled(kind), object, old).err().into_iter().flatten() {
        if well_formed || error.kind == ErrorKind::ValidationFailure {
            report.add(|| violation(&error, object));
        }
    }
}

fn violation(error: &ValidationError, object: &Value) -> Violation {
    // A rule at the root can only be about the name: it is all of the metadata that the API server shows to rules.
    let path = if error.field_path.is_empty() { path("metadata.name") } else { path(&error.field_path) };
    let allowed = error.message.strip_prefix("must be ").unwrap_or(&error.message);
    let found = describe_at(&path, path.find(object));
    Violation::new(path, found, allowed)
}

/// A path as the evaluator writes it. No rule of ours is below a map, so neither dots nor brackets are part of a key.
fn path(text: &str) -> FieldPath {
    let segments = text.split(['.', '[']).map(|part| match part.strip_suffix(']').map(str::parse) {
        Some(Ok(index)) => Segment::Index(index),
        _ => part.into(),
    });
    FieldPath(segments.collect())
}

fn compiled(kind: Kind) -> &'static CompiledSchema {
    static POOL: LazyLock<CompiledSchema> = LazyLock::new(|| compile(Kind::ResourcePool));
    static BINDING: LazyLock<CompiledSchema> = LazyLock::new(|| compile(Kind::SoftBinding));
    match kind {
        Kind::ResourcePool => &POOL,
        Kind::SoftBinding => &BINDING,
    }
}

fn compile(kind: Kind) -> CompiledSchema {
    let schema = schema::open_api(kind);
    compile_schema(&with_rules(&schema).unwrap_or_default())
}

/// The part of a schema that leads to rules, if any do. The evaluator looks at every value that its schema mentions, which
/// would take seconds for a list of thousands.
fn with_rules(schema: &Value) -> Option<Value> {
    const RULES: &str = "x-kubernetes-validations";
    let mut kept = Map::new();
    if let Some(rules) = schema.get(RULES) {
        kept.insert(RULES.to_owned(), rules.clone());
    }
    if let Some(items) = schema.get("items").and_then(with_rules) {
        kept.insert("items".to_owned(), items);
    }
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let properties: Map<_, _> =
        properties.filter_map(|(name, property)| Some((name.clone(), with_rules(property)?))).collect();
    if !properties.is_empty() {
        kept.insert("properties".to_owned(), properties.into());
    }
    if kept.is_empty() {
        return None;
    }
    kept.insert("type".to_owned(), schema.get("type").cloned().unwrap_or_default());
    Some(kept.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_rule_compiles() {
        fn walk(schema: &CompiledSchema, rules: &mut usize) {
            assert!(schema.compilation_errors().is_empty(), "{:?}", schema.compilation_errors());
            *rules += schema.validations.len();
            schema.properties.values().chain(schema.items.as_deref()).for_each(|child| walk(child, rules));
        }
        let mut rules = 0;
        for kind in Kind::ALL {
            walk(compiled(kind), &mut rules);
        }
        let written = Kind::ALL.map(|kind| schema::open_api(kind).to_string().matches("\"rule\":").count());
        assert_eq!(rules, written.into_iter().sum::<usize>(), "each rule of the schemas is run");
    }

    #[test]
    fn only_what_leads_to_rules_is_looked_at() {
        let schema = with_rules(&schema::open_api(Kind::ResourcePool)).unwrap();
        assert!(schema["properties"]["spec"]["properties"]["ranges"]["items"].is_object());
        assert!(schema["properties"]["spec"]["properties"]["resources"].is_null());
    }

    #[test]
    fn a_path_is_read_back() {
        assert_eq!(path("spec.ranges[12].to").to_string(), "spec.ranges[12].to");
        assert_eq!(path("spec.a[0]").find(&json!({ "spec": { "a": [7] } })), Some(&json!(7)));
    }
}
