//! A cluster whose answers each test says.

use serde_json::json;

use super::*;
use crate::source::kubernetes::fixtures::{Answer, ApiServer, Call, ok, refused};

/// What a source of a pool of namespace `lab` brings, if these are the answers; and the requests.
async fn fetched<const N: usize>(source: Value, answers: [Answer; N]) -> (Result<Vec<String>, Trouble>, [Call; N]) {
    let (client, mut server) = ApiServer::new();
    let source: SourceKubernetes = serde_json::from_value(source).unwrap();
    let (result, calls) = server.answer(fetch(&client, "lab", &source), answers).await;
    (result.map(|items| items.into_iter().map(|item| item.name).collect()), calls)
}

fn page(items: &Value, next: &str) -> Answer {
    ok(json!({"apiVersion": "v1", "kind": "List", "metadata": {"continue": next}, "items": items}))
}

fn pod(name: &str, ip: &str, ready: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "status": {"podIP": ip, "conditions": [{"type": "Scheduled", "status": "True"}, {"type": "Ready", "status": ready}]},
    })
}

#[tokio::test(start_paused = true)]
async fn ready_pods_of_the_pools_namespace_are_resources_page_by_page() {
    let mut leaving = pod("d", "10.0.0.4", "True");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let source = json!({"pods": {
        "labelSelector": {
            "matchLabels": {"app": "proxy"},
            "matchExpressions": [
                {"key": "zone", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"},
            ],
        },
        "template": "{ip}:3128",
    }});
    let pages = [
        page(&json!([pod("b", "10.0.0.2", "True"), pod("c", "10.0.0.3", "False")]), "more"),
        page(&json!([leaving, {"metadata": {"name": "e"}}, pod("a", "10.0.0.1", "True")]), ""),
    ];
    let (items, [first, second]) = fetched(source, pages).await;
    assert_eq!(items.unwrap(), ["10.0.0.1:3128", "10.0.0.2:3128"]);
    assert_eq!((first.line.as_str(), &first.query["limit"]), ("GET /api/v1/namespaces/lab/pods", &"500".to_owned()));
    let selector = &first.query["labelSelector"];
    for part in ["app%3Dproxy", "zone+in+", "%21old"] {
        assert!(selector.contains(part), "{part} in {selector}");
    }
    assert_eq!(second.query["continue"], "more");
}

#[tokio::test(start_paused = true)]
async fn ready_nodes_are_resources() {
    let node = |name: &str, ready: &str| {
        json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "10.1.0.1"}],
            },
        })
    };
    let nodes = page(&json!([node("n1", "True"), node("n2", "Unknown")]), "");
    let source = json!({"nodes": {"labelSelector": {}, "template": "{name}@{ip}"}});
    let (items, [call]) = fetched(source, [nodes]).await;
    assert_eq!((items.unwrap(), call.line.as_str()), (vec!["n1@10.1.0.1".to_owned()], "GET /api/v1/nodes"));
    assert_eq!(call.query.get("labelSelector").map_or("", String::as_str), "", "all of them");
}

#[tokio::test(start_paused = true)]
async fn ready_endpoints_are_resources_each_once() {
    let slice = |family: &str, endpoints: &Value| {
        json!({
            "metadata": {"name": "s"}, "addressType": family, "endpoints": endpoints,
            "ports": [{"port": 80}, {"port": 81}],
        })
    };
    let first = json!([
        {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "p1"}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
        {"addresses": ["10.0.0.3"], "conditions": {}},
    ]);
    let again = json!([{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "p1"}}]);
    let six = json!([{"addresses": ["fd00::1"]}]);
    let slices = || page(&json!([slice("IPv4", &first), slice("IPv4", &again), slice("IPv6", &six)]), "");
    let source = |template: &str| json!({"endpointSlices": {"labelSelector": {}, "template": template}});
    let (items, [call]) = fetched(source("{ip}:{port}"), [slices()]).await;
    assert_eq!(call.line, "GET /apis/discovery.k8s.io/v1/namespaces/lab/endpointslices");
    let expected = ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.3:80", "10.0.0.3:81", "[fd00::1]:80", "[fd00::1]:81"];
    assert_eq!(items.unwrap(), expected);
    let (items, _) = fetched(source("{name}"), [slices()]).await;
    assert_eq!(items.unwrap(), ["p1"], "only one has a pod behind it");
}

