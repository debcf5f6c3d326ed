//! What the tests of this source have in common: objects as the API server has them, and an API server that each test
//! plays itself.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    future::Future,
    pin::pin,
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures::channel::mpsc;
use http::{Request, Response};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Client, core::DynamicObject};
use redis_allocator::PoolName;
use redis_allocator_crd::{API_VERSION, Kind, ResourcePoolStatus};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tower_test::mock::{Handle, SendResponse};

use super::object::{FINALIZER, FORCE_DELETE};

/// The namespace of all objects here, unless they say otherwise.
pub(super) const NAMESPACE: &str = "lab";
/// Time is paused in these tests, and goes on when nobody has anything to do: whoever waits for so long waits for what
/// never comes.
const NEVER: Duration = Duration::from_hours(1);

pub(super) fn gpus() -> PoolName {
    PoolName::new(NAMESPACE, "gpus").unwrap()
}

/// A new object, as the API server has it before anyone has seen it.
pub(super) fn object(kind: Kind, name: &str, spec: Value) -> DynamicObject {
    let object = json!({
        "apiVersion": API_VERSION, "kind": kind.as_str(),
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"), "generation": 1,
            "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
        },
    });
    serde_json::from_value::<DynamicObject>(object).unwrap().spec(spec)
}

/// A pool that carries the finalizer.
pub(super) fn pool(name: &str) -> DynamicObject {
    object(Kind::ResourcePool, name, json!({"resources": [{"name": "gpu-0"}]})).finalizer(FINALIZER)
}

pub(super) fn binding(name: &str) -> DynamicObject {
    object(Kind::SoftBinding, name, json!({"poolRef": {"name": "gpus"}, "resourceName": "gpu-0"}))
}

/// The same object, otherwise.
pub(super) trait Otherwise: Sized {
    fn change(self, change: impl FnOnce(&mut DynamicObject)) -> Self;

    fn namespace(self, namespace: &str) -> Self {
        self.change(|it| it.metadata.namespace = Some(namespace.to_owned()))
    }

    fn uid(self, uid: &str) -> Self {
        self.change(|it| it.metadata.uid = Some(uid.to_owned()))
    }

    fn generation(self, generation: i64) -> Self {
        self.change(|it| it.metadata.generation = Some(generation))
    }

    fn version(self, version: &str) -> Self {
        self.change(|it| it.metadata.resource_version = Some(version.to_owned()))
    }

    /// `day`: of January 2026.
    fn created(self, day: i8) -> Self {
        let time = jiff::civil::date(2026, 1, day).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
        self.change(|it| it.metadata.creation_timestamp = Some(Time(time)))
    }

    fn finalizer(self, finalizer: &str) -> Self {
        self.change(|it| it.metadata.finalizers.get_or_insert_default().push(finalizer.to_owned()))
    }

    /// Deleting it is an edit, too.
    fn deleting(self) -> Self {
        self.change(|it| {
            it.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            it.metadata.generation = it.metadata.generation.map(|generation| generation + 1);
        })
    }

    fn forced(self) -> Self {
        self.change(|it| {
            it.metadata.annotations.get_or_insert_default().insert(FORCE_DELETE.to_owned(), "true".to_owned());
        })
    }

    fn spec(self, spec: Value) -> Self {
        self.change(|it| it.data["spec"] = spec)
    }

    fn status(self, status: impl Serialize) -> Self {
        self.change(|it| it.data["status"] = serde_json::to_value(status).unwrap())
    }
}

impl Otherwise for DynamicObject {
    fn change(mut self, change: impl FnOnce(&mut DynamicObject)) -> Self {
        change(&mut self);
        self
    }
}

/// A condition as it is written, of the first edit.
pub(super) fn condition(type_: &str, status: &str, reason: &str, message: &str, since: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
        "lastTransitionTime": since,
    })
}

/// When the pool of [`ready`] began to be what it is.
pub(super) const SINCE: &str = "2026-02-03T04:05:06Z";

/// The status of a pool of which all is well.
pub(super) fn ready() -> ResourcePoolStatus {
    let status = json!({
        "observedGeneration": 1,
        "conditions": [
            condition("Ready", "True", "Ready", "resources are granted as declared", SINCE),
            condition("Synced", "True", "Synced", "Redis has what is declared", SINCE),
            condition("Degraded", "False", "NothingWrong", "", SINCE),
            condition("Exhausted", "False", "ResourcesFree", "", SINCE),
        ],
        "total": 4, "free": 3, "leased": 1, "quarantined": 0, "reserved": 0, "draining": 0, "waiting": 0,
        "incarnation": "0123456789abcdef", "longestTTL": "2m", "permanentLeases": false,
    });
    serde_json::from_value(status).unwrap()
}

