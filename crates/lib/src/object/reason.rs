//! What operators read about a resource that a program found broken: short, on one line, without the values of params.

use std::error::Error as StdError;

use serde_json::{Map, Value};

/// Longest reason, in bytes.
const MOST: usize = 512;
/// Shorter values of params stand in texts by chance, and hide no secret.
const SECRET: usize = 4;

/// An error with its causes, those left out that its own text has already.
pub(super) fn text_of(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The reason of a quarantine: who found what. Where the error repeats a value of a param, the param's name in braces
/// takes its place, as a password may be among them.
pub(super) fn reason(owner: &str, error: &dyn StdError, params: &Map<String, Value>) -> String {
    let text = format!("{owner}: {}", without_params(text_of(error), params));
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() <= MOST {
        return line;
    }
    format!("{}…", &line[..line.floor_char_boundary(MOST - '…'.len_utf8())])
}

fn without_params(mut text: String, params: &Map<String, Value>) -> String {
    let mut values = Vec::new();
    for (name, value) in params {
        collect(name, value, &mut values);
    }
    // A value may be part of another.
    values.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    for (name, value) in values {
        text = text.replace(value, &format!("{{{name}}}"));
    }
    text
}

fn collect<'a>(name: &'a str, value: &'a Value, into: &mut Vec<(&'a str, &'a str)>) {
    match value {
        Value::String(text) if text.len() >= SECRET => into.push((name, text)),
        Value::Array(values) => values.iter().for_each(|value| collect(name, value, into)),
        Value::Object(values) => values.iter().for_each(|(name, value)| collect(name, value, into)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let mut texts = texts.iter().rev();
        let last = Layer { text: texts.next().unwrap(), source: None };
        texts.fold(last, |cause, text| Layer { text, source: Some(Box::new(cause)) })
    }

    fn params(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn causes_are_told_once() {
        assert_eq!(text_of(&layers(&["login failed", "no route", "cable"])), "login failed: no route: cable");
        assert_eq!(text_of(&layers(&["login failed: no route", "no route"])), "login failed: no route");
    }

    #[test]
    fn values_of_params_stay_out() {
        let params = params(&json!({
            "url": "http://u:hunter2@host", "password": "hunter2", "more": {"token": ["s3cr3t"]}, "n": 7, "zone": "a",
        }));
        let error = layers(&["http://u:hunter2@host refused hunter2 and s3cr3t in zone a7"]);
        assert_eq!(reason("me", &error, &params), "me: {url} refused {password} and {token} in zone a7");
    }

    #[test]
    fn it_is_one_short_line() {
        assert_eq!(reason("me", &layers(&["a\nb\0c"]), &Map::new()), "me: a b c");
        let long: &'static str = Box::leak("é".repeat(1000).into_boxed_str());
        let reason = reason("me", &layers(&[long]), &Map::new());
        assert!(reason.len() <= MOST && reason.len() > MOST - 4 && reason.ends_with("é…"), "{}", reason.len());
    }
}
