//! An object that is open, and the lease on its resource: they end together, the object first.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    time::Duration,
};

use tokio_util::sync::WaitForCancellationFuture;

use super::{
    Allocatable, BoxError, CloseError, OpenError,
    error::{Failure, Fault},
    open::{Next, Plan},
    reason::reason,
};
use crate::{error::Error, lease::Lease, names::ResourceKey, to_the_end::ToTheEnd};

/// An object, open and found healthy, with the lease on its resource. It dereferences to the object.
///
/// Like the lease, it may be used until the deadline: watch [`lost`](Self::lost) while working.
///
/// # Guarantees
/// - [`Allocatable::close`] is called exactly once, and the lease freed exactly once, after it: by
///   [`close`](Self::close), by a [`refresh`](Self::refresh) that finds it broken, or, if this value is dropped, by a task
///   in the background.
/// - A future of this type may be dropped at any moment: what it began is carried to its end.
///
/// # Caveats
/// If the process or the Tokio runtime ends before the background has done its part, the object is dropped without
/// being closed, and the resource comes back when its lease expires: prefer [`close`](Self::close).
pub struct Allocated<K: Allocatable> {
    /// `None` only while this value ends.
    held: Option<Held<K>>,
}

/// Object and lease. What drops it drops the object first.
pub(super) struct Held<K: Allocatable> {
    object: K::Object,
    plan: Plan<K>,
    lease: Lease,
}

impl<K: Allocatable> Allocated<K> {
    pub(super) fn new(object: K::Object, lease: Lease, plan: Plan<K>) -> Self {
        Self { held: Some(Held { object, plan, lease }) }
    }

    fn held(&self) -> &Held<K> {
        let Some(held) = &self.held else { unreachable!("whoever takes it takes the whole value") };
        held
    }

    fn held_mut(&mut self) -> &mut Held<K> {
        let Some(held) = &mut self.held else { unreachable!("whoever takes it takes the whole value") };
        held
    }

    fn into_held(mut self) -> Held<K> {
        let Some(held) = self.held.take() else { unreachable!("whoever takes it takes the whole value") };
        held
    }

    /// The lease on the resource: its key, params, fencing token and deadline.
    pub fn lease(&self) -> &Lease {
        &self.held().lease
    }

    /// The resource that is held.
    pub fn key(&self) -> &ResourceKey {
        self.lease().key()
    }

    /// What the object was opened with.
    pub fn kind(&self) -> &K {
        &self.held().plan.kind
    }

    /// Completes when the lease is lost: stop using the object then. See [`Lease::lost`].
    pub fn lost(&self) -> WaitForCancellationFuture<'_> {
        self.lease().lost()
    }

    /// Whether the lease is lost. One look at a clock; see [`Lease::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.lease().is_lost()
    }

    /// Asks [`Allocatable::is_healthy`], and does nothing about the answer; [`refresh`](Self::refresh) does.
    ///
    /// # Errors
    /// Its own.
    pub async fn is_healthy(&mut self) -> Result<bool, K::Error> {
        let Held { object, plan, .. } = self.held_mut();
        plan.kind.is_healthy(object).await
    }

    /// This object, if its lease is held and it is healthy; otherwise another one, asked for as this one was. If that was
    /// with a [`wait`](crate::Malloc::wait), this waits again for as long as was asked for, a new time limit. The broken
    /// one is closed, its resource quarantined and given back; that of a lost lease is not quarantined.
    ///
    /// # Errors
    /// As for [`Open`](super::Open): [`OpenError::Unusable`] also when nothing else is free, or became free in time. This
    /// object is gone then.
    pub async fn refresh(mut self) -> Result<Self, OpenError> {
        let Err(fault) = self.examine().await else { return Ok(self) };
        let plan = self.held().plan.clone();
        let mut failures = vec![self.retire(fault).await];
        match plan.next(&mut failures).await? {
            Next::Healthy(allocated) => Ok(allocated),
            next => Err(plan.unusable(failures, &next)),
        }
    }

    /// Closes the object, then frees the lease: both, whatever comes of the first.
    ///
    /// # Errors
    /// What failed of the two. The object is closed or dropped all the same; a lease that may still be held goes on being
    /// freed in the background.
    pub async fn close(self) -> Result<(), CloseError> {
        let held = self.into_held();
        let runtime = held.lease.grant().pool.client().inner.runtime.clone();
        ToTheEnd::new(runtime, held.end()).await
    }

    /// Whether it may be handed out.
    pub(super) async fn examine(&mut self) -> Result<(), Fault> {
        let Held { object, plan, lease } = self.held_mut();
        let checked = tokio::select! {
            biased;
            checked = plan.kind.is_healthy(object) => checked,
            () = lease.lost() => Ok(false),
        };
        if let Some(reason) = lease.lost_reason() {
            return Err(Fault::Lost(reason));
        }
        match checked {
            Ok(true) => Ok(()),
            Ok(false) => Err(Fault::Unhealthy),
            Err(error) => Err(Fault::Check(error.into())),
        }
    }

    /// Gives up a resource whose object can't be used.
    pub(super) async fn retire(self, fault: Fault) -> Failure {
        let Held { lease, plan, object } = self.into_held();
        let quarantine = plan.quarantine;
        retire(lease, Some((plan, object)), fault, quarantine).await
    }
}

