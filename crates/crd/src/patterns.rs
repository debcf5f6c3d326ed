//! What several kinds demand of a text, as patterns and in words.
//!
//! A `pattern` in a schema has no message of its own, so the words are found here by the pattern.

use crate::duration;

/// A DNS-1123 label, its length apart.
pub(crate) const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A label's value as in Kubernetes, its length apart.
pub(crate) const LABEL_VALUE_PATTERN: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// A resource's or binding's name, its length apart.
pub(crate) const KEY_PATTERN: &str = r"^[^\x00]*$";
/// A label's key as in Kubernetes, but for the length of its prefix.
pub(crate) const LABEL_KEY_PATTERN: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// A DNS-1123 subdomain, its length apart.
pub(crate) const SUBDOMAIN_PATTERN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A name that can be looked up; resolvers are generous.
pub(crate) const HOST_PATTERN: &str =
    r"^[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?)*\.?$";
/// A key in the data of a `ConfigMap` or Secret, its length apart.
pub(crate) const DATA_KEY_PATTERN: &str = "^[-._a-zA-Z0-9]+$";
/// A token of RFC 9110, section 5.6.2.
pub(crate) const HEADER_NAME_PATTERN: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
/// Field content of RFC 9110, section 5.5, without obs-text.
pub(crate) const HEADER_VALUE_PATTERN: &str = "^[\\t -~]*$";

/// An object's own name becomes part of a Redis key, so it is shorter than the DNS subdomain that Kubernetes would allow.
pub(crate) const NAME_RULE: &str = "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')";
/// [`NAME_RULE`] in words.
pub(crate) const NAME_MESSAGE: &str =
    "must be a DNS-1123 label: 1 to 63 lower-case letters, digits and -, beginning and ending with a letter or digit";

/// What a pattern allows, in words.
pub(crate) fn pattern_in_words(pattern: &str) -> Option<&'static str> {
    Some(match pattern {
        LABEL_PATTERN => {
            "a DNS-1123 label: lower-case letters, digits and -, beginning and ending with a letter or digit"
        }
        LABEL_VALUE_PATTERN => "letters, digits, -, _ and ., beginning and ending with a letter or digit, or nothing",
        KEY_PATTERN => "a text without NUL",
        LABEL_KEY_PATTERN => {
            "a label key: letters, digits, -, _ and ., beginning and ending with a letter or digit, optionally after a DNS-1123 \
             subdomain and a slash"
        }
        SUBDOMAIN_PATTERN => "a DNS-1123 subdomain: DNS-1123 labels, joined by dots",
        HOST_PATTERN => "a name that can be looked up: labels of letters, digits, - and _, joined by dots",
        DATA_KEY_PATTERN => "letters, digits, -, _ and .",
        HEADER_NAME_PATTERN => "a header's name: letters, digits and !#$%&'*+-.^_`|~",
        HEADER_VALUE_PATTERN => "a header's value: visible ASCII, spaces and tabs",
        duration::PATTERN => duration::ALLOWED,
        _ => return None,
    })
}
