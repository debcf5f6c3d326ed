//! What a command is told about its leases, in environment variables. It must not know how they were taken.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::process::Command;

/// Start of every variable's name.
const PREFIX: &str = "REDIS_ALLOCATOR_";
/// Start of the name of a variable with a single parameter.
const PARAM: &str = "REDIS_ALLOCATOR_PARAM_";

/// The facts of a lease that its holder needs.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Held<'a> {
    pub(super) key: &'a str,
    pub(super) params: &'a Map<String, Value>,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) fencing_token: u64,
}

/// All that a command is told: what it holds, and what is the same of all of it.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) pool: &'a str,
    pub(super) owner: &'a str,
    pub(super) binding: Option<&'a str>,
    pub(super) session: Option<&'a str>,
    /// In milliseconds; absent for leases that never expire.
    pub(super) ttl_ms: Option<u128>,
    pub(super) first: Held<'a>,
    /// The others, if it asked for several.
    pub(super) rest: Vec<Held<'a>>,
}

impl Facts<'_> {
    /// Adds the variables to a command, in place of those that an outer `malloc` left.
    pub(super) fn tell(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(PARAM) {
                command.env_remove(name);
            }
        }
        for (name, value) in self.variables() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }

    fn variables(&self) -> BTreeMap<String, Option<String>> {
        let Held { key, params, labels, fencing_token } = self.first;
        let all: Vec<_> = std::iter::once(&self.first).chain(&self.rest).collect();
        let keys: Vec<_> = all.iter().map(|held| held.key).collect();
        // Two lines would be taken for two keys; LEASES tells them apart.
        let keys = (!keys.iter().any(|key| key.contains('\n'))).then(|| keys.join("\n"));
        let mut variables: BTreeMap<String, Option<String>> = [
            ("POOL", Some(self.pool.to_owned())),
            ("KEY", Some(key.to_owned())),
            ("PARAMS", Some(Value::Object(params.clone()).to_string())),
            ("LABELS", Some(serde_json::json!(labels).to_string())),
            ("OWNER", Some(self.owner.to_owned())),
            ("BINDING", self.binding.map(str::to_owned)),
            ("SESSION", self.session.map(str::to_owned)),
            ("FENCING_TOKEN", Some(fencing_token.to_string())),
            ("COUNT", Some(all.len().to_string())),
            ("KEYS", keys),
            ("LEASES", Some(serde_json::json!(all).to_string())),
            ("TTL_MS", self.ttl_ms.map(|ttl| ttl.to_string())),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{PREFIX}{name}"), value))
        .collect();
        let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
        for name in params.keys() {
            *wanted.entry(variable_name(name)).or_default() += 1;
        }
        for (name, value) in params {
            let name = variable_name(name);
            // Either of two params would be taken for the other; PARAMS tells them apart.
            if wanted.get(&name).is_some_and(|times| *times > 1) {
                continue;
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // No variable can hold a NUL; PARAMS has it, escaped.
            if !text.contains('\0') {
                variables.insert(format!("{PARAM}{name}"), Some(text));
            }
        }
        variables
    }
}

/// Upper case, with `_` for whatever a shell would not take.
fn variable_name(param: &str) -> String {
    param.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_its_variable() {
        let params =
            serde_json::json!({"gpu-index": 1, "host": "a b", "nested": {"x": [1]}, "nul": "\0", "a-b": 1, "a_b": 2});
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let first = Held {
            key: "gpu-0",
            params: params.as_object().unwrap(),
            labels: &labels,
            fencing_token: 1_763_600_000_123_456,
        };
        let facts = Facts {
            pool: "default/gpus",
            owner: "me",
            binding: None,
            session: None,
            ttl_ms: Some(120_000),
            first,
            rest: Vec::new(),
        };
        let variables = facts.variables();
        let found = |name: &str| variables.get(name).cloned().flatten();
        assert_eq!(found("REDIS_ALLOCATOR_POOL").unwrap(), "default/gpus");
        assert_eq!(found("REDIS_ALLOCATOR_FENCING_TOKEN").unwrap(), "1763600000123456");
        assert_eq!(found("REDIS_ALLOCATOR_TTL_MS").unwrap(), "120000");
        assert_eq!(found("REDIS_ALLOCATOR_LABELS").unwrap(), r#"{"zone":"a"}"#);
        assert_eq!(found("REDIS_ALLOCATOR_PARAM_GPU_INDEX").unwrap(), "1");
        assert_eq!(found("REDIS_ALLOCATOR_PARAM_HOST").unwrap(), "a b");
        assert_eq!(found("REDIS_ALLOCATOR_PARAM_NESTED").unwrap(), r#"{"x":[1]}"#);
        let all: Value = serde_json::from_str(&found("REDIS_ALLOCATOR_PARAMS").unwrap()).unwrap();
        assert_eq!(all, params);
        assert_eq!(variables.get("REDIS_ALLOCATOR_BINDING"), Some(&None), "an outer one is removed");
        assert!(!variables.contains_key("REDIS_ALLOCATOR_PARAM_NUL"));
        assert!(!variables.contains_key("REDIS_ALLOCATOR_PARAM_A_B"), "it would be one of two");
    }
    #[test]
    fn several_leases_are_told_in_lists() {
        let (params, labels) = (Map::new(), BTreeMap::new());
        let held = |key, fencing_token| Held { key, params: &params, labels: &labels, fencing_token };
        let mut facts = Facts {
            pool: "default/gpus",
            owner: "me",
            binding: None,
            session: Some("trainer#00c0ffee"),
            ttl_ms: None,
            first: held("gpu-0", 7),
            rest: vec![held("gpu 1", 8)],
        };
        let found = |facts: &Facts<'_>, name: &str| facts.variables().remove(name).flatten();
        assert_eq!(found(&facts, "REDIS_ALLOCATOR_COUNT").unwrap(), "2");
        assert_eq!(found(&facts, "REDIS_ALLOCATOR_KEY").unwrap(), "gpu-0");
        assert_eq!(found(&facts, "REDIS_ALLOCATOR_KEYS").unwrap(), "gpu-0\ngpu 1");
        assert_eq!(found(&facts, "REDIS_ALLOCATOR_SESSION").unwrap(), "trainer#00c0ffee");
        let leases: Value = serde_json::from_str(&found(&facts, "REDIS_ALLOCATOR_LEASES").unwrap()).unwrap();
        let lease = |key, token| serde_json::json!({"key": key, "params": {}, "labels": {}, "fencingToken": token});
        assert_eq!(leases, serde_json::json!([lease("gpu-0", 7), lease("gpu 1", 8)]));

        facts.rest = vec![held("two\nlines", 9)];
        assert_eq!(found(&facts, "REDIS_ALLOCATOR_KEYS"), None, "it would be three");
    }
}
