//! What a source lists, checked as `spec.resources` is: the same fields, the same limits, only more of them.
//!
//! # Guarantees
//! - Entries are taken one at a time, and none after those that refuse the list: what is read takes no more memory than the
//!   resources that it makes.

use std::{collections::HashMap, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::{contents, structure, unreadable};
use crate::{
    pool::Resource,
    schema,
    violation::{FieldPath, Report, Segment, Violation, describe},
};

/// The most resources that one source may bring.
pub const MAX_SOURCE_ITEMS: usize = 100_000;
/// Wrong entries after which no more are looked at.
const MAX_WRONG: usize = 1000;
/// Values in one entry, each element and field counted: more than its limits can hold.
const MAX_VALUES: usize = 10_000;
const A_LIST: &str = "a list of keys, or of objects with a name";

/// Checks what a source lists: keys, or objects with the fields of `spec.resources`, also mixed. Fills in the defaults.
///
/// ```
/// use redis_allocator_crd::validate_items;
/// use serde_json::json;
///
/// let items = validate_items([json!("10.0.0.1:3128"), json!({ "name": "10.0.0.2:3128", "priority": 5 })]).unwrap();
/// assert_eq!((items[0].name.as_str(), items[1].priority), ("10.0.0.1:3128", 5));
/// ```
///
/// # Errors
/// What is wrong, each with the way from the list's root, such as `[3].priority`; of more than 1,000 violations the first
/// 1,000 found. More than [`MAX_SOURCE_ITEMS`] entries are one violation.
pub fn validate_items(entries: impl IntoIterator<Item = Value>) -> Result<Vec<Resource>, Vec<Violation>> {
    let mut items = Items::default();
    for entry in entries {
        if !items.add(&entry) {
            break;
        }
    }
    items.finish()
}

/// The same of a JSON text.
///
/// # Errors
/// The outer one if it is not JSON, which quotes nothing of it; the inner one as [`validate_items`] says.
pub fn read_items(text: &str) -> serde_json::Result<Result<Vec<Resource>, Vec<Violation>>> {
    let refused = |found| Ok(Err(vec![Violation::new(FieldPath::default(), found, A_LIST)]));
    let mut reader = serde_json::Deserializer::from_str(text);
    if !text.trim_ascii_start().starts_with('[') {
        let mut left = MAX_VALUES;
        return match (Entry { left: &mut left }.deserialize(&mut reader), left) {
            (Err(_), 0) => refused("an object".to_owned()),
            (value, _) => {
                let value = value?;
                reader.end()?;
                refused(describe(Some(&value)))
            }
        };
    }
    let mut items = Items::default();
    let read = reader.deserialize_seq(&mut items).and_then(|()| reader.end());
    if !items.is_over {
        read?;
    }
    Ok(items.finish())
}

/// What was made of the entries so far.
#[derive(Debug, Default)]
struct Items {
    made: Vec<Resource>,
    /// Where each key was first.
    seen: HashMap<String, usize>,
    /// How many entries there were.
    count: usize,
    wrong: usize,
    report: Report,
    /// Whether the list is refused whatever follows.
    is_over: bool,
}

impl Items {
    /// Takes the next entry; false: none is needed any more.
    fn add(&mut self, entry: &Value) -> bool {
        let index = self.count;
        self.count += 1;
        if self.count > MAX_SOURCE_ITEMS {
            self.is_over = true;
            return false;
        }
        let path = FieldPath::default().join(index);
        let violations = match read(entry, &path) {
            Err(violations) => violations,
            Ok(item) => {
                let Some(first) = self.seen.get(&item.name) else {
                    self.seen.insert(item.name.clone(), index);
                    self.made.push(item);
                    return true;
                };
                let first = FieldPath::default().join(*first);
                let found = format!("{}, which {first} is, too", describe(Some(&item.name.as_str().into())));
                vec![Violation::new(path, found, "a key that no other entry has")]
            }
        };
        self.refuse(violations);
        self.is_over = self.wrong == MAX_WRONG;
        !self.is_over
    }

    fn refuse(&mut self, violations: Vec<Violation>) {
        self.wrong += 1;
        for violation in violations {
            self.report.add(|| violation);
        }
    }

    fn finish(self) -> Result<Vec<Resource>, Vec<Violation>> {
        if self.count > MAX_SOURCE_ITEMS {
            let allowed = format!("a list of at most {MAX_SOURCE_ITEMS} entries: split it into several sources");
            return Err(vec![Violation::new(FieldPath::default(), "a longer one", allowed)]);
        }
        if self.report.is_empty() { Ok(self.made) } else { Err(self.report.into_violations()) }
    }
}

impl<'de> Visitor<'de> for &mut Items {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(A_LIST)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        loop {
            let mut left = MAX_VALUES;
            let entry = list.next_element_seed(Entry { left: &mut left });
            if entry.is_err() && left == 0 {
                let path = FieldPath::default().join(self.count);
                let found = format!("one of more than {MAX_VALUES} values");
                self.refuse(vec![Violation::new(path, found, "a key, or an object with the fields of a resource")]);
                self.is_over = true;
            }
            let Some(entry) = entry? else { return Ok(()) };
            if !self.add(&entry) {
                return Err(A::Error::custom("enough is known"));
            }
        }
    }
}

