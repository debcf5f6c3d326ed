//! The generated schemas, once more as a tree that is quick to walk.
//!
//! Reads a schema strictly: a keyword that nobody checks is an error here, so that none is ignored in file mode.

use std::{collections::BTreeMap, sync::LazyLock};

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::CustomResourceExt;
use regex::Regex;
use schemars::{generate::SchemaSettings, transform::AddNullable};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::{Value, json};

use crate::{API_VERSION, Kind, ResourcePool, SoftBinding, patterns};

/// The schema of a value and of all that is in it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Node {
    #[serde(rename = "type")]
    pub(crate) value_type: Option<Type>,
    #[serde(deserialize_with = "present")]
    pub(crate) default: Option<Value>,
    pub(crate) nullable: bool,

    pub(crate) properties: BTreeMap<String, Node>,
    pub(crate) required: Vec<String>,
    pub(crate) additional_properties: Option<Box<Node>>,
    pub(crate) max_properties: Option<usize>,
    #[serde(rename = "x-kubernetes-preserve-unknown-fields")]
    pub(crate) preserve_unknown_fields: bool,

    pub(crate) items: Option<Box<Node>>,
    pub(crate) min_items: Option<usize>,
    pub(crate) max_items: Option<usize>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    pub(crate) list_map_keys: Vec<String>,

    #[serde(rename = "enum")]
    pub(crate) one_of: Option<Vec<String>>,
    pub(crate) min_length: Option<usize>,
    pub(crate) max_length: Option<usize>,
    #[serde(deserialize_with = "pattern")]
    pub(crate) pattern: Option<Regex>,

    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,

    /// Run by the CEL evaluator, not by the walk through this tree.
    #[serde(rename = "x-kubernetes-validations")]
    _rules: IgnoredAny,
    /// The merge strategy; its only constraint, unique keys, is in `list_map_keys`.
    #[serde(rename = "x-kubernetes-list-type")]
    _list_type: IgnoredAny,
    #[serde(rename = "x-kubernetes-map-type")]
    _map_type: IgnoredAny,
    _description: IgnoredAny,
    _title: IgnoredAny,
    /// `int32`, `int64` and `date-time`: the types of Rust and the bounds above check them.
    _format: IgnoredAny,
}

/// The types a value can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Boolean,
}

/// A default of `null` is one, too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Regex>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Regex::new(&text).map(Some).map_err(serde::de::Error::custom)
}

/// The `CustomResourceDefinition`s of all kinds, as an API server takes them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    Kind::ALL.into_iter().map(crd).collect()
}

/// The `CustomResourceDefinition` of one kind.
fn crd(kind: Kind) -> CustomResourceDefinition {
    match kind {
        Kind::ResourcePool => ResourcePool::crd(),
        Kind::SoftBinding => SoftBinding::crd(),
    }
}

/// The schema inside a kind's `CustomResourceDefinition`.
pub(crate) fn open_api(kind: Kind) -> Value {
    crd(kind)
        .spec
        .versions
        .into_iter()
        .find_map(|version| version.schema?.open_api_v3_schema)
        .and_then(|schema| serde_json::to_value(schema).ok())
        .expect("a derived definition has a schema, and a schema is JSON")
}

/// The schema of a whole object of a kind in a file, where no API server looks after the type and the metadata.
pub(crate) fn of(kind: Kind) -> &'static Node {
    static POOL: LazyLock<Node> = LazyLock::new(|| file_schema(Kind::ResourcePool));
    static BINDING: LazyLock<Node> = LazyLock::new(|| file_schema(Kind::SoftBinding));
    match kind {
        Kind::ResourcePool => &POOL,
        Kind::SoftBinding => &BINDING,
    }
}

/// The schema of one resource.
pub(crate) fn resource() -> &'static Node {
    let pool = of(Kind::ResourcePool);
    let resources = pool.properties.get("spec").and_then(|spec| spec.properties.get("resources"));
    resources.and_then(|resources| resources.items.as_deref()).expect("a pool's schema has a list of resources")
}

