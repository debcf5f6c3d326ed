//! What is made of what a cluster says: lists, watches and their ends, from an API server that each test plays.

use std::{sync::Arc, time::Duration};

use kube::core::DynamicObject;
use redis_allocator::{Longest, PoolName};
use redis_allocator_crd::{DeletionPolicy, Kind, ResourcePoolStatus};
use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    KubernetesSource,
    fixtures::{
        ApiServer, Call, NAMESPACE, Otherwise as _, Pending, SINCE, Watch, binding, condition, gpus, list, object, ok,
        pool, ready, refused, with,
    },
    object::FINALIZER,
};
use crate::{
    board::{BindingVerdict, Board, Gone},
    http::Readiness,
    metrics::Metrics,
    notice::{Notices, What},
    source::Declaration,
    state::{Memory, RememberedPool, StateDir},
};

const SECOND: Duration = Duration::from_secs(1);

/// A cluster, and what an agent that leads makes of it.
struct Cluster {
    /// Where objects are written.
    requests: ApiServer,
    /// Where they are listed and watched, each kind by itself.
    watches: ApiServer,
    /// Requests there that no test has asked about yet.
    asked: Vec<(Call, Pending)>,
    declared: watch::Receiver<Arc<Declaration>>,
    redis: watch::Sender<Option<String>>,
    board: Arc<Board>,
    memory: Arc<Memory>,
    metrics: Metrics,
    readiness: Readiness,
    notices: Notices,
    _state: TempDir,
}

/// Leads for as long as a test plays the cluster.
async fn leading(play: impl AsyncFnOnce(&mut Cluster)) {
    let (source, mut cluster) = cluster().await;
    let (declarations, declared) = watch::channel(Arc::default());
    let (notices, mut waiting) = Notices::channel();
    (cluster.declared, cluster.notices) = (declared, notices);
    tokio::select! {
        () = source.run(&declarations, &mut waiting) => unreachable!("it runs until it is dropped"),
        () = play(&mut cluster) => {}
    }
}

async fn cluster() -> (KubernetesSource, Cluster) {
    let (client, requests) = ApiServer::new();
    let (watching, watches) = ApiServer::new();
    let state = tempfile::tempdir().unwrap();
    let occupied = StateDir::locate(Some(state.path().to_owned())).unwrap().occupy().await.unwrap();
    let (redis, unreachable) = watch::channel(None);
    let source = KubernetesSource {
        client,
        watches: watching,
        allow_empty: false,
        board: Arc::default(),
        memory: Arc::new(Memory::load(&occupied).unwrap()),
        metrics: Metrics::new(),
        readiness: Readiness::new(),
        unreachable,
    };
    let cluster = Cluster {
        requests,
        watches,
        asked: Vec::new(),
        declared: watch::channel(Arc::default()).1,
        redis,
        board: Arc::clone(&source.board),
        memory: Arc::clone(&source.memory),
        metrics: source.metrics.clone(),
        readiness: source.readiness.clone(),
        notices: Notices::default(),
        _state: state,
    };
    (source, cluster)
}

impl Cluster {
    /// The next request to list the objects of a kind, or to watch them.
    async fn asked(&mut self, kind: Kind, to: &str) -> (Call, Pending) {
        let line = match kind {
            Kind::ResourcePool => "GET /apis/redis-allocator.dev/v1alpha1/resourcepools",
            Kind::SoftBinding => "GET /apis/redis-allocator.dev/v1alpha1/softbindings",
        };
        let is_meant = |call: &Call| call.line == line && call.query.contains_key("watch") == (to == "watch");
        loop {
            if let Some(found) = self.asked.iter().position(|(call, _)| is_meant(call)) {
                return self.asked.remove(found);
            }
            let next = self.watches.next().await;
            self.asked.push(next);
        }
    }

    async fn list<const N: usize>(&mut self, kind: Kind, version: &str, objects: [DynamicObject; N]) {
        self.asked(kind, "list").await.1.send(list(version, objects));
    }

    /// Begins a watch, which must go on from this version.
    async fn watch(&mut self, kind: Kind, version: &str) -> Watch {
        let (call, pending) = self.asked(kind, "watch").await;
        assert_eq!(call.query.get("resourceVersion").map(String::as_str), Some(version));
        pending.watch()
    }

    /// Lists these pools and no binding, and watches both kinds.
    async fn begin<const N: usize>(&mut self, pools: [DynamicObject; N]) -> [Watch; 2] {
        self.list(Kind::ResourcePool, "10", pools).await;
        self.list(Kind::SoftBinding, "10", []).await;
        let watches = [self.watch(Kind::ResourcePool, "10").await, self.watch(Kind::SoftBinding, "10").await];
        self.declaration().await;
        watches
    }

