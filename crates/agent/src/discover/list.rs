//! From the text of a list to resources, or to what is wrong with it. Knows nothing of where the text came from, but
//! whether it is secret.

use std::collections::HashMap;

use redis_allocator_crd::{
    FieldPath, MAX_SOURCE_ITEMS, Resource, Segment, SourceFormat, Violation, read_items, validate_items,
};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::trouble::{INVALID, TOO_LARGE, Trouble};

/// The longest text, in bytes.
pub(super) const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Lists that are read at once: what a long one lists takes many times its size.
static READING: Semaphore = Semaphore::const_new(2);
/// Mistakes told of one list.
const TOLD: usize = 3;

/// A text that lists resources.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    pub(super) format: SourceFormat,
    /// Whether nothing of it may be told.
    pub(super) secret: bool,
}

/// What is said of more than [`MAX_BYTES`].
pub(super) fn too_large(what: &str) -> Trouble {
    Trouble::new(
        TOO_LARGE,
        format!("{what} is longer than 8 MiB, the most that is read: split it into several sources"),
    )
}

impl Text {
    /// Reads the list, away from the async threads: a long one takes a while.
    pub(super) async fn read(self) -> Result<Vec<Resource>, Trouble> {
        // Never closed.
        let _permit = READING.acquire().await;
        let read = tokio::task::spawn_blocking(move || self.parse()).await;
        read.unwrap_or_else(|error| Err(Trouble::new(INVALID, format!("reading the list failed: {error}"))))
    }

    fn parse(self) -> Result<Vec<Resource>, Trouble> {
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            Trouble::new(
                INVALID,
                format!("byte {} of the list is not UTF-8, which lists are written in", error.valid_up_to()),
            )
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match self.format {
            SourceFormat::Lines => self.lines(text),
            SourceFormat::Json => self.json(text),
        }
    }

    fn lines(&self, text: &str) -> Result<Vec<Resource>, Trouble> {
        if is_json(text) {
            let message = "found JSON, allowed is one key a line; to read it as JSON, say format: Json";
            return Err(Trouble::new(INVALID, message));
        }
        let lines = text.lines().map(str::trim).zip(1_usize..);
        let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        // One more is enough to see that there are too many.
        let lines: Vec<_> = lines.take(MAX_SOURCE_ITEMS + 1).collect();
        let mut seen = HashMap::new();
        for (key, number) in &lines {
            if let Some(first) = seen.insert(*key, *number) {
                let message = format!("line {number}: found the key of line {first} again, allowed is each key once");
                return Err(Trouble::new(INVALID, message));
            }
        }
        let place = |index: usize| lines.get(index).map_or_else(String::new, |(_, number)| format!("line {number}"));
        validate_items(lines.iter().map(|(key, _)| Value::from(*key)))
            .map_err(|violations| self.wrong(&violations, place))
    }

    fn json(&self, text: &str) -> Result<Vec<Resource>, Trouble> {
        let items = read_items(text).map_err(|error| {
            // It names a line and a column, and nothing that stands there.
            let found = if text.trim().is_empty() { "nothing at all".to_owned() } else { error.to_string() };
            Trouble::new(INVALID, format!("it is not JSON: {found}"))
        })?;
        items.map_err(|violations| self.wrong(&violations, |index| format!("entry [{index}]")))
    }

    fn wrong(&self, violations: &[Violation], place: impl Fn(usize) -> String) -> Trouble {
        let mut parts: Vec<_> = violations.iter().take(TOLD).map(|violation| self.tell(violation, &place)).collect();
        if violations.len() > TOLD {
            parts.push(format!("and {} more", violations.len() - TOLD));
        }
        Trouble::new(INVALID, parts.join("; "))
    }

    fn tell(&self, violation: &Violation, place: impl Fn(usize) -> String) -> String {
        let Violation { path, found, allowed, hint } = violation;
        let (place, rest) = match path.0.split_first() {
            Some((Segment::Index(index), rest)) => (place(*index), rest),
            _ => ("the list".to_owned(), path.0.as_slice()),
        };
        if self.secret {
            return format!("{place}: what is there can't be told, allowed is {allowed}");
        }
        let dot = if matches!(rest.first(), Some(Segment::Key(_))) { "." } else { "" };
        let hint = hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{place}{dot}{}: found {found}, allowed is {allowed}{hint}", FieldPath(rest.to_vec()))
    }
}

