//! What a pool holds: resources with their declared facts, and the record Redis keeps of each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    names::{Origin, ResourceKey},
};

/// Highest priority a resource may have.
pub const MAX_PRIORITY: u16 = 1000;
/// Positions have ten digits.
const MAX_POSITION: u64 = 9_999_999_999;
/// Most bytes that one item's labels and params may take, as JSON.
const MAX_FACTS_BYTES: usize = 64 * 1024;

/// Deepest nesting of a parameter: what is deeper can't be read back.
const MAX_DEPTH: usize = 64;

/// Whether a value has at most so many levels.
fn is_shallow(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Array(_) | Value::Object(_), None) => false,
        (Value::Array(list), Some(left)) => list.iter().all(|value| is_shallow(value, left)),
        (Value::Object(map), Some(left)) => map.values().all(|value| is_shallow(value, left)),
        _ => true,
    }
}

/// One resource as it is declared.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What names it within the pool.
    pub key: ResourceKey,
    /// 0 to 1000; what has more is granted first. Default 0.
    pub priority: u16,
    /// Where it stands in a pool of order `Sequential`; `None`: behind all that are there, or where it was.
    pub position: Option<u64>,
    /// What callers may select it by.
    pub labels: BTreeMap<String, String>,
    /// Whatever its user needs to know; handed out with the lease.
    pub params: Map<String, Value>,
}

impl Item {
    /// An item of priority 0 without labels and params.
    pub fn new(key: ResourceKey) -> Self {
        Self { key, priority: 0, position: None, labels: BTreeMap::new(), params: Map::new() }
    }

    /// Sets the priority, 0 to 1000.
    #[must_use]
    pub fn priority(mut self, priority: u16) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the position for order `Sequential`.
    #[must_use]
    pub fn position(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Adds a parameter.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.params.insert(name.into(), value.into());
        self
    }

    /// Priority, position and facts as scripts take them.
    pub(crate) fn encode(&self) -> Result<Encoded> {
        if self.priority > MAX_PRIORITY {
            return Err(Error::Invalid {
                what: "priority",
                found: format!("{} of {}", self.priority, self.key),
                allowed: format!("0 to {MAX_PRIORITY}"),
            });
        }
        if self.position.is_some_and(|position| position > MAX_POSITION) {
            return Err(Error::Invalid {
                what: "position",
                found: format!("{:?} of {}", self.position, self.key),
                allowed: format!("0 to {MAX_POSITION}"),
            });
        }
        if self.params.values().any(|value| !is_shallow(value, MAX_DEPTH)) {
            return Err(Error::Invalid {
                what: "params",
                found: format!("more than {MAX_DEPTH} levels in {}", self.key),
                allowed: format!("lists and objects nested at most {MAX_DEPTH} levels deep"),
            });
        }
        // An index keeps values one after the other, with NUL between.
        if let Some((name, value)) =
            self.labels.iter().find(|(name, value)| name.contains('\0') || value.contains('\0'))
        {
            return Err(Error::Invalid {
                what: "label",
                found: format!("{name:?} = {value:?} of {}", self.key),
                allowed: "names and values without NUL".to_owned(),
            });
        }
        let facts = FactsRef { labels: &self.labels, params: &self.params }.encode()?;
        if facts.len() > MAX_FACTS_BYTES {
            return Err(Error::Invalid {
                what: "labels and params",
                found: format!("{} bytes of {}", facts.len(), self.key),
                allowed: format!("at most {MAX_FACTS_BYTES} bytes as JSON"),
            });
        }
        Ok(Encoded {
            priority: format!("{:04}", self.priority),
            position: self.position.map_or_else(String::new, |position| format!("{position:010}")),
            facts,
        })
    }
}

impl From<ResourceKey> for Item {
    fn from(key: ResourceKey) -> Self {
        Self::new(key)
    }
}

impl From<&ResourceKey> for Item {
    fn from(key: &ResourceKey) -> Self {
        Self::new(key.clone())
    }
}