    /// What is declared next.
    async fn declaration(&mut self) -> Arc<Declaration> {
        timeout(Duration::from_hours(1), self.declared.changed()).await.expect("a declaration is missing").unwrap();
        Arc::clone(&self.declared.borrow_and_update())
    }

    /// Whether nothing is declared for a while.
    async fn declares_nothing_new(&mut self) -> bool {
        timeout(SECOND, self.declared.changed()).await.is_err()
    }

    fn failures(&self, category: &str) -> usize {
        let metrics = self.metrics.render().unwrap();
        let line = format!("redis_allocator_kubernetes_errors_total{{category=\"{category}\"}} ");
        metrics.lines().find_map(|it| it.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    fn trouble(&self) -> String {
        self.readiness.verdict().unwrap_err()
    }
}

fn names(declaration: &Declaration) -> Vec<&str> {
    declaration.desired.pools.keys().map(PoolName::name).collect()
}

#[rstest]
#[case(Kind::ResourcePool, Kind::SoftBinding)]
#[case(Kind::SoftBinding, Kind::ResourcePool)]
#[tokio::test(start_paused = true)]
async fn nothing_is_declared_before_both_kinds_were_listed(#[case] first: Kind, #[case] last: Kind) {
    leading(async |cluster| {
        for kind in [first, last] {
            assert!(cluster.declares_nothing_new().await, "{kind} was not listed");
            match kind {
                Kind::ResourcePool => cluster.list(kind, "10", [pool("gpus")]).await,
                Kind::SoftBinding => cluster.list(kind, "11", [binding("trainer")]).await,
            }
        }
        let declaration = cluster.declaration().await;
        assert!(declaration.complete);
        assert_eq!(declaration.desired.pools[&gpus()].bindings.len(), 1);
        assert_eq!((declaration.fine, declaration.errors.len()), (2, 0));
        assert!(!cluster.trouble().contains("manifests"), "{}", cluster.trouble());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_change_is_declared_anew() {
    leading(async |cluster| {
        let [pools, bindings] = cluster.begin([pool("gpus")]).await;
        pools.added(&pool("others").version("11"));
        assert_eq!(names(&*cluster.declaration().await), ["gpus", "others"]);

        pools.modified(&pool("gpus").generation(2).version("12"));
        assert_eq!(cluster.declaration().await.desired.pools[&gpus()].generation, Some(2));

        bindings.added(&binding("trainer").version("13"));
        assert_eq!(cluster.declaration().await.desired.pools[&gpus()].bindings[0].object, "trainer");
        bindings.deleted(&binding("trainer").version("14"));
        assert!(cluster.declaration().await.desired.pools[&gpus()].bindings.is_empty());

        pools.modified(&pool("gpus").generation(2).deleting().version("15"));
        let declaration = cluster.declaration().await;
        assert_eq!(names(&declaration), ["others"]);
        assert_eq!(declaration.desired.deleting.get(&gpus()), Some(&DeletionPolicy::Drain));
        pools.deleted(&pool("gpus").generation(2).deleting().version("16"));
        assert!(!cluster.declaration().await.desired.mentions(&gpus()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn changes_of_one_moment_are_declared_together() {
    leading(async |cluster| {
        let [pools, _bindings] = cluster.begin([pool("gpus")]).await;
        for number in 0..100 {
            pools.added(&pool(&format!("pool-{number}")).version("11"));
            if number % 10 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(names(&*cluster.declaration().await).len(), 101);
        assert!(cluster.declares_nothing_new().await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_write_of_a_status_declares_nothing_and_causes_no_other() {
    leading(async |cluster| {
        let [pools, _bindings] = cluster.begin([pool("gpus")]).await;
        cluster.board.say(&gpus(), ready());
        let (call, pending) = cluster.requests.next().await;
        assert!(call.line.ends_with("/resourcepools/gpus/status"), "{call:?}");
        pending.send(ok(pool("gpus")));
        pools.modified(&pool("gpus").status(ready()).version("11"));
        assert!(cluster.declares_nothing_new().await);
        // Somebody else's, such as of a leader who does not know yet that it is none. It is put right, and not at once: two
        // that both want to be right must not keep the API server busy.
        pools.modified(&pool("gpus").status(json!({"total": 77})).version("12"));
        assert!(cluster.declares_nothing_new().await);
        let before = Instant::now();
        let (call, pending) = cluster.requests.next().await;
        assert!(before.elapsed() > SECOND * 5, "{:?}", before.elapsed());
        assert_eq!(call.body["status"], serde_json::to_value(ready()).unwrap());
        pending.send(ok(pool("gpus")));
        assert!(cluster.requests.is_silent_for(SECOND * 60).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_watch_brings_late_is_not_taken_for_somebody_elses() {
    leading(async |cluster| {
        let [pools, _bindings] = cluster.begin([pool("gpus")]).await;
        cluster.board.say(&gpus(), ready());
        cluster.requests.next().await.1.send(ok(pool("gpus")));
        sleep(Duration::from_millis(100)).await;
        let earlier = with(ready(), condition("Ready", "False", "Suspended", "nothing is granted", SINCE));
        pools.modified(&pool("gpus").status(earlier).version("11"));
        assert!(cluster.requests.is_silent_for(SECOND / 2).await);
        pools.modified(&pool("gpus").status(ready()).version("12"));
        assert!(cluster.requests.is_silent_for(SECOND * 60).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_leads_now_writes_only_what_the_last_leader_has_not() {
    leading(async |cluster| {
        let _watches = cluster.begin([pool("gpus").status(ready()), pool("others").status(ready())]).await;
        cluster.board.say(&gpus(), ready());
        cluster.board.say(&PoolName::new(NAMESPACE, "others").unwrap(), ResourcePoolStatus { leased: 2, ..ready() });
        let (call, pending) = cluster.requests.next().await;
        assert!(call.line.ends_with("/resourcepools/others/status"), "{call:?}");
        pending.send(ok(pool("others")));
        assert!(cluster.requests.is_silent_for(SECOND * 60).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_lags_behind_is_begun_anew_and_what_went_meanwhile_is_gone() {
    leading(async |cluster| {
        let [pools, bindings] = cluster.begin([pool("gpus"), pool("others")]).await;
        pools.failed(410);
        let (_, relist) = cluster.asked(Kind::ResourcePool, "list").await;
        assert!(cluster.declares_nothing_new().await, "nothing is known to have gone");
        bindings.added(&binding("trainer").version("11"));
        let declaration = cluster.declaration().await;
        assert_eq!(names(&declaration), ["gpus", "others"], "what changes meanwhile is declared as ever");
        assert_eq!(declaration.desired.pools[&gpus()].bindings.len(), 1);

        relist.send(list("20", [pool("others"), pool("third")]));
        let declaration = cluster.declaration().await;
        assert_eq!(names(&declaration), ["others", "third"]);
        assert!(declaration.complete && !declaration.desired.mentions(&gpus()));
        let pools = cluster.watch(Kind::ResourcePool, "20").await;
        pools.modified(&pool("third").generation(2).version("21"));
        assert_eq!(names(&*cluster.declaration().await), ["others", "third"]);
        assert_eq!(cluster.failures("watch"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was() {
    leading(async |cluster| {
        let [pools, _bindings] = cluster.begin([pool("gpus")]).await;
        pools.added(&pool("others").version("15"));
        cluster.declaration().await;
        drop(pools);
        let pools = cluster.watch(Kind::ResourcePool, "15").await;
        assert!(cluster.declares_nothing_new().await);
        pools.deleted(&pool("gpus").version("16"));
        assert_eq!(names(&*cluster.declaration().await), ["others"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_be_begun_is_tried_again_and_nothing_is_lost() {
    leading(async |cluster| {
        cluster.list(Kind::ResourcePool, "10", [pool("gpus")]).await;
        cluster.list(Kind::SoftBinding, "10", []).await;
        cluster.declaration().await;
        let mut last = Instant::now();
        for attempt in 0..4 {
            cluster.asked(Kind::ResourcePool, "watch").await.1.send(refused(429));
            let pause = std::mem::replace(&mut last, Instant::now()).elapsed();
            // The backoff of the watcher: from 0.8 s on, doubled and jittered.
            assert!(attempt == 0 || pause >= Duration::from_millis(800), "{pause:?}");
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(cluster.failures("too_many_requests"), 4);
        assert!(!cluster.trouble().contains("resourcepools"), "it leads with what it knows: {}", cluster.trouble());
        assert_eq!(names(&cluster.declared.borrow()), ["gpus"]);

        let pools = cluster.watch(Kind::ResourcePool, "10").await;
        pools.added(&pool("others").version("11"));
        assert_eq!(names(&*cluster.declaration().await), ["gpus", "others"]);
    })
    .await;
}

#[rstest]
#[case(500, "server", "refused with 500")]
#[case(429, "too_many_requests", "refused with 429")]
#[case(403, "forbidden", "refused with 403")]
#[case(404, "not_found", "install the definitions with `redis-allocator crd")]
#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_list_says_why_and_tries_again(
    #[case] code: u16,
    #[case] category: &str,
    #[case] said: &str,
) {
    leading(async |cluster| {
        cluster.list(Kind::ResourcePool, "10", [pool("gpus")]).await;
        let mut last = Instant::now();
        for attempt in 0..3 {
            cluster.asked(Kind::SoftBinding, "list").await.1.send(refused(code));
            let pause = std::mem::replace(&mut last, Instant::now()).elapsed();
            assert!(attempt == 0 || pause >= Duration::from_millis(800), "{pause:?}");
            sleep(Duration::from_millis(10)).await;
            let trouble = cluster.trouble();
            assert!(trouble.contains("can't list softbindings") && trouble.contains(said), "{trouble}");
        }
        assert_eq!(cluster.failures(category), 3);
        assert!(cluster.declares_nothing_new().await);

        cluster.list(Kind::SoftBinding, "11", []).await;
        assert_eq!(names(&*cluster.declaration().await), ["gpus"]);
        assert!(!cluster.trouble().contains("softbindings"), "{}", cluster.trouble());
    })
    .await;
}

/// What a pool's status has its next leader remember.
fn remembered(longest: Longest) -> RememberedPool {
    let known = json!({"incarnation": "0123456789abcdef", "longest": longest});
    RememberedPool { known: serde_json::from_value(known).unwrap(), deletion_policy: DeletionPolicy::Revoke }
}

#[rstest]
#[case::never_leased(ResourcePoolStatus { longest_ttl: None, ..ready() }, Longest::For(Duration::ZERO))]
#[case::leased(ready(), Longest::For(Duration::from_mins(2)))]
#[case::for_good(ResourcePoolStatus { permanent_leases: true, longest_ttl: None, ..ready() }, Longest::Permanent)]
#[tokio::test(start_paused = true)]
async fn what_the_objects_remember_is_known_before_anything_is_declared(
    #[case] status: ResourcePoolStatus,
    #[case] longest: Longest,
) {
    leading(async |cluster| {
        let object = object(Kind::ResourcePool, "gpus", json!({"deletionPolicy": "Revoke"})).finalizer(FINALIZER);
        cluster.list(Kind::ResourcePool, "10", [object.status(status), pool("others")]).await;
        cluster.list(Kind::SoftBinding, "10", []).await;
        cluster.declaration().await;
        assert_eq!(cluster.memory.get(&gpus()), Some(remembered(longest)));
        assert_eq!(cluster.memory.pools(), [gpus()], "of the other one, nothing is known");
    })
    .await;
}

#[rstest]
#[case::own_is_longer(Longest::For(Duration::from_mins(5)), Longest::For(Duration::from_mins(5)))]
#[case::own_is_shorter(Longest::For(Duration::from_mins(1)), Longest::For(Duration::from_mins(2)))]
#[case::own_is_for_good(Longest::Permanent, Longest::Permanent)]
#[tokio::test(start_paused = true)]
async fn of_the_same_life_the_longest_lease_anyone_remembers_counts(#[case] own: Longest, #[case] both: Longest) {
    leading(async |cluster| {
        cluster.memory.remember(&gpus(), remembered(own));
        cluster.begin([pool("gpus").spec(json!({"deletionPolicy": "Revoke"})).status(ready())]).await;
        assert_eq!(cluster.memory.get(&gpus()), Some(remembered(both)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_another_life_the_object_knows_better() {
    leading(async |cluster| {
        let mut own = remembered(Longest::Permanent);
        own.known.incarnation = serde_json::from_value(json!("fedcba9876543210")).unwrap();
        cluster.memory.remember(&gpus(), own);
        let object = pool("gpus").spec(json!({"deletionPolicy": "Revoke"})).status(ready());
        let [pools, _bindings] = cluster.begin([object.clone()]).await;
        let known = Some(remembered(Longest::For(Duration::from_mins(2))));
        assert_eq!(cluster.memory.get(&gpus()), known);

        // From now on this agent is the one who knows.
        let older = ResourcePoolStatus { permanent_leases: true, ..ready() };
        pools.failed(410);
        cluster.list(Kind::ResourcePool, "20", [object.status(older)]).await;
        cluster.declaration().await;
        assert_eq!(cluster.memory.get(&gpus()), known);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_from_its_creation_to_its_end() {
    leading(async |cluster| {
        let [pools, _bindings] = cluster.begin([]).await;
        let created = object(Kind::ResourcePool, "gpus", json!({}));
        pools.added(&created.clone().version("11"));
        let (call, pending) = cluster.requests.next().await;
        assert_eq!(call.body[1]["value"], json!([FINALIZER]));
        assert!(cluster.declaration().await.desired.pools.is_empty(), "nothing is made before that");
        assert!(cluster.declares_nothing_new().await);

        let born = created.finalizer(FINALIZER);
        pending.send(ok(&born));
        pools.modified(&born.clone().version("12"));
        assert_eq!(names(&*cluster.declaration().await), ["gpus"]);
        cluster.board.say(&gpus(), ready());
        let (call, pending) = cluster.requests.next().await;
        assert_eq!(call.body["status"], serde_json::to_value(ready()).unwrap());
        pending.send(ok(&born));

        let deleting = born.status(ready()).deleting();
        pools.modified(&deleting.clone().version("14"));
        assert!(cluster.declaration().await.desired.deleting.contains_key(&gpus()));
        assert!(cluster.requests.is_silent_for(SECOND * 60).await, "it is not gone yet");
        cluster.board.remove_pool(&gpus(), Gone::TakenDown);
        let mut lines = Vec::new();
        for _ in 0..3 {
            let (call, pending) = cluster.requests.next().await;
            lines.push(call.line);
            pending.send(ok(&deleting));
        }
        lines.sort();
        assert_eq!(
            lines,
            [
                "PATCH /apis/redis-allocator.dev/v1alpha1/namespaces/lab/resourcepools/gpus",
                "PATCH /apis/redis-allocator.dev/v1alpha1/namespaces/lab/resourcepools/gpus/status",
                "POST /apis/events.k8s.io/v1/namespaces/lab/events",
            ]
        );
        pools.deleted(&deleting.version("15"));
        assert!(!cluster.declaration().await.desired.mentions(&gpus()));
        assert!(cluster.requests.is_silent_for(SECOND * 60).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_made_anew_under_its_name_is_another_one() {
    leading(async |cluster| {
        let [pools, _bindings] = cluster.begin([pool("gpus").status(ready())]).await;
        cluster.board.say(&gpus(), ready());
        // The deletion was missed, as happens when the watch was away.
        pools.modified(&pool("gpus").uid("another").version("11"));
        cluster.declaration().await;
        let (call, pending) = cluster.requests.next().await;
        assert_eq!(call.body["metadata"]["uid"], "another", "nothing was written of it yet");
        pending.send(ok(pool("gpus")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_binding_hears_of_its_pools_verdict() {
    leading(async |cluster| {
        let [_pools, bindings] = cluster.begin([pool("gpus")]).await;
        bindings.added(&binding("trainer").version("11"));
        let declaration = cluster.declaration().await;
        let bound = declaration.desired.pools[&gpus()].bindings[0].clone();
        let verdict = BindingVerdict { ready: true, reason: "Bound", message: String::new() };
        cluster.board.set_bindings(&gpus(), vec![(bound, verdict)]);
        let (call, pending) = cluster.requests.next().await;
        assert_eq!(call.line, "PATCH /apis/redis-allocator.dev/v1alpha1/namespaces/lab/softbindings/trainer/status");
        assert_eq!(call.body["status"]["resource"], "gpu-0");
        pending.send(ok(binding("trainer")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn all_objects_hear_that_redis_cannot_be_reached() {
    leading(async |cluster| {
        let [_pools, bindings] = cluster.begin([pool("gpus").status(ready())]).await;
        bindings.added(&binding("trainer").version("11"));
        cluster.declaration().await;
        assert!(cluster.requests.is_silent_for(SECOND).await);
        cluster.redis.send_replace(Some("connection refused".to_owned()));
        for _ in 0..2 {
            let (call, pending) = cluster.requests.next().await;
            assert_eq!(call.body["status"]["conditions"][0]["reason"], "RedisUnavailable", "{call:?}");
            pending.send(ok(binding("trainer")));
        }
        // Each of them did.
        assert!(cluster.requests.is_silent_for(SECOND * 60).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn notices_are_told_of_the_object() {
    leading(async |cluster| {
        cluster.begin([pool("gpus")]).await;
        cluster.notices.send(&gpus(), What::Quarantined, "gpu-0: connection refused");
        let (call, pending) = cluster.requests.next().await;
        let about = &call.body["regarding"];
        assert_eq!([&about["namespace"], &about["name"], &about["uid"]], [NAMESPACE, "gpus", "uid-of-gpus"]);
        assert_eq!(call.body["reason"], "Quarantined");
        pending.send(ok(json!({})));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_cluster_is_no_order_to_delete() {
    leading(async |cluster| {
        cluster.list(Kind::ResourcePool, "10", []).await;
        cluster.list(Kind::SoftBinding, "10", []).await;
        assert!(!cluster.declaration().await.complete);
    })
    .await;
}
