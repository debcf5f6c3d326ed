//! What is wrong with an object: where, what was found there, and what is allowed instead.
//!
//! Paths lead through the object's fields; only the reader of a file knows the lines they stand on.

use std::fmt;

use serde_json::Value;

/// The way from an object's root to one of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(pub Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// Into the field of an object, or the entry of a map, of this name.
    Key(String),
    /// Into the element of a list, counted from 0.
    Index(usize),
}

impl Segment {
    fn key(&self) -> Option<&str> {
        match self {
            Self::Key(key) => Some(key),
            Self::Index(_) => None,
        }
    }
}

impl From<&str> for Segment {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl FieldPath {
    /// The path one step further.
    #[must_use]
    pub fn join(&self, segment: impl Into<Segment>) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment.into());
        Self(segments)
    }

    /// The value at the end of the path, if the object has it.
    pub fn find<'v>(&self, root: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(root, |value, segment| match segment {
            Segment::Key(key) => value.get(key),
            Segment::Index(index) => value.get(index),
        })
    }
}

/// Fields are joined by dots and indexes bracketed, as the API server does it; a key that is not a plain word is quoted.
impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if is_word(key) => {
                    let dot = if depth == 0 { "" } else { "." };
                    write!(f, "{dot}{key}")?;
                }
                Segment::Key(key) => write!(f, "[{}]", excerpt(&format!("{key:?}")))?,
            }
        }
        Ok(())
    }
}

fn is_word(key: &str) -> bool {
    key.len() <= 64
        && key.starts_with(|first: char| first.is_ascii_alphanumeric())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// Where: for a missing or an unknown field, the field itself.
    pub path: FieldPath,
    /// What is there, shortened where it is long.
    pub found: String,
    /// What would be right, in words.
    pub allowed: String,
    /// How it may have been meant.
    pub hint: Option<String>,
}

impl Violation {
    /// A violation without a hint.
    pub(crate) fn new(path: FieldPath, found: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { path, found: found.into(), allowed: allowed.into(), hint: None }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, found, allowed, hint } = self;
        if !path.0.is_empty() {
            write!(f, "{path}: ")?;
        }
        write!(f, "found {found}, allowed is {allowed}")?;
        match hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Collects violations up to a bound, so that a hostile object cannot make the report larger than itself.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Violation>);

impl Report {
    /// More than anybody reads.
    const MOST: usize = 1000;

    /// Adds a violation, which is only made while there is room.
    pub(crate) fn add(&mut self, violation: impl FnOnce() -> Violation) {
        if self.0.len() < Self::MOST {
            self.0.push(violation());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The violations in the order of their paths.
    pub(crate) fn into_violations(mut self) -> Vec<Violation> {
        self.0.sort_by(|a, b| a.path.cmp(&b.path));
        self.0
    }
}

/// What a value looks like in a message: scalars as JSON and short, lists and objects by their size.
pub(crate) fn describe(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::Array(list)) => format!("a list of {}", list.len()),
        Some(Value::Object(map)) => format!("an object of {} fields", map.len()),
        Some(Value::String(text)) => excerpt(&format!("{text:?}")),
        Some(scalar) => excerpt(&scalar.to_string()),
    }
}

/// What [`describe`] says of the value at `path`, without what a probe or a source sends to log in: violations go to logs
/// and statuses.
pub(crate) fn describe_at(path: &FieldPath, value: Option<&Value>) -> String {
    let keys: Vec<&str> = path.0.iter().filter_map(Segment::key).collect();
    let asking = |at: &usize| keys[*at] == "httpGet" || keys[*at] == "http" && keys[..*at].last() == Some(&"sources");
    let Some(asking) = (0..keys.len()).find(asking) else { return describe(value) };
    match (keys.get(asking + 1).copied(), value) {
        (Some("headers"), Some(Value::String(text))) => {
            if keys.last() == Some(&"name") && is_word(text) {
                describe(value)
            } else {
                format!("a text of {} bytes", text.len())
            }
        }
        (Some("headers"), Some(Value::Number(_))) => "a number".to_owned(),
        (_, Some(Value::String(text))) => describe(Some(&Value::from(without_secrets(text)))),
        _ => describe(value),
    }
}

