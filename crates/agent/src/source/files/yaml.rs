//! YAML text to JSON values that know where they stood: the one place that knows which YAML library is used.
//!
//! Scalars follow the YAML 1.2 core schema (`no` and `off` are strings). A duplicate key is reported with both places,
//! and does not hide the document's other errors. Size, depth, nodes and aliases are bounded: a file can't make the agent
//! run out of stack or memory.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::{
    Error, Location, Spanned, UserMessageFormatter,
    budget::BudgetBreach,
    options::{DuplicateKeyPolicy, NonFiniteFloatPolicy},
};

/// Deepest nesting of lists and maps. The kinds need 7, `params` may hold some more.
const MAX_DEPTH: usize = 32;
/// Most nodes of a file: 4,096 resources with eight labels each are about 90,000, so a file may hold many such pools.
const MAX_NODES: usize = 4_000_000;
/// Most events that aliases may add. `<<: *defaults` in every resource of a large pool is far below it, a bomb is far
/// above.
const MAX_ALIAS_EVENTS: usize = 500_000;
/// Stack for the parser, which recurses: [`MAX_DEPTH`] levels take a tenth of it in an unoptimised build.
const STACK: usize = 8 << 20;

/// A place in a text, both counted from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Position {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        let clamp = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).max(1);
        Self { line: clamp(location.line()), column: clamp(location.column()) }
    }
}

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct YamlError {
    pub(crate) at: Position,
    pub(crate) message: String,
    /// A second place that belongs to the error, and what is there.
    pub(crate) also: Option<(Position, String)>,
}

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    root: Node,
}

/// A step from a value to one inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Document {
    /// Where the document's content begins.
    pub(crate) fn position(&self) -> Position {
        self.root.at
    }

    /// The document as JSON. Of a duplicate key the first value counts.
    pub(crate) fn to_json(&self) -> Value {
        self.root.to_json()
    }

    /// Where the value at a path stands; where the path leaves the document, the last value on it.
    /// With `of_key`, the last step's key instead of its value: what is wrong with an unknown field is its name.
    pub(crate) fn locate<'a>(&self, path: impl IntoIterator<Item = Step<'a>>, of_key: bool) -> Position {
        let mut node = &self.root;
        let mut at = node.at;
        for step in path {
            let next = match (step, &node.kind) {
                (Step::Key(key), Kind::Map(entries)) => entries
                    .iter()
                    .find(|entry| entry.key == key)
                    .map(|entry| (&entry.value, if of_key { entry.at } else { entry.value.at })),
                (Step::Index(index), Kind::List(items)) => items.get(index).map(|item| (item, item.at)),
                _ => None,
            };
            let Some((inner, position)) = next else { return at };
            (node, at) = (inner, position);
        }
        at
    }

    /// Every key that stands twice in one map.
    pub(crate) fn duplicate_keys(&self) -> Vec<YamlError> {
        let mut found = Vec::new();
        self.root.duplicate_keys(&mut found);
        found
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Node {
    at: Position,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    key: String,
    at: Position,
    value: Node,
}

impl Node {
    fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(value) => Value::Number(value.clone()),
            Kind::String(value) => Value::String(value.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Map(entries) => {
                let mut map = Map::new();
                for entry in entries {
                    map.entry(&entry.key).or_insert_with(|| entry.value.to_json());
                }
                Value::Object(map)
            }
        }
    }

    fn duplicate_keys(&self, found: &mut Vec<YamlError>) {
        match &self.kind {
            Kind::List(items) => items.iter().for_each(|item| item.duplicate_keys(found)),
            Kind::Map(entries) => {
                let mut first: HashMap<&str, Position> = HashMap::with_capacity(entries.len());
                for entry in entries {
                    if let Some(&before) = first.get(entry.key.as_str()) {
                        found.push(YamlError {
                            at: entry.at,
                            message: format!("the key {:?} stands twice: allowed is once; remove one", entry.key),
                            also: Some((before, "it stands here first".to_owned())),
                        });
                    } else {
                        first.insert(&entry.key, entry.at);
                    }
                    entry.value.duplicate_keys(found);
                }
            }
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Kind>::deserialize(deserializer)?;
        Ok(Self { at: spanned.referenced.into(), kind: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Kind, E> {
        Number::from_f64(value)
            .map(Kind::Number)
            .ok_or_else(|| E::custom(format!("{value} is not a number that JSON has: allowed is a finite one")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Kind::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Node>()? {
            entries.push(Entry { key: key.value, at: key.referenced.into(), value });
        }
        Ok(Kind::Map(entries))
    }
}

/// Parses a file's documents; empty ones are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Document>, YamlError> {
    // A thread of its own, because the parser recurses and the caller's stack may be small.
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || parse_here(text));
        match parser.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(internal("the YAML parser failed on this file; please report it".to_owned())),
            Err(error) => Err(internal(format!("starting a thread for the YAML parser failed: {error}"))),
        }
    })
}

fn internal(message: String) -> YamlError {
    YamlError { at: Position::START, message, also: None }
}

fn parse_here(text: &str) -> Result<Vec<Document>, YamlError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            // One template that every resource refers to is a good use of aliases; what they expand to is bounded below.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        emit_comments: false,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options)
        .map(|roots| roots.into_iter().map(|root| Document { root }).collect())
        .map_err(|error| YamlError {
            at: error.location().map_or(Position::START, Position::from),
            message: explain(&error),
            also: None,
        })
}

