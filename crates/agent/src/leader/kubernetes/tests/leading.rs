//! Having the lead: what keeps it, what ends it, and how it is given up.

use rstest::rstest;

use super::*;

#[tokio::test]
async fn renewing_keeps_the_lead() {
    let (leadership, mut server, since) = leader(SHORT).await;
    let mut known = 1;
    while since.elapsed() < 2 * SHORT.give_up {
        let call = server.expect(Method::PUT).await;
        let renewed = call.lease();
        assert_eq!((holder(&renewed), version(&renewed)), (Some("me"), Some(known.to_string().as_str())));
        assert_eq!(transitions(&renewed), Some(0));
        known += 1;
        call.done(&known.to_string());
    }
    assert!(known > 4 && !leadership.lost().is_cancelled());
}

#[tokio::test]
async fn a_conflict_with_another_holder_loses_the_lead_at_once() {
    let (leadership, mut server, since) = leader(CALM).await;
    server.expect(Method::PUT).await.conflict();
    assert!(!leadership.lost().is_cancelled());
    server.expect(Method::GET).await.found(&lease(Some("other"), "2"));
    wait_until_lost(&leadership).await;
    assert!(since.elapsed() < CALM.give_up);
    server.expect_silence().await;
}

#[tokio::test]
async fn a_conflict_with_a_lease_that_was_cleared_loses_the_lead_at_once() {
    let (leadership, mut server, _) = leader(CALM).await;
    server.expect(Method::PUT).await.conflict();
    server.expect(Method::GET).await.found(&lease(None, "2"));
    wait_until_lost(&leadership).await;
    server.expect_silence().await;
}

#[tokio::test]
async fn a_conflict_with_itself_is_none() {
    let (leadership, mut server, _) = leader(CALM).await;
    // As when the answer to a renewal was lost.
    server.expect(Method::PUT).await.conflict();
    server.expect(Method::GET).await.found(&lease(Some("me"), "5"));
    let call = server.expect(Method::PUT).await;
    assert_eq!((version(&call.lease()), transitions(&call.lease())), (Some("5"), Some(3)));
    call.done("6");
    assert_eq!(version(&server.expect(Method::PUT).await.lease()), Some("6"));
    assert!(!leadership.lost().is_cancelled());
}

#[tokio::test]
async fn a_deleted_lease_is_made_anew() {
    let (leadership, mut server, _) = leader(CALM).await;
    server.expect(Method::PUT).await.missing();
    let call = server.expect(Method::POST).await;
    assert_eq!((holder(&call.lease()), version(&call.lease())), (Some("me"), None));
    assert_eq!(call.lease().metadata.uid, None);
    call.done("9");
    // The server's other way of saying that it is gone: its uid is not that of what is there.
    server.expect(Method::PUT).await.conflict();
    server.expect(Method::GET).await.missing();
    server.expect(Method::POST).await.done("11");
    assert_eq!(version(&server.expect(Method::PUT).await.lease()), Some("11"));
    assert!(!leadership.lost().is_cancelled());
}

#[tokio::test]
async fn a_deleted_lease_that_another_made_anew_is_lost() {
    let (leadership, mut server, _) = leader(CALM).await;
    server.expect(Method::PUT).await.missing();
    server.expect(Method::POST).await.refused(409, "AlreadyExists");
    server.expect(Method::GET).await.found(&lease(Some("other"), "1"));
    wait_until_lost(&leadership).await;
    server.expect_silence().await;
}

#[tokio::test]
async fn someone_who_writes_all_the_time_is_not_written_against_all_the_time() {
    let (_leadership, mut server, since) = leader(Timing { retry: Duration::from_millis(300), ..CALM }).await;
    // Two rounds, a pause, and the next round.
    for version in 2..5 {
        server.expect(Method::PUT).await.conflict();
        server.expect(Method::GET).await.found(&lease(Some("me"), &version.to_string()));
    }
    assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
}

/// What an API server does that is of no use.
#[derive(Debug, Clone, Copy)]
enum Useless {
    Silent,
    Failing,
    /// The connection is closed, and no other to be had.
    Gone,
}

#[rstest]
#[tokio::test]
async fn who_can_not_renew_has_lost_before_a_follower_takes_over(
    #[values(Useless::Silent, Useless::Failing, Useless::Gone)] how: Useless,
) {
    let (leadership, server, since) = leader(SHORT).await;
    let playing = tokio::spawn(async move {
        let mut server = server;
        let (mut held, mut tries) = (Vec::new(), 0);
        if matches!(how, Useless::Gone) {
            return 0;
        }
        while let Ok(Some((_, reply))) = timeout(SHORT.duration, server.0.next_request()).await {
            tries += 1;
            match how {
                Useless::Silent => held.push(reply),
                _ => reply.send_response(Response::builder().status(500).body(Body::empty()).unwrap()),
            }
        }
        tries
    });
    wait_until_lost(&leadership).await;
    let after = since.elapsed();
    assert!(after >= SHORT.give_up && after < SHORT.duration, "{after:?}");
    let tries = timeout(PATIENCE, playing).await.unwrap().unwrap();
    assert!(tries >= 2 || matches!(how, Useless::Gone), "it should have been tried again: {tries}");
}

