//! Asking for an object: a lease is taken, opened and checked, and the next one tried when that fails.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Allocatable, OpenError,
    error::{Failure, Fault},
    guard::{Allocated, retire},
};
use crate::{
    error::{Error, LostReason, Result},
    lease::Lease,
    pool::{Malloc, Now, One, Waiting},
    time::millis,
};

/// More attempts than this are a loop, and would take a whole pool out of circulation.
const MOST_ATTEMPTS: u32 = 100;

/// A request for an object, made by [`Malloc::open`]. Await it:
///
/// | | |
/// |---|---|
/// | at once | `Option<Allocated<K>>`: `None` when nothing is free |
/// | with [`wait`](Malloc::wait) | `Allocated<K>` |
///
/// It leases a resource, opens it, and checks it. One that can't be opened, or is not healthy, is closed, quarantined
/// and given back, and the next one is tried. The lease is kept alive all the while, and after.
///
/// The time to wait is one limit for the time in line of all attempts together: after a resource that failed, the next
/// one is waited for as long as there is time left. Without any, what is free is still tried. Opening and checking take
/// nothing of that time, and have no limit. Each attempt takes a new place in line, at its end. Whoever waits for longer
/// than a [`quarantine`](Self::quarantine) lasts may meet the same resource again.
///
/// # Guarantees
/// - No resource is given back before its object is closed, so that nobody meets an object that is still open.
/// - A resource that failed is quarantined before it is given back. What an operator has quarantined for longer stays so.
/// - This future may be dropped at any moment: what was opened is then closed, what was leased is given back, in the
///   background; who waits in line leaves it.
///
/// # Errors
/// [`OpenError::Unusable`] when something was free and nothing of it can be used, also when the time to wait was over
/// after that; [`OpenError::Lease`] with the library's own errors: those of [`Pool::malloc`](crate::Pool::malloc) and
/// [`Malloc::wait`], of these [`Error::NotServed`] when the time was over before anything could be tried; and
/// [`Error::Invalid`] for a setting out of its range.
#[must_use = "a request does nothing until it is awaited"]
pub struct Open<K: Allocatable, W = Now> {
    plan: Plan<K>,
    wait: W,
}

/// What objects are asked for with, again and again by a refresh.
pub(super) struct Plan<K> {
    pub(super) kind: Arc<K>,
    malloc: Malloc,
    /// `None`: it answers at once.
    wait: Option<Waiting>,
    attempts: u32,
    pub(super) quarantine: Duration,
    pub(super) close_timeout: Duration,
}

impl<K> Clone for Plan<K> {
    fn clone(&self) -> Self {
        Self { kind: Arc::clone(&self.kind), malloc: self.malloc.clone(), ..*self }
    }
}

impl<W: Clone> Malloc<W> {
    /// Has the leased resource opened as an object of this kind, and another one leased if that fails. Await the result
    /// for `Option<Allocated<K>>`, or with [`wait`](Malloc::wait) for `Allocated<K>`; see [`Open`] for what it promises,
    /// [`Allocatable`] for an example.
    pub fn open<K: Allocatable>(self, kind: K) -> Open<K, W> {
        let wait = self.wait.clone();
        let mut malloc = self.with(Now, One).keep_alive();
        if malloc.binding.is_none()
            && let Some(name) = kind.name()
        {
            malloc = malloc.bind(name);
        }
        Open {
            plan: Plan {
                kind: Arc::new(kind),
                malloc,
                wait: None,
                attempts: 3,
                quarantine: Duration::from_mins(1),
                close_timeout: Duration::from_secs(10),
            },
            wait,
        }
    }
}

impl<K: Allocatable, W> Open<K, W> {
    /// How many resources are tried at most, 1 to 100. Default 3.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.plan.attempts = attempts;
        self
    }

    /// How long a resource that failed stays out of circulation, 1 ms to 10 years. Default 1 min.
    pub fn quarantine(mut self, duration: Duration) -> Self {
        self.plan.quarantine = duration;
        self
    }

    /// How long [`Allocatable::close`] may take, 1 ms to 10 years. It is dropped then, and the lease freed. Default
    /// 10 s.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.plan.close_timeout = timeout;
        self
    }

    /// Whether the lease is renewed until the object is closed, dropped or lost. Default `true`.
    pub fn keep_alive(mut self, keep_alive: bool) -> Self {
        self.plan.malloc.keep_alive = keep_alive;
        self
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, OpenError>> + Send>>;

impl<K: Allocatable> IntoFuture for Open<K> {
    type Output = Result<Option<Allocated<K>>, OpenError>;
    type IntoFuture = Boxed<Option<Allocated<K>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.plan.first())
    }
}