/// The library's error in words that say what is allowed.
fn explain(error: &Error) -> String {
    match error {
        Error::AliasError { error, .. } => explain(error),
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => format!(
            "aliases (*name) expand to too much: allowed are {MAX_ALIAS_EVENTS} values from aliases in a file; write them \
             out, or use a range"
        ),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => too_deep(),
        Error::Budget { breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. }, .. } => {
            format!("the file is too large: allowed are {MAX_NODES} values in a file; split it, or use a range")
        }
        _ => {
            // It ends its messages with `at line 3, column 5`; ours stand beside the place.
            let message = error.render_with_formatter(&UserMessageFormatter);
            let message = message.split(" at line ").next().unwrap_or(&message).trim().trim_end_matches(':');
            // The scanner has a nesting limit of its own for flow collections, and no variant for it.
            if message.contains("recursion limit") { too_deep() } else { format!("not valid YAML: {message}") }
        }
    }
}

fn too_deep() -> String {
    format!("lists and maps are nested too deeply: allowed are {MAX_DEPTH} levels")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Document {
        let mut documents = parse(text).unwrap();
        assert_eq!(documents.len(), 1, "{documents:?}");
        documents.remove(0)
    }

    fn at(line: u32, column: u32) -> Position {
        Position { line, column }
    }

    #[test]
    fn scalars_follow_yaml_1_2() {
        let json =
            one("a: no\nb: off\nc: yes\nd: true\ne: 0o17\nf: 1.5\ng: ~\nh: '1'\ni: 2026-01-01\nj: -3\nk: 0x1f\n")
                .to_json();
        assert_eq!(
            json,
            serde_json::json!({"a": "no", "b": "off", "c": "yes", "d": true, "e": 15, "f": 1.5, "g": null, "h": "1",
                "i": "2026-01-01", "j": -3, "k": 31})
        );
    }

    #[test]
    fn json_is_yaml() {
        let json = one("{\n\t\"a\": [1, {\"b\": null}],\n\t\"c\": \"\\u00e9\"\n}\n").to_json();
        assert_eq!(json, serde_json::json!({"a": [1, {"b": null}], "c": "é"}));
    }

    #[test]
    fn a_path_leads_to_line_and_column() {
        let document = one("# head\nspec:\n  resources:\n    - {name: é, priority: 7}\n    - name: b\n      typo: 1\n");
        let resource = |index, key| vec![Step::Key("spec"), Step::Key("resources"), Step::Index(index), Step::Key(key)];
        assert_eq!(document.locate(resource(0, "priority"), false), at(4, 27));
        assert_eq!(document.locate(resource(1, "name"), false), at(5, 13));
        assert_eq!(document.locate(resource(1, "typo"), true), at(6, 7));
        assert_eq!(document.locate(resource(1, "missing"), false), at(5, 7), "the nearest that is there");
        assert_eq!(document.locate([], false), at(2, 1));
    }

    #[test]
    fn an_alias_is_located_where_it_is_used() {
        let document = one("a: &x {k: 1}\nb: *x\n");
        assert_eq!(document.to_json(), serde_json::json!({"a": {"k": 1}, "b": {"k": 1}}));
        assert_eq!(document.locate([Step::Key("b")], false), at(2, 4));
    }

    #[test]
    fn documents_are_counted_without_the_empty_ones() {
        let documents = parse("---\n# nothing\n---\na: 1\n---\nb: 2\n...\n").unwrap();
        assert_eq!(
            documents.iter().map(Document::to_json).collect::<Vec<_>>(),
            [serde_json::json!({"a": 1}), serde_json::json!({"b": 2})]
        );
        assert_eq!(documents[1].position(), at(6, 1));
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_duplicate_key_names_both_places() {
        let found = one("a: 1\nb: {c: 1, c: 2}\na: 2\n").duplicate_keys();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].at, found[0].also.as_ref().unwrap().0), (at(2, 11), at(2, 5)));
        assert_eq!((found[1].at, found[1].also.as_ref().unwrap().0), (at(3, 1), at(1, 1)));
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.at.line >= 2, "{error:?}");
        assert!(!error.message.contains(" at line "), "{error:?}");
    }

    #[test]
    fn brackets_without_end_are_refused() {
        for (open, close) in [("[", "]"), ("{a: ", "}")] {
            let text = format!("a: {}{}", open.repeat(20_000), close.repeat(20_000));
            let error = parse(&text).unwrap_err();
            assert!(error.at.line == 1 && error.message.contains("32 levels"), "{error:?}");
        }
        let error = parse(&format!("{}- 1\n", "- ".repeat(20_000))).unwrap_err();
        assert_eq!(error.at.line, 1, "{error:?}");
        let deep: Vec<_> = (0..20_000).map(|depth| format!("{}a:", " ".repeat(depth % 500))).collect();
        parse(&deep.join("\n")).unwrap_err();
    }

    #[test]
    fn as_deep_as_allowed_is_fine() {
        let depth = MAX_DEPTH - 1;
        one(&format!("a: {}1{}", "[".repeat(depth), "]".repeat(depth)));
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let level = |level: usize| format!("a{level}: &a{level} [{}]", format!("*a{}, ", level - 1).repeat(10));
        let first = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned();
        let lines: Vec<_> = std::iter::once(first).chain((1..10).map(level)).collect();
        let error = parse(&lines.join("\n")).unwrap_err();
        assert!(error.message.contains("alias"), "{error:?}");
    }

    #[test]
    fn many_large_pools_fit() {
        let lines: Vec<_> = (0..40_000).map(|index| format!("  - {{name: r{index}, labels: {{zone: a}}}}")).collect();
        assert_eq!(
            one(&format!("spec:\n  resources:\n{}", lines.join("\n"))).to_json()["spec"]["resources"]
                .as_array()
                .unwrap()
                .len(),
            40_000
        );
    }
}
