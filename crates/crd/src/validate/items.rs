//! What a source lists, checked as `spec.resources` is: the same fields, the same limits, only more of them.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{contents, structure, unreadable};
use crate::{
    pool::Resource,
    schema,
    violation::{FieldPath, Report, Segment, Violation, describe},
};

/// The most resources that one source may bring.
pub const MAX_SOURCE_ITEMS: usize = 100_000;

/// Checks what a source lists: keys, or objects with the fields of `spec.resources`, also mixed. Fills in the defaults.
///
/// ```
/// use redis_allocator_crd::validate_items;
/// use serde_json::json;
///
/// let items = validate_items(&json!(["10.0.0.1:3128", { "name": "10.0.0.2:3128", "priority": 5 }])).unwrap();
/// assert_eq!((items[0].name.as_str(), items[1].priority), ("10.0.0.1:3128", 5));
/// ```
///
/// # Errors
/// Everything that is wrong, each with the way from the list's root, such as `[3].priority`; of more than 1,000 violations
/// the first 1,000 found. More than [`MAX_SOURCE_ITEMS`] entries are one violation.
pub fn validate_items(list: &Value) -> Result<Vec<Resource>, Vec<Violation>> {
    let root = FieldPath::default();
    let Some(entries) = list.as_array() else {
        return Err(vec![Violation::new(root, describe(Some(list)), "a list of keys, or of objects with a name")]);
    };
    if entries.len() > MAX_SOURCE_ITEMS {
        let allowed = format!("a list of at most {MAX_SOURCE_ITEMS} entries: split it into several sources");
        return Err(vec![Violation::new(root, describe(Some(list)), allowed)]);
    }
    let mut report = Report::default();
    let mut items: Vec<Resource> = Vec::with_capacity(entries.len());
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let path = root.join(index);
        match read(entry, &path) {
            Err(violations) => violations.into_iter().for_each(|violation| report.add(|| violation)),
            Ok(item) => {
                if let Some(first) = seen.get(&item.name) {
                    report.add(|| {
                        let found = format!(
                            "{}, which {} is, too",
                            describe(Some(&item.name.as_str().into())),
                            root.join(*first)
                        );
                        Violation::new(path, found, "a key that no other entry has")
                    });
                    continue;
                }
                seen.insert(item.name.clone(), index);
                items.push(item);
            }
        }
    }
    if report.is_empty() { Ok(items) } else { Err(report.into_violations()) }
}

fn read(entry: &Value, path: &FieldPath) -> Result<Resource, Vec<Violation>> {
    let mut report = Report::default();
    let is_key = entry.is_string();
    let named = is_key.then(|| json!({ "name": entry }));
    let checked = structure::check_at(schema::resource(), named.as_ref().unwrap_or(entry), path, &mut report);
    contents::resource(&checked, path, &mut report);
    if report.is_empty() {
        return serde_json::from_value(checked).map_err(|error| vec![unreadable(&error)]);
    }
    let mut violations = report.into_violations();
    if is_key {
        // It has no field `name` that a path could lead into.
        for Violation { path, .. } in &mut violations {
            path.0.pop_if(|last| *last == Segment::Key("name".to_owned()));
        }
    }
    Err(violations)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn wrong(list: &Value) -> Vec<String> {
        validate_items(list).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_and_objects_become_resources_with_defaults() {
        let items =
            validate_items(&json!(["a", { "name": "b", "labels": { "zone": "x" }, "params": { "i": 1 } }])).unwrap();
        assert_eq!(items[0], Resource { name: "a".to_owned(), ..Resource::default() });
        assert_eq!((items[1].labels["zone"].as_str(), &items[1].params["i"]), ("x", &json!(1)));
        assert_eq!(validate_items(&json!([])), Ok(Vec::new()));
    }

    #[test]
    fn each_mistake_says_where_it_is_and_what_is_allowed() {
        assert_eq!(
            wrong(&json!(["a", "", { "name": "b", "priority": 1001, "prio": 1 }, 7, { "name": "a" }])),
            [
                "[1]: found \"\", allowed is a text without NUL; a text of 1 to 512 characters",
                "[2].prio: found an unknown field, allowed is one of labels, name, params, priority",
                "[2].priority: found 1001, allowed is an integer from 0 to 1000",
                "[3]: found 7, allowed is an object",
                "[4]: found \"a\", which [0] is, too, allowed is a key that no other entry has",
            ]
        );
        let long = wrong(
            &json!(["€".repeat(200), { "name": "x", "labels": { "-": "y" }, "params": { "x": "y".repeat(17_000) } }]),
        );
        assert!(long[0].starts_with("[0]: ") && long[0].contains("at most 512 bytes"), "{long:?}");
        assert!(long[1].contains("a label key") && long[2].contains("bytes of JSON"), "{long:?}");
    }

    #[test]
    fn what_is_no_list_or_too_long_is_one_mistake() {
        assert_eq!(
            wrong(&json!({ "items": [] })),
            ["found an object of 1 fields, allowed is a list of keys, or of objects with a name"]
        );
        let many: Vec<_> = (0..=MAX_SOURCE_ITEMS).collect();
        assert_eq!(
            wrong(&json!(many)),
            ["found a list of 100001, allowed is a list of at most 100000 entries: split it into several sources"]
        );
    }

    #[test]
    fn a_full_list_is_checked_in_a_few_seconds() {
        let many: Vec<_> =
            (0..MAX_SOURCE_ITEMS).map(|i| json!({ "name": format!("host-{i}"), "labels": { "zone": "a" } })).collect();
        let start = Instant::now();
        assert_eq!(validate_items(&json!(many)).unwrap().len(), MAX_SOURCE_ITEMS);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
}