/// An item's facts, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) priority: String,
    pub(crate) position: String,
    pub(crate) facts: String,
}

/// What is told of a resource beside its place.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Facts {
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) params: Map<String, Value>,
}

impl Facts {
    /// Reads what [`FactsRef::encode`] wrote.
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() { Some(Self::default()) } else { serde_json::from_str(text).ok() }
    }
}

#[derive(Serialize)]
struct FactsRef<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    params: &'a Map<String, Value>,
}

impl FactsRef<'_> {
    /// Empty when there is nothing to tell: most resources of a large pool.
    fn encode(&self) -> Result<String> {
        if self.labels.is_empty() && self.params.is_empty() {
            return Ok(String::new());
        }
        serde_json::to_string(self).map_err(|error| Error::Invalid {
            what: "labels and params",
            found: error.to_string(),
            allowed: "what JSON can express".to_owned(),
        })
    }
}

/// An item as Redis has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) priority: u16,
    pub(crate) position: u64,
    pub(crate) origins: Vec<Origin>,
    /// JSON, or empty.
    pub(crate) facts: String,
}

impl Record {
    /// Reads priority (4 digits), position (10), length of the origins (4), origins (JSON list), facts (JSON).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let priority = text.get(..4)?.parse().ok()?;
        let position = text.get(4..14)?.parse().ok()?;
        let end = 18 + text.get(14..18)?.parse::<usize>().ok()?;
        let origins = serde_json::from_str(text.get(18..end)?).ok()?;
        Some(Self { priority, position, origins, facts: text.get(end..)?.to_owned() })
    }

    pub(crate) fn facts(&self) -> Option<Facts> {
        Facts::parse(&self.facts)
    }

    /// The facts of a record alone, for those who need nothing else of it.
    pub(crate) fn facts_of(text: &str) -> Option<Facts> {
        let end = 18 + text.get(14..18)?.parse::<usize>().ok()?;
        Facts::parse(text.get(end..)?)
    }

    /// Whether it says for this origin what the item does.
    pub(crate) fn says(&self, encoded: &Encoded) -> bool {
        format!("{:04}", self.priority) == encoded.priority
            && (encoded.position.is_empty() || format!("{:010}", self.position) == encoded.position)
            && self.facts == encoded.facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> ResourceKey {
        text.parse().unwrap()
    }

    #[test]
    fn a_record_reads_back() {
        let item = Item::new(key("a")).priority(7).position(12).label("zone", "a").param("index", 3);
        let encoded = item.encode().unwrap();
        let origins = r#"["range/x","spec"]"#;
        let text = format!("{}{}{:04}{origins}{}", encoded.priority, encoded.position, origins.len(), encoded.facts);
        let record = Record::parse(&text).unwrap();
        assert_eq!((record.priority, record.position), (7, 12));
        assert_eq!(record.origins, [Origin::Range("x".to_owned()), Origin::Spec]);
        assert_eq!(record.facts().unwrap(), Facts { labels: item.labels.clone(), params: item.params.clone() });
        assert!(record.says(&encoded));
        assert!(!record.says(&item.priority(8).encode().unwrap()));
    }

    #[test]
    fn a_torn_record_is_no_record() {
        for torn in ["", "0000", "00000000000000", "000000000000000012[]", "00000000000000xx{}", "é"] {
            assert!(Record::parse(torn).is_none(), "{torn:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Item::new(key("a")).priority(1001).encode().is_err());
        assert!(Item::new(key("a")).position(10_000_000_000).encode().is_err());
        assert!(Item::new(key("a")).param("x", "y".repeat(70_000)).encode().is_err());
        assert!(Item::new(key("a")).label("zone", "eu\0us").encode().is_err());
        assert!(Item::new(key("a")).label("zone\0", "eu").encode().is_err());
        let nested = |levels| (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        assert!(Item::new(key("a")).param("x", nested(64)).encode().is_ok());
        assert!(Item::new(key("a")).param("x", nested(65)).encode().is_err());
    }
}
