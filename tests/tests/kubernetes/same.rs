//! The same manifests, as files and through the API, make the same of Redis.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use e2e::{Flavor, Server};
use regex::Regex;

use crate::{agent::Site, cluster::Cluster};

const MANIFESTS: &str = "\
apiVersion: redis-allocator.dev/v1alpha1
kind: ResourcePool
metadata: {name: gpus}
spec:
  order: Sequential
  resources:
    - {name: gpu-0, priority: 10, labels: {zone: a}, params: {index: 0, nested: {a: [1, null, 'x']}}}
    - {name: 'gpu/1', labels: {zone: b}}
    - {name: gpu-2}
  ranges:
    - {name: hosts, template: '10.0.0.{}:8000', from: 1, to: 254, priority: 3}
    - {name: padded, template: 'h{:04}', from: 1, to: 20, labels: {rack: '7'}}
  lease: {defaultTTL: 2m, maxTTL: 1h}
  cooldown: 90s
  softBinding: {ttl: 2h}
---
apiVersion: redis-allocator.dev/v1alpha1
kind: ResourcePool
metadata: {name: asleep}
spec: {resources: [{name: a}], suspend: true}
---
apiVersion: redis-allocator.dev/v1alpha1
kind: ResourcePool
metadata: {name: empty}
spec: {}
---
apiVersion: redis-allocator.dev/v1alpha1
kind: SoftBinding
metadata: {name: trainer-1}
spec: {poolRef: {name: gpus}, resourceName: gpu-0, policy: Required}
---
apiVersion: redis-allocator.dev/v1alpha1
kind: SoftBinding
metadata: {name: trainer-2}
spec: {poolRef: {name: gpus}, bindingName: 'trainer/2', resourceName: 'gpu/1', ttl: 24h}
";

/// Everything in Redis that is declared, but for what is drawn by lot or a time.
async fn declared(server: &Server) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let time = Regex::new(r"\b1\d{12}(\d{3})?\b")?;
    let mut found = BTreeMap::new();
    for key in server.cmd::<Vec<String>>(&["KEYS", "ra:{default/*"]).await? {
        let content: BTreeMap<String, String> = match server.cmd::<String>(&["TYPE", &key]).await?.as_str() {
            "hash" => server.cmd(&["HGETALL", &key]).await?,
            "zset" => {
                let scores: BTreeMap<String, f64> = server.cmd(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]).await?;
                // Below a priority's step, a score is a time.
                let step = f64::from(2).powi(42);
                scores.into_iter().map(|(member, score)| (member, (score / step).floor().to_string())).collect()
            }
            other => bail!("{key} is a {other}"),
        };
        let by_lot = |field: &String| {
            key.ends_with(":meta") && ["incarnation", "manager", "last", "last_ticket"].contains(&field.as_str())
        };
        let content = content.into_iter().filter(|(field, _)| !by_lot(field));
        found.insert(
            key.clone(),
            content.map(|(field, value)| (field, time.replace_all(&value, "T").into_owned())).collect(),
        );
    }
    Ok(found)
}

#[tokio::test]
async fn files_and_objects_make_the_same_of_redis() -> Result<()> {
    let Some(cluster) = Cluster::start("comparing files with objects").await? else { return Ok(()) };
    let mut agent = cluster.agent()?;
    agent.ready().await?;
    cluster.apply(MANIFESTS).await?;
    cluster.ready("gpus").await?;
    cluster.ready("empty").await?;
    cluster.pool_is("asleep", "Ready", "False", "Suspended").await?;
    cluster.binding_is("trainer-1", "True", "Bound").await?;
    cluster.binding_is("trainer-2", "True", "Bound").await?;

    let (server, site) = (Server::start(Flavor::Redis).await?, Site::new()?);
    site.write("all.yaml", MANIFESTS)?;
    let mut by_files = site.agent(&["--redis-url", &server.url()])?;
    by_files.ready().await?;
    by_files.has_condition("trainer-1", "Ready", "True", "Bound").await?;
    by_files.has_condition("trainer-2", "Ready", "True", "Bound").await?;

    let (objects, files) = (declared(&cluster.redis).await?, declared(&server).await?);
    let items = files.get("ra:{default/gpus}:items").context("nothing is declared")?;
    assert_eq!(items.len(), 277);
    assert_eq!(objects, files);
    Ok(())
}
