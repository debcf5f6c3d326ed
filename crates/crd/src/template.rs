//! Texts with placeholders: the keys of a range or of a source, and the targets of a health check.
//!
//! Parsing and filling in only; that a placeholder's param exists is checked where the resources are known.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A text that is not a template of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a template: allowed is {allowed}")]
pub struct InvalidTemplate {
    /// What was found instead.
    pub found: String,
    /// What is allowed, in words.
    pub allowed: &'static str,
}

/// What makes a [`KeyTemplate`], as a regular expression; also the rule in the schema.
const KEY_RULE: &str = r"^[^{}\x00]*\{(:0([1-9]|1[0-6]))?\}[^{}\x00]*$";
const KEY_ALLOWED: &str =
    "a text with exactly one {} or {:0N} (zero-padded to N digits, N from 1 to 16), and no other brace or NUL";
/// Longest key template in characters, as many as a resource key may have.
const KEY_MAX_LENGTH: usize = 512;

/// The template of a range's keys: a text with exactly one `{}`, or `{:03}` for a number zero-padded to three digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyTemplate {
    prefix: String,
    suffix: String,
    /// Least number of digits; 0 where the template has a plain `{}`.
    width: usize,
}

impl KeyTemplate {
    /// The key that holds this number.
    pub fn key(&self, number: u64) -> String {
        let Self { prefix, suffix, width } = self;
        format!("{prefix}{number:0width$}{suffix}")
    }

    /// The number in a key that this template made, if it did.
    pub fn number(&self, key: &str) -> Option<u64> {
        let digits = key.strip_prefix(self.prefix.as_str())?.strip_suffix(self.suffix.as_str())?;
        let number = digits.parse().ok()?;
        // Rejects `+7` and `007`, which parse but were not made here.
        (self.key(number) == key).then_some(number)
    }

    /// What comes before the number.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What comes after the number.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// The least number of digits that a number has in a key.
    pub fn width(&self) -> usize {
        self.width.max(1)
    }
}

impl TryFrom<String> for KeyTemplate {
    type Error = InvalidTemplate;

    fn try_from(text: String) -> Result<Self, InvalidTemplate> {
        let parsed = text.split_once('{').and_then(|(prefix, rest)| {
            let (format, suffix) = rest.split_once('}')?;
            let width = match format {
                "" => 0,
                _ => format.strip_prefix(":0").filter(|n| !n.starts_with(['0', '+']))?.parse().ok()?,
            };
            let clean = |text: &str| !text.contains(['{', '}', '\0']);
            (width <= 16 && clean(prefix) && clean(suffix)).then(|| Self {
                prefix: prefix.to_owned(),
                suffix: suffix.to_owned(),
                width,
            })
        });
        parsed.ok_or(InvalidTemplate { found: text, allowed: KEY_ALLOWED })
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        match self.width {
            0 => f.write_str("{}")?,
            width => write!(f, "{{:0{width}}}")?,
        }
        f.write_str(&self.suffix)
    }
}

impl From<KeyTemplate> for String {
    fn from(template: KeyTemplate) -> Self {
        template.to_string()
    }
}

impl JsonSchema for KeyTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "KeyTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        matching(KEY_RULE, KEY_ALLOWED, KEY_MAX_LENGTH, "The keys of a range.")
    }
}

const ADDRESS_RULE: &str = r"^[^{}\x00]*\{\}[^{}\x00]*$";
const ADDRESS_ALLOWED: &str = "a text with exactly one {}, and no other brace or NUL";

/// The template of the keys of addresses: a text with exactly one `{}`. By default nothing but that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressTemplate {
    prefix: String,
    suffix: String,
}

impl AddressTemplate {
    /// The key of an address.
    pub fn key(&self, address: &str) -> String {
        format!("{}{address}{}", self.prefix, self.suffix)
    }
}

impl TryFrom<String> for AddressTemplate {
    type Error = InvalidTemplate;

    fn try_from(text: String) -> Result<Self, InvalidTemplate> {
        let clean = |text: &str| !text.contains(['{', '}', '\0']);
        match text.split_once("{}") {
            Some((prefix, suffix)) if clean(prefix) && clean(suffix) => {
                Ok(Self { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
            }
            _ => Err(InvalidTemplate { found: text, allowed: ADDRESS_ALLOWED }),
        }
    }
}

impl From<AddressTemplate> for String {
    fn from(template: AddressTemplate) -> Self {
        template.key("{}")
    }
}

impl JsonSchema for AddressTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AddressTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        matching(ADDRESS_RULE, ADDRESS_ALLOWED, KEY_MAX_LENGTH, "The keys of addresses.")
    }
}

const OBJECT_RULE: &str = r"^([^{}\x00]|\{name\}|\{ip\}|\{port\})*\{(name|ip)\}([^{}\x00]|\{name\}|\{ip\}|\{port\})*$";
const OBJECT_ALLOWED: &str = "a text with {name} or {ip}, perhaps {port}, and no other brace or NUL";

