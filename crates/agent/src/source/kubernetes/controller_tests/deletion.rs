//! Objects that are being deleted.

use kube::runtime::controller::Action;
use redis_allocator_crd::{DeletionPolicy, ResourcePoolStatus};
use rstest::rstest;
use serde_json::json;

use super::{
    super::{
        fixtures::{Otherwise as _, binding, gpus, ok, pool, ready, refused, summary},
        object::FINALIZER,
    },
    Agent, POOL, away, event, failed, status, unborn,
};
use crate::{
    board::Gone,
    reconcile::conditions::{Observed, Sync},
};

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_still_leased_keeps_its_object() {
    let mut agent = Agent::new();
    agent.sees([&pool("gpus")]);
    agent.board.say(&gpus(), ready());
    let deleting = pool("gpus").status(ready()).deleting();
    // Nobody has begun yet.
    agent.leaves_alone(&deleting).await;

    let draining =
        |left| Observed { generation: Some(1), sync: Sync::Draining { leases_left: left }, ..Observed::default() };
    agent.board.set_pool(&gpus(), &draining(2));
    let (action, [written, told]) = agent.reconciles(&deleting, [ok(unborn()), ok(json!({}))]).await;
    assert_eq!(action.unwrap(), Action::await_change());
    let status = status(&written);
    assert_eq!(summary(&status.conditions)[..2], ["Ready=False/Draining", "Synced=False/Draining"]);
    assert!(status.conditions[0].message.contains("2 leases"), "{}", status.conditions[0].message);
    assert_eq!(status.observed_generation, Some(2), "the deletion");
    assert_eq!(event(&told)[..2], ["Normal", "Draining"]);
}

