//! Objects that can't be used, and a Redis that can't be reached.

use kube::runtime::controller::Action;
use redis_allocator_crd::ResourcePoolStatus;
use serde_json::json;

use super::{
    super::fixtures::{Otherwise as _, SINCE, condition, gpus, ok, pool, ready, summary, with},
    Agent, away, event, failed, status, unborn,
};

#[tokio::test(start_paused = true)]
async fn a_refused_edit_says_why_and_leaves_the_rest_of_the_status() {
    let mut agent = Agent::new();
    agent.sees([&pool("gpus")]);
    agent.board.say(&gpus(), ready());
    let refused = pool("gpus").status(ready()).generation(2).spec(json!({"lease": {"defaultTTL": "0s"}}));
    let (action, [written, told]) = agent.reconciles(&refused, [ok(unborn()), ok(json!({}))]).await;
    assert_eq!(action.unwrap(), Action::await_change());
    let status = status(&written);
    assert_eq!(
        summary(&status.conditions),
        [
            "Ready=False/InvalidSpec",
            "Synced=False/InvalidSpec",
            "Degraded=False/NothingWrong",
            "Exhausted=False/ResourcesFree"
        ]
    );
    let message = &status.conditions[0].message;
    assert!(message.contains("spec.lease.defaultTTL: found"), "{message}");
    assert_eq!(event(&told), ["Warning", "InvalidSpec", message.as_str()]);
    assert_eq!(status.observed_generation, Some(2));
    assert!(status.conditions.iter().all(|it| it.observed_generation == Some(2)));
    let rest =
        |status: &ResourcePoolStatus| (status.total, status.leased, status.incarnation.clone(), status.longest_ttl);
    assert_eq!(rest(&status), rest(&ready()));

    // The next edit is a good one.
    agent.board.say(&gpus(), ResourcePoolStatus { observed_generation: Some(3), ..ready() });
    let good = pool("gpus").status(status).generation(3);
    let (action, [written, told]) = agent.reconciles(&good, [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    assert_eq!(written.body["status"]["conditions"][0]["reason"], "Ready");
    assert_eq!(event(&told)[..2], ["Normal", "Ready"]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_was_never_usable_says_why() {
    let mut agent = Agent::new();
    let exec = json!({"healthCheck": {"exec": {"command": ["true"]}}});
    let (action, [written, _]) = agent.reconciles(&pool("gpus").spec(exec), [ok(unborn()), ok(json!({}))]).await;
    action.unwrap();
    let status = status(&written);
    assert_eq!(summary(&status.conditions)[..2], ["Ready=False/InvalidSpec", "Synced=False/InvalidSpec"]);
    assert!(status.conditions[0].message.contains("spec.healthCheck.exec"), "{}", status.conditions[0].message);
    assert_eq!((status.observed_generation, status.total), (Some(1), 0));
}

#[tokio::test(start_paused = true)]
async fn while_redis_was_never_reached_the_counts_are_those_of_before() {
    let mut agent = Agent::new();
    agent.redis.send_replace(Some("redis://nowhere: connection refused".to_owned()));
    let written = agent.writes_status(&pool("gpus").status(ready()).generation(5)).await;
    assert_eq!(
        summary(&written.conditions),
        [
            "Ready=False/RedisUnavailable",
            "Synced=False/RedisUnavailable",
            "Degraded=False/NothingWrong",
            "Exhausted=False/ResourcesFree"
        ]
    );
    assert_eq!(written.conditions[0].message, "redis://nowhere: connection refused");
    assert_eq!(written.observed_generation, Some(5));
    assert_eq!(ResourcePoolStatus { conditions: Vec::new(), observed_generation: Some(1), ..written }, {
        ResourcePoolStatus { conditions: Vec::new(), ..ready() }
    });

    // Of a pool that nobody has said anything of, nothing is known.
    let mut agent = Agent::new();
    agent.redis.send_replace(Some("away".to_owned()));
    let written = agent.writes_status(&pool("gpus")).await;
    assert_eq!(summary(&written.conditions)[2..], ["Degraded=False/NothingWrong", "Exhausted=Unknown/Pending"]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_could_not_look_at_a_pool_yet_takes_back_nothing_that_was_seen() {
    let mut agent = Agent::new();
    let before = with(ready(), condition("Degraded", "True", "RecoveredAfterDataLoss", "held back", SINCE));
    agent.board.set_pool(&gpus(), &failed(away()));
    let written = agent.writes_status(&pool("gpus").status(&before)).await;
    assert_eq!(
        summary(&written.conditions),
        [
            "Ready=False/RedisUnavailable",
            "Synced=False/RedisUnavailable",
            "Degraded=True/RecoveredAfterDataLoss",
            "Exhausted=False/ResourcesFree"
        ]
    );
    // Above all what the next leader needs, should Redis come back without the pool.
    assert_eq!(
        ResourcePoolStatus { conditions: Vec::new(), ..written },
        ResourcePoolStatus { conditions: Vec::new(), ..before }
    );
}
