//! Where desired state comes from. A source hands over declarations; what is done with them it does not know.

pub(crate) mod files;
pub(crate) mod kubernetes;

use std::sync::Arc;

use crate::desired::Desired;

/// What a source says now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Declaration {
    pub(crate) desired: Arc<Desired>,
    /// Whether what is absent is known to be undeclared. Otherwise something could not be read: then what is managed and
    /// not declared stays as it is.
    pub(crate) complete: bool,
    /// Why the source as a whole can't be trusted; the agent is then not ready.
    pub(crate) trouble: Option<String>,
    /// Whether that is only that it declares nothing at all.
    pub(crate) empty: bool,
    /// Where the source has errors, and which.
    pub(crate) errors: Vec<SourceErrors>,
    /// How many files, objects or the like are fine.
    pub(crate) fine: usize,
}

/// The errors of one file, or of whatever else a source consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceErrors {
    pub(crate) place: std::path::PathBuf,
    pub(crate) errors: Vec<String>,
}