/// The template of the keys of objects: a text with `{name}` or `{ip}`, and perhaps `{port}`. By default `{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectTemplate(String);

impl ObjectTemplate {
    /// The key of an object; `None` if it lacks what is asked for.
    pub fn key(&self, name: Option<&str>, ip: Option<&str>, port: Option<&str>) -> Option<String> {
        let mut key = String::new();
        let mut rest = self.0.as_str();
        while let Some((text, tail)) = rest.split_once('{') {
            let (placeholder, tail) = tail.split_once('}')?;
            key.push_str(text);
            key.push_str(match placeholder {
                "name" => name?,
                "ip" => ip?,
                _ => port?,
            });
            rest = tail;
        }
        key.push_str(rest);
        Some(key)
    }

    /// Whether a port is asked for.
    pub fn has_port(&self) -> bool {
        self.0.contains("{port}")
    }
}

impl Default for ObjectTemplate {
    fn default() -> Self {
        Self("{name}".to_owned())
    }
}

impl TryFrom<String> for ObjectTemplate {
    type Error = InvalidTemplate;

    fn try_from(text: String) -> Result<Self, InvalidTemplate> {
        let plain = ["{name}", "{ip}", "{port}"].iter().fold(text.clone(), |text, known| text.replace(known, " "));
        let names = text.contains("{name}") || text.contains("{ip}");
        if names && !plain.contains(['{', '}', '\0']) {
            Ok(Self(text))
        } else {
            Err(InvalidTemplate { found: text, allowed: OBJECT_ALLOWED })
        }
    }
}

impl From<ObjectTemplate> for String {
    fn from(template: ObjectTemplate) -> Self {
        template.0
    }
}

impl JsonSchema for ObjectTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ObjectTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        matching(OBJECT_RULE, OBJECT_ALLOWED, KEY_MAX_LENGTH, "The keys of objects.")
    }
}

const TARGET_RULE: &str = r"^([^{}\x00]|\{\{|\}\}|\{name\}|\{params\.[A-Za-z0-9_-]+\})+$";
const TARGET_ALLOWED: &str =
    "a text without NUL whose only placeholders are {name} and {params.KEY}; {{ and }} stand for a brace";
const TARGET_MAX_LENGTH: usize = 2048;

/// Where a probe goes or what it runs: a text in which `{name}` stands for the resource's name and `{params.KEY}` for
/// one of its params, a string, number or boolean. `{{` and `}}` stand for a brace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    Name,
    Param(String),
}

/// A resource that lacks what a [`TargetTemplate`] asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "resource {resource:?} has no param {param:?} that is a string, number or boolean: add one or take {{params.{param}}} out"
)]
pub struct MissingParam {
    /// The resource's name.
    pub resource: String,
    /// The param's key.
    pub param: String,
}

impl TargetTemplate {
    /// The text for one resource.
    ///
    /// # Errors
    /// [`MissingParam`] when the template names a param that the resource lacks, or that is a list, an object or null.
    pub fn render(&self, name: &str, params: &Map<String, Value>) -> Result<String, MissingParam> {
        let mut rendered = String::with_capacity(self.text.len() + name.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => rendered.push_str(text),
                Part::Name => rendered.push_str(name),
                Part::Param(key) => match params.get(key) {
                    Some(Value::String(text)) => rendered.push_str(text),
                    Some(scalar @ (Value::Number(_) | Value::Bool(_))) => rendered.push_str(&scalar.to_string()),
                    _ => return Err(MissingParam { resource: name.to_owned(), param: key.clone() }),
                },
            }
        }
        Ok(rendered)
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether any param is asked for.
    pub(crate) fn has_params(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Param(_)))
    }
}

impl TryFrom<String> for TargetTemplate {
    type Error = InvalidTemplate;

    fn try_from(text: String) -> Result<Self, InvalidTemplate> {
        match parts(&text) {
            Some(parts) => Ok(Self { text, parts }),
            None => Err(InvalidTemplate { found: text, allowed: TARGET_ALLOWED }),
        }
    }
}

fn parts(text: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(tail) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            plain.push(first);
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('{') {
            let (placeholder, tail) = tail.split_once('}')?;
            let part = match placeholder.strip_prefix("params.") {
                Some(key) if is_param_key(key) => Part::Param(key.to_owned()),
                None if placeholder == "name" => Part::Name,
                _ => return None,
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(part);
            rest = tail;
        } else if matches!(first, '}' | '\0') {
            return None;
        } else {
            plain.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    (!parts.is_empty()).then_some(parts)
}

fn is_param_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

impl From<TargetTemplate> for String {
    fn from(template: TargetTemplate) -> Self {
        template.text
    }
}

impl JsonSchema for TargetTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "TargetTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let description =
            "A text in which {name} stands for the resource's name and {params.KEY} for one of its params.";
        matching(TARGET_RULE, TARGET_ALLOWED, TARGET_MAX_LENGTH, description)
    }
}

