//! Why a source brought nothing that could be used.

use std::fmt;

/// A failed fetch, in words for people and in one for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// One of [`CATEGORIES`].
    pub(crate) category: &'static str,
    /// What failed, what was found, what to do. Nothing of a Secret, no password and no query of a URL.
    pub(crate) message: String,
}

/// Every category there is.
pub(crate) const CATEGORIES: [&str; 8] =
    [REFUSED, UNREACHABLE, TIMEOUT, STATUS, NOT_FOUND, TOO_LARGE, INVALID, HELD_BACK];

/// The agent may not ask it.
pub(crate) const REFUSED: &str = "refused";
/// There is no way to it.
pub(crate) const UNREACHABLE: &str = "unreachable";
/// It was too slow.
pub(crate) const TIMEOUT: &str = "timeout";
/// It answered that something is wrong.
pub(crate) const STATUS: &str = "status";
/// What it is to read is not there.
pub(crate) const NOT_FOUND: &str = "not_found";
/// It says too much.
pub(crate) const TOO_LARGE: &str = "too_large";
/// What it says is no list of resources.
pub(crate) const INVALID: &str = "invalid";
/// Too much would leave.
pub(crate) const HELD_BACK: &str = "held_back";

/// Characters of the longest message: it is part of a status, and parts of it come from outside.
const LONGEST: usize = 1000;

impl Trouble {
    pub(super) fn new(category: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((cut, _)) = message.char_indices().nth(LONGEST) {
            message.truncate(cut);
            message.push('…');
        }
        Self { category, message }
    }

    /// The same, and what it is about.
    pub(super) fn about(self, what: &str) -> Self {
        Self::new(self.category, format!("{what}: {}", self.message))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_somewhere() {
        let trouble = Trouble::new(INVALID, "é".repeat(1000));
        assert_eq!(trouble.message.chars().count(), 1000);
        let about = trouble.about("list").message;
        assert!(about.starts_with("list: é") && about.ends_with("é…") && about.chars().count() == 1001, "{about}");
    }
}
