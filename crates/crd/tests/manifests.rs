//! The list of valid and invalid manifests, judged as files are. Its form is described beside it.

use std::{collections::HashSet, fs, path::Path};

use redis_allocator_crd::{Kind, Object, Violation, validate, validate_update};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    case: String,
    manifest: Value,
    old: Option<Value>,
    #[serde(default)]
    violations: Vec<Expected>,
    server: Option<Server>,
    why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    path: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Server {
    Accepts,
}

fn cases() -> Vec<Entry> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/manifests");
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            let list: Vec<Entry> =
                serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            cases.extend(list);
        }
    }
    cases
}

fn judge(manifest: &Value, old: Option<&Value>) -> Result<Object, Vec<Violation>> {
    let text = |field: &str| manifest[field].as_str();
    let kind = Kind::from_type_meta(text("apiVersion"), text("kind")).map_err(|violation| vec![violation])?;
    match old {
        None => validate(kind, manifest),
        Some(old) => validate_update(&validate(kind, old).unwrap(), manifest),
    }
}

#[test]
fn every_manifest_gets_its_verdict() {
    let mut wrong = Vec::new();
    for Entry { case, manifest, old, violations: expected, .. } in cases() {
        let found = judge(&manifest, old.as_ref()).err().unwrap_or_default();
        let as_expected = found.len() == expected.len()
            && found.iter().zip(&expected).all(|(found, expected)| {
                found.path.to_string() == expected.path && found.to_string().contains(&expected.message)
            });
        if !as_expected {
            let found: Vec<_> = found.iter().map(|violation| format!("\n    {violation}")).collect();
            let expected: Vec<_> = expected.iter().map(|e| format!("\n    {}: … {}", e.path, e.message)).collect();
            wrong.push(format!("{case}\n  found{}\n  expected{}", found.concat(), expected.concat()));
        }
    }
    assert!(wrong.is_empty(), "{} cases went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_list_is_long_and_well_formed() {
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    assert!(cases.iter().filter(|case| case.violations.is_empty()).count() >= 20);
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.case), "{:?} is there twice", case.case);
        assert_eq!(case.server.is_some(), case.why.is_some(), "{:?}: a difference needs its reason", case.case);
        assert!(case.server.is_none() || !case.violations.is_empty(), "{:?}: only a refusal can differ", case.case);
    }
}

#[test]
fn a_valid_object_is_valid_again_when_written_back() {
    for Entry { case, manifest, .. } in cases() {
        if let Ok(object) = judge(&manifest, None) {
            let written = match &object {
                Object::ResourcePool(pool) => serde_json::to_value(pool).unwrap(),
                Object::SoftBinding(binding) => serde_json::to_value(binding).unwrap(),
            };
            assert_eq!(judge(&written, None).as_ref(), Ok(&object), "{case}");
        }
    }
}