/// Whether a text is JSON, as servers answer that were asked for something else, or tell an error. Line by line it would pass
/// for keys. A key may begin with a bracket itself: `[fd00::1]:80`.
fn is_json(text: &str) -> bool {
    let text = text.trim_start();
    let in_list = text.strip_prefix('[').map(str::trim_start);
    text.starts_with('{') || in_list.is_some_and(|rest| rest.starts_with(['"', '{', '[', ']']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(format: SourceFormat, text: &str) -> Result<Vec<String>, String> {
        let text = Text { bytes: text.into(), format, secret: false };
        let names = |items: Vec<Resource>| items.into_iter().map(|item| item.name).collect();
        text.parse().map(names).map_err(|trouble| trouble.message)
    }

    #[test]
    fn lines_are_keys_but_for_comments_and_blanks() {
        let text = "\u{feff}# proxies\r\n10.0.0.1:80\r\n\n  b c \n#d\n";
        assert_eq!(parse(SourceFormat::Lines, text), Ok(vec!["10.0.0.1:80".to_owned(), "b c".to_owned()]));
        assert_eq!(parse(SourceFormat::Lines, ""), Ok(Vec::new()));
    }

    #[test]
    fn one_bad_line_refuses_the_list_and_says_which_it_is() {
        for (text, message) in [
            (format!("# a\nb\n{}\n", "x".repeat(513)), "line 3: found \"xxx"),
            ("a\n\nb\na\n".to_owned(), "line 4: found the key of line 1 again, allowed is each key once"),
            (format!("{0}\n{0}\n", "x".repeat(1_000_000)), "line 2: found the key of line 1 again"),
            ("a\0b".to_owned(), "line 1: found \"a\\0b\", allowed is a text without NUL"),
        ] {
            let error = parse(SourceFormat::Lines, &text).unwrap_err();
            assert!(error.starts_with(message) && error.len() < 300, "{error}");
        }
    }

    #[test]
    fn json_is_not_taken_for_lines() {
        for text in
            ["{\"error\": \"down\"}", "\u{feff}\n {\n}", "[\"a\", \"b\"]", "[\n  {\"name\": \"a\"}\n]", "[]", "[[1]]"]
        {
            let error = parse(SourceFormat::Lines, text).unwrap_err();
            assert_eq!(error, "found JSON, allowed is one key a line; to read it as JSON, say format: Json");
        }
        let keys = "[fd00::1]:80\n[::1]:80\n";
        assert_eq!(parse(SourceFormat::Lines, keys), Ok(vec!["[fd00::1]:80".to_owned(), "[::1]:80".to_owned()]));
    }

    #[test]
    fn too_many_lines_are_one_mistake() {
        let many: Vec<_> = (0..=MAX_SOURCE_ITEMS).map(|n| n.to_string()).collect();
        let error = parse(SourceFormat::Lines, &many.join("\n")).unwrap_err();
        assert!(
            error.starts_with("the list: found a longer one, allowed is a list of at most 100000 entries"),
            "{error}"
        );
    }

    #[test]
    fn json_is_a_list_of_keys_or_of_objects() {
        assert_eq!(parse(SourceFormat::Json, r#"["a", {"name": "b"}]"#), Ok(vec!["a".to_owned(), "b".to_owned()]));
        for (text, message) in [
            ("", "it is not JSON: nothing at all"),
            ("[\n\"a\",\n}", "it is not JSON: expected value at line 3 column 1"),
            (r#"{"items": []}"#, "the list: found an object of 1 fields, allowed is a list"),
            (
                r#"["a", {"name": "b", "priority": -1}]"#,
                "entry [1].priority: found -1, allowed is an integer from 0 to 1000",
            ),
            (r#"["a", 7]"#, "entry [1]: found 7, allowed is an object"),
            ("[1, 2, 3, 4, 5]", "entry [0]: found 1"),
        ] {
            let error = parse(SourceFormat::Json, text).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
        assert!(parse(SourceFormat::Json, "[1, 2, 3, 4, 5]").unwrap_err().ends_with("; and 2 more"));
    }

    #[test]
    fn what_is_no_text_says_where_that_begins() {
        let text = Text { bytes: vec![b'a', b'\n', 0xff], format: SourceFormat::Lines, secret: false };
        assert_eq!(text.parse().unwrap_err().message, "byte 2 of the list is not UTF-8, which lists are written in");
    }

    #[test]
    fn nothing_of_a_secret_is_told() {
        for (format, text) in [
            (SourceFormat::Lines, "hunter2\nhunter2\n".to_owned()),
            (SourceFormat::Lines, format!("hunter2{}\n", "x".repeat(600))),
            (SourceFormat::Json, r#"["hunter2", "hunter2"]"#.to_owned()),
            (SourceFormat::Json, r#"["a", {"hunter2": 1, "labels": {"-hunter2": "hunter2 "}}]"#.to_owned()),
            (SourceFormat::Json, r#""hunter2""#.to_owned()),
            (SourceFormat::Json, r#"["hunter2"#.to_owned()),
            (SourceFormat::Json, r#"{"hunter2": "hunter2"}"#.to_owned()),
            (SourceFormat::Json, r#"["a", "hunter2" "hunter2"]"#.to_owned()),
            (SourceFormat::Lines, r#"["hunter2"]"#.to_owned()),
            (SourceFormat::Json, "hunter2".to_owned()),
        ] {
            let secret = Text { bytes: text.clone().into(), format, secret: true };
            let trouble = secret.parse().unwrap_err();
            assert!(!trouble.message.contains("hunter2") && !trouble.message.is_empty(), "{trouble}");
        }
    }
}
