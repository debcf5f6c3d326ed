//! Finds keys that two resources or ranges of a pool would both make.
//!
//! Ranges stand for up to a million keys, so nearly everything is decided without expanding them.

use std::collections::HashMap;

use crate::{
    pool::ResourceRange,
    violation::{FieldPath, Report, Violation},
};

/// Reports resources that a range makes as well, and ranges that share keys with an earlier one; one key for each.
/// Resources that share a name are the schema's to report.
pub(super) fn check(names: &[(usize, &str)], ranges: &[(usize, ResourceRange)], spec: &FieldPath, report: &mut Report) {
    const ALLOWED: &str = "keys that no other resource or range makes";
    let range_path = |index: usize| spec.join("ranges").join(index);
    let said_of = |index: usize, range: &ResourceRange| format!("{} ({:?})", range_path(index), range.name);

    for (index, name) in names {
        if let Some((other, range)) = ranges.iter().find(|(_, range)| range.contains(name)) {
            report.add(|| {
                let path = spec.join("resources").join(*index).join("name");
                Violation::new(path, format!("{name:?}, which {} makes, too", said_of(*other, range)), ALLOWED)
            });
        }
    }

    let expanded = expand(ranges);
    for (later, (index, range)) in ranges.iter().enumerate() {
        let clash = ranges[..later].iter().enumerate().find_map(|(earlier, (other, other_range))| {
            let key = match relation(range, other_range) {
                Relation::Apart => None,
                Relation::Same => shared_number(range, other_range).map(|number| range.template.key(number)),
                Relation::Unclear => expanded.get(&(earlier, later)).cloned(),
            };
            key.map(|key| (key, *other, other_range))
        });
        if let Some((key, other, other_range)) = clash {
            report.add(|| {
                Violation::new(
                    range_path(*index),
                    format!("{key:?}, which {} makes, too", said_of(other, other_range)),
                    ALLOWED,
                )
            });
        }
    }
}

/// How two templates stand to each other.
#[derive(Debug, PartialEq)]
enum Relation {
    /// No number makes the same key of both.
    Apart,
    /// They differ at most in the width of the number.
    Same,
    /// One has digits around its number that may be part of the other's number: `a{}` and `a1{}`.
    Unclear,
}

fn relation(a: &ResourceRange, b: &ResourceRange) -> Relation {
    let (a, b) = (&a.template, &b.template);
    if a.prefix() == b.prefix() && a.suffix() == b.suffix() {
        return Relation::Same;
    }
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let by_digits = |long: Option<&str>| long.is_some_and(digits);
    let prefixes = by_digits(a.prefix().strip_prefix(b.prefix())) || by_digits(b.prefix().strip_prefix(a.prefix()));
    let suffixes = by_digits(a.suffix().strip_suffix(b.suffix())) || by_digits(b.suffix().strip_suffix(a.suffix()));
    if prefixes && suffixes { Relation::Unclear } else { Relation::Apart }
}

/// The lowest number of which two ranges that differ at most in width make the same key.
fn shared_number(a: &ResourceRange, b: &ResourceRange) -> Option<u64> {
    let end = |range: &ResourceRange| range.first().saturating_add(range.len());
    let mut first = a.first().max(b.first());
    let (a_width, b_width) = (a.template.width(), b.template.width());
    if a_width != b_width {
        // Padded to different widths, numbers look the same only where neither is padded.
        let digits = u32::try_from(a_width.max(b_width) - 1).unwrap_or(u32::MAX);
        first = first.max(10_u64.saturating_pow(digits));
    }
    (first < end(a).min(end(b))).then_some(first)
}

