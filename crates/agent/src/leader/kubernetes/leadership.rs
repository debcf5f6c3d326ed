//! The lead while one has it: renewing it in the background, telling when it is over, giving it up. How it is won is not
//! known here.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use redis_allocator::BootInstant;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    RequestError, holder,
    requests::{Requests, Written},
    stamp,
};

/// Longest nap: the local timer stands still while the machine sleeps, the deadline does not.
const NAP: Duration = Duration::from_millis(250);
/// After how many steps without a renewal in between there is a pause: someone else must be writing all the time.
const HASTE: u32 = 4;

/// The right to lead. Dropped, it is renewed no longer, and [`lost`](Self::lost) is cancelled; the others then wait for
/// as long as if this process had died.
#[must_use = "dropping it gives up the lead"]
pub(crate) struct Leadership {
    lost: CancellationToken,
    task: JoinHandle<Term>,
    _ended_by_drop: DropGuard,
}

impl Leadership {
    /// Has it renewed from now on.
    pub(super) fn begin(mut term: Term) -> Self {
        let lost = CancellationToken::new();
        let token = lost.clone();
        let task = tokio::spawn(async move {
            // By the guard, so that a panic is no reason to go on leading.
            let _ended = token.clone().drop_guard();
            token.run_until_cancelled(term.keep()).await;
            term
        });
        Self { task, _ended_by_drop: lost.clone().drop_guard(), lost }
    }

    /// Cancelled when it is not this agent's any more.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Gives it up, so that another agent leads at once. Whoever calls this has stopped acting as a leader before.
    pub(crate) async fn resign(self) {
        self.lost.cancel();
        match self.task.await {
            Ok(term) => term.clear().await,
            Err(error) => tracing::debug!("giving up the lead failed, another agent takes it in a while: {error}"),
        }
    }
}

/// What to do next to stay the leader.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Renew the Lease.
    Renew,
    /// See who has it, as it is not as it was.
    Look,
    /// Make it anew, as it is gone.
    Create,
}

/// What a step led to.
enum Outcome {
    Renewed,
    Then(Step),
    /// Someone else has it, or nobody.
    Taken(Option<String>),
}

/// The time from when an agent won the lead.
pub(super) struct Term {
    requests: Arc<Requests>,
    /// As it was last read or written: this agent's.
    lease: Lease,
    deadline: BootInstant,
}

impl Term {
    pub(super) fn new(requests: Arc<Requests>, lease: Lease, deadline: BootInstant) -> Self {
        Self { requests, lease, deadline }
    }

    /// Renews the Lease until it is lost.
    async fn keep(&mut self) {
        let timing = self.requests.timing;
        let (mut step, mut pause, mut haste) = (Step::Renew, timing.renew, 0);
        loop {
            let deadline = self.deadline;
            let turn = async {
                sleep(pause).await;
                // From when it is sent: the others count from when they have seen it, which is later, however long the
                // answer takes.
                let sent = BootInstant::now();
                (sent, self.take(step).await)
            };
            let turn = tokio::select! {
                biased;
                () = pass(deadline) => None,
                turn = turn => Some(turn),
            };
            // Looked at once more: asleep, the machine did not hear of it.
            let Some((sent, outcome)) = turn.filter(|_| !deadline.is_past()) else {
                let after = timing.give_up;
                return tracing::warn!("the lead is given up: the Lease could not be renewed for {after:?}");
            };
            (step, pause) = match outcome {
                Ok(Outcome::Renewed) => {
                    self.deadline = sent + timing.give_up;
                    haste = 0;
                    (Step::Renew, (sent + timing.renew).remaining())
                }
                Ok(Outcome::Then(next)) => {
                    haste += 1;
                    (next, if haste % HASTE == 0 { timing.retry } else { Duration::ZERO })
                }
                Ok(Outcome::Taken(by)) => {
                    let by = by.as_deref().unwrap_or("nobody");
                    return tracing::warn!(
                        "the lead is lost: the Lease is not this agent's any more, it is held by {by}"
                    );
                }
                Err(error) => {
                    tracing::warn!("the lead is given up in {:.1?} unless this passes: {error}", deadline.remaining());
                    (step, (sent + timing.retry).remaining())
                }
            };
        }
    }

    async fn take(&mut self, step: Step) -> Result<Outcome, RequestError> {
        let written = match step {
            Step::Look => {
                return Ok(match self.requests.get().await? {
                    Some(lease) if holder(&lease) == Some(&self.requests.identity) => {
                        self.lease = lease;
                        Outcome::Then(Step::Renew)
                    }
                    Some(lease) => Outcome::Taken(holder(&lease).map(str::to_owned)),
                    None => Outcome::Then(Step::Create),
                });
            }
            Step::Renew => {
                let mut lease = self.lease.clone();
                self.requests.sign(lease.spec.get_or_insert_default());
                self.requests.replace(&lease).await?
            }
            Step::Create => {
                let mut lease = Lease { spec: self.lease.spec.clone(), ..Lease::default() };
                lease.metadata.name.clone_from(&self.lease.metadata.name);
                self.requests.sign(lease.spec.get_or_insert_default());
                self.requests.create(&lease).await?
            }
        };
        Ok(match written {
            Written::Done(lease) => {
                self.lease = *lease;
                Outcome::Renewed
            }
            // Who has it? Perhaps this agent still: a renewal may arrive though its answer did not.
            Written::Conflict => Outcome::Then(Step::Look),
            Written::Missing => Outcome::Then(Step::Create),
        })
    }

    /// Takes this agent's name off the Lease, if it can be done soon.
    async fn clear(mut self) {
        let limit = self.requests.timing.request;
        let trouble = match tokio::time::timeout(limit, self.try_clear()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {limit:?}"),
        };
        tracing::debug!("giving up the lead failed, another agent takes it in a while: {trouble}");
    }

    async fn try_clear(&mut self) -> Result<(), RequestError> {
        // Twice, as a renewal may have been under way when it was stopped.
        for _ in 0..2 {
            let mut lease = self.lease.clone();
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(String::new());
            // As client-go does: the API server refuses 0.
            spec.lease_duration_seconds = Some(1);
            stamp(spec);
            let Written::Conflict = self.requests.replace(&lease).await? else {
                return Ok(());
            };
            match self.requests.get().await? {
                Some(lease) if holder(&lease) == Some(&self.requests.identity) => self.lease = lease,
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Waits until a moment has passed.
async fn pass(moment: BootInstant) {
    while !moment.is_past() {
        sleep(moment.remaining().min(NAP)).await;
    }
}
