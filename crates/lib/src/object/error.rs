//! What may fail while objects are opened and closed: the resources' faults, apart from the library's own errors.

use std::{error::Error as StdError, fmt};

use super::reason::text_of;
use crate::{
    error::{Error, LostReason},
    names::{PoolName, ResourceKey},
};

/// An error of a program's own, of any type.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why no object came of a request.
///
/// *Nothing free* is not among them: that is `Ok(None)`, or for a request that waited [`Error::NotServed`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The library's own error, as [`Pool::malloc`](crate::Pool::malloc) gives it. What was opened before is closed,
    /// what was leased is given back.
    #[error(transparent)]
    Lease(#[from] Error),

    /// Resources were free, and none of those that were tried can be used. They have been given back, and are
    /// quarantined for a while.
    #[error(
        "no resource of pool {pool} can be used: {}{}",
        listed(failures),
        if *nothing_else { "; nothing else is free" } else { "" }
    )]
    Unusable {
        /// The pool that was asked.
        pool: PoolName,
        /// What was tried and how it failed, in order; at least one.
        failures: Vec<Failure>,
        /// Whether there would have been attempts left, had anything else been free, or become free in time.
        nothing_else: bool,
    },
}

/// A resource that could not be used. Its text has the program's own error in it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The resource.
    pub key: ResourceKey,
    /// What is wrong with it.
    pub fault: Fault,
    /// Why it could not be quarantined, although it should be: the next one to ask may meet it.
    pub not_quarantined: Option<Error>,
}

/// What is wrong with a resource, or with the object made of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// [`Allocatable::open`](super::Allocatable::open) failed.
    #[error("it could not be opened")]
    Open(#[source] BoxError),
    /// [`Allocatable::is_healthy`](super::Allocatable::is_healthy) failed.
    #[error("its health could not be checked")]
    Check(#[source] BoxError),
    /// [`Allocatable::is_healthy`](super::Allocatable::is_healthy) said no.
    #[error("it is not healthy")]
    Unhealthy,
    /// The lease was lost before the object could be handed out. That tells nothing of the resource, which is not
    /// quarantined.
    #[error("its lease was lost: {0}")]
    Lost(LostReason),
}

/// What failed while an object was closed and its lease freed. Both were tried, and are over.
#[derive(Debug)]
#[non_exhaustive]
pub struct CloseError {
    /// The pool of the resource.
    pub pool: PoolName,
    /// The resource.
    pub key: ResourceKey,
    /// Why [`Allocatable::close`](super::Allocatable::close) failed; `None`: it did not.
    pub object: Option<BoxError>,
    /// Why [`Lease::free`](crate::Lease::free) failed; `None`: it did not.
    pub lease: Option<Error>,
}

fn listed(failures: &[Failure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, text_of(&self.fault))?;
        match &self.not_quarantined {
            Some(error) => write!(f, " (and it could not be quarantined: {error})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, key, object, lease } = self;
        write!(f, "{key} of pool {pool} was given up with errors")?;
        if let Some(error) = object {
            write!(f, "; closing it failed: {}", text_of(&**error))?;
        }
        if let Some(error) = lease {
            write!(f, "; freeing it failed: {error}")?;
        }
        Ok(())
    }
}

// The causes are part of the text: there may be two.
impl StdError for CloseError {}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn failure(fault: Fault) -> Failure {
        Failure { key: ResourceKey::new("gpu-0").unwrap(), fault, not_quarantined: None }
    }

    #[test]
    fn what_was_tried_is_told_and_why_it_failed() {
        let pool: PoolName = "gpus".parse().unwrap();
        let refused = failure(Fault::Open(io::Error::other("connection refused").into()));
        let lost = Failure { key: ResourceKey::new("gpu-1").unwrap(), ..failure(Fault::Lost(LostReason::Ended)) };
        let error = OpenError::Unusable { pool: pool.clone(), failures: vec![refused, lost], nothing_else: true };
        assert_eq!(
            error.to_string(),
            "no resource of pool default/gpus can be used: gpu-0: it could not be opened: connection refused; \
             gpu-1: its lease was lost: it was ended or reclaimed; nothing else is free"
        );
        let not_quarantined = Some(Error::UnknownPool { pool: pool.clone() });
        let failures = vec![Failure { not_quarantined, ..failure(Fault::Unhealthy) }];
        let error = OpenError::Unusable { pool, failures, nothing_else: false };
        let text = error.to_string();
        assert!(text.contains("gpu-0: it is not healthy (and it could not be quarantined: there is no pool"), "{text}");
        assert!(!text.contains("nothing else"), "{text}");
    }

    #[test]
    fn both_failures_of_an_end_are_told() {
        let pool: PoolName = "gpus".parse().unwrap();
        let key = ResourceKey::new("gpu-0").unwrap();
        let lease = Some(Error::NotOwner { pool: pool.clone(), resource: key.clone() });
        let error = CloseError { pool, key, object: Some("no answer".into()), lease };
        let text = error.to_string();
        assert!(text.starts_with("gpu-0 of pool default/gpus was given up with errors; closing it failed: no answer"));
        assert!(text.contains("; freeing it failed: gpu-0 in pool default/gpus is not held"), "{text}");
    }
}
