//! `docs/manifests.md`, written from the schemas that API servers get, and the check that it is not older than they are.
//!
//! `UPDATE_DOCS=1 cargo test -p redis-allocator-crd --test reference` writes it anew.

use std::{fmt::Write as _, fs, path::Path};

use redis_allocator_crd::{API_VERSION, Kind, crds};
use serde_json::Value;

const COMMAND: &str = "UPDATE_DOCS=1 cargo test -p redis-allocator-crd --test reference";

const INTRODUCTION: &str = "\
Every field of every kind. What the words mean is in [Concepts](concepts.md); manifests that work as they are, with
comments, are in [examples/pools](../examples/pools).

## In general

A manifest is YAML 1.2 (JSON is YAML), one or more documents to a file. `redis-allocator validate PATH…` checks files
without a server, and reports every error with its line and column. The agent checks the same, and keeps what a file
declared last without an error. Unknown fields, duplicate keys and misspelt kinds are errors.

| field | type | meaning |
|---|---|---|
| `apiVersion` | string | always `redis-allocator.dev/v1alpha1` |
| `kind` | string | `ResourcePool` or `SoftBinding` |
| `metadata.name` | string | a DNS-1123 label: 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit |
| `metadata.namespace` | string | a DNS-1123 label. Default: `default` |
| `spec` | object | see below |
| `status` | object | written by the agent; in a file it is ignored |

Kind, namespace and name together are unique over all files. Other fields of `metadata`, such as `labels`, may be there
and mean nothing to the agent.

A *duration* is a Gateway API duration (GEP-2257): one to four numbers of at most five digits, each followed by `h`, `m`,
`s` or `ms`, such as `1h30m` or `500ms`.

A *list by KEY* has each KEY at most once.
";

const EXAMPLE_POOL: &str = "\
```yaml
apiVersion: redis-allocator.dev/v1alpha1
kind: ResourcePool
metadata: {name: gpus, namespace: lab}
spec:
  resources:
    - {name: gpu-0, priority: 10, labels: {zone: a}, params: {index: 0}}
  ranges:
    - {name: hosts, template: \"10.0.0.{}:8000\", from: 1, to: 254}
  lease: {defaultTTL: 2m, maxTTL: 1h}
  healthCheck:
    tcpSocket: {address: \"{name}\"}
```
";

const EXAMPLE_BINDING: &str = "\
```yaml
apiVersion: redis-allocator.dev/v1alpha1
kind: SoftBinding
metadata: {name: trainer-1, namespace: lab}
spec:
  poolRef: {name: gpus}
  resourceName: gpu-0
```
";

const BEYOND: &str = "\
## What else is checked

These rules concern several fields or objects at once.

- No two resources and ranges of a pool make the same key.
- Keys are at most 512 bytes, those that a range makes included.
- The keys of `labels` are as in Kubernetes: letters, digits, `-`, `_` and `.`, beginning and ending with a letter or
  digit, at most 63 characters, optionally after a DNS-1123 subdomain and a slash.
- `params` of one resource are at most 16 KiB of JSON.
- Every resource and range has the params that the health check's `{params.KEY}` ask for.
- Two bindings of a pool do not share a `bindingName`, and a resource has at most one `Required` binding. Of two that
  contradict each other the later one is refused: conditions `DuplicateBindingName` and `BindingConflict`.
- A binding whose pool or resource is not there is no error. It waits: conditions `PoolNotFound` and `ResourceNotFound`.
- A list that a source brings follows the same rules as `spec.resources`, but for its length: at most 100,000 entries and
  8 MiB. One entry that breaks a rule refuses the whole list. See [Discovery](discovery.md).
- `file` sources are refused from Kubernetes, and `kubernetes` sources do nothing without it.
- `exec` probes need an agent that was started with `--allow-exec`; probes of link-local addresses, and `http` sources
  there, one with `--allow-link-local`.

A file is at most 16 MiB, nests at most 32 deep, and its aliases add at most 500,000 nodes. The conditions that `status`
has are listed in [Conditions](operations.md#conditions).
";

/// What each choice of an enumeration means: a schema has the names alone.
const CHOICES: &[(&str, &str, &str)] = &[
    ("mode", "Exclusive", "one holder at a time"),
    ("mode", "Shared", "many holders at once, in turn; at most `maxHolders`"),
    (
        "format",
        "Lines",
        "one key a line, without the blanks around it; blank lines and those that begin with `#` say nothing",
    ),
    ("format", "Json", "a JSON list of keys, or of objects with the fields of `spec.resources`"),
    ("operator", "In", "the label has one of the values"),
    ("operator", "NotIn", "the label has none of the values, or is not there"),
    ("operator", "Exists", "the label is there"),
    ("operator", "DoesNotExist", "the label is not there"),
    ("state", "Pending", "it has not answered yet"),
    ("state", "Fresh", "the pool has what it brought"),
    ("state", "Failing", "it can't be asked, or its answer can't be used; the pool stays as it was"),
    ("state", "HeldBack", "it brought so much less than before that the pool stays as it was"),
    ("order", "LeastRecentlyUsed", "the one that has been free for longest"),
    ("order", "Sequential", "the one declared first: `resources`, then `ranges`, then `sources`"),
    ("order", "Random", "any, each as likely"),
    ("removalPolicy", "Drain", "it stays with its holder until the lease ends"),
    ("removalPolicy", "Revoke", "its lease ends at once; the holder hears of it at its next renewal"),
    ("deletionPolicy", "Drain", "nothing more is granted, and the pool goes when its last lease has ended"),
    ("deletionPolicy", "Revoke", "the pool goes at once, leases included"),
    ("deletionPolicy", "Orphan", "the pool stays, unmanaged"),
    (
        "policy",
        "Preferred",
        "the name gets the resource if it is free, otherwise another one; others may have it meanwhile",
    ),
    ("policy", "Required", "the name gets this resource or none, and nobody else gets it"),
];

