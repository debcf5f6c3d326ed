//! Which of several agents leads: in Kubernetes by a Lease of the API server, without it by a lease from Redis.

mod kubernetes;
mod redis;

use std::fmt;

use redis_allocator::{Client, Error};
use tokio_util::sync::CancellationToken;

pub(crate) use self::redis::ASK;

/// Where the agents of one declaration find out which of them leads.
pub(crate) enum Election {
    /// By a pool of their own, one for each identity.
    Redis {
        client: Client,
        manager: String,
    },
    Kubernetes(kubernetes::Election),
}

/// The right to lead.
pub(crate) enum Leadership {
    Redis(redis::Leadership),
    Kubernetes(kubernetes::Leadership),
}

/// Why it could not be found out who leads.
#[derive(Debug)]
pub(crate) enum ElectionError {
    Redis(Error),
    Kubernetes(kubernetes::RequestError),
}

impl ElectionError {
    /// A word from a fixed set.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Redis(error) => error.category(),
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

impl fmt::Display for ElectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(error) => error.fmt(f),
            Self::Kubernetes(error) => write!(f, "the Kubernetes API: {error}"),
        }
    }
}

impl Election {
    /// Among the agents of a cluster: in this namespace, under a name that no other process has.
    pub(crate) fn in_kubernetes(client: kube::Client, namespace: &str) -> Self {
        // A pod's name is its host's. The number tells two agents of one machine, or two lives of one pod, apart.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let started = jiff::Timestamp::now().as_millisecond();
        let identity = format!("{host}_{}-{started:x}", std::process::id());
        Self::Kubernetes(kubernetes::Election::new(client, namespace, identity))
    }

    /// Asks for it once; `None` when someone else leads.
    pub(crate) async fn ask(&mut self) -> Result<Option<Leadership>, ElectionError> {
        match self {
            Self::Redis { client, manager } => {
                let asked = redis::Leadership::ask(client, manager).await;
                asked.map(|found| found.map(Leadership::Redis)).map_err(ElectionError::Redis)
            }
            Self::Kubernetes(election) => {
                let asked = election.ask().await;
                asked.map(|found| found.map(Leadership::Kubernetes)).map_err(ElectionError::Kubernetes)
            }
        }
    }
}

impl Leadership {
    /// Cancelled when it is not this agent's any more.
    pub(crate) fn lost(&self) -> CancellationToken {
        match self {
            Self::Redis(leadership) => leadership.lost(),
            Self::Kubernetes(leadership) => leadership.lost(),
        }
    }

    /// Gives it up, so that another agent leads at once.
    pub(crate) async fn resign(self) {
        match self {
            Self::Redis(leadership) => leadership.resign().await,
            Self::Kubernetes(leadership) => leadership.resign().await,
        }
    }
}
