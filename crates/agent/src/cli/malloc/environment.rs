//! What a command is told about its lease, in environment variables. It must not know how the lease was taken.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokio::process::Command;

/// Start of every variable's name.
const PREFIX: &str = "REDIS_ALLOCATOR_";
/// Start of the name of a variable with a single parameter.
const PARAM: &str = "REDIS_ALLOCATOR_PARAM_";

/// The facts of a lease that its holder needs.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) pool: &'a str,
    pub(super) key: &'a str,
    pub(super) params: &'a Map<String, Value>,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) owner: &'a str,
    pub(super) binding: Option<&'a str>,
    pub(super) fencing_token: u64,
    /// In milliseconds; absent for a lease that never expires.
    pub(super) ttl_ms: Option<u128>,
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
        let mut variables: BTreeMap<String, Option<String>> = [
            ("POOL", Some(self.pool.to_owned())),
            ("KEY", Some(self.key.to_owned())),
            ("PARAMS", Some(Value::Object(self.params.clone()).to_string())),
            ("LABELS", Some(serde_json::json!(self.labels).to_string())),
            ("OWNER", Some(self.owner.to_owned())),
            ("BINDING", self.binding.map(str::to_owned)),
            ("FENCING_TOKEN", Some(self.fencing_token.to_string())),
            ("TTL_MS", self.ttl_ms.map(|ttl| ttl.to_string())),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{PREFIX}{name}"), value))
        .collect();
        let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
        for name in self.params.keys() {
            *wanted.entry(variable_name(name)).or_default() += 1;
        }
        for (name, value) in self.params {
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
        let facts = Facts {
            pool: "default/gpus",
            key: "gpu-0",
            params: params.as_object().unwrap(),
            labels: &labels,
            owner: "me",
            binding: None,
            fencing_token: 1_763_600_000_123_456,
            ttl_ms: Some(120_000),
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
}
