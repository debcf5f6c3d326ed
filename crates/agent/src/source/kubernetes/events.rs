//! What an operator must know, as Events of the objects it is about.
//!
//! What happens to many resources of a pool at once, or to one again and again, is gathered, so that nothing can flood the
//! API server: at most one Event in [`GATHER`] for each pool and kind of notice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use redis_allocator::PoolName;
use redis_allocator_crd::{DeletionPolicy, ResourcePoolStatus};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep_until},
};

use crate::{
    board::Gone,
    notice::{Notice, What},
};

/// The name under which Events, and fields of objects, are the agent's.
pub(super) const CONTROLLER: &str = "redis-allocator";
/// For so long notices of a kind are gathered after one was told.
const GATHER: Duration = Duration::from_secs(30);
/// The first ones wait this long for others of the same moment.
const MOMENT: Duration = Duration::from_millis(500);
/// Resources named in one Event.
const NAMED: usize = 8;
/// Longest note that the API server takes, in bytes.
const LONGEST: usize = 1024;

/// An Event to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) action: &'static str,
    pub(super) note: String,
}

/// Writes one. An Event is a courtesy: that it can't be written is logged, and holds nothing up.
pub(super) async fn publish(client: &Client, about: &ObjectReference, draft: Draft) {
    let Draft { warning, reason, action, note } = draft;
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason,
        note: Some(shortened(&note)),
        action: action.to_owned(),
        secondary: None,
    };
    // A recorder counts events of the same reason as one, with the note of the first: each of ours says something else.
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: None };
    if let Err(error) = Recorder::new(client.clone(), reporter).publish(&event, about).await {
        tracing::warn!(reason = event.reason, "writing an Event failed: {error}");
    }
}

fn shortened(note: &str) -> String {
    if note.len() <= LONGEST {
        return note.to_owned();
    }
    let mut end = LONGEST - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &note[..end])
}

/// What changed from one status to the next that an operator must know.
pub(super) fn of_conditions(before: &[Condition], after: &[Condition]) -> Vec<Draft> {
    // These come and go with the cluster or by intent, for all pools at once; the status tells them.
    const QUIET: [&str; 5] = ["Pending", "SourcePending", "Suspended", "RedisUnavailable", "PoolNotFound"];
    let mut drafts: Vec<Draft> = Vec::new();
    for now in after {
        let old = before.iter().find(|old| old.type_ == now.type_);
        if old.is_some_and(|old| (&old.status, &old.reason) == (&now.status, &now.reason)) {
            continue;
        }
        let is_bad = |condition: &Condition| match condition.type_.as_str() {
            "Ready" | "Synced" | "Discovered" => condition.status == "False",
            "Degraded" => condition.status == "True",
            _ => false,
        };
        let is_quiet = |condition: &Condition| QUIET.contains(&condition.reason.as_str());
        let told = drafts.iter().any(|draft| draft.reason == now.reason || !draft.warning && !is_bad(now));
        let is_over = !is_bad(now) && old.is_some_and(|old| is_bad(old) && !is_quiet(old)) && now.type_ != "Exhausted";
        if told || is_quiet(now) || !(is_bad(now) || is_over) {
            continue;
        }
        let note = match (now.message.is_empty(), old) {
            (true, Some(old)) => format!("{} is over", old.reason),
            _ => now.message.clone(),
        };
        let warning = is_bad(now) && now.reason != "Draining";
        drafts.push(Draft { warning, reason: now.reason.clone(), action: "Reconcile", note });
    }
    drafts
}

/// That the last leased resource which had left the declaration has gone.
pub(super) fn of_drain(before: &ResourcePoolStatus, after: &ResourcePoolStatus) -> Option<Draft> {
    (before.draining > 0 && after.draining == 0 && after.incarnation == before.incarnation).then(|| Draft {
        warning: false,
        reason: "ResourcesDrained".to_owned(),
        action: "Drain",
        note: "the last leases of resources that had left the declaration have ended".to_owned(),
    })
}

