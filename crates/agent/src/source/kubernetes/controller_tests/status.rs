//! The status of a pool: when it is written, and when not.

use std::time::Duration;

use kube::runtime::controller::Action;
use redis_allocator::Error as RedisError;
use redis_allocator_crd::ResourcePoolStatus;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::advance;

use super::{
    super::fixtures::{NAMESPACE, Otherwise as _, SINCE, condition, gpus, ok, pool, ready, refused, summary, with},
    Agent, POOL_STATUS, event, failed, leased, status, unborn,
};
use crate::reconcile::conditions::Observed;

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_pool_is_applied_to_its_status() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    let (action, [call]) = agent.reconciles(&pool("gpus"), [ok(pool("gpus"))]).await;
    assert_eq!(action.unwrap(), Action::await_change());
    assert_eq!((call.line.as_str(), call.content_type.as_str()), (POOL_STATUS, "application/apply-patch+yaml"));
    let query: Vec<_> = call.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(query, [("fieldManager", "redis-allocator"), ("force", "true")]);
    assert_eq!(
        call.body,
        json!({
            "apiVersion": "redis-allocator.dev/v1alpha1", "kind": "ResourcePool",
            // With the uid: another object of this name is not meant.
            "metadata": {"name": "gpus", "namespace": NAMESPACE, "uid": "uid-of-gpus"},
            "status": ready(),
        })
    );
    assert_eq!(call.body["status"]["observedGeneration"], 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_when_the_object_says_it_already() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.leaves_alone(&pool("gpus").status(ready())).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_twice_before_the_watch_brings_it() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.writes_status(&pool("gpus")).await;
    agent.leaves_alone(&pool("gpus")).await;
}

#[tokio::test(start_paused = true)]
async fn that_nothing_is_known_yet_is_not_written() {
    let mut agent = Agent::new();
    agent.leaves_alone(&pool("gpus")).await;
    agent.board.set_pool(&gpus(), &Observed::default());
    agent.leaves_alone(&pool("gpus")).await;
    agent.leaves_alone(&pool("gpus").status(ready())).await;
}

#[tokio::test(start_paused = true)]
async fn counts_wait_until_others_were_written_ten_seconds_ago() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.writes_status(&pool("gpus")).await;
    agent.board.say(&gpus(), leased(ready(), 2));
    advance(Duration::from_secs(3)).await;
    let (action, []) = agent.reconciles(&pool("gpus").status(ready()), []).await;
    assert_eq!(action.unwrap(), Action::requeue(Duration::from_secs(7)));

    agent.board.say(&gpus(), leased(ready(), 3));
    advance(Duration::from_secs(7)).await;
    let written = agent.writes_status(&pool("gpus").status(ready())).await;
    assert_eq!(written, leased(ready(), 3), "those of now, not those of then");
}

#[tokio::test(start_paused = true)]
async fn counts_that_are_back_need_no_request() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.writes_status(&pool("gpus")).await;
    agent.board.say(&gpus(), leased(ready(), 2));
    let (_, []) = agent.reconciles(&pool("gpus"), []).await;
    agent.board.say(&gpus(), ready());
    agent.leaves_alone(&pool("gpus")).await;
}

#[rstest]
#[case::condition(with(ready(), condition("Degraded", "Unknown", "NothingSeen", "", SINCE)))]
#[case::reason(with(ready(), condition("Degraded", "False", "AnotherReason", "", SINCE)))]
#[case::generation(ResourcePoolStatus { observed_generation: Some(2), ..ready() })]
#[case::what_a_loss_needs(ResourcePoolStatus { longest_ttl: Some("1h".parse().unwrap()), ..ready() })]
#[case::permanent(ResourcePoolStatus { permanent_leases: true, ..ready() })]
#[case::another_life(ResourcePoolStatus { incarnation: Some("fedcba9876543210".to_owned()), ..ready() })]
#[tokio::test(start_paused = true)]
async fn whatever_is_no_count_is_written_at_once(#[case] status: ResourcePoolStatus) {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.writes_status(&pool("gpus")).await;
    let status = leased(status, 4);
    agent.board.say(&gpus(), status.clone());
    let edited = pool("gpus").generation(2).status(ready());
    assert_eq!(agent.writes_status(&edited).await, status, "counts go along");
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_was_seen_is_told_at_once() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.writes_status(&pool("gpus")).await;
    let status = ResourcePoolStatus { observed_generation: Some(2), ..ready() };
    agent.board.say(&gpus(), status.clone());
    assert_eq!(agent.writes_status(&pool("gpus").generation(2).status(ready())).await, status);
}

