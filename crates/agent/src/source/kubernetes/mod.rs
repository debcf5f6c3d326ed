//! The Kubernetes source: the `ResourcePools` and `SoftBindings` of a cluster, watched; and their statuses, written back.
//!
//! | file | idea |
//! |---|---|
//! | [`object`] | one object: which it is, where in its life, what it declares |
//! | [`index`] | what the objects declare together |
//! | [`controller`] | what is done with one object: finalizer and status |
//! | [`status`] | what its status is to be |
//! | [`events`] | what an operator must know besides |

mod controller;
#[cfg(test)]
mod controller_tests;
mod events;
#[cfg(test)]
pub(crate) mod fixtures;
mod index;
mod object;
mod status;
#[cfg(test)]
mod watch_tests;

use std::{collections::HashSet, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt as _,
    core::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        controller::{self as applying, applier},
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, watcher},
    },
};
use redis_allocator::{Longest, PoolName};
use redis_allocator_crd::{Kind, ResourcePoolStatus};
use serde_json::Value;
use tokio::{
    sync::{
        mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    time::{Instant, sleep_until},
};

use self::{
    controller::{Context, after_error, category, reconcile, resource},
    object::{FORCE_DELETE, Key, deletion_policy},
};
use super::Declaration;
use crate::{
    board::{Board, Touched},
    http::Readiness,
    metrics::Metrics,
    notice::Notice,
    state::{Memory, RememberedPool},
};

/// Changes of so long a time are declared together.
const GATHER: Duration = Duration::from_millis(20);
/// Objects that are written at once, of each kind.
const CONCURRENT: u16 = 8;

/// Where the objects of a cluster are.
#[derive(Clone)]
pub(crate) struct KubernetesSource {
    /// For requests, which are answered soon or not at all.
    pub(crate) client: Client,
    /// For watches, in which silence is the rule.
    pub(crate) watches: Client,
    /// Whether a cluster without any pool means that what is managed is to be deleted.
    pub(crate) allow_empty: bool,
    pub(crate) board: Arc<Board>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    /// Why Redis was never reached, as long as it was not.
    pub(crate) unreachable: watch::Receiver<Option<String>>,
}

/// What tells the cluster from every other one for as long as it exists.
///
/// # Errors
/// When the API server can't be asked.
pub(crate) async fn cluster_id(client: &Client) -> Result<String, kube::Error> {
    // The convention of the field (OpenTelemetry's k8s.cluster.uid): the namespace that a cluster can't be without.
    let namespace = Api::<Namespace>::all(client.clone()).get_metadata("kube-system").await?;
    Ok(namespace.uid().unwrap_or_default())
}

impl KubernetesSource {
    /// Publishes what the cluster declares, and writes into its objects what becomes of them, for as long as this agent
    /// leads: until it is dropped.
    pub(crate) async fn run(&self, declarations: &watch::Sender<Arc<Declaration>>, notices: &mut Receiver<Notice>) {
        let ctx =
            Context::new(self.client.clone(), Arc::clone(&self.board), self.metrics.clone(), self.unreachable.clone());
        let ctx = Arc::new(ctx);
        let (pools, pool_queue) = Watched::new(Kind::ResourcePool);
        let (bindings, binding_queue) = Watched::new(Kind::SoftBinding);
        let (pool_store, binding_store) = (pools.writer.as_reader(), bindings.writer.as_reader());
        let touched = self.board.subscribe();
        let queues = [pools.queue.clone(), bindings.queue.clone()];
        let store = pool_store.clone();
        let object_of = move |pool: &PoolName| {
            let object = ObjectRef::new_with(pool.name(), resource(Kind::ResourcePool)).within(pool.namespace());
            store.get(&object).map(|object| controller::reference(Kind::ResourcePool, &object))
        };
        tokio::join!(
            self.follow([pools, bindings], &ctx, declarations),
            control(Kind::ResourcePool, pool_store.clone(), pool_queue, &ctx),
            control(Kind::SoftBinding, binding_store, binding_queue, &ctx),
            forward(touched, &queues),
            self.hear_of_redis(&ctx, &queues),
            events::tell(&self.client, notices, object_of),
        );
    }

    /// Keeps index and stores up to date, and declares what they hold.
    async fn follow(&self, watched: [Watched; 2], ctx: &Context, declarations: &watch::Sender<Arc<Declaration>>) {
        let streams = watched.each_ref().map(|watched| {
            let api: Api<DynamicObject> = Api::all_with(self.watches.clone(), &resource(watched.kind));
            let kind = watched.kind;
            watcher(api, watcher::Config::default()).default_backoff().map(move |event| (kind, event)).boxed()
        });
        let mut events = pin!(stream::select_all(streams));
        let mut watched = watched;
        let mut due: Option<Instant> = None;
        loop {
            let declare = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => {
                    // Neither watch ends by itself.
                    let Some((kind, event)) = event else { return };
                    let Some(watched) = watched.iter_mut().find(|watched| watched.kind == kind) else { continue };
                    match event {
                        Ok(event) => {
                            if self.take(watched, event, ctx) {
                                due.get_or_insert_with(|| Instant::now() + GATHER);
                            }
                        }
                        Err(error) => self.complain(watched, &error),
                    }
                }
                () = declare => {
                    due = None;
                    if watched.iter().all(|watched| watched.listed) {
                        let declaration = ctx.index().declaration(self.allow_empty);
                        self.metrics.set_files(declaration.fine, declaration.errors.len());
                        declarations.send_replace(Arc::new(declaration));
                        self.readiness.set_source(None);
                    }
                }
            }
        }
    }

    /// Takes an event over. Whether something else may be declared now.
    fn take(&self, watched: &mut Watched, event: watcher::Event<DynamicObject>, ctx: &Context) -> bool {
        let kind = watched.kind;
        if std::mem::take(&mut watched.failing) {
            tracing::info!(%kind, "the watch goes on");
        }
        match event {
            watcher::Event::Init => {
                watched.seen.clear();
                watched.writer.apply_watcher_event(&watcher::Event::Init);
                false
            }
            watcher::Event::InitApply(object) => {
                if !watched.listed && kind == Kind::ResourcePool {
                    self.remember(&object);
                }
                watched.seen.insert(Key::of(kind, &object));
                ctx.index().apply(kind, &object);
                ctx.learn(kind, &object);
                watched.writer.apply_watcher_event(&watcher::Event::InitApply(slim(object)));
                false
            }
            watcher::Event::InitDone => {
                watched.writer.apply_watcher_event(&watcher::Event::InitDone);
                ctx.retain(kind, |key| watched.seen.contains(key));
                let mut index = ctx.index();
                index.retain(kind, |key| watched.seen.contains(key));
                index.keys().filter(|key| key.kind == kind).for_each(|key| watched.enqueue(key));
                watched.seen.clear();
                watched.listed = true;
                true
            }
            watcher::Event::Apply(object) => {
                let key = Key::of(kind, &object);
                let changed = ctx.index().apply(kind, &object);
                let is_others = ctx.learn(kind, &object);
                watched.writer.apply_watcher_event(&watcher::Event::Apply(slim(object)));
                if changed || is_others {
                    watched.enqueue(&key);
                }
                changed
            }
            watcher::Event::Delete(object) => {
                let key = Key::of(kind, &object);
                let removed = ctx.index().remove(&key);
                ctx.forget(&key);
                watched.writer.apply_watcher_event(&watcher::Event::Delete(object));
                removed
            }
        }
    }

    /// What an object's status remembers of its pool, for the case that Redis has lost it. Whoever led last wrote it.
    fn remember(&self, object: &DynamicObject) {
        let Some(pool) = Key::of(Kind::ResourcePool, object).pool() else { return };
        let status = object.data.get("status").cloned().unwrap_or(Value::Null);
        let Ok(status) = serde_json::from_value::<ResourcePoolStatus>(status) else { return };
        let Some(Ok(incarnation)) = status.incarnation.map(|it| serde_json::from_value(Value::String(it))) else {
            return;
        };
        let mut longest = match status.longest_ttl {
            _ if status.permanent_leases => Longest::Permanent,
            longest => Longest::For(longest.map_or(Duration::ZERO, Into::into)),
        };
        let known = self.memory.get(&pool).map(|remembered| remembered.known);
        if let Some(known) = known.filter(|known| known.incarnation == incarnation) {
            longest = longest.max(known.longest);
        }
        let known = redis_allocator::Known { incarnation, longest };
        let deletion_policy = deletion_policy(object);
        self.memory.remember(&pool, RememberedPool { known, deletion_policy });
    }

    fn complain(&self, watched: &mut Watched, error: &watcher::Error) {
        let cause = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Some(error),
            _ => None,
        };
        self.metrics.kubernetes_failed(cause.map_or("watch", category));
        let kind = watched.kind;
        if !std::mem::replace(&mut watched.failing, true) {
            tracing::warn!(%kind, "watching failed, and is tried again: {error}");
        }
        if !watched.listed {
            let missing = matches!(cause, Some(kube::Error::Api(status)) if status.code == 404);
            let mend =
                if missing { ": install the definitions with `redis-allocator crd | kubectl apply -f -`" } else { "" };
            self.readiness.set_source(Some(format!("can't list {}: {error}{mend}", resource(kind).plural)));
        }
    }

    /// Has every object's status say so when Redis can't be reached from the start, and when it was.
    async fn hear_of_redis(&self, ctx: &Context, queues: &[UnboundedSender<Key>; 2]) {
        let mut unreachable = self.unreachable.clone();
        while unreachable.changed().await.is_ok() {
            enqueue_all(ctx, queues);
        }
    }
}

