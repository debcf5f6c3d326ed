//! How a pool grants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    time::{millis, millis_or_zero},
};

/// Which free resource is granted next, among those of the highest priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Order {
    /// The one that has been free for longest.
    #[default]
    LeastRecentlyUsed,
    /// The one declared first.
    Sequential,
    /// Any, each as likely.
    Random,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LeastRecentlyUsed => "LeastRecentlyUsed",
            Self::Sequential => "Sequential",
            Self::Random => "Random",
        })
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "LeastRecentlyUsed" => Ok(Self::LeastRecentlyUsed),
            "Sequential" => Ok(Self::Sequential),
            "Random" => Ok(Self::Random),
            _ => Err(()),
        }
    }
}

/// How many may hold one resource of a pool at a time. A pool's mode is set once: another one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// One holder.
    #[default]
    Exclusive,
    /// Several, of which each has a lease of its own.
    Shared {
        /// The most holders of one resource; `None` = any number.
        max_holders: Option<NonZeroU32>,
    },
}

impl Mode {
    /// Its name alone, as Redis and manifests have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "Exclusive",
            Self::Shared { .. } => "Shared",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The most indexes of a pool: each costs a write at every grant and return.
const MAX_INDEXES: usize = 4;
/// The most label names of an index.
const MAX_INDEX_NAMES: usize = 4;

/// How a pool grants. The defaults are those of a `ResourcePool` manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// How many may hold one resource. Default `Exclusive`.
    pub mode: Mode,
    /// Which resource is next. Default `LeastRecentlyUsed`.
    pub order: Order,
    /// How long a lease lasts whose caller did not say. Default 2 min.
    pub default_ttl: Duration,
    /// The longest lease; more is refused. Default `None`: any, permanent ones too.
    pub max_ttl: Option<Duration>,
    /// How long a returned resource rests before it is granted again. Default 0; a `Shared` pool has none.
    pub cooldown: Duration,
    /// How long a soft binding that a grant made outlives the grant; zero = for ever. Default 1 h.
    pub binding_ttl: Duration,
    /// Whether the pool grants nothing for now. Default `false`.
    pub suspended: bool,
    /// The sets of label names that callers may select by, at most 4 of 1 to 4 names. Kept, and told by
    /// [`Pool::info`](super::Pool::info), with the names of each in alphabetical order. Default: none.
    pub indexes: Vec<Vec<String>>,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            order: Order::default(),
            default_ttl: Duration::from_mins(2),
            max_ttl: None,
            cooldown: Duration::ZERO,
            binding_ttl: Duration::from_hours(1),
            suspended: false,
            indexes: Vec::new(),
        }
    }
}

