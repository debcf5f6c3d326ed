//! One thing that was looked at, and how all of them are told. It must not know what they are about.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Leases may be lost or given out twice, or calls fail.
    Error,
    /// It may become so, or protection is missing.
    Warning,
    /// It can't be told.
    Unknown,
    /// As it should be.
    Ok,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at, in a word: `eviction`, `clock`.
    pub(super) check: &'static str,
    /// The server or the pool.
    pub(super) subject: String,
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

impl Finding {
    fn new(level: Level, check: &'static str, subject: &str, found: impl Into<String>) -> Self {
        Self { level, check, subject: subject.to_owned(), found: found.into(), mend: None }
    }

    pub(super) fn ok(check: &'static str, subject: &str, found: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, subject, found)
    }

    pub(super) fn error(check: &'static str, subject: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { mend: Some(mend.into()), ..Self::new(Level::Error, check, subject, found) }
    }

    pub(super) fn warning(
        check: &'static str,
        subject: &str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { mend: Some(mend.into()), ..Self::new(Level::Warning, check, subject, found) }
    }

    /// `because` continues the sentence *can't tell, because …*.
    pub(super) fn unknown(check: &'static str, subject: &str, because: impl std::fmt::Display) -> Self {
        Self::new(Level::Unknown, check, subject, format!("can't tell, because {because}"))
    }
}

/// All findings, the worst first.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    errors: usize,
    warnings: usize,
    unknown: usize,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        // Stable: of one level, they stay in the order in which things were looked at.
        findings.sort_by_key(|finding| finding.level);
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (errors, warnings, unknown) = (count(Level::Error), count(Level::Warning), count(Level::Unknown));
        Self { errors, warnings, unknown, findings }
    }

    /// Whether nothing is wrong.
    pub(super) fn is_well(&self) -> bool {
        self.errors == 0
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for Finding { level, check, subject, found, mend } in &self.findings {
            let level = match level {
                Level::Error => "error",
                Level::Warning => "warning",
                Level::Unknown => "unknown",
                Level::Ok => "ok",
            };
            // Writing to a String never fails.
            let _ = writeln!(text, "{level:<8} {check}: {subject}: {found}");
            if let Some(mend) = mend {
                let _ = writeln!(text, "{:<8} -> {mend}", "");
            }
        }
        let _ = writeln!(text, "errors: {}, warnings: {}, unknown: {}", self.errors, self.warnings, self.unknown);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_each_has_its_mend_below() {
        let report = Report::new(vec![
            Finding::ok("version", "a:1", "redis 7.0.15"),
            Finding::unknown("save", "a:1", "the server refused"),
            Finding::warning("clock", "a:1", "late", "set it"),
            Finding::error("eviction", "a:1", "allkeys-lru", "set noeviction"),
        ]);
        assert!(!report.is_well());
        assert_eq!(
            report.text(),
            "error    eviction: a:1: allkeys-lru\n         -> set noeviction\nwarning  clock: a:1: late\n         -> set \
             it\nunknown  save: a:1: can't tell, because the server refused\nok       version: a:1: redis 7.0.15\nerrors: 1, \
             warnings: 1, unknown: 1\n"
        );
        assert!(Report::new(vec![Finding::warning("clock", "a:1", "late", "set it")]).is_well());
    }
}