fn enqueue_all(ctx: &Context, queues: &[UnboundedSender<Key>; 2]) {
    for key in ctx.index().keys() {
        let [pools, bindings] = queues;
        let queue = if key.kind == Kind::ResourcePool { pools } else { bindings };
        let _ = queue.send(key.clone());
    }
}

/// Keeps what the controllers need of an object, which may be large: the index has what it declares.
fn slim(mut object: DynamicObject) -> DynamicObject {
    object.metadata.managed_fields = None;
    object.metadata.labels = None;
    object.annotations_mut().retain(|key, _| key == FORCE_DELETE);
    object.data = Value::Null;
    object
}

/// Follows the objects of one kind.
struct Watched {
    kind: Kind,
    writer: Writer<DynamicObject>,
    queue: UnboundedSender<Key>,
    /// Those that a list which has not ended has named.
    seen: HashSet<Key>,
    /// Whether a list has ended.
    listed: bool,
    failing: bool,
}

impl Watched {
    fn new(kind: Kind) -> (Self, UnboundedReceiver<Key>) {
        let (queue, queued) = unbounded_channel();
        let writer = Writer::new(resource(kind));
        (Self { kind, writer, queue, seen: HashSet::new(), listed: false, failing: false }, queued)
    }

    fn enqueue(&self, key: &Key) {
        // The controller lives as long as this.
        let _ = self.queue.send(key.clone());
    }
}

