//! The election against a mocked API server: each test plays the server's part, and a request that does not come, or
//! comes though it must not, fails it.

mod asking;
mod contest;
mod leading;

use std::time::Instant;

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use tokio::time::{sleep, timeout};
use tower_test::mock::{Handle, SendResponse, pair};

use super::*;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/agents/leases";
/// Longer than any wait of these tests that is to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Renews often and loses nothing by time.
const CALM: Timing = Timing {
    duration: Duration::from_mins(2),
    longest: Duration::from_mins(2),
    give_up: Duration::from_mins(1),
    renew: Duration::from_millis(20),
    retry: Duration::from_millis(20),
    request: Duration::from_secs(10),
};

/// Whatever the Lease says, it is over soon.
const SHORT: Timing = Timing {
    duration: Duration::from_secs(2),
    longest: Duration::from_secs(2),
    give_up: Duration::from_millis(1200),
    renew: Duration::from_millis(100),
    retry: Duration::from_millis(50),
    request: Duration::from_millis(500),
};

/// The API server's side of one agent's connection.
struct Server(Handle<Request<Body>, Response<Body>>);

/// A request, to be answered.
struct Call {
    method: Method,
    path: String,
    body: Option<Lease>,
    reply: SendResponse<Response<Body>>,
}

impl Server {
    async fn next(&mut self) -> Call {
        let (request, reply) = timeout(PATIENCE, self.0.next_request()).await.expect("no request came").unwrap();
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        let body = (!bytes.is_empty()).then(|| serde_json::from_slice(&bytes).unwrap());
        Call { method: parts.method, path: parts.uri.path().to_owned(), body, reply }
    }

    /// The next request, which must be this one.
    async fn expect(&mut self, method: Method) -> Call {
        let call = self.next().await;
        let path = if method == Method::POST { PATH.to_owned() } else { format!("{PATH}/{NAME}") };
        assert_eq!((&call.method, &call.path), (&method, &path));
        call
    }

    /// Nothing is asked for a while.
    async fn expect_silence(&mut self) {
        if let Ok(Some((request, _))) = timeout(10 * CALM.renew, self.0.next_request()).await {
            panic!("unexpected {} {}", request.method(), request.uri());
        }
    }
}

impl Call {
    fn lease(&self) -> Lease {
        self.body.clone().expect("a body")
    }

    fn answer(self, code: u16, body: Vec<u8>) {
        let response = Response::builder().status(StatusCode::from_u16(code).unwrap()).body(Body::from(body)).unwrap();
        self.reply.send_response(response);
    }

    /// Answers with a Lease.
    fn found(self, lease: &Lease) {
        self.answer(200, serde_json::to_vec(lease).unwrap());
    }

    /// Does what is asked: the Lease has another version then.
    fn done(self, version: &str) -> Lease {
        let mut lease = self.lease();
        lease.metadata.resource_version = Some(version.to_owned());
        lease.metadata.uid = Some("uid".to_owned());
        self.found(&lease);
        lease
    }

    fn refused(self, code: u16, reason: &str) {
        let status = kube::core::Status::failure("mocked", reason).with_code(code);
        self.answer(code, serde_json::to_vec(&status).unwrap());
    }

    fn missing(self) {
        self.refused(404, "NotFound");
    }

    fn conflict(self) {
        self.refused(409, "Conflict");
    }
}

/// An agent called `me`, and the server it speaks to.
fn agent(timing: Timing) -> (Election, Server) {
    let (service, handle) = pair();
    let client = kube::Client::new(service, "default");
    (Election::with_timing(client, "agents", "me".to_owned(), timing), Server(handle))
}

fn lease(holder: Option<&str>, version: &str) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            uid: Some("uid".to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(10),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }),
    }
}

fn version(lease: &Lease) -> Option<&str> {
    lease.metadata.resource_version.as_deref()
}

fn transitions(lease: &Lease) -> Option<i32> {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions)
}

/// Asks once, while the server plays its part.
async fn ask<T>(election: &mut Election, server: impl Future<Output = T>) -> (Option<Leadership>, T) {
    let (asked, played) = timeout(PATIENCE, async { tokio::join!(election.ask(), server) }).await.expect("it hangs");
    (asked.unwrap(), played)
}

/// Asks while the Lease is as it is given, which must not change it.
async fn ask_in_vain(election: &mut Election, server: &mut Server, lease: &Lease) {
    let (asked, ()) = ask(election, async { server.expect(Method::GET).await.found(lease) }).await;
    assert!(asked.is_none());
}

/// An agent that leads since version 1 of the Lease was written, and when it asked for that.
async fn leader(timing: Timing) -> (Leadership, Server, Instant) {
    let (mut election, mut server) = agent(timing);
    let (leadership, since) = ask(&mut election, async {
        server.expect(Method::GET).await.missing();
        let since = Instant::now();
        server.expect(Method::POST).await.done("1");
        since
    })
    .await;
    (leadership.expect("the lead"), server, since)
}

async fn wait_until_lost(leadership: &Leadership) {
    timeout(PATIENCE, leadership.lost().cancelled()).await.expect("it should have been lost");
}
