//! Pools of what a cluster has: read only where that was allowed, on time, and without telling a Secret.

use anyhow::{Context as _, Result, ensure};
use redis_allocator_crd::{ResourcePool, SourceStatus};

use crate::{agent::pool, cluster::Cluster};

/// A pod without a kubelet: what it is said to be is all it is.
const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: p1, labels: {app: proxy}}, \
                   spec: {automountServiceAccountToken: false, containers: [{name: c, image: none}]}}";
const POD_IS_READY: &str = r#"{"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]}}"#;
const NODE: &str = "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {gpu: 'true'}}}";
const NODE_IS_READY: &str = r#"{"status": {"conditions": [{"type": "Ready", "status": "True"}]}}"#;
const SLICE: &str = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
                     metadata: {name: s1, labels: {kubernetes.io/service-name: proxies}}, ports: [{port: 80}], \
                     endpoints: [{addresses: [10.0.1.1], conditions: {ready: true}}, \
                     {addresses: [10.0.1.2], conditions: {ready: false}}]}";
const SPEC: &str = "{sources: [\
    {name: pods, interval: 1s, kubernetes: {pods: {labelSelector: {matchLabels: {app: proxy}}, template: '{ip}:3128'}}}, \
    {name: nodes, interval: 1s, kubernetes: {nodes: {labelSelector: {matchExpressions: [{key: gpu, operator: In, values: ['true']}]}}}}, \
    {name: slices, interval: 1s, kubernetes: {endpointSlices: {labelSelector: {}, template: '{ip}:{port}'}}}]}";

fn source(pool: &ResourcePool, name: &str) -> Result<SourceStatus> {
    let sources = pool.status.as_ref().map_or(&[][..], |status| &status.sources);
    sources.iter().find(|it| it.name == name).cloned().with_context(|| format!("no source {name} in {sources:?}"))
}

async fn keys(cluster: &Cluster, pool: &str) -> Result<Vec<String>> {
    let mut keys: Vec<_> = cluster.in_redis(pool)?.keys().await?.into_iter().map(|key| key.to_string()).collect();
    keys.sort();
    Ok(keys)
}

#[tokio::test]
async fn what_a_cluster_has_is_in_the_pool_once_the_agents_may_look() -> Result<()> {
    let Some(cluster) = Cluster::start("sources in a cluster").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let api = &cluster.api;
    // No controller runs that would make it.
    api.kubectl(&["create", "serviceaccount", "default"]).await?;
    for object in [POD, NODE, SLICE] {
        api.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], object).await?;
    }
    for (kind, name, status) in [("pod", "p1", POD_IS_READY), ("node", "n1", NODE_IS_READY)] {
        api.kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", status]).await?;
    }
    cluster.apply(&pool("a", SPEC)).await?;
    let refused = cluster.pool_is("a", "Discovered", "False", "SourceFailing").await?;
    ensure!(source(&refused, "pods")?.message.contains("the agent may not read pods"), "{refused:?}");
    assert_eq!(keys(&cluster, "a").await?, [""; 0]);
    cluster.event("a", "SourceFailing").await?;

    let component = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/components/discovery/rbac.yaml");
    api.kubectl(&["apply", "-f", component]).await?;
    let fine = cluster.pool_is("a", "Discovered", "True", "SourcesFresh").await?;
    assert_eq!(source(&fine, "slices")?.items, 1);
    cluster.event("a", "SourcesFresh").await?;
    // The last that is to be written: how many there are.
    cluster.counts("a", |status| (status.total, status.free), (3, 3)).await?;
    cluster.redis_has("a", 3).await?;
    assert_eq!(keys(&cluster, "a").await?, ["10.0.0.1:3128", "10.0.1.1:80", "n1"]);

    // Asked again and again, an object that is fine is not written again.
    let requests = cluster.requests_of_agents()?.len();
    let asked = |requests: &[e2e::kube::Request]| requests.iter().filter(|it| it.resource == "pods").count();
    cluster
        .eventually(async || {
            ensure!(asked(&cluster.requests_of_agents()?[requests..]) >= 4);
            Ok(())
        })
        .await?;
    ensure!(cluster.writes_since(requests)?.is_empty(), "{:?}", cluster.writes_since(requests)?);
    Ok(())
}

#[tokio::test]
async fn a_secret_is_read_where_that_is_allowed_and_never_told() -> Result<()> {
    let Some(cluster) = Cluster::start("sources in Secrets").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    let api = &cluster.api;
    let bad = r#"["fine", {"name": "also-fine", "labels": {"hunter2 ": "hunter2"}}, "hunter2", "hunter2"]"#;
    api.kubectl(&["create", "secret", "generic", "bought", &format!("--from-literal=list={bad}")]).await?;
    let spec =
        "{sources: [{name: s, interval: 1s, kubernetes: {secretKeyRef: {name: bought, key: list, format: Json}}}]}";
    cluster.apply(&pool("a", spec)).await?;
    let message = async |words: &str| {
        let pools = cluster.pools();
        cluster
            .eventually(async || {
                let source = source(&pools.get("a").await?, "s")?;
                ensure!(source.message.contains(words), "{source:?}");
                Ok(())
            })
            .await
    };
    message("the agent may not read Secret default/bought").await?;
    api.kubectl(&["create", "role", "sources", "--verb=get", "--resource=secrets", "--resource-name=bought"]).await?;
    let account = "--serviceaccount=redis-allocator:redis-allocator-agent";
    api.kubectl(&["create", "rolebinding", "sources", "--role=sources", account]).await?;
    message("Secret default/bought, key list: entry [1]").await?;
    let told = serde_json::to_string(&cluster.pools().get("a").await?)? + &agent.log() + &agent.page("/metrics")?.1;
    ensure!(!told.contains("hunter2"), "{told}");

    let good = r#"{"stringData": {"list": "[\"p1\", {\"name\": \"p2\", \"params\": {\"password\": \"hunter2\"}}]"}}"#;
    api.kubectl(&["patch", "secret", "bought", "-p", good]).await?;
    let fine = cluster.pool_is("a", "Discovered", "True", "SourcesFresh").await?;
    cluster.redis_has("a", 2).await?;
    let held = cluster.in_redis("a")?.get("p2").await?.context("it is there")?;
    assert_eq!(held.params["password"], "hunter2", "who holds it must know");
    let told = serde_json::to_string(&fine)? + &agent.log() + &agent.page("/metrics")?.1;
    ensure!(!told.contains("hunter2"), "{told}");
    Ok(())
}

#[tokio::test]
async fn an_agents_files_are_nobodys_source() -> Result<()> {
    let Some(cluster) = Cluster::start("a file as a source").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(&pool("a", "{sources: [{name: s, file: {path: /etc/passwd}}]}")).await?;
    let refused = cluster.pool_is("a", "Ready", "False", "InvalidSpec").await?;
    let message = &refused.status.context("no status")?.conditions[0].message;
    ensure!(message.contains("spec.sources[0].file: found a file"), "{message}");
    assert!(cluster.in_redis("a")?.info().await.is_err(), "nothing is made of it");
    cluster.nothing_was_refused()
}
