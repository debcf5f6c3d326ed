//! Walks an object along its schema: what is of the wrong type, out of bounds, missing, unknown or double.
//!
//! Yields the object as the API server would store it: nulls dropped, defaults filled in. Knows the schema's keywords and
//! nothing of any kind.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::did_you_mean;
use crate::{
    patterns::pattern_in_words,
    schema::{Node, Type},
    violation::{FieldPath, Report, Violation, describe_at},
};

/// Reports what the schema does not allow; yields the object without nulls and with defaults.
pub(super) fn check(schema: &Node, object: &Value, report: &mut Report) -> Value {
    check_at(schema, object, &FieldPath::default(), report)
}

/// The same for a value that `path` leads to.
pub(super) fn check_at(schema: &Node, value: &Value, path: &FieldPath, report: &mut Report) -> Value {
    Walk { report }.value(schema, value, path)
}

struct Walk<'r> {
    report: &'r mut Report,
}

impl Walk<'_> {
    fn value(&mut self, node: &Node, value: &Value, path: &FieldPath) -> Value {
        if value.is_null() && node.nullable {
            return Value::Null;
        }
        match (node.value_type, value) {
            (Some(Type::Object), Value::Object(fields)) => return Value::Object(self.object(node, fields, path)),
            (Some(Type::Array), Value::Array(items)) => return Value::Array(self.list(node, items, path)),
            (Some(Type::String), Value::String(text)) => {
                if !is_allowed_text(node, text) {
                    self.wrong(node, value, path);
                }
            }
            (Some(Type::Integer), Value::Number(number)) if number.is_i64() => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                if node.minimum.is_some_and(|least| number < least) || node.maximum.is_some_and(|most| number > most) {
                    self.wrong(node, value, path);
                }
            }
            (Some(Type::Boolean), Value::Bool(_)) | (None, _) => {}
            (Some(_), _) => self.wrong(node, value, path),
        }
        value.clone()
    }

    fn wrong(&mut self, node: &Node, value: &Value, path: &FieldPath) {
        self.report.add(|| {
            let mut violation = Violation::new(path.clone(), describe_at(path, Some(value)), in_words(node));
            if let (Some(names), Some(text)) = (&node.one_of, value.as_str()) {
                violation.hint = did_you_mean(text, names.iter().map(String::as_str));
            }
            violation
        });
    }

    fn object(&mut self, node: &Node, fields: &Map<String, Value>, path: &FieldPath) -> Map<String, Value> {
        let mut checked = Map::new();
        if node.max_properties.is_some_and(|most| fields.len() > most) {
            self.report
                .add(|| Violation::new(path.clone(), format!("an object of {} fields", fields.len()), in_words(node)));
            return checked;
        }
        for (key, value) in fields {
            let child = node.properties.get(key).or(node.additional_properties.as_deref());
            match child {
                // The API server drops nulls wherever the schema does not welcome them.
                Some(child) if value.is_null() && !child.nullable => {}
                Some(child) => {
                    checked.insert(key.clone(), self.value(child, value, &path.join(key.as_str())));
                }
                None if node.preserve_unknown_fields => {
                    checked.insert(key.clone(), value.clone());
                }
                None => self.report.add(|| {
                    let known = || node.properties.keys().map(String::as_str);
                    Violation {
                        path: path.join(key.as_str()),
                        found: "an unknown field".to_owned(),
                        allowed: format!("one of {}", known().collect::<Vec<_>>().join(", ")),
                        hint: did_you_mean(key, known()),
                    }
                }),
            }
        }
        for (key, child) in &node.properties {
            if checked.contains_key(key) {
                continue;
            }
            if let Some(default) = &child.default {
                checked.insert(key.clone(), self.value(child, default, &path.join(key.as_str())));
            } else if node.required.contains(key) {
                self.report.add(|| {
                    Violation::new(
                        path.join(key.as_str()),
                        "nothing",
                        format!("{}: this field is required", in_words(child)),
                    )
                });
            }
        }
        checked
    }

    fn list(&mut self, node: &Node, items: &[Value], path: &FieldPath) -> Vec<Value> {
        let too_few = node.min_items.is_some_and(|least| items.len() < least);
        if too_few || node.max_items.is_some_and(|most| items.len() > most) {
            self.report.add(|| Violation::new(path.clone(), format!("a list of {}", items.len()), in_words(node)));
            return Vec::new();
        }
        let Some(item_node) = node.items.as_deref() else { return items.to_vec() };
        let mut seen = HashMap::new();
        let mut checked = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let item_path = path.join(index);
            if let [key] = node.list_map_keys.as_slice()
                && let Some(Value::String(name)) = item.get(key)
                && let Some(first) = seen.insert(name.clone(), index)
            {
                seen.insert(name.clone(), first);
                self.report.add(|| {
                    let double = item_path.join(key.as_str());
                    let found = format!("{}, which {} has, too", describe_at(&double, item.get(key)), path.join(first));
                    Violation::new(double, found, format!("a {key} that no other element of the list has"))
                });
            }
            checked.push(self.value(item_node, item, &item_path));
        }
        checked
    }
}