/// A key that two ranges share, by their positions, for those whose templates leave it unclear. Expands these ranges, a
/// million keys at most, as their sum is bounded; a list that breaks the bound is reported for that and not expanded.
fn expand(ranges: &[(usize, ResourceRange)]) -> HashMap<(usize, usize), String> {
    const MOST: u64 = 1_000_000;
    let unclear = |(position, range): &(usize, &ResourceRange)| {
        let others = ranges.iter().enumerate().filter(|(other, _)| other != position);
        others.into_iter().any(|(_, (_, other))| relation(range, other) == Relation::Unclear)
    };
    let unclear: Vec<_> = ranges.iter().map(|(_, range)| range).enumerate().filter(unclear).collect();
    if unclear.iter().fold(0_u64, |sum, (_, range)| sum.saturating_add(range.len())) > MOST {
        return HashMap::new();
    }
    let mut makers: HashMap<String, usize> = HashMap::new();
    let mut shared = HashMap::new();
    for (position, range) in unclear {
        for key in range.keys() {
            match makers.get(&key) {
                None => {
                    makers.insert(key, position);
                }
                Some(earlier) => {
                    shared.entry((*earlier, position)).or_insert(key);
                }
            }
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ranges(ranges: &[(&str, i64, i64)]) -> Vec<(usize, ResourceRange)> {
        let range = |(template, from, to): &(&str, i64, i64)| {
            serde_json::from_value(json!({ "name": "r", "template": template, "from": from, "to": to })).unwrap()
        };
        ranges.iter().map(range).enumerate().collect()
    }

    fn clashes(names: &[&str], templates: &[(&str, i64, i64)]) -> Vec<String> {
        let names: Vec<_> = names.iter().copied().enumerate().collect();
        let mut report = Report::default();
        check(&names, &ranges(templates), &FieldPath::default(), &mut report);
        report.into_violations().iter().map(|violation| format!("{}: {}", violation.path, violation.found)).collect()
    }

    #[test]
    fn a_resource_that_a_range_makes_is_found() {
        assert_eq!(
            clashes(&["h7", "h07", "h11"], &[("h{}", 1, 10)]),
            [r#"resources[0].name: "h7", which ranges[0] ("r") makes, too"#]
        );
    }

    #[test]
    fn ranges_of_one_template_clash_where_their_numbers_meet() {
        assert_eq!(clashes(&[], &[("h{}", 1, 10), ("h{}", 11, 20)]), [""; 0]);
        assert_eq!(
            clashes(&[], &[("h{}", 1, 10), ("h{}", 10, 20)]),
            [r#"ranges[1]: "h10", which ranges[0] ("r") makes, too"#]
        );
    }

    #[test]
    fn padding_keeps_ranges_apart_until_it_ends() {
        assert_eq!(clashes(&[], &[("h{:03}", 1, 99), ("h{}", 1, 99)]), [""; 0]);
        assert_eq!(
            clashes(&[], &[("h{:03}", 1, 200), ("h{}", 1, 200)]),
            [r#"ranges[1]: "h100", which ranges[0] ("r") makes, too"#]
        );
    }

    #[test]
    fn digits_beside_the_number_are_told_from_it() {
        assert_eq!(clashes(&[], &[("h{}", 1, 9), ("h1{}", 0, 9), ("x1{}", 0, 9)]), [""; 0]);
        assert_eq!(
            clashes(&[], &[("h{}", 1, 10), ("h1{}", 0, 9)]),
            [r#"ranges[1]: "h10", which ranges[0] ("r") makes, too"#]
        );
        assert_eq!(
            clashes(&[], &[("{}0", 1, 10), ("1{}", 0, 9)]),
            [r#"ranges[1]: "10", which ranges[0] ("r") makes, too"#]
        );
    }

    /// Every pair of small ranges, compared with expanding both.
    #[test]
    fn the_verdict_is_that_of_expanding_everything() {
        let templates = ["{}", "1{}", "{}1", "{:02}", "1{:02}", "a{}", "0{}", "{}a"];
        let spans = [(0, 0), (0, 12), (9, 11), (100, 112)];
        let all: Vec<_> = templates.iter().flat_map(|t| spans.map(|(from, to)| (*t, from, to))).collect();
        let mut clashing = 0;
        for a in &all {
            for b in &all {
                let pair = ranges(&[*a, *b]);
                let expected = pair[0].1.keys().any(|key| pair[1].1.keys().any(|other| other == key));
                assert_eq!(!clashes(&[], &[*a, *b]).is_empty(), expected, "{a:?} {b:?}");
                clashing += usize::from(expected);
            }
        }
        assert!(clashing > 100, "{clashing}");
    }
}
