//! From a file's text to the objects in it, or to everything that is wrong with it.
//!
//! Looks at one file alone: what several of them say together is judged elsewhere.

use std::{path::Path, sync::Arc};

use redis_allocator_crd::{Kind, Object, Segment, Violation, validate};
use serde_json::Value;

use super::{
    report::{Location, Problem},
    yaml::{self, Document, Step},
};

/// A valid object and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Declared {
    pub(crate) object: Arc<Object>,
    pub(crate) location: Location,
}

/// The objects of a file.
///
/// # Errors
/// All that is wrong in any of its documents, in the order of the lines.
pub(crate) fn load(file: &Arc<Path>, bytes: &[u8]) -> Result<Vec<Declared>, Vec<Problem>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => return Err(vec![not_utf8(file, bytes, error.valid_up_to())]),
    };
    let mut problems = Vec::new();
    let mut declared: Vec<Declared> = Vec::new();
    let shown: Arc<str> = text.into();
    match yaml::parse(text) {
        Err(error) => problems.push(from_yaml(file, error)),
        Ok(documents) => {
            for document in documents {
                match object(file, &document) {
                    Ok(object) => {
                        let location = Location { file: Arc::clone(file), at: document.position() };
                        declared.push(Declared { object: Arc::new(object), location });
                    }
                    Err(found) => problems.extend(found),
                }
            }
        }
    }
    if problems.is_empty() {
        return Ok(declared);
    }
    problems.sort_by_key(|problem| problem.at);
    for problem in &mut problems {
        problem.text = Some(Arc::clone(&shown));
    }
    Err(problems)
}

fn from_yaml(file: &Arc<Path>, error: yaml::YamlError) -> Problem {
    let here = |at| Location { file: Arc::clone(file), at };
    Problem { also: error.also.map(|(at, what)| (here(at), what)), ..Problem::at(&here(error.at), error.message) }
}