/// Reads a value, if it consists of no more than so many: text that is short may make a large tree.
struct Entry<'l> {
    left: &'l mut usize,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        *self.left = self.left.saturating_sub(1);
        if *self.left == 0 {
            return Err(D::Error::custom("there are too many values"));
        }
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entry<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Entry { left: &mut *self.left })? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            fields.insert(key, map.next_value_seed(Entry { left: &mut *self.left })?);
        }
        Ok(fields.into())
    }
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

    /// What comes of a list, which is the same for its text.
    fn check(list: &Value) -> Result<Vec<Resource>, Vec<Violation>> {
        let checked = validate_items(list.as_array().unwrap().iter().cloned());
        assert_eq!(read_items(&list.to_string()).unwrap(), checked);
        checked
    }

    fn wrong(list: &Value) -> Vec<String> {
        told(&check(list).unwrap_err())
    }

    fn told(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_and_objects_become_resources_with_defaults() {
        let items = check(&json!(["a", { "name": "b", "labels": { "zone": "x" }, "params": { "i": 1 } }])).unwrap();
        assert_eq!(items[0], Resource { name: "a".to_owned(), ..Resource::default() });
        assert_eq!((items[1].labels["zone"].as_str(), &items[1].params["i"]), ("x", &json!(1)));
        let params = json!({ "null": [null], "bool": true, "numbers": [-1, u64::MAX, 1.5, "é\n"], "in": { "a": {} } });
        let items = check(&json!([{ "name": "b", "params": params }])).unwrap();
        assert_eq!(Value::from(items[0].params.clone()), params);
        assert_eq!(check(&json!([])), Ok(Vec::new()));
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
        let fields = (0..MAX_VALUES).map(|i| (i.to_string(), Value::Null)).collect::<Map<_, _>>();
        for (text, found) in [
            (json!({ "items": [] }).to_string(), "an object of 1 fields"),
            (Value::from(fields).to_string(), "an object"),
            (" \"a\"".to_owned(), "\"a\""),
        ] {
            let violations = told(&read_items(&text).unwrap().unwrap_err());
            assert_eq!(violations, [format!("found {found}, allowed is a list of keys, or of objects with a name")]);
        }
        let many: Vec<_> = (0..=MAX_SOURCE_ITEMS).map(|i| i.to_string()).collect();
        assert_eq!(
            wrong(&json!(many)),
            ["found a longer one, allowed is a list of at most 100000 entries: split it into several sources"]
        );
    }

    #[test]
    fn what_is_not_json_says_where_and_quotes_nothing() {
        for (text, error) in [
            ("[\n\"a\",\n}", "expected value at line 3 column 1"),
            ("[1, 2", "EOF while parsing a list at line 1 column 5"),
            ("[] []", "trailing characters at line 1 column 4"),
            ("hunter2", "expected value at line 1 column 1"),
        ] {
            assert_eq!(read_items(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn nothing_is_read_after_what_refuses_the_list() {
        // What follows is no JSON at all, which nobody gets to see.
        let wrong_ones = format!("[{}!", r#"{"a":0},"#.repeat(MAX_WRONG));
        assert_eq!(read_items(&wrong_ones).unwrap().unwrap_err().len(), 1000);
        let keys: Vec<_> = (0..=MAX_SOURCE_ITEMS).map(|i| format!("\"{i}\"")).collect();
        assert_eq!(read_items(&format!("[{}!", keys.join(","))).unwrap().unwrap_err().len(), 1);
        let large = format!(r#"["a", {{"name": "b", "params": {{"x": [{}!"#, r#"{"a":0},"#.repeat(MAX_VALUES));
        assert_eq!(
            told(&read_items(&large).unwrap().unwrap_err()),
            ["[1]: found one of more than 10000 values, allowed is a key, or an object with the fields of a resource"]
        );
    }

    #[test]
    fn a_full_list_is_checked_in_a_few_seconds() {
        let many: Vec<_> =
            (0..MAX_SOURCE_ITEMS).map(|i| json!({ "name": format!("host-{i}"), "labels": { "zone": "a" } })).collect();
        let text = json!(many).to_string();
        let start = Instant::now();
        assert_eq!(read_items(&text).unwrap().unwrap().len(), MAX_SOURCE_ITEMS);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
}