/// A string by a rule instead of a `pattern`, because a rule has a message in words.
fn matching(regex: &str, allowed: &str, max_length: usize, description: &str) -> Schema {
    json_schema!({
        "description": description,
        "type": "string",
        "maxLength": max_length,
        "x-kubernetes-validations": [{ "rule": format!("self.matches(r'{regex}')"), "message": format!("must be {allowed}") }],
    })
}

#[cfg(test)]
mod tests {
    use regex::Regex;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_template_has_exactly_one_number_and_the_rule_agrees() {
        let rule = Regex::new(KEY_RULE).unwrap();
        for text in ["{}", "10.0.0.{}:8000", "gpu-{:03}", "{:016}x", "ü{:01}"] {
            assert!(rule.is_match(text), "{text}");
            assert_eq!(KeyTemplate::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for text in
            ["", "gpu", "{}{}", "{x}", "{:3}", "{:00}", "{:017}", "{:0}", "{:+3}", "{:0+3}", "}{}", "{}{", "a\0{}"]
        {
            assert!(!rule.is_match(text), "{text}");
            let error = KeyTemplate::try_from(text.to_owned()).unwrap_err();
            assert!(error.to_string().contains("exactly one {}"), "{error}");
        }
    }

    #[test]
    fn a_key_is_known_by_the_template_that_made_it() {
        let padded = KeyTemplate::try_from("gpu-{:03}!".to_owned()).unwrap();
        assert_eq!([padded.key(7), padded.key(1234)], ["gpu-007!", "gpu-1234!"]);
        assert_eq!(
            ["gpu-007!", "gpu-7!", "gpu-0007!", "gpu-+07!", "gpu-007"].map(|key| padded.number(key)),
            [Some(7), None, None, None, None]
        );
    }

    #[test]
    fn an_address_goes_where_the_braces_are_and_the_rule_agrees() {
        let rule = Regex::new(ADDRESS_RULE).unwrap();
        for (text, key) in [("{}", "10.0.0.1"), ("{}:8000", "10.0.0.1:8000"), ("http://{}/", "http://10.0.0.1/")] {
            assert!(rule.is_match(text), "{text}");
            let template = AddressTemplate::try_from(text.to_owned()).unwrap();
            assert_eq!((template.key("10.0.0.1").as_str(), String::from(template).as_str()), (key, text));
        }
        for text in ["", "a", "{}{}", "{ip}", "{:03}", "{}{", "}{}", "{}\0"] {
            assert!(!rule.is_match(text) && AddressTemplate::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(AddressTemplate::default().key("x"), "x");
    }

    #[test]
    fn an_object_is_named_by_what_it_has_and_the_rule_agrees() {
        let rule = Regex::new(OBJECT_RULE).unwrap();
        for (text, key) in [
            ("{name}", Some("p")),
            ("{ip}:{port}/{name}", Some("10.0.0.1:80/p")),
            ("x{ip}{ip}", Some("x10.0.0.110.0.0.1")),
        ] {
            assert!(rule.is_match(text), "{text}");
            let template = ObjectTemplate::try_from(text.to_owned()).unwrap();
            assert_eq!(template.key(Some("p"), Some("10.0.0.1"), Some("80")).as_deref(), key);
        }
        let template = ObjectTemplate::try_from("{ip}:{port}".to_owned()).unwrap();
        assert!(template.has_port() && !ObjectTemplate::default().has_port());
        assert_eq!([template.key(Some("p"), None, Some("1")), template.key(None, Some("i"), None)], [None, None]);
        for text in ["", "a", "{}", "{port}", "{host}", "{name", "{name}}", "{{name}}", "{na{ip}me}", "{name}\0"] {
            assert!(!rule.is_match(text) && ObjectTemplate::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_is_filled_in_from_name_and_params() {
        let template =
            TargetTemplate::try_from("{{{name}}}:{params.port}/{params.tls}/{params.zone}".to_owned()).unwrap();
        let params = json!({ "port": 80, "tls": true, "zone": "{name}", "list": [] });
        let params = params.as_object().unwrap();
        assert_eq!(template.render("a", params).unwrap(), "{a}:80/true/{name}");

        for text in ["{params.none}", "{params.list}"] {
            let template = TargetTemplate::try_from(text.to_owned()).unwrap();
            let error = template.render("a", params).unwrap_err().to_string();
            assert!(error.contains("resource \"a\" has no param"), "{error}");
        }
    }

    #[test]
    fn a_target_knows_no_other_placeholder_and_the_rule_agrees() {
        let rule = Regex::new(TARGET_RULE).unwrap();
        for text in ["x", "{name}", "{{}}", "{{name}}", "{params.a_b-c}{name}", "{{{name}"] {
            assert!(rule.is_match(text) && TargetTemplate::try_from(text.to_owned()).is_ok(), "{text}");
        }
        for text in
            ["", "{", "}", "{}", "{host}", "{name", "name}", "{params.}", "{params.a.b}", "{na{{me}", "{name}}", "\0"]
        {
            assert!(!rule.is_match(text), "{text}");
            assert!(TargetTemplate::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
