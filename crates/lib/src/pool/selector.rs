//! Asking for resources by their labels. It knows the form of a selector; whether a pool has the index, Redis says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use crate::error::{Error, Result};

/// The most combinations of values that one selector may stand for.
pub(super) const MOST_COMBINATIONS: usize = 16;

/// Which labels a resource must have: for each label one of some values.
///
/// The set of its labels must be one of the pool's `indexes`; then it costs O(log n), however large the pool is. A list of
/// values multiplies that: at most 16 combinations.
///
/// ```
/// use redis_allocator::Selector;
///
/// let parsed: Selector = "zone=eu, model in (h100, a100)".parse()?;
/// assert_eq!(parsed, Selector::new().equals("zone", "eu").one_of("model", ["h100", "a100"]));
/// assert!("zone!=eu".parse::<Selector>().is_err());
/// # Ok::<(), redis_allocator::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Selector {
    /// One that asks for nothing yet: add labels, at least one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The label must have this value.
    #[must_use]
    pub fn equals(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.one_of(label, [value])
    }

    /// The label must have one of these values. Said twice of one label, both must hold.
    #[must_use]
    pub fn one_of<V: Into<String>>(mut self, label: impl Into<String>, values: impl IntoIterator<Item = V>) -> Self {
        let values: BTreeSet<String> = values.into_iter().map(Into::into).collect();
        self.labels.entry(label.into()).and_modify(|old| old.retain(|value| values.contains(value))).or_insert(values);
        self
    }

    /// How many combinations of values it stands for.
    pub(super) fn combinations(&self) -> usize {
        self.labels.values().map(BTreeSet::len).fold(1, usize::saturating_mul)
    }

    /// As `find` in `free_set.lua` takes it: the index, then what entries of it begin with.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one without labels, with a label that has no value left, or with too many combinations.
    pub(super) fn probes(&self) -> Result<Vec<String>> {
        if self.labels.is_empty() {
            return Err(self.invalid("at least one label"));
        }
        if let Some((label, _)) = self.labels.iter().find(|(_, values)| values.is_empty()) {
            return Err(self.invalid(&format!("at least one value for {label}")));
        }
        if self.combinations() > MOST_COMBINATIONS {
            return Err(self
                .invalid(&format!("at most {MOST_COMBINATIONS} combinations of values, not {}", self.combinations())));
        }
        let strange = |text: &&String| text.is_empty() || text.contains(['\0', ',']);
        if let Some(text) = self.labels.keys().chain(self.labels.values().flatten()).find(strange) {
            return Err(
                self.invalid(&format!("labels and values without commas and NUL, and not empty, unlike {text:?}"))
            );
        }
        let index = self.labels.keys().map(String::as_str).collect::<Vec<_>>().join(",");
        let mut probes = vec![format!("{index}\0")];
        for values in self.labels.values() {
            probes =
                probes.iter().flat_map(|probe| values.iter().map(move |value| format!("{probe}{value}\0"))).collect();
        }
        probes.insert(0, index);
        Ok(probes)
    }

    fn invalid(&self, allowed: &str) -> Error {
        Error::Invalid { what: "selector", found: format!("{:?}", self.to_string()), allowed: allowed.to_owned() }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (k, (label, values)) in self.labels.iter().enumerate() {
            let comma = if k == 0 { "" } else { "," };
            let values: Vec<_> = values.iter().map(String::as_str).collect();
            match values[..] {
                [value] => write!(f, "{comma}{label}={value}")?,
                _ => write!(f, "{comma}{label} in ({})", values.join(","))?,
            }
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = Error;

    /// Reads `label=value`, `label==value` and `label in (value, …)`, with commas between.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |part: &str| Error::Invalid {
            what: "selector",
            found: format!("{:?} in {text:?}", part.trim()),
            allowed:
                "label=value and label in (value, …), with commas between, of labels that the pool has an index of"
                    .to_owned(),
        };
        let mut selector = Self::new();
        let mut rest = text;
        loop {
            let part_end = match (rest.find(','), rest.find('(')) {
                (Some(comma), Some(open)) if open < comma => {
                    rest.find(')').map(|close| close + 1).ok_or_else(|| invalid(rest))?
                }
                (None, Some(_)) => rest.find(')').map(|close| close + 1).ok_or_else(|| invalid(rest))?,
                (comma, _) => comma.unwrap_or(rest.len()),
            };
            let (part, after) = rest.split_at(part_end);
            selector = selector.and(part).ok_or_else(|| invalid(part))?;
            rest = match after.trim_start().strip_prefix(',') {
                Some(next) => next,
                None if after.trim().is_empty() => break,
                None => return Err(invalid(after)),
            };
        }
        // Too many combinations are said at once, not when it is used.
        selector.probes()?;
        Ok(selector)
    }
}

impl Selector {
    /// Adds one requirement as text.
    fn and(self, part: &str) -> Option<Self> {
        let named = |label: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let label = label.trim();
            (!label.is_empty() && label.chars().all(plain)).then(|| label.to_owned())
        };
        if let Some((label, values)) = part.split_once('(') {
            let label = label.trim_end().strip_suffix("in").filter(|label| label.ends_with(char::is_whitespace))?;
            let values = values.trim_end().strip_suffix(')')?;
            let values = values.split(',').map(named).collect::<Option<Vec<_>>>()?;
            return Some(self.one_of(named(label)?, values));
        }
        let (label, value) = part.split_once("==").or_else(|| part.split_once('='))?;
        Some(self.equals(named(label)?, named(value)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for text in ["zone=eu", "model in (a100,h100),zone=eu", "a/b.c=1"] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
            assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }
        assert_eq!(" zone == eu , m in ( x , y ) ".parse::<Selector>().unwrap().to_string(), "m in (x,y),zone=eu");
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let bad = [
            "",
            " ",
            "zone",
            "zone=",
            "=eu",
            "zone!=eu",
            "zone in eu",
            "zone in ()",
            "zone in (eu",
            "zone in (eu))",
            "zone=eu,",
            ",zone=eu",
            "zone notin (eu)",
            "zone=eu model=x",
            "zone in (eu) model=x",
            "zonein (eu)",
            "!zone",
        ];
        for text in bad {
            let error = text.parse::<Selector>().unwrap_err();
            assert!(matches!(error, Error::Invalid { what: "selector", .. }), "{text}: {error}");
        }
        let error = "zone=eu,zone=us".parse::<Selector>().unwrap_err();
        assert!(error.to_string().contains("at least one value for zone"), "{error}");
    }

    #[test]
    fn probes_are_the_product_of_the_values() {
        let selector: Selector = "zone in (eu,us),model=x".parse().unwrap();
        assert_eq!(selector.probes().unwrap(), ["model,zone", "model,zone\0x\0eu\0", "model,zone\0x\0us\0"]);
        let values: Vec<_> = (0..17).map(|i| i.to_string()).collect();
        let error = Selector::new().one_of("zone", values).probes().unwrap_err();
        assert!(error.to_string().contains("at most 16 combinations of values, not 17"), "{error}");
        assert!(Selector::new().probes().is_err());
        assert!(Selector::new().equals("zone", "a\0b").probes().is_err());
    }
}