/// Gives up a resource that can't be used. Carried to its end, so that no resource is given back that nobody warns of.
pub(super) async fn retire<K: Allocatable>(
    lease: Lease,
    opened: Option<(Plan<K>, K::Object)>,
    fault: Fault,
    quarantine: Duration,
) -> Failure {
    let key = lease.key().clone();
    let runtime = lease.grant().pool.client().inner.runtime.clone();
    let warning = match fault {
        Fault::Lost(_) => None,
        _ => Some(reason(lease.owner(), &fault, lease.params())),
    };
    let retired = async move {
        // First of all: closing may take longer than the lease lasts.
        let not_quarantined = match warning {
            Some(warning) => warn(&lease, quarantine, &warning).await.err(),
            None => None,
        };
        let lease = match opened {
            Some((plan, object)) => Held { object, plan, lease }.close_only().await,
            None => lease,
        };
        // What fails here goes on in the background; what is not held any more needs no freeing.
        let _ = lease.free().await;
        not_quarantined
    };
    Failure { key, fault, not_quarantined: ToTheEnd::new(runtime, retired).await }
}

async fn warn(lease: &Lease, duration: Duration, reason: &str) -> Result<(), Error> {
    match lease.grant().pool.quarantine_at_least(lease.key(), duration, reason).await {
        // It leaves the pool when it is given back.
        Err(Error::UnknownResource { .. }) => Ok(()),
        marked => marked,
    }
}

impl<K: Allocatable> Held<K> {
    async fn close(self) -> (Lease, Result<(), BoxError>) {
        // The object is bound after the lease, so that it is gone before it even if closing panics.
        let Self { lease, plan, object } = self;
        let limit = plan.close_timeout;
        let closed = match tokio::time::timeout(limit, plan.kind.close(object)).await {
            Ok(closed) => closed.map_err(Into::into),
            Err(_) => Err(format!("it took longer than {limit:?}").into()),
        };
        (lease, closed)
    }

    /// Closes the object where nobody hears what came of it.
    async fn close_only(self) -> Lease {
        let (lease, closed) = self.close().await;
        if let Err(error) = closed {
            let error = reason(lease.owner(), &*error, lease.params());
            tracing::warn!(pool = %lease.pool(), resource = %lease.key(), error, "an object was not closed well");
        }
        lease
    }

    async fn end(self) -> Result<(), CloseError> {
        let (lease, closed) = self.close().await;
        let (pool, key) = (lease.pool().clone(), lease.key().clone());
        match (closed.err(), lease.free().await.err()) {
            (None, None) => Ok(()),
            (object, lease) => Err(CloseError { pool, key, object, lease }),
        }
    }
}

impl<K: Allocatable> Drop for Allocated<K> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let runtime = held.lease.grant().pool.client().inner.runtime.clone();
            runtime.spawn(async move { drop(held.close_only().await) });
        }
    }
}

impl<K: Allocatable> Deref for Allocated<K> {
    type Target = K::Object;

    fn deref(&self) -> &K::Object {
        &self.held().object
    }
}

impl<K: Allocatable> DerefMut for Allocated<K> {
    fn deref_mut(&mut self) -> &mut K::Object {
        &mut self.held_mut().object
    }
}

impl<K: Allocatable> fmt::Debug for Allocated<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocated").field("lease", self.lease()).finish_non_exhaustive()
    }
}
