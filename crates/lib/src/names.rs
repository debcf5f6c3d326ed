//! The names that cross the border: each kind a type of its own, checked once, plain strings inside.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Longest resource key and binding name, in bytes. Keys are stored several times per resource; half a KiB is generous.
const MAX_KEY_BYTES: usize = 512;
/// Longest DNS-1123 label, in bytes (RFC 1123, section 2.1, and RFC 1035, section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;
/// Where a name without a namespace lives.
const DEFAULT_NAMESPACE: &str = "default";

/// What a rejected value looks like in an error: whole when short, cut at a character otherwise.
fn excerpt(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], text.len()),
    }
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL_BYTES
        && bytes.first().is_some_and(|&b| alphanumeric(b))
        && bytes.last().is_some_and(|&b| alphanumeric(b))
        && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
}

/// A pool's full name, `<namespace>/<name>`; both parts are DNS-1123 labels.
///
/// ```
/// # use redis_allocator::PoolName;
/// let name: PoolName = "gpus".parse()?;
/// assert_eq!(name.to_string(), "default/gpus");
/// assert!("GPUs".parse::<PoolName>().is_err());
/// # Ok::<(), redis_allocator::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName {
    full: Arc<str>,
    slash: usize,
}

impl PoolName {
    /// The name of a pool in a namespace.
    ///
    /// # Errors
    /// [`Error::InvalidName`] unless both are DNS-1123 labels.
    pub fn new(namespace: &str, name: &str) -> Result<Self, Error> {
        for (what, label) in [("namespace", namespace), ("pool name", name)] {
            if !is_label(label) {
                return Err(Error::InvalidName {
                    what,
                    found: excerpt(label),
                    allowed: "1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends",
                });
            }
        }
        Ok(Self { full: format!("{namespace}/{name}").into(), slash: namespace.len() })
    }

    /// The part before the slash.
    pub fn namespace(&self) -> &str {
        &self.full[..self.slash]
    }

    /// The part behind the slash.
    pub fn name(&self) -> &str {
        &self.full[self.slash + 1..]
    }

    /// Both, joined by the slash.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl FromStr for PoolName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new(DEFAULT_NAMESPACE, text),
        }
    }
}

impl TryFrom<String> for PoolName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.full.as_ref().to_owned()
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.full)
    }
}

/// Checks who a lease is granted to: shown to people, compared with nothing.
pub(crate) fn check_owner(owner: String) -> Result<String, Error> {
    if owner.is_empty() || owner.len() > MAX_KEY_BYTES || owner.contains('\0') {
        return Err(Error::InvalidName {
            what: "owner",
            found: excerpt(&owner),
            allowed: "1 to 512 bytes of UTF-8 without NUL",
        });
    }
    Ok(owner)
}

macro_rules! key_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps a text.
            ///
            /// # Errors
            /// [`Error::InvalidName`] when it is empty, longer than 512 bytes, or has a NUL.
            pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
                let text = text.as_ref();
                if text.is_empty() || text.len() > MAX_KEY_BYTES || text.contains('\0') {
                    return Err(Error::InvalidName {
                        what: $what,
                        found: excerpt(text),
                        allowed: "1 to 512 bytes of UTF-8 without NUL",
                    });
                }
                Ok(Self(text.into()))
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

key_type!(
    /// What names a resource within its pool: any non-empty UTF-8 of at most 512 bytes without NUL.
    ResourceKey,
    "resource key"
);
key_type!(
    /// The name a soft binding ties to a resource: any non-empty UTF-8 of at most 512 bytes without NUL.
    BindingName,
    "binding name"
);

/// Who declared an item. A pool's item leaves when its last origin lets go of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Origin {
    /// `spec.resources` of the declaration.
    Spec,
    /// The entry of this name in `spec.ranges`.
    Range(String),
    /// The entry of this name in `spec.sources`.
    Source(String),
    /// Calls of this library: [`extend`](crate::Pool::extend), [`assign`](crate::Pool::assign).
    Api,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spec => f.write_str("spec"),
            Self::Range(name) => write!(f, "range/{name}"),
            Self::Source(name) => write!(f, "source/{name}"),
            Self::Api => f.write_str("api"),
        }
    }
}

impl FromStr for Origin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match (text, text.split_once('/')) {
            ("spec", _) => Ok(Self::Spec),
            ("api", _) => Ok(Self::Api),
            (_, Some(("range", name))) if is_label(name) => Ok(Self::Range(name.to_owned())),
            (_, Some(("source", name))) if is_label(name) => Ok(Self::Source(name.to_owned())),
            _ => Err(Error::InvalidName {
                what: "origin",
                found: excerpt(text),
                allowed: "spec, api, range/<name> or source/<name>, the name a DNS-1123 label",
            }),
        }
    }
}

impl TryFrom<String> for Origin {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_name_without_a_namespace_is_in_default() {
        let name: PoolName = "gpus".parse().unwrap();
        assert_eq!((name.namespace(), name.name(), name.as_str()), ("default", "gpus", "default/gpus"));
    }

    #[test]
    fn a_pool_name_is_two_labels() {
        for bad in ["", "/", "a/", "/a", "A", "a_b", "-a", "a-", "a/b/c", "a b", "{x}", &"a".repeat(64)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(63).parse::<PoolName>().is_ok());
    }

    #[test]
    fn a_key_is_up_to_512_bytes_without_nul() {
        for bad in ["", "a\0b", &"é".repeat(257)] {
            assert!(ResourceKey::new(bad).is_err(), "{bad:?}");
        }
        for good in [" ", "{a}", "a\nb", &"é".repeat(256), "10.0.0.1:8000"] {
            assert_eq!(ResourceKey::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn an_origin_reads_back() {
        for text in ["spec", "api", "range/hosts", "source/eu"] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        for bad in ["", "range/", "other", "range/A"] {
            assert!(bad.parse::<Origin>().is_err(), "{bad:?}");
        }
    }
}