fn file_schema(kind: Kind) -> Node {
    let mut schema = open_api(kind);
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({ "type": "string", "enum": [API_VERSION] });
    properties["kind"] = json!({ "type": "string", "enum": [kind.as_str()] });
    // A status is the agent's to write: in a file, left from `kubectl get -o yaml`, it says nothing.
    properties["status"] = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    properties["metadata"] = metadata();
    schema["required"] = json!(["apiVersion", "kind", "metadata", "spec"]);
    serde_json::from_value(schema).expect("the generated schema has only keywords that are checked")
}

fn metadata() -> Value {
    let generator = SchemaSettings::openapi3()
        .with(|settings| settings.inline_subschemas = true)
        .with_transform(AddNullable::default())
        .into_generator();
    let mut schema = generator.into_root_schema_for::<ObjectMeta>().to_value();
    schema.as_object_mut().map(|root| root.remove("$schema"));
    schema["required"] = json!(["name"]);
    // A rule of each kind says the same of its name.
    schema["properties"]["name"] = json!({ "type": "string" });
    schema["properties"]["namespace"] = json!({ "type": "string", "default": "default", "minLength": 1, "maxLength": 63, "pattern": patterns::LABEL_PATTERN });
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(value: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
        visit(path, value);
        for (name, child) in value["properties"].as_object().into_iter().flatten() {
            walk(child, &format!("{path}.{name}"), visit);
        }
        for (part, name) in [("items", "[]"), ("additionalProperties", "[*]")] {
            if value[part].is_object() {
                walk(&value[part], &format!("{path}{name}"), visit);
            }
        }
    }

    #[test]
    fn every_field_has_a_description() {
        for kind in Kind::ALL {
            walk(&open_api(kind), kind.as_str(), &mut |path, schema| {
                let described = schema["description"].as_str().is_some_and(|text| text.trim().len() > 3);
                assert!(described, "{path} has no description");
            });
        }
    }

    #[test]
    fn every_rule_has_a_message_that_says_what_a_value_must_be() {
        let mut rules = 0;
        for kind in Kind::ALL {
            walk(&open_api(kind), kind.as_str(), &mut |path, schema| {
                for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                    let message = rule["message"].as_str().unwrap_or_default();
                    assert!(message.starts_with("must be "), "{path}: {rule}");
                    rules += 1;
                }
            });
        }
        assert!(rules > 20, "{rules}");
    }

    #[test]
    fn every_pattern_has_words() {
        for kind in Kind::ALL {
            walk(&open_api(kind), kind.as_str(), &mut |path, schema| {
                if let Some(pattern) = schema["pattern"].as_str() {
                    assert!(patterns::pattern_in_words(pattern).is_some(), "{path}: {pattern}");
                }
            });
        }
    }

    #[test]
    fn what_rules_look_at_is_bounded_so_that_their_cost_is() {
        for kind in Kind::ALL {
            walk(&open_api(kind), kind.as_str(), &mut |path, schema| {
                if path.contains(".status") {
                    return;
                }
                match schema["type"].as_str() {
                    Some("array") => assert!(schema["maxItems"].is_u64(), "{path} has no maxItems"),
                    Some("string") if schema["enum"].is_null() => {
                        // The API server bounds these two itself.
                        let its_own = path.ends_with("apiVersion") || path.ends_with("kind");
                        assert!(its_own || schema["maxLength"].is_u64(), "{path} has no maxLength");
                    }
                    Some("object") if schema["properties"].is_null() && !path.ends_with("metadata") => {
                        assert!(schema["maxProperties"].is_u64(), "{path} has no maxProperties");
                    }
                    _ => {}
                }
            });
        }
    }

    #[test]
    fn no_field_of_a_spec_is_nullable_and_no_integer_is_unsigned() {
        for kind in Kind::ALL {
            walk(&open_api(kind)["properties"]["spec"], kind.as_str(), &mut |path, schema| {
                assert!(schema["nullable"].is_null(), "{path}");
                assert!(!schema["format"].as_str().unwrap_or_default().starts_with('u'), "{path}");
            });
        }
    }

    #[test]
    fn the_definitions_are_as_reviewed() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&crds()).unwrap());
    }
}