#[tokio::test]
async fn a_failed_renewal_is_tried_again() {
    let (leadership, mut server, _) = leader(CALM).await;
    for code in [500, 503, 429, 403, 422] {
        server.expect(Method::PUT).await.refused(code, "");
    }
    let call = server.expect(Method::PUT).await;
    assert_eq!(version(&call.lease()), Some("1"));
    call.done("2");
    assert_eq!(version(&server.expect(Method::PUT).await.lease()), Some("2"));
    assert!(!leadership.lost().is_cancelled());
}

#[tokio::test]
async fn a_late_answer_counts_from_when_it_was_asked_for() {
    let late = Duration::from_millis(800);
    let timing = Timing { give_up: Duration::from_millis(1500), renew: Duration::from_millis(300), ..SHORT };
    let timing = Timing { request: timing.give_up, ..timing };
    let (leadership, mut server, _) = leader(timing).await;
    let call = server.expect(Method::PUT).await;
    let received = Instant::now();
    sleep(late).await;
    call.done("2");
    let _unanswered = server.expect(Method::PUT).await;
    wait_until_lost(&leadership).await;
    let after = received.elapsed();
    // Without that answer it had been over earlier, by the time from the lead to this renewal.
    assert!(after > timing.give_up.saturating_sub(timing.renew / 2), "{after:?}");
    assert!(after < timing.give_up + late, "{after:?}");
}

#[tokio::test]
async fn resigning_takes_the_name_off() {
    let (leadership, mut server, _) = leader(CALM).await;
    let lost = leadership.lost();
    server.expect(Method::PUT).await.done("2");
    let (cleared, ()) = timeout(PATIENCE, async {
        tokio::join!(
            async {
                // One more renewal may be under way.
                let mut call = server.expect(Method::PUT).await;
                if holder(&call.lease()).is_some() {
                    drop(call);
                    call = server.expect(Method::PUT).await;
                }
                assert!(lost.is_cancelled());
                assert_eq!(version(&call.lease()), Some("2"));
                call.done("3")
            },
            leadership.resign(),
        )
    })
    .await
    .unwrap();
    let spec = cleared.spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some(""), Some(1)));
    server.expect_silence().await;
}

#[tokio::test]
async fn resigning_takes_the_name_off_after_a_renewal_that_got_through_unheard() {
    let (leadership, mut server, _) = leader(CALM).await;
    let unheard = server.expect(Method::PUT).await;
    timeout(PATIENCE, async {
        tokio::join!(leadership.resign(), async {
            server.expect(Method::PUT).await.conflict();
            server.expect(Method::GET).await.found(&lease(Some("me"), "2"));
            let call = server.expect(Method::PUT).await;
            assert_eq!((version(&call.lease()), holder(&call.lease())), (Some("2"), None));
            call.done("3");
        })
    })
    .await
    .unwrap();
    drop(unheard);
}

#[tokio::test]
async fn resigning_leaves_another_holder_alone() {
    let (leadership, mut server, _) = leader(CALM).await;
    let unheard = server.expect(Method::PUT).await;
    timeout(PATIENCE, async {
        tokio::join!(leadership.resign(), async {
            server.expect(Method::PUT).await.conflict();
            server.expect(Method::GET).await.found(&lease(Some("other"), "2"));
        })
    })
    .await
    .unwrap();
    drop(unheard);
    server.expect_silence().await;
}

#[tokio::test]
async fn resigning_from_a_silent_server_ends_soon() {
    let (leadership, mut server, _) = leader(SHORT).await;
    let _unheard = server.expect(Method::PUT).await;
    let begun = Instant::now();
    let ((), _held) = timeout(PATIENCE, async { tokio::join!(leadership.resign(), server.next()) }).await.unwrap();
    assert!(begun.elapsed() < SHORT.duration);
}

#[tokio::test]
async fn a_dropped_lead_is_over_and_renewed_no_more() {
    let (leadership, mut server, _) = leader(CALM).await;
    let lost = leadership.lost();
    server.expect(Method::PUT).await.done("2");
    drop(leadership);
    assert!(lost.is_cancelled());
    // The one that was under way, if any.
    sleep(CALM.renew * 2).await;
    let _ = timeout(CALM.renew, server.0.next_request()).await;
    server.expect_silence().await;
}
