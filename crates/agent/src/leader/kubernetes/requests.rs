//! The requests about the Lease, each bounded in time, and what can become of them. What they mean for the lead is not
//! known here.

use std::{error::Error as _, fmt::Write as _, time::Duration};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, api::PostParams};

use super::{NAME, Timing, stamp};

/// What is said to have written it, in the Lease's `managedFields`.
const FIELD_MANAGER: &str = "redis-allocator";

/// Why a request about the Lease failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{doing} lease {lease} failed: the API server did not answer within {after:?}")]
    Silent { doing: &'static str, lease: String, after: Duration },
    #[error("{doing} lease {lease} was refused with {code}: {message}{}", hint(*.code))]
    Refused { doing: &'static str, lease: String, code: u16, message: String },
    /// The causes are told here, as the outermost of them says no more than that there was one.
    #[error("{doing} lease {lease} failed: {causes}")]
    Failed { doing: &'static str, lease: String, causes: String },
}

/// How to mend a refusal that may last.
fn hint(code: u16) -> &'static str {
    if code == 403 { "; the agent must be allowed to get, create and update leases in its own namespace" } else { "" }
}

/// What became of a change.
pub(super) enum Written {
    Done(Box<Lease>),
    /// Someone else wrote it meanwhile.
    Conflict,
    /// It is not there any more.
    Missing,
}

/// The requests of one agent about the Lease.
pub(super) struct Requests {
    api: Api<Lease>,
    /// Namespace and name, for messages.
    lease: String,
    /// The agent's name as a holder.
    pub(super) identity: String,
    pub(super) timing: Timing,
}

impl Requests {
    pub(super) fn new(client: kube::Client, namespace: &str, identity: String, timing: Timing) -> Self {
        Self { api: Api::namespaced(client, namespace), lease: format!("{namespace}/{NAME}"), identity, timing }
    }

    pub(super) async fn get(&self) -> Result<Option<Lease>, RequestError> {
        match self.bounded(self.api.get_opt(NAME)).await {
            Ok(found) => Ok(found),
            Err(trouble) => Err(self.error("reading", trouble)),
        }
    }

    pub(super) async fn create(&self, lease: &Lease) -> Result<Written, RequestError> {
        match self.bounded(self.api.create(&parameters(), lease)).await {
            Ok(lease) => Ok(Written::Done(Box::new(lease))),
            Err(Trouble::Kube(kube::Error::Api(status))) if status.code == 409 => Ok(Written::Conflict),
            Err(trouble) => Err(self.error("creating", trouble)),
        }
    }

    /// Writes it if it is still the one of this `resourceVersion` and `uid`.
    pub(super) async fn replace(&self, lease: &Lease) -> Result<Written, RequestError> {
        match self.bounded(self.api.replace(NAME, &parameters(), lease)).await {
            Ok(lease) => Ok(Written::Done(Box::new(lease))),
            Err(Trouble::Kube(kube::Error::Api(status))) if status.code == 409 => Ok(Written::Conflict),
            Err(Trouble::Kube(kube::Error::Api(status))) if status.code == 404 => Ok(Written::Missing),
            Err(trouble) => Err(self.error("updating", trouble)),
        }
    }

    /// Puts this agent's name, and its claim to the time from now on, into a Lease.
    pub(super) fn sign(&self, spec: &mut LeaseSpec) {
        spec.holder_identity = Some(self.identity.clone());
        let seconds = self.timing.duration.as_secs().max(1);
        spec.lease_duration_seconds = Some(i32::try_from(seconds).unwrap_or(i32::MAX));
        stamp(spec);
    }

    async fn bounded<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
        match tokio::time::timeout(self.timing.request, request).await {
            Ok(answer) => answer.map_err(Trouble::Kube),
            Err(_) => Err(Trouble::Silent),
        }
    }

    fn error(&self, doing: &'static str, trouble: Trouble) -> RequestError {
        let lease = self.lease.clone();
        match trouble {
            Trouble::Silent => RequestError::Silent { doing, lease, after: self.timing.request },
            Trouble::Kube(kube::Error::Api(status)) => {
                RequestError::Refused { doing, lease, code: status.code, message: status.message }
            }
            Trouble::Kube(error) => {
                let mut causes = error.to_string();
                let mut cause = error.source();
                while let Some(error) = cause {
                    let text = error.to_string();
                    // Some print their source, too.
                    if !causes.ends_with(&text) {
                        let _ = write!(causes, ": {text}");
                    }
                    cause = error.source();
                }
                RequestError::Failed { doing, lease, causes }
            }
        }
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

/// A failure that is not yet put into words.
enum Trouble {
    Silent,
    Kube(kube::Error),
}
