//! What is done with one object, against an API server that each test plays: one scenario a test, in which every request is
//! told, and none but those may come.
//!
//! | file | idea |
//! |---|---|
//! | [`status`] | when the status of a pool is written, and when not |
//! | [`refusals`] | objects that can't be used, and a Redis that can't be reached |
//! | [`deletion`] | objects that are being deleted |
//! | [`errors`] | requests that fail, and those that wait |
//! | [`bindings`] | the status of a binding |

mod bindings;
mod deletion;
mod errors;
mod refusals;
mod status;

use std::sync::Arc;

use kube::{core::DynamicObject, runtime::controller::Action};
use redis_allocator::Error as RedisError;
use redis_allocator_crd::{Kind, ResourcePoolStatus};
use serde_json::json;
use tokio::sync::watch;

use super::{
    controller::{Context, Error, reconcile},
    fixtures::{Answer, ApiServer, Call, Otherwise as _, gpus, object, ok, ready},
    object::FINALIZER,
    slim,
};
use crate::{
    board::Board,
    metrics::Metrics,
    reconcile::conditions::{Observed, Sync},
};

const POOL: &str = "PATCH /apis/redis-allocator.dev/v1alpha1/namespaces/lab/resourcepools/gpus";
const POOL_STATUS: &str = "PATCH /apis/redis-allocator.dev/v1alpha1/namespaces/lab/resourcepools/gpus/status";
const BINDING_STATUS: &str = "PATCH /apis/redis-allocator.dev/v1alpha1/namespaces/lab/softbindings/trainer/status";
const EVENTS: &str = "POST /apis/events.k8s.io/v1/namespaces/lab/events";

/// An agent that leads.
struct Agent {
    ctx: Arc<Context>,
    api: ApiServer,
    board: Arc<Board>,
    metrics: Metrics,
    redis: watch::Sender<Option<String>>,
}

impl Agent {
    fn new() -> Self {
        let (client, api) = ApiServer::new();
        let (board, metrics) = (Arc::<Board>::default(), Metrics::new());
        let (redis, unreachable) = watch::channel(None);
        let ctx = Context::new(client, Arc::clone(&board), metrics.clone(), unreachable);
        Self { ctx: Arc::new(ctx), api, board, metrics, redis }
    }

    /// Has the watch bring these.
    fn sees<const N: usize>(&self, objects: [&DynamicObject; N]) {
        for object in objects {
            self.ctx.index().apply(kind(object), object);
            self.ctx.learn(kind(object), object);
        }
    }

    /// Reconciles an object that the watch has brought. Each request is answered with the next answer.
    async fn reconciles<const N: usize>(
        &mut self,
        object: &DynamicObject,
        answers: [Answer; N],
    ) -> (Result<Action, Error>, [Call; N]) {
        self.sees([object]);
        let reconciling = reconcile(kind(object), Arc::new(slim(object.clone())), Arc::clone(&self.ctx));
        self.api.answer(reconciling, answers).await
    }

    /// Reconciles an object, about which nothing is to be done.
    async fn leaves_alone(&mut self, object: &DynamicObject) {
        let (action, []) = self.reconciles(object, []).await;
        assert_eq!(action.unwrap(), Action::await_change());
    }

    /// Reconciles an object, of which the status is written and nothing else. What is written.
    async fn writes_status(&mut self, object: &DynamicObject) -> ResourcePoolStatus {
        let (action, [call]) = self.reconciles(object, [ok(object)]).await;
        assert_eq!(action.unwrap(), Action::await_change());
        status(&call)
    }

    fn failures(&self, category: &str) -> usize {
        let metrics = self.metrics.render().unwrap();
        let line = format!("redis_allocator_kubernetes_errors_total{{category=\"{category}\"}} ");
        metrics.lines().find_map(|it| it.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

fn kind(object: &DynamicObject) -> Kind {
    let kind = &object.types.as_ref().unwrap().kind;
    Kind::ALL.into_iter().find(|it| it.as_str() == kind).unwrap()
}

/// The status that a request writes.
fn status(call: &Call) -> ResourcePoolStatus {
    assert_eq!(call.line, POOL_STATUS);
    serde_json::from_value(call.body["status"].clone()).unwrap()
}

/// Type, reason and note of the Event that a request writes.
fn event(call: &Call) -> [&str; 3] {
    assert_eq!(call.line, EVENTS);
    ["type", "reason", "note"].map(|field| call.body[field].as_str().unwrap())
}

/// A pool that nobody looks after yet.
fn unborn() -> DynamicObject {
    object(Kind::ResourcePool, "gpus", json!({"resources": [{"name": "gpu-0"}]}))
}

fn failed(error: RedisError) -> Observed {
    Observed { generation: Some(1), sync: Sync::Failed(error), ..Observed::default() }
}

fn away() -> RedisError {
    RedisError::Unavailable { message: "connection refused".to_owned(), source: None }
}

fn leased(mut status: ResourcePoolStatus, leased: i64) -> ResourcePoolStatus {
    (status.leased, status.free) = (leased, 4 - leased);
    status
}

#[tokio::test(start_paused = true)]
async fn a_new_pool_gets_the_finalizer_and_nothing_else_yet() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    let (action, [call]) = agent.reconciles(&unborn(), [ok(unborn().finalizer(FINALIZER))]).await;
    assert_eq!(action.unwrap(), Action::await_change());
    assert_eq!((call.line.as_str(), call.content_type.as_str()), (POOL, "application/json-patch+json"));
    assert_eq!(
        call.body,
        json!([
            // Somebody else may add another one at the same moment.
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": ["redis-allocator.dev/pool"]},
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn the_finalizers_of_others_stay() {
    let mut agent = Agent::new();
    let (action, [call]) = agent.reconciles(&unborn().finalizer("example.com/theirs"), [ok(unborn())]).await;
    action.unwrap();
    assert_eq!(
        call.body,
        json!([
            {"op": "test", "path": "/metadata/finalizers", "value": ["example.com/theirs"]},
            {"op": "add", "path": "/metadata/finalizers/-", "value": "redis-allocator.dev/pool"},
        ])
    );
}