/// That a pool is gone from Redis, or not its declaration's any more.
pub(super) fn of_deletion(policy: DeletionPolicy, gone: Option<Gone>) -> Draft {
    let (warning, reason, note) = match (gone, policy) {
        (None, _) => (
            true,
            "ForceDeleted",
            "the object goes though the pool could not be taken down: it is still in Redis, and is taken down later if it \
             can be",
        ),
        (Some(Gone::NotOurs), _) => {
            (false, "Released", "the pool in Redis is another declaration's, and stays as it is")
        }
        (_, DeletionPolicy::Drain) => (false, "Drained", "every lease has ended, and the pool is gone from Redis"),
        (_, DeletionPolicy::Revoke) => (false, "Revoked", "the pool is gone from Redis, with the leases it had"),
        (_, DeletionPolicy::Orphan) => (false, "Orphaned", "the pool stays in Redis, unmanaged"),
    };
    Draft { warning, reason: reason.to_owned(), action: "Delete", note: note.to_owned() }
}

/// Gathers notices and writes them as Events, for as long as there is someone to send them.
pub(super) async fn tell(
    client: &Client,
    notices: &mut Receiver<Notice>,
    object_of: impl Fn(&PoolName) -> Option<ObjectReference>,
) {
    let mut gathered: BTreeMap<(PoolName, What), Gathered> = BTreeMap::new();
    loop {
        let next = gathered.values().map(|gathered| gathered.due).min();
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            notice = notices.recv() => {
                let Some(Notice { pool, what, about }) = notice else { return };
                gathered.entry((pool, what)).or_insert_with(Gathered::new).about.insert(about);
            }
            () = due => {
                let now = Instant::now();
                for ((pool, what), gathered) in &mut gathered {
                    if gathered.due <= now && !gathered.about.is_empty() {
                        let draft = of_notices(*what, &std::mem::take(&mut gathered.about));
                        // Without an object there is nobody to tell.
                        if let Some(object) = object_of(pool) {
                            publish(client, &object, draft).await;
                        }
                        gathered.due = Instant::now() + GATHER;
                    }
                }
                gathered.retain(|_, gathered| gathered.due > now);
            }
        }
    }
}

/// Notices of one pool and kind.
struct Gathered {
    about: BTreeSet<String>,
    due: Instant,
}

impl Gathered {
    fn new() -> Self {
        Self { about: BTreeSet::new(), due: Instant::now() + MOMENT }
    }
}