#[rstest]
#[case::comes_and_goes(condition("Exhausted", "True", "NothingFree", "none of 4 resources is free", SINCE))]
#[case::only_words(condition("Degraded", "False", "NothingWrong", "4 of 10", SINCE))]
#[tokio::test(start_paused = true)]
async fn what_may_change_with_every_lease_or_probe_waits_as_counts_do(#[case] condition: Value) {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.writes_status(&pool("gpus")).await;
    agent.board.say(&gpus(), with(ready(), condition));
    let (action, []) = agent.reconciles(&pool("gpus").status(ready()), []).await;
    assert_eq!(action.unwrap(), Action::requeue(Duration::from_secs(10)));
}

#[tokio::test(start_paused = true)]
async fn what_was_said_of_an_earlier_edit_is_not_said_of_a_later_one() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    let refused = ResourcePoolStatus { observed_generation: Some(2), ..ready() };
    agent.leaves_alone(&pool("gpus").generation(3).status(refused)).await;

    // Nor of another object of the name, whose edits are counted anew.
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ResourcePoolStatus { observed_generation: Some(7), ..ready() });
    agent.leaves_alone(&pool("gpus").uid("another")).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_of_another_form_is_written_anew() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    let theirs = json!({"conditions": "all is well", "observedGeneration": "one"});
    assert_eq!(agent.writes_status(&pool("gpus").status(theirs)).await, ready());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_anew_keeps_the_times_of_conditions() {
    let mut agent = Agent::new();
    let now = "2026-11-11T11:11:11Z";
    let anew = ["Ready", "Synced", "Degraded", "Exhausted"]
        .into_iter()
        .zip(ready().conditions)
        .fold(leased(ready(), 4), |status, (_, old)| {
            with(status, condition(&old.type_, &old.status, &old.reason, &old.message, now))
        });
    agent.board.say(&gpus(), anew.clone());
    assert_eq!(agent.writes_status(&pool("gpus").status(ready())).await, leased(ready(), 4));

    // What is otherwise than before has been so since now.
    let mut agent = Agent::new();
    let full = condition("Exhausted", "True", "NothingFree", "none of 4 resources is free", now);
    agent.board.say(&gpus(), with(anew, full.clone()));
    let written = agent.writes_status(&pool("gpus").status(ready())).await;
    assert_eq!(written, with(leased(ready(), 4), full));
}

#[tokio::test(start_paused = true)]
async fn an_operator_hears_of_a_failure_once_and_of_its_end() {
    let mut agent = Agent::new();
    let conflict = RedisError::ManagerConflict {
        pool: gpus(),
        manager: "kubernetes:here".to_owned(),
        found: "files:/etc/pools".to_owned(),
    };
    agent.board.set_pool(&gpus(), &failed(conflict));
    let (action, [written, told]) =
        agent.reconciles(&pool("gpus").status(ready()), [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(
        summary(&status(&written).conditions)[..2],
        ["Ready=False/ManagerConflict", "Synced=False/ManagerConflict"]
    );
    let [type_, reason, note] = event(&told);
    assert_eq!((type_, reason), ("Warning", "ManagerConflict"));
    assert!(note.contains("files:/etc/pools"), "{note}");
    let about = &told.body["regarding"];
    assert_eq!(
        [&about["kind"], &about["namespace"], &about["name"], &about["uid"], &told.body["reportingController"]],
        ["ResourcePool", NAMESPACE, "gpus", "uid-of-gpus", "redis-allocator"]
    );
    agent.leaves_alone(&pool("gpus")).await;

    agent.board.say(&gpus(), ready());
    let (action, [_, told]) = agent.reconciles(&pool("gpus"), [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(event(&told), ["Normal", "Ready", "resources are granted as declared"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_written_holds_nothing_up() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), with(ready(), condition("Degraded", "True", "ProberSuspected", "too many", SINCE)));
    let (action, [_, told]) = agent.reconciles(&pool("gpus"), [ok(unborn()), refused(403)]).await;
    assert_eq!(action.unwrap(), Action::await_change());
    assert_eq!(event(&told), ["Warning", "ProberSuspected", "too many"]);
    agent.leaves_alone(&pool("gpus")).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_drain_of_resources_is_told() {
    let mut agent = Agent::new();
    let before = ResourcePoolStatus { draining: 2, ..ready() };
    agent.board.say(&gpus(), ready());
    let (action, [_, told]) = agent.reconciles(&pool("gpus").status(before), [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(event(&told)[..2], ["Normal", "ResourcesDrained"]);
}