/// Reconciles the objects of a kind that are named in a queue.
async fn control(kind: Kind, store: Store<DynamicObject>, queued: UnboundedReceiver<Key>, ctx: &Arc<Context>) {
    let queue = stream::unfold(queued, async |mut queued| queued.recv().await.map(|key| (key, queued)));
    let queue = queue.map(move |key| {
        let object: ObjectRef<DynamicObject> = ObjectRef::new_with(&key.name, resource(kind)).within(&key.namespace);
        Ok::<_, Infallible>(object)
    });
    let config = applying::Config::default().concurrency(CONCURRENT);
    applier(
        move |object, ctx| Box::pin(reconcile(kind, object, ctx)),
        move |object, error, ctx| after_error(kind, &object, error, &ctx),
        Arc::clone(ctx),
        store,
        queue,
        config,
    )
    // Whatever goes wrong was handled where it did; an object that went meanwhile is no error.
    .for_each(async |_| ())
    .await;
}

/// Passes on what the board says has changed.
async fn forward(mut touched: UnboundedReceiver<Touched>, [pools, bindings]: &[UnboundedSender<Key>; 2]) {
    while let Some(touched) = touched.recv().await {
        let (queue, key) = match touched {
            Touched::Pool(pool) => {
                let (namespace, name) = (pool.namespace().to_owned(), pool.name().to_owned());
                (pools, Key { kind: Kind::ResourcePool, namespace, name })
            }
            Touched::Binding { namespace, name } => (bindings, Key { kind: Kind::SoftBinding, namespace, name }),
        };
        let _ = queue.send(key);
    }
}