/// The same status, with one of its conditions otherwise.
pub(super) fn with(mut status: ResourcePoolStatus, changed: Value) -> ResourcePoolStatus {
    let changed: Condition = serde_json::from_value(changed).unwrap();
    let old = status.conditions.iter_mut().find(|it| it.type_ == changed.type_);
    *old.unwrap() = changed;
    status
}

/// What conditions say, in short.
pub(super) fn summary(conditions: &[Condition]) -> Vec<String> {
    conditions.iter().map(|it| format!("{}={}/{}", it.type_, it.status, it.reason)).collect()
}

/// An API server, which answers what a test says.
pub(crate) struct ApiServer {
    requests: Handle<Request<kube::client::Body>, Response<Body>>,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Call {
    /// Method and path.
    pub(crate) line: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    /// `Null` when there is none.
    pub(crate) body: Value,
}

/// What is answered.
pub(crate) enum Answer {
    Response(u16, Value),
    /// The connection breaks.
    Broken,
}

pub(crate) fn ok(body: impl Serialize) -> Answer {
    Answer::Response(200, serde_json::to_value(body).unwrap())
}

pub(crate) fn refused(code: u16) -> Answer {
    Answer::Response(code, failure(code))
}

fn failure(code: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code,
        "message": format!("refused with {code}"), "reason": "Reason",
    })
}

/// What is listed at once, of one kind.
pub(super) fn list<const N: usize>(version: &str, items: [DynamicObject; N]) -> Answer {
    ok(
        json!({"apiVersion": API_VERSION, "kind": "List", "metadata": {"resourceVersion": version}, "items": Vec::from(items)}),
    )
}

impl ApiServer {
    pub(crate) fn new() -> (Client, Self) {
        let (service, requests) = tower_test::mock::pair();
        (Client::new(service, "default"), Self { requests })
    }

    /// The next request, and what awaits its answer. A request that does not come fails the test.
    pub(crate) async fn next(&mut self) -> (Call, Pending) {
        let request = timeout(NEVER, self.requests.next_request()).await.expect("a request is missing");
        let (request, reply) = request.expect("nobody can send requests any more");
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let content_type = parts.headers.get(http::header::CONTENT_TYPE).map_or("", |it| it.to_str().unwrap());
        let query = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let call = Call {
            line: format!("{} {}", parts.method, parts.uri.path()),
            query: query.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            content_type: content_type.to_owned(),
            body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() },
        };
        (call, Pending(reply))
    }

    /// Answers the requests of an act, one after the other; there must be as many. What came of the act, and the requests.
    pub(crate) async fn answer<T, const N: usize>(
        &mut self,
        act: impl Future<Output = T>,
        answers: [Answer; N],
    ) -> (T, [Call; N]) {
        let mut answers = VecDeque::from(answers);
        let mut calls = Vec::new();
        let mut act = pin!(act);
        let done = loop {
            tokio::select! {
                biased;
                done = &mut act => break done,
                (call, pending) = self.next() => {
                    let Some(answer) = answers.pop_front() else { panic!("not expected after {calls:#?}: {call:#?}") };
                    pending.send(answer);
                    calls.push(call);
                }
            }
        };
        let found = calls.len();
        (done, calls.try_into().unwrap_or_else(|calls| panic!("{N} requests are expected, found {found}: {calls:#?}")))
    }

    /// Whether there is no request for so long.
    pub(super) async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.requests.next_request()).await.is_err()
    }
}

/// What awaits an answer.
pub(crate) struct Pending(SendResponse<Response<Body>>);

impl Pending {
    pub(crate) fn send(self, answer: Answer) {
        match answer {
            Answer::Response(code, body) => {
                let response = Response::builder().status(code).header("content-type", "application/json");
                self.0.send_response(response.body(Body::from(body.to_string())).unwrap());
            }
            Answer::Broken => self.0.send_error("the connection broke"),
        }
    }

    /// Answers with what happens from now on, until that is dropped.
    pub(crate) fn watch(self) -> Watch {
        let (sender, lines) = mpsc::unbounded();
        self.0.send_response(Response::new(Body::from_stream(lines)));
        Watch(sender)
    }
}

/// Tells what happens.
pub(crate) struct Watch(mpsc::UnboundedSender<Result<Bytes, Infallible>>);

impl Watch {
    fn tell(&self, type_: &str, object: impl Serialize) {
        let line = format!("{}\n", json!({"type": type_, "object": serde_json::to_value(object).unwrap()}));
        self.0.unbounded_send(Ok(line.into())).unwrap();
    }

    pub(super) fn added(&self, object: &DynamicObject) {
        self.tell("ADDED", object);
    }

    pub(super) fn modified(&self, object: &DynamicObject) {
        self.tell("MODIFIED", object);
    }

    pub(super) fn deleted(&self, object: &DynamicObject) {
        self.tell("DELETED", object);
    }

    pub(super) fn failed(&self, code: u16) {
        self.tell("ERROR", failure(code));
    }
}