fn of_notices(what: What, about: &BTreeSet<String>) -> Draft {
    let named: Vec<_> = about.iter().take(NAMED).map(String::as_str).collect();
    let mut note = named.join(", ");
    if about.len() > NAMED {
        note = format!("{note} and {} more", about.len() - NAMED);
    }
    let (warning, reason, note) = match what {
        What::Quarantined => (true, "Quarantined", format!("failed the probe, not granted any more: {note}")),
        What::Recovered => (false, "Recovered", format!("granted again after a failed probe: {note}")),
    };
    Draft { warning, reason: reason.to_owned(), action: "Probe", note }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        notice::Notices,
        source::kubernetes::fixtures::{ApiServer, NAMESPACE, SINCE, condition, gpus, ok, ready, refused, with},
    };

    fn of(before: &[Value], after: &[Value]) -> Vec<(bool, String, String)> {
        let conditions = |all: &[Value]| -> Vec<Condition> { serde_json::from_value(all.into()).unwrap() };
        let drafts = of_conditions(&conditions(before), &conditions(after));
        drafts.into_iter().map(|draft| (draft.warning, draft.reason, draft.note)).collect()
    }

    fn is(type_: &str, status: &str, reason: &str) -> Value {
        condition(type_, status, reason, &format!("the message of {reason}"), SINCE)
    }

    fn one(warning: bool, reason: &str) -> Vec<(bool, String, String)> {
        vec![(warning, reason.to_owned(), format!("the message of {reason}"))]
    }

    #[test]
    fn the_same_reason_of_two_conditions_is_told_once() {
        let before = [is("Ready", "True", "Ready"), is("Synced", "True", "Synced")];
        let after = [is("Ready", "False", "InvalidSpec"), is("Synced", "False", "InvalidSpec")];
        assert_eq!(of(&before, &after), one(true, "InvalidSpec"));
        assert_eq!(of(&after, &after), []);
        assert_eq!(of(&after, &before), one(false, "Ready"), "its end, too");
    }

    #[test]
    fn different_reasons_are_told_each() {
        let after = [
            is("Ready", "False", "Superseded"),
            is("Synced", "False", "ShrinkHeldBack"),
            is("Degraded", "True", "ProberSuspected"),
        ];
        let reasons: Vec<_> = of(&[], &after).into_iter().map(|(_, reason, _)| reason).collect();
        assert_eq!(reasons, ["Superseded", "ShrinkHeldBack", "ProberSuspected"]);
        // One of them goes while another comes.
        let now = [after[0].clone(), is("Synced", "True", "Synced"), is("Degraded", "True", "RecoveredAfterDataLoss")];
        let told = of(&after, &now);
        assert_eq!(told, [one(false, "Synced"), one(true, "RecoveredAfterDataLoss")].concat());
    }

    #[test]
    fn another_message_of_the_same_reason_is_no_news() {
        let before = [condition("Synced", "False", "ShrinkHeldBack", "1 of 10", SINCE)];
        assert_eq!(of(&before, &[condition("Synced", "False", "ShrinkHeldBack", "2 of 10", SINCE)]), []);
    }

    #[rstest]
    #[case("Ready", "Pending")]
    #[case("Ready", "Suspended")]
    #[case("Ready", "RedisUnavailable")]
    #[case("Ready", "PoolNotFound")]
    fn what_comes_and_goes_for_all_at_once_is_not_told(#[case] type_: &str, #[case] reason: &str) {
        let fine = [is(type_, "True", "Ready")];
        let not = [is(type_, "False", reason)];
        assert_eq!([of(&fine, &not), of(&not, &fine), of(&[], &not)], [const { Vec::new() }; 3]);
        // What was wrong before is still wrong, or not.
        let bad = [is(type_, "False", "ManagerConflict")];
        assert_eq!(of(&not, &bad), one(true, "ManagerConflict"));
    }

    #[test]
    fn a_pool_that_is_fine_from_the_start_or_full_is_no_event() {
        let fine = [
            is("Ready", "True", "Ready"),
            is("Degraded", "False", "NothingWrong"),
            is("Exhausted", "False", "ResourcesFree"),
        ];
        let full = is("Exhausted", "True", "NothingFree");
        assert_eq!(of(&[], &fine), []);
        assert_eq!(of(&fine, std::slice::from_ref(&full)), []);
        assert_eq!(of(&[full], &fine), []);
    }

    #[test]
    fn a_drain_is_no_reason_to_worry() {
        let after = [is("Ready", "False", "Draining"), is("Synced", "False", "Draining")];
        assert_eq!(of(&[is("Ready", "True", "Ready")], &after), one(false, "Draining"));
    }

    #[test]
    fn an_end_without_a_message_names_what_is_over() {
        let before = [is("Degraded", "True", "RecoveredAfterDataLoss")];
        let after = [condition("Degraded", "False", "NothingWrong", "", SINCE)];
        assert_eq!(
            of(&before, &after),
            [(false, "NothingWrong".to_owned(), "RecoveredAfterDataLoss is over".to_owned())]
        );
    }

    #[test]
    fn the_end_of_a_drain_is_told_of_the_pool_that_drained() {
        let drained = |before, after| {
            let of = |draining| ResourcePoolStatus { draining, ..ready() };
            of_drain(&of(before), &of(after)).map(|draft| draft.reason)
        };
        assert_eq!(drained(2, 0).as_deref(), Some("ResourcesDrained"));
        assert_eq!([drained(2, 1), drained(0, 0), drained(0, 2)], [None, None, None]);
        let another = ResourcePoolStatus { incarnation: Some("fedcba9876543210".to_owned()), ..ready() };
        assert_eq!(of_drain(&ResourcePoolStatus { draining: 2, ..ready() }, &another), None, "a loss is no end");
    }

    #[test]
    fn a_note_is_cut_at_a_character() {
        assert_eq!(shortened(&"x".repeat(LONGEST)).len(), LONGEST);
        for length in [LONGEST + 1, LONGEST + 2, LONGEST * 2] {
            let note = shortened(&"ä".repeat(length));
            assert!(note.len() <= LONGEST && note.len() > LONGEST - 4 && note.ends_with("ä…"), "{} bytes", note.len());
        }
    }

    /// Has notices told for as long as a test plays the API server.
    async fn telling(play: impl AsyncFnOnce(&Notices, &mut ApiServer)) {
        let (client, mut api) = ApiServer::new();
        let (notices, mut waiting) = Notices::channel();
        let object_of = |pool: &PoolName| {
            let name = pool.name().to_owned();
            (name != "unknown").then(|| ObjectReference {
                name: Some(name),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectReference::default()
            })
        };
        tokio::select! {
            () = tell(&client, &mut waiting, object_of) => unreachable!("someone may still send some"),
            () = play(&notices, &mut api) => {}
        }
    }

    /// The next Event: of which pool, why, and its note.
    async fn next(api: &mut ApiServer) -> [String; 3] {
        let (call, pending) = api.next().await;
        assert_eq!(call.line, "POST /apis/events.k8s.io/v1/namespaces/lab/events");
        pending.send(ok(json!({})));
        [&call.body["regarding"]["name"], &call.body["reason"], &call.body["note"]]
            .map(|it| it.as_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_to_many_at_once_is_one_event_of_each_kind_and_pool() {
        telling(async |notices, api| {
            let others = PoolName::new(NAMESPACE, "others").unwrap();
            for number in 0..11 {
                notices.send(&gpus(), What::Quarantined, format!("gpu-{number:02}"));
                notices.send(&gpus(), What::Quarantined, format!("gpu-{number:02}"));
            }
            notices.send(&gpus(), What::Recovered, "gpu-99");
            notices.send(&others, What::Quarantined, "proxy");
            let mut told = [next(api).await, next(api).await, next(api).await];
            told.sort();
            let note = "failed the probe, not granted any more: \
                        gpu-00, gpu-01, gpu-02, gpu-03, gpu-04, gpu-05, gpu-06, gpu-07 and 3 more";
            assert_eq!(
                told,
                [
                    ["gpus", "Quarantined", note],
                    ["gpus", "Recovered", "granted again after a failed probe: gpu-99"],
                    ["others", "Quarantined", "failed the probe, not granted any more: proxy"],
                ]
            );
            assert!(api.is_silent_for(Duration::from_mins(10)).await);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_again_and_again_is_told_every_half_a_minute() {
        telling(async |notices, api| {
            let start = Instant::now();
            notices.send(&gpus(), What::Quarantined, "gpu-0");
            next(api).await;
            assert!(start.elapsed() <= Duration::from_secs(1), "the first one soon");
            let mut last = Instant::now();
            for _ in 0..3 {
                for number in 1..=20 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    notices.send(&gpus(), What::Quarantined, format!("gpu-{}", number % 3));
                }
                let [_, _, note] = next(api).await;
                assert!(note.ends_with(": gpu-0, gpu-1, gpu-2"), "{note}");
                let pause = last.elapsed().as_millis();
                assert!((29_900..=30_100).contains(&pause), "{pause} ms");
                last = Instant::now();
            }
            assert!(api.is_silent_for(Duration::from_mins(10)).await);
            let late = Instant::now();
            notices.send(&gpus(), What::Quarantined, "gpu-0");
            next(api).await;
            assert!(late.elapsed() <= Duration::from_secs(1), "it was calm for long enough");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_without_an_object_has_nobody_to_tell() {
        telling(async |notices, api| {
            notices.send(&PoolName::new(NAMESPACE, "unknown").unwrap(), What::Quarantined, "gpu-0");
            assert!(api.is_silent_for(Duration::from_mins(1)).await);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_refused_does_not_hold_up_the_next() {
        telling(async |notices, api| {
            notices.send(&gpus(), What::Quarantined, "gpu-0");
            let (_, pending) = api.next().await;
            pending.send(refused(403));
            notices.send(&gpus(), What::Recovered, "gpu-0");
            assert_eq!(next(api).await[1], "Recovered");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn telling_ends_with_those_who_send() {
        let (client, mut api) = ApiServer::new();
        let (sender, mut waiting) = mpsc::channel(1);
        drop(sender);
        let ((), []) = api.answer(tell(&client, &mut waiting, |_| None), []).await;
    }

    #[test]
    fn what_a_deletion_left_behind_is_a_warning() {
        let draft = of_deletion(DeletionPolicy::Revoke, None);
        assert!(draft.warning && draft.note.contains("still in Redis"), "{draft:?}");
        let before = with(ready(), is("Ready", "False", "Draining"));
        assert_eq!(of_conditions(&before.conditions, &ready().conditions).len(), 1, "declared again");
    }
}
