//! Which of several agents of a cluster leads: the one whose name is on a `coordination.k8s.io/v1` Lease. It must not
//! know what a leader does. This is the asking and the rules; [`requests`] talks to the API server, [`leadership`]
//! keeps what was won.
//!
//! Own code, as `kube-lease-manager` compares its wall clock with that of whoever wrote the Lease, takes an expired
//! Lease by force instead of by the `resourceVersion` it saw, and leaves a leader that can't renew without word.
//!
//! # Guarantees
//! - [`Leadership::lost`] is cancelled before anyone else can lead. A leader gives up 7 s after it *sent* the last renewal
//!   that succeeded; a follower takes over 10 s after it first *saw* that renewal, if it has seen no other since.
//! - No two take over the same record: each change carries the `resourceVersion` and `uid` it was decided on.
//! - No request is waited for longer than 2 s, so a silent API server delays neither the leader's word nor a follower.
//! - Nobody's wall clock matters: `acquireTime` and `renewTime` are written for people and only ever compared with
//!   themselves. Time spent in suspend counts.
//!
//! # Assumptions
//! - No two processes have the same identity, nor two lives of one process.
//! - While a leader's clock counts 7 s, a follower's counts less than 10.
//! - Nobody but these agents writes the Lease.
//!
//! # Caveats
//! - A Lease that someone edits or deletes by hand may be taken at once. Its former holder hears of it at its next renewal,
//!   2 s later, and if the API server does not answer it, only at its deadline; until then two may lead. A follower that
//!   knew the holder of a deleted Lease leaves it the time to make it anew.
//! - A process that is stopped, or sleeps, past its deadline hears of it within 0.25 s of running again, and what it had
//!   sent stays sent.
//! - A leader that is killed is replaced after 10 s, plus up to twice the interval at which followers ask, as a follower
//!   knows of a renewal only once it has asked.

mod leadership;
mod requests;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use redis_allocator::BootInstant;

pub(crate) use self::{leadership::Leadership, requests::RequestError};
use self::{
    leadership::Term,
    requests::{Requests, Written},
};

/// What the Lease is called, in the agent's own namespace.
const NAME: &str = "redis-allocator";

/// How long everything takes.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// How long a follower waits for a leader that does not renew, at the least: a shorter one in the Lease is not what
    /// its holder goes by.
    duration: Duration,
    /// How long it waits at most, whatever the Lease says.
    longest: Duration,
    /// How long after sending its last successful renewal a leader still leads. Less than `duration`.
    give_up: Duration,
    /// From one renewal to the next.
    renew: Duration,
    /// From a renewal that failed to the next.
    retry: Duration,
    /// How long any request is waited for.
    request: Duration,
}

impl Timing {
    const SHIPPED: Self = Self {
        duration: Duration::from_secs(10),
        longest: Duration::from_mins(1),
        give_up: Duration::from_secs(7),
        renew: Duration::from_secs(2),
        retry: Duration::from_secs(1),
        request: Duration::from_secs(2),
    };

    /// How long a Lease must be seen unchanged before it may be taken from its holder.
    fn patience(&self, lease: &Lease) -> Duration {
        let said = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        said.and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.duration, Duration::from_secs)
            .clamp(self.duration, self.longest)
    }
}

/// A Lease that someone else holds, as it was last seen.
struct Seen {
    lease: Lease,
    /// When it may be taken, if it is still the same.
    until: BootInstant,
}

/// One agent's part in the election.
pub(crate) struct Election {
    requests: Arc<Requests>,
    seen: Option<Box<Seen>>,
}

impl Election {
    /// For the Lease of a namespace. The identity is this process' alone; people read it, and it is in the Lease as it is
    /// here.
    pub(crate) fn new(client: kube::Client, namespace: &str, identity: String) -> Self {
        Self::with_timing(client, namespace, identity, Timing::SHIPPED)
    }

    fn with_timing(client: kube::Client, namespace: &str, identity: String, timing: Timing) -> Self {
        Self { requests: Arc::new(Requests::new(client, namespace, identity, timing)), seen: None }
    }

    /// Asks for the lead once; `None` when someone else has it. To be asked again each second: a follower learns how
    /// old a Lease is by looking. What was won before must have been dropped or resigned.
    pub(crate) async fn ask(&mut self) -> Result<Option<Leadership>, RequestError> {
        let found = self.requests.get().await?;
        if self.must_wait(found.as_ref()) {
            return Ok(None);
        }
        let wanted = self.taken(found.as_ref());
        let sent = BootInstant::now();
        let written = match found {
            Some(_) => self.requests.replace(&wanted).await?,
            None => self.requests.create(&wanted).await?,
        };
        let deadline = sent + self.requests.timing.give_up;
        match written {
            // Past it already, the machine slept. The Lease is this agent's, and the next time it gets it.
            Written::Done(lease) if !deadline.is_past() => {
                self.seen = None;
                Ok(Some(Leadership::begin(Term::new(Arc::clone(&self.requests), *lease, deadline))))
            }
            Written::Done(_) | Written::Conflict | Written::Missing => Ok(None),
        }
    }

    /// Whether someone else leads, or may still lead.
    fn must_wait(&mut self, found: Option<&Lease>) -> bool {
        let Some(lease) = found else {
            // Deleted under a holder who may still lead: that one makes it anew.
            return self.seen.as_ref().is_some_and(|seen| !seen.until.is_past());
        };
        // What is left of a former lead of this agent's may be taken up at once: nobody led in between.
        if holder(lease).is_none_or(|holder| holder == self.requests.identity) {
            self.seen = None;
            return false;
        }
        match &self.seen {
            Some(seen) if seen.lease == *lease => !seen.until.is_past(),
            _ => {
                let until = BootInstant::now() + self.requests.timing.patience(lease);
                self.seen = Some(Box::new(Seen { lease: lease.clone(), until }));
                true
            }
        }
    }

    /// The Lease as it would be if this agent led from now on.
    fn taken(&self, found: Option<&Lease>) -> Lease {
        let mut lease = found.cloned().unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_default();
        spec.lease_transitions = Some(match found {
            Some(_) => spec.lease_transitions.unwrap_or(0).saturating_add(1),
            None => 0,
        });
        self.requests.sign(spec);
        spec.acquire_time.clone_from(&spec.renew_time);
        lease
    }
}

/// Whose a Lease is. An empty name is nobody's.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// Puts the time into a Lease, for people to read.
fn stamp(spec: &mut LeaseSpec) {
    spec.renew_time = Some(MicroTime(jiff::Timestamp::now()));
}
