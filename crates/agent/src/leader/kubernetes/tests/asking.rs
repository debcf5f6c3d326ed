//! Asking for the lead: when it is given, and when not.

use rstest::rstest;

use super::*;

#[tokio::test]
async fn a_lease_that_is_not_there_is_created() {
    let (mut election, mut server) = agent(Timing { duration: Duration::from_secs(10), ..CALM });
    let (leadership, created) = ask(&mut election, async {
        server.expect(Method::GET).await.missing();
        server.expect(Method::POST).await.done("1")
    })
    .await;
    assert!(!leadership.expect("the lead").lost().is_cancelled());
    assert_eq!(created.metadata.name.as_deref(), Some(NAME));
    assert_eq!((holder(&created), transitions(&created)), (Some("me"), Some(0)));
    let spec = created.spec.unwrap();
    assert_eq!(spec.lease_duration_seconds, Some(10));
    assert!(spec.acquire_time.is_some() && spec.acquire_time == spec.renew_time);
}

#[tokio::test]
async fn of_two_who_create_it_one_leads() {
    let (mut election, mut server) = agent(CALM);
    let (leadership, ()) = ask(&mut election, async {
        server.expect(Method::GET).await.missing();
        server.expect(Method::POST).await.refused(409, "AlreadyExists");
    })
    .await;
    assert!(leadership.is_none());
}

#[tokio::test]
async fn nobody_takes_what_another_holds() {
    let (mut election, mut server) = agent(CALM);
    for _ in 0..3 {
        ask_in_vain(&mut election, &mut server, &lease(Some("other"), "7")).await;
    }
    server.expect_silence().await;
}

#[tokio::test]
async fn what_is_unchanged_for_its_duration_is_taken_over_by_its_version() {
    let (mut election, mut server) = agent(SHORT);
    let first = Instant::now();
    let seen = lease(Some("other"), "7");
    let (leadership, taken) = loop {
        let asked = ask(&mut election, async {
            server.expect(Method::GET).await.found(&seen);
            match timeout(SHORT.renew, server.expect(Method::PUT)).await {
                Ok(call) => Some(call.done("8")),
                Err(_) => None,
            }
        })
        .await;
        if let (Some(leadership), Some(taken)) = asked {
            break (leadership, taken);
        }
    };
    assert!(first.elapsed() >= SHORT.duration, "{:?}", first.elapsed());
    assert_eq!((holder(&taken), transitions(&taken)), (Some("me"), Some(4)));
    assert!(!leadership.lost().is_cancelled());
}

#[tokio::test]
async fn a_takeover_names_the_version_and_the_object_it_was_decided_on() {
    let (mut election, mut server) = agent(CALM);
    let (refused, ()) = ask(&mut election, async {
        server.expect(Method::GET).await.found(&lease(None, "7"));
        let call = server.expect(Method::PUT).await;
        assert_eq!((version(&call.lease()), call.lease().metadata.uid.as_deref()), (Some("7"), Some("uid")));
        call.conflict();
    })
    .await;
    assert!(refused.is_none());
}

#[rstest]
#[case::none(None)]
#[case::empty(Some(""))]
#[case::a_former_lead_of_this_agent(Some("me"))]
#[tokio::test]
async fn a_lease_without_another_holder_is_taken_at_once(#[case] by: Option<&str>) {
    let (mut election, mut server) = agent(CALM);
    let (leadership, taken) = ask(&mut election, async {
        server.expect(Method::GET).await.found(&lease(by, "7"));
        server.expect(Method::PUT).await.done("8")
    })
    .await;
    assert!(leadership.is_some());
    assert_eq!((holder(&taken), transitions(&taken)), (Some("me"), Some(4)));
}

#[tokio::test]
async fn of_two_who_take_it_over_one_leads() {
    let (mut election, mut server) = agent(CALM);
    let (leadership, ()) = ask(&mut election, async {
        server.expect(Method::GET).await.found(&lease(None, "7"));
        server.expect(Method::PUT).await.conflict();
    })
    .await;
    assert!(leadership.is_none());
    ask_in_vain(&mut election, &mut server, &lease(Some("other"), "8")).await;
}

#[tokio::test]
async fn every_change_begins_the_wait_anew() {
    let (mut election, mut server) = agent(SHORT);
    let begun = Instant::now();
    // Far longer than one wait, each version for less than one.
    for version in 0..3 {
        let mut seen = lease(Some("other"), &version.to_string());
        ask_in_vain(&mut election, &mut server, &seen).await;
        sleep(SHORT.duration * 3 / 10).await;
        // Another holder under the same version, which no server does, is another record just the same.
        seen.spec.get_or_insert_default().holder_identity = Some("third".to_owned());
        ask_in_vain(&mut election, &mut server, &seen).await;
        sleep(SHORT.duration * 3 / 10).await;
    }
    assert!(begun.elapsed() > SHORT.duration * 3 / 2);
    server.expect_silence().await;
}

#[tokio::test]
async fn the_holder_of_a_deleted_lease_has_the_time_to_make_it_anew() {
    let (mut election, mut server) = agent(SHORT);
    ask_in_vain(&mut election, &mut server, &lease(Some("other"), "7")).await;
    let (early, ()) = ask(&mut election, async { server.expect(Method::GET).await.missing() }).await;
    assert!(early.is_none());
    sleep(SHORT.duration).await;
    let (late, _) = ask(&mut election, async {
        server.expect(Method::GET).await.missing();
        server.expect(Method::POST).await.done("9")
    })
    .await;
    assert!(late.is_some());
}

#[rstest]
#[case::absent(None, 10)]
#[case::negative(Some(-1), 10)]
#[case::shorter_than_its_holder_goes_by(Some(1), 10)]
#[case::as_given(Some(25), 25)]
#[case::absurd(Some(i32::MAX), 60)]
fn a_follower_waits_as_long_as_the_lease_says_within_reason(#[case] said: Option<i32>, #[case] seconds: u64) {
    let mut lease = lease(Some("other"), "7");
    lease.spec.get_or_insert_default().lease_duration_seconds = said;
    assert_eq!(Timing::SHIPPED.patience(&lease), Duration::from_secs(seconds));
    assert_eq!(Timing::SHIPPED.patience(&Lease::default()), Duration::from_secs(10));
}

#[test]
fn a_leader_gives_up_before_a_follower_takes_over() {
    let shipped = Timing::SHIPPED;
    assert!(shipped.give_up + 2 * shipped.retry < shipped.duration && shipped.duration <= shipped.longest);
    assert!(shipped.renew + 2 * shipped.request < shipped.give_up, "one lost answer must not cost the lead");
}

#[tokio::test]
async fn a_silent_server_does_not_hang_who_asks() {
    let (mut election, mut server) = agent(SHORT);
    let (asked, _held) =
        timeout(PATIENCE, async { tokio::join!(election.ask(), server.expect(Method::GET)) }).await.unwrap();
    let error = asked.err().expect("an error").to_string();
    assert_eq!(error, "reading lease agents/redis-allocator failed: the API server did not answer within 500ms");
}

#[tokio::test]
async fn a_refusal_says_what_is_missing() {
    let (mut election, mut server) = agent(CALM);
    let (asked, ()) =
        tokio::join!(election.ask(), async { server.expect(Method::GET).await.refused(403, "Forbidden") });
    let error = asked.err().expect("an error").to_string();
    assert_eq!(
        error,
        "reading lease agents/redis-allocator was refused with 403: mocked; the agent must be allowed to get, create and \
         update leases in its own namespace"
    );
}