#[rstest]
#[case("Drain", ["Normal", "Drained", "every lease has ended, and the pool is gone from Redis"])]
#[case("Revoke", ["Normal", "Revoked", "the pool is gone from Redis, with the leases it had"])]
#[case("Orphan", ["Normal", "Orphaned", "the pool stays in Redis, unmanaged"])]
#[tokio::test(start_paused = true)]
async fn the_object_goes_when_its_pool_has(#[case] policy: &str, #[case] told: [&str; 3]) {
    let mut agent = Agent::new();
    let object = unborn().spec(json!({"deletionPolicy": policy})).finalizer("example.com/theirs").finalizer(FINALIZER);
    agent.sees([&object]);
    agent.board.say(&gpus(), ready());
    agent.board.remove_pool(&gpus(), Gone::TakenDown);
    let (action, [patch, note]) = agent.reconciles(&object.deleting(), [ok(unborn()), ok(json!({}))]).await;
    assert_eq!(action.unwrap(), Action::await_change());
    assert_eq!(event(&note), told);
    assert_eq!((patch.line.as_str(), patch.content_type.as_str()), (POOL, "application/json-patch+json"));
    assert_eq!(
        patch.body,
        json!([
            // The finalizers of others may have changed.
            {"op": "test", "path": "/metadata/finalizers/1", "value": "redis-allocator.dev/pool"},
            {"op": "remove", "path": "/metadata/finalizers/1"},
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn that_an_object_goes_is_told_when_it_does() {
    let mut agent = Agent::new();
    agent.board.remove_pool(&gpus(), Gone::TakenDown);
    for code in [500, 422] {
        // Somebody else has changed the finalizers, or the API server has its own troubles.
        let (_, [patch]) = agent.reconciles(&pool("gpus").deleting(), [refused(code)]).await;
        assert_eq!(patch.line, POOL);
    }
    let (action, [_, told]) = agent.reconciles(&pool("gpus").deleting(), [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(event(&told)[1], "Drained");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_forced_goes_when_its_pool_cannot_be_taken_down() {
    for redis_was_reached in [true, false] {
        let mut agent = Agent::new();
        let object = pool("gpus").status(ready()).deleting().forced();
        agent.sees([&object]);
        if redis_was_reached {
            agent.board.set_pool(&gpus(), &failed(away()));
            agent.board.set_stuck(&gpus(), DeletionPolicy::Revoke);
        } else {
            agent.redis.send_replace(Some("connection refused".to_owned()));
        }
        let (action, [patch, told]) = agent.reconciles(&object, [ok(unborn()), ok(json!({}))]).await;
        action.unwrap();
        assert_eq!(event(&told)[..2], ["Warning", "ForceDeleted"]);
        assert_eq!(patch.line, POOL);
        assert_eq!(patch.body[1], json!({"op": "remove", "path": "/metadata/finalizers/0"}));
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_forced_waits_until_that_was_tried() {
    let mut agent = Agent::new();
    let object = pool("gpus").status(ready()).deleting().forced();
    agent.sees([&object]);
    // What was tried before was to wait for the leases.
    agent.board.set_pool(&gpus(), &failed(away()));
    agent.board.set_stuck(&gpus(), DeletionPolicy::Drain);
    let written = agent.writes_status(&object).await;
    assert_eq!(summary(&written.conditions)[0], "Ready=False/RedisUnavailable");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_was_taken_down_is_not_remembered_as_one_that_redis_has_lost() {
    let mut agent = Agent::new();
    let status = ResourcePoolStatus { incarnation: Some("0123456789abcdef".to_owned()), ..ready() };
    let object = pool("gpus").status(status).deleting();
    agent.sees([&object]);
    agent.board.remove_pool(&gpus(), Gone::TakenDown);
    let (action, [forgotten, patch, told]) =
        agent.reconciles(&object, [ok(unborn()), ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(super::status(&forgotten).incarnation, None, "before the finalizer goes");
    assert_eq!(patch.body[1], json!({"op": "remove", "path": "/metadata/finalizers/0"}));
    assert_eq!(event(&told)[1], "Drained");
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_another_declaration_is_not_said_to_be_gone() {
    let mut agent = Agent::new();
    let object = pool("gpus").status(ready()).deleting();
    agent.sees([&object]);
    agent.board.remove_pool(&gpus(), Gone::NotOurs);
    let (action, [.., told]) = agent.reconciles(&object, [ok(unborn()), ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(event(&told)[..2], ["Normal", "Released"]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_forced_waits_while_its_pool_is_being_taken_down() {
    let mut agent = Agent::new();
    let forced = pool("gpus").status(ready()).deleting().forced();
    agent.board.say(&gpus(), ready());
    agent.leaves_alone(&forced).await;
    agent.board.set_pool(&gpus(), &Observed { sync: Sync::Draining { leases_left: 1 }, ..Observed::default() });
    let (action, [written, _]) = agent.reconciles(&forced, [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(summary(&status(&written).conditions)[0], "Ready=False/Draining");
}

#[tokio::test(start_paused = true)]
async fn without_force_an_object_waits_for_redis() {
    let mut agent = Agent::new();
    let deleting = pool("gpus").status(ready()).deleting();
    agent.board.set_pool(&gpus(), &failed(away()));
    let written = agent.writes_status(&deleting).await;
    assert_eq!(summary(&written.conditions)[0], "Ready=False/RedisUnavailable");

    let mut agent = Agent::new();
    agent.redis.send_replace(Some("connection refused".to_owned()));
    let written = agent.writes_status(&deleting).await;
    assert_eq!(summary(&written.conditions)[0], "Ready=False/RedisUnavailable");
}

#[tokio::test(start_paused = true)]
async fn force_without_a_deletion_means_nothing() {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    agent.redis.send_replace(Some("away".to_owned()));
    agent.leaves_alone(&pool("gpus").status(ready()).forced()).await;
}

#[tokio::test(start_paused = true)]
async fn what_others_keep_from_going_is_their_matter() {
    let mut agent = Agent::new();
    agent.board.remove_pool(&gpus(), Gone::TakenDown);
    agent.leaves_alone(&unborn().finalizer("example.com/theirs").deleting().forced()).await;
    agent.leaves_alone(&binding("trainer").finalizer("example.com/theirs").deleting()).await;
}