fn is_allowed_text(node: &Node, text: &str) -> bool {
    // As in the API server, a length is counted in characters.
    let length = || text.chars().count();
    node.one_of.as_ref().is_none_or(|names| names.iter().any(|name| name == text))
        && node.min_length.is_none_or(|least| text.len() >= least && length() >= least)
        && node.max_length.is_none_or(|most| text.len() <= most || length() <= most)
        && node.pattern.as_ref().is_none_or(|pattern| pattern.is_match(text))
}

/// What a schema allows, in words.
fn in_words(node: &Node) -> String {
    match node.value_type {
        None => "anything".to_owned(),
        Some(Type::Boolean) => "true or false".to_owned(),
        Some(Type::Integer) => match (node.minimum, node.maximum) {
            (Some(least), Some(most)) => format!("an integer from {least} to {most}"),
            _ => "an integer".to_owned(),
        },
        Some(Type::Array) => format!("a list{}", size(node.min_items, node.max_items, "elements")),
        Some(Type::Object) => format!("an object{}", size(None, node.max_properties, "fields")),
        Some(Type::String) => {
            if let Some(names) = &node.one_of {
                return names.join(" or ");
            }
            let size = size(node.min_length, node.max_length, "characters");
            match node.pattern.as_ref().map(|pattern| pattern_in_words(pattern.as_str()).unwrap_or(pattern.as_str())) {
                Some(words) => format!("{words}; a text{size}"),
                None => format!("a text{size}"),
            }
        }
    }
}

fn size(least: Option<usize>, most: Option<usize>, of_what: &str) -> String {
    match (least, most) {
        (Some(least), Some(most)) => format!(" of {least} to {most} {of_what}"),
        (Some(least), None) => format!(" of at least {least} {of_what}"),
        (None, Some(most)) => format!(" of at most {most} {of_what}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(schema: Value, object: &Value) -> (Value, Vec<String>) {
        let schema: Node = serde_json::from_value(schema).unwrap();
        let mut report = Report::default();
        let checked = check(&schema, object, &mut report);
        (checked, report.into_violations().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn defaults_are_filled_in_at_every_depth_and_nulls_make_room_for_them() {
        let schema = json!({ "type": "object", "properties": {
            "a": { "type": "object", "default": {}, "properties": { "b": { "type": "integer", "default": 1 } } },
            "c": { "type": "string", "nullable": true, "default": "x" },
            "d": { "type": "array", "items": { "type": "object", "properties": { "e": { "type": "boolean", "default": true } } } },
        } });
        let (checked, violations) = run(schema, &json!({ "a": null, "c": null, "d": [{}] }));
        assert_eq!(checked, json!({ "a": { "b": 1 }, "c": null, "d": [{ "e": true }] }));
        assert_eq!(violations, [""; 0]);
    }

    #[test]
    fn a_list_beyond_its_bound_is_not_walked() {
        let schema = json!({ "type": "array", "maxItems": 1, "items": { "type": "integer" } });
        let (_, violations) = run(schema, &json!(["a", "b"]));
        assert_eq!(violations, ["found a list of 2, allowed is a list of at most 1 elements"]);
    }

    #[test]
    fn every_element_that_repeats_a_name_is_pointed_at_the_first() {
        let schema = json!({ "type": "array", "x-kubernetes-list-map-keys": ["name"], "x-kubernetes-list-type": "map",
            "items": { "type": "object", "properties": { "name": { "type": "string" } } } });
        let (_, violations) = run(schema, &json!([{ "name": "a" }, { "name": "a" }, { "name": "a" }]));
        assert_eq!(violations.len(), 2);
        assert!(violations.iter().all(|text| text.contains("\"a\", which [0] has, too")), "{violations:?}");
    }

    #[test]
    fn lengths_count_characters() {
        let schema = json!({ "type": "string", "minLength": 2, "maxLength": 2 });
        assert_eq!(run(schema.clone(), &json!("éé")).1.len(), 0);
        assert_eq!(run(schema, &json!("é")).1.len(), 1);
    }

    #[test]
    fn a_number_that_is_not_a_64_bit_integer_is_refused() {
        for number in [json!(1.0), json!(1e3), json!(u64::MAX)] {
            assert_eq!(run(json!({ "type": "integer" }), &number).1.len(), 1);
        }
    }

    #[test]
    fn a_keyword_that_is_not_checked_is_not_overlooked() {
        assert!(serde_json::from_value::<Node>(json!({ "type": "integer", "multipleOf": 2 })).is_err());
    }
}