#[tokio::test(start_paused = true)]
async fn config_maps_and_secrets_hold_lists() {
    let map = ok(json!({"metadata": {"name": "m"}, "data": {"list": "a\nb\n"}}));
    let (items, [call]) = fetched(json!({"configMapKeyRef": {"name": "m", "key": "list"}}), [map]).await;
    assert_eq!((items.unwrap().len(), call.line.as_str()), (2, "GET /api/v1/namespaces/lab/configmaps/m"));

    // ["a"] in base64.
    let secret = ok(json!({"metadata": {"name": "s"}, "data": {"list": "WyJhIl0="}}));
    let source = json!({"secretKeyRef": {"name": "s", "key": "list", "format": "Json"}});
    let (items, [call]) = fetched(source, [secret]).await;
    assert_eq!((items.unwrap(), call.line.as_str()), (vec!["a".to_owned()], "GET /api/v1/namespaces/lab/secrets/s"));
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_secret_is_told_whatever_is_wrong_with_it() {
    let source = || json!({"secretKeyRef": {"name": "s", "key": "list", "format": "Json"}});
    for data in [
        // "hunter2", ["hunter2", "hunter2"] and hunter2, in base64.
        json!({"list": "Imh1bnRlcjIi"}),
        json!({"list": "WyJodW50ZXIyIiwgImh1bnRlcjIiXQ=="}),
        json!({"list": "aHVudGVyMg=="}),
        json!({"other": "aHVudGVyMg=="}),
        json!({"list": "hunter2 is no base64"}),
    ] {
        let secret = ok(json!({"metadata": {"name": "s"}, "data": data}));
        let trouble = fetched(source(), [secret]).await.0.unwrap_err();
        assert!(!trouble.message.contains("hunter2") && trouble.message.contains("Secret lab/s"), "{trouble}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_refuses_says_what_and_how_to_mend_it() {
    let pods = || json!({"pods": {"labelSelector": {}}});
    let map = || json!({"configMapKeyRef": {"name": "m", "key": "list"}});
    for (source, answer, category, words) in [
        (pods(), refused(403), "refused", "the agent may not read pods: refused with 403; give it the permission"),
        (pods(), refused(500), "status", "the API server refused to show pods: refused with 500 (500)"),
        (pods(), Answer::Broken, "unreachable", "the API server did not answer about pods: the connection broke"),
        (map(), refused(404), "not_found", "ConfigMap lab/m is not there"),
        (map(), ok(json!({"metadata": {}, "data": {}})), "not_found", "ConfigMap lab/m has no key list"),
        (map(), ok(json!({"metadata": {}, "data": {"list": "a\na"}})), "invalid", "ConfigMap lab/m, key list: line 2"),
    ] {
        let trouble = fetched(source, [answer]).await.0.unwrap_err();
        assert_eq!(trouble.category, category, "{trouble}");
        assert!(trouble.message.starts_with(words), "{trouble}");
    }
    let long = json!([pod(&"p".repeat(600), "10.0.0.1", "True")]);
    let trouble = fetched(pods(), [page(&long, "")]).await.0.unwrap_err();
    assert!(trouble.message.starts_with("the template makes what is no key"), "{trouble}");
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_asked_for_when_there_is_too_much() {
    let endpoints: Vec<_> = (0..500).map(|n| json!({"addresses": [format!("10.0.{}.{}", n / 250, n % 250)]})).collect();
    let ports: Vec<_> = (1..=201).map(|port| json!({"port": port})).collect();
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
    let source = json!({"endpointSlices": {"labelSelector": {}, "template": "{ip}:{port}"}});
    let trouble = fetched(source, [page(&json!([slice]), "more")]).await.0.unwrap_err();
    assert_eq!(trouble.category, "too_large");
    assert!(trouble.message.starts_with("the endpointslices that match bring more than 100000 resources"), "{trouble}");
}
