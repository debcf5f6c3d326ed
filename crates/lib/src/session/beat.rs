//! The one heartbeat of a client: all its sessions in all their pools, those that are due together, at once and down one
//! connection. It decides *when*; what a heartbeat means is in [`membership`](super::membership).

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::future::join_all;
use tokio::sync::Notify;

use super::{
    Inner, Place,
    membership::{Membership, retry},
};
use crate::{error::Error, names::PoolName, time::BootInstant};

/// Longest nap: the local timer stands still while the machine sleeps, deadlines do not.
const NAP: Duration = Duration::from_secs(1);

/// The task. It runs while there is a session to report alive.
#[derive(Default)]
pub(crate) struct Beats {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// A std mutex: it is never held across an await.
    registry: Mutex<Registry>,
    sooner: Notify,
}

#[derive(Default)]
struct Registry {
    sessions: Vec<Weak<Inner>>,
    running: bool,
}

/// What is to be done for a session in a pool.
enum Work {
    Beat(Arc<Membership>),
    /// It was joined and is over: it begins anew.
    Begin(Arc<Inner>, Arc<Place>),
}

impl Beats {
    /// Something about a session is to be looked at sooner than was known; `new`: the session itself is.
    pub(super) fn look(&self, session: &Arc<Inner>, new: bool) {
        let mut registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if new {
            registry.sessions.push(Arc::downgrade(session));
        }
        if std::mem::replace(&mut registry.running, true) {
            drop(registry);
            self.shared.sooner.notify_one();
        } else {
            drop(registry);
            session.client.inner.runtime.spawn(Arc::clone(&self.shared).run());
        }
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        loop {
            let Some(sessions) = self.sessions() else { return };
            let (due, next) = turn(&sessions, BootInstant::now());
            // Only the handles of a session keep it, not this task.
            drop(sessions);
            if !due.is_empty() {
                // In a task of its own: a server that does not answer must not keep anyone from hearing that a deadline
                // has passed.
                tokio::spawn(run_all(due));
            }
            // Woken early when something nearer was added.
            let _ = tokio::time::timeout(next.remaining().min(NAP), self.sooner.notified()).await;
        }
    }

    /// Those that are left; `None` when there are none, and this task is not the running one any more.
    fn sessions(&self) -> Option<Vec<Arc<Inner>>> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::with_capacity(registry.sessions.len());
        registry.sessions.retain(|session| {
            let session = session.upgrade().filter(|session| !session.is_ended());
            left.extend(session.clone());
            session.is_some()
        });
        registry.running = !left.is_empty();
        registry.running.then_some(left)
    }
}

/// What is to be done now, and when to look again. Whoever's time is over is told on the way.
fn turn(sessions: &[Arc<Inner>], now: BootInstant) -> (Vec<Work>, BootInstant) {
    let (mut due, mut soon, mut next) = (Vec::new(), Vec::new(), now + NAP);
    for session in sessions {
        let places: Vec<_> = session.places().by_pool.values().cloned().collect();
        for place in places {
            if let Some(current) = place.current() {
                if current.next() <= now {
                    due.push(Work::Beat(current));
                } else if current.next() <= now + session.ttl / 10 {
                    soon.push(current);
                } else {
                    next = next.min(current.next()).min(current.deadline());
                }
                continue;
            }
            let mut state = place.state();
            if state.joined && state.next <= now {
                state.next = now + retry(session.ttl);
                due.push(Work::Begin(Arc::clone(session), Arc::clone(&place)));
            }
            if state.joined {
                next = next.min(state.next);
            }
        }
    }
    if due.is_empty() {
        next = soon.iter().map(|soon| soon.next().min(soon.deadline())).fold(next, Ord::min);
    } else {
        // Those that are almost due come along, each saving a round trip of its own.
        due.extend(soon.into_iter().map(Work::Beat));
    }
    for work in &due {
        if let Work::Beat(membership) = work {
            membership.put_off();
            next = next.min(membership.next()).min(membership.deadline());
        }
    }
    (due, next)
}

/// Does all of it at once. What failed is told in one line, however much it is.
async fn run_all(due: Vec<Work>) {
    let all = due.len();
    let outcomes = join_all(due.into_iter().map(Work::run)).await;
    let mut failed = outcomes.into_iter().filter_map(Result::err);
    if let Some((pool, error)) = failed.next() {
        tracing::warn!(failed = 1 + failed.count(), of = all, %pool, %error, "heartbeats failed, the first in this pool");
    }
}

impl Work {
    async fn run(self) -> Result<(), (PoolName, Error)> {
        match self {
            Self::Beat(membership) => match membership.beat().await {
                Ok(_) => Ok(()),
                Err(error) => Err((membership.pool().name().clone(), error)),
            },
            Self::Begin(session, place) => match session.in_place(&place).await {
                Ok(_) | Err(Error::SessionOver { .. }) => Ok(()),
                Err(error) => Err((place.pool.name().clone(), error)),
            },
        }
    }
}
