//! What is done with one object: its finalizer and its status. What it means for Redis is the reconcilers' matter.
//!
//! # Guarantees
//! - Nothing is written when nothing changed; counts are written every [`COUNTS`] at most.
//! - A pool keeps its finalizer until it is gone from Redis, or until it is told to go at once.
//! - A status is about the very object that was seen: one that was created anew under its name is left alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
    runtime::{controller::Action, finalizer},
};
use redis_allocator_crd::{Kind, ResourcePool, ResourcePoolStatus, SoftBinding, SoftBindingStatus};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    events::{self, CONTROLLER, Draft},
    index::Index,
    object::{FINALIZER, Key, Life},
    status::{self, Known, Status},
};
use crate::{
    backoff::Backoff,
    board::{Board, COUNTS, Gone},
    metrics::Metrics,
};

/// How long after a write the watch may bring what was there before it.
const SETTLED: Duration = Duration::from_secs(1);

/// What went wrong with an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("writing the status failed: {0}")]
    Status(#[source] kube::Error),
    #[error(transparent)]
    Finalizer(Box<finalizer::Error<std::convert::Infallible>>),
}

impl Error {
    fn api(&self) -> Option<&kube::Error> {
        match self {
            Self::Status(error) => Some(error),
            Self::Finalizer(error) => match &**error {
                finalizer::Error::AddFinalizer(error) | finalizer::Error::RemoveFinalizer(error) => Some(error),
                _ => None,
            },
        }
    }

    /// A word from a fixed set, for metrics.
    fn category(&self) -> &'static str {
        self.api().map_or("other", category)
    }

    /// Whether the object is not what it was when it was seen. The watch tells what it is now.
    fn is_overtaken(&self) -> bool {
        // A patch that tests the finalizers answers 422 when they are others.
        matches!(self.api(), Some(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422))
    }
}

/// A word from a fixed set for an error of the API server, or on the way there.
pub(super) fn category(error: &kube::Error) -> &'static str {
    let kube::Error::Api(status) = error else { return "unreachable" };
    match status.code {
        401 | 403 => "forbidden",
        404 => "not_found",
        409 | 422 => "conflict",
        429 => "too_many_requests",
        500.. => "server",
        _ => "refused",
    }
}

/// What the controllers share, for as long as this agent leads.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Metrics,
    pub(super) index: Mutex<Index>,
    /// Why Redis was never reached, as long as it was not.
    pub(super) unreachable: watch::Receiver<Option<String>>,
    /// What was written last: the watch brings it a little later.
    written: Mutex<HashMap<Key, Written>>,
    backoffs: Mutex<HashMap<Key, Backoff>>,
}

/// A status as text: there may be many, and as a tree each takes several times as much.
#[derive(Clone)]
struct Written {
    /// Of which object of that name.
    uid: Option<String>,
    status: String,
    /// Absent when it was there before this agent led.
    at: Option<Instant>,
    /// Whether someone else wrote it since.
    theirs: bool,
}

impl Context {
    pub(super) fn new(
        client: Client,
        board: Arc<Board>,
        metrics: Metrics,
        unreachable: watch::Receiver<Option<String>>,
    ) -> Self {
        Self {
            client,
            board,
            metrics,
            index: Mutex::default(),
            unreachable,
            written: Mutex::default(),
            backoffs: Mutex::default(),
        }
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        locked(&self.index)
    }

    /// Takes over what others wrote of an object: who led before, or anyone who may. Whether that is another status than
    /// was written from here: it is put right, but not at once, lest two fight over it without end.
    pub(super) fn learn(&self, kind: Kind, object: &DynamicObject) -> bool {
        let mut all = locked(&self.written);
        let key = Key::of(kind, object);
        let uid = &object.metadata.uid;
        let Some(status) = object.data.get("status") else { return false };
        if let Some(written) = all.get(&key).filter(|written| written.uid == *uid) {
            let is_same = serde_json::from_str::<Value>(&written.status).is_ok_and(|written| written == *status);
            // Shortly after a write, the watch may still bring the one before.
            if is_same || written.at.is_some_and(|at| at.elapsed() < SETTLED) {
                return false;
            }
        }
        let theirs = all.get(&key).is_some_and(|written| written.uid == *uid);
        let at = theirs.then(Instant::now);
        all.insert(key, Written { uid: uid.clone(), status: status.to_string(), at, theirs });
        theirs
    }