impl<K: Allocatable> IntoFuture for Open<K, Waiting> {
    type Output = Result<Allocated<K>, OpenError>;
    type IntoFuture = Boxed<Allocated<K>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { plan, wait } = self;
        let in_vain = Error::NotServed { pool: plan.malloc.pool.name().clone(), after: wait.at_most };
        let first = Plan { wait: Some(wait), ..plan }.first();
        Box::pin(async move { first.await?.ok_or(OpenError::Lease(in_vain)) })
    }
}

impl<K: Allocatable, W: fmt::Debug> fmt::Debug for Open<K, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { malloc, attempts, quarantine, close_timeout, kind: _, wait: _ } = &self.plan;
        f.debug_struct("Open")
            .field("malloc", malloc)
            .field("wait", &self.wait)
            .field("attempts", attempts)
            .field("quarantine", quarantine)
            .field("close_timeout", close_timeout)
            .finish_non_exhaustive()
    }
}

/// What came of all attempts.
pub(super) enum Next<K: Allocatable> {
    Healthy(Allocated<K>),
    /// Nothing is free, or became free in time.
    NothingFree,
    /// As many failed as may be tried.
    AllFailed,
}

impl<K: Allocatable> Plan<K> {
    fn check(&self) -> Result<()> {
        if !(1..=MOST_ATTEMPTS).contains(&self.attempts) {
            return Err(Error::Invalid {
                what: "number of attempts",
                found: self.attempts.to_string(),
                allowed: format!("1 to {MOST_ATTEMPTS}"),
            });
        }
        millis("duration of the quarantine", self.quarantine)?;
        millis("time limit for closing", self.close_timeout)?;
        Ok(())
    }

    async fn first(self) -> Result<Option<Allocated<K>>, OpenError> {
        self.check()?;
        let mut failures = Vec::new();
        match self.next(&mut failures).await? {
            Next::Healthy(allocated) => Ok(Some(allocated)),
            Next::NothingFree if failures.is_empty() => Ok(None),
            next => Err(self.unusable(failures, &next)),
        }
    }

    /// The next resource that can be used, opened; the others are added to the failures.
    pub(super) async fn next(&self, failures: &mut Vec<Failure>) -> Result<Next<K>> {
        let mut wait = self.wait;
        for _ in 0..self.attempts {
            let Some(lease) = self.lease(&mut wait).await? else { return Ok(Next::NothingFree) };
            let mut allocated = match self.open(&lease).await {
                Ok(object) => Allocated::new(object, lease, self.clone()),
                Err(fault) => {
                    failures.push(retire::<K>(lease, None, fault, self.quarantine).await);
                    continue;
                }
            };
            match allocated.examine().await {
                Ok(()) => return Ok(Next::Healthy(allocated)),
                Err(fault) => failures.push(allocated.retire(fault).await),
            }
        }
        Ok(Next::AllFailed)
    }

    /// What is free, or becomes free in time: the time that this takes is taken off the wait, down to none.
    async fn lease(&self, wait: &mut Option<Waiting>) -> Result<Option<Lease>> {
        let malloc = self.malloc.clone();
        let Some(waiting) = *wait else { return malloc.await };
        let begin = Instant::now();
        let leased = malloc.with(waiting, One).await;
        *wait = waiting.after(begin.elapsed());
        match leased {
            Err(Error::NotServed { .. }) => Ok(None),
            leased => leased.map(Some),
        }
    }

    async fn open(&self, lease: &Lease) -> Result<K::Object, Fault> {
        tokio::select! {
            biased;
            opened = self.kind.open(lease.key(), lease.params()) => opened.map_err(|error| match lease.lost_reason() {
                // Somebody else may use it already, and that be the reason.
                Some(reason) => Fault::Lost(reason),
                None => Fault::Open(error.into()),
            }),
            () = lease.lost() => Err(Fault::Lost(lease.lost_reason().unwrap_or(LostReason::Expired))),
        }
    }

    pub(super) fn unusable(&self, failures: Vec<Failure>, next: &Next<K>) -> OpenError {
        let nothing_else = matches!(next, Next::NothingFree);
        OpenError::Unusable { pool: self.malloc.pool.name().clone(), failures, nothing_else }
    }
}
