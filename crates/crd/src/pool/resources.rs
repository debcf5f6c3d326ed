//! What a pool is made of: single resources, and ranges that stand for many.
//!
//! Expands a range lazily; whether keys of several ranges collide is asked elsewhere.

#![allow(unreachable_pub, reason = "the derives copy each type into a function")]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::template::KeyTemplate;

/// One resource.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// The resource's key, unique in its pool: 1 to 512 bytes without NUL.
    #[schemars(length(min = 1, max = 512), regex(pattern = crate::patterns::KEY_PATTERN))]
    pub name: String,

    /// Higher is granted first. 0 to 1000.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub priority: i32,

    /// What callers may select by. Keys as in Kubernetes, with an optional prefix; at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub labels: BTreeMap<String, String>,

    /// Any facts that a holder needs to use the resource, handed over with the lease; at most 64 keys and 16 KiB of JSON.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "params")]
    pub params: Map<String, Value>,
}

/// Resources whose keys differ by a number.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.to >= self.from").message("must be at least from").field_path(".to"))]
#[x_kube(validation = Rule::new("self.to - self.from < 1000000")
    .message("must be less than from + 1,000,000: one range stands for at most 1,000,000 resources").field_path(".to"))]
pub struct ResourceRange {
    /// The range's name, unique in its pool: a DNS-1123 label.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::patterns::LABEL_PATTERN))]
    pub name: String,

    /// The keys, with one {} where the number goes, or {:03} for a number zero-padded to three digits.
    pub template: KeyTemplate,

    /// The first number. 0 to 9007199254740991.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub from: i64,

    /// The last number, itself included. 0 to 9007199254740991.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub to: i64,

    /// Higher is granted first. 0 to 1000.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub priority: i32,

    /// What callers may select by; every resource of the range has them. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels")]
    pub labels: BTreeMap<String, String>,

    /// Facts handed over with a lease; every resource of the range has them. At most 64 keys and 16 KiB of JSON.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "params")]
    pub params: Map<String, Value>,
}

impl ResourceRange {
    /// The keys in the order of their numbers, made one at a time.
    pub fn keys(&self) -> RangeKeys<'_> {
        RangeKeys { template: &self.template, next: self.first(), left: self.len() }
    }

    /// How many resources the range stands for. 0 when `to` is below `from`, which validation refuses.
    pub fn len(&self) -> u64 {
        u64::try_from(self.to).map_or(0, |to| (to + 1).saturating_sub(self.first()))
    }

    /// Whether the range stands for nothing, which validation refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is one of the range's keys.
    pub fn contains(&self, key: &str) -> bool {
        self.template.number(key).is_some_and(|number| number >= self.first() && number - self.first() < self.len())
    }

    /// The first number.
    pub(crate) fn first(&self) -> u64 {
        u64::try_from(self.from).unwrap_or(0)
    }
}

/// The keys of a [`ResourceRange`].
#[derive(Debug, Clone)]
pub struct RangeKeys<'a> {
    template: &'a KeyTemplate,
    next: u64,
    left: u64,
}

impl Iterator for RangeKeys<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.left = self.left.checked_sub(1)?;
        let key = self.template.key(self.next);
        self.next += 1;
        Some(key)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left);
        (left.unwrap_or(usize::MAX), left.ok())
    }
}

/// Kubernetes' bounds for label values; those for keys are beyond a schema and checked apart.
fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "description": "A label's value, as in Kubernetes: at most 63 characters.",
            "type": "string", "maxLength": 63, "pattern": crate::patterns::LABEL_VALUE_PATTERN,
        },
    })
}

fn params(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "maxProperties": 64, "x-kubernetes-preserve-unknown-fields": true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(template: &str, from: i64, to: i64) -> ResourceRange {
        ResourceRange {
            name: "r".to_owned(),
            template: template.to_owned().try_into().unwrap(),
            from,
            to,
            priority: 0,
            labels: BTreeMap::new(),
            params: Map::new(),
        }
    }

    #[test]
    fn a_range_yields_its_keys_first_and_last_included() {
        let range = range("gpu-{:02}", 9, 11);
        assert_eq!(range.keys().collect::<Vec<_>>(), ["gpu-09", "gpu-10", "gpu-11"]);
        assert_eq!((range.len(), range.keys().size_hint()), (3, (3, Some(3))));
    }

    #[test]
    fn a_huge_range_costs_nothing_until_its_keys_are_taken() {
        let range = range("{}", 0, i64::MAX);
        assert_eq!(range.len(), 1 << 63);
        assert_eq!(range.keys().take(2).collect::<Vec<_>>(), ["0", "1"]);
    }

    #[test]
    fn a_backward_or_negative_range_is_empty() {
        for (from, to) in [(2, 1), (0, -1), (-3, -2)] {
            assert_eq!(range("{}", from, to).keys().count(), 0);
        }
    }

    #[test]
    fn a_range_contains_what_it_yields_and_nothing_beside() {
        let range = range("h{:02}:80", 5, 100);
        assert!(range.keys().all(|key| range.contains(&key)));
        for key in ["h04:80", "h101:80", "h5:80", "h05:8080", "h:80", ""] {
            assert!(!range.contains(key), "{key}");
        }
    }
}