    /// Forgets all about objects of a kind that are not there any more.
    pub(super) fn retain(&self, kind: Kind, is_there: impl Fn(&Key) -> bool) {
        let keep = |key: &Key| key.kind != kind || is_there(key);
        locked(&self.written).retain(|key, _| keep(key));
        locked(&self.backoffs).retain(|key, _| keep(key));
    }

    /// The same of one object.
    pub(super) fn forget(&self, key: &Key) {
        locked(&self.written).remove(key);
        locked(&self.backoffs).remove(key);
        if let Some(pool) = key.pool() {
            self.board.forget_end(&pool);
        }
    }

    /// The status that an object has; when it was written since this agent leads, and whether by others.
    fn status<S: Status>(&self, key: &Key, object: &DynamicObject) -> (Option<S>, Option<Instant>, bool) {
        let written = locked(&self.written).get(key).filter(|written| written.uid == object.metadata.uid).cloned();
        // A status that another version wrote may be one that can't be read: it is written anew.
        written.map_or((None, None, false), |Written { status, at, theirs, .. }| {
            (serde_json::from_str(&status).ok(), at, theirs)
        })
    }

    /// Gives an object this status.
    async fn write<S: Status>(&self, key: &Key, object: &DynamicObject, status: &S) -> Result<(), Error> {
        let value = serde_json::to_value(status).unwrap_or_default();
        let status = value.to_string();
        let resource = resource(key.kind);
        let uid = object.metadata.uid.clone();
        let patch = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": uid},
            "status": value,
        });
        let params = PatchParams::apply(CONTROLLER).force();
        self.api(key).patch_status(&key.name, &params, &Patch::Apply(&patch)).await.map_err(Error::Status)?;
        // One that has gone meanwhile was forgotten, and that is not to be undone.
        if self.index().has(key) {
            let at = Some(Instant::now());
            locked(&self.written).insert(key.clone(), Written { uid, status, at, theirs: false });
        }
        Ok(())
    }

    fn api(&self, key: &Key) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &key.namespace, &resource(key.kind))
    }

    async fn publish(&self, kind: Kind, object: &DynamicObject, draft: Draft) {
        events::publish(&self.client, &reference(kind, object), draft).await;
    }
}

/// Nothing panics while holding one of the locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the API server calls the objects of a kind.
pub(super) fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::ResourcePool => ApiResource::erase::<ResourcePool>(&()),
        Kind::SoftBinding => ApiResource::erase::<SoftBinding>(&()),
    }
}

/// An object, as an Event says which one it is about.
pub(super) fn reference(kind: Kind, object: &DynamicObject) -> ObjectReference {
    object.object_ref(&resource(kind))
}

/// Reconciles one object.
pub(super) async fn reconcile(kind: Kind, object: Arc<DynamicObject>, ctx: Arc<Context>) -> Result<Action, Error> {
    let key = Key::of(kind, &object);
    let result = match Life::of(kind, &object) {
        Life::Gone => Ok(Action::await_change()),
        Life::Unborn => change_finalizer(&key, object, &ctx).await,
        Life::Live => publish_status(&key, &object, &ctx).await,
        Life::Deleting { forced } => match key.pool().map(|pool| ctx.board.gone(&pool)) {
            None => let_go(&key, object, Some(Gone::NotOurs), &ctx).await,
            Some(gone @ Some(_)) => let_go(&key, object, gone, &ctx).await,
            Some(None) if forced && is_hopeless(&key, &ctx) => let_go(&key, object, None, &ctx).await,
            Some(None) => publish_status(&key, &object, &ctx).await,
        },
    };
    match result {
        Err(error) if !error.is_overtaken() => Err(error),
        // An object that changed meanwhile is reconciled when the watch brings it; a conflict of another kind, after a while.
        Err(error) => {
            tracing::debug!(object = %key, "overtaken: {error}");
            ctx.metrics.kubernetes_failed(error.category());
            Ok(Action::requeue(locked(&ctx.backoffs).entry(key).or_default().next()))
        }
        Ok(action) => {
            locked(&ctx.backoffs).remove(&key);
            Ok(action)
        }
    }
}

