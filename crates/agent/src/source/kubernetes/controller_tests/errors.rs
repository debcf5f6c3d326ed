//! Requests that fail, and those that wait.

use std::time::Duration;

use kube::runtime::{controller::Action, reflector::store::Writer, watcher::Event};
use redis_allocator_crd::{Kind, ResourcePoolStatus};
use rstest::rstest;
use tokio::{sync::mpsc::unbounded_channel, time::Instant};

use super::{
    super::{
        control,
        controller::{after_error, resource},
        fixtures::{Answer, ApiServer, gpus, ok, pool, ready, refused},
        object::Key,
        slim,
    },
    Agent, POOL_STATUS, leased, unborn,
};

#[rstest]
#[case(404, "not_found")]
#[case(409, "conflict")]
#[case(422, "conflict")]
#[tokio::test(start_paused = true)]
async fn an_object_that_has_changed_meanwhile_is_looked_at_again(#[case] code: u16, #[case] category: &str) {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    for object in [unborn(), pool("gpus")] {
        let (action, [_]) = agent.reconciles(&object, [refused(code)]).await;
        assert_ne!(action.unwrap(), Action::await_change(), "the watch may bring nothing");
    }
    assert_eq!(agent.failures(category), 2);
    // What was refused was not written.
    assert_eq!(agent.writes_status(&pool("gpus")).await, ready());
}

#[rstest]
#[case(refused(403), "forbidden")]
#[case(refused(429), "too_many_requests")]
#[case(refused(500), "server")]
#[case(refused(503), "server")]
#[case(refused(400), "refused")]
#[case(Answer::Broken, "unreachable")]
#[tokio::test(start_paused = true)]
async fn a_failure_is_counted_and_tried_again(#[case] answer: Answer, #[case] category: &str) {
    let mut agent = Agent::new();
    agent.board.say(&gpus(), ready());
    let (result, [_]) = agent.reconciles(&pool("gpus"), [answer]).await;
    let error = result.unwrap_err();
    assert_eq!(agent.failures(category), 0);
    let again = after_error(Kind::ResourcePool, &pool("gpus"), &error, &agent.ctx);
    assert_ne!(again, Action::await_change());
    assert_eq!(agent.failures(category), 1);
    assert_eq!(agent.writes_status(&pool("gpus")).await, ready());
}

/// When a request came, and what becomes of it.
struct Attempts<'a> {
    api: &'a mut ApiServer,
    last: Instant,
}

impl Attempts<'_> {
    /// How long the next one was in coming.
    async fn next(&mut self, answer: Answer) -> Duration {
        let (call, pending) = self.api.next().await;
        assert_eq!(call.line, POOL_STATUS);
        pending.send(answer);
        let pause = self.last.elapsed();
        self.last = Instant::now();
        pause
    }
}

#[rstest]
#[case(500)]
#[case(409)]
#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_grow_up_to_half_a_minute_and_begin_anew_after_a_success(#[case] code: u16) {
    let Agent { ctx, mut api, board, .. } = Agent::new();
    board.say(&gpus(), ready());
    let mut store = Writer::new(resource(Kind::ResourcePool));
    for event in [Event::Init, Event::InitApply(slim(pool("gpus"))), Event::InitDone] {
        store.apply_watcher_event(&event);
    }
    let (queue, queued) = unbounded_channel();
    let key = Key::of(Kind::ResourcePool, &pool("gpus"));
    let scenario = async {
        queue.send(key.clone()).unwrap();
        let mut attempts = Attempts { api: &mut api, last: Instant::now() };
        // Time is kept in milliseconds.
        let slack = Duration::from_millis(10);
        assert!(attempts.next(refused(code)).await <= slack);
        for failures in 0..12 {
            let most = Duration::from_millis(200 << failures).min(Duration::from_secs(30));
            let pause = attempts.next(refused(code)).await;
            assert!(pause >= most / 2 && pause <= most + slack, "{pause:?} after {} failures", failures + 1);
        }
        attempts.next(ok(pool("gpus"))).await;
        assert!(attempts.api.is_silent_for(Duration::from_hours(1)).await);

        board.say(&gpus(), ResourcePoolStatus { permanent_leases: true, ..ready() });
        queue.send(key).unwrap();
        attempts.next(refused(code)).await;
        let pause = attempts.next(ok(pool("gpus"))).await;
        assert!(pause <= Duration::from_millis(200) + slack, "{pause:?}");
    };
    tokio::select! {
        () = control(Kind::ResourcePool, store.as_reader(), queued, &ctx) => unreachable!("its queue is open"),
        () = scenario => {}
    }
}

#[tokio::test(start_paused = true)]
async fn counts_that_had_to_wait_are_written_by_themselves() {
    let agent = Agent::new();
    agent.sees([&pool("gpus")]);
    let Agent { ctx, mut api, board, .. } = agent;
    let mut store = Writer::new(resource(Kind::ResourcePool));
    for event in [Event::Init, Event::InitApply(slim(pool("gpus"))), Event::InitDone] {
        store.apply_watcher_event(&event);
    }
    let (queue, queued) = unbounded_channel();
    let scenario = async {
        let mut attempts = Attempts { api: &mut api, last: Instant::now() };
        for leases in 0..5 {
            // Each second something is leased.
            board.say(&gpus(), leased(ready(), leases));
            queue.send(Key::of(Kind::ResourcePool, &pool("gpus"))).unwrap();
            if leases == 0 {
                attempts.next(ok(pool("gpus"))).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let pause = attempts.next(ok(pool("gpus"))).await;
        assert!((9_990..=10_100).contains(&pause.as_millis()), "{pause:?}");
        assert!(attempts.api.is_silent_for(Duration::from_mins(5)).await);
    };
    tokio::select! {
        () = control(Kind::ResourcePool, store.as_reader(), queued, &ctx) => unreachable!("its queue is open"),
        () = scenario => {}
    }
}
