//! What neither schema nor CEL can say within their means: keys of maps, lengths in bytes, what one part of an object
//! demands of another.
//!
//! Looks at what is well formed and passes over the rest, which is reported already.

use std::sync::LazyLock;

use regex::Regex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::collisions;
use crate::{
    kind::Kind,
    pool::{HealthCheck, ResourceRange},
    template::TargetTemplate,
    violation::{FieldPath, Report, Violation, describe},
};

/// Longest resource key and binding name, in bytes; the schema counts characters.
const MAX_KEY_BYTES: usize = 512;
/// Longest params, in bytes of compact JSON.
const MAX_PARAMS_BYTES: usize = 16 * 1024;
const MAX_LABEL_KEY_NAME: usize = 63;
const MAX_LABEL_KEY_PREFIX: usize = 253;

/// Reports what only Rust can find.
pub(super) fn check(kind: Kind, object: &Value, report: &mut Report) {
    let path = FieldPath::default().join("spec");
    let Some(spec) = object.get("spec") else { return };
    match kind {
        Kind::ResourcePool => pool(spec, &path, report),
        Kind::SoftBinding => {
            for field in ["bindingName", "resourceName"] {
                key_length(spec.get(field), || path.join(field), report);
            }
        }
    }
}

fn pool(spec: &Value, path: &FieldPath, report: &mut Report) {
    let (resources, ranges) = (path.join("resources"), path.join("ranges"));
    let list = |name: &str| spec.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, entry) in list("resources").iter().enumerate() {
        resource(entry, &resources.join(index), report);
    }
    let mut typed = Vec::new();
    for (index, range) in list("ranges").iter().enumerate() {
        facts(range, || ranges.join(index), report);
        if let Some(range) = read::<ResourceRange>(range) {
            longest_key(&range, || ranges.join(index).join("template"), report);
            typed.push((index, range));
        }
    }
    let names: Vec<_> = list("resources")
        .iter()
        .enumerate()
        .filter_map(|(index, resource)| Some((index, resource.get("name")?.as_str()?)))
        .collect();
    collisions::check(&names, &typed, path, report);
    if let Some(check) = spec.get("healthCheck").and_then(read::<HealthCheck>) {
        placeholders(&check, list("resources"), list("ranges"), &path.join("healthCheck"), report);
    }
}

/// One resource, wherever it is listed.
pub(super) fn resource(resource: &Value, path: &FieldPath, report: &mut Report) {
    key_length(resource.get("name"), || path.join("name"), report);
    facts(resource, || path.clone(), report);
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

fn key_length(key: Option<&Value>, path: impl FnOnce() -> FieldPath, report: &mut Report) {
    if key.and_then(Value::as_str).is_some_and(|key| key.len() > MAX_KEY_BYTES && key.chars().count() <= MAX_KEY_BYTES)
    {
        report.add(|| Violation::new(path(), describe(key), format!("at most {MAX_KEY_BYTES} bytes of UTF-8")));
    }
}

fn longest_key(range: &ResourceRange, path: impl FnOnce() -> FieldPath, report: &mut Report) {
    let Some(last) = range.len().checked_sub(1) else { return };
    let key = range.template.key(range.first() + last);
    if key.len() > MAX_KEY_BYTES {
        report.add(|| {
            let found = format!("a template of keys of up to {} bytes", key.len());
            Violation::new(path(), found, format!("keys of at most {MAX_KEY_BYTES} bytes of UTF-8"))
        });
    }
}

/// The labels and params of a resource or range.
fn facts(value: &Value, path: impl Fn() -> FieldPath, report: &mut Report) {
    for key in value.get("labels").and_then(Value::as_object).into_iter().flat_map(Map::keys) {
        if !is_label_key(key) {
            report.add(|| {
                let found = format!("the key {}", describe(Some(&Value::from(key.as_str()))));
                let allowed = "a label key: letters, digits, -, _ and ., beginning and ending with a letter or digit, at most 63 \
                               characters, optionally after a DNS-1123 subdomain and a slash";
                Violation::new(path().join("labels").join(key.as_str()), found, allowed)
            });
        }
    }
    if let Some(params) = value.get("params") {
        let size = params.to_string().len();
        if size > MAX_PARAMS_BYTES {
            report.add(|| {
                let found = format!("{size} bytes of JSON");
                Violation::new(path().join("params"), found, format!("at most {MAX_PARAMS_BYTES} bytes of JSON"))
            });
        }
    }
}

/// A label key as in Kubernetes: a name of at most 63 characters, optionally after a DNS subdomain and a slash.
fn is_label_key(key: &str) -> bool {
    static NAME: LazyLock<Regex> = LazyLock::new(|| constant("^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"));
    static PREFIX: LazyLock<Regex> =
        LazyLock::new(|| constant(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(|prefix| prefix.len() <= MAX_LABEL_KEY_PREFIX && PREFIX.is_match(prefix))
        && name.len() <= MAX_LABEL_KEY_NAME
        && NAME.is_match(name)
}

fn constant(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern that the tests have compiled")
}

/// Every resource has the params that the probe's targets ask for; of each target the first that lacks one is reported.
fn placeholders(check: &HealthCheck, resources: &[Value], ranges: &[Value], path: &FieldPath, report: &mut Report) {
    let http = check.http_get.iter().map(|http| (path.join("httpGet").join("url"), &http.url));
    let tcp = check.tcp_socket.iter().map(|tcp| (path.join("tcpSocket").join("address"), &tcp.address));
    let exec = check.exec.iter().flat_map(|exec| exec.command.iter().enumerate());
    let exec = exec.map(|(index, argument)| (path.join("exec").join("command").join(index), argument));
    let mut targets: Vec<(FieldPath, &TargetTemplate)> = http.chain(tcp).chain(exec).collect();
    targets.retain(|(_, target)| target.has_params());
    let none = Map::new();
    for (path, target) in targets {
        let lacking = resources.iter().chain(ranges).find_map(|resource| {
            let params = resource.get("params").and_then(Value::as_object).unwrap_or(&none);
            target.render(resource.get("name")?.as_str()?, params).err()
        });
        if let Some(missing) = lacking {
            report.add(|| {
                let found = format!("{{params.{}}}, which {:?} does not have", missing.param, missing.resource);
                Violation::new(path, found, "params that every resource and range has as a string, number or boolean")
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_are_those_of_kubernetes() {
        for key in ["a", "zone", "Zone_1.x", "example.com/zone", "a.b-c.d/E"] {
            assert!(is_label_key(key), "{key}");
        }
        let long = "a".repeat(64);
        for key in ["", "/", "a/", "/a", "a/b/c", "-a", "a-", "a=b", "a\0", "Example.com/a", "é", long.as_str()] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