/// Adds the finalizer, or removes it from an object that is being deleted.
async fn change_finalizer(key: &Key, object: Arc<DynamicObject>, ctx: &Context) -> Result<Action, Error> {
    let nothing = async |_| Ok::<_, std::convert::Infallible>(Action::await_change());
    finalizer(&ctx.api(key), FINALIZER, object, |event| Box::pin(nothing(event)))
        .await
        .map_err(|error| Error::Finalizer(Box::new(error)))
}

/// Has an object that is being deleted go. `gone`: why its pool is not looked after any more; it may go without that.
async fn let_go(key: &Key, object: Arc<DynamicObject>, gone: Option<Gone>, ctx: &Context) -> Result<Action, Error> {
    let policy = ctx.index().deletion_policy(key);
    if gone.is_some() {
        // Should this agent end right here, the next one must not take the pool for one that Redis has lost.
        let (status, ..) = ctx.status::<ResourcePoolStatus>(key, &object);
        if let Some(status) = status.filter(|status| status.incarnation.is_some()) {
            let status = ResourcePoolStatus { incarnation: None, longest_ttl: None, permanent_leases: false, ..status };
            ctx.write(key, &object, &status).await?;
        }
    }
    let action = change_finalizer(key, Arc::clone(&object), ctx).await?;
    // Not before: each attempt would tell it again.
    tracing::info!(object = %key, ?gone, "the object is let go");
    ctx.publish(key.kind, &object, events::of_deletion(policy, gone)).await;
    Ok(action)
}

/// Whether a pool that is to go at once could not be taken down in that way when it was tried.
fn is_hopeless(key: &Key, ctx: &Context) -> bool {
    let policy = ctx.index().deletion_policy(key);
    key.pool().is_some_and(|pool| ctx.board.is_stuck(&pool, policy)) || ctx.unreachable.borrow().is_some()
}

async fn publish_status(key: &Key, object: &DynamicObject, ctx: &Context) -> Result<Action, Error> {
    match key.kind {
        Kind::ResourcePool => {
            let said = key.pool().and_then(|pool| ctx.board.pool(&pool));
            let drained = |before: &ResourcePoolStatus, after: &ResourcePoolStatus| events::of_drain(before, after);
            publish_one(key, object, ctx, said, drained).await
        }
        Kind::SoftBinding => {
            let pool = ctx.index().pool(key);
            let said = pool.and_then(|pool| ctx.board.binding(&pool, &key.name));
            publish_one(key, object, ctx, said, |_: &SoftBindingStatus, _| None).await
        }
    }
}

async fn publish_one<S: Status>(
    key: &Key,
    object: &DynamicObject,
    ctx: &Context,
    said: Option<S>,
    more: impl Fn(&S, &S) -> Option<Draft>,
) -> Result<Action, Error> {
    let (before, at, theirs) = ctx.status::<S>(key, object);
    let refusal = ctx.index().refusal(key);
    let unreachable = ctx.unreachable.borrow().clone();
    let known = Known {
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        before: before.as_ref(),
        said,
        refusal: refusal.as_ref(),
        unreachable: unreachable.as_deref(),
    };
    let Some(status) = status::compose(known) else { return Ok(Action::await_change()) };
    if (theirs || !status::is_urgent(before.as_ref(), &status))
        && let Some(at) = at
        && at.elapsed() < COUNTS
    {
        return Ok(Action::requeue(COUNTS.saturating_sub(at.elapsed())));
    }
    ctx.write(key, object, &status).await?;
    let old = before.as_ref().map_or(&[][..], Status::conditions);
    let mut drafts = events::of_conditions(old, status.conditions());
    drafts.extend(before.as_ref().and_then(|before| more(before, &status)));
    for draft in drafts {
        ctx.publish(key.kind, object, draft).await;
    }
    Ok(Action::await_change())
}

/// When an object that failed is tried again: later each time, as long as it fails.
pub(super) fn after_error(kind: Kind, object: &DynamicObject, error: &Error, ctx: &Context) -> Action {
    let key = Key::of(kind, object);
    ctx.metrics.kubernetes_failed(error.category());
    let mut backoffs = locked(&ctx.backoffs);
    let backoff = backoffs.entry(key.clone()).or_default();
    if backoff.is_fresh() {
        tracing::warn!(object = %key, category = error.category(), "{error}; it is tried again and again");
    }
    Action::requeue(backoff.next())
}