fn schema(kind: Kind) -> Value {
    let definition = crds().into_iter().find(|definition| definition.spec.names.kind == kind.as_str()).unwrap();
    let schema = definition.spec.versions.into_iter().find_map(|version| version.schema?.open_api_v3_schema);
    serde_json::to_value(schema.unwrap()).unwrap()
}

fn reference() -> String {
    let mut page =
        format!("<!-- Generated from the schemas by `{COMMAND}`: do not edit. -->\n\n# Manifest reference\n\n");
    page.push_str(INTRODUCTION);
    for kind in Kind::ALL {
        let schema = schema(kind);
        write!(page, "\n## {kind}\n\n{}\n\n", text(&schema["description"])).unwrap();
        page.push_str(if kind == Kind::ResourcePool { EXAMPLE_POOL } else { EXAMPLE_BINDING });
        for part in ["spec", "status"] {
            object(&mut page, kind, part, &schema["properties"][part]);
        }
    }
    write!(page, "\n{BEYOND}").unwrap();
    page
}

/// A section for an object, and one for each object in it.
fn object(page: &mut String, kind: Kind, path: &str, schema: &Value) {
    write!(page, "\n### {kind} {path}\n\n{}\n\n", text(&schema["description"])).unwrap();
    page.push_str("| field | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
    let properties = schema["properties"].as_object().unwrap();
    let is_required = |name: &str| schema["required"].as_array().into_iter().flatten().any(|it| it == name);
    for (name, field) in properties {
        let default = match field.get("default") {
            Some(default) if default.is_object() => "see below".to_owned(),
            Some(default) => format!("`{}`", default.as_str().map_or_else(|| default.to_string(), str::to_owned)),
            None if is_required(name) => "**required**".to_owned(),
            None => "–".to_owned(),
        };
        let cells = [format!("`{name}`"), type_of(field), default, allowed(field), text(&field["description"])];
        writeln!(page, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | ")).unwrap();
    }
    for rule in rules(schema) {
        let field = rule["fieldPath"].as_str().unwrap_or_default().trim_start_matches('.');
        let subject = if field.is_empty() { "The object".to_owned() } else { format!("`{field}`") };
        write!(page, "\n{subject} {}.\n", text(&rule["message"])).unwrap();
    }
    for (name, field) in properties {
        choices(page, name, field);
    }
    for (name, field) in properties {
        let (path, inner) = match field.get("items") {
            Some(items) => (format!("{path}.{name}[]"), items),
            None => (format!("{path}.{name}"), field),
        };
        // Kubernetes' own type, which operations.md tells with all its reasons.
        if inner["properties"].is_object() && name != "conditions" {
            object(page, kind, &path, inner);
        }
    }
}

fn type_of(field: &Value) -> String {
    match field["type"].as_str().unwrap() {
        "array" => {
            let items = type_of(&field["items"]);
            match field["x-kubernetes-list-map-keys"].as_array().and_then(|keys| keys.first()) {
                Some(key) => format!("list by `{}`", key.as_str().unwrap()),
                None => match items.strip_prefix("list ") {
                    Some(of) => format!("list of lists {of}"),
                    None => format!("list of {items}s"),
                },
            }
        }
        "string" if is_duration(field) => "duration".to_owned(),
        "string" if field["format"] == "date-time" => "time".to_owned(),
        "object" if field["additionalProperties"].is_object() => {
            format!("map of {}s", type_of(&field["additionalProperties"]))
        }
        other => other.to_owned(),
    }
}

fn is_duration(field: &Value) -> bool {
    field["pattern"] == "^([0-9]{1,5}(h|m|s|ms)){1,4}$"
}

fn allowed(field: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(choices) = field["enum"].as_array() {
        parts.push(
            choices.iter().map(|choice| format!("`{}`", choice.as_str().unwrap())).collect::<Vec<_>>().join(", "),
        );
    }
    let bounds = |low: &str, high: &str| (field[low].as_f64(), field[high].as_f64());
    let range = |(low, high): (Option<f64>, Option<f64>), unit: &str| match (low, high) {
        (Some(low), Some(high)) => Some(format!("{low} to {high}{unit}")),
        (None, Some(high)) => Some(format!("at most {high}{unit}")),
        (Some(low), None) => Some(format!("at least {low}{unit}")),
        (None, None) => None,
    };
    parts.extend(range(bounds("minimum", "maximum"), ""));
    parts.extend(range(bounds("minItems", "maxItems"), " entries"));
    parts.extend(range((None, field["maxProperties"].as_f64()), " keys"));
    if !is_duration(field) && field["enum"].is_null() {
        parts.extend(range(bounds("minLength", "maxLength"), " characters"));
    }
    if let Some(values) = field["additionalProperties"].as_object() {
        parts.push(format!("values: {}", allowed(&Value::Object(values.clone()))));
    }
    // An object's own rules are told in its section.
    if !field["properties"].is_object() {
        parts.extend(rules(field).map(|rule| text(&rule["message"]).trim_start_matches("must be ").to_owned()));
    }
    if parts.is_empty() { "–".to_owned() } else { parts.join("; ") }
}

fn choices(page: &mut String, name: &str, field: &Value) {
    let Some(found) = field["enum"].as_array() else { return };
    let found: Vec<_> = found.iter().map(|choice| choice.as_str().unwrap()).collect();
    let known: Vec<_> = CHOICES.iter().filter(|(of, _, _)| *of == name).collect();
    let mut named: Vec<_> = known.iter().map(|(_, choice, _)| *choice).collect();
    let mut sorted = found.clone();
    named.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(sorted, named, "CHOICES does not say what each choice of {name} means");
    write!(page, "\n`{name}`:\n\n").unwrap();
    for (_, choice, meaning) in known {
        writeln!(page, "- `{choice}`: {meaning}").unwrap();
    }
}

fn rules(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["x-kubernetes-validations"].as_array().into_iter().flatten()
}

/// A description in one line, its template placeholders left as they are.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_manifest_reference_says_what_the_schemas_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/manifests.md");
    let generated = reference();
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, generated).unwrap();
        return;
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let mut lines = written.lines().zip(generated.lines()).zip(1..);
    if let Some(((found, expected), line)) = lines.find(|((found, expected), _)| found != expected) {
        panic!("docs/manifests.md is stale in line {line}: run {COMMAND}\n  found    {found}\n  expected {expected}");
    }
    assert_eq!(written, generated, "docs/manifests.md is stale: run {COMMAND}");
    assert!(written.contains(API_VERSION));
}