/// A URL without user, password, query and fragment; what may be a part of those is left out, too. Needs no valid URL.
///
/// ```
/// use redis_allocator_crd::without_secrets;
///
/// assert_eq!(without_secrets("http://ann:pw@{name}/healthz?token=x"), "http://{name}/healthz");
/// assert_eq!(without_secrets("http://ann:p/w@{name}/healthz"), "http://…");
/// ```
#[must_use]
pub fn without_secrets(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        // A login may itself hold what looks like the end of a scheme.
        Some((scheme, _)) if !scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => return "…".to_owned(),
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let shown = match rest.rsplit_once('@') {
        // A password with an unescaped slash looks like a path, and a query may hold an `@`.
        Some((login, _)) if login.contains(['/', '?', '#']) => "…",
        Some((_, rest)) => rest,
        None => rest,
    };
    let shown = shown.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}{shown}")
}

fn excerpt(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_reads_like_the_api_servers() {
        let path = FieldPath::default().join("spec").join("resources").join(3).join("labels").join("a.b/c");
        assert_eq!(path.to_string(), r#"spec.resources[3].labels["a.b/c"]"#);
        let long = FieldPath::default().join("x".repeat(500).as_str()).to_string();
        assert!(long.ends_with("x… (502 bytes)]") && long.len() < 120, "{long}");
    }

    #[test]
    fn a_path_finds_its_value() {
        let object = json!({ "spec": { "list": [1, { "a": 2 }] } });
        let list = FieldPath::default().join("spec").join("list");
        assert_eq!(list.join(1).join("a").find(&object), Some(&json!(2)));
        assert_eq!(list.join(2).find(&object), None);
    }

    #[test]
    fn a_violation_says_where_what_was_found_and_what_is_allowed() {
        let mut violation =
            Violation::new(FieldPath::default().join("spec").join("order"), "\"Rand\"", "Sequential or Random");
        violation.hint = Some("did you mean Random?".to_owned());
        assert_eq!(
            violation.to_string(),
            r#"spec.order: found "Rand", allowed is Sequential or Random (did you mean Random?)"#
        );
    }

    #[test]
    fn a_report_is_bounded() {
        let mut report = Report::default();
        for _ in 0..2000 {
            report.add(|| Violation::new(FieldPath::default(), "a", "b"));
        }
        assert_eq!(report.into_violations().len(), Report::MOST);
    }

    #[test]
    fn what_a_probe_logs_in_with_is_not_told() {
        let probe = FieldPath::default().join("spec").join("healthCheck").join("httpGet");
        let header = probe.join("headers").join(0);
        let source = FieldPath::default().join("spec").join("sources").join(0).join("http");
        for (path, value) in [
            (source.join("url"), json!("ftp://ann:secret@h/?secret")),
            (source.join("headers").join(0).join("value"), json!("Bearer secret\n")),
            (probe.clone(), json!("http://ann:secret@h/")),
            (probe.join("url"), json!("ftp://ann:secret@h/?secret")),
            (probe.join("url"), json!("ann:secret@h/?q=secret")),
            (probe.join("url"), json!("http://h/?mail=a@b&token=secret")),
            (probe.join("url"), json!("ann:secret://x@h")),
            (probe.join("headers"), json!("X: secret")),
            (header.clone(), json!("X: secret")),
            (header.join("name"), json!("X: secret")),
            (header.join("value"), json!("Bearer secret\n")),
            (header.join("value"), json!(5_233)),
        ] {
            let found = describe_at(&path, Some(&value));
            assert!(!found.contains("secret") && !found.contains("5233"), "{path} {value}: {found}");
        }
        assert_eq!(describe_at(&header.join("name"), Some(&json!("X-Key"))), r#""X-Key""#);
        assert_eq!(describe_at(&probe.join("url"), Some(&json!("{name}/x"))), r#""{name}/x""#);
        assert_eq!(describe_at(&FieldPath::default().join("spec"), Some(&json!("secret"))), r#""secret""#);
    }

    #[test]
    fn long_values_are_shortened() {
        assert_eq!(describe(Some(&json!("é".repeat(100)))).chars().count(), 80 + "… (202 bytes)".chars().count());
        assert_eq!(describe(Some(&json!([1, 2]))), "a list of 2");
    }
}