fn object(file: &Arc<Path>, document: &Document) -> Result<Object, Vec<Problem>> {
    let mut problems: Vec<Problem> =
        document.duplicate_keys().into_iter().map(|error| from_yaml(file, error)).collect();
    let json = document.to_json();
    let located = |violation: &Violation| {
        let at = document.locate(violation.path.0.iter().map(step), is_about_the_name(violation));
        let mut text = violation.clone();
        let help = text.hint.take();
        Problem { help, ..Problem::at(&Location { file: Arc::clone(file), at }, text.to_string()) }
    };
    let text = |field: &str| json.get(field).and_then(Value::as_str);
    let found = match Kind::from_type_meta(text("apiVersion"), text("kind")) {
        Err(violation) => Err(vec![located(&violation)]),
        Ok(kind) => validate(kind, &json).map_err(|violations| violations.iter().map(located).collect()),
    };
    match found {
        Ok(object) if problems.is_empty() => Ok(object),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// A field that should not be there is wrong by its name, everything else by its value.
fn is_about_the_name(violation: &Violation) -> bool {
    violation.found == "an unknown field"
}

fn step(segment: &Segment) -> Step<'_> {
    match segment {
        Segment::Key(key) => Step::Key(key),
        Segment::Index(index) => Step::Index(*index),
    }
}

fn not_utf8(file: &Arc<Path>, bytes: &[u8], offset: usize) -> Problem {
    let before = &bytes[..offset];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let at = yaml::Position {
        line: count(before.split(|&byte| byte == b'\n').count()),
        column: count(String::from_utf8_lossy(&before[line_start..]).chars().count() + 1),
    };
    let found = bytes.get(offset).copied().unwrap_or_default();
    Problem::at(
        &Location { file: Arc::clone(file), at },
        format!("found the byte 0x{found:02x} at offset {offset}, allowed is UTF-8: save the file in that encoding"),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HEAD: &str = "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {name: a}\n";

    fn load_text(bytes: &[u8]) -> Result<Vec<Declared>, Vec<Problem>> {
        load(&Path::new("pools.yaml").into(), bytes)
    }

    fn lines(bytes: &[u8]) -> Vec<String> {
        load_text(bytes).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_objects_of_all_documents_come_in_order() {
        let text = format!("# pools\n{HEAD}spec: {{}}\n---\n{HEAD}spec: {{}}\n").replacen(
            "{name: a}",
            "{name: b, namespace: lab}",
            2,
        );
        let text = text.replacen("{name: b, namespace: lab}", "{name: a}", 1);
        let declared = load_text(text.as_bytes()).unwrap();
        let names: Vec<_> = declared.iter().map(|one| (one.object.namespace(), one.object.name())).collect();
        assert_eq!(names, [("default".to_owned(), "a".to_owned()), ("lab".to_owned(), "b".to_owned())]);
        assert_eq!(declared[1].location.to_string(), "pools.yaml:7:1");
    }

    #[test]
    fn an_empty_file_declares_nothing() {
        for text in ["", "# only a comment\n", "---\n---\n", "\u{feff}"] {
            assert!(load_text(text.as_bytes()).unwrap().is_empty(), "{text:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_moves_nothing() {
        assert_eq!(load_text(format!("\u{feff}{HEAD}spec: {{}}").as_bytes()).unwrap()[0].location.at.column, 1);
    }

    #[test]
    fn every_error_of_every_document_comes_with_line_and_column() {
        let text = format!(
            "{HEAD}spec:\n  ordr: Random\n  cooldown: soon\n---\nkind: Pod\n---\n{HEAD}spec: {{suspend: 1, suspend: 2}}\n"
        );
        let places: Vec<_> = lines(text.as_bytes())
            .iter()
            .map(|line| line.splitn(5, ':').take(4).map(str::trim).collect::<Vec<_>>().join(":"))
            .collect();
        assert_eq!(
            places,
            [
                "pools.yaml:5:3:spec.ordr",
                "pools.yaml:6:13:spec.cooldown",
                "pools.yaml:8:1:apiVersion",
                "pools.yaml:13:17:spec.suspend",
                "pools.yaml:13:20:the key \"suspend\" stands twice",
            ]
        );
    }

    #[rstest]
    #[case::malformed("a: [1", "1:4", "not valid YAML")]
    #[case::unknown_field(&format!("{HEAD}spec: {{colour: red}}"), "4:8", "spec.colour: found an unknown field")]
    #[case::unknown_kind(
        "apiVersion: redis-allocator.dev/v1alpha1\nkind: Pool\n",
        "2:7",
        "allowed is ResourcePool or SoftBinding"
    )]
    #[case::out_of_range(&format!("{HEAD}spec: {{maxShrinkPercent: 101}}"), "4:26", "found 101, allowed is")]
    #[case::a_billion(
        &format!("{HEAD}spec:\n  ranges:\n  - {{name: r, template: 'x{{}}', from: 1, to: 1000000000}}\n"), "6:45", "1,000,000"
    )]
    #[case::not_a_map("- 1\n", "1:1", "allowed is")]
    #[case::brackets(&"[".repeat(20_000), "1:33", "allowed are 32 levels")]
    fn bad_text_has_a_place_and_says_what_is_allowed(#[case] text: &str, #[case] place: &str, #[case] words: &str) {
        let lines = lines(text.as_bytes());
        assert!(
            lines.iter().any(|line| line.starts_with(&format!("pools.yaml:{place}: ")) && line.contains(words)),
            "{lines:#?}"
        );
    }

    #[test]
    fn what_is_not_utf_8_is_named_by_its_byte() {
        let lines = lines(b"a: 1\n# \xc3\xa9 \xff\n");
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].starts_with("pools.yaml:2:5: found the byte 0xff at offset 10, allowed is UTF-8"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_binary_file_is_no_panic() {
        let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        load_text(&bytes).unwrap_err();
        load_text(&[0]).unwrap_err();
    }
}
