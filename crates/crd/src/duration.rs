//! Spans of time as the manifests write them: Gateway API strings (GEP-2257), such as `1h30m`.
//!
//! Knows the text form only; how short or long a span may be is said where it is used.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The form of a duration, word for word from [GEP-2257](https://gateway-api.sigs.k8s.io/geps/gep-2257/).
pub(crate) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// [`PATTERN`] in words.
pub(crate) const ALLOWED: &str =
    "one to four numbers of at most five digits, each followed by h, m, s or ms, such as 1h30m or 500ms";
/// Four times five digits and a unit of two letters.
const MAX_LENGTH: usize = 4 * (5 + 2);

/// A non-negative span of time in whole milliseconds, written as a Gateway API duration (GEP-2257): one to four
/// numbers, each followed by `h`, `m`, `s` or `ms`. The sum is at most `99999h`, eleven years.
///
/// Written back, it is in its shortest form: `90m` becomes `1h30m`.
///
/// ```
/// # use redis_allocator_crd::Duration;
/// let ttl: Duration = "1h30m".parse()?;
/// assert_eq!(ttl.as_std(), std::time::Duration::from_secs(5400));
/// assert!("1.5h".parse::<Duration>().is_err());
/// # Ok::<(), redis_allocator_crd::InvalidDuration>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    millis: u64,
}

/// A text that is not a Gateway API duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a duration: allowed are {ALLOWED}, at most 99999h together")]
pub struct InvalidDuration {
    /// What was found instead.
    pub found: String,
}

impl Duration {
    /// A span of whole seconds, for the defaults.
    pub(crate) const fn from_secs(secs: u64) -> Self {
        Self { millis: secs * 1000 }
    }

    /// The same span in the standard library's type.
    pub const fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.millis)
    }

    /// Whether this is no time at all.
    pub const fn is_zero(self) -> bool {
        self.millis == 0
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.as_std()
    }
}

/// Above this the shortest form would need more than four numbers.
const LONGEST_MILLIS: u64 = 99_999 * 3_600_000;

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration { found: text.to_owned() };
        let mut rest = text;
        let mut parts = 0;
        let mut millis = 0;
        while !rest.is_empty() {
            let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(unit_at);
            let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            parts += 1;
            if number.len() > 5 || parts > 4 {
                return Err(invalid());
            }
            millis += number.parse::<u64>().map_err(|_| invalid())? * factor;
            rest = tail;
        }
        if parts == 0 || millis > LONGEST_MILLIS { Err(invalid()) } else { Ok(Self { millis }) }
    }
}

impl TryFrom<String> for Duration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, InvalidDuration> {
        text.parse()
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.millis;
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in UNITS {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": MAX_LENGTH, "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn a_duration_is_the_sum_of_its_parts() {
        for (text, millis) in [
            ("0s", 0),
            ("0h0m", 0),
            ("1ms", 1),
            ("2m", 120_000),
            ("1h30m10s5ms", 5_410_005),
            ("30m1h", 5_400_000),
            ("99999h", 99_999 * 3_600_000),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap().millis, millis, "{text}");
        }
    }

    #[test]
    fn what_is_not_gep_2257_is_refused_and_the_pattern_agrees() {
        let pattern = Regex::new(PATTERN).unwrap();
        for text in
            ["", "1", "s", "-1s", "+1s", "1.5h", "1d", "1us", "1 s", "1S", "100000s", "1h1h1h1h1h", "1h2", "1mm", "١s"]
        {
            assert!(!pattern.is_match(text), "{text}");
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("1h30m"), "{error}");
        }
    }

    #[test]
    fn the_longest_duration_is_99999h() {
        assert!("99999h1ms".parse::<Duration>().unwrap_err().to_string().contains("at most 99999h"));
    }

    #[test]
    fn a_duration_is_written_in_its_shortest_form_and_read_back() {
        for (text, written) in
            [("90m", "1h30m"), ("0h", "0s"), ("1500ms", "1s500ms"), ("24h", "24h"), ("99998h59m60s", "99999h")]
        {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.to_string(), written);
            assert_eq!(written.parse(), Ok(duration));
        }
    }
}
