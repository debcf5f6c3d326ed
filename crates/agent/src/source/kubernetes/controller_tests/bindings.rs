//! The status of a binding.

use jiff::Timestamp;
use kube::{core::DynamicObject, runtime::controller::Action};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    super::fixtures::{Answer, Call, NAMESPACE, Otherwise as _, binding, gpus, ok, pool},
    Agent, BINDING_STATUS, event,
};
use crate::board::BindingVerdict;

impl Agent {
    /// What a worker would say of the binding `trainer`.
    fn says(&self, verdict: BindingVerdict) {
        let declaration = self.ctx.index().declaration(false);
        let desired = &declaration.desired;
        let pooled = desired.pools.get(&gpus()).and_then(|pool| pool.bindings.first());
        let binding = pooled.or(desired.unpooled.first()).unwrap().clone();
        self.board.set_bindings(&gpus(), vec![(binding, verdict)]);
    }

    /// Reconciles a binding whose status is written, and told if `N` is 1.
    async fn writes_binding<const N: usize>(&mut self, object: &DynamicObject, answers: [Answer; N]) -> Vec<Call> {
        let (action, calls) = self.reconciles(object, answers).await;
        assert_eq!(action.unwrap(), Action::await_change());
        assert_eq!(calls[0].line, BINDING_STATUS);
        calls.into()
    }
}

fn bound() -> BindingVerdict {
    BindingVerdict { ready: true, reason: "Bound", message: "gpu-0 is kept".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_binding_says_what_its_pools_worker_does() {
    let mut agent = Agent::new();
    let trainer = binding("trainer").generation(3);
    agent.sees([&pool("gpus"), &trainer]);
    agent.leaves_alone(&trainer).await;

    agent.says(bound());
    let calls = agent.writes_binding(&trainer, [ok(&trainer)]).await;
    let call = &calls[0];
    let since = call.body["status"]["conditions"][0]["lastTransitionTime"].clone();
    let at: Timestamp = since.as_str().unwrap().parse().unwrap();
    assert!(at.duration_since(Timestamp::now()).abs() < jiff::SignedDuration::from_mins(1), "{at}");
    assert_eq!(
        call.body,
        json!({
            "apiVersion": "redis-allocator.dev/v1alpha1", "kind": "SoftBinding",
            "metadata": {"name": "trainer", "namespace": NAMESPACE, "uid": "uid-of-trainer"},
            "status": {
                "observedGeneration": 3, "resource": "gpu-0",
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Bound", "message": "gpu-0 is kept", "observedGeneration": 3,
                    "lastTransitionTime": since,
                }],
            },
        })
    );
    agent.leaves_alone(&trainer).await;
}

#[rstest]
#[case::conflict("BindingConflict", true)]
#[case::duplicate("DuplicateBindingName", true)]
#[case::pool_invalid("PoolInvalid", true)]
// The pool may well be applied a moment later.
#[case::no_pool("PoolNotFound", false)]
#[tokio::test(start_paused = true)]
async fn a_binding_that_is_not_in_place_says_why(#[case] reason: &'static str, #[case] is_told: bool) {
    let mut agent = Agent::new();
    let trainer = binding("trainer");
    agent.sees([&trainer]);
    agent.says(BindingVerdict::failed(reason, "this is why"));
    let answer = || ok(json!({}));
    let calls = if is_told {
        agent.writes_binding(&trainer, [answer(), answer()]).await
    } else {
        agent.writes_binding(&trainer, [answer()]).await
    };
    let ready = &calls[0].body["status"]["conditions"][0];
    assert_eq!([&ready["status"], &ready["reason"], &ready["message"]], ["False", reason, "this is why"]);
    assert_eq!(calls[0].body["status"]["resource"], Value::Null);
    if let Some(told) = calls.get(1) {
        assert_eq!(event(told), ["Warning", reason, "this is why"]);
        assert_eq!(told.body["regarding"]["kind"], "SoftBinding");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_binding_says_why() {
    let mut agent = Agent::new();
    let refused = binding("trainer").spec(json!({"poolRef": {"name": "gpus"}, "resourceName": "gpu-0", "ttl": "1ms"}));
    let calls = agent.writes_binding(&refused, [ok(json!({})), ok(json!({}))]).await;
    let ready = &calls[0].body["status"]["conditions"][0];
    assert_eq!([&ready["status"], &ready["reason"]], ["False", "InvalidSpec"]);
    assert!(ready["message"].as_str().unwrap().contains("spec.ttl"), "{ready}");
    assert_eq!(event(&calls[1])[..2], ["Warning", "InvalidSpec"]);
}

#[tokio::test(start_paused = true)]
async fn a_binding_whose_pool_nobody_could_look_at_yet_says_so() {
    let mut agent = Agent::new();
    agent.redis.send_replace(Some("connection refused".to_owned()));
    let calls = agent.writes_binding(&binding("trainer"), [ok(json!({}))]).await;
    let ready = &calls[0].body["status"]["conditions"][0];
    assert_eq!([&ready["status"], &ready["reason"]], ["False", "RedisUnavailable"]);
}