/// What a script is told of a pool's settings.
pub(super) type Fields = [(&'static str, String); 9];

impl PoolSettings {
    pub(super) fn fields(&self) -> Result<Fields> {
        let default_ttl = millis("default TTL", self.default_ttl)?;
        let max_ttl = self.max_ttl.map_or(Ok(0), |max| millis("maximum TTL", max))?;
        if max_ttl != 0 && default_ttl > max_ttl {
            return Err(Error::Invalid {
                what: "default TTL",
                found: format!("{:?}", self.default_ttl),
                allowed: format!("at most the maximum TTL, {max_ttl} ms"),
            });
        }
        let max_holders = match self.mode {
            Mode::Exclusive => 0,
            Mode::Shared { .. } if !self.cooldown.is_zero() => {
                return Err(Error::Invalid {
                    what: "cooldown",
                    found: format!("{:?} of a Shared pool", self.cooldown),
                    allowed: "0, or mode Exclusive".to_owned(),
                });
            }
            Mode::Shared { max_holders } => max_holders.map_or(0, NonZeroU32::get),
        };
        Ok([
            ("order", self.order.to_string()),
            ("cooldown", millis_or_zero("cooldown", self.cooldown)?.to_string()),
            ("suspended", u8::from(self.suspended).to_string()),
            ("mode", self.mode.to_string()),
            ("max_holders", max_holders.to_string()),
            ("indexes", self.encode_indexes()?),
            ("default_ttl", default_ttl.to_string()),
            ("max_ttl", max_ttl.to_string()),
            ("binding_ttl", millis_or_zero("binding TTL", self.binding_ttl)?.to_string()),
        ])
    }

    /// The indexes as scripts take them: JSON, or nothing when there are none.
    fn encode_indexes(&self) -> Result<String> {
        let refused =
            |found, allowed: &str| Err(Error::Invalid { what: "list of indexes", found, allowed: allowed.to_owned() });
        if self.indexes.len() > MAX_INDEXES {
            return refused(self.indexes.len().to_string(), "at most 4");
        }
        let mut sorted = Vec::with_capacity(self.indexes.len());
        for index in &self.indexes {
            // Sorted names join to the same text as those of a selector.
            let names: BTreeSet<&str> = index.iter().map(String::as_str).collect();
            if index.is_empty() || index.len() > MAX_INDEX_NAMES || names.len() < index.len() {
                return refused(format!("{index:?}"), "1 to 4 different label names in each");
            }
            if names.iter().any(|name| name.is_empty() || name.contains(['\0', ','])) {
                return refused(format!("{index:?}"), "label names that are not empty, without comma and NUL");
            }
            if sorted.contains(&names) {
                return refused(format!("{index:?} twice"), "each set of label names once");
            }
            sorted.push(names);
        }
        if sorted.is_empty() {
            return Ok(String::new());
        }
        serde_json::to_string(&sorted).or_else(|error| refused(error.to_string(), "what JSON can say"))
    }

    /// As Redis has them.
    pub(super) fn read(meta: &BTreeMap<String, String>) -> Self {
        let count = |field: &str| meta.get(field).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let duration = |field: &str| Duration::from_millis(count(field));
        let text = |field: &str| meta.get(field).map_or("", String::as_str);
        let max_holders = u32::try_from(count("max_holders")).ok().and_then(NonZeroU32::new);
        Self {
            mode: if text("mode") == "Shared" { Mode::Shared { max_holders } } else { Mode::Exclusive },
            order: text("order").parse().unwrap_or_default(),
            default_ttl: duration("default_ttl"),
            max_ttl: Some(duration("max_ttl")).filter(|max| !max.is_zero()),
            cooldown: duration("cooldown"),
            binding_ttl: duration("binding_ttl"),
            suspended: count("suspended") == 1,
            indexes: serde_json::from_str(text("indexes")).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes(sets: &[&[&str]]) -> PoolSettings {
        let indexes = sets.iter().map(|set| set.iter().map(|&name| name.to_owned()).collect()).collect();
        PoolSettings { indexes, ..PoolSettings::default() }
    }

    /// As Redis keeps them and gives them back.
    fn kept(settings: &PoolSettings) -> PoolSettings {
        let fields = settings.fields().unwrap();
        PoolSettings::read(&fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect())
    }

    #[test]
    fn settings_are_read_back_as_they_were_given() {
        let shared = |max_holders| PoolSettings {
            mode: Mode::Shared { max_holders: NonZeroU32::new(max_holders) },
            ..indexes(&[&["zone"], &["model", "zone"]])
        };
        let every = PoolSettings {
            order: Order::Random,
            default_ttl: Duration::from_secs(7),
            max_ttl: Some(Duration::from_secs(9)),
            cooldown: Duration::from_millis(1),
            binding_ttl: Duration::ZERO,
            suspended: true,
            ..PoolSettings::default()
        };
        for settings in [PoolSettings::default(), every, shared(0), shared(u32::MAX)] {
            assert_eq!(kept(&settings), settings);
        }
    }

    #[test]
    fn the_names_of_an_index_are_sorted_and_its_place_is_kept() {
        let settings = kept(&indexes(&[&["zone", "model"], &["b", "c", "a", "d"], &["x"]]));
        assert_eq!(settings, indexes(&[&["model", "zone"], &["a", "b", "c", "d"], &["x"]]));
    }

    #[test]
    fn indexes_that_could_not_be_used_are_refused() {
        for bad in [
            &[&["a"][..], &["b"], &["c"], &["d"], &["e"]][..],
            &[&[]],
            &[&["a", "b", "c", "d", "e"]],
            &[&["a", "a"]],
            &[&["a", "b"], &["b", "a"]],
            &[&[""]],
            &[&["a,b"]],
            &[&["a\0"]],
        ] {
            let refused = indexes(bad).fields();
            assert!(matches!(refused, Err(Error::Invalid { what: "list of indexes", .. })), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn a_cooldown_and_several_holders_exclude_each_other() {
        let mode = Mode::Shared { max_holders: None };
        let settings = PoolSettings { mode, cooldown: Duration::from_secs(1), ..PoolSettings::default() };
        let refused = settings.fields().unwrap_err().to_string();
        assert_eq!(refused, "cooldown 1s of a Shared pool is not valid: allowed is 0, or mode Exclusive");
    }
}
